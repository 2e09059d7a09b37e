"""Eq. 1 and the attention of Eq. 7 against literal loops in float64 and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tmrjax import attention
from tmrjax.attention import (
    MultiHeadAttention,
    attend,
    cross_modal_attention,
    cross_modal_attention_with_weights,
    flash_allowed,
    masked_softmax,
)


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
    again, weights = cross_modal_attention_with_weights(*(jnp.asarray(x) for x in arrays))
    np.testing.assert_array_equal(again, result)
    np.testing.assert_allclose(weights @ arrays[1], expected, atol=2e-5)
    np.testing.assert_allclose(weights.sum(-1), arrays[2].any(-1, keepdims=True) * np.ones((4, 5)), atol=1e-6)
    assert not np.asarray(weights)[np.broadcast_to(~arrays[2][:, None], weights.shape)].any()


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


def literal_attention(queries, keys, values, mask, bias, scale, empty):
    """softmax(scale q k + bias) v over valid keys, one query of one head at a time, in float64."""
    result = np.zeros((*queries.shape[:3], values.shape[-1]))
    for b, q, h in np.ndindex(queries.shape[:3]):
        valid = np.flatnonzero(mask[b])
        if not len(valid):
            result[b, q, h] = values[b, :, h].mean(0) if empty == "mean" else 0
            continue
        logits = np.array([scale * (queries[b, q, h] @ keys[b, s, h]) + bias[b, h, q, s] for s in valid])
        weights = np.exp(logits - logits.max())
        result[b, q, h] = (weights / weights.sum()) @ values[b, valid, h]
    return result


@pytest.fixture
def headed():
    """Queries [3,4,2,6], keys and values [3,5,2,6], a mask with holes, a bias."""
    generator = np.random.default_rng(2)
    queries, keys, values = (generator.normal(size=(3, length, 2, 6)) for length in (4, 5, 5))
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    return queries, keys, values, mask, generator.normal(size=(3, 2, 4, 5))


def single(*arrays):
    return (jnp.asarray(x, x.dtype if x.dtype == bool else jnp.float32) for x in arrays)


@pytest.mark.parametrize("empty", ["zeros", "mean"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attend_equals_the_literal_formula(headed, empty, scale):
    queries, keys, values, mask, bias = headed
    expected = literal_attention(queries, keys, values, mask, bias, scale or 6**-0.5, empty)
    *states, valid, added = single(*headed)
    options = {"scale": scale, "zero_without_keys": empty == "zeros"}
    np.testing.assert_allclose(attend(*states, valid, bias=added, **options), expected, atol=1e-5)
    # One head has no axis of its own.
    one = attend(*(x[:, :, 0] for x in states), valid, bias=added[:, 0], **options)
    np.testing.assert_allclose(one, expected[:, :, 0], atol=1e-5)


@pytest.mark.parametrize("zero_without_keys", [True, False])
def test_attend_lets_nothing_through_a_mask_not_even_nan(headed, zero_without_keys):
    queries, keys, values, mask, bias = single(*headed)
    hidden = ~mask[..., None, None] & mask.any(-1)[:, None, None, None]
    spoiled = [jnp.where(hidden, jnp.nan, x) for x in (keys, values)]

    def run(queries, keys, values):
        result = attend(queries, keys, values, mask, bias=bias, zero_without_keys=zero_without_keys)
        return jnp.sin(result).sum(), result

    (_, expected), (_, found) = run(queries, keys, values), run(queries, *spoiled)
    np.testing.assert_array_equal(found, expected)
    for gradient in jax.grad(run, (0, 1, 2), has_aux=True)(queries, *spoiled)[0]:
        assert np.isfinite(gradient).all()


def test_attend_gives_its_weights_to_dropout(headed):
    queries, keys, values, mask, _ = single(*headed)
    seen = []

    def dropout(weights):
        seen.append(weights)
        return weights.at[..., 1].set(0)

    found = attend(queries, keys, values, mask, dropout=dropout)
    np.testing.assert_allclose(seen[0].sum(-1)[:2], 1, atol=1e-6)
    np.testing.assert_allclose(found, jnp.einsum("bhqk,bkhd->bqhd", seen[0].at[..., 1].set(0), values), atol=1e-6)


def test_attend_names_shapes_that_do_not_fit(headed):
    queries, keys, values, mask, _ = single(*headed)
    with pytest.raises(ValueError, match=r"queries \(3, 4, 2, 5\), keys \(3, 5, 2, 6\)"):
        attend(queries[..., :5], keys, values, mask)
    with pytest.raises(ValueError, match=r"values \(3, 4, 2, 6\)"):
        attend(queries, keys, values[:, :4], mask)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 4\), but keys \(3, 5, 2, 6\) need \(3, 5\)"):
        attend(queries, keys, values, mask[:, :4])


def states_of(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"queries": states_of(2, 7, 4, 64), "keys": states_of(2, 9, 4, 64), "values": states_of(2, 9, 4, 64)}, True),
        ({name: states_of(2, 8, 4, 64, dtype=jnp.float16) for name in ("queries", "keys", "values")}, True),
        ({name: states_of(2, 8, 4, 128) for name in ("queries", "keys", "values")}, True),
        ({name: states_of(2, 8, 4, 136) for name in ("queries", "keys", "values")}, False),
        ({name: states_of(2, 8, 4, 60) for name in ("queries", "keys", "values")}, False),
        ({name: states_of(2, 8, 4, 64, dtype=jnp.float32) for name in ("queries", "keys", "values")}, False),
        ({name: states_of(2, 8, 64) for name in ("queries", "keys", "values")}, False),
        ({"values": states_of(2, 8, 4, 32)}, False),
        ({"queries": states_of(2, 8, 4, 64, dtype=jnp.float32)}, False),
        ({"bias": states_of(2, 4, 8, 8)}, False),
        ({"dropout": lambda weights: weights}, False),
        ({"precision": jax.lax.Precision.HIGHEST}, False),
    ],
)
def test_where_flash_attention_may_take_the_place(changes, allowed):
    arguments = {name: states_of(2, 8, 4, 64) for name in ("queries", "keys", "values")} | changes
    assert flash_allowed(**arguments) == allowed


def flash_of_xla(monkeypatch, platform):
    """attend() as with a GPU: cuDNN's kernel is JAX's own of the same contract, for programs of ``platform``."""

    def kernel(queries, keys, values, mask, *, scale):
        if mask is not None:  # what cuDNN's takes
            assert mask.shape == (len(queries), 1, queries.shape[1], keys.shape[1])
            assert queries.shape[1] % 2 == keys.shape[1] % 2 == 0
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask, scale=scale, implementation="xla")

    monkeypatch.setattr(attention, "_kernel", kernel)
    monkeypatch.setattr(attention, "FLASH_PLATFORM", platform)
    monkeypatch.setattr(attention, "flash_present", lambda: True)


@pytest.mark.parametrize("zero_without_keys", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_fused_kernel_is_given_what_attend_means(monkeypatch, masked, zero_without_keys):
    """Odd lengths, holes, a row without keys, NaN behind the mask; values and gradients beside XLA's own path."""
    generator = np.random.default_rng(4)
    queries, keys, values = (jnp.asarray(generator.normal(size=(3, n, 2, 8)), jnp.bfloat16) for n in (5, 7, 7))
    mask = jnp.array([[1] * 7, [0, 1, 0, 1, 0, 0, 1], [0] * 7], bool) if masked else None
    if masked:
        hidden = ~mask[..., None, None] & mask.any(-1)[:, None, None, None]
        keys, values = (jnp.where(hidden, jnp.nan, x) for x in (keys, values))

    def run(queries, keys, values):
        found = attend(queries, keys, values, mask, scale=0.7, zero_without_keys=zero_without_keys)
        return jnp.sin(found.astype(jnp.float32)).sum(), found

    gradient = jax.value_and_grad(run, (0, 1, 2), has_aux=True)
    expected = gradient(queries, keys, values)
    flash_of_xla(monkeypatch, "cpu")
    found = jax.jit(gradient)(queries, keys, values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(*(np.float32(x) for x in (a, b)), atol=2e-2), found, expected)
    if masked:
        assert bool((found[0][1][2] == 0).all()) == zero_without_keys


def test_the_fused_kernel_is_in_a_gpus_program_alone(monkeypatch):
    flash_of_xla(monkeypatch, "cuda")
    monkeypatch.setattr(attention, "_kernel", lambda q, k, v, mask, *, scale: jnp.cbrt(q) + k + v)
    for dropout, dtype in ((None, jnp.bfloat16), (lambda w: w, jnp.bfloat16), (None, jnp.float32)):
        states = states_of(2, 8, 4, 64, dtype=dtype)
        function = jax.grad(lambda q, k, v, d=dropout: attend(q, k, v, dropout=d).astype(jnp.float32).sum(), (0, 1, 2))
        traced = jax.jit(function).trace(states, states, states)
        gpu, cpu = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "cpu"))
        fused = dropout is None and dtype == jnp.bfloat16
        assert ("cbrt" in gpu) == fused
        assert ("stablehlo.dot_general" in gpu) != fused and "stablehlo.dot_general" in cpu and "cbrt" not in cpu


def test_without_a_gpu_there_is_no_fused_kernel():
    assert not attention.flash_present()


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
