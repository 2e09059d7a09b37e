"""The textbook recursions of tmrjax.crf, in float64: against every path enumerated, and against the fast path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.crf_oracle import (
    KINDS,
    SHAPE,
    Enumeration,
    dense,
    far_apart,
    forbidden_softly,
    path_scores,
    random_batch,
    random_params,
    recursions_in_float64,
)
from tmrjax import crf


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def everything(log_normalizer, sequence_score, log_likelihood, marginals, viterbi_decode, constrained, inputs):
    """Every function's answer, and the gradients of a sum that gives each sentence its own weight."""
    emissions, tags, mask, params, allowed = inputs

    def total(emissions, params):
        values = {
            "log_normalizer": log_normalizer(emissions, mask, params),
            "sequence_score": sequence_score(emissions, tags, mask, params),
            "log_likelihood": log_likelihood(emissions, tags, mask, params),
            "constrained": constrained(emissions, mask, allowed, params),
        }
        weights = jnp.arange(1.0, 1 + len(values) * len(mask)).reshape(len(values), len(mask))
        return sum((weight * value).sum() for weight, value in zip(weights, values.values(), strict=True)), values

    gradients, values = jax.grad(total, (0, 1), has_aux=True)(emissions, params)
    decoded, best = viterbi_decode(emissions, mask, params)
    others = {"marginals": marginals(emissions, mask, params), "decoded": decoded, "best": best}
    return values | others, gradients


FUNCTIONS = (
    crf.log_normalizer,
    crf.sequence_score,
    crf.log_likelihood,
    crf.marginals,
    crf.viterbi_decode,
    crf.constrained_log_normalizer,
)
fast = jax.jit(partial(everything, *FUNCTIONS))
reference = jax.jit(partial(everything, *(function.reference for function in FUNCTIONS)))


def problem(seed, kind=dense, size=SHAPE):
    """Emissions, tags, mask, parameters and allowed tags; float64."""
    emissions, tags, mask, params = random_batch(seed, *size)
    params, emissions = kind(params, emissions) if size[2] > 1 else (params, emissions)
    allowed = np.random.default_rng(seed).random(emissions.shape) < 0.7
    allowed[3, 0] = False  # not a single path
    tags = np.where(mask, tags, -100)
    emissions, params = jax.tree.map(np.float64, (emissions, params))
    return emissions, tags, mask, params, allowed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [SHAPE, (8, 1, 1)])
def test_brute_force(kind, size):
    emissions, tags, mask, params, allowed = inputs = problem(3, kind, size)
    found, gradients = reference(inputs)
    assert found["log_normalizer"].dtype == np.float64
    assert found["decoded"].dtype == np.int32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for b in range(len(mask)):
        every = Enumeration(emissions[b], mask[b], params)
        gold = 0.0 if every.empty else path_scores(emissions[b][mask[b]], params, tags[b][mask[b]][None])[0]
        expected = {
            "log_normalizer": every.log_normalizer,
            "sequence_score": gold,
            "log_likelihood": gold - every.log_normalizer if gold > -np.inf else -np.inf,
            "constrained": Enumeration(emissions[b], mask[b], params, allowed[b]).log_normalizer,
            "marginals": every.marginals,
            "best": every.scores.max(),
        }
        if every.log_normalizer > -np.inf:
            expected["decoded"] = every.best
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][b], value, rtol=1e-11, atol=1e-11, err_msg=name)


def farther_apart(params, emissions):
    """Thousands of nats: in float64 too, the fast path has to leave its matrix products."""
    params, emissions = far_apart(params, emissions)
    return params, emissions * 10


@pytest.mark.parametrize("kind", [*KINDS, farther_apart])
def test_the_fast_path_gives_the_same_values_and_gradients(kind):
    for seed in range(3):
        inputs = problem(seed, kind)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), fast(inputs), reference(inputs))


