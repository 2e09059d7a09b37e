"""UMT against a PyTorch reference under the released names: both tasks, masks, gradients, the text-only form."""

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
    Layers,
    Reference,
    at_markers,
    at_words,
    bert_config,
    crf_loss,
    tensors,
    text_batch,
    without_gradient,
)
from tmrjax import convert
from tmrjax.methods.umt import EntityUMT, RelationUMT, conversion, span_of_tags

FEATURES, PATCHES = 6, 4
RELEASED = ["PAD", "O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "X", "[CLS]", "[SEP]"]
RELEASED_SPANS = ["PAD", "O", "B", "I", "X", "[CLS]", "[SEP]"]


class ReleasedUMT(Reference):
    """Formulas (1) to (11) of tmrjax/methods/umt.py; ``literal`` False takes masks, words and 13 tags of six types."""

    def __init__(self):
        super().__init__()
        self.bert = transformers.BertModel(bert_config())
        for name in ("self_attention", "self_attention_v2", "txt2img_attention", "img2txt_attention"):
            setattr(self, name, Layers())
        self.txt2txt_attention = Layers()
        self.vismap2text, self.vismap2text_v2 = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)
        self.gate = nn.Linear(2 * HIDDEN, HIDDEN)
        self.classifier, self.aux_classifier = nn.Linear(2 * HIDDEN, 13), nn.Linear(HIDDEN, 7)
        self.crf, self.aux_crf = torchcrf.CRF(13, batch_first=True), torchcrf.CRF(7, batch_first=True)

    def fused(self, batch, literal):
        mask = batch["attention_mask"]
        words = self.bert(batch["input_ids"].long(), attention_mask=mask.long()).last_hidden_state
        own = self.self_attention_v2(words, words, mask)
        there = torch.ones_like(batch["image_mask"]) if literal else batch["image_mask"]
        patches = there[:, None].expand(-1, PATCHES)
        image = batch["image_features"]
        visual = self.txt2img_attention(own, self.vismap2text(image), patches)
        aware = self.txt2txt_attention(own, self.img2txt_attention(self.vismap2text_v2(image), own, mask), patches)
        gate = torch.sigmoid(self.gate(torch.cat([aware, visual], -1)))
        return words, torch.cat([aware, gate * visual * there[:, None, None]], -1)

    def forward(self, batch, literal):
        words, fused = self.fused(batch, literal)
        spans = self.self_attention(words, words, batch["attention_mask"])
        matrix = torch.zeros(7, 13).double()
        if literal:
            for j, tag in enumerate(RELEASED):
                i = RELEASED_SPANS.index(tag.split("-")[0])
                matrix[i, j] = 1 / 4 if tag[0] in "BI" else 1
            gold = torch.tensor([RELEASED_SPANS.index(tag.split("-")[0]) for tag in RELEASED])[batch["tags"]]
            mask = batch["attention_mask"]
        else:
            matrix[0, 0], matrix[1, 1::2], matrix[2, 2::2] = 1, 1 / 6, 1 / 6
            fused, spans, mask = at_words(fused, batch), at_words(spans, batch), batch["word_mask"]
            gold = torch.where(batch["tags"] == 0, 0, 2 - batch["tags"] % 2)
        scores = self.aux_classifier(spans)
        if not literal:  # three span tags
            scores, matrix = scores[..., :3], matrix[:3]
            crf = torchcrf.CRF(3, batch_first=True).double()
            crf.load_state_dict(
                {name: value[(slice(3),) * value.ndim] for name, value in self.aux_crf.state_dict().items()}
            )
        emissions = 0.5 * self.classifier(fused) + 0.5 * scores @ matrix
        loss = 0.5 * crf_loss(self.aux_crf if literal else crf, scores, gold, mask)
        return emissions, loss


@pytest.fixture(scope="module")
def released():
    torch.manual_seed(0)
    return ReleasedUMT().randomise()


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    return text_batch(generator) | {
        "image_features": generator.normal(size=(3, PATCHES, FEATURES)).astype(np.float32),
        "image_mask": np.array([True, True, False]),
        "tags": generator.integers(0, 13, (3, 5)),
    }


@pytest.fixture(scope="module")
def converted(released):
    return convert.method_from_release("umt", released.numpy(), task="ner", num_attention_heads=HEADS)


@pytest.fixture(scope="module")
def variables(converted):
    """Of the default form: the converted ones with three span tags."""
    params = dict(converted[1]["params"])
    for name in ("span_emission", "span_crf"):
        params[name] = jax.tree.map(lambda x: x[..., :3] if x.shape[0] != 7 else x[(slice(3),) * x.ndim], params[name])
    return {"params": params}


@functools.partial(jax.jit, static_argnums=0)
def apply(method, variables, batch):
    return method.apply(variables, batch, train=False)


