"""Eq. 1 and the attention of Eq. 7 against literal loops in float64 and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tmrjax.attention import MultiHeadAttention, cross_modal_attention, masked_softmax


def literal_eq_1(visual, text, mask, weight):
    """A T with A = softmax((V W) Tᵀ / √D) over valid text, element by element."""
    result = np.zeros(visual.shape)
    for b in range(len(visual)):
        valid = np.flatnonzero(mask[b])
        for q in range(visual.shape[1]):
            if not len(valid):
                continue
            logits = np.array([visual[b, q] @ weight @ text[b, s] for s in valid]) / np.sqrt(visual.shape[2])
            weights = np.exp(logits - logits.max())
            result[b, q] = (weights / weights.sum()) @ text[b, valid]
    return result


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    visual, text = generator.normal(size=(4, 5, 8)), generator.normal(size=(4, 6, 8))
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    return visual, text, mask, generator.normal(size=(8, 8))


def test_cross_modal_attention_equals_the_literal_formula(arrays):
    expected = literal_eq_1(*arrays)
    result = cross_modal_attention(*(jnp.asarray(x, x.dtype if x.dtype == bool else jnp.float32) for x in arrays))
    np.testing.assert_allclose(result, expected, atol=2e-5)
    assert not np.asarray(result[3]).any()  # no text: zeros, not a mean over padding


def test_masked_text_has_no_influence_even_as_nan(arrays):
    visual, text, mask, weight = (jnp.asarray(x) for x in arrays)
    spoiled = jnp.where(mask[..., None], text, jnp.nan)
    np.testing.assert_array_equal(
        cross_modal_attention(visual, spoiled, mask, weight), cross_modal_attention(visual, text, mask, weight)
    )
    gradient = jax.grad(lambda w: cross_modal_attention(visual, spoiled, mask, w).sum())(weight)
    assert np.isfinite(gradient).all()


def test_shapes_that_do_not_fit_are_named(arrays):
    visual, text, mask, weight = (jnp.asarray(x) for x in arrays)
    with pytest.raises(ValueError, match=r"\(4, 5, 8\).*\(4, 6, 8\).*\(4, 5\)"):
        cross_modal_attention(visual, text, mask[:, :5], weight)
    with pytest.raises(ValueError, match=r"\(8, 7\).*\(8, 8\)"):
        cross_modal_attention(visual, text, mask, weight[:, :7])


def test_softmax_is_float32_and_zero_without_a_valid_entry():
    logits = jnp.array([[1e4, -1e4, 0.0], [3.0, 2.0, 1.0]], jnp.bfloat16)
    result = masked_softmax(logits, jnp.array([[True, True, True], [False, False, False]]))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, [[1, 0, 0], [0, 0, 0]])


def test_multi_head_attention_equals_torch():
    generator = np.random.default_rng(1)
    queries, keys = (generator.normal(size=shape).astype(np.float32) for shape in ((2, 7, 12), (2, 3, 12)))
    mask = np.array([[True, True, False], [True, True, True]])
    ours = MultiHeadAttention(num_heads=3)
    params = ours.init(jax.random.key(0), queries, keys, mask)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), jnp.float32), params)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)

    def matrix(name):
        return np.asarray(params[name]["kernel"]).reshape(12, 12).T

    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate([matrix(n) for n in ("query", "key", "value")])))
        biases = [np.asarray(params[n]["bias"]).reshape(-1) for n in ("query", "key", "value")]
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate(biases)))
        theirs.out_proj.weight.copy_(torch.tensor(matrix("output").copy()))
        theirs.out_proj.bias.copy_(torch.tensor(np.asarray(params["output"]["bias"])))
        expected, _ = theirs(*map(torch.tensor, (queries, keys, keys)), key_padding_mask=torch.tensor(~mask))
    np.testing.assert_allclose(ours.apply({"params": params}, queries, keys, mask), expected, atol=2e-5)


def test_multi_head_attention_without_keys_is_zero_and_heads_must_divide():
    queries, keys, mask = jnp.ones((1, 2, 8)), jnp.ones((1, 3, 8)), jnp.zeros((1, 3), bool)
    module = MultiHeadAttention(num_heads=2)
    variables = jax.tree.map(jnp.ones_like, module.init(jax.random.key(0), queries, keys, mask))
    assert not np.asarray(module.apply(variables, queries, keys, mask)).any()
    with pytest.raises(ValueError, match="3 heads"):
        MultiHeadAttention(num_heads=3).init(jax.random.key(0), queries, keys, mask)


def products(function, *arguments):
    """Every matrix product of a function: (dtype of its factors, precision, dtype of its result)."""
    found = []
    for equation in jax.make_jaxpr(function)(*arguments).jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            precision = equation.params["precision"]
            found.append((equation.invars[0].aval.dtype.name, precision, equation.outvars[0].aval.dtype.name))
    return found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_asked_for_in_full_precision(arrays, dtype):
    """A GPU would otherwise compute float32 products as TF32: CPU tests of 1e-5 say nothing about it."""
    visual, text, mask, weight = (jnp.asarray(x, x.dtype if x.dtype == bool else dtype) for x in arrays)
    full = (jax.lax.Precision.HIGHEST,) * 2
    found = products(cross_modal_attention, visual, text, mask, weight)
    assert len(found) == 3 and all(precision == full for _, precision, _ in found)
    assert found[1][2] == "float32"  # the logits
    module = MultiHeadAttention(num_heads=2, dtype=dtype)
    variables = module.init(jax.random.key(0), text, visual, jnp.ones(visual.shape[:2], bool))
    inner = products(lambda *a: module.apply(variables, *a), text, visual, jnp.ones(visual.shape[:2], bool))
    named = [(factors, result) for factors, precision, result in inner if precision == full]
    # Of the four layers and two products those two, logits first.
    assert len(inner) == 6 and named == [(jnp.dtype(dtype).name, "float32"), (jnp.dtype(dtype).name,) * 2]
