"""Results that are written as they come and survive a kill: the same command goes on where it was stopped.

Beside OUTPUT lie, until the run is done, OUTPUT.partial (results), OUTPUT.skipped.jsonl.partial (posts that could not
be read) and OUTPUT.partial.journal. The journal's first line says what the results were made of; each further line
says up to which line and byte of the input, and up to which byte of both files, the work is done. What was written
behind the last such line is taken back on resume.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tmrjax.files import DataError, jsonl_bytes
from tmrjax.training.checkpoints import CheckpointError, config_difference


class _Growing:
    """A file that grows, and the CRC-32 of its content."""

    def __init__(self, path: Path):
        self.path = path
        self.stream: BinaryIO = path.open("a+b")
        self.size = self.crc = 0

    def resume(self, size: int, crc: int) -> bool:
        """Cut the file to ``size`` bytes; False where these are not the bytes that were written."""
        self.stream.seek(0)
        left = size
        while left and (data := self.stream.read(min(left, 2**20))):
            self.crc, left = zlib.crc32(data, self.crc), left - len(data)
        self.stream.truncate(size)
        self.size = size
        return not left and self.crc == crc

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self.size, self.crc = self.size + len(data), zlib.crc32(data, self.crc)

    def sync(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())


class Journal:
    """The files of one prediction. ``line`` and ``offset`` say how far the input is done, ``counts`` what was found.

    Raises CheckpointError where the files are of another run, DataError where they were changed or are in use.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]):
        self.output, self.skipped = output, Path(f"{output}.skipped.jsonl")
        self.line = self.offset = 0
        self.counts: Counter[str] = Counter()
        self.resumed = False
        if not output.parent.is_dir():
            raise DataError(output.parent, "no such folder", "the folder of the output", "Make it first.")
        self._path = Path(f"{output}.partial.journal")
        self._stream = self._path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                self._path, "another process that writes this output", "none", "Wait for it, or take another --output."
            ) from None
        except OSError:
            pass  # a file system without locks
        self._stream.seek(0)
        lines = self._stream.read().split(b"\n")
        whole = lines[:-1]  # what stands behind the last line end was not written to its end
        self._results, self._skips = _Growing(Path(f"{output}.partial")), _Growing(Path(f"{self.skipped}.partial"))
        if whole:
            self._resume(whole, identity)
        else:
            for growing in (self._results, self._skips):
                growing.resume(0, 0)
            self._stream.truncate(0)
            self._append({"identity": dict(identity)})
        self._committed = self.line

    def _resume(self, lines: list[bytes], identity: Mapping[str, Any]) -> None:
        advice = f"Remove {self._path} and {self._results.path} to begin anew."
        try:
            begun, *states = [json.loads(line) for line in lines]
            difference = config_difference(begun["identity"], json.loads(json.dumps(identity)))
            state = states[-1] if states else None
            sound = True
            if state and not difference:
                sound = self._results.resume(*state["results"]) and self._skips.resume(*state["skipped"])
                self.line, self.offset, self.counts = state["line"], state["offset"], Counter(state["counts"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(self._path, "a damaged journal", "one that this command wrote", advice) from None
        if difference:
            raise CheckpointError(
                f"{self._results.path} holds results that were made of something else; take the old input and options, "
                f"or another --output. {advice} They differ in:\n  " + "\n  ".join(difference)
            )
        if not sound:
            raise DataError(self._results.path, "other bytes than were written", "the results so far", advice)
        if not state:
            self._results.resume(0, 0)
            self._skips.resume(0, 0)
        self._stream.truncate(sum(len(line) + 1 for line in lines))
        self.resumed = self.line > 0

    def _append(self, value: Mapping[str, Any]) -> None:
        self._stream.write(jsonl_bytes([value]))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def write(self, result: Mapping[str, Any]) -> None:
        """The result of the next post."""
        self._results.write(jsonl_bytes([result]))

    def skip(self, entry: Mapping[str, Any]) -> None:
        """The next post has no result."""
        self._skips.write(jsonl_bytes([entry]))
        self.counts["skipped"] += 1

    def done_to(self, line: int, offset: int) -> None:
        """The input is done up to this line and byte; every 256 lines this is made to last."""
        self.line, self.offset = line, offset
        if self.line - self._committed >= 256:
            self.commit()

    def commit(self) -> None:
        """What was written until now lasts whatever happens."""
        if self.line == self._committed:
            return
        for growing in (self._results, self._skips):
            growing.sync()
        self._committed = self.line
        self._append(
            {
                "line": self.line,
                "offset": self.offset,
                "results": [self._results.size, self._results.crc],
                "skipped": [self._skips.size, self._skips.crc],
                "counts": self.counts,
            }
        )

    def finish(self) -> None:
        """Move the files to their names; an old list of skipped posts does not outlive its cause."""
        self.commit()
        self.close()
        if self._skips.size:
            os.replace(self._skips.path, self.skipped)
        else:
            self._skips.path.unlink()
            self.skipped.unlink(missing_ok=True)
        os.replace(self._results.path, self.output)
        self._path.unlink()

    def close(self) -> None:
        """Close the files; what was not made to last is taken back on resume."""
        for stream in (self._results.stream, self._skips.stream, self._stream):
            stream.close()
