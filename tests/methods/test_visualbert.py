"""VisualBERT against Hugging Face's class: both tasks, what is read of pictures, masks, gradients, other encoders."""

import functools

import jax
import numpy as np
import pytest
import torch
import torchcrf
import transformers
from torch import nn

from tests.methods.torch_blocks import (
    HEADS,
    HIDDEN,
    LAYERS,
    VOCABULARY,
    Reference,
    at_markers,
    at_words,
    tensors,
    text_batch,
    without_gradient,
)
from tmrjax import convert
from tmrjax.encoders.open import text_config
from tmrjax.methods.visualbert import EntityVisualBERT, RelationVisualBERT

FEATURES, REGIONS, TAGS, RELATIONS = 6, 4, 5, 3


class Released(Reference):
    def __init__(self, task):
        super().__init__()
        self.visual_bert = transformers.VisualBertModel(
            transformers.VisualBertConfig(
                vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                intermediate_size=24, max_position_embeddings=32, visual_embedding_dim=FEATURES,
            )
        )  # fmt: skip
        if task == "ner":
            self.classifier, self.crf = nn.Linear(HIDDEN, TAGS), torchcrf.CRF(TAGS, batch_first=True)
        else:
            self.fc = nn.Linear(2 * HIDDEN, RELATIONS)

    def forward(self, batch):
        mask = batch["object_mask"]
        states = self.visual_bert(
            input_ids=batch["input_ids"].long(),
            attention_mask=batch["attention_mask"].long(),
            visual_embeds=torch.where(mask[..., None], batch["object_features"], 0),
            visual_attention_mask=mask.long(),
            visual_token_type_ids=torch.ones(mask.shape, dtype=torch.long),
        ).last_hidden_state
        return states[:, : batch["input_ids"].shape[1]]


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(3, REGIONS, FEATURES)).astype(np.float32)
    mask = np.array([[True] * 4, [False, True, False, False], [False] * 4])
    return text_batch(generator) | {
        "object_features": features,
        "object_mask": mask,
        "image_pooled": features[:, 0],
        "region_pooled": features[:, 1:],
        "image_mask": mask[:, 0],
        "region_mask": mask[:, 1:],
    }


@pytest.fixture(scope="module", params=["ner", "re"])
def released(request):
    torch.manual_seed(0)
    return request.param, Released(request.param).randomise()


def to_ours(task, released, **options):
    return convert.method_from_release("visualbert", released.numpy(), task=task, num_attention_heads=HEADS, **options)


@functools.partial(jax.jit, static_argnums=0)
def apply(method, variables, batch):
    return method.apply(variables, batch, train=False)


def test_hugging_faces_arithmetic(released, batch):
    task, model = released
    states = model(tensors(batch))
    found, valid = apply(*to_ours(task, model), batch), batch["attention_mask"]
    np.testing.assert_allclose(found.states["text_states"][valid], states.detach()[valid], atol=1e-5)
    if task == "ner":
        np.testing.assert_allclose(found.scores[valid], model.classifier(states).detach()[valid], atol=1e-5)
    else:
        expected = model.fc(at_markers(states, tensors(batch))).detach()
        np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_crops_and_grids_are_regions_with_masks_and_words_are_scored(batch):
    torch.manual_seed(0)
    model = Released("ner").randomise()
    expected = model.classifier(at_words(model(tensors(batch)), tensors(batch))).detach()
    method, variables = to_ours("ner", model, visual="crops")
    default = EntityVisualBERT(num_labels=TAGS, text=method.text)
    valid = batch["word_mask"]
    found = apply(default, variables, batch).scores
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-5)
    spoiled = {name: value.copy() for name, value in batch.items()}
    for part in ("image", "region"):
        spoiled[f"{part}_pooled"][~batch[f"{part}_mask"]] = np.nan
    spoiled["input_ids"][~batch["attention_mask"]] = 7
    np.testing.assert_array_equal(apply(default, variables, spoiled).scores[valid], found[valid])

    grid = {"image_features": batch["object_features"], "image_mask": np.array([True, True, False])}
    patches = tensors(batch | {"object_mask": np.repeat(grid["image_mask"][:, None], REGIONS, 1)})
    expected = model.classifier(at_words(model(patches), patches)).detach()
    found = apply(EntityVisualBERT(num_labels=TAGS, text=method.text, visual="grid"), variables, batch | grid).scores
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-5)


def test_the_text_only_form_is_that_of_missing_pictures_and_gradients_reach_the_rest(batch):
    torch.manual_seed(0)
    method, variables = to_ours("ner", Released("ner").randomise(), visual="objects")
    default = EntityVisualBERT(num_labels=TAGS, text=method.text, visual="objects")
    text_only = EntityVisualBERT(num_labels=TAGS, text=method.text, visual="objects", use_pictures=False)
    assert [one.name for one in text_only.inputs] == ["pieces"] and text_only.left_out == "pictures"
    params = {name: value for name, value in variables["params"].items() if not name.startswith("visual")}
    text = {name: value for name, value in batch.items() if not name.startswith(("object", "image", "region"))}
    spoiled = batch | {"object_mask": np.zeros((3, 4), bool), "object_features": np.full((3, 4, FEATURES), np.nan)}
    found, valid = apply(text_only, {"params": params}, text).scores, batch["word_mask"]
    np.testing.assert_allclose(found[valid], apply(default, variables, spoiled).scores[valid], atol=1e-6)

    unreached = without_gradient(default, variables, batch, lambda outputs: (outputs.scores**2).sum())
    # The CRF is read by the head; a key's bias shifts all logits of a query alike.
    assert {name for name in unreached if not name.endswith("key/bias")} == {
        f"crf/{name}" for name in ("transitions", "start_transitions", "end_transitions")
    }


SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "intermediate_size": 24, "max_position_embeddings": 32, "embedding_size": 8, "type_vocab_size": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["roberta", "electra", "deberta-v2"])
def test_other_text_encoders_read_regions_or_say_that_they_cannot(kind, batch):
    options = {"relative_attention": True, "pos_att_type": ["c2p"], "position_buckets": 4} if kind[0] == "d" else {}
    text = text_config({"model_type": kind, **SIZES, **options})
    method = RelationVisualBERT(num_labels=RELATIONS, text=text)

    def first(key):
        return method.init_with_output(key, batch, train=False)[0].scores

    if kind == "deberta-v2":
        with pytest.raises(ValueError, match="take a BERT"):
            jax.eval_shape(first, jax.random.key(0))
    else:
        assert jax.eval_shape(first, jax.random.key(0)).shape == (3, RELATIONS)


def test_names_that_are_missing_or_unknown_and_other_visuals_are_errors(batch):
    state = Released("re").numpy()
    state["fc2.bias"] = state.pop("fc.bias")
    with pytest.raises(ValueError, match=r"(?s)missing: fc\.bias.*extra: fc2\.bias"):
        convert.method_from_release("visualbert", state, task="re", num_attention_heads=HEADS)
    with pytest.raises(ValueError, match="must be one of crops, grid, objects"):
        EntityVisualBERT(num_labels=TAGS, visual="boxes")
