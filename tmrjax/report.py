"""What a run found, as JSON and as a table that says which F1 it shows and what its data were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmrjax.metrics import entity_scores
from tmrjax.models import TMRForNER
from tmrjax.records import DatasetInfo


def entity_report(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Strict IOB2 precision, recall, F1 and support, micro and per entity type, and the lenient F1 beside it."""
    strict, per_label = entity_scores(gold, predicted, strict=True)
    lenient, _ = entity_scores(gold, predicted, strict=False)
    return {
        **strict.to_dict(),
        "lenient_f1": lenient.f1,
        "lenient_support": lenient.gold,
        "per_label": {label: score.to_dict() for label, score in per_label.items()},
    }


def ablation_name(model: TMRForNER) -> str:
    """What was left out, in the paper's words."""
    if model.variant == "text":
        return "text only"
    parts = []
    if not model.use_back_translation:
        parts.append("w/o back-translation")
    if not model.use_scores:
        parts.append("w/o divergence scores")
    if len(model.grains) == 1:
        parts.append(f"{model.grains[0]} only")
    if model.literal:
        parts.append("literal sums")
    return ", ".join(parts) or "none"


def warnings_of(info: DatasetInfo) -> list[str]:
    """Marks that every figure from this data set carries."""
    marks = []
    if info.synthetic:
        marks.append("SYNTHETIC DATA: drawn pictures and generated posts; no figure here says anything about real ones")
    if info.leaky_phrases:
        marks.append("LEAKY PHRASES: the phrases hold words that are not in the text and tell labels")
    return marks


def format_entity_report(report: Mapping[str, Any], title: str, info: DatasetInfo) -> str:
    """The table of :func:`entity_report` under a title."""
    width = max(len("micro, lenient"), *map(len, report["per_label"])) if report["per_label"] else len("micro, lenient")
    lines = [title, *(f"  ! {mark}" for mark in warnings_of(info))]
    lines.append(f"  {'strict IOB2':<{width}}  precision  recall      F1  support")
    rows = [*report["per_label"].items(), ("micro", report)]
    for label, row in rows:
        values = f"{100 * row['precision']:9.2f} {100 * row['recall']:7.2f} {100 * row['f1']:7.2f} {row['support']:8d}"
        lines.append(f"  {label:<{width}}  {values}")
    lenient = f"{'':9} {'':7} {100 * report['lenient_f1']:7.2f} {report['lenient_support']:8d}"
    lines.append(f"  {'micro, lenient':<{width}}  {lenient}")
    lines.append("  lenient: an I- without a beginning opens an entity (seqeval's default); compare like with like")
    return "\n".join(lines)
