"""What the commands share: how they start and fail, data of a system, evaluation of a split."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

from tmrjax.compilation import keep_compiled
from tmrjax.files import jsonl_bytes, write_atomic
from tmrjax.inputs.base import Example
from tmrjax.inputs.pictures import PictureSource
from tmrjax.records import Dataset, Record
from tmrjax.tasks.system import System
from tmrjax.training.checkpoints import CheckpointError

logger = logging.getLogger(__name__)
FLAGS = flags.FLAGS
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# What bad input, bad settings and the machine raise; anything else is a fault of the program and keeps its traceback.
EXPECTED_ERRORS = (ValueError, OSError, CheckpointError, FloatingPointError)


def define_flags() -> None:
    """Flags of every command. Not on import: commands are imported together by scripts and tests."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; for a run of several processes")
    flags.DEFINE_integer("processes", None, "number of processes; empty where the cluster tells it")
    flags.DEFINE_integer("process", None, "index of this process; empty where the cluster tells it")
    flags.DEFINE_bool("distributed", False, "several processes, found by jax.distributed (SLURM, TPU, ...)")
    flags.DEFINE_bool("debug", False, "show the traceback of an error")
    flags.DEFINE_bool("compile_cache", True, "keep compiled programs for the next run (--no-compile-cache: do not)")


def run(main: Callable[[list[str]], Any], *, arguments: bool = False) -> None:
    """Run ``main`` as the command that the user has called: flags, start, and one clear line for an error.

    ``arguments``: whether the command takes words that are no flags; ``main`` gets them behind the command's name.

    Exits with 1 for an error of the data, the config or the machine, with 2 for bad flags. ``--debug`` shows the
    traceback. Flags may be written with dashes (``--on-error``) or underscores.
    """
    name, debug = Path(sys.argv[0]).stem, "--debug" in sys.argv
    sys.path.append(os.getcwd())  # where --config.method=my_module:MyMethod is looked for

    def fail(error: Exception, code: int) -> None:
        if debug:
            raise error
        print(f"{name}: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(code)

    def parse(given: list[str]) -> list[str]:
        try:
            rest = FLAGS([given[0], *(with_config_found(with_underscores(argument)) for argument in given[1:])])
            if rest[1:] and not arguments:
                raise flags.Error(f"{rest[1]!r} is no flag; a flag begins with --")
            if "config" in FLAGS:
                FLAGS.config.task  # noqa: B018 - a config file that is not there is told of on the first use
            return rest
        except Exception as error:  # absl's, or a config file's own: an unknown name, a misspelt key
            fail(error, 2)

    def guarded(given: list[str]) -> None:
        try:
            start()
            main(given)
        except EXPECTED_ERRORS as error:
            fail(error, 1)
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def one_line(error: BaseException) -> str:
    """The message of an error; its kind before it where the message alone would not say what happened."""
    while error.args and isinstance(error.args[0], Exception):  # ml_collections wraps a KeyError
        error = error.args[0]
    if isinstance(error, AttributeError | KeyError) and error.args:  # of a config: the key, and which one may be meant
        return "no key " + " ".join(str(error.args[0]).split())
    text = str(error).strip()
    if "Failed loading config file" in text:
        return "the config file cannot be read: " + " ".join(text.partition("\n")[2].split())
    if "Error whilst parsing config file" in text:  # ml_collections puts a traceback into the message
        return text.splitlines()[-1].partition(": ")[2]
    if isinstance(error, ValueError | CheckpointError | FloatingPointError | flags.Error) and len(text.split()) > 1:
        return text
    return f"{type(error).__name__}: {text}"


def with_underscores(argument: str) -> str:
    """``--no-compile-cache`` as absl has it, ``--nocompile_cache``; keys of a config stay as they are."""
    if not argument.startswith("--") or argument.startswith("--config"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    if flag.startswith("no-"):
        flag = "no" + flag[3:]
    return f"--{flag.replace('-', '_')}{equals}{value}"


def with_config_found(argument: str) -> str:
    """``--config=mner.py:own`` with the path of the config that is shipped, where the current folder has none."""
    flag, equals, value = argument.partition("=")
    file, colon, name = value.partition(":")
    if flag != "--config" or not file or os.path.exists(file):
        return argument
    path = CONFIGS / file.removeprefix("experiments/configs/")
    return f"{flag}{equals}{path}{colon}{name}" if path.is_file() else argument


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
    """Memory, imports, logging, and the other processes if there are some; call it before anything touches a device."""
    keep_memory()
    # transformers is here for tokenizers; with torch beside it, importing it takes 3 seconds more.
    os.environ.setdefault("USE_TORCH", "0")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", force=True)
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns of its own defaults on every checkpoint
    logging.getLogger("jax").setLevel(logging.WARNING)  # JAX tells of every kind of accelerator that is not there
    folder = keep_compiled() if FLAGS.compile_cache else None
    if folder:
        logger.info("compiled programs are kept in %s (--no-compile-cache: not)", folder)
    elif not FLAGS.compile_cache:
        jax.config.update("jax_enable_compilation_cache", False)  # nor does a library that the command calls
    if FLAGS.distributed or FLAGS.coordinator:
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process)


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
    system: System, dataset: Dataset, records: Sequence[Record], variables: Any, data: Mapping[str, Any]
) -> PictureSource | None:
    """Pixels, or one of the caches where the config asks for it."""
    threads = data.get("num_threads", 2)  # a converted checkpoint names none
    # A checkpoint from before there was a cache of pixels does not name that one either.
    if not (data["feature_cache"] or data.get("pixel_cache")):
        return system.pixels(dataset.root, num_threads=threads)
    folder = Path(data["feature_cache_folder"] or dataset.root / "features")
    if not data["feature_cache"]:
        return system.cached_pixels(dataset.root, records, folder, num_threads=threads)
    values, dtype = jax.device_get(variables), data["feature_cache_dtype"]
    return system.features(dataset.root, records, values, folder, dtype=dtype, num_threads=threads)


def write_predictions(
    path: Path, system: System, examples: Sequence[Example], predictions: Sequence[Any], about: Mapping[str, Any]
) -> None:
    """One line of JSON a post (:meth:`tmrjax.tasks.system.System.prediction_rows`), and beside it PATH.about.json.

    ``about`` says of what run, data and split they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = jsonl_bytes(system.prediction_rows(examples, predictions))
    write_atomic(path, content)
    about = {**about, "posts": len(examples), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(path.with_name(f"{path.name}.about.json"), about)


def about_predictions(dataset: Dataset, split: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`write_predictions` says: split, hashes of data, labels and config, and the best step."""
    return {
        "split": split,
        "task": meta["task"],
        "data": dataset_meta(dataset),
        "label_version": dataset.label_version,
        "config_sha256": config_hash(meta["config"]),
        "best": meta.get("best"),
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
