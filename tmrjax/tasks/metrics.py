"""How well entities and relations were found (§4.1): micro precision, recall and F1, each said by its name.

Counts are added over the whole set and divided once; an average over batches would depend on the batch size.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from tmrjax.records.schema import NO_RELATION
from tmrjax.text.tags import spans_from_tags


@dataclasses.dataclass(frozen=True)
class Score:
    """Precision, recall and F1 of counted decisions; 0 where nothing was found or nothing was to be found."""

    correct: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        """Share of the predicted that is right."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold that was found."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """2 P R / (P + R) = 2 correct / (predicted + gold)."""
        return 2 * self.correct / (self.predicted + self.gold) if self.correct else 0.0

    def to_dict(self) -> dict[str, float | int]:
        """For report.json."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1, "support": self.gold}


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, strict: bool
) -> tuple[Score, dict[str, Score]]:
    """Micro score over all entities, and one score per entity type.

    An entity counts when its first word, last word and type are all right. strict and lenient differ in what an
    orphan I- is, in gold and prediction alike: see :func:`tmrjax.text.tags.spans_from_tags`. Equal to seqeval's
    ``mode="strict", scheme=IOB2`` and to its default.

    Raises ValueError where the numbers of posts or of words differ.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} posts with gold tags, but {len(predicted)} with predicted ones")
    correct, found, wanted = Counter(), Counter(), Counter()
    for post, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted, strict=True)):
        if len(gold_tags) != len(predicted_tags):
            raise ValueError(f"post {post}: {len(gold_tags)} gold tags, but {len(predicted_tags)} predicted ones")
        gold_spans = set(spans_from_tags(gold_tags, strict=strict))
        predicted_spans = set(spans_from_tags(predicted_tags, strict=strict))
        wanted.update(span.label for span in gold_spans)
        found.update(span.label for span in predicted_spans)
        correct.update(span.label for span in gold_spans & predicted_spans)
    labels = sorted(set(wanted) | set(found))
    per_label = {label: Score(correct[label], found[label], wanted[label]) for label in labels}
    return _sum(per_label.values()), per_label


def relation_scores(gold: Sequence[str], predicted: Sequence[str]) -> tuple[Score, dict[str, Score]]:
    """Micro score over all relations but ``None``, and one score per relation that occurs.

    A prediction counts where it is the gold relation; ``None`` is no relation: predicting it finds nothing, and a
    relation predicted where gold is ``None`` is wrong. Micro F1 = 2 correct / (predicted + gold), as in MNRE's
    papers.

    Raises ValueError where the numbers differ.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold relations, but {len(predicted)} predicted ones")
    wanted, found = Counter(gold), Counter(predicted)
    correct = Counter(relation for relation, other in zip(gold, predicted, strict=True) if relation == other)
    relations = sorted((wanted | found).keys() - {NO_RELATION})
    per_relation = {name: Score(correct[name], found[name], wanted[name]) for name in relations}
    return _sum(per_relation.values()), per_relation


def _sum(scores: Iterable[Score]) -> Score:
    counts = [(score.correct, score.predicted, score.gold) for score in scores]
    return Score(*map(sum, zip(*counts, strict=True))) if counts else Score(0, 0, 0)
