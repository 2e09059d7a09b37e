"""What has become of a training, told by its files; and how a training's process is started and stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.lib.command import write_json
from experiments.lib.workdirs import REPORT, is_locked, read_json

DONE, RUNNING, QUEUED, FAILED, STOPPED, WAITING = "done", "running", "queued", "failed", "stopped", "waiting"
STATES = (DONE, RUNNING, QUEUED, FAILED, STOPPED, WAITING)
# A training says with one of these that it was told to stop, has saved and goes on with the same command.
STOP_CODES = {128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT}
LINES_KEPT = 15


@dataclasses.dataclass(frozen=True)
class Place:
    """Files of a training: its workdir, and beside it the log and what is known of a failure."""

    workdir: Path

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.workdir.with_name(f"{self.workdir.name}.log")

    @property
    def failure(self) -> Path:
        """There only after a failure."""
        return self.workdir.with_name(f"{self.workdir.name}.failed.json")


def state_of(place: Place, queue: str = "") -> str:
    """One of STATES. ``queue``: RUNNING or QUEUED where a scheduler says so of the training's job."""
    if (place.workdir / REPORT).exists():
        return DONE
    if queue:
        return queue
    if is_locked(place.workdir):
        return RUNNING
    if place.failure.exists():
        return FAILED
    return STOPPED if (place.workdir / "config.json").exists() else WAITING


def start(
    command: Sequence[str], place: Place, environment: Mapping[str, str] | None = None, *, deaf_to: Sequence[int] = ()
) -> subprocess.Popen:
    """Start a training; its output goes to the log. It is no part of the terminal's group: its starter stops it.

    ``deaf_to``: signals that it ignores, which a scheduler sends to all processes and which are for the starter.
    """
    place.workdir.parent.mkdir(parents=True, exist_ok=True)
    place.failure.unlink(missing_ok=True)

    def ignore() -> None:
        for number in deaf_to:
            signal.signal(number, signal.SIG_IGN)

    with place.log.open("ab") as log:
        return subprocess.Popen(
            list(command), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | dict(environment or {}),
            preexec_fn=ignore if deaf_to else None,  # noqa: PLW1509 - a job's process has one thread
        )  # fmt: skip


def finish(place: Place, code: int) -> str:
    """The state of a training whose process has ended with ``code``; a failure is written down."""
    if (place.workdir / REPORT).exists() and code == 0:
        return DONE
    if code in STOP_CODES:
        return STOPPED
    lines = place.log.read_text(encoding="utf-8", errors="replace").splitlines()
    write_json(place.failure, {"exit status": code, "last lines": [line for line in lines if line][-LINES_KEPT:]})
    return FAILED


def failure_of(place: Place) -> str:
    """Why a training failed, in one line: the last that it printed."""
    found = read_json(place.failure, "delete it")
    lines = found["last lines"]
    return f"exit status {found['exit status']}: {lines[-1] if lines else 'nothing was printed'}"


def figure_of(place: Place) -> str:
    """The figure that a finished training is known by."""
    report = json.loads((place.workdir / REPORT).read_text(encoding="utf-8"))
    if report["task"] == "mde":
        return f"macro-F1 {100 * report['test']['macro_f1']:.2f}"
    return f"test F1 {100 * report['test']['f1']:.2f}"


def stop(pid: int, patience: float) -> None:
    """Ask a training to save and exit, and wait for it at most ``patience`` seconds; it stays a child to be waited for.

    Safe in a signal handler that interrupts the waiting of subprocess: it takes no lock.
    """
    try:
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return
            time.sleep(0.1)
    except (ProcessLookupError, ChildProcessError):
        return
