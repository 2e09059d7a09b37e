"""A divergence estimator with all it needs to read pairs: model, tokenizer, sizes. What a checkpoint of §3.4 holds.

:meth:`Estimator.to_meta` is the JSON object of a checkpoint, :meth:`Estimator.from_meta` its inverse: evaluation and
scoring read nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tmrjax.divergence import DivergenceEstimator, model_from_dict, model_to_dict
from tmrjax.divergence.corpus import CLASSES, CorpusSplit, Pair
from tmrjax.divergence.pictures import PairPictureSettings
from tmrjax.divergence.pipeline import (
    PairBatches,
    PairTextSettings,
    TextLengths,
    collate_pairs,
    pair_buckets,
    plan_pairs,
)
from tmrjax.text.tokenizers import tokenizer_from_json, tokenizer_to_json
from tmrjax.training.checkpoints import CheckpointError, load_best
from tmrjax.training.sharding import replicated, shard_batch, split_rows

TASK = "mde"
Progress = Callable[[Iterator, int], Iterator]


@dataclasses.dataclass(frozen=True)
class Estimator:
    """See the module. Raises ValueError where the settings ask for more pieces or other patches than the model has."""

    model: DivergenceEstimator
    tokenizer: Any
    texts: PairTextSettings
    pictures: PairPictureSettings

    def __post_init__(self):
        vilt = self.model.vilt
        longest = max(self.texts.max_pieces, *self.texts.buckets, 0)
        if longest > vilt.max_position_embeddings:
            raise ValueError(
                f"texts of {longest} word pieces, but the model has {vilt.max_position_embeddings} positions"
            )
        if self.pictures.divisor % vilt.patch_size:
            raise ValueError(
                f"pictures are cut to multiples of {self.pictures.divisor}, but the model's patches have "
                f"{vilt.patch_size} pixels"
            )
        if len(self.tokenizer) > vilt.vocab_size:
            raise ValueError(f"the tokenizer has {len(self.tokenizer)} pieces, but the model {vilt.vocab_size}")

    # ------------------------------------------------------------------ checkpoints

    def to_meta(self) -> dict[str, Any]:
        """As JSON, the tokenizer included."""
        return {
            "task": TASK,
            "model": model_to_dict(self.model),
            "labels": list(CLASSES),
            "tokenizer": tokenizer_to_json(self.tokenizer),
            "texts": dataclasses.asdict(self.texts),
            "pictures": dataclasses.asdict(self.pictures),
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Estimator:
        """The estimator of a checkpoint's JSON; raises CheckpointError for a checkpoint of another kind."""
        if meta.get("task") != TASK:
            raise CheckpointError(
                f"a checkpoint for the task {meta.get('task')!r}, but a divergence estimator ({TASK!r}) is needed: "
                "give the workdir of experiments/mde.py"
            )
        if tuple(meta["labels"]) != CLASSES:
            raise CheckpointError(f"a checkpoint with the classes {meta['labels']}; this version reads {list(CLASSES)}")
        pictures = {**meta["pictures"], "buckets": tuple(map(tuple, meta["pictures"]["buckets"]))}
        return cls(
            model=model_from_dict(meta["model"]),
            tokenizer=tokenizer_from_json(meta["tokenizer"]),
            texts=PairTextSettings(**{**meta["texts"], "buckets": tuple(meta["texts"]["buckets"])}),
            pictures=PairPictureSettings(**pictures),
        )

    @classmethod
    def load(cls, workdir: str | Path) -> tuple[Estimator, dict[str, Any], dict[str, Any]]:
        """The estimator of a workdir, its variables (numpy) and the JSON of its best checkpoint.

        Raises CheckpointError where there is none, or one of another kind.
        """
        variables, meta = load_best(Path(workdir))
        return cls.from_meta(meta), variables, meta

    # ------------------------------------------------------------------ data

    def collate(self, pairs: Sequence[Pair | None], bucket: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """One batch of pairs in the shape (pieces, height, width); see
        :func:`tmrjax.divergence.pipeline.collate_pairs`."""
        return collate_pairs(pairs, bucket, self.tokenizer, self.texts, self.pictures)

    def batches(
        self, split: CorpusSplit, batch_size: int, *, epochs: int = 1, seed: int | None = None
    ) -> tuple[PairBatches, TextLengths]:
        """This process's stream of batches of a split, and what its texts' lengths are."""
        plan, lengths = plan_pairs(
            split, self.tokenizer, self.texts, self.pictures, batch_size, epochs=epochs, seed=seed
        )
        batches = PairBatches(
            split, plan, self.tokenizer, self.texts, self.pictures, jax.process_index(), jax.process_count()
        )
        return batches, lengths

    def dummy_batch(self) -> dict[str, np.ndarray]:
        """One row with every key in its right shape, to initialise or trace the model with."""
        batch = self.collate([None], pair_buckets(self.texts, self.pictures)[0])
        return {name: np.ones_like(rows) if name.endswith("mask") else rows for name, rows in batch.items()}

    # ------------------------------------------------------------------ scores

    def score_step(self, mesh: Mesh) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
        """``step(variables, batch) -> scores`` [B,3], α of Eq. 4, on every device of every process; make it once."""

        def step(variables, batch):
            return jax.nn.softmax(self.model.apply(variables, batch, train=False)[0])

        everywhere = replicated(mesh)
        return jax.jit(step, in_shardings=(everywhere, split_rows(mesh)), out_shardings=everywhere)

    def scores(
        self,
        step: Callable,
        variables: Mapping[str, Any],
        batches: PairBatches,
        mesh: Mesh,
        *,
        num_threads: int = 2,
        num_workers: int = 0,
        progress: Progress = lambda batches, _: batches,
    ) -> np.ndarray:
        """Scores [N,3] of every pair of a split, in its order; no pair is dropped, whatever the batch size is.

        ``batches``: of one epoch, see :meth:`batches`; ``progress`` wraps their iterator, given their number.
        """
        scores = np.full((len(batches.split), len(CLASSES)), np.nan, np.float32)
        stream = batches.iterate(
            num_threads=num_threads, num_workers=num_workers, place=lambda batch: shard_batch(batch, mesh)
        )
        with contextlib.closing(stream):
            for indices, batch in progress(stream, len(batches)):
                found = np.asarray(step(variables, batch))
                scores[indices[indices >= 0]] = found[indices >= 0]
        return scores
