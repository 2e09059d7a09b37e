"""AdapCoAtt with both readers: equations (1) to (7) in float64, the blind attention, masks, gradients."""

import jax
import numpy as np
import pytest
import torch

from tests.methods.test_recurrent import noisy, reference_convolution, torch_lstm
from tests.test_models import BERT
from tmrjax import crf
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.methods import find_method
from tmrjax.methods.base import method_from_dict, method_to_dict

B, T, W, C, PATCHES, FEATURES, TAGS, D = 3, 6, 4, 5, 4, 12, 5, 16
LENGTHS = np.array([6, 3, 4])


def make_batch(reader):
    generator = np.random.default_rng(0)
    length = T if reader == "bert" else W
    lengths = LENGTHS - (0 if reader == "bert" else 2)
    mask, words = np.arange(length) < lengths[:, None], np.arange(W) < LENGTHS[:, None] - 2
    spelled = np.where(words, generator.integers(1, C + 1, (B, W)), 0)[..., None]
    return {
        "input_ids": np.where(mask, generator.integers(1, 20, (B, length)), 0).astype(np.int32),
        "attention_mask": mask,
        "word_starts": (np.arange(W) + (reader == "bert")) * words,
        "word_mask": words,
        "character_ids": np.where(np.arange(C) < spelled, generator.integers(1, 14, (B, W, C)), 0).astype(np.int32),
        "image_features": generator.normal(size=(B, PATCHES, FEATURES)).astype(np.float32),
        "image_mask": np.array([True, True, False]),
        "tags": np.where(words, generator.integers(0, TAGS, (B, W)), 0),
    }


def make_method(reader, **options):
    sizes = {"num_labels": TAGS, "num_words": 20, "num_characters": 14, "word_size": 7, "character_size": 5}
    sizes |= {"text": BERT if reader == "bert" else None, "reader": reader, "hidden_size": D, "attention_size": 6}
    return find_method("adapcoatt", "ner")(**(sizes | options))


@pytest.fixture(scope="module", params=["bert", "bilstm"])
def form(request):
    method, batch = make_method(request.param), make_batch(request.param)
    variables = noisy(jax.jit(lambda key: method.init(key, batch, train=False))(jax.random.key(0)))
    return method, variables, batch


@pytest.fixture(scope="module")
def outputs(form):
    method, variables, batch = form
    return {literal: apply(method.clone(literal=literal), variables, batch) for literal in (False, True)}


def apply(method, variables, batch):
    # What a form has no use for is no fault here: the released one has fewer parameters.
    return jax.jit(lambda v, b: method.apply(v, b, train=False))(variables, batch)


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def dense(x, layer):
    return x @ layer["kernel"] + layer.get("bias", 0)


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(params, batch, text, *, literal):
    """(2) to (7) one word at a time; in the released form with its halves of a concatenation, whatever F is."""
    rows = []
    for b in range(B):
        h, there = text[b], batch["image_mask"][b]
        patches = batch["image_features"][b].astype(np.float64) * there
        v = np.tanh(dense(patches, params["visual_projection"]))
        valid = np.ones(len(h), bool) if literal else batch["attention_mask"][b]
        F = np.random.default_rng(b).normal(size=len(h))  # what the released scores add for each word, or v̂ of it
        emissions = []
        for t in batch["word_starts"][b][batch["word_mask"][b]]:
            query = 0 if literal else dense(h[t], params["visual_query"])
            scores = np.tanh(dense(v, params["visual_key"]) + query) @ params["visual_score"][:, 0]
            seen = softmax(scores + literal * F[t]) @ v
            query = 0 if literal else dense(seen, params["text_query"])
            scores = np.tanh(dense(h[valid], params["text_key"]) + query) @ params["text_score"][:, 0]
            read = softmax(scores + literal * F[t]) @ h[valid]
            a, q = np.tanh(dense(seen, params["fuse_visual"])), np.tanh(dense(read, params["fuse_text"]))
            g = sigmoid(dense(np.concatenate([a, q]), params["fuse_gate"]))
            m = g * a + (1 - g) * q
            halves = [dense(h[t], params["filter_text"]), dense(m, params["filter_merged"])]
            u = sigmoid(dense(np.concatenate(halves), params["filter_gate"])) * np.tanh(dense(m, params["reserve"]))
            u = u * (there or literal)
            kernel = np.concatenate([params["emission"]["kernel"], params["picture_emission"]["kernel"]])
            emissions.append(np.concatenate([h[t], u]) @ kernel + params["emission"]["bias"])
        rows.append(np.stack(emissions))
    return rows


