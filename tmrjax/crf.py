"""Linear-chain conditional random field: the tag model of MNER (TMR, Eq. 8-9; Lafferty et al., ICML 2001).

A tag sequence y of a sentence with emissions e has the score

    s(y) = start[y_1] + Σ_t e_t[y_t] + Σ_{t>1} transitions[y_{t-1}, y_t] + end[y_n],       p(y) = exp(s(y) − log Z),

and the training loss of Eq. 9 is −log p(gold tags). Every function is a pure function of arrays: it can be jitted,
vmapped, differentiated (once, in reverse mode) and sharded over the batch.

Each function below is written as its textbook recursion in log space, a `lax.scan` over a small `step`. A call runs the
function that its decorator names (:mod:`tmrjax.crf_fast`), which computes the same many times faster and with less
rounding; `log_normalizer.reference(...)` runs the recursion as it stands here. Tests hold both to every enumerated path
and to each other.

Common contract:
    * `emissions` [B,T,K] in nats, `mask` [B,T] True where valid, `params` a `CRFParams`. Sums are float32 (float64 if
      an input is float64), also for bf16 or f16 input; gradients come back in the input's own type.
    * Positions where the mask is False are skipped, as if they were cut out of the sentence: what their emissions and
      tags hold (NaN, infinity, tag −100) has no influence, and their gradient is 0. The mask need not be a prefix.
      A row without a valid position is the empty sentence: log Z, score and log p 0, tags and marginals 0, gradient 0.
    * −inf (or −1e4) in emissions or parameters forbids. Where every path is forbidden, log Z is −inf and the marginals
      are 0. NaN or +inf at a valid position makes that row NaN.
    * A tag outside 0..K−1 at a valid position makes that row NaN (under jit no error can be raised).
    * Shapes that don't belong together raise ValueError, naming both; so do tags that aren't integers.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from tmrjax import crf_fast
from tmrjax.crf_arguments import computed_by
from tmrjax.crf_parallel import finite


class CRFParams(NamedTuple):
    """Scores of the chain, in nats."""

    transitions: Array
    """[K,K]: transitions[i, j] is the score of tag j following tag i."""
    start_transitions: Array
    """[K]: score of a sentence beginning with each tag."""
    end_transitions: Array
    """[K]: score of a sentence ending with each tag."""


@computed_by(crf_fast.sequence_score)
def sequence_score(emissions: Array, tags: Array, mask: Array, params: CRFParams) -> Array:
    """s(y), the unnormalised log score of one tag sequence per sentence.

    Args:
        emissions: [B,T,K]. tags: integer [B,T], 0..K−1 where valid. mask: [B,T].

    Returns:
        [B].
    """
    transitions, start, end = params
    num_tags = len(transitions)
    known = (tags >= 0) & (tags < num_tags)

    def step(state, position):
        score, previous, begun = state
        emission, valid, tag = position
        emitted = jnp.take_along_axis(emission, tag[:, None], axis=1)[:, 0]
        arriving = jnp.where(begun, transitions[previous, tag], start[tag])
        score = jnp.where(valid, score + arriving + emitted, score)
        return (score, jnp.where(valid, tag, previous), begun | valid), None

    tags = jnp.where(known, tags, 0)
    nothing = jnp.zeros_like(emissions[:, 0, 0]), jnp.zeros_like(tags[:, 0]), jnp.zeros_like(mask[:, 0])
    (score, last, begun), _ = lax.scan(step, nothing, (*_time_first(emissions, mask), tags.T))
    score = jnp.where(begun, score + end[last], 0.0)
    return jnp.where((mask & ~known).any(1), jnp.nan, score)


@computed_by(crf_fast.log_normalizer)
def log_normalizer(emissions: Array, mask: Array, params: CRFParams) -> Array:
    """log Z = log Σ_y exp s(y), by the forward algorithm.

        log Z = log Σ_k exp(α_n[k] + end[k]),       α as in `_forward`.

    Args:
        emissions: [B,T,K]. mask: [B,T].

    Returns:
        [B]. Its gradient is the marginals.
    """
    alpha = _forward(emissions, mask, params)
    return jnp.where(mask.any(1), _log_sum_exp(alpha[:, -1] + params[2], axis=1), 0.0)


@computed_by(crf_fast.constrained_log_normalizer)
def constrained_log_normalizer(emissions: Array, mask: Array, allowed: Array, params: CRFParams) -> Array:
    """log Σ exp s(y) over the sequences y that use only allowed tags; −inf where there is none.

    exp(constrained_log_normalizer − log_normalizer) is the exact probability that the tags stay inside `allowed`,
    for instance that one entity stands at one span (Culotta and McCallum, "Confidence Estimation for Information
    Extraction with Conditional Random Fields", NAACL 2004).

    Args:
        emissions: [B,T,K]. mask: [B,T]. allowed: bool [B,T,K], ignored where the mask is False.

    Returns:
        [B].
    """
    return log_normalizer.reference(jnp.where(allowed, emissions, -jnp.inf), mask, params)


@computed_by(crf_fast.log_likelihood)
def log_likelihood(emissions: Array, tags: Array, mask: Array, params: CRFParams) -> Array:
    """log p(y) = s(y) − log Z of one tag sequence per sentence, never positive; the loss of Eq. 9 is its negated mean.

    The fast path subtracts position by position and is more accurate: here the difference of two large sums cancels in
    long sentences.

    Args:
        emissions: [B,T,K]. tags: integer [B,T], 0..K−1 where valid. mask: [B,T].

    Returns:
        [B]; −inf where the sequence is forbidden.
    """
    log_z = log_normalizer.reference(emissions, mask, params)
    difference = sequence_score.reference(emissions, tags, mask, params) - finite(log_z)
    return difference - lax.stop_gradient(jnp.maximum(difference, 0.0))  # rounding may lift a probability above 1


@computed_by(crf_fast.marginals)
def marginals(emissions: Array, mask: Array, params: CRFParams) -> Array:
    """p(y_t = k), by the forward-backward algorithm (Rabiner, Proceedings of the IEEE, 1989).

        p(y_t = k) = exp(α_t[k] + β_t[k] − log Z),       α as in `_forward`, β as in `_backward`.

    Args:
        emissions: [B,T,K]. mask: [B,T].

    Returns:
        [B,T,K], summing to 1 over K where the mask is True, 0 elsewhere and where every path is forbidden.
    """
    log_z = finite(log_normalizer.reference(emissions, mask, params))
    log_p = _forward(emissions, mask, params) + _backward(emissions, mask, params) - log_z[:, None, None]
    return jnp.where(mask[..., None], jnp.exp(log_p), 0.0)


@computed_by(crf_fast.viterbi_decode)
def viterbi_decode(emissions: Array, mask: Array, params: CRFParams) -> tuple[Array, Array]:
    """The best tag sequence argmax_y s(y) and its score, by the Viterbi algorithm (Forney, Proc. IEEE, 1973).

        δ_1[j] = start[j] + e_1[j],       δ_t[j] = max_i (δ_{t-1}[i] + transitions[i, j]) + e_t[j],

    and the tags are read off the maximising i from the last position to the first. Equal scores go to the lowest tag:
    the lowest last tag among the best, then its lowest best predecessor, and so on (as pytorch-crf).

    Args:
        emissions: [B,T,K]. mask: [B,T].

    Returns:
        tags int32 [B,T], 0 where the mask is False, and `sequence_score` of these tags, [B] (−inf where every path is
        forbidden; the tags mean nothing then). The score can be differentiated.
    """
    transitions, start, end = params
    same = jnp.arange(len(transitions))

    def step(state, position):
        delta, begun = state
        emission, valid = position
        ways = delta[:, :, None] + transitions
        arriving = jnp.where(begun[:, None], ways.max(axis=1), start)
        pointers = jnp.where((begun & valid)[:, None], ways.argmax(axis=1), same)
        return (jnp.where(valid[:, None], arriving + emission, delta), begun | valid), pointers

    def trace_back(tag, pointers):
        return jnp.take_along_axis(pointers, tag[:, None], axis=1)[:, 0], tag

    nothing = jnp.zeros_like(emissions[:, 0]), jnp.zeros_like(mask[:, 0])
    (delta, _), pointers = lax.scan(step, nothing, _time_first(emissions, mask))
    _, tags = lax.scan(trace_back, (delta + end).argmax(axis=1), pointers, reverse=True)
    tags = jnp.where(mask, tags.T, 0).astype(jnp.int32)
    return tags, sequence_score.reference(emissions, tags, mask, params)


def _forward(emissions: Array, mask: Array, params: CRFParams) -> Array:
    """α [B,T,K]: the log of the summed exp-scores of all beginnings of the sentence that end in tag j at position t.

        α_1[j] = start[j] + e_1[j],       α_t[j] = log Σ_i exp(α_{t-1}[i] + transitions[i, j]) + e_t[j].

    A position that is not valid hands on α as it is.
    """
    transitions, start, _ = params

    def step(state, position):
        alpha, begun = state
        emission, valid = position
        arriving = _log_sum_exp(alpha[:, :, None] + transitions, axis=1)
        arriving = jnp.where(begun[:, None], arriving, start)
        alpha = jnp.where(valid[:, None], arriving + emission, alpha)
        return (alpha, begun | valid), alpha

    nothing = jnp.zeros_like(emissions[:, 0]), jnp.zeros_like(mask[:, 0])
    _, alpha = lax.scan(step, nothing, _time_first(emissions, mask))
    return jnp.swapaxes(alpha, 0, 1)


def _backward(emissions: Array, mask: Array, params: CRFParams) -> Array:
    """β [B,T,K]: the log of the summed exp-scores of all continuations of the sentence after tag i at position t.

    β_n[i] = end[i],       β_t[i] = log Σ_j exp(transitions[i, j] + e_{t+1}[j] + β_{t+1}[j]).
    """
    transitions, _, end = params

    def step(beta, position):
        emission, valid = position
        onward = _log_sum_exp(transitions + (emission + beta)[:, None, :], axis=2)
        return jnp.where(valid[:, None], onward, beta), beta

    last = jnp.zeros_like(emissions[:, 0]) + end
    _, beta = lax.scan(step, last, _time_first(emissions, mask), reverse=True)
    return jnp.swapaxes(beta, 0, 1)


def _time_first(emissions: Array, mask: Array) -> tuple[Array, Array]:
    """Emissions [T,B,K], 0 where the mask is False, and the mask [T,B], as a scan over time reads them."""
    return jnp.swapaxes(jnp.where(mask[..., None], emissions, 0.0), 0, 1), mask.T


def _log_sum_exp(scores: Array, axis: int) -> Array:
    """log Σ exp; −inf with gradient 0 where all are −inf, NaN where one is +inf."""
    peak = lax.stop_gradient(jnp.max(scores, axis, keepdims=True))
    total = jnp.sum(jnp.exp(scores - finite(peak)), axis)
    possible = total != 0.0
    return jnp.squeeze(finite(peak), axis) + jnp.where(possible, jnp.log(jnp.where(possible, total, 1.0)), -jnp.inf)
