"""The exact probability of spans under a linear-chain CRF (§3.5), on the host in float64.

With the recursions of :mod:`tmrjax.crf`, α the log-sum over all beginnings of a sentence and β over all continuations,

    p(span) = exp(log Σ_y exp s(y) over the sequences y that have this very span  −  log Z),

of which only the positions of the span are walked anew: before them stands α, behind them β (Culotta and McCallum,
NAACL 2004). A program of the device would be compiled for every length of a batch and takes longer to start than this
takes to run; float64 spares the rounding of a difference of two large sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tmrjax.crf import CRFParams


class SpanTags(NamedTuple):
    """Which tags stand where a sentence has one span: ``allowed`` bool [L, K] at the positions from ``first`` on.

    row: of the batch. The positions reach over the one behind the span where its tag decides the span's end.
    """

    row: int
    first: int
    allowed: np.ndarray


def span_probabilities(
    emissions: np.ndarray, mask: np.ndarray, params: CRFParams, spans: Sequence[SpanTags]
) -> np.ndarray:
    """p [S] of each span: the share of all tag sequences, by weight, that have the allowed tags at its positions.

    Args:
        emissions: [B, T, K]. mask: [B, T], True at the first positions of a row: those of its sentence.
        params: of the CRF. spans: S of them, each with a position at least, all inside of their sentences.
    """
    if not spans:
        return np.zeros(0)
    used, rows = np.unique([span.row for span in spans], return_inverse=True)
    lengths = np.asarray(mask)[used].sum(-1)
    emissions = np.asarray(emissions)[used, : lengths.max()].astype(np.float64)
    transitions, start, end = (np.asarray(part, np.float64) for part in params)
    alpha, beta = _forward(emissions, transitions, start), _backward(emissions, lengths, transitions, end)
    log_z = _log_sum_exp(alpha[:, 0] + beta[:, 0])

    firsts, sizes = np.array([span.first for span in spans]), np.array([len(span.allowed) for span in spans])
    allowed = np.zeros((len(spans), sizes.max(), len(start)))
    for index, span in enumerate(spans):
        allowed[index, : sizes[index]] = np.where(span.allowed, 0.0, -np.inf)
    score = alpha[rows, firsts] + allowed[:, 0]
    for step in range(1, allowed.shape[1]):
        inside = np.flatnonzero(sizes > step)
        here = emissions[rows[inside], firsts[inside] + step] + allowed[inside, step]
        score[inside] = _log_sum_exp(score[inside][:, None, :] + transitions.T) + here
    total = _log_sum_exp(score + beta[rows, firsts + sizes - 1])
    return np.exp(np.minimum(total - log_z[rows], 0.0))  # rounding may lift a probability above 1


def _forward(emissions: np.ndarray, transitions: np.ndarray, start: np.ndarray) -> np.ndarray:
    """α [B, T, K] of :mod:`tmrjax.crf`; behind the end of a sentence it means nothing."""
    alpha = np.empty_like(emissions)
    alpha[:, 0] = start + emissions[:, 0]
    for t in range(1, emissions.shape[1]):
        alpha[:, t] = _log_sum_exp(alpha[:, t - 1][:, None, :] + transitions.T) + emissions[:, t]
    return alpha


def _backward(emissions: np.ndarray, lengths: np.ndarray, transitions: np.ndarray, end: np.ndarray) -> np.ndarray:
    """β [B, T, K] of :mod:`tmrjax.crf`: ``end`` at the last position of each sentence."""
    beta = np.empty_like(emissions)
    beta[:, -1] = end
    for t in range(emissions.shape[1] - 2, -1, -1):
        onward = _log_sum_exp((emissions[:, t + 1] + beta[:, t + 1])[:, None, :] + transitions)
        beta[:, t] = np.where((t + 1 < lengths)[:, None], onward, end)
    return beta


def _log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis; −inf where all are."""
    peak = np.maximum(scores.max(-1, keepdims=True), np.finfo(np.float64).min)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(scores - peak).sum(-1)) + peak[..., 0]
