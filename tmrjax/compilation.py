"""Compiled programs: kept for the next process, and timed apart from running.

JAX compiles one program for every shape of a batch, which takes longer than reading a thousand short posts. It keeps
programs in a folder where one is set; nothing here touches a folder that the user has set, by
``JAX_COMPILATION_CACHE_DIR`` or ``jax.config``. ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing, and
``XDG_CACHE_HOME`` moves the folder of this module, ``tmrjax`` in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.experimental.compilation_cache import compilation_cache

logger = logging.getLogger(__name__)

_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_USUAL_LEAST_SECONDS = 1.0  # JAX's: what compiles faster is not kept


def keep_compiled() -> Path | None:
    """Let JAX keep what it compiles in the user's cache folder; returns the folder, None where nothing was changed.

    All programs are kept, however fast they compile: a prediction has a few small ones, which together take as long as
    a large one. The folder's name has the kind of processor: JAX's key lacks it, and homes are shared by unlike
    machines. Where the folder cannot be made a warning says so.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    except OSError:
        processor = platform.processor()
    kind = hashlib.sha256(processor.encode()).hexdigest()[:8]
    folder = Path(home) / "tmrjax" / f"compiled-{platform.machine()}-{kind}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("compiled programs are not kept (%s); XDG_CACHE_HOME names another folder", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if getattr(jax.config, _LEAST_SECONDS) == _USUAL_LEAST_SECONDS and _LEAST_SECONDS.upper() not in os.environ:
        jax.config.update(_LEAST_SECONDS, 0.0)
    compilation_cache.reset_cache()  # JAX looks for a folder once, at the first program that it compiles
    return folder


def return_memory() -> None:
    """Give what glibc keeps free back to the system: after a compilation more than a gigabyte, and no step needs it.

    Elsewhere than with glibc this does nothing.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


class Clock(Protocol):
    """What adds up the seconds of compiling."""

    compile_seconds: float


class Compiled:
    """A jitted step compiled ahead, once per shape of batch, so that compilation is timed apart from running."""

    def __init__(self, step: Callable, clock: Clock):
        self._step, self._clock, self._by_shape = step, clock, {}
        self._compiling = threading.Lock()  # several threads may predict, and need a program once

    def __len__(self) -> int:
        """How many programs there are."""
        return len(self._by_shape)

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        """Run the step on this batch, compiling it first where its shape is new."""
        shape = tuple((jax.tree_util.keystr(path), rows.shape) for path, rows in jax.tree.leaves_with_path(batch))
        with self._compiling:
            if shape not in self._by_shape:
                start = time.perf_counter()
                self._by_shape[shape] = self._step.lower(state, batch).compile()
                self._clock.compile_seconds += time.perf_counter() - start
                return_memory()
        return self._by_shape[shape](state, batch)
