"""Which pictures of a batch are there: the others are not encoded.

A batch has room for every picture that its posts may have, but few posts have them all. ``picture_index`` says where
those that are there stand, so that the encoder reads these alone (:mod:`tmrjax.methods.parts.pictures`). It has few
shapes, for each is compiled: a quarter, a half or three quarters of the room. A batch that needs more has no index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tmrjax.inputs.base import Example
from tmrjax.inputs.pictures import Pictures, slots
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Record
from tmrjax.records.schema import NUM_REGIONS

INDEX = "picture_index"
_SHARES = 4  # sizes that a packed batch may have, the whole one among them


@dataclasses.dataclass(frozen=True)
class Packing:
    """Makes the index of a batch; pickles.

    Rows are packed in groups, for a device must not need the pictures of another: the consecutive rows of each device,
    and of these every ``accumulate``-th where a step adds the gradients of parts (:mod:`tmrjax.training.step`). All
    groups of all processes have one size, that of the fullest, which every process finds in the records.

    Attributes:
        pictures: what the method reads.
        settings: that a picture is left out by.
        devices: of all processes.
        accumulate: parts of a batch.
    """

    pictures: Pictures
    settings: PictureSettings
    devices: int
    accumulate: int = 1

    def present(self, record: Record) -> np.ndarray:
        """[slots]: which pictures and regions a record has, in the order in which they are encoded."""
        found = {
            prefix: len(boxes) for prefix, _, boxes in slots(record, Path(), self.pictures.prefixes, self.settings)
        }
        present: list[bool] = []
        for prefix in self.pictures.prefixes:
            for part in self.pictures.parts:
                if part == "image":
                    present.append(prefix in found)
                else:
                    present += [number < found.get(prefix, 0) for number in range(NUM_REGIONS)]
        return np.array(present)

    def index(self, examples: Sequence[Example | None], process_index: int, process_count: int) -> np.ndarray | None:
        """int32 [groups of this process, pictures]: places among the slots of a group's rows, row by row.

        Filled up with the number of slots, which is no place. None where there is little to leave out.

        Args:
            examples: of the whole batch, None for a row of padding.
            process_index, process_count: whose groups are wanted.
        """
        empty = np.zeros(len(self.present(Record(id="", tokens=()))), bool)
        there = np.stack([empty if example is None else self.present(example.record) for example in examples])
        groups = there.reshape(self.devices, -1, self.accumulate, there.shape[1]).swapaxes(1, 2)
        groups = groups.reshape(self.devices * self.accumulate, -1)
        room = groups.shape[1]
        share = -(-room // _SHARES)
        size = max(1, -(-int(groups.sum(1).max()) // share)) * share
        if size >= room:
            return None
        index = np.full((len(groups), size), room, np.int32)
        for row, places in zip(index, groups, strict=True):
            found = np.flatnonzero(places)
            row[: len(found)] = found
        own = len(index) // process_count
        return index[process_index * own : (process_index + 1) * own]
