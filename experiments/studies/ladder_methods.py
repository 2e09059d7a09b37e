"""MTB with what the released files of MNRE tell beside the text, and no picture: rows of the study mnre_ladder.

    g = [T_head; T_tail; phrase part] (2d, with phrases 3d),  logits = [dropout(g); s] W + b

The phrase part is the mean of the phrases' states, as in :class:`tmrjax.methods.tmr.RelationTMR`. s is one number a
post: +10 where the released list of crops has a third entry, -10 where it has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from tmrjax.encoders.dropout import Dropout
from tmrjax.files import DataError
from tmrjax.fusion import pool_phrases
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.phrases import Phrases
from tmrjax.methods.base import Batch, at_markers
from tmrjax.methods.mtb import MTB
from tmrjax.records import Record

SIDE = "crops"
SCALE = 10.0  # of s; entries of T are of the size of 1, and s shall count from the first step
THIRD = 3


@dataclasses.dataclass(frozen=True)
class ThirdCrop(Input):
    """``third_crop`` [B]: +10 where ``sides["crops"]``, the number of released crops, is 3 or more, else -10."""

    name: ClassVar[str] = "third_crop"

    def check(self, records: Sequence[Record]) -> str | None:
        """Every record has the number."""
        lacking = sum(SIDE not in record.sides for record in records)
        if not lacking:
            return None
        return (
            f"{lacking} of {len(records)} records have no number of crops ('sides.{SIDE}'): take a set of "
            "data_prep/make_ladder.py that has it, such as mnre-crop-count"
        )

    def encode(self, record: Record, pieces: Any, reading: Reading) -> Mapping[str, Any]:
        """Raises DataError for a record without the number: what stands for none would be taken for two crops."""
        number = record.sides.get(SIDE)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise DataError(
                f"record {record.id}", f"{number!r} as 'sides.{SIDE}'", "the number of released crops, 0 or more",
                "Take a set of data_prep/make_ladder.py that has it, such as mnre-crop-count.",
            )  # fmt: skip
        return {"third_crop": SCALE if number >= THIRD else -SCALE}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {"third_crop": ((), np.float32)}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Of one post."""
        return {"third_crop": example.values["third_crop"]}


class ToldMTB(MTB, kw_only=True):
    """See the module.

    Attributes:
        use_phrases: the phrase part.
        use_crops: s.
    """

    use_phrases: bool = False
    use_crops: bool = False

    @property
    def inputs(self) -> tuple[Input, ...]:
        """MTB's, and what the options ask for."""
        return (Marked(), *((Phrases(),) if self.use_phrases else ()), *((ThirdCrop(),) if self.use_crops else ()))

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states: "text_states" [B, T, D], "representation" (g before dropout, without s)."""
        texts = [(batch["input_ids"], batch["attention_mask"])]
        if self.use_phrases:
            texts.append((batch["phrase_ids"], batch["phrase_mask"]))
        text, *phrases = self.read_texts(*texts, train=train)
        parts = [at_markers(text, batch)]
        parts += [pool_phrases(states, batch["phrase_mask"].astype(bool), literal=False) for states in phrases]
        representation = jnp.concatenate(parts, axis=-1)
        told = Dropout(self.dropout)(representation, deterministic=not train)
        if self.use_crops:
            told = jnp.concatenate([told, batch["third_crop"][:, None].astype(told.dtype)], axis=-1)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(told)
        return Outputs(logits, states={"text_states": text, "representation": representation})
