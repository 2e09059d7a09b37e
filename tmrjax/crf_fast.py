"""The fast path of :mod:`tmrjax.crf`: the same numbers from fewer and larger operations.

One scan runs over time on arrays laid out [T,K,B], so that the inner loops run over the batch. The forward recursion
keeps log-probabilities relative to the best state; only the sum over the previous tag leaves log space, as a matrix
product with exp(transitions). That loses something only where *every* way into a state lies some 60 nats below the best
conceivable one; the scan keeps the smallest such sum, and where it falls below `_log_floor` the recursion is done over
with an ordinary log-sum-exp. Both are exact to float error. The gradient is not autodiff through the scan but backward
smoothing: p(y_{t-1} | y_t, e), applied from the last position to the first, gives the marginals.

So much for a CPU. On a GPU or TPU each step of a scan is several launches and a branch waits for the host; there the
recursions run as :mod:`tmrjax.crf_parallel` has them, without either. Which of the two a program holds is decided when
it is lowered, by the platform that it is lowered for.

The functions take arguments that :func:`tmrjax.crf_arguments.computed_by` has checked: emissions [B,T,K] and the three
parameters in the computing type, mask bool [B,T], tags int32 [B,T], allowed bool [B,T,K].
"""

import functools
import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from tmrjax import crf_parallel
from tmrjax.crf_arguments import Params
from tmrjax.crf_parallel import finite, normalized

UNROLL = 8
"""Steps of decoding that a GPU or TPU takes at once: their scan has few operations a step."""