def default(converted, **options):
    return EntityUMT(num_labels=13, text=converted[0].text, **options)


def test_released_arithmetic(released, converted, batch):
    whole = batch | {"tags": np.random.default_rng(1).integers(0, 13, (3, 7)), "image_mask": np.ones(3, bool)}
    emissions, loss = released(tensors(whole), literal=True)
    outputs = apply(*converted, whole)
    np.testing.assert_allclose(outputs.scores, emissions.detach(), atol=1e-5)
    np.testing.assert_allclose(outputs.losses["span"], loss.detach(), rtol=1e-5)
    hidden = whole | {"image_mask": np.zeros(3, bool), "image_features": np.zeros((3, PATCHES, FEATURES), np.float32)}
    emissions, _ = released(tensors(hidden), literal=True)
    np.testing.assert_allclose(apply(*converted, hidden).scores, emissions.detach(), atol=1e-5)


def test_default_arithmetic_by_words_and_masks(released, converted, variables, batch):
    emissions, loss = released(tensors(batch), literal=False)
    outputs = apply(default(converted), variables, batch)
    valid = batch["word_mask"]
    np.testing.assert_allclose(outputs.scores[valid], emissions.detach()[valid], atol=1e-5)
    np.testing.assert_allclose(outputs.losses["span"], loss.detach(), rtol=1e-5)


def test_what_is_masked_has_no_influence(converted, variables, batch):
    spoiled = {name: value.copy() for name, value in batch.items()}
    spoiled["image_features"][2] = np.nan
    spoiled["input_ids"][~batch["attention_mask"]] = 7
    expected, found = (apply(default(converted), variables, one) for one in (batch, spoiled))
    valid = batch["word_mask"]
    np.testing.assert_array_equal(expected.scores[valid], found.scores[valid])
    np.testing.assert_array_equal(expected.losses["span"], found.losses["span"])


def test_the_text_only_form_is_that_of_missing_pictures(converted, variables, batch):
    method = default(converted, use_pictures=False)
    assert [one.name for one in method.inputs] == ["pieces"] and method.left_out == "pictures"
    text = {name: value for name, value in batch.items() if not name.startswith("image")}
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), text, train=False))["params"]
    kept = {name: {part: variables["params"][name][part] for part in shapes[name]} for name in shapes}
    assert "gate" not in kept and "attention" not in kept["words_from_picture"]
    expected = apply(default(converted), variables, batch | {"image_mask": np.zeros(3, bool)}).scores
    np.testing.assert_allclose(apply(method, {"params": kept}, text).scores, expected, atol=1e-6)


def test_relations_read_the_fused_states_at_the_markers(released, converted, batch):
    method = RelationUMT(num_labels=3, text=converted[0].text)
    params = {
        name: value for name, value in converted[1]["params"].items() if not name.startswith(("span", "crf", "em"))
    }
    generator = np.random.default_rng(2)
    params["classifier"] = {"kernel": generator.normal(size=(4 * HIDDEN, 3)), "bias": generator.normal(size=3)}
    _, fused = released.fused(tensors(batch), literal=False)
    expected = at_markers(fused, tensors(batch)).detach().numpy() @ params["classifier"]["kernel"]
    logits = apply(method, {"params": params}, batch).scores
    np.testing.assert_allclose(logits, expected + params["classifier"]["bias"], atol=1e-4)


def test_gradients_reach_every_parameter(converted, variables, batch):
    def loss(outputs):
        return (outputs.scores**2).sum() + sum(value.sum() for value in outputs.losses.values())

    # The CRF of the tags is read by the head.
    left = {f"crf/{name}" for name in ("transitions", "start_transitions", "end_transitions")}
    # A key's bias shifts all logits of a query alike, which softmax does not see.
    found = without_gradient(default(converted), variables, batch, loss)
    assert {name for name in found if not name.endswith("key/bias")} == left


def test_names_that_are_missing_or_unknown_are_errors(released):
    state = released.numpy()
    state["gate.weights"] = state.pop("gate.weight")
    with pytest.raises(ValueError, match=r"(?s)missing: gate\.weight.*extra: gate\.weights"):
        convert.method_from_release("umt", state, task="ner", num_attention_heads=HEADS)
    with pytest.raises(ValueError, match="released for entities"):
        convert.method_from_release("umt", state, task="re")


def test_span_tags_and_the_conversion_between_them():
    assert span_of_tags(5, literal=False) == (0, 1, 2, 1, 2)
    np.testing.assert_allclose(conversion((0, 1, 2, 1, 2)), [[1, 0, 0, 0, 0], [0, 0.5, 0, 0.5, 0], [0, 0, 0.5, 0, 0.5]])
    for count, literal, message in ((4, False, "odd number"), (5, True, "13 tags")):
        with pytest.raises(ValueError, match=message):
            span_of_tags(count, literal=literal)
