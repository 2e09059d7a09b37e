"""The CRF of a GPU, run on CPU: against every path enumerated and the CPU's recursions; what a GPU's program holds."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.crf_oracle import KINDS, Enumeration, far_apart, random_batch, random_params, recursions_in_float64
from tests.test_crf_reference import FUNCTIONS, everything, farther_apart, problem, reference
from tmrjax import crf, crf_fast

on_cpu = jax.jit(partial(everything, *FUNCTIONS))


@pytest.fixture(scope="module")
def elsewhere():
    """`everything` as a GPU's program has it. The function is its own, so that jit does not take the CPU's trace."""

    def on_gpu(inputs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crf_fast, "by_platform", lambda _, elsewhere, *arguments: elsewhere(*arguments))
            return everything(*FUNCTIONS, inputs)

    return jax.jit(on_gpu)


@pytest.mark.parametrize("kind", [*KINDS, farther_apart])
def test_float64_equals_the_textbook_and_every_path(elsewhere, kind):
    with jax.enable_x64(True):
        for seed in range(3):
            inputs = problem(seed, kind)
            found, gradients = elsewhere(inputs)
            expected = reference(inputs)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), (found, gradients), expected)
        emissions, _, mask, params, _ = inputs
        for b in range(len(mask)):
            every = Enumeration(emissions[b], mask[b], params)
            np.testing.assert_allclose(found["log_normalizer"][b], every.log_normalizer, rtol=1e-11, atol=1e-11)
            np.testing.assert_allclose(found["marginals"][b], every.marginals, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_equals_the_recursions_of_the_cpu(elsewhere, kind):
    emissions, tags, mask, params, allowed = problem(5, kind)
    emissions, params = jax.tree.map(np.float32, (emissions, params))
    found, expected = (run((emissions, tags, mask, params, allowed)) for run in (elsewhere, on_cpu))
    assert found[0]["log_likelihood"].dtype == jnp.float32
    np.testing.assert_array_equal(found[0]["decoded"], expected[0]["decoded"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-5), found, expected)


@pytest.mark.slow
def test_two_thousand_positions_at_one_and_at_ten_thousand_nats(elsewhere):
    """Float32 beside recursions in float64: rounding does not grow with the number of positions."""
    generator = np.random.default_rng(0)
    emissions = generator.normal(size=(3, 2_000, 4)).astype(np.float32)
    emissions[1] += 1e4
    emissions[2] = generator.uniform(-1e4, 1e4, emissions.shape[1:])
    params = random_params(generator, 4)
    mask, allowed = np.ones(emissions.shape[:2], bool), np.ones(emissions.shape, bool)
    tags = np.argmax(emissions, axis=2)
    tags[:2, ::100] = 0
    found, gradients = elsewhere((emissions, tags, mask, params, allowed))
    normalizer, likelihood, probability, best = recursions_in_float64(emissions, tags, params)
    np.testing.assert_allclose(found["log_normalizer"], normalizer, rtol=2e-7)
    np.testing.assert_allclose(found["best"], best, rtol=2e-7)
    np.testing.assert_allclose(found["log_likelihood"][:2], likelihood[:2], rtol=1e-6)
    np.testing.assert_allclose(found["marginals"][:2], probability[:2], atol=2e-6)
    np.testing.assert_allclose(found["marginals"][2], probability[2], atol=2e-4)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(gradients))


def test_a_row_that_only_the_beginning_can_be_in_keeps_its_digits(elsewhere):
    """Two chains that never meet: the sentence begins in the one that lies 3,000 nats a position below the other."""
    emissions, tags, mask, params, allowed = problem(1)
    emissions, params = jax.tree.map(np.float32, (emissions, params))
    emissions[..., 2:] -= 3000
    params.transitions[:2, 2:] = params.transitions[2:, :2] = -np.inf
    params.start_transitions[:2] = -np.inf
    tags = np.where(mask, 2 + tags % 2, -100)
    found, _ = elsewhere((emissions, tags, mask, params, np.ones_like(allowed)))
    for b in range(len(mask)):
        every = Enumeration(emissions[b], mask[b], params)
        # Near 3,000 neighbouring floats lie 2e-4 apart.
        np.testing.assert_allclose(found["marginals"][b], every.marginals, atol=1e-3)
        np.testing.assert_allclose(found["log_normalizer"][b], every.log_normalizer, rtol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_padding_holds_has_no_influence(elsewhere, garbage):
    for kind in KINDS:
        emissions, tags, mask, params, allowed = problem(10, kind)
        emissions, params = jax.tree.map(np.float32, (emissions, params))
        dirty = np.where(mask[..., None], emissions, np.float32(garbage))
        clean, soiled = (elsewhere((given, tags, mask, params, allowed)) for given in (emissions, dirty))
        jax.tree.map(np.testing.assert_array_equal, clean, soiled)
        assert not np.asarray(soiled[1][0])[~mask].any()


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_faults_are_loud_and_stay_in_their_row(elsewhere, fault):
    emissions, tags, mask, params, allowed = problem(13)
    emissions, params = jax.tree.map(np.float32, (emissions, params))
    mask[3, 0] = True
    emissions[0, 2, 1], tags[0, 2], tags[3, 0] = fault, 1, -1
    values, _ = elsewhere((emissions, tags, mask, params, allowed))
    for name, rows in {"log_normalizer": [0], "marginals": [0], "log_likelihood": [0, 3]}.items():
        found = np.isnan(values[name]).reshape(len(mask), -1).any(1)
        np.testing.assert_array_equal(np.flatnonzero(found), rows, err_msg=name)


def branches_on_data(program: str) -> int:
    """Branches of a program but for those of the platform, whose index is a constant that XLA folds."""
    known = set(re.findall(r"(%\S+) = stablehlo\.constant", program))
    count = program.count("stablehlo.if")
    for name, index in re.findall(r'(%\w+)(?::\d+)? = "stablehlo\.case"\((%\w+)\)', program):
        if index in known:
            known.add(name)
        else:
            count += 1
    return count


def test_a_gpus_program_has_no_branch_on_data_and_trains_without_a_loop():
    emissions, tags, mask, params = random_batch(0)

    def step(emissions, params, tags, mask):
        return jax.value_and_grad(lambda e, p: crf.log_likelihood(e, tags, mask, p).mean(), (0, 1))(emissions, params)

    def decode(emissions, params, tags, mask):
        return crf.viterbi_decode(emissions, mask, params)

    def program(function, platform):
        traced = jax.jit(function).trace(emissions, params, tags, mask)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    for platform in ("cuda", "tpu"):
        for function in (step, decode):
            assert branches_on_data(program(function, platform)) == 0
        assert "stablehlo.while" not in program(step, platform)
    on_cpu = program(step, "cpu")
    assert branches_on_data(on_cpu) >= 3 and "stablehlo.while" in on_cpu  # two recursions and the holes of a mask


def test_mapped_over_one_more_axis():
    """Two problems of unlike size go through one program."""
    emissions, tags, mask, params = random_batch(16)
    problems = [(params, emissions), far_apart(params, emissions)]
    both_params, both = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)

    def loss(emissions, params):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crf_fast, "by_platform", lambda _, elsewhere, *arguments: elsewhere(*arguments))
            return jax.grad(lambda e, p: crf.log_likelihood(e, tags, mask, p).sum(), (0, 1))(emissions, params)

    mapped = jax.jit(jax.vmap(loss))(both, both_params)
    for index, (own_params, own) in enumerate(problems):
        single = jax.jit(loss)(own, own_params)
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, 1e-5, 1e-5), mapped, single)
