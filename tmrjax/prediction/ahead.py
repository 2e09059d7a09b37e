"""A stream of posts in chunks, each prepared while the device works on the one before; results in order.

A source may say that it pauses (:data:`PAUSE`): what was read so far is handed over before anything more is read, so
that a person or a program at the other end of a pipe gets the answer to what it wrote.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

Result = TypeVar("Result")

PAUSE = object()
"""An item of a source that waits for more."""
DEPTH = 2  # chunks in work at a time: one on the device, one in preparation


def in_chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items; a shorter one before a PAUSE (followed by an empty list), an error or the end.

    An error of the source comes in its place: behind the items that were read before it.
    """
    chunk: list[Any] = []
    try:
        for item in items:
            if item is not PAUSE:
                chunk.append(item)
                if len(chunk) < size:
                    continue
            elif chunk:
                yield chunk
                chunk = []
            yield chunk
            chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def worked_ahead(
    work: Callable[[list[Any], int], Result], items: Iterable[Any], size: int, *, depth: int = DEPTH
) -> Iterator[tuple[list[Any], Result]]:
    """(chunk, ``work(chunk, number of its first item)``) in order; at most ``depth`` chunks are in work or waiting.

    At most ``depth`` · ``size`` items are read beyond those that were handed over. Chunks are worked on in threads, but
    ``items`` is read in the caller's. An error of ``items`` or of ``work`` is raised in its place. A chunk that comes
    alone, such as a single post, is done in the caller's thread: it needs no other.
    """
    waiting: deque[tuple[list[Any], Any]] = deque()
    chunks, first, failure = in_chunks(items, size), 0, None
    pool = ThreadPoolExecutor(depth, thread_name_prefix="chunk")
    try:
        while True:
            try:
                chunk = next(chunks, None)
            except Exception as error:  # what was read before it comes first
                chunk, failure = None, error
            alone = chunk and not waiting and (len(chunk) < size or depth == 1)
            if alone:
                yield chunk, work(chunk, first)
            elif chunk:
                waiting.append((chunk, pool.submit(work, chunk, first)))
            first += len(chunk or ())
            while waiting and (not chunk or len(waiting) >= depth):
                done, future = waiting.popleft()
                yield done, future.result()
            if chunk is None:
                break
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure


def one_at_a_time(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, called by one thread at a time until its result is there.

    Programs that run on several devices meet each other in collectives. Two threads could start two of them in another
    order on each device, and all would wait for ever.
    """
    lock = threading.Lock()

    def guarded(*arguments: Any) -> Any:
        with lock:
            return jax.block_until_ready(step(*arguments))

    return guarded
