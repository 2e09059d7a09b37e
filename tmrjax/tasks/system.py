"""A model with all it needs to read posts: labels, tokenizer, sizes. What training evaluates and prediction restores.

One class per task: :class:`tmrjax.tasks.entities.Tagger` and :class:`tmrjax.tasks.relations.RelationClassifier`.
:meth:`Reader.to_meta` is the JSON object of a checkpoint, :meth:`Reader.from_meta` its inverse: evaluation and
prediction read nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tmrjax.encoders.picture.resnet import ResNetEncoder
from tmrjax.inputs.collate import (
    Batches,
    BatchPlan,
    Collator,
    Example,
    FeatureSource,
    PictureSource,
    PixelSource,
    picture_requests,
)
from tmrjax.inputs.examples import TextSettings, say_what_is_lost
from tmrjax.models import TMR, model_from_dict, model_to_dict
from tmrjax.pictures.cache import FeatureCache
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Record
from tmrjax.text.tokenizers import tokenizer_from_json, tokenizer_to_json
from tmrjax.training.sharding import shard_batch
from tmrjax.training.step import Loss

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reader:
    """See the module. The methods that raise NotImplementedError here are the task's.

    Attributes:
        model: without weights.
        labels: entity types or relations, in the order of ``dataset.json``.
        tokenizer: a fast tokenizer of transformers.
        text, pictures: how a post is turned into arrays.
        buckets: lengths in word pieces that batches are padded to; each is compiled once.
    """

    model: TMR
    labels: tuple[str, ...]
    tokenizer: Any
    text: TextSettings
    pictures: PictureSettings
    buckets: tuple[int, ...]

    task: ClassVar[str]
    example_kind: ClassVar[type]

    def __post_init__(self):
        if max(self.buckets) < self.text.max_pieces:
            raise ValueError(f"the longest bucket {max(self.buckets)} is below max_pieces {self.text.max_pieces}")

    # ------------------------------------------------------------------ the task's

    def encode(self, records: Sequence[Record], *, say: str | None = "posts") -> list[Example]:
        """Records as integers, one example each. What the encoder does not get is logged under the name ``say``."""
        examples = self._encode(records)
        if say:
            say_what_is_lost(examples, self.text, say)
        return examples

    def _encode(self, records: Sequence[Record]) -> list[Example]:
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

    def loss(self) -> Loss:
        """What training minimises."""
        raise NotImplementedError

    def predict_step(self, mesh: Mesh) -> Callable[[Any, Mapping[str, Any]], dict[str, jax.Array]]:
        """The compiled step for :meth:`predict`; make it once and reuse it."""
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
        """As JSON, the tokenizer included."""
        return {
            "task": self.task,
            "model": model_to_dict(self.model),
            "labels": list(self.labels),
            "tokenizer": tokenizer_to_json(self.tokenizer),
            "text": dataclasses.asdict(self.text),
            "pictures": dataclasses.asdict(self.pictures),
            "buckets": list(self.buckets),
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], **fields: Any) -> Reader:
        """The reader of a checkpoint's JSON; ``fields`` are those of a subclass."""
        if meta.get("source") and "whole" not in meta["pictures"]:
            logger.warning(
                "this checkpoint was converted by an older version, which did not keep the inputs of the released "
                "code: phrases, pictures and regions differ from those that it was trained on. Convert the weights "
                "again with data_prep/convert_release.py"
            )
        return cls(
            model=model_from_dict(cls.task, meta["model"]),
            labels=tuple(meta["labels"]),
            tokenizer=tokenizer_from_json(meta["tokenizer"]),
            text=TextSettings.from_meta(meta["text"]),
            pictures=PictureSettings(**meta["pictures"]),
            buckets=tuple(meta["buckets"]),
            **fields,
        )

    # ------------------------------------------------------------------ data

    def collator(self, pictures: PictureSource | None) -> Collator:
        """Makes batches of this reader's examples."""
        return Collator(self.example_kind, self.text, pictures)

    def pixels(self, root: Path) -> PictureSource | None:
        """Pictures below ``root`` as pixels; None for a model that reads text only."""
        if not self.model.prefixes:
            return None
        if self.model.resnet is None:
            raise ValueError(
                "this model has no ResNet, so it cannot read pictures: hand it feature maps through model.apply, or "
                "convert a state dict that holds one"
            )
        return PixelSource(root, self.model.prefixes, self.pictures)

    def picture_maps(self) -> Callable[[Mapping[str, Any], Any], jax.Array]:
        """The compiled ResNet: its variables, uint8 pixels [N, size, size, 3] -> maps [N, patches, C] in float32.

        The variables are an argument. Weights that a function closes over would be written into its program.
        """
        module = ResNetEncoder(self.model.resnet, self.model.dtype)

        @jax.jit
        def encode(variables, pixels):
            return module.apply(variables, self.pictures.normalise(pixels), train=False).tokens.astype(jnp.float32)

        return encode

    def features(
        self,
        root: Path,
        records: Sequence[Record],
        variables: Mapping[str, Any],
        directory: Path,
        *,
        dtype: str = "float32",
        progress: bool = True,
    ) -> PictureSource | None:
        """Pictures below ``root`` as maps of the frozen ResNet, computed once and kept in ``directory``."""
        if not self.model.prefixes:
            return None
        if not self.pictures.as_bytes:
            raise ValueError(
                "this checkpoint reads its pictures as the released code does, and the feature cache cannot: set "
                "data.feature_cache=False"
            )
        resnet = {name: variables[name]["picture_encoder"]["resnet"] for name in ("params", "batch_stats")}
        encode = self.picture_maps()
        cache = FeatureCache.build(
            directory,
            picture_requests(records, root, self.model.prefixes, self.pictures),
            lambda pixels: {"tokens": np.asarray(encode(resnet, pixels))},
            encoder_identity={
                "weights": tree_hash(resnet),
                "config": self.model.resnet.to_dict(),
                "dtype": jnp.dtype(self.model.dtype).name,
            },
            settings=self.pictures,
            dtype=dtype,
            progress=progress,
            shard=jax.process_index(),
        )
        return FeatureSource(root, self.model.prefixes, self.pictures, cache)

    def dummy_batch(self) -> dict[str, np.ndarray]:
        """One row with every key in its right shape, pictures as pixels: to initialise or trace the model with."""
        length = min(self.buckets)
        source = self.pixels(Path())
        batch = self.collator(source)([None], length)
        filled = {name: np.ones_like(rows) for name, rows in batch.items() if name.endswith("mask")}
        return batch | filled

    # ------------------------------------------------------------------ prediction

    def predict(
        self,
        step: Callable,
        variables: Mapping[str, Any],
        examples: Sequence[Example],
        pictures: PictureSource | None,
        mesh: Mesh,
        *,
        batch_size: int,
        num_threads: int = 2,
        probabilities: bool = False,
        progress: Callable[[Iterator, int], Iterator] = lambda batches, _: batches,
    ) -> list[Any]:
        """Read posts in the order of ``examples``; no post is dropped, whatever the batch size is.

        A post that is read in windows becomes several rows; its prediction is made of all of them together.
        ``progress`` wraps the iterator of batches, given their number.
        """
        if not examples:
            return []
        rows, owners, waiting = [], [], []
        for owner, example in enumerate(examples):
            parts = self.rows(example)
            rows += parts
            owners += [(owner, number) for number in range(len(parts))]
            waiting.append([None] * len(parts))
        plan = BatchPlan([len(row.pieces.input_ids) for row in rows], self.buckets, batch_size)
        batches = Batches(rows, plan, self.collator(pictures), jax.process_index(), jax.process_count())
        results: list[Any] = [None] * len(examples)
        for indices, batch in progress(batches.iterate(num_threads=num_threads), len(batches)):
            output = step(variables, shard_batch(batch, mesh))
            there = {row: index for row, index in enumerate(indices) if index >= 0}
            whole = {row: rows[index] for row, index in there.items() if len(waiting[owners[index][0]]) == 1}
            for row, prediction in self._decode(output, whole, probabilities=probabilities).items():
                results[owners[there[row]][0]] = prediction
            windows = {row: rows[index] for row, index in there.items() if row not in whole}
            for row, scores in self._scores(output, windows).items() if windows else ():
                owner, number = owners[there[row]]
                waiting[owner][number] = scores
                if all(part is not None for part in waiting[owner]):
                    joined, waiting[owner] = self._joined(output, waiting[owner]), [None] * len(waiting[owner])
                    results[owner] = self._decode(joined, {0: examples[owner]}, probabilities=probabilities)[0]
        return results


def tree_hash(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and values of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
