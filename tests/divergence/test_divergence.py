"""The estimator: torch's arithmetic, released weights, scores, its three losses, one device beside eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.encoders.test_vilt import TINY, inputs, numpy_state, torch_inputs, torch_vilt
from tests.test_contrastive import literal
from tmrjax.convert import mde_from_release, vilt_params
from tmrjax.divergence import DivergenceEstimator, model_from_dict, model_to_dict, normalise_as_released, score
from tmrjax.divergence.loss import WEAKEN, add_in_domain_negatives, make_loss
from tmrjax.encoders.joint.vilt import ViltConfig
from tmrjax.training.sharding import make_mesh, replicate, replicated, shard_batch, split_rows

# What the released names are in Hugging Face's: (pattern of theirs, released name), {i} a block.
BLOCK_NAMES = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def released_state(seed: int = 0):
    """A torch estimator with ViLT's two ε, and its weights under the released names."""
    torch.manual_seed(seed)
    model = torch_vilt(TINY, seed)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    model.embeddings.text_embeddings.LayerNorm.eps = 1e-12
    width = TINY.hidden_size
    head = torch.nn.Sequential(
        torch.nn.Linear(width, 2 * width), torch.nn.LayerNorm(2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, 3)
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    ours, theirs = numpy_state(model), {}
    for name, value in ours.items():
        if name.startswith("embeddings.text_embeddings."):
            theirs[name.removeprefix("embeddings.")] = value
    theirs["text_embeddings.position_ids"] = np.arange(TINY.max_position_embeddings)[None]
    for name, released in {
        "embeddings.token_type_embeddings.weight": "token_type_embeddings.weight",
        "embeddings.cls_token": "transformer.cls_token",
        "embeddings.position_embeddings": "transformer.pos_embed",
        "embeddings.patch_embeddings.projection.weight": "transformer.patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "transformer.patch_embed.proj.bias",
        "layernorm.weight": "transformer.norm.weight",
        "layernorm.bias": "transformer.norm.bias",
        "pooler.dense.weight": "pooler.dense.weight",
        "pooler.dense.bias": "pooler.dense.bias",
    }.items():
        theirs[released] = ours[name]
    for i in range(TINY.num_hidden_layers):
        for kind in ("weight", "bias"):
            for name, released in BLOCK_NAMES.items():
                theirs[f"transformer.blocks.{i}.{released}.{kind}"] = ours[f"encoder.layer.{i}.{name}.{kind}"]
            theirs[f"transformer.blocks.{i}.attn.qkv.{kind}"] = np.concatenate(
                [ours[f"encoder.layer.{i}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            )
    theirs |= {f"interaction_classifier.{name}": value.detach().numpy() for name, value in head.state_dict().items()}
    return model, head, theirs


@pytest.fixture(scope="module")
def released():
    """The torch estimator, its state dict, and ours with its scores of a batch of padded pictures."""
    model, head, state = released_state()
    ours, variables = mde_from_release(state, num_attention_heads=TINY.num_attention_heads)
    batch = inputs(TINY, 9)
    with torch.no_grad():
        pooled = model(**torch_inputs(batch)).pooler_output
        return state, ours, variables, batch, pooled, head(pooled)


def test_the_released_weights_give_torchs_logits_and_scores(released):
    _, model, variables, batch, pooled, logits = released
    found, found_pooled = jax.jit(lambda v: model.apply(v, batch, train=False))(variables)
    np.testing.assert_allclose(found_pooled, pooled, atol=2e-5)
    np.testing.assert_allclose(found, logits, atol=1e-4)
    probabilities = torch.softmax(logits, -1).numpy()
    scores = score(model, variables, batch | {"labels": np.zeros(len(batch["input_ids"]), int)})
    np.testing.assert_allclose(scores, probabilities, atol=2e-5)
    p = probabilities.astype(np.float64)
    expected = np.stack([0 * p[:, 0], p[:, 1] / (p[:, 1] + p[:, 2]), p[:, 2] / (p[:, 1] + p[:, 2])], 1)
    np.testing.assert_allclose(normalise_as_released(np.asarray(scores)), expected, atol=1e-4)
    with pytest.raises(ValueError, match="cannot divide by complement"):
        normalise_as_released(np.array([[1.0, 0.0, 0.0]]))


def test_sizes_are_read_from_the_shapes(released):
    _, model, _, *_ = released
    expected = dataclasses.replace(TINY, layer_norm_eps=1e-6, text_layer_norm_eps=1e-12)
    assert model == DivergenceEstimator(expected)
    with pytest.raises(ValueError, match="hidden size 24 is no multiple of 64"):
        mde_from_release(released[0])


def test_every_fault_of_released_weights_is_told_at_once(released):
    state = dict(released[0])
    del state["transformer.norm.bias"], state["interaction_classifier.3.weight"]
    del state["transformer.blocks.0.attn.qkv.bias"]
    state["transformer.blocks.1.attn.qkv.weight"] = np.zeros((71, 24), np.float32)
    state["interaction_classifier.4.weight"] = np.zeros(3, np.float32)
    state["mlm_score.decoder.weight"] = np.zeros(3, np.float32)  # a head of ViLT's own: dropped knowingly
    with pytest.raises(ValueError) as error:
        mde_from_release(state, num_attention_heads=3)
    lines = str(error.value).splitlines()
    assert lines[0] == "released MDE state dict: 5 of its names do not fit the config:"
    assert sorted(line.strip() for line in lines[1:]) == [
        "extra: interaction_classifier.4.weight (3,)",
        "misshaped: transformer.blocks.1.attn.qkv.weight is (71, 24), expected (72, 24)",
        "missing: interaction_classifier.3.weight (3, 48)",
        "missing: transformer.blocks.0.attn.qkv.bias (72,)",
        "missing: transformer.norm.bias (24,)",
    ]
    for name, change, message in (
        ("transformer.pos_embed", np.zeros((1, 16, 24)), "16 rows, which is no square grid"),
        ("transformer.pos_embed", np.zeros(4), r"has shape \(4,\) and not 3 axes"),
        ("text_embeddings.word_embeddings.weight", None, "is missing, from which"),
    ):
        broken = {key: value for key, value in (dict(released[0]) | {name: change}).items() if value is not None}
        with pytest.raises(ValueError, match=message):
            mde_from_release(broken, num_attention_heads=3)


def test_a_hugging_face_state_dict_with_prefix_and_faults():
    state = {f"vilt.{name}": value for name, value in numpy_state(torch_vilt(TINY)).items()}
    state |= {"mlm_score.bias": np.zeros(3), "vilt.embeddings.text_embeddings.position_ids": np.zeros((1, 12), int)}
    params = vilt_params(state, TINY)
    np.testing.assert_array_equal(
        params["layer_1"]["attention"]["key"]["kernel"].T, state["vilt.encoder.layer.1.attention.attention.key.weight"]
    )
    del state["vilt.pooler.dense.bias"]
    state["vilt.layernorm.weight"] = np.zeros(5, np.float32)
    state["surplus"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="3 of its names") as error:
        vilt_params(state, TINY)
    for part in ("missing: pooler.dense.bias (24,)", "misshaped: layernorm.weight is (5,)", "extra: surplus (1,)"):
        assert part in str(error.value)


# ---------------------------------------------------------------------- variants


SMALL = ViltConfig(20, 8, 1, 2, 16, 6, image_size=4, patch_size=2)
ROWS = 16


def pairs(seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
    """A batch as the pipeline makes it, two sources, the last row padding."""
    random = np.random.default_rng(seed)
    sizes = [(random.integers(1, 4), random.integers(1, 4)) for _ in range(rows - 1)] + [(3, 3)]
    batch = inputs(SMALL, 6, sizes, seed)
    batch |= {
        "labels": random.integers(0, 3, rows).astype(np.int32),
        "sources": random.integers(0, 2, rows).astype(np.int32),
        "row_mask": np.arange(rows) < rows - 1,
    }
    return batch


@functools.cache
def small_params():
    model = DivergenceEstimator(SMALL)
    variables = jax.jit(lambda key: model.init(key, pairs(rows=2), train=False))(jax.random.key(0))
    # Far from the initialisation, where all logits are nearly equal.
    return jax.tree.map(lambda x: np.asarray(x) * 8 if x.ndim > 1 else np.asarray(x), variables["params"])


def test_the_baselines_see_one_side_only():
    batch, other, params = pairs(), pairs(seed=1), small_params()
    texts, pictures = ("input_ids", "attention_mask"), ("pixel_values", "pixel_mask")
    for variant, blind in (("text", pictures), ("picture", texts), ("both", ())):
        model = DivergenceEstimator(SMALL, variant=variant)
        run = jax.jit(lambda batch, model=model: model.apply({"params": params}, batch, train=False)[0])
        logits = run(batch)
        first_piece = {"input_ids": np.concatenate([batch["input_ids"][:, :1], other["input_ids"][:, 1:]], 1),
                       "attention_mask": np.ones_like(batch["attention_mask"])}  # fmt: skip
        for names in (texts, pictures):
            change = first_piece if names == texts else {name: other[name] for name in pictures}
            if change.get("pixel_values", batch["pixel_values"]).shape != batch["pixel_values"].shape:
                change = {"pixel_values": -batch["pixel_values"]}
            difference = np.abs(run(batch | change) - logits).max()
            assert (difference == 0) == (names == blind), (variant, names)
    alone = {name: batch[name] for name in texts}
    assert DivergenceEstimator(SMALL, variant="text").apply({"params": small_params()}, alone, train=False)[0].shape
    with pytest.raises(ValueError, match="variant 'txet'; expected one of both, text, picture"):
        DivergenceEstimator(SMALL, variant="txet")


def test_bytes_are_pixels_in_minus_one_to_one():
    batch = pairs()
    whole = np.random.default_rng(0).integers(0, 256, batch["pixel_values"].shape).astype(np.uint8)
    scaled = (whole.astype(np.float32) / 255 - 0.5) / 0.5
    model = DivergenceEstimator(SMALL)
    scores = [score(model, {"params": small_params()}, batch | {"pixel_values": x}) for x in (whole, scaled)]
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_a_model_goes_through_json():
    model = DivergenceEstimator(SMALL, variant="picture", dtype=jnp.bfloat16, remat=True)
    assert model_from_dict(model_to_dict(model)) == model


# ---------------------------------------------------------------------- losses


@functools.cache
def gradient_of(mode: str, temperature: float = 0.2, devices: int = 1):
    loss = make_loss(DivergenceEstimator(SMALL), mode, temperature=temperature)
    mesh = make_mesh(devices)
    shardings = (replicated(mesh), None, split_rows(mesh), replicated(mesh))
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), in_shardings=shardings)

    def call(batch, key):
        (total, (count, *_)), gradient = run(replicate(small_params(), mesh), {}, shard_batch(batch, mesh), key)
        return float(total), int(count), jax.device_get(gradient)

    return call


def by_hand(batch) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropies in float64 and pooled states."""
    model = DivergenceEstimator(SMALL)
    logits, pooled = jax.jit(lambda b: model.apply({"params": small_params()}, b, train=False))(batch)
    logits = np.asarray(logits, np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_probabilities[np.arange(len(logits)), batch["labels"]], np.asarray(pooled)


def test_cross_entropy_is_the_sum_over_rows():
    batch = pairs()
    total, count, gradient = gradient_of("cross_entropy")(batch, jax.random.key(0))
    assert count == ROWS - 1
    np.testing.assert_allclose(total, by_hand(batch)[0][:-1].sum(), rtol=1e-5)
    assert np.abs(gradient["vilt"]["layer_0"]["attention"]["query"]["kernel"]).max() > 0


def test_the_contrast_trains_the_encoder_and_the_head_learns_behind_a_stop():
    batch = pairs() | {"labels": np.array([0, 0, 0, 1, 1, 1, 1, 2] + [1] * (ROWS - 9) + [2], np.int32)}
    entropies, pooled = by_hand(batch)
    rows = batch["row_mask"]
    anchors = np.array(literal(pooled, batch["labels"], 0.2, rows))
    expected = entropies[rows].sum() + rows.sum() * anchors.sum() / (ROWS - 2)  # one anchor has no positive
    total, count, gradient = gradient_of("supervised_contrastive")(batch, jax.random.key(0))
    assert count == ROWS - 1
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    entropy = gradient_of("cross_entropy")(batch, jax.random.key(0))[2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient["head"], entropy["head"])
    # All labels different for the contrast's sake: without positives nothing reaches the encoder.
    lonely = batch | {"row_mask": np.isin(np.arange(ROWS), [0, 3, 7])}
    encoder = gradient_of("supervised_contrastive")(lonely, jax.random.key(0))[2]["vilt"]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(encoder))


@pytest.mark.parametrize("mode", ["supervised_contrastive", "negative_sampling"])
def test_eight_devices_give_the_loss_and_gradients_of_one(mode):
    one, eight = (gradient_of(mode, devices=devices)(pairs(), jax.random.key(3)) for devices in (1, 8))
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-5)
    assert eight[1] == one[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), eight[2], one[2])


def test_negatives_are_texts_with_another_picture_of_their_source():
    batch = pairs()
    for name in ("pixel_values", "pixel_mask"):
        batch[name][1] = batch[name][0]  # two captions of one picture
    batch["labels"][:2], batch["sources"][:2] = 2, 0
    seen, add = set(), jax.jit(add_in_domain_negatives, static_argnums=2)
    for seed in range(12):
        larger = {name: np.asarray(value) for name, value in add(batch, jax.random.key(seed), 4).items()}
        for name in larger:
            np.testing.assert_array_equal(larger[name][:ROWS], batch[name])
        assert (larger["labels"][ROWS:] == WEAKEN).all() and larger["row_mask"][ROWS:].all()
        for row in range(ROWS, ROWS + 4):
            texts = [i for i in range(ROWS) if np.array_equal(larger["input_ids"][row], batch["input_ids"][i])]
            pictures = [i for i in range(ROWS) if np.array_equal(larger["pixel_values"][row], batch["pixel_values"][i])]
            (text,) = texts
            assert text not in pictures and batch["row_mask"][text] and batch["labels"][text] != WEAKEN
            assert any(
                batch["labels"][i] != WEAKEN and batch["sources"][i] == batch["sources"][text] and batch["row_mask"][i]
                for i in pictures
            )
            np.testing.assert_array_equal(larger["attention_mask"][row], batch["attention_mask"][text])
            np.testing.assert_array_equal(larger["pixel_mask"][row], batch["pixel_mask"][pictures[0]])
            seen.add((text, tuple(pictures)))
    assert len(seen) > 8  # drawn anew by the key


def test_where_no_negative_can_be_made_the_added_rows_are_masked():
    batch = pairs() | {"sources": np.arange(ROWS, dtype=np.int32)}
    larger = jax.jit(add_in_domain_negatives, static_argnums=2)(batch, jax.random.key(0), 4)
    assert not np.asarray(larger["row_mask"])[ROWS:].any()
    plain, count, _ = gradient_of("cross_entropy")(batch, jax.random.key(0))
    total, with_negatives, _ = gradient_of("negative_sampling")(batch, jax.random.key(0))
    assert count == with_negatives
    np.testing.assert_allclose(total, plain, rtol=1e-5)


def test_modes_and_shares_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="no mode 'contrast' of training; choose one of cross_entropy"):
        make_loss(DivergenceEstimator(SMALL), "contrast")
    with pytest.raises(ValueError, match="share of rows"):
        make_loss(DivergenceEstimator(SMALL), "negative_sampling", negatives=0.0)


def test_pixels_as_bytes_give_the_scores_of_the_same_pixels_as_floats(released):
    """uint8 pixels are scaled on the device, padding included, which the mask hides."""
    _, model, variables, batch, *_ = released
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, batch["pixel_values"].shape).astype(np.uint8)
    pixels[~batch["pixel_mask"].astype(bool)] = 0
    floats = np.where(batch["pixel_mask"].astype(bool)[..., None], pixels / np.float32(127.5) - 1, 0).astype(np.float32)
    found, expected = (model.apply(variables, batch | {"pixel_values": p}, train=False)[0] for p in (pixels, floats))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = model.apply(variables, batch | {"pixel_values": 255 - pixels}, train=False)[0]
    assert np.abs(found - other).max() > 1e-3
