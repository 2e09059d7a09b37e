"""How well pairs were classified, in the domain and out of it side by side: Table 3 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tmrjax.records.schema import SCORE_CLASSES
from tmrjax.tasks.calibration import expected_calibration_error
from tmrjax.tasks.metrics import Score


def divergence_report(labels: Sequence[int], scores: np.ndarray) -> dict[str, Any]:
    """Scores of predictions (the most probable class, the first of equals) against the labels.

    Args:
        labels: [N] positions in SCORE_CLASSES.
        scores: [N,3].

    Returns:
        ``macro_f1`` (the mean of F1 over the classes that occur in labels or predictions), ``micro_f1`` (which is the
        accuracy, one class being predicted per pair), ``ece``, ``log_loss`` (mean −log of the label's probability),
        ``records``, ``per_label`` {class: precision, recall, f1, support}, ``confusion`` {class: {predicted: count}}.

    Raises:
        ValueError: shapes disagree, or a label is no class.
    """
    labels, scores = np.asarray(labels, int), np.asarray(scores)
    if scores.shape != (len(labels), len(SCORE_CLASSES)):
        raise ValueError(
            f"{len(labels)} labels, but scores of shape {scores.shape}; expected [N, {len(SCORE_CLASSES)}]"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(SCORE_CLASSES)):
        raise ValueError(f"labels must be positions in {SCORE_CLASSES}, found {labels.min()} to {labels.max()}")
    predicted = scores.argmax(1)
    counts = np.zeros((len(SCORE_CLASSES),) * 2, int)
    np.add.at(counts, (labels, predicted), 1)
    per_label = {
        name: Score(int(counts[i, i]), int(counts[:, i].sum()), int(counts[i].sum()))
        for i, name in enumerate(SCORE_CLASSES)
    }
    occurring = [score for score in per_label.values() if score.gold or score.predicted]
    of_labels = scores[np.arange(len(labels)), labels].astype(np.float64)
    return {
        "macro_f1": float(np.mean([score.f1 for score in occurring])) if occurring else 0.0,
        "micro_f1": float(np.mean(predicted == labels)) if len(labels) else 0.0,
        "ece": expected_calibration_error(scores.max(1, initial=0.0), predicted == labels),
        "log_loss": float(-np.log(np.maximum(of_labels, np.finfo(np.float32).tiny)).mean()) if len(labels) else 0.0,
        "records": len(labels),
        "per_label": {name: score.to_dict() for name, score in per_label.items()},
        "confusion": {
            name: dict(zip(SCORE_CLASSES, row.tolist(), strict=True))
            for name, row in zip(SCORE_CLASSES, counts, strict=True)
        },
    }


def format_divergence_report(reports: Mapping[str, Mapping[str, Any]], title: str, *, synthetic: bool = False) -> str:
    """Reports of several splits side by side: {name of the split: :func:`divergence_report`}."""
    lines = [title]
    if synthetic:
        lines.append(
            "  ! SYNTHETIC DATA: drawn pictures and generated texts; no figure here says anything about real ones"
        )
    width = max(24, *(len(name) + 2 for name in reports))
    lines.append(" " * 24 + "".join(f"{name:>{width}}" for name in reports))

    def row(name: str, cells: Sequence[str]) -> None:
        lines.append(f"  {name:22}" + "".join(f"{cell:>{width}}" for cell in cells))

    for name, key in (("macro F1", "macro_f1"), ("micro F1 (accuracy)", "micro_f1"), ("calibration error", "ece")):
        row(name, [f"{100 * report[key]:.2f}" for report in reports.values()])
    for label in SCORE_CLASSES:
        row(f"F1 {label}", [f"{100 * report['per_label'][label]['f1']:.2f}" for report in reports.values()])
    for label in SCORE_CLASSES:
        row(
            f"{label} taken for",
            [" ".join(f"{count:6d}" for count in report["confusion"][label].values()) for report in reports.values()],
        )
    row("pairs", [str(report["records"]) for report in reports.values()])
    lines.append(f"  taken for: {', '.join(SCORE_CLASSES)}, in this order")
    return "\n".join(lines)
