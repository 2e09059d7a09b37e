"""The divergence scores of a post (§3.4): α of its picture, α' of the generated one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.records import Record
from tmrjax.records.schema import NEUTRAL_SCORES


@dataclasses.dataclass(frozen=True)
class Scores(Input):
    """``scores`` [B, 3], and ``generated_scores`` where ``generated``; NEUTRAL_SCORES (Eq. 2) for a record without."""

    generated: bool = True
    name: ClassVar[str] = "scores"

    def check(self, records: Sequence[Record]) -> str | None:
        """Some record has scores."""
        if any(record.scores is not None for record in records):
            return None
        return (
            "no record has divergence scores: run data_prep/score_divergence.py, or leave them out with "
            "--config.model.use_scores=False"
        )

    def encode(self, record: Record, pieces: Any, reading: Reading) -> Mapping[str, Any]:
        """α and α' of a record."""
        given = {"scores": record.scores, "generated_scores": record.generated_scores}
        return {key: NEUTRAL_SCORES if value is None else value for key, value in given.items()}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        keys = ("scores", "generated_scores") if self.generated else ("scores",)
        return {key: ((3,), np.float32) for key in keys}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Of one post."""
        keys = self.spec(0, reading)
        return {key: np.asarray(example.values[key], np.float32) for key in keys}
