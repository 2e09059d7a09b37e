"""Relations: a method with all it needs to name the relation of two entities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tmrjax.heads.relation_head import RelationHead
from tmrjax.inputs.base import Example
from tmrjax.inputs.labels import Relation
from tmrjax.inputs.lost import count_words
from tmrjax.tasks.report import relation_report
from tmrjax.tasks.system import System


class RelationPrediction(NamedTuple):
    """The most probable relation (the first of equals), its probability, and those of all, the softmax of Eq. 11."""

    relation: str
    probability: float
    distribution: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class RelationClassifier(System):
    """See the module. ``labels`` are relations, ``None`` among them."""

    task: ClassVar[str] = "re"

    def __post_init__(self):
        super().__post_init__()
        if self.method.num_labels != len(self.labels):
            raise ValueError(
                f"the model has {self.method.num_labels} relations, but its relation set {len(self.labels)}: "
                f"{self.labels}"
            )

    @property
    def head(self) -> RelationHead:
        """The softmax."""
        return RelationHead(self.labels)

    @property
    def gold(self) -> Relation:
        """The relation's index."""
        return Relation(self.labels)

    def report(self, examples: Sequence[Example], predictions: Sequence[RelationPrediction]) -> dict[str, Any]:
        """Scores without ``None``, confusion counts (:func:`tmrjax.tasks.report.relation_report`) and counts of
        words."""
        gold = [example.record.relation for example in examples]
        scores = relation_report(gold, [prediction.relation for prediction in predictions], self.labels)
        return scores | {"words": count_words(examples)}

    def prediction_rows(
        self, examples: Sequence[Example], predictions: Sequence[RelationPrediction]
    ) -> Iterator[dict[str, Any]]:
        """{"id", "tokens", "head", "tail", "gold", "gold_probability", "predicted", "probability"}; spans by words."""
        for example, prediction in zip(examples, predictions, strict=True):
            record = example.record
            yield {
                "id": record.id,
                "tokens": list(record.tokens),
                "head": list(record.head),
                "tail": list(record.tail),
                "gold": record.relation,
                "gold_probability": prediction.distribution[self.labels.index(record.relation)],
                "predicted": prediction.relation,
                "probability": prediction.probability,
            }

    def _decode(self, output, rows, *, probabilities: bool) -> dict[int, RelationPrediction]:
        del probabilities  # they are there in any case
        found = np.asarray(output["probabilities"])
        best = found.argmax(-1)
        if self.temperature != 1:  # softmax(z / T) is the softmax of log softmax(z) / T
            scaled = np.log(np.maximum(found, np.finfo(np.float32).tiny)) / self.temperature
            found = np.exp(scaled - scaled.max(-1, keepdims=True))
            found = found / found.sum(-1, keepdims=True)
        return {
            row: RelationPrediction(self.labels[best[row]], float(found[row, best[row]]), tuple(found[row].tolist()))
            for row in rows
        }
