"""Do probabilities keep their word, and what is gained by leaving out the least sure answers?

An answer is a predicted entity, or the predicted relation of a pair (``None`` is one), with its probability; it is
right or not. Calibration: of the answers with probability p a share p is right. Risk and coverage: of the surest share
of the answers, the share that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BINS = 15
COVERAGES = tuple(share / 20 for share in range(1, 21))  # of a report


def outcomes(rows: Iterable[Mapping[str, Any]], task: str) -> tuple[np.ndarray, np.ndarray]:
    """(probability [N], right [N]) of all answers in rows of predictions.

    ``rows``: of :meth:`tmrjax.tasks.system.System.prediction_rows`. An entity is right if borders and type are those of
    a gold one; what was missed is no answer.
    """
    found: list[tuple[float, bool]] = []
    for row in rows:
        if task == "ner":
            gold = {(span["start"], span["end"], span["label"]) for span in row["gold"]}
            found += [
                (span["probability"], (span["start"], span["end"], span["label"]) in gold) for span in row["predicted"]
            ]
        else:
            found.append((row["probability"], row["predicted"] == row["gold"]))
    return np.array([value for value, _ in found], float), np.array([right for _, right in found], bool)


def _bins(probabilities: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((probabilities * bins).astype(int), bins - 1)


def expected_calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """ECE = Σ_b |b|/N · |accuracy(b) − mean probability(b)| over equal bins of the probability (Guo et al. 2017).

    0 for no answers.
    """
    if not len(probabilities):
        return 0.0
    probabilities = np.asarray(probabilities, np.float64)
    gaps = np.bincount(_bins(probabilities, bins), right - probabilities, bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def log_loss(probabilities: np.ndarray, right: np.ndarray) -> float:
    """−mean log of the probability that was given to what came true, of p if right and 1 − p if not; 0 for none."""
    if not len(probabilities):
        return 0.0
    given = np.where(right, probabilities, 1 - np.asarray(probabilities, np.float64))
    return float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean())


def reliability(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """{"low", "high", "count", "probability", "accuracy"} of each bin that has answers."""
    bin_of, found = _bins(probabilities, bins), []
    for number in np.unique(bin_of):
        inside = bin_of == number
        found.append(
            {
                "low": float(number / bins), "high": float((number + 1) / bins), "count": int(inside.sum()),
                "probability": float(probabilities[inside].mean()), "accuracy": float(right[inside].mean()),
            }
        )  # fmt: skip
    return found


def risk_coverage(probabilities: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(coverage, risk, threshold) for each probability that occurs, from the highest down.

    Kept are the answers with at least the threshold: coverage is their share of all, risk the share of them that is
    wrong. Answers of one probability are kept together.
    """
    order = np.argsort(-probabilities, kind="stable")
    thresholds, wrong = probabilities[order], np.cumsum(~np.asarray(right, bool)[order])
    last = np.flatnonzero(np.append(thresholds[1:] != thresholds[:-1], True)) if len(thresholds) else np.array([], int)
    kept = last + 1
    return kept / max(len(probabilities), 1), wrong[last] / kept, thresholds[last]


def area_under_risk_coverage(probabilities: np.ndarray, right: np.ndarray) -> float:
    """AURC: the risk in the mean over coverage, Σ risk · (coverage − coverage before); 0 is the best."""
    coverage, risk, _ = risk_coverage(probabilities, right)
    return float((risk * np.diff(coverage, prepend=0.0)).sum())


def calibration_report(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """As JSON: ``answers``, their ``accuracy`` and ``mean_probability``, ``ece``, ``reliability``, ``aurc``, and
    ``risk_coverage``: at each of COVERAGES the smallest coverage that reaches it, with risk and threshold.
    """
    coverage, risk, thresholds = risk_coverage(probabilities, right)
    places = np.searchsorted(coverage, np.array(COVERAGES) - 1e-12)
    points = sorted({int(place) for place in places if place < len(coverage)})
    return {
        "answers": len(probabilities),
        "accuracy": float(right.mean()) if len(right) else 0.0,
        "mean_probability": float(probabilities.mean()) if len(right) else 0.0,
        "ece": expected_calibration_error(probabilities, right),
        "reliability": reliability(probabilities, right),
        "aurc": area_under_risk_coverage(probabilities, right),
        "risk_coverage": [
            {"coverage": float(coverage[i]), "risk": float(risk[i]), "threshold": float(thresholds[i])} for i in points
        ],
    }
