"""Eq. 2, Eq. 4 and Eq. 7: literal sums against the formula, and what masks must guarantee."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tmrjax.attention import MultiHeadAttention, cross_modal_attention
from tmrjax.encoders.dropout import Dropout
from tmrjax.fusion import GrainFusion, TextFusion, weight_grains
from tmrjax.records.schema import NEUTRAL_SCORES

B, T, P, Q, R, D = 3, 6, 4, 5, 3, 8


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    return {
        "text": normal(B, T, D),
        "text_mask": jnp.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool),
        "phrases": normal(B, P, D),
        "phrase_mask": jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool),
        "patches": normal(B, Q, D),
        "image_mask": jnp.array([True, False, True]),
        "regions": normal(B, R, D),
        "region_mask": jnp.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]], bool),
        "scores": jnp.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.6, 0.3, 0.1]]),
    }


def fused(arrays, **options):
    module = GrainFusion(**options)
    variables = module.init(jax.random.key(1), **arrays)
    return module.apply(variables, **arrays), variables["params"]


def test_weights_use_strengthen_for_fine_and_complement_for_coarse():
    fine, coarse = jnp.ones((1, 2)), 10 * jnp.ones((1, 2))
    np.testing.assert_allclose(weight_grains(fine, coarse, jnp.array([[0.7, 0.2, 0.1]])), [[2.1, 2.1]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"scores \(1, 2\)"):
        weight_grains(fine, coarse, jnp.ones((1, 2)))


def test_literal_is_the_papers_sum(arrays):
    (result, _, grains), params = fused(arrays, literal=True)
    for name, text, visual, mask in (
        ("fine", "text", "patches", np.repeat(np.asarray(arrays["image_mask"])[:, None], Q, 1)),
        ("coarse", "phrases", "regions", np.asarray(arrays["region_mask"])),
    ):
        text_mask = arrays["text_mask" if name == "fine" else "phrase_mask"]
        attended = cross_modal_attention(arrays[visual], arrays[text], text_mask, params[f"{name}_weight"])
        expected = (np.asarray(attended) * mask[..., None]).sum(1)
        np.testing.assert_allclose(grains[name], expected, atol=1e-5)
    scores = np.asarray(arrays["scores"])
    expected = scores[:, 2:] * np.asarray(grains["fine"]) + scores[:, 1:2] * np.asarray(grains["coarse"])
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_scores_stay_float32_beside_bfloat16_states():
    ones = jnp.ones((1, 4), jnp.bfloat16)
    result = weight_grains(ones, ones, jnp.array([[0.0, 0.072, 0.928]]))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result.astype(jnp.float32), 1)  # scores rounded to bfloat16 add up to 0.9976
    generator = np.random.default_rng(0)
    fine, coarse = (jnp.asarray(generator.normal(size=(200, 8)), jnp.bfloat16) for _ in range(2))
    scores = generator.dirichlet(np.ones(3), 200).astype(np.float32)
    exact = scores[:, 2:] * np.asarray(fine, np.float64) + scores[:, 1:2] * np.asarray(coarse, np.float64)
    # One rounding to eight bits, at the end.
    np.testing.assert_allclose(weight_grains(fine, coarse, scores).astype(jnp.float32), exact, rtol=2**-8 + 1e-5)


def test_neutral_scores_are_eq_2(arrays):
    arrays["scores"] = jnp.broadcast_to(jnp.array(NEUTRAL_SCORES), (B, 3))
    (result, _, grains), _ = fused(arrays)
    np.testing.assert_allclose(result, grains["fine"] + grains["coarse"], rtol=1e-6)


@pytest.mark.parametrize("literal", [False, True])
def test_masked_pictures_and_regions_have_no_influence(arrays, literal):
    module = GrainFusion(literal=literal)
    variables = module.init(jax.random.key(1), **arrays)
    result, present, _ = module.apply(variables, **arrays)
    changed = dict(arrays)
    changed["patches"] = arrays["patches"].at[1].set(1e3)
    changed["regions"] = jnp.where(arrays["region_mask"][..., None], arrays["regions"], -1e3)
    np.testing.assert_array_equal(module.apply(variables, **changed)[0], result)
    np.testing.assert_array_equal(present, [True, True, True])
    changed["image_mask"], changed["region_mask"] = jnp.zeros(B, bool), jnp.zeros((B, R), bool)
    nothing, present, _ = module.apply(variables, **changed)
    assert not np.asarray(nothing).any() and not np.asarray(present).any()


def test_a_grain_is_unit_scale_before_the_scores_act(arrays):
    (result, _, grains), _ = fused(arrays)
    assert np.std(np.asarray(grains["fine"])[0]) == pytest.approx(1, abs=0.05)
    # Weakened to nothing, a picture contributes nothing: no norm behind the weights brings it back.
    arrays["scores"] = jnp.tile(jnp.array([1.0, 0.0, 0.0]), (B, 1))
    (weakened, _, _), _ = fused(arrays)
    assert not np.asarray(weakened).any() and np.asarray(result).any()


@pytest.mark.parametrize(("kept", "dropped"), [("fine", "coarse"), ("coarse", "fine")])
def test_one_grain_alone(arrays, kept, dropped):
    (result, present, grains), params = fused(arrays, grains=(kept,))
    weight = arrays["scores"][:, 2:] if kept == "fine" else arrays["scores"][:, 1:2]
    np.testing.assert_allclose(result, weight * grains[kept], rtol=1e-6)
    assert not np.asarray(grains[dropped]).any()
    there = arrays["image_mask"] if kept == "fine" else arrays["phrase_mask"].any(1)
    np.testing.assert_array_equal(present, there)
    assert {f"{kept}_weight", f"{dropped}_weight"} <= set(params)


def test_text_fusion_is_a_norm_of_the_sum_and_keeps_text_without_pictures(arrays):
    text, pictures = arrays["text"], jnp.stack([arrays["text"][:, 0], arrays["text"][:, 1]], 1)
    module = TextFusion(num_heads=2)
    mask = jnp.array([[True, True], [True, False], [False, False]])
    variables = module.init(jax.random.key(0), text, pictures, mask, train=False)
    result = module.apply(variables, text, pictures, mask, train=False)
    plain = np.asarray(text[2])
    normalised = (plain - plain.mean(-1, keepdims=True)) / np.sqrt(plain.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(result[2], normalised, atol=1e-5)
    spoiled = module.apply(variables, text, pictures.at[1, 1].set(1e3), mask, train=False)
    np.testing.assert_array_equal(spoiled, result)
    assert (
        np.abs(
            np.asarray(result[0]) - np.asarray(module.apply(variables, text, 2 * pictures, mask, train=False)[0])
        ).max()
        > 1e-3
    )


def test_dropout_of_eq_7_acts_on_what_pictures_add_and_on_nothing_else():
    generator = np.random.default_rng(0)
    text, pictures = (jnp.asarray(generator.normal(size=(3, n, 16)), jnp.float32) for n in (40, 2))
    mask = jnp.array([[True, True], [True, False], [False, False]])
    module = TextFusion(num_heads=2, dropout=0.25)
    variables = module.init(jax.random.key(0), text, pictures, mask, train=False)
    result, state = module.apply(
        variables, text, pictures, mask, train=True, rngs={"dropout": jax.random.key(1)},
        capture_intermediates=lambda submodule, _: isinstance(submodule, MultiHeadAttention | Dropout),
    )  # fmt: skip
    attended, dropped = (
        np.asarray(state["intermediates"][name]["__call__"][0])[:2] for name in ("attention", "Dropout_0")
    )
    kept = dropped != 0
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(dropped[kept], attended[kept] / 0.75, rtol=1e-5)
    added = np.asarray(text)[:2] + dropped
    expected = (added - added.mean(-1, keepdims=True)) / np.sqrt(added.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(result[:2], expected, atol=1e-4)
    # A post without pictures has nothing to drop: its text states pass whole.
    np.testing.assert_array_equal(result[2], module.apply(variables, text, pictures, mask, train=False)[2])
