"""Trainings as processes of this machine, some at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from experiments.lib.launchers.states import (
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Place,
    failure_of,
    figure_of,
    finish,
    start,
    state_of,
)

# One core a process: several tiny trainings side by side take less time on a CPU than one after the other.
ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def run_local(
    jobs: Sequence[tuple[str, Place, Sequence[str]]], *, at_once: int = 1, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Run what is not done; returns name -> state.

    Args:
        jobs: name, place and command of each training, in the order in which they begin.
        at_once: how many run at a time; with more than one each has one core.
        say: gets a line for each training that ends.

    A failure does not end the others. Ctrl-C and SIGTERM stop all: they save, and the same call goes on with them.
    """
    flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), ONE_CORE)))
    environment = {"XLA_FLAGS": flags} if at_once > 1 else {}
    states = {name: state_of(place) for name, place, _ in jobs}
    wanted = [job for job in jobs if states[job[0]] not in (DONE, RUNNING)]
    stopping, lock, pids = threading.Event(), threading.Lock(), set()

    def train(job: tuple[str, Place, Sequence[str]]) -> None:
        name, place, command = job
        with lock:
            if stopping.is_set():
                return
            begun = time.monotonic()
            process = start(command, place, environment)
            pids.add(process.pid)
        code = process.wait()
        with lock:
            pids.discard(process.pid)
            states[name] = state = finish(place, code)
            said = {
                DONE: lambda: figure_of(place),
                FAILED: lambda: f"FAILED, {failure_of(place)}; see {place.log}",
                STOPPED: lambda: "stopped and saved",
            }[state]()
            ended = sum(states[name] in (DONE, FAILED) for name in states)
            say(f"[{ended}/{len(jobs)}] {name}: {said} ({time.monotonic() - begun:.0f} s)")

    def stop_all(signum, frame) -> None:
        stopping.set()
        for pid in list(pids):
            os.kill(pid, signal.SIGTERM)

    with _handled(stop_all), ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(train, job) for job in wanted]
        for future in futures:
            while not future.done():
                time.sleep(0.05)  # a signal is handled between two sleeps, not while a lock is waited for
            future.result()
    return {name: WAITING if state not in (DONE, FAILED, STOPPED, RUNNING) else state for name, state in states.items()}


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to ``handler``, where this is the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
