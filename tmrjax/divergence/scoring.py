"""Divergence scores of texts and pictures that are at hand (§3.4): α of Eq. 4 by a trained estimator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tmrjax.divergence.pipeline import collate_inputs, pair_buckets
from tmrjax.divergence.system import Estimator
from tmrjax.files import DataError
from tmrjax.inputs.batching import BatchPlan
from tmrjax.training.checkpoints import CheckpointError
from tmrjax.training.sharding import check_batch_size, make_mesh, replicate, shard_batch


@dataclass(frozen=True)
class Scorer:
    """An estimator on the devices of a mesh: texts and pixels to scores, a batch at a time."""

    estimator: Estimator
    variables: Any
    mesh: Mesh
    step: Callable[[Any, Mapping[str, Any]], jax.Array]
    batch_size: int

    @classmethod
    def load(cls, workdir: Path, batch_size: int, *, devices: int | None = None) -> tuple[Scorer, dict[str, Any]]:
        """The best checkpoint of a workdir on all devices unless given, and what a manifest says of it.

        Raises :class:`tmrjax.files.DataError` where there is no estimator.
        """
        try:
            estimator, variables, meta = Estimator.load(workdir)
        except CheckpointError as error:
            advice = "Train one with experiments/mde.py, or correct the path."
            raise DataError(workdir, str(error), "the workdir of a divergence estimator", advice) from error
        mesh = make_mesh(devices)
        check_batch_size(batch_size, mesh)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(variables):
            digest.update(np.ascontiguousarray(leaf))
        said = {"weights": digest.hexdigest()[:16]}
        if meta["best"] is None:  # converted, not trained here
            said["source"] = meta["source"]["file"]
        else:
            said |= {"step": meta["best"]["step"], "corpus": meta["dataset"]["name"]}
        return cls(estimator, replicate(variables, mesh), mesh, estimator.score_step(mesh), batch_size), said

    def __call__(self, texts: Sequence[Sequence[int]], pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Scores [N, 3] of word pieces with pixels, each padded to the smallest shape that holds it."""
        if not texts:
            return np.zeros((0, 3), np.float32)
        settings = self.estimator
        sizes = [(len(ids), *picture.shape[:2]) for ids, picture in zip(texts, pictures, strict=True)]
        plan = BatchPlan(np.array(sizes), pair_buckets(settings.texts, settings.pictures), self.batch_size)
        scores = np.zeros((len(texts), 3), np.float32)
        for number in range(len(plan)):
            bucket, chosen = plan[number]
            rows = [(texts[i], pictures[i]) if i >= 0 else (None, None) for i in chosen]
            batch = collate_inputs([ids for ids, _ in rows], [picture for _, picture in rows], bucket)
            found = np.asarray(self.step(self.variables, shard_batch(batch, self.mesh)))
            scores[chosen[chosen >= 0]] = found[chosen >= 0]
        return scores
