"""What the commands share: flags of a distributed run, workdirs, data of a reader, evaluation of a split."""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from jax.sharding import Mesh

from experiments.loop import progress_bar
from tmrjax.checkpoints import CheckpointError, config_difference
from tmrjax.files import write_atomic
from tmrjax.pipeline import Example, PictureSource
from tmrjax.reader import Reader
from tmrjax.records import Dataset, Record

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of every command. Not on import: commands are imported together by scripts and tests."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; for a run of several processes")
    flags.DEFINE_integer("processes", None, "number of processes; empty where the cluster tells it")
    flags.DEFINE_integer("process", None, "index of this process; empty where the cluster tells it")
    flags.DEFINE_bool("distributed", False, "several processes, found by jax.distributed (SLURM, TPU, ...)")


# mallopt's names for: keep large arrays in the heap, never give it back, grow it by 256 MiB, one arena for all threads.
_MALLOC_SETTINGS = {"M_MMAP_THRESHOLD": (-3, 2**30), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28),
                    "M_ARENA_MAX": (-8, 1)}  # fmt: skip


def keep_memory() -> None:
    """Let glibc keep the arrays of a step for the next one.

    XLA on CPU frees and allocates every temporary in every step; by default each large one is mapped anew, and page
    faults take a third of a BERT's step. Elsewhere than with glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in _MALLOC_SETTINGS.values():
        mallopt(parameter, value)


def start() -> None:
    """Memory, logging, and the other processes where there are some; call it before anything touches a device."""
    keep_memory()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", force=True)
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns of its own defaults on every checkpoint
    logging.getLogger("jax").setLevel(logging.WARNING)  # JAX tells of every kind of accelerator that is not there
    if FLAGS.distributed or FLAGS.coordinator:
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process)


def claim_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Write the config, with the hashes of its data, into a new workdir, or make sure that this one is of the same run.

    Raises CheckpointError with the keys that differ: resuming with them would mix two runs.
    """
    path = workdir / "config.json"
    current = json.loads(json.dumps(config))
    if path.exists():
        difference = config_difference(json.loads(path.read_text(encoding="utf-8")), current)
        if difference:
            raise CheckpointError(
                f"{workdir} belongs to another run; take a new --workdir, or the old config. They differ in:\n  "
                + "\n  ".join(difference)
            )
    elif workdir.exists() and any(entry.name != "tensorboard" for entry in workdir.iterdir()):
        raise CheckpointError(f"{workdir} is neither empty nor the workdir of a run (no config.json); take another one")
    elif jax.process_index() == 0:
        write_json(path, current)


def data_root(given: str | None, config: Mapping[str, Any]) -> str:
    """The folder to evaluate on: given by a flag, or the run's own; raises ValueError where a checkpoint names none."""
    root = given or config["data"]["root"]
    if not root:
        raise ValueError("this checkpoint was converted and names no data of its own: give --data=DIR")
    return root


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def dataset_meta(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint and a report say of their data."""
    info = dataset.info
    return {
        "name": info.name,
        "files": dict(info.files),
        "labels_sha256": dict(info.labels_sha256),
        "leaky_phrases": info.leaky_phrases,
        "leaky_regions": info.leaky_regions,
        "renormalised_scores": info.renormalised_scores,
        "synthetic": info.synthetic,
        "skipped": len(dataset.skipped),
    }


def picture_source(
    reader: Reader, dataset: Dataset, records: Sequence[Record], variables: Any, data: Mapping[str, Any]
) -> PictureSource | None:
    """Pixels, or the feature cache where the config asks for it."""
    if not data["feature_cache"]:
        return reader.pixels(dataset.root)
    folder = Path(data["feature_cache_folder"] or dataset.root / "features")
    return reader.features(dataset.root, records, jax.device_get(variables), folder, dtype=data["feature_cache_dtype"])


def evaluate_split(
    reader: Reader,
    step: Any,
    variables: Any,
    examples: Sequence[Example],
    pictures: PictureSource | None,
    mesh: Mesh,
    batch_size: int,
) -> dict[str, Any]:
    """The report of one split, all of its posts."""
    predictions = reader.predict(
        step, variables, examples, pictures, mesh, batch_size=batch_size, progress=progress_bar
    )
    return reader.report(examples, predictions)
