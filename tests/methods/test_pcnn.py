"""PCNN: equations (1) to (4) in float64 in both forms, padding, gradients, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.test_recurrent import noisy
from tmrjax.heads.relation_head import RelationHead
from tmrjax.methods import find_method

LENGTHS = np.array([7, 3, 5, 4])
B, W, LONGEST, RELATIONS = 4, 7, 9, 6
HEAD, TAIL = np.array([1, 2, 4, 1]), np.array([4, 0, 1, 1])  # tail first, last word, both at one word
MASK = np.arange(W) < LENGTHS[:, None]
BATCH = {
    "input_ids": np.where(MASK, np.random.default_rng(0).integers(1, 20, (B, W)), 0).astype(np.int32),
    "attention_mask": MASK,
    "head_start": HEAD,
    "tail_start": TAIL,
    "relation": np.array([0, 3, 5, 1]),
}


def make_method(**options):
    sizes = {"num_labels": RELATIONS, "num_words": 20, "max_pieces": LONGEST, "word_size": 6, "position_size": 3}
    return find_method("pcnn", "re")(**(sizes | {"filters": 5} | options))


@pytest.fixture(scope="module")
def variables():
    return noisy(jax.jit(lambda key: make_method().init(key, BATCH, train=False))(jax.random.key(0)))


def apply(variables, batch, **options):
    return jax.jit(lambda v, b: make_method(**options).apply(v, b, train=False))(variables, batch)


def reference(params, *, literal):
    """One post and one word at a time, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    kernel, bias = params["convolution"]["kernel"], params["convolution"]["bias"]
    rows = []
    for ids, length, head, tail in zip(BATCH["input_ids"], LENGTHS, HEAD, TAIL, strict=True):
        words = params["word_embeddings"]["embedding"][ids]
        x = np.zeros((W + 2, 12))
        for i in range(W):
            if i < length:
                near = params["head_position"]["embedding"][i - head + LONGEST]
                far = params["tail_position"]["embedding"][i - tail + LONGEST]
                x[i + 1] = np.concatenate([words[i], near, far])
            elif literal:
                x[i + 1, :6] = words[i]
        z = np.stack([sum(x[i + k] @ kernel[k] for k in range(3)) + bias for i in range(W)])
        first, second = sorted((head, tail))
        segments = [range(first + 1), range(first + 1, second + 1), range(second + 1, length)]
        pieces = []
        for segment in segments:
            if literal:
                pieces.append(np.maximum(0, [z[i] - 100 * (i not in segment) for i in range(W)]).max(0))
            else:
                pieces.append(np.tanh(z[list(segment)].max(0)) if len(segment) else np.zeros(5))
        rows.append(np.concatenate(pieces))
    g = np.stack(rows)
    return g, g @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.parametrize("literal", [False, True])
def test_logits_equal_the_equations_in_float64(variables, literal):
    outputs = apply(variables, BATCH, literal=literal)
    representation, logits = reference(variables["params"], literal=literal)
    np.testing.assert_allclose(outputs.states["representation"], representation, atol=2e-6)
    np.testing.assert_allclose(outputs.scores, logits, atol=5e-6)
    assert outputs.crf is None


def test_padding_has_no_influence_by_default_and_has_in_the_released_form(variables):
    other = BATCH | {"input_ids": np.where(MASK, BATCH["input_ids"], 7)}
    np.testing.assert_array_equal(apply(variables, BATCH).scores, apply(variables, other).scores)
    shorter = {name: array[1:2, :3] if array.ndim == 2 else array[1:2] for name, array in BATCH.items()}
    np.testing.assert_allclose(apply(variables, shorter).scores, apply(variables, BATCH).scores[1:2], atol=1e-6)
    changed = apply(variables, other, literal=True).scores - apply(variables, BATCH, literal=True).scores
    assert not np.asarray(changed[0]).any() and np.abs(changed[1:]).max() > 1e-3


@pytest.mark.parametrize("literal", [False, True])
def test_gradients_reach_every_parameter(variables, literal):
    method = make_method(literal=literal)

    @jax.jit
    def gradient(variables):
        def loss(variables):
            outputs = method.apply(variables, BATCH, train=True, rngs={"dropout": jax.random.key(0)})
            return RelationHead(tuple("abcdef")).loss(outputs, BATCH).sum()

        return jax.grad(loss)(variables)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_sizes_are_the_papers_and_the_table_can_stay_as_it_is():
    method = make_method(max_pieces=128, word_size=50, position_size=5, filters=230, freeze_words=True)
    shapes = jax.eval_shape(lambda key: method.init(key, BATCH, train=False), jax.random.key(0))["params"]
    assert shapes["head_position"]["embedding"].shape == (256, 5)
    assert shapes["convolution"]["kernel"].shape == (3, 60, 230)
    assert shapes["classifier"]["kernel"].shape == (690, RELATIONS)
    assert method.frozen == ("word_embeddings/.*",) and make_method().frozen == ()
    assert make_method(literal=True).left_out == "nothing, released arithmetic"
    assert [one.pair for one in method.inputs] == [True] and jnp.float32 == method.dtype
