"""The CRF against every path enumerated, pytorch-crf, float64 recursions and finite differences."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.crf_oracle import (
    KINDS,
    SHAPE,
    Enumeration,
    dense,
    far_apart,
    forbidden,
    forbidden_softly,
    never_entered,
    path_scores,
    random_batch,
    random_params,
    recursions_in_float64,
)
from tmrjax import crf, crf_fast
from tmrjax.crf import CRFParams

# Compiling costs more than running here: one jitted function each, and most tests use the one shape.
log_normalizer = jax.jit(crf.log_normalizer)
sequence_score = jax.jit(crf.sequence_score)
marginals = jax.jit(crf.marginals)
viterbi_decode = jax.jit(crf.viterbi_decode)


@jax.jit
def likelihood_and_gradients(emissions, tags, mask, params):
    """log p(tags) per sentence, and the gradients of the training loss by emissions and parameters."""

    def loss(emissions, params):
        likelihood = crf.log_likelihood(emissions, tags, mask, params)
        return -likelihood.mean(), likelihood

    (_, likelihood), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(emissions, params)
    return likelihood, gradients


@jax.jit
def constrained_normalizer_and_gradient(emissions, mask, allowed, params):
    def total(emissions):
        normalizer = crf.constrained_log_normalizer(emissions, mask, allowed, params)
        return normalizer.sum(), normalizer

    (_, normalizer), gradient = jax.value_and_grad(total, has_aux=True)(emissions)
    return normalizer, gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("time", "num_tags"), [SHAPE[1:], (1, 4), (6, 1), (1, 1)])
def test_brute_force(kind, time, num_tags):
    emissions, tags, mask, params = random_batch(3, SHAPE[0], time, num_tags)
    params, emissions = kind(params, emissions) if num_tags > 1 else (params, emissions)
    tags = np.where(mask, tags, -100)
    normalizer, score = log_normalizer(emissions, mask, params), sequence_score(emissions, tags, mask, params)
    likelihood, gradients = likelihood_and_gradients(emissions, tags, mask, params)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(gradients))
    probability = marginals(emissions, mask, params)
    decoded, best_score = viterbi_decode(emissions, mask, params)
    for b in range(len(emissions)):
        every = Enumeration(emissions[b], mask[b], params)
        gold = 0.0 if every.empty else path_scores(emissions[b][mask[b]], params, tags[b][mask[b]][None])[0]
        expected = gold - every.log_normalizer if gold > -np.inf else -np.inf
        np.testing.assert_allclose(normalizer[b], every.log_normalizer, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(score[b], gold, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(likelihood[b], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(probability[b], every.marginals, atol=2e-6)
        np.testing.assert_allclose(best_score[b], every.scores.max(), rtol=1e-6, atol=1e-5)
        if every.log_normalizer > -np.inf:
            np.testing.assert_array_equal(decoded[b], every.best)


@pytest.mark.parametrize("seed", range(3))
def test_ties_go_to_the_lowest_tag_from_the_last_position_on(seed):
    generator = np.random.default_rng(seed)
    _, _, mask, params = random_batch(seed)
    emissions = generator.integers(0, 2, SHAPE).astype(np.float32)
    params = jax.tree.map(lambda p: generator.integers(0, 2, p.shape).astype(np.float32), params)
    tags, _ = viterbi_decode(emissions, mask, params)
    for b in range(len(mask)):
        np.testing.assert_array_equal(tags[b], Enumeration(emissions[b], mask[b], params).best)
    nothing = jax.tree.map(np.zeros_like, (emissions, params))
    assert not viterbi_decode(nothing[0], mask, nothing[1])[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_constrained_normalizer_by_brute_force(kind):
    emissions, _, mask, params = random_batch(4)
    params, emissions = kind(params, emissions)
    allowed = np.random.default_rng(5).random(emissions.shape) < 0.7
    allowed[3, 0] = False  # not a single path
    result, gradient = constrained_normalizer_and_gradient(emissions, mask, allowed, params)
    for b in range(len(mask)):
        every = Enumeration(emissions[b], mask[b], params, allowed[b])
        np.testing.assert_allclose(result[b], every.log_normalizer, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(gradient[b], every.marginals, atol=2e-6)
    assert result[3] == -np.inf


@pytest.mark.parametrize("seed", range(3))
def test_pytorch_crf_values_gradients_and_paths(seed):
    torch = pytest.importorskip("torch")
    peer_module = pytest.importorskip("torchcrf")
    emissions, tags, mask, params = random_batch(seed, 8, 11, 5)
    mask[1:3] = np.arange(11) < [[1], [6]]  # the peer knows neither empty rows nor holes
    peer = peer_module.CRF(5, batch_first=True)
    for name, value in params._asdict().items():
        getattr(peer, name).data = torch.tensor(value)
    peer_emissions = torch.tensor(emissions, requires_grad=True)
    expected = peer(peer_emissions, torch.tensor(tags), torch.tensor(mask), reduction="none")
    (-expected.mean()).backward()

    likelihood, (by_emissions, by_params) = likelihood_and_gradients(emissions, tags, mask, params)
    np.testing.assert_allclose(likelihood, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(by_emissions, peer_emissions.grad, atol=1e-6)
    for name, value in by_params._asdict().items():
        np.testing.assert_allclose(value, getattr(peer, name).grad, atol=3e-6, err_msg=name)
    decoded = np.asarray(viterbi_decode(emissions, mask, params)[0])
    paths = [list(row[valid]) for row, valid in zip(decoded, mask, strict=True)]
    assert paths == peer.decode(peer_emissions.detach(), torch.tensor(mask))


@pytest.mark.parametrize("restricted", [False, True])
def test_ten_thousand_positions_at_one_and_at_ten_thousand_nats(restricted):
    generator = np.random.default_rng(0)
    emissions = generator.normal(size=(3, 10_000, 4)).astype(np.float32)
    emissions[1] += 1e4
    emissions[2] = generator.uniform(-1e4, 1e4, emissions.shape[1:])
    params = random_params(generator, 4)
    if restricted:
        params, _ = forbidden(params, None)
    mask = np.ones(emissions.shape[:2], bool)
    tags, best_score = viterbi_decode(emissions, mask, params)
    *_, best_in_float64 = recursions_in_float64(emissions, np.asarray(tags), params)
    found = [path_scores(emissions[b], params, tags[b][None])[0] for b in range(3)]
    np.testing.assert_allclose(found, best_in_float64, rtol=1e-9)
    np.testing.assert_allclose(best_score, best_in_float64, rtol=2e-7)

    tags = np.array(tags)
    tags[:2, ::100] = 0  # some way off the best path
    likelihood, (by_emissions, by_params) = likelihood_and_gradients(emissions, tags, mask, params)
    normalizer, expected, probability, _ = recursions_in_float64(emissions, tags, params)
    np.testing.assert_allclose(log_normalizer(emissions, mask, params), normalizer, rtol=2e-7)
    np.testing.assert_allclose(likelihood[:2], expected[:2], rtol=1e-6)
    # 10,000 roundings of differences near 1e4, where neighbouring floats lie 1e-3 apart.
    np.testing.assert_allclose(likelihood[2], expected[2], atol=0.1)
    gradient = (probability - (tags[..., None] == np.arange(4))) / 3
    np.testing.assert_allclose(by_emissions[:2], gradient[:2], atol=2e-6)
    np.testing.assert_allclose(by_emissions[2], gradient[2], atol=2e-4)
    assert all(np.isfinite(value).all() for value in by_params)


def test_a_way_on_that_lies_hundreds_of_nats_below_is_not_lost():
    # Tag 0 gains 100 nats on 2 at each position, and nothing leads from it to 2, to which the last position gives
    # all of it back: staying in 0 and staying in 2 are about equal in the end, and 500 nats apart on the way.
    emissions, tags, mask, params = random_batch(0)
    emissions[0] = 100, 0, 0, 0
    emissions[0, -1] = -250, -250, 250, -250
    params.transitions[[0, 1, 3], 2] = -np.inf
    params.transitions[2, 2] = params.transitions[0, 0]
    tags[0] = 2
    expected = recursions_in_float64(emissions[:1], tags[:1], params)
    assert 0.1 < expected[2][0, 0, 2] < 0.9
    likelihood, (by_emissions, _) = likelihood_and_gradients(emissions, tags, mask, params)
    np.testing.assert_allclose(log_normalizer(emissions, mask, params)[0], expected[0][0], rtol=1e-6)
    np.testing.assert_allclose(likelihood[0], expected[1][0], rtol=1e-4)
    np.testing.assert_allclose(marginals(emissions, mask, params)[0], expected[2][0], atol=5e-5)
    np.testing.assert_allclose(by_emissions[0], (expected[2][0] - [0, 0, 1, 0]) / len(mask), atol=5e-5)


def test_a_certain_path_is_not_more_likely_than_one():
    for seed in range(10):
        emissions, _, mask, params = random_batch(seed)
        tags, _ = viterbi_decode(emissions * 1000, mask, params)
        likelihood, _ = likelihood_and_gradients(emissions * 1000, tags, mask, params)
        assert (likelihood <= 0).all()
        assert (likelihood > -1e-5).any()


def test_both_spaces_give_the_same(monkeypatch):
    @partial(jax.jit, static_argnums=0)
    def outputs(floor, emissions, tags, mask, params):  # floor: only so that each is traced
        _, filtered = crf_fast._filter_forward(emissions, mask, tuple(map(jnp.asarray, params)))
        return filtered.lossless, likelihood_and_gradients.__wrapped__(emissions, tags, mask, params)

    for kind in (dense, forbidden, forbidden_softly, never_entered):
        emissions, tags, mask, params = random_batch(6)
        params, emissions = kind(params, emissions)
        lossless, fast = outputs(None, emissions, tags, mask, params)
        with monkeypatch.context() as patch:
            patch.setattr(crf_fast, "_log_floor", lambda relative: 1e9)
            # A function that was traced before keeps what it was traced with; these are new.
            for name in ("_filter", "_smooth"):
                patch.setattr(crf_fast, name, partial(getattr(crf_fast, name)))
            forced, slow = outputs(1e9, emissions, tags, mask, params)
        assert lossless and not forced
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=2e-6), fast, slow)
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True))


def test_gradients_by_finite_differences_in_float64():
    with jax.enable_x64(True):

        @jax.jit
        def weighted(emissions, params, tags, mask):
            def total(emissions, params):
                likelihood = crf.log_likelihood(emissions, tags, mask, params)
                normalizer = crf.log_normalizer(emissions, mask, params)
                return (jnp.arange(1.0, len(mask) + 1) * (2 * likelihood + jnp.sin(normalizer))).sum()

            return jax.value_and_grad(total, (0, 1))(emissions, params)

        for kind in (dense, forbidden_softly, far_apart):
            emissions, tags, mask, params = random_batch(7)
            params, emissions = kind(params, emissions)
            point = jax.tree.map(lambda a: np.maximum(a.astype(np.float64), -1e3), (emissions, params))
            value, gradients = weighted(*point, tags, mask)
            assert value.dtype == np.float64
            for seed in range(4):
                generator = np.random.default_rng(seed)
                direction = jax.tree.map(lambda a, g=generator: g.normal(size=a.shape), point)
                ahead, behind = (
                    weighted(*jax.tree.map(lambda a, d, s=step: a + s * d, point, direction), tags, mask)[0]
                    for step in (1e-5, -1e-5)
                )
                slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients, direction)), strict=True))
                np.testing.assert_allclose((ahead - behind) / 2e-5, slope, rtol=1e-5, atol=1e-5)


def test_expected_counts_are_the_gradients_of_the_normalizer():
    emissions, _, mask, params = random_batch(8)
    gradient = jax.jit(jax.grad(lambda e, p: crf.log_normalizer(e, mask, p).sum(), (0, 1)))
    by_emissions, by_params = gradient(emissions, params)
    np.testing.assert_allclose(by_emissions, marginals(emissions, mask, params), atol=1e-6)
    # Every sentence that is not empty has one first and one last tag, and one transition less than positions.
    np.testing.assert_allclose(by_params.start_transitions.sum(), mask.any(1).sum(), rtol=1e-5)
    np.testing.assert_allclose(by_params.end_transitions.sum(), mask.any(1).sum(), rtol=1e-5)
    np.testing.assert_allclose(by_params.transitions.sum(), np.maximum(mask.sum(1) - 1, 0).sum(), rtol=1e-5)


def test_gradients_of_scores_count_the_path():
    emissions, tags, mask, params = random_batch(9)
    params, _ = forbidden(params, emissions)
    gradient = jax.jit(jax.grad(lambda e, p: crf.sequence_score(e, tags, mask, p).sum(), (0, 1)))
    by_emissions, by_params = gradient(emissions, params)
    np.testing.assert_array_equal(by_emissions, (tags[..., None] == np.arange(4)) & mask[..., None])
    counts = np.zeros((4, 4))
    for row, valid in zip(tags, mask, strict=True):
        for i, j in itertools.pairwise(row[valid]):
            counts[i, j] += 1
    np.testing.assert_array_equal(by_params.transitions, counts)

    best, _ = viterbi_decode(emissions, mask, params)
    by_emissions = jax.jit(jax.grad(lambda e: crf.viterbi_decode(e, mask, params)[1].sum()))(emissions)
    np.testing.assert_array_equal(by_emissions, (best[..., None] == np.arange(4)) & mask[..., None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_padding_holds_has_no_influence(kind, garbage):
    emissions, tags, mask, params = random_batch(10)
    params, emissions = kind(params, emissions)
    dirty = np.where(mask[..., None], emissions, np.float32(garbage))
    dirty_tags = np.where(mask, tags, np.random.default_rng(0).integers(-100, 100, tags.shape))
    for function in (log_normalizer, marginals, viterbi_decode):
        jax.tree.map(np.testing.assert_array_equal, function(emissions, mask, params), function(dirty, mask, params))
    for function in (sequence_score, likelihood_and_gradients):
        clean, soiled = function(emissions, tags, mask, params), function(dirty, dirty_tags, mask, params)
        jax.tree.map(np.testing.assert_array_equal, clean, soiled)
    by_emissions, by_params = soiled[1]
    assert not any(np.isnan(leaf).any() for leaf in (by_emissions, *by_params))
    assert not np.asarray(by_emissions)[~mask].any()


def test_a_batch_of_nothing_but_padding():
    emissions, tags, mask, params = random_batch(11)
    emissions, mask = np.full_like(emissions, np.nan), np.zeros_like(mask)
    for output in (
        log_normalizer(emissions, mask, params),
        sequence_score(emissions, tags, mask, params),
        marginals(emissions, mask, params),
        viterbi_decode(emissions, mask, params),
        likelihood_and_gradients(emissions, tags, mask, params),
    ):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(output))


def test_a_hole_is_cut_out_of_the_sentence():
    emissions, tags, mask, params = random_batch(12)
    order = np.argsort(~mask, axis=1, kind="stable")
    packed_emissions = np.take_along_axis(emissions, order[..., None], 1)
    packed_tags, packed_mask = np.take_along_axis(tags, order, 1), np.take_along_axis(mask, order, 1)
    assert (mask != packed_mask).any()
    np.testing.assert_allclose(
        sequence_score(emissions, tags, mask, params),
        sequence_score(packed_emissions, packed_tags, packed_mask, params),
        rtol=1e-6,
    )
    decoded, _ = viterbi_decode(emissions, mask, params)
    packed_decoded, _ = viterbi_decode(packed_emissions, packed_mask, params)
    np.testing.assert_array_equal(np.asarray(decoded)[mask], np.asarray(packed_decoded)[packed_mask])
    likelihood, (by_emissions, by_params) = likelihood_and_gradients(emissions, tags, mask, params)
    packed_likelihood, (packed_by_emissions, packed_by_params) = likelihood_and_gradients(
        packed_emissions, packed_tags, packed_mask, params
    )
    np.testing.assert_allclose(likelihood, packed_likelihood, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(by_emissions)[mask], np.asarray(packed_by_emissions)[packed_mask], atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), by_params, packed_by_params)


def test_faults_are_loud_and_stay_in_their_row():
    emissions, tags, mask, params = random_batch(13)
    mask[3, 0] = True
    emissions[0, 2, 1] = np.nan
    faulty = np.arange(len(mask)) == 0
    np.testing.assert_array_equal(np.isnan(log_normalizer(emissions, mask, params)), faulty)
    np.testing.assert_array_equal(np.isnan(marginals(emissions, mask, params)).any((1, 2)), faulty)
    faulty[3] = True
    for tag in (4, -1):
        tags[3, 0] = tag
        likelihood, _ = likelihood_and_gradients(emissions, tags, mask, params)
        np.testing.assert_array_equal(np.isnan(likelihood), faulty)
        assert np.isnan(sequence_score(emissions, tags, mask, params)[3])


def numbers(*shape):
    return hnp.arrays(np.float32, shape, elements=st.floats(-50, 50, width=32))


@settings(max_examples=60)
@given(
    emissions=numbers(*SHAPE),
    params=st.builds(CRFParams, numbers(4, 4), numbers(4), numbers(4)),
    tags=hnp.arrays(np.int64, (2, *SHAPE[:2]), elements=st.integers(0, 3)),
    mask=hnp.arrays(bool, SHAPE[:2]),
    forbid=hnp.arrays(bool, (4, 4)),
    shift=st.floats(-100, 100, width=32),
)
def test_properties(emissions, params, tags, mask, forbid, shift):
    transitions = np.where(forbid, -np.inf, params.transitions).astype(np.float32)
    transitions[0, :] = transitions[:, 0] = 0  # always a way
    params = params._replace(transitions=transitions)
    probability = np.asarray(marginals(emissions, mask, params))
    assert (probability >= 0).all()
    np.testing.assert_allclose(probability.sum(2), mask, atol=1e-5)
    normalizer = log_normalizer(emissions, mask, params)
    _, best_score = viterbi_decode(emissions, mask, params)
    assert (best_score <= normalizer + 1e-3).all()
    for other in tags:
        score = sequence_score(emissions, other, mask, params)
        assert (best_score >= score - 1e-3).all()
    likelihood, _ = likelihood_and_gradients(emissions, other, mask, params)
    assert (likelihood <= 0).all()
    np.testing.assert_allclose(likelihood, score - normalizer, atol=1e-3)

    shifted = emissions + np.float32(shift)
    np.testing.assert_allclose(log_normalizer(shifted, mask, params), normalizer + shift * mask.sum(1), atol=2e-3)
    np.testing.assert_allclose(marginals(shifted, mask, params), probability, atol=1e-3)
    only = other[..., None] == np.arange(4)
    constrained, _ = constrained_normalizer_and_gradient(emissions, mask, only, params)
    np.testing.assert_allclose(constrained, score, rtol=1e-5, atol=1e-3)


def test_half_precision_input_is_computed_in_float32():
    emissions, tags, mask, params = random_batch(14)
    half, half_params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (emissions, params))
    rounded, rounded_params = jax.tree.map(lambda a: np.asarray(a, np.float32), (half, half_params))
    likelihood, gradients = likelihood_and_gradients(half, tags, mask, half_params)
    expected, expected_gradients = likelihood_and_gradients(rounded, tags, mask, rounded_params)
    assert likelihood.dtype == jnp.float32
    np.testing.assert_allclose(likelihood, expected, rtol=1e-6)
    for leaf, expected_leaf in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_allclose(leaf.astype(jnp.float32), expected_leaf, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("kind", [dense, far_apart])
def test_sharded_over_eight_devices(kind):
    emissions, tags, mask, params = random_batch(15)
    params, emissions = kind(params, emissions)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put((emissions, tags, mask), NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    likelihood, (by_emissions, by_params) = likelihood_and_gradients(*sharded, replicated)
    expected, (expected_by_emissions, expected_by_params) = likelihood_and_gradients(emissions, tags, mask, params)
    assert by_emissions.sharding.spec[0] == "data"
    np.testing.assert_allclose(likelihood, expected, rtol=1e-6)
    np.testing.assert_allclose(by_emissions, expected_by_emissions, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), by_params, expected_by_params)
    decoded, _ = viterbi_decode(sharded[0], sharded[2], replicated)
    assert decoded.sharding.spec[0] == "data"
    np.testing.assert_array_equal(decoded, viterbi_decode(emissions, mask, params)[0])


def test_mapped_over_one_more_axis():
    _, tags, mask, _ = random_batch(16)
    problems = [random_batch(seed)[::3] for seed in (16, 17)]
    problems[1] = far_apart(*problems[1][::-1])[::-1]  # the two need different spaces
    emissions, params = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)
    mapped = jax.jit(jax.vmap(likelihood_and_gradients, (0, None, None, 0)))(emissions, tags, mask, params)
    for index, problem in enumerate(problems):
        single = likelihood_and_gradients(problem[0], tags, mask, problem[1])
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, 1e-6, 1e-6), mapped, single)


def test_wrong_shapes_name_both():
    emissions, tags, mask, params = random_batch(18, 3, 5, 4)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 4\), expected \(3, 5\) .*\(3, 5, 4\)"):
        crf.log_normalizer(emissions, mask[:, 1:], params)
    with pytest.raises(ValueError, match=r"tags has shape \(2, 5\), expected \(3, 5\) .*\(3, 5, 4\)"):
        crf.log_likelihood(emissions, tags[1:], mask, params)
    with pytest.raises(ValueError, match=r"tags has shape \(5,\), expected \(3, 5\)"):
        crf.sequence_score(emissions, tags[0], mask, params)
    with pytest.raises(ValueError, match=r"transitions has shape \(4, 3\), expected \(4, 4\) .*\(3, 5, 4\)"):
        crf.marginals(emissions, mask, params._replace(transitions=params.transitions[:, 1:]))
    with pytest.raises(ValueError, match=r"end_transitions has shape \(3,\), expected \(4,\) .*\(3, 5, 4\)"):
        crf.viterbi_decode(emissions, mask, params._replace(end_transitions=params.end_transitions[1:]))
    with pytest.raises(ValueError, match=r"allowed has shape \(3, 5\), expected .*\(3, 5, 4\)"):
        crf.constrained_log_normalizer(emissions, mask, mask, params)
    with pytest.raises(ValueError, match=r"emissions must be .* got shape \(5, 4\)"):
        crf.log_normalizer(emissions[0], mask[0], params)
    with pytest.raises(ValueError, match="tags must be integers, got float32"):
        crf.log_likelihood(emissions, tags.astype(np.float32), mask, params)
