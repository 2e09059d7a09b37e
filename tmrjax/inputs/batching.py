"""Which examples form which batch, and a stream of batches from any step on. The only module that imports grain, once
a stream asks for threads: the import takes longer than the reading of a few posts.

The order of a run is a pure function of (seed, step), so the position of a run is one number, the step, which any
number of workers can resume from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


class BatchPlan:
    """Which examples form which batch, at random access: ``plan[step] -> (bucket, indices)``.

    sizes: [N], or [N, K] where an example has several (pieces, height, width); buckets: the shapes that a batch may
    have, numbers or K-tuples. Examples go to the smallest bucket that holds them; what does not fill a batch is moved
    to the next larger bucket, so that an epoch has one incomplete batch at most, filled up with -1. Shuffled by
    (seed, epoch). The largest bucket must hold all the others.
    """

    def __init__(
        self,
        sizes: Sequence[int] | np.ndarray,
        buckets: Sequence[int] | Sequence[tuple[int, ...]],
        batch_size: int,
        *,
        epochs: int = 1,
        seed: int | None = None,
    ):
        if not len(sizes):
            raise ValueError("there is no example to make batches of")
        sizes = np.asarray(sizes).reshape(len(sizes), -1)
        self.buckets = tuple(sorted(buckets, key=lambda bucket: (int(np.prod(bucket)), bucket)))
        self._shapes = np.array(self.buckets).reshape(len(buckets), -1)
        if np.any(self._shapes.max(0) > self._shapes[-1]):
            raise ValueError(f"the largest bucket {self.buckets[-1]} does not hold all of {self.buckets}")
        if np.any(sizes.max(0) > self._shapes[-1]):
            largest = sizes.max(0).tolist()
            if len(largest) == 1:
                raise ValueError(f"an example has {largest[0]} word pieces, but the longest bucket {self.buckets[-1]}")
            raise ValueError(f"examples are as large as {largest}, but the largest bucket {self.buckets[-1]}")
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self._bucket_of = np.full(len(sizes), -1, np.int16)
        for number in reversed(range(len(buckets))):
            self._bucket_of[np.all(sizes <= self._shapes[number], 1)] = number
        self.batches_per_epoch = -(-len(sizes) // batch_size)
        self._epoch: tuple[int, list] | None = None

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __getitem__(self, step: int) -> tuple[Any, np.ndarray]:
        epoch, position = divmod(step, self.batches_per_epoch)
        cached = self._epoch
        if cached is None or cached[0] != epoch:
            cached = self._epoch = (epoch, self._plan(epoch))
        return cached[1][position]

    def _plan(self, epoch: int) -> list[tuple[Any, np.ndarray]]:
        order = np.arange(len(self._bucket_of))
        generator = None if self.seed is None else np.random.default_rng((self.seed, epoch))
        if generator is not None:
            generator.shuffle(order)
        batches, carried = [], [np.zeros(0, int) for _ in self.buckets]
        for number, bucket in enumerate(self.buckets):
            members = np.concatenate([carried[number], order[self._bucket_of[order] == number]])
            full = len(members) // self.batch_size * self.batch_size
            batches += [(bucket, chunk) for chunk in members[:full].reshape(-1, self.batch_size)]
            rest = members[full:]
            if number + 1 < len(self.buckets):
                following = self._smallest(self._shapes[number], number + 1)
                carried[following] = np.concatenate([carried[following], rest])
        if len(rest):
            smallest = self.buckets[self._smallest(self._shapes[self._bucket_of[rest]].max(0), 0)]
            padding = np.full(self.batch_size - len(rest), -1)
            batches.append((smallest, np.concatenate([rest, padding])))
        if generator is not None:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def _smallest(self, shape: np.ndarray, start: int) -> int:
        """The first bucket from `start` on that holds `shape`."""
        return start + int(np.argmax(np.all(shape <= self._shapes[start:], 1)))


class PlannedBatches:
    """A stream of the batches of one process, of any kind of example.

    A subclass is a frozen dataclass with `plan`, `process_index`, `process_count` and the method ``load(bucket,
    indices)``; it pickles, so that grain's worker processes can build it.
    """

    plan: BatchPlan
    process_index: int
    process_count: int

    def __post_init__(self):
        if self.plan.batch_size % self.process_count:
            raise ValueError(f"a batch of {self.plan.batch_size} does not divide into {self.process_count} processes")

    def load(self, bucket: Any, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays of these examples, -1 for a row of padding, in the shape `bucket`."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """The indices of the whole batch, and this process's rows of it."""
        bucket, indices = self.plan[int(step)]
        size = len(indices) // self.process_count
        return indices, self.load(bucket, indices[self.process_index * size : (self.process_index + 1) * size])

    def iterate(
        self,
        start: int = 0,
        *,
        num_threads: int = 2,
        num_workers: int = 0,
        prefetch: int = 4,
        place: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> Iterator:
        """Batches from step ``start`` on, in order, prepared ahead by threads or (``num_workers``) by processes.

        At least ``prefetch`` batches are prepared ahead, and as many as there are threads: each thread makes one.
        Without threads and workers each batch is made when it is asked for. ``place`` is what becomes of each batch,
        such as a copy on the devices: a thread of its own calls it, so that the next batch lies there before it is
        asked for, and one more waits. Close the iterator where it is left before its end.
        """
        if not num_threads and not num_workers:
            return self._when_asked(start, place)
        import grain  # not on top: an exported folder plans its batches without it

        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
        dataset = grain.MapDataset.source(self)[start:].to_iter_dataset(options)
        if num_workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
        if place is not None:
            placed = dataset.map(lambda found: (found[0], place(found[1])))
            dataset = grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=1)
        return iter(dataset)

    def _when_asked(self, start: int, place: Callable[[Mapping[str, Any]], Any] | None) -> Iterator:
        for step in range(start, len(self)):
            indices, batch = self[step]
            yield indices, batch if place is None else place(batch)
