"""A method with all it needs to read posts: labels, tokenizer, inputs, sizes. What training evaluates and prediction
restores.

One class per task: :class:`tmrjax.tasks.entities.Tagger` and :class:`tmrjax.tasks.relations.RelationClassifier`.
:meth:`System.to_meta` is the JSON object of a checkpoint, :meth:`System.from_meta` its inverse: evaluation and
prediction read nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from tmrjax.files import DataError
from tmrjax.inputs.base import Example, Input, Reading, TextInput, encode_records
from tmrjax.inputs.batching import BatchPlan
from tmrjax.inputs.collate import SECOND, Batches, Collator
from tmrjax.inputs.lost import say_what_is_lost
from tmrjax.inputs.pictures import PictureSource, normalised
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods import name_of
from tmrjax.methods.base import Method, method_to_dict
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Record
from tmrjax.tasks.calibration import log_loss, outcomes
from tmrjax.tasks.meta import fields_from_meta, method_meta
from tmrjax.tasks.sources import PictureSources
from tmrjax.text.tokenizers import tokenizer_to_json
from tmrjax.training.sharding import shard_batch
from tmrjax.training.step import Head, Loss, make_loss, make_predict_step

logger = logging.getLogger(__name__)
# Lengths that text alone is padded to when it is read: a third above another at most, short posts closer. More of them
# would spare little padding, and each costs its share of a second in every process that meets it.
READING_LENGTHS = (16, 24, 32, 40, 56, 80, 112, 160, 224, 320, 448)
# From a quarter to four, six to the octave; 1 is one of them.
TEMPERATURES = tuple(2 ** (step / 6) for step in range(-12, 13))


@dataclasses.dataclass(frozen=True)
class System(PictureSources):
    """See the module. The methods that raise NotImplementedError here are the task's.

    Attributes:
        method: without weights.
        labels: entity types or relations, in the order of ``dataset.json``.
        tokenizer: a fast tokenizer of transformers; None for a method without word pieces.
        text, pictures: how a post is turned into arrays.
        buckets: lengths in word pieces that batches are padded to; each is compiled once.
        fitted: the method's inputs with the vocabularies that they learned; as the method lists them unless given.
        encoders: where the encoders' weights came from: by "text" and "picture", name and revision.
        temperature: T > 0 that scores are divided by before they become probabilities (Guo et al. 2017); what is
            predicted stays the same. Of no checkpoint's JSON: it is fitted when training is over.
    """

    method: Method
    labels: tuple[str, ...]
    tokenizer: Any
    text: TextSettings
    pictures: PictureSettings
    buckets: tuple[int, ...]
    fitted: tuple[Input, ...] = ()
    encoders: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    temperature: float = 1.0

    task: ClassVar[str]

    def __post_init__(self):
        if self.method.task != self.task:
            raise ValueError(f"a method for {self.method.task!r} cannot be trained for {self.task!r}")
        if not self.fitted:
            object.__setattr__(self, "fitted", self.method.inputs)
        if not isinstance(self.fitted[0], TextInput):
            raise ValueError(f"the first input of {name_of(self.method)} is {self.fitted[0]}; expected a text input")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a number above 0")
        if max(self.buckets) < self.text.max_pieces:
            raise ValueError(f"the longest bucket {max(self.buckets)} is below max_pieces {self.text.max_pieces}")

    # ------------------------------------------------------------------ the task's

    @property
    def head(self) -> Head:
        """What reads the method's scores."""
        raise NotImplementedError

    @property
    def gold(self) -> Input:
        """The input of gold labels."""
        raise NotImplementedError

    def training_rows(self, examples: Sequence[Example]) -> list[Example]:
        """What batches of training are made of: the examples, or the windows of those that are too long for one."""
        return list(examples)

    def rows(self, example: Example) -> list[Example]:
        """The rows of a batch that :meth:`predict` reads an example in."""
        return [example]

    def _scores(self, output: Any, rows: Mapping[int, Example]) -> dict[int, np.ndarray]:
        """What rows that are windows hold for the words that they own."""
        raise NotImplementedError

    def _joined(self, output: Any, scores: Sequence[np.ndarray]) -> Any:
        """The step's output for one post from the scores of its windows; for :meth:`_decode`."""
        raise NotImplementedError

    def report(self, examples: Sequence[Example], predictions: Sequence[Any]) -> dict[str, Any]:
        """Scores of predictions against the records' labels."""
        raise NotImplementedError

    def prediction_rows(self, examples: Sequence[Example], predictions: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """One JSON object a post for comparisons: id, tokens, gold, predicted and its probability."""
        raise NotImplementedError

    def _decode(self, output: Any, rows: Mapping[int, Example], *, probabilities: bool) -> dict[int, Any]:
        """Predictions of the rows of one batch from the step's output."""
        raise NotImplementedError

    # ------------------------------------------------------------------ checkpoints

    def to_meta(self) -> dict[str, Any]:
        """As JSON, the tokenizer and the vocabularies included."""
        return {
            "task": self.task,
            "method": method_meta(self.method),
            "model": method_to_dict(self.method),
            "vocabularies": {one.name: one.to_meta() for one in self.fitted if one.to_meta() is not None},
            "labels": list(self.labels),
            "tokenizer": None if self.tokenizer is None else tokenizer_to_json(self.tokenizer),
            "text": dataclasses.asdict(self.text),
            "pictures": dataclasses.asdict(self.pictures),
            "buckets": list(self.buckets),
            "encoders": dict(self.encoders),
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], **fields: Any) -> System:
        """The system of a checkpoint's JSON; ``fields`` are those of a subclass."""
        return cls(**fields_from_meta(cls.task, meta), **fields)

    # ------------------------------------------------------------------ data

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The method's inputs as fitted, and the gold labels."""
        return (*self.fitted, self.gold)

    def encode(self, records: Sequence[Record], *, say: str | None = "posts") -> list[Example]:
        """Records as integers, one example each. What the encoder does not get is logged under the name ``say``.

        Raises:
            PairDistanceError: head and tail of a record do not fit into one window.
            ValueError: an unknown label, or a vocabulary without markers.
        """
        examples = encode_records(records, self.inputs, Reading(self.tokenizer, self.text))
        if say:
            say_what_is_lost(examples, self.text, say)
        return examples

    def collator(self, pictures: PictureSource | None) -> Collator:
        """Makes batches of this system's examples, with the keys that the method's inputs name."""
        return Collator(self.inputs, Reading(None, self.text, pictures))

    def second_batches(
        self, records: Sequence[Record], pictures: PictureSource | None, *, batch_size: int, epochs: int, seed: int
    ) -> Batches:
        """Batches of the method's second stream (:attr:`tmrjax.methods.base.Method.second`), all of one length."""
        inputs = self.method.second
        lacks = [sentence for one in inputs if (sentence := one.check(records))]
        if lacks:
            raise ValueError("; ".join(lacks))
        text = dataclasses.replace(self.text, windows=False)  # a post is one row, long ones are cut
        examples = encode_records(records, inputs, Reading(self.tokenizer, text))
        say_what_is_lost(examples, text, "the second stream")
        lengths = [len(example.pieces.input_ids) for example in examples]
        longest = min(bucket for bucket in self.buckets if bucket >= max(lengths))
        plan = BatchPlan(lengths, (longest,), batch_size, epochs=epochs, seed=seed)
        collator = Collator(inputs, Reading(None, self.text, pictures))
        return Batches(examples, plan, collator, jax.process_index(), jax.process_count())

    def check(self, records: Sequence[Record], where: Any) -> None:
        """Raise DataError, naming ``where``, for inputs of the method that no training record has."""
        lacks = [sentence for one in self.fitted if (sentence := one.check(records))]
        if lacks:
            name = name_of(self.method)
            raise DataError(
                where, "; ".join(lacks), f"the inputs that the method {name} asks for",
                "Prepare them, or take another method with --config.method.",
            )  # fmt: skip

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as the method takes it: uint8 pixels are normalised, which is left for the device."""
        return normalised(batch, self.pictures, ("", "generated_", SECOND))

    def dummy_batch(self) -> dict[str, Any]:
        """One row with every key in its right shape, pictures as pixels: to initialise or trace the method with."""
        batch = self.prepare(self.collator(self.pixels(Path()))([None], min(self.buckets)))
        return batch | {name: np.ones_like(rows) for name, rows in batch.items() if name.endswith("mask")}

    # ------------------------------------------------------------------ steps

    def loss(self) -> Loss:
        """What training minimises: the head's loss and the method's auxiliary losses."""
        return make_loss(self.method, self.head, self.prepare)

    def predict_step(self, mesh: Mesh) -> Callable[[Any, Mapping[str, Any]], dict[str, jax.Array]]:
        """The compiled step for :meth:`predict`; make it once and reuse it."""
        return make_predict_step(self.method, self.head, mesh, self.prepare)

    # ------------------------------------------------------------------ prediction

    @property
    def reading_lengths(self) -> tuple[int, ...]:
        """Lengths that :meth:`predict` pads to: READING_LENGTHS, or two of ``buckets`` where pixels are read.

        Pixels cost so much more than text that padding does not matter, and their programs take long to compile. A
        system with one bucket depends on it, as the released code does, and keeps it.
        """
        longest = max(self.buckets)
        if len(self.buckets) == 1:
            return self.buckets
        if self.method.pictures is not None:
            return tuple(sorted({min(length for length in self.buckets if 2 * length >= longest), longest}))
        return (*(length for length in READING_LENGTHS if length < longest), longest)

    def predict(self, *arguments: Any, **options: Any) -> list[Any]:
        """The predictions of :meth:`predict_as` for this system alone; arguments are those behind ``views``."""
        (found,) = self.predict_as((self,), *arguments, **options)
        return found

    def predict_as(
        self,
        views: Sequence[System],
        step: Callable,
        variables: Mapping[str, Any],
        examples: Sequence[Example],
        pictures: PictureSource | None,
        mesh: Mesh,
        *,
        batch_size: int,
        num_threads: int = 2,
        num_workers: int = 0,
        probabilities: bool = False,
        progress: Callable[[Iterator, int], Iterator] = lambda batches, _: batches,
    ) -> list[list[Any]]:
        """Read posts in the order of ``examples``; no post is dropped, whatever the batch size is.

        A post that is read in windows becomes several rows; its prediction is made of all of them together.
        ``views``: systems that differ from this one by how they decode; posts are read once for all, each has its list
        of predictions. A batch has ``batch_size`` rows, or fewer where there are not so many: 1, 4, 16, 64, ... Each
        size with each of :attr:`reading_lengths` is a program to compile. ``progress`` wraps the iterator of batches,
        given their number. ``num_threads``, ``num_workers``: see
        :meth:`tmrjax.inputs.batching.PlannedBatches.iterate`; for text alone there is no thread.

        A batch is decoded after the next one has been handed to the devices, which so never wait for the host.
        """
        results: list[list[Any]] = [[None] * len(examples) for _ in views]
        if not examples:
            return results
        rows, owners, waiting = [], [], []
        for owner, example in enumerate(examples):
            parts = self.rows(example)
            rows += parts
            owners += [(owner, number) for number in range(len(parts))]
            waiting.append([None] * len(parts))

        def decode(output: Any, given: Mapping[int, Example], owner_of: Mapping[int, int]) -> None:
            for view, found in zip(views, results, strict=True):
                for row, prediction in view._decode(output, given, probabilities=probabilities).items():
                    found[owner_of[row]] = prediction

        size = min(batch_size, rows_for(len(rows), mesh.size))
        plan = BatchPlan([len(row.pieces.input_ids) for row in rows], self.reading_lengths, size)
        packing = self.packing(pictures, mesh)
        batches = Batches(
            rows, plan, self.collator(pictures), jax.process_index(), jax.process_count(), packing=packing
        )

        def finish(indices: np.ndarray, output: Any) -> None:
            present = {row: index for row, index in enumerate(indices) if index >= 0}
            whole = {row: rows[index] for row, index in present.items() if len(waiting[owners[index][0]]) == 1}
            decode(output, whole, {row: owners[present[row]][0] for row in whole})
            windows = {row: rows[index] for row, index in present.items() if row not in whole}
            for row, scores in self._scores(output, windows).items() if windows else ():
                owner, number = owners[present[row]]
                waiting[owner][number] = scores
                if all(part is not None for part in waiting[owner]):
                    joined, waiting[owner] = self._joined(output, waiting[owner]), [None] * len(waiting[owner])
                    decode(joined, {0: examples[owner]}, {0: owner})

        # Rows of text are made faster than a thread is woken.
        threads, workers = (num_threads, num_workers) if pictures else (0, 0)
        stream = batches.iterate(num_threads=threads, num_workers=workers, place=lambda batch: shard_batch(batch, mesh))
        late = None
        with contextlib.closing(stream):
            for indices, batch in progress(stream, len(batches)):
                output = step(variables, batch)
                if late is not None:
                    finish(*late)
                late = indices, output
        finish(*late)
        return results

    def fit_temperature(
        self, step: Callable, variables: Mapping[str, Any], examples: Sequence[Example], *arguments: Any, **options: Any
    ) -> tuple[float, dict[float, list[Any]]]:
        """(the temperature of TEMPERATURES at which answers have the least log loss, the predictions at each of them).

        Arguments are those of :meth:`predict`; examples, dev's, have gold labels. 1 where nothing is predicted.
        """
        views = [dataclasses.replace(self, temperature=one) for one in TEMPERATURES]
        found = self.predict_as(views, step, variables, examples, *arguments, probabilities=True, **options)
        at = dict(zip(TEMPERATURES, found, strict=True))
        answers = {one: outcomes(self.prediction_rows(examples, given), self.task) for one, given in at.items()}
        if not len(answers[1.0][0]):
            return 1.0, at
        return min(TEMPERATURES, key=lambda one: log_loss(*answers[one])), at


def rows_for(posts: int, devices: int) -> int:
    """How many rows a batch of so many posts has: 1, 4, 16, 64, ..., the same on each device."""
    rows = 1
    while rows * devices < posts:
        rows *= 4
    return rows * devices
