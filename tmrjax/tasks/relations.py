"""A model that names the relation of two entities, with all it needs: the reader of RE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tmrjax.inputs.examples import RelationExample, count_words, encode_relations
from tmrjax.models import TMRForRE
from tmrjax.records import Record
from tmrjax.tasks.report import relation_report
from tmrjax.tasks.system import Reader
from tmrjax.training.step import Loss, classification_loss, make_classification_step


class RelationPrediction(NamedTuple):
    """The most probable relation (the first of equals), its probability, and those of all, the softmax of Eq. 11."""

    relation: str
    probability: float
    distribution: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class RelationClassifier(Reader):
    """See the module. ``labels`` are relations, ``None`` among them."""

    model: TMRForRE

    task: ClassVar[str] = "re"
    example_kind: ClassVar[type] = RelationExample

    def __post_init__(self):
        super().__post_init__()
        if self.model.num_relations != len(self.labels):
            raise ValueError(
                f"the model has {self.model.num_relations} relations, but its relation set {len(self.labels)}: "
                f"{self.labels}"
            )

    def _encode(self, records: Sequence[Record]) -> list[RelationExample]:
        """Word pieces with markers, and relations; raises PairDistanceError where both entities do not fit."""
        return encode_relations(records, self.tokenizer, self.labels, self.text)

    def loss(self) -> Loss:
        """Eq. 11."""
        return classification_loss(self.model)

    def predict_step(self, mesh: Mesh) -> Callable[[Any, Mapping[str, Any]], dict[str, jax.Array]]:
        """The compiled step for :meth:`predict`; make it once and reuse it."""
        return make_classification_step(self.model, mesh)

    def report(self, examples: Sequence[RelationExample], predictions: Sequence[RelationPrediction]) -> dict[str, Any]:
        """Scores without ``None``, confusion counts (:func:`tmrjax.tasks.report.relation_report`) and counts of
        words."""
        gold = [example.record.relation for example in examples]
        scores = relation_report(gold, [prediction.relation for prediction in predictions], self.labels)
        return scores | {"words": count_words(examples)}

    def prediction_rows(
        self, examples: Sequence[RelationExample], predictions: Sequence[RelationPrediction]
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
        return {
            row: RelationPrediction(self.labels[best[row]], float(found[row, best[row]]), tuple(found[row].tolist()))
            for row in rows
        }
