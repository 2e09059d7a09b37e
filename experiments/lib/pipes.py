"""Posts from a pipe: lines as they come, and a sign where the other end pauses."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

from tmrjax.prediction.ahead import PAUSE

SECONDS = 0.05  # without a new line, after which what was read is answered
BYTES = 2**16


def lines_of(descriptor: int, *, seconds: float = SECONDS) -> Iterator[bytes | object]:
    """The lines of a pipe, terminal or file, without their ends; PAUSE where none has come for ``seconds``.

    There is one PAUSE until the next line is there. The last line needs no end.
    """
    rest, paused = b"", True  # there is nothing to hand over yet
    while True:
        if not paused and not select.select([descriptor], [], [], seconds)[0]:
            paused = True
            yield PAUSE
        data = os.read(descriptor, BYTES)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            paused = False
            yield line
    if rest:
        yield rest
