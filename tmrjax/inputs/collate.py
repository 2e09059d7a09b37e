"""From examples to batches: the keys that a method's inputs name, and nothing else.

The order of a run is a pure function of (seed, step), so the position of a run is one number, the step, which any
number of workers can resume from (:mod:`tmrjax.inputs.batching`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tmrjax.inputs.base import Example, Input, Reading
from tmrjax.inputs.batching import BatchPlan, PlannedBatches
from tmrjax.inputs.packing import INDEX, Packing
from tmrjax.inputs.pictures import Pictures
from tmrjax.records import Record

SECOND = "second_"  # what the keys of a second stream begin with


@dataclasses.dataclass(frozen=True)
class Collator:
    """Puts examples into one batch; pickles.

    Attributes:
        inputs: of the method and the task.
        reading: without a tokenizer, which is used up by now.
    """

    inputs: tuple[Input, ...]
    reading: Reading

    def __call__(self, examples: Sequence[Example | None], length: int) -> dict[str, Any]:
        """One batch; ``None`` is a row of padding, with every mask False.

        ``row_mask`` [B] is False for such rows.
        """
        rows, batch = len(examples), {}
        for one in self.inputs:
            batch |= {key: _zeros(shape, rows) for key, shape in one.spec(length, self.reading).items()}
        batch["row_mask"] = np.array([example is not None for example in examples])
        present = [(row, example) for row, example in enumerate(examples) if example is not None]
        for one in self.inputs:
            found = self._map_for(one)(lambda example, one=one: one.row(example, self.reading), [e for _, e in present])
            for (row, _), values in zip(present, found, strict=True):
                for key, value in values.items():
                    _fill(batch[key], row, value)
        return batch

    def _map_for(self, one: Input) -> Callable:
        """How the rows of an input are made: in the source's threads where pictures are decoded, else one by one."""
        pool = self.reading.pictures.pool if isinstance(one, Pictures) else None
        return map if pool is None else pool.map


def _zeros(spec: Any, rows: int) -> Any:
    """An array for ``rows`` rows, or a tuple of arrays for a key that holds several."""
    if isinstance(spec, list):
        return tuple(_zeros(part, rows) for part in spec)
    shape, dtype = spec
    return np.zeros((rows, *shape), dtype)


def _fill(array: Any, row: int, value: Any) -> None:
    """Put a value into the leading corner of a row."""
    if isinstance(array, tuple):
        for part, content in zip(array, value, strict=True):
            _fill(part, row, content)
    elif isinstance(value, np.ndarray):
        array[(row, *(slice(0, size) for size in value.shape))] = value
    elif isinstance(value, list) or np.ndim(value):
        array[row, : len(value)] = value
    else:
        array[row] = value


@dataclasses.dataclass(frozen=True)
class Batches(PlannedBatches):
    """An epoch-spanning stream of batches of one process; pickles, so that grain's worker processes can build it.

    ``packing``: how ``picture_index`` is made; None for batches whose pictures are all encoded, or none.
    """

    examples: Sequence[Any]
    plan: BatchPlan
    collate: Callable[[Sequence[Any], int], Mapping[str, np.ndarray]]
    process_index: int = 0
    process_count: int = 1
    second: PlannedBatches | None = None
    packing: Packing | None = None

    def __getitem__(self, step: int) -> tuple[np.ndarray, Mapping[str, Any]]:
        """The batch of a step; with the step's batch of the second stream, if there is one, under ``second_...``."""
        indices, batch = super().__getitem__(step)
        if self.packing is not None:
            examples = [self.examples[i] if i >= 0 else None for i in indices]
            index = self.packing.index(examples, self.process_index, self.process_count)
            batch = batch if index is None else {**batch, INDEX: index}
        if self.second is None:
            return indices, batch
        _, further = self.second[int(step) % len(self.second)]
        return indices, {**batch, **{f"{SECOND}{key}": value for key, value in further.items()}}

    def load(self, bucket: int, indices: Sequence[int]) -> Mapping[str, np.ndarray]:
        """The batch of these examples, -1 for a row of padding, with `bucket` word pieces."""
        return self.collate([self.examples[i] if i >= 0 else None for i in indices], bucket)


def sample_fraction(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """A share of the records without replacement, in their order: the paper's low-resource setting (§4.4)."""
    if not 0 < fraction <= 1:
        raise ValueError(f"data.fraction must lie in (0, 1], found {fraction}")
    count = max(1, round(fraction * len(records)))
    chosen = np.random.default_rng(seed).choice(len(records), count, replace=False)
    return [records[i] for i in sorted(chosen)]
