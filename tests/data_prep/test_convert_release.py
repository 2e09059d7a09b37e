"""A fabricated state dict under the released names: the same emissions as the equations in PyTorch, every name told."""

import jax
import numpy as np
import pytest
import torch
import transformers

from tests.convert.test_convert import TorchvisionResNet
from tests.release_reference import ReleasedNER, ReleasedRE
from tmrjax.convert import ner_from_release, re_from_release
from tmrjax.encoders.picture.resnet import ResNetConfig

B, T, P = 3, 6, 4
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=(16, 32, 32, 64), depths=(1, 2, 1, 1))


def released(resnet: torch.nn.Module | None, features: int, kind=ReleasedNER, **sizes):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=32,
    )  # fmt: skip
    sizes = sizes or {"length": T, "tags": 13}
    return kind(config, features=features, resnet=resnet, **sizes).eval()


def state_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def some_batch(features: int, pixels: bool) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    batch = {
        "input_ids": generator.integers(0, 50, (B, T)),
        "head_start": np.array([1, 3, 0]),
        "tail_start": np.array([4, 1, 1]),
        "attention_mask": np.array([[1] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], bool),
        "phrase_ids": generator.integers(0, 50, (B, P)),
        "phrase_mask": np.array([[1] * 4, [1, 1, 1, 0], [1, 1, 0, 0]], bool),
    }
    for prefix in ("", "generated_"):
        if pixels:
            batch[f"{prefix}image"] = generator.normal(size=(B, 64, 64, 3)).astype(np.float32)
            batch[f"{prefix}regions"] = generator.normal(size=(B, 3, 64, 64, 3)).astype(np.float32)
        else:
            batch[f"{prefix}image_features"] = generator.normal(size=(B, 4, features)).astype(np.float32)
            batch[f"{prefix}region_features"] = generator.normal(size=(B, 3, 4, features)).astype(np.float32)
        batch[f"{prefix}image_mask"] = np.ones(B, bool)
        batch[f"{prefix}region_mask"] = np.ones((B, 3), bool)
        batch[f"{prefix}scores"] = generator.uniform(size=(B, 2)).astype(np.float32)
    return batch


def torch_output(model: ReleasedNER | ReleasedRE, batch: dict[str, np.ndarray]) -> np.ndarray:
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    with torch.no_grad():
        for prefix in ("", "generated_"):
            if f"{prefix}image" in tensors:
                for ours, theirs in (("image", "image_features"), ("regions", "region_features")):
                    pixels = tensors[prefix + ours]
                    maps = model.model_resnet50(pixels.flatten(0, -4).movedim(-1, 1))
                    tensors[prefix + theirs] = maps.flatten(2).movedim(1, 2).reshape(*pixels.shape[:-3], -1, 64)
        return model(tensors).numpy()


@pytest.mark.parametrize("pixels", [True, False])
def test_emissions_equal_the_released_arithmetic(pixels):
    features = RESNET.feature_size if pixels else 24
    reference = released(TorchvisionResNet(RESNET).eval() if pixels else None, features)
    model, variables = ner_from_release(state_of(reference), num_attention_heads=4)
    assert (model.variant, model.num_tags, model.release_length) == ("release", 13, T)
    batch = some_batch(features, pixels)
    emissions, intermediates = jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, batch)
    np.testing.assert_allclose(emissions, torch_output(reference, batch), atol=1e-4)
    np.testing.assert_array_equal(intermediates["crf"].transitions, state_of(reference)["crf.transitions"])


def test_prepared_scores_are_read_as_complement_and_strengthen():
    reference = released(None, 24)
    model, variables = ner_from_release(state_of(reference), num_attention_heads=4)
    batch = some_batch(24, pixels=False)
    wide = dict(batch)
    for prefix in ("", "generated_"):
        scores = batch[f"{prefix}scores"]
        wide[f"{prefix}scores"] = np.concatenate([1 - scores.sum(1, keepdims=True), scores], 1)
    same = [model.apply(variables, b, train=False)[0] for b in (batch, wide)]
    np.testing.assert_array_equal(*same)


def test_every_name_is_accounted_for():
    state = state_of(released(TorchvisionResNet(RESNET), RESNET.feature_size))
    del state["linear_q_fine.bias"], state["model_resnet50.bn1.weight"]
    state["linear_k_coarse.weight"] = state["linear_k_coarse.weight"][:-1]
    state["linear_surprise.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="4 of its names") as error:
        ner_from_release(state, num_attention_heads=4)
    for part in (
        "missing: linear_q_fine.bias (64,)",
        "missing: model_resnet50.bn1.weight (8,)",
        "misshaped: linear_k_coarse.weight is (63, 64), expected (64, 64)",
        "extra: linear_surprise.weight (3,)",
    ):
        assert part in str(error.value)


def test_sizes_that_cannot_be_read_are_named():
    state = state_of(released(None, 24))
    with pytest.raises(ValueError, match=r"fc\.weight is missing"):
        ner_from_release({name: array for name, array in state.items() if name != "fc.weight"})
    with pytest.raises(ValueError, match=r"word_embeddings\.weight is missing"):
        ner_from_release({"fc.weight": state["fc.weight"]})


def test_another_length_than_the_checkpoints_is_refused():
    model, variables = ner_from_release(state_of(released(None, 24)), num_attention_heads=4)
    batch = some_batch(24, pixels=False)
    batch["input_ids"], batch["attention_mask"] = batch["input_ids"][:, :4], batch["attention_mask"][:, :4]
    with pytest.raises(ValueError, match="exactly 6 word pieces"):
        model.apply(variables, batch, train=False)


@pytest.mark.parametrize("pixels", [True, False])
def test_logits_of_relations_equal_the_released_arithmetic(pixels):
    features = RESNET.feature_size if pixels else 24
    resnet = TorchvisionResNet(RESNET).eval() if pixels else None
    reference = released(resnet, features, ReleasedRE, relations=7)
    model, variables = re_from_release(state_of(reference), num_attention_heads=4)
    assert (model.variant, model.num_relations) == ("release", 7)
    batch = some_batch(features, pixels)
    logits, _ = jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, batch)
    # u adds up whole maps and meets a tanh: float32 sums in another order show in the fourth digit.
    np.testing.assert_allclose(logits, torch_output(reference, batch), atol=5e-4)


def test_names_of_relations_weights_are_accounted_for_and_unused_layers_dropped():
    state = state_of(released(None, 24, ReleasedRE, relations=7))
    assert {"linear.weight", "sentence_encoder.linear.bias", "sentence_encoder.linear_weights.weight"} <= set(state)
    del state["sentence_encoder.linear_final.bias"]
    state["sentence_encoder.linear_other.weight"] = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="2 of its names") as error:
        re_from_release(state, num_attention_heads=4)
    assert "missing: sentence_encoder.linear_final.bias (128,)" in str(error.value)
    assert "extra: sentence_encoder.linear_other.weight (2,)" in str(error.value)
    with pytest.raises(ValueError, match=r"sentence_encoder\.bert\.embeddings.* is missing"):
        re_from_release(state_of(released(None, 24)))
