"""Reading and writing the files of a data set: one clear error for bad data, and writes that are whole or not there.

Not of the paper; the ground floor of :mod:`tmrjax.records`. Needs only the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data that breaks the format; the message has file and line, what was found, what was expected, what to do."""

    def __init__(self, where: str | os.PathLike, found: str, expected: str, advice: str):
        self.where, self.found, self.expected, self.advice = str(where), found, expected, advice
        super().__init__(f"{self.where}: found {found}; expected {expected}. {advice}")

    def __reduce__(self):  # an error of a worker process must reach its parent whole
        return type(self), (self.where, self.found, self.expected, self.advice)


def parse_json(line: bytes, where: str) -> Any:
    """One JSON value from UTF-8 bytes; a repeated key is an error. Raises :class:`DataError`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise DataError(where, f"the key {repeated[0]!r} more than once", "every key once", "Remove one of them.")
        return dict(pairs)

    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise DataError(
            where, f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text", "Convert the file."
        ) from error
    except json.JSONDecodeError as error:
        advice = "Repair the line; if the file ends here, it was cut off while it was written."
        raise DataError(where, f"malformed JSON ({error})", "one JSON object per line", advice) from error


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises :class:`DataError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(path, error.strerror or str(error), "a readable file", "Check the path.") from error


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file so that a reader sees the old or the new content, never a part; a full disk leaves the old one."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def jsonl_bytes(objects: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object per line, UTF-8, LF; NaN and infinities raise ValueError."""
    return "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in objects).encode("utf-8")


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
