"""Workdirs: one run each, locked while it runs, claimed once its settings and data have been checked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lib.command import write_json
from tmrjax.files import DataError, parse_json, read_bytes
from tmrjax.training.checkpoints import CheckpointError, config_difference

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK, REPORT = ".lock", "report.json"


def on_first_process(action: Callable[[], Any]) -> bool:
    """Let process 0 do something to files, and the others wait for it; what it returned, as bool, in every process.

    Raises in process 0 what ``action`` raises, in the others a CheckpointError that points there.
    """
    failure, found = None, False
    if jax.process_index() == 0:
        try:
            found = bool(action())
        except Exception as error:
            failure = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed, found = multihost_utils.broadcast_one_to_all(np.array([failure is not None, found]))
        if failed and failure is None:
            raise CheckpointError("process 0 cannot use the workdir; its own message says why")
    if failure is not None:
        raise failure
    return bool(found)


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> bool:
    """Whether this run has finished in ``workdir``, which must be new, empty or of this very run; writes nothing.

    ``config``: with the hashes of its data. Raises CheckpointError with the keys that differ (resuming with them would
    mix two runs), or where config.json is damaged.
    """
    path = workdir / "config.json"
    current = json.loads(json.dumps(config))
    if path.exists():
        difference = config_difference(read_json(path, "take another --workdir"), current)
        if difference:
            raise CheckpointError(
                f"{workdir} belongs to another run; take a new --workdir, or the old config. They differ in:\n  "
                + "\n  ".join(difference)
            )
    elif workdir.exists() and any(entry.name not in ("tensorboard", LOCK) for entry in workdir.iterdir()):
        raise CheckpointError(f"{workdir} is neither empty nor the workdir of a run (no config.json); take another one")
    return (workdir / REPORT).exists()


@contextlib.contextmanager
def claimed_workdir(workdir: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Lock ``workdir`` for this run and write config.json where it is new; call it once all settings have been checked.

    Process 0 does so, the others wait. The lock ends with the process, however that ends. Raises CheckpointError where
    another process has it (with its number and host), and what :func:`check_workdir` raises.
    """
    held = contextlib.ExitStack()

    def claim() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        held.enter_context(_locked(workdir))
        check_workdir(workdir, config)
        if not (workdir / "config.json").exists():
            write_json(workdir / "config.json", json.loads(json.dumps(config)))

    with held:
        on_first_process(claim)
        yield


def is_locked(workdir: Path) -> bool:
    """Whether a living process of this host has claimed ``workdir``; takes no lock itself, so it disturbs nobody.

    The lock names its process, and that process has the file open.
    """
    path = workdir / LOCK
    try:
        words = path.read_text(encoding="utf-8").split()
        if len(words) != 4 or words[3] != platform.node():
            return False
        return any(Path(link).samefile(path) for link in Path(f"/proc/{int(words[1])}/fd").iterdir() if link.exists())
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    with (workdir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CheckpointError(
                f"{workdir} is in use by another run ({file.read().strip() or 'which has just begun'}); wait for it, "
                "stop it, or take another --workdir"
            ) from None
        except (OSError, AttributeError) as error:  # some network file systems, or another system than Unix
            logger.warning("%s cannot be locked (%s): start no second run on it", workdir, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a file of a workdir; raises CheckpointError with ``advice`` where it is damaged."""
    try:
        value = parse_json(read_bytes(path), str(path))
    except DataError as error:
        raise CheckpointError(f"{path}: damaged (found {error.found}); {advice}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged (no JSON object); {advice}")
    return value


def finished_report(workdir: Path, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The report of a finished run, shown; raises CheckpointError where report.json is damaged."""
    path = workdir / REPORT
    advice = "delete it, and the same command makes it again from the checkpoints"
    report = read_json(path, advice)
    try:
        show(report)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or of an older version ({error!r}); {advice}") from error
    return report
