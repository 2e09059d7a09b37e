"""Objects that a detector found in the post's picture: their labels and their features (OCSGA, MEGA, VisualBERT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from tmrjax.files import DataError
from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.inputs.vocabulary import EMPTY, UNKNOWN, Vocabulary
from tmrjax.records import Record
from tmrjax.records.arrays import ArrayRows

SIDE = "objects"


@dataclasses.dataclass(frozen=True)
class Objects(Input):
    """The first ``limit`` objects of a post, the surest first.

    ``object_mask`` [B, O]; with ``labels`` ``object_ids`` [B, O], 0 for padding and 1 for a label that training does
    not show; with ``features`` ``object_features`` [B, O, F].

    A record has them as ``sides["objects"]``: {"labels": [text], "scores": [number], "boxes": [box], "rows": [start,
    end] of ``arrays/object_features.npy`` or null}; a post to predict may have "features", lists of F numbers, instead
    of "rows". A post without a picture, or in whose picture nothing was found, has no object.

    Attributes:
        limit: O.
        labels, features: what is read of an object.
        vocabulary: of labels, fitted.
        width: F, found on the training records.
    """

    limit: int = 10
    labels: bool = False
    features: bool = False
    vocabulary: Vocabulary = EMPTY
    width: int = 0
    name: ClassVar[str] = "objects"
    # The method's parameter that word vectors fill, where there are some.
    table: ClassVar[str] = "object_embeddings"

    def check(self, records: Sequence[Record]) -> str | None:
        """Some record has an object, and features where they are asked for."""
        found = [record.sides[SIDE] for record in records if SIDE in record.sides]
        if not any(side.get("labels") for side in found):
            return (
                "no record has objects: run data_prep/import_objects.py on a detector's output, or "
                "data_prep/ground_regions.py"
            )
        if self.features and not any(side.get("rows") or side.get("features") for side in found):
            return "no object has features: run data_prep/import_objects.py --features on a detector that gives them"
        return None

    def lacking(self, record: Record) -> tuple[str, ...]:
        """ "objects", where nobody looked for them."""
        return () if SIDE in record.sides else ("objects",)

    def fit(self, records: Iterable[Record]) -> Self:
        """With the labels and the width of features in the training records."""
        sides = [_side(record) for record in records]
        labels = (label for side in sides for label in side.get("labels", ())[: self.limit])
        widths = (_features(side).shape[1] for side in sides if self.features and side.get("labels"))
        return dataclasses.replace(self, vocabulary=Vocabulary.of(labels, 1), width=next(widths, 0))

    def sizes(self) -> Mapping[str, int]:
        """``num_objects`` and ``object_size``."""
        return {"num_objects": len(self.vocabulary), "object_size": self.width}

    def to_meta(self) -> dict[str, Any]:
        """Labels and width."""
        return {"labels": list(self.vocabulary.entries), "width": self.width}

    def from_meta(self, meta: Any) -> Self:
        """Of a checkpoint."""
        return dataclasses.replace(self, vocabulary=Vocabulary(tuple(meta["labels"])), width=meta["width"])

    def encode(self, record: Record, pieces: Any, reading: Reading) -> Mapping[str, Any]:
        """The indices of the labels; raises DataError for a side of another form."""
        side = _side(record)
        labels = side.get("labels", ())[: self.limit]
        return {"object_ids": [self.vocabulary.indices.get(label, UNKNOWN) for label in labels]}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        spec: Spec = {"object_mask": ((self.limit,), bool)}
        if self.labels:
            spec["object_ids"] = ((self.limit,), np.int32)
        if self.features:
            spec["object_features"] = ((self.limit, self.width), np.float32)
        return spec

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Of one post; features are read from the disk here."""
        ids = example.values["object_ids"]
        values: dict[str, Any] = {"object_mask": [True] * len(ids)}
        if self.labels:
            values["object_ids"] = ids
        if self.features and ids:
            features = _features(example.record.sides[SIDE])[: self.limit]
            if features.shape != (len(ids), self.width):
                raise DataError(
                    f"record {example.record.id}", f"object features {list(features.shape)}",
                    f"{[len(ids), self.width]}: one row an object, as wide as in training",
                    "Import the objects of one detector for all posts.",
                )  # fmt: skip
            values["object_features"] = features
        return values


def _side(record: Record) -> Mapping[str, Any]:
    """The objects of a record, checked; empty where it has none."""
    side = record.sides.get(SIDE, {})
    labels = side.get("labels", []) if isinstance(side, Mapping) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise DataError(
            f"record {record.id}", f"{str(side)[:80]!r} in 'sides.objects'", "an object with a list of 'labels'",
            "Run data_prep/import_objects.py again.",
        )  # fmt: skip
    return side


def _features(side: Mapping[str, Any]) -> np.ndarray:
    """[objects, F] of a side; [objects, 0] where it has none."""
    rows = side.get("rows")
    if isinstance(rows, ArrayRows):
        return rows.load()
    features = np.asarray(side.get("features") or [[]] * len(side.get("labels", ())), np.float32)
    return features if features.ndim == 2 else features.reshape(len(features), -1)