def by_platform(on_cpu: Callable[..., Any], elsewhere: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``on_cpu``, or of ``elsewhere`` in a program for a GPU or TPU."""
    return lax.platform_dependent(*arguments, cpu=on_cpu, default=elsewhere)


def log_normalizer(emissions: Array, mask: Array, params: Params) -> Array:
    """log Z, [B]."""
    return _log_normalizer(emissions, mask, *params)


def constrained_log_normalizer(emissions: Array, mask: Array, allowed: Array, params: Params) -> Array:
    """log Σ exp s(y) over the sequences of allowed tags, [B]."""
    return _log_normalizer(jnp.where(allowed, emissions, -jnp.inf), mask, *params)


def sequence_score(emissions: Array, tags: Array, mask: Array, params: Params) -> Array:
    """s(y), [B]."""
    transitions, start, end = params
    path = _follow(tags, mask, len(transitions))
    emitted = jnp.take_along_axis(emissions, path.tags.T[..., None], axis=2)[..., 0].T
    begins = jnp.arange(mask.shape[1])[:, None] == jnp.argmax(mask, axis=1)
    step = jnp.where(begins, start[path.first], transitions[path.previous, path.tags])
    score = _pairwise_sum(jnp.where(mask.T, emitted + step, 0.0)) + end[path.last]
    return jnp.where(mask.any(1), score, 0.0) + path.fault


def log_likelihood(emissions: Array, tags: Array, mask: Array, params: Params) -> Array:
    """log p(y), [B].

    Score and normaliser are subtracted position by position: their difference would cancel in long sentences.
    """
    return _log_likelihood(emissions, tags, mask, *params)


def marginals(emissions: Array, mask: Array, params: Params) -> Array:
    """p(y_t = k), [B,T,K], by forward filtering and backward smoothing."""
    _, filtered = _filter_forward(emissions, mask, params)
    expected = _smooth_backward(filtered, jnp.ones_like(filtered.tail))
    return jnp.transpose(expected.positions, (2, 0, 1))


def viterbi_decode(emissions: Array, mask: Array, params: Params) -> tuple[Array, Array]:
    """The best tags [B,T] and their score [B]."""
    transitions, start, ending = lax.stop_gradient(params)
    chain = _lay_out(lax.stop_gradient(emissions), mask, start, 0.0)
    best = by_platform(_decode, functools.partial(_decode, unroll=UNROLL), chain, transitions, ending)
    tags = jnp.where(mask, best.T, 0).astype(jnp.int32)
    return tags, sequence_score(emissions, tags, mask, params)


def _decode(chain: "_Chain", transitions: Array, ending: Array, unroll: int = 1) -> Array:
    """The best tags [T,B]."""
    num_tags = len(transitions)

    def advance(best, step):
        local, linked, valid = step
        ways = (best[i] + transitions[i, :, None] for i in range(num_tags))  # XLA vectorises these, not a reduction
        arriving = reduce(jnp.maximum, ways)
        score = jnp.where(linked, arriving, 0.0) + local
        score = jnp.where(valid, score - finite(jnp.max(score, 0)), best)
        return score, score

    def trace_back(onward, step):
        best, valid = step
        tag = jnp.argmax(best + onward, axis=0)
        return jnp.where(valid, transitions.T[tag].T, onward), tag

    _, best = lax.scan(advance, jnp.zeros_like(chain.local[0]), chain[:3], unroll=unroll)
    onward = jnp.zeros_like(chain.local[0]) + ending[:, None]
    return lax.scan(trace_back, onward, (best, chain.valid), reverse=True, unroll=unroll)[1]


class _Chain(NamedTuple):
    """The inputs of the recursions, time first and batch last."""

    local: Array  # [T,K,B]: emissions relative to the position's best; plus start_transitions where the sentence begins
    linked: Array  # [T,B]: valid, and with a valid position before it
    valid: Array  # [T,B]
    peak: Array  # [T,B]: what was subtracted from the emissions; 0 where not valid


class _Path(NamedTuple):
    """One tag sequence per sentence, time first."""

    tags: Array  # [T,B], brought into range
    previous: Array  # [T,B]: tag of the valid position before
    first: Array  # [B]
    last: Array  # [B]
    fault: Array  # [B]: 0, or NaN where a tag at a valid position is out of range


class _Filtered(NamedTuple):
    """What the forward recursion leaves for the backward one."""

    linked: Array  # [T,B], as in _Chain
    valid: Array  # [T,B]
    relative: Array  # [K,K]: transitions[i,j] − max_i transitions[i,j]
    before: Array  # [T,K,B]: log p(tag of the valid position before t | emissions up to it) + constant, maximum 0
    arriving: Array  # [T,K,B]: log Σ_i exp(before[i] + relative[i,j])
    shift: Array  # [T,B]: log Z = Σ_t (peak_t + shift_t) + tail; −inf from where every path is forbidden
    ending: Array  # [K,B]: log p(last tag | emissions)
    tail: Array  # [B]
    lossless: Array  # []: True where the matrix products lost nothing


class _Expected(NamedTuple):
    """Expected counts under p(y), each sentence with its weight."""

    positions: Array  # [T,K,B]
    transitions: Array  # [K,K]
    first: Array  # [K,B]
    last: Array  # [K,B]


def _lay_out(emissions: Array, mask: Array, start: Array, column_peak: Array | float) -> _Chain:
    begins = jnp.arange(mask.shape[1]) == jnp.argmax(mask, axis=1)[:, None]
    clean = jnp.where(mask[..., None], emissions, 0.0)
    peak = finite(jnp.max(clean, axis=2))
    local = clean - peak[..., None] + jnp.where(begins[..., None], start, column_peak)
    return _Chain(jnp.transpose(local, (1, 2, 0)), (mask & ~begins).T, mask.T, peak.T)


def _follow(tags: Array, mask: Array, num_tags: int) -> _Path:
    in_range = (tags >= 0) & (tags < num_tags)
    fault = jnp.where((mask & ~in_range).any(1), jnp.nan, 0.0)
    tags = jnp.where(in_range, tags, 0).astype(jnp.int32).T
    valid = mask.T
    latest = by_platform(_latest_valid, crf_parallel.latest_valid, tags, valid)
    first = jnp.argmax(valid, axis=0)[None]
    last = len(tags) - 1 - jnp.argmax(valid[::-1], axis=0)[None]
    return _Path(
        tags=tags,
        previous=jnp.concatenate([tags[:1], latest[:-1]]),
        first=jnp.take_along_axis(tags, first, axis=0)[0],
        last=jnp.take_along_axis(tags, last, axis=0)[0],
        fault=fault,
    )


def _latest_valid(tags: Array, valid: Array) -> Array:
    """See :func:`tmrjax.crf_parallel.latest_valid`; a mask without holes, which is the usual one, costs nothing."""

    def across_holes():
        def latest(tag, step):
            tag = jnp.where(step[1], step[0], tag)
            return tag, tag

        return lax.scan(latest, tags[0], (tags, valid))[1]

    return lax.cond(jnp.all(valid[1:] <= valid[:-1]), lambda: tags, across_holes)


def _pairwise_sum(values: Array) -> Array:
    """Sum over the first axis in a tree: rounding grows with log T instead of T."""
    size = 1 << (len(values) - 1).bit_length()
    values = jnp.pad(values, ((0, size - len(values)), (0, 0)))
    while len(values) > 1:
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    return values[0]


def _filter_forward(emissions: Array, mask: Array, params: Params) -> tuple[_Chain, _Filtered]:
    transitions, start, end = params
    column_peak = jnp.max(transitions, axis=0)
    relative = transitions - finite(column_peak)
    chain = _lay_out(emissions, mask, start, column_peak)
    after, before, arriving, shift, lossless = by_platform(
        _filter, lambda *inputs: (*crf_parallel.filter_forward(*inputs), jnp.asarray(True)), *chain[:3], relative
    )

    ending = after + end[:, None]
    peak = jnp.max(ending, axis=0)
    tail = peak + jnp.log(jnp.sum(jnp.exp(ending - finite(peak)), axis=0))
    ending -= finite(tail)
    return chain, _Filtered(chain.linked, chain.valid, relative, before, arriving, shift, ending, tail, lossless)


def _filter(local: Array, linked: Array, valid: Array, relative: Array) -> tuple[Array, Array, Array, Array, Array]:
    """The forward recursion: the state behind the last position, then what `_Filtered` has of every position."""
    weights = jnp.exp(relative).T

    def recursion(arrive):
        def advance(state, step):
            before, lowest = state
            local, linked, valid = step
            arriving = arrive(before)
            after = jnp.where(linked, arriving, 0.0) + local
            peak = jnp.max(after, axis=0)
            after = jnp.where(valid, after - finite(peak), before)
            lowest = jnp.minimum(lowest, jnp.where(linked & (local > -jnp.inf), lax.stop_gradient(arriving), 0.0))
            return (after, lowest), (before, arriving, jnp.where(valid, peak, 0.0))

        nothing = jnp.zeros_like(local[0])
        return lax.scan(advance, (nothing, nothing), (local, linked, valid))

    def in_exponential_space(before):
        return jnp.log(jnp.matmul(weights, jnp.exp(before), precision=lax.Precision.HIGHEST))

    def in_log_space(before):
        arriving = before[:, None, :] + relative[:, :, None]
        peak = finite(jnp.max(arriving, axis=0))
        return peak + jnp.log(jnp.sum(jnp.exp(arriving - peak), axis=0))

    fast = recursion(in_exponential_space)
    lossless = jnp.all(~(fast[0][1] < _log_floor(relative)))
    (after, _), (before, arriving, shift) = lax.cond(lossless, lambda: fast, lambda: recursion(in_log_space))
    return after, before, arriving, shift, lossless


def _smooth_backward(filtered: _Filtered, weight: Array) -> _Expected:
    weight = jnp.where(filtered.valid.any(0), weight, 0.0)

    def in_parallel(filtered, weight):
        found = filtered.before, filtered.arriving, filtered.linked, filtered.relative, filtered.ending
        return crf_parallel.smooth_backward(*found, weight)

    positions, transitions, first = by_platform(_smooth, in_parallel, filtered, weight)
    positions = jnp.where(filtered.valid[:, None, :], positions, 0.0)
    return _Expected(positions, transitions, first * weight, jnp.exp(filtered.ending) * weight)


def _smooth(filtered: _Filtered, weight: Array) -> tuple[Array, Array, Array]:
    """Backward smoothing: positions [T,K,B] and transitions [K,K] with the weights, p(first tag) without them."""
    relative, linked = filtered.relative, filtered.linked

    def in_exponential_space():
        weights = jnp.exp(relative)
        passed = jnp.exp(filtered.before)
        inverse = jnp.where(filtered.arriving < _log_floor(relative), 0.0, jnp.exp(-filtered.arriving))

        def retreat(smoothed, step):
            passed, inverse, linked = step
            ratio = jnp.where(linked, smoothed * inverse, 0.0)
            back = normalized(passed * jnp.matmul(weights, ratio, precision=lax.Precision.HIGHEST))
            return jnp.where(linked, back, smoothed), (smoothed * weight, ratio * weight)

        steps = passed, inverse, linked
        first, (positions, ratio) = lax.scan(retreat, jnp.exp(filtered.ending), steps, reverse=True)
        return positions, weights * _count_pairs(passed, ratio), first

    def in_log_space():
        def retreat(state, step):
            smoothed, pairs = state
            before, arriving, linked = step
            onward = jnp.where(linked, smoothed, 0.0)
            joint = jnp.exp(before[:, None, :] + relative[:, :, None] - finite(arriving)) * onward
            back = jnp.where(linked, normalized(joint.sum(1)), smoothed)
            return (back, pairs + joint), smoothed * weight

        none = jnp.zeros_like(filtered.ending, shape=(len(relative), *filtered.ending.shape))
        steps = filtered.before, filtered.arriving, linked
        (first, pairs), positions = lax.scan(retreat, (jnp.exp(filtered.ending), none), steps, reverse=True)
        return positions, (pairs * weight).sum(2), first

    return lax.cond(filtered.lossless, in_exponential_space, in_log_space)


def _count_pairs(before: Array, now: Array) -> Array:
    # One product per position: contracted over both axes at once, XLA first copies both arrays into another order.
    return jnp.einsum("tib,tjb->tij", before, now, precision=lax.Precision.HIGHEST).sum(0)


def _log_floor(relative: Array) -> float:
    """log of K·1e9 smallest normal numbers: what underflows in a sum above this is less than 1e-9 of it."""
    return math.log(len(relative) * 1e9 * float(jnp.finfo(relative.dtype).tiny))


@jax.custom_vjp
def _log_normalizer(emissions: Array, mask: Array, transitions: Array, start: Array, end: Array) -> Array:
    return _log_normalizer_forward(emissions, mask, transitions, start, end)[0]


def _log_normalizer_forward(emissions, mask, *params):
    chain, filtered = _filter_forward(emissions, mask, params)
    total = _pairwise_sum(chain.peak + filtered.shift) + filtered.tail
    return jnp.where(mask.any(1), total, 0.0), filtered


def _log_normalizer_backward(filtered, cotangent):
    expected = _smooth_backward(filtered, cotangent)
    by_emissions = jnp.transpose(expected.positions, (2, 0, 1))
    return by_emissions, None, expected.transitions, expected.first.sum(1), expected.last.sum(1)


_log_normalizer.defvjp(_log_normalizer_forward, _log_normalizer_backward)


@jax.custom_vjp
def _log_likelihood(emissions: Array, tags: Array, mask: Array, transitions: Array, start: Array, end: Array) -> Array:
    return _log_likelihood_forward(emissions, tags, mask, transitions, start, end)[0]


def _log_likelihood_forward(emissions, tags, mask, *params):
    transitions, _, end = params
    num_tags = len(transitions)
    chain, filtered = _filter_forward(emissions, mask, params)
    path = _follow(tags, mask, num_tags)
    gold = path.tags[:, None, :] == jnp.arange(num_tags)[:, None]
    step = jnp.sum(jnp.where(gold, chain.local, 0.0), axis=1)
    step += jnp.where(chain.linked, filtered.relative[path.previous, path.tags], 0.0)
    step = jnp.where(chain.valid, step, 0.0)
    total = _pairwise_sum(step - finite(filtered.shift)) + end[path.last] - finite(filtered.tail)
    total = jnp.minimum(total, 0.0)  # rounding may lift a probability of 1 by an ulp
    return jnp.where(mask.any(1), total, 0.0) + path.fault, (filtered, path)


def _log_likelihood_backward(residuals, cotangent):
    filtered, path = residuals
    expected = _smooth_backward(filtered, cotangent)
    names = jnp.arange(len(filtered.relative))[:, None]
    weight = jnp.where(filtered.valid.any(0), cotangent, 0.0)
    gold = jnp.where((path.tags[:, None, :] == names) & filtered.valid[:, None, :], weight, 0.0)
    before = jnp.where((path.previous[:, None, :] == names) & filtered.linked[:, None, :], 1.0, 0.0)
    begins = jnp.where(path.first == names, weight, 0.0)
    ends = jnp.where(path.last == names, weight, 0.0)
    return (
        jnp.transpose(gold - expected.positions, (2, 0, 1)),
        None,
        None,
        _count_pairs(before, gold) - expected.transitions,
        (begins - expected.first).sum(1),
        (ends - expected.last).sum(1),
    )


_log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)