def test_ties_go_to_the_lowest_tag_from_the_last_position_on():
    for seed in range(3):
        generator = np.random.default_rng(seed)
        _, tags, mask, params, allowed = problem(seed)
        emissions = generator.integers(0, 2, SHAPE).astype(np.float64)
        params = jax.tree.map(lambda p, g=generator: g.integers(0, 2, p.shape).astype(np.float64), params)
        found, _ = reference((emissions, tags, mask, params, allowed))
        for b in range(len(mask)):
            np.testing.assert_array_equal(found["decoded"][b], Enumeration(emissions[b], mask[b], params).best)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e300])
def test_what_padding_holds_has_no_influence(garbage):
    emissions, tags, mask, params, allowed = problem(10, forbidden_softly)
    dirty = np.where(mask[..., None], emissions, garbage)
    dirty_tags = np.where(mask, tags, np.random.default_rng(0).integers(-100, 100, tags.shape))
    clean = reference((emissions, tags, mask, params, allowed))
    soiled = reference((dirty, dirty_tags, mask, params, allowed))
    jax.tree.map(np.testing.assert_array_equal, clean, soiled)
    values, (by_emissions, _) = soiled
    for padded in (by_emissions, values["marginals"], values["decoded"]):
        assert not np.asarray(padded)[~mask].any()
    assert not any(np.any(values[name][1]) for name in values)  # the empty sentence


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_faults_are_loud_and_stay_in_their_row(fault):
    emissions, tags, mask, params, allowed = problem(13)
    mask[3, 0] = True
    emissions[0, 2, 1], tags[0, 2] = fault, 1
    for tag in (4, -1):
        tags[3, 0] = tag
        values, _ = reference((emissions, tags, mask, params, allowed))
        for name, rows in {"log_normalizer": [0], "marginals": [0], "log_likelihood": [0, 3]}.items():
            found = np.isnan(values[name]).reshape(len(mask), -1).any(1)
            np.testing.assert_array_equal(np.flatnonzero(found), rows, err_msg=name)


def test_ten_thousand_positions():
    generator = np.random.default_rng(0)
    emissions = generator.normal(size=(2, 10_000, 4))
    emissions[1] = generator.uniform(-1e4, 1e4, emissions.shape[1:])
    params = jax.tree.map(np.float64, random_params(generator, 4))
    mask = np.ones(emissions.shape[:2], bool)
    tags = np.argmax(emissions, axis=2)
    tags[:, ::100] = 0
    allowed = np.ones(emissions.shape, bool)
    values, (by_emissions, _) = reference((emissions, tags, mask, params, allowed))
    normalizer, likelihood, probability, best = recursions_in_float64(emissions, tags, params)
    np.testing.assert_allclose(values["log_normalizer"], normalizer, rtol=1e-12)
    np.testing.assert_allclose(values["log_likelihood"], likelihood, rtol=1e-9)
    np.testing.assert_allclose(values["best"], best, rtol=1e-12)
    np.testing.assert_allclose(values["marginals"], probability, atol=1e-7)
    # The weights are those of `everything`: log Z, score, log p and the constrained log Z, which here is log Z.
    gold = tags[..., None] == np.arange(4)
    weight = np.arange(1.0, 9.0).reshape(4, 2)[:, :, None, None]
    expected = weight[0] * probability + weight[1] * gold + weight[2] * (gold - probability) + weight[3] * probability
    np.testing.assert_allclose(by_emissions, expected, atol=1e-6)


def test_wrong_arguments_raise_as_in_the_fast_path():
    emissions, tags, mask, params, _ = problem(18, size=(8, 5, 4))
    with pytest.raises(ValueError, match=r"mask has shape \(8, 4\), expected \(8, 5\) .*\(8, 5, 4\)"):
        crf.log_normalizer.reference(emissions, mask[:, 1:], params)
    with pytest.raises(ValueError, match=r"allowed has shape \(8, 5\), expected .*\(8, 5, 4\)"):
        crf.constrained_log_normalizer.reference(emissions, mask, mask, params)
    with pytest.raises(ValueError, match="tags must be integers, got float64"):
        crf.log_likelihood.reference(emissions, tags.astype(np.float64), mask, params)
    with pytest.raises(TypeError, match="mask"):
        crf.marginals.reference(emissions, params=params)
