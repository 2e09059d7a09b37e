"""What a run says of itself while it trains: metrics, seconds, compilation, a trace of some steps, memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.lib.tensorboard import SummaryWriter
from tmrjax.files import write_atomic

try:
    import resource
except ImportError:  # Windows
    resource = None

logger = logging.getLogger(__name__)


class Metrics:
    """Numbers of a run to the terminal, to metrics.jsonl and to TensorBoard; process 0 alone writes.

    On resume what was written behind the resumed step is taken back, so that no step is there twice. A number that is
    not finite is null in metrics.jsonl, for JSON has no such number, and a warning says so.
    """

    def __init__(self, workdir: Path, step: int):
        self._path = workdir / "metrics.jsonl"
        self._active = jax.process_index() == 0
        if not self._active:
            return
        kept = []
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was killed
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
        write_atomic(self._path, "".join(f"{line}\n" for line in kept).encode())
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line for ``step``."""
        if not self._active:
            return
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            missing = ", ".join(f"{name} is {value}" for name, value in values.items() if name not in finite)
            logger.warning("step %d: %s; written as null", step, missing)
        line = json.dumps({"step": step} | {name: finite.get(name) for name in values}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in finite.items():
            self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._active:
            self._tensorboard.close()


class Timer:
    """Seconds per step, measured over windows that end with a value fetched from the device; compilation apart.

    What share of this time the loop waited for its next batch is kept too: where it is not near 0, the device waits for
    the preparation of posts, and more ``data.num_threads`` or ``data.num_workers`` help.
    """

    def __init__(self, saved: dict[str, Any] | None = None):
        saved = saved or {}
        self.windows: list[float] = list(saved.get("windows", ()))
        self.compile_seconds: float = saved.get("compile_seconds", 0.0)
        self.seconds: float = saved.get("seconds", 0.0)
        self.waited: float = saved.get("waited", 0.0)
        self.restart()

    def to_meta(self) -> dict[str, Any]:
        """For the checkpoint: a resumed run reports the timings of all its parts."""
        return {name: getattr(self, name) for name in ("windows", "compile_seconds", "seconds", "waited")}

    def restart(self) -> None:
        """Begin a window."""
        self._start, self._compiled, self._waited = time.perf_counter(), self.compile_seconds, 0.0

    def waits(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; how long each lets the loop wait is measured."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def stop(self, steps: int) -> None:
        """End a window of ``steps`` steps and begin the next."""
        seconds = time.perf_counter() - self._start - (self.compile_seconds - self._compiled)
        self.windows.append(seconds / steps)
        self.seconds += seconds
        self.waited += self._waited
        self.restart()

    @property
    def waiting_share(self) -> float | None:
        """Of the seconds of all windows those in which the loop waited for a batch."""
        return self.waited / self.seconds if self.seconds else None

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the windows."""
        return float(np.median(self.windows)) if self.windows else None


def return_memory() -> None:
    """Give what glibc keeps free back to the system: after a compilation more than a gigabyte, and no step needs it.

    Elsewhere than with glibc this does nothing.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


class Compiled:
    """A jitted step compiled ahead, once per shape of batch, so that compilation is timed apart from running."""

    def __init__(self, step: Callable, timer: Timer):
        self._step, self._timer, self._by_shape = step, timer, {}

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        """Run the step on this batch, compiling it first where its shape is new."""
        shape = tuple((jax.tree_util.keystr(path), rows.shape) for path, rows in jax.tree.leaves_with_path(batch))
        if shape not in self._by_shape:
            start = time.perf_counter()
            self._by_shape[shape] = self._step.lower(state, batch).compile()
            self._timer.compile_seconds += time.perf_counter() - start
            return_memory()
        return self._by_shape[shape](state, batch)


class Trace:
    """Traces ``steps`` steps of a run from its third on, behind those that compile, into ``folder``.

    The folder opens in TensorBoard (its profile plugin), ``perfetto_trace.json.gz`` below it in Perfetto. Process 0
    alone writes.
    """

    def __init__(self, folder: Path, steps: int, start: int):
        self._folder, self._first, self._last = folder, start + 2, start + 2 + steps
        self._wanted, self._running = steps > 0 and jax.process_index() == 0, False

    def __enter__(self):
        return self

    def before(self, step: int) -> None:
        """Call it before the step behind ``step`` others."""
        if self._running and step >= self._last:
            self._end()
        elif self._wanted and step == self._first:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def _end(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        logger.info("a trace of steps %d to %d lies in %s", self._first + 1, self._last, self._folder)

    def __exit__(self, *_):
        if self._running:
            self._end()


def peak_memory(mesh: Mesh) -> dict[str, int | None]:
    """Bytes that this process has used at most: "host", and "device" of the fullest device, None where it is the host.

    "host" is None on systems that do not say.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    statistics = [device.memory_stats() or {} for device in mesh.local_devices]
    peaks = [found["peak_bytes_in_use"] for found in statistics if "peak_bytes_in_use" in found]
    return {"host": host, "device": max(peaks, default=None)}
