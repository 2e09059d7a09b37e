"""Kinds of errors: what is wrong with a prediction, and which answers were missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tmrjax.records.schema import NO_RELATION

RIGHT, SPAN, TYPE, SPAN_AND_TYPE, RELATION, MISSED, INVENTED = (
    "right", "span", "type", "span and type", "relation", "missed", "invented",
)  # fmt: skip
# What each task has, in the order that pages show.
KINDS = {"ner": (RIGHT, SPAN, TYPE, SPAN_AND_TYPE, MISSED, INVENTED), "re": (RIGHT, RELATION, MISSED, INVENTED)}
MEANINGS = {
    RIGHT: "as gold",
    SPAN: "overlaps a gold entity of this type, other borders",
    TYPE: "borders of a gold entity, another type",
    SPAN_AND_TYPE: "overlaps gold entities, borders and type differ",
    RELATION: "another relation than gold",
    MISSED: "gold that nothing found answers",
    INVENTED: "found where there is no gold",
}

Span = Mapping[str, Any]  # start, end, label


def entity_errors(gold: Sequence[Span], predicted: Sequence[Span]) -> tuple[list[str], list[int]]:
    """(kind of each predicted entity, indices of the gold entities that are missed).

    A predicted entity is ``right`` if borders and type are those of a gold one. Else it is, the first that holds:
    ``span``, it overlaps a gold entity of its type; ``type``, it has the borders of a gold entity; ``span and type``,
    it overlaps one; ``invented``. A gold entity is ``missed`` if no predicted one overlaps it. So every predicted
    entity has one kind, and a gold one that is neither right nor missed is told of by those that overlap it.
    """
    kinds = [_kind(found, gold) for found in predicted]
    return kinds, [i for i, one in enumerate(gold) if not any(_overlap(one, found) for found in predicted)]


def _kind(found: Span, gold: Sequence[Span]) -> str:
    touched = [one for one in gold if _overlap(one, found)]
    same_borders = [one for one in touched if (one["start"], one["end"]) == (found["start"], found["end"])]
    same_type = [one for one in touched if one["label"] == found["label"]]
    if any(one in same_type for one in same_borders):
        return RIGHT
    if same_type:
        return SPAN
    if same_borders:
        return TYPE
    return SPAN_AND_TYPE if touched else INVENTED


def _overlap(one: Span, other: Span) -> bool:
    return one["start"] < other["end"] and other["start"] < one["end"]


def relation_error(gold: str, predicted: str) -> str | None:
    """``right``, ``relation`` (another one), ``missed``, ``invented``; None where both say that there is none."""
    if gold == predicted:
        return None if gold == NO_RELATION else RIGHT
    if predicted == NO_RELATION:
        return MISSED
    return INVENTED if gold == NO_RELATION else RELATION


def count_errors(rows: Iterable[Mapping[str, Any]], task: str) -> dict[str, int]:
    """How often each of KINDS[task] is in rows of predictions (:meth:`tmrjax.tasks.system.System.prediction_rows`)."""
    counts: Counter[str | None] = Counter()
    for row in rows:
        if task == "ner":
            kinds, missed = entity_errors(row["gold"], row["predicted"])
            counts.update([*kinds, *[MISSED] * len(missed)])
        else:
            counts[relation_error(row["gold"], row["predicted"])] += 1
    return {kind: counts[kind] for kind in KINDS[task]}