@pytest.mark.parametrize("literal", [False, True])
def test_emissions_equal_the_equations_in_float64(form, outputs, literal):
    _, variables, batch = form
    found = outputs[literal]
    text = np.asarray(found.states["text_states"], np.float64)
    for row, expected in enumerate(reference(double(variables["params"]), batch, text, literal=literal)):
        np.testing.assert_allclose(found.scores[row, : len(expected)], expected, atol=1e-5)


def test_the_released_attention_is_blind_and_ours_is_not(form, outputs):
    assert outputs[True].states["seen"].shape == outputs[True].states["read"].shape == (B, D)
    _, _, batch = form
    for name in ("seen", "read"):
        states = np.asarray(outputs[False].states[name][0])[batch["attention_mask"][0]]
        assert np.abs(states - states[:1]).max() > 1e-3


@pytest.mark.parametrize("form", ["bilstm"], indirect=True)
@pytest.mark.parametrize("literal", [False, True])
def test_words_and_characters_are_read_as_the_equations_say(form, outputs, literal):
    _, variables, batch = form
    params = double(variables["params"])
    table, characters = params["word_embeddings"]["embedding"], params["characters_cnn"]
    lstm = torch_lstm(params["lstm"], 7 + 50, D // 2)
    for b in range(B):
        length = W if literal else batch["attention_mask"][b].sum()
        rows = []
        for ids, word in zip(batch["character_ids"][b, :length], batch["input_ids"][b, :length], strict=True):
            read = np.zeros((32, 3))
            for place, window in enumerate((2, 3, 4)):
                outs = reference_convolution(characters, ids if literal else ids[ids > 0], window)
                read[:, place] = (outs[:, : C - window + 1] if literal else outs).max(1).values
            inner = np.maximum(0, dense(read.reshape(-1), params["characters_1"]))
            rows.append(np.concatenate([table[word], dense(inner, params["characters_2"])]))
        expected = lstm(torch.tensor(np.stack(rows))[None])[0][0].detach()
        np.testing.assert_allclose(outputs[literal].states["text_states"][b, :length], expected, atol=5e-6)


def test_masked_content_has_no_influence_and_without_a_picture_the_text_is_left(form, outputs):
    method, variables, batch = form
    mask = batch["attention_mask"]
    other = batch | {
        "input_ids": np.where(mask, batch["input_ids"], 3),
        "image_features": np.where(batch["image_mask"][:, None, None], batch["image_features"], np.nan),
    }
    found, words = outputs[False].scores, batch["word_mask"]
    np.testing.assert_array_equal(apply(method, variables, other).scores[words], found[words])
    without = apply(method, variables, batch | {"image_mask": np.zeros(B, bool)}).scores
    text_only = method.clone(use_pictures=False)
    fresh = jax.eval_shape(lambda key: text_only.init(key, batch, train=False), jax.random.key(0))["params"]
    own = {"params": {name: variables["params"][name] for name in fresh}}
    np.testing.assert_allclose(apply(text_only, own, batch).scores, without, atol=1e-6)
    assert text_only.pictures is None and text_only.left_out == "pictures"
    assert np.abs(without - found)[:2].max() > 1e-2 and not np.asarray(without - found)[2].any()


def test_gradients_reach_every_parameter(form):
    method, variables, batch = form
    literal = method.reader == "bilstm"  # a program each: the default with BERT, the released form without
    method = method.clone(literal=literal)
    fresh = jax.eval_shape(lambda key: method.init(key, batch, train=False), jax.random.key(0))["params"]
    own = {name: variables["params"][name] for name in fresh}
    assert len(fresh) == len(variables["params"]) - 2 * literal

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs = method.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)})
            return -crf.log_likelihood(outputs.scores, batch["tags"], batch["word_mask"], outputs.crf).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(own)):
        name = jax.tree_util.keystr(path)
        without = "key" in name and "bias" in name  # a softmax does not see a bias of keys
        assert np.isfinite(leaf).all() and (without or np.abs(leaf).max() > 1e-7), name


def test_options_and_what_is_frozen():
    method = make_method("bilstm", freeze_words=True, freeze_pictures=True)
    assert method.frozen == ("picture_encoder/.*", "word_embeddings/.*")
    assert [one.name for one in method.inputs] == ["words", "characters", "pictures"]
    assert [one.name for one in make_method("bert").inputs] == ["pieces", "pictures"]
    picture = ResNetConfig(embedding_size=4, hidden_sizes=(8, 12), depths=(1, 1), layer_type="basic")
    method = make_method("bert", picture=picture)
    assert method_from_dict(type(method), method_to_dict(method)) == method
    with pytest.raises(ValueError, match="reader is 'gru'; expected one of bert, bilstm"):
        make_method("gru")
