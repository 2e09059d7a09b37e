"""What a run found, as JSON and as a table that says which F1 it shows and what its data were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tmrjax.inputs.lost import unknown_warning
from tmrjax.records import DatasetInfo
from tmrjax.tasks.metrics import entity_scores, relation_scores

MARKS = {
    "synthetic": ("SYNTHETIC DATA: drawn pictures and generated posts; no figure here says anything about real ones"),
    "leaky_phrases": "LEAKY PHRASES: the phrases hold words that are not in the text and tell labels",
    "leaky_regions": "LEAKY REGIONS: the regions were made with the labels; how many there are tells them",
}


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


def relation_report(gold: Sequence[str], predicted: Sequence[str], relations: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support without ``None``, micro and per relation, accuracy with it, and confusions.

    ``confusion`` maps gold to predicted to a count, in the order of ``relations``, zeros left out.
    """
    micro, per_label = relation_scores(gold, predicted)
    pairs = Counter(zip(gold, predicted, strict=True))
    counts = {wanted: {found: pairs[wanted, found] for found in relations} for wanted in relations}
    confusion = {
        wanted: {found: count for found, count in row.items() if count}
        for wanted, row in counts.items()
        if any(row.values())
    }
    right = sum(count for (wanted, found), count in pairs.items() if wanted == found)
    return {
        **micro.to_dict(),
        "records": len(gold),
        "accuracy": right / len(gold) if gold else 0.0,
        "per_label": {label: per_label[label].to_dict() for label in relations if label in per_label},
        "confusion": confusion,
    }


def warnings_of(info: DatasetInfo) -> list[str]:
    """Marks that every figure from this data set carries."""
    return marks_of({name: getattr(info, name) for name in MARKS})


def marks_of(data: Mapping[str, Any]) -> list[str]:
    """The same of a report's ``data``."""
    return [mark for name, mark in MARKS.items() if data.get(name)]


def format_report(
    task: str, report: Mapping[str, Any], title: str, info: DatasetInfo, version: str | None = None
) -> str:
    """The table of :func:`entity_report` or :func:`relation_report` under a title and the data set's marks.

    version: of the labels that it was scored against, see :func:`tmrjax.records.label_versions.label_version`.
    """
    name, last_lines = {"ner": ("strict IOB2", _lenient_lines), "re": ("without None", _confusion_lines)}[task]
    labels = ["micro, lenient", name, *report["per_label"]]
    width = max(map(len, labels))
    labels_line = [f"  labels: {version}"] if version else []
    lines = [title, *labels_line, *(f"  ! {mark}" for mark in [*warnings_of(info), *_lost_words(report)])]
    lines.append(f"  {name:<{width}}  precision  recall      F1  support")
    for label, row in [*report["per_label"].items(), ("micro", report)]:
        values = f"{100 * row['precision']:9.2f} {100 * row['recall']:7.2f} {100 * row['f1']:7.2f} {row['support']:8d}"
        lines.append(f"  {label:<{width}}  {values}")
    return "\n".join(lines + last_lines(report, width))


def _lost_words(report: Mapping[str, Any]) -> list[str]:
    """What the encoder did not get of the words; nothing for a report without these counts."""
    counts = report.get("words")
    if counts is None:
        return []
    marks = [unknown_warning(counts["words"], counts["unknown"])]
    if counts["unread"]:
        marks.append(f"{counts['unread']} of {counts['words']} words lie outside of the limit and were not read")
    return [mark for mark in marks if mark]


def _lenient_lines(report: Mapping[str, Any], width: int) -> list[str]:
    lenient = f"{'':9} {'':7} {100 * report['lenient_f1']:7.2f} {report['lenient_support']:8d}"
    return [
        f"  {'micro, lenient':<{width}}  {lenient}",
        "  lenient: an I- without a beginning opens an entity (seqeval's default); compare like with like",
    ]


def _confusion_lines(report: Mapping[str, Any], width: int) -> list[str]:
    """Accuracy and the five most frequent confusions."""
    mistakes = [
        (count, wanted, found)
        for wanted, row in report["confusion"].items()
        for found, count in row.items()
        if wanted != found
    ]
    lines = [
        f"  {'accuracy, with None':<{width}}  {'':9} {'':7} {100 * report['accuracy']:7.2f} {report['records']:8d}"
    ]
    lines += [
        f"  {count} x {wanted} taken for {found}" for count, wanted, found in sorted(mistakes, key=lambda m: -m[0])[:5]
    ]
    return lines
