"""Reading and writing the files of a data set: one clear error for bad data, and writes that are whole or not there.

Not of the paper; the ground floor of :mod:`tmrjax.records`. Needs only the standard library.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MAX_DEPTH = 100  # levels of JSON; whatever writes or shows a value must be able to walk it too


class DataError(ValueError):
    """Data that breaks the format; the message has file and line, what was found, what was expected, what to do."""

    def __init__(self, where: str | os.PathLike, found: str, expected: str, advice: str):
        self.where, self.found, self.expected, self.advice = str(where), found, expected, advice
        super().__init__(f"{self.where}: found {found}; expected {expected}. {advice}")

    def __reduce__(self):  # an error of a worker process must reach its parent whole
        return type(self), (self.where, self.found, self.expected, self.advice)


def parse_json(line: bytes, where: str) -> Any:
    """One JSON value from UTF-8 bytes.

    Raises :class:`DataError` for what is no JSON and for what other programs read in another way or not at all: a
    repeated key, NaN or a number beyond the range of a double, an integer of thousands of digits, a lone surrogate,
    an object nested too deeply to be read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise DataError(where, f"the key {repeated!r} more than once", "every key once", "Remove one of them.")
        return value

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise DataError(where, f"the number {text[:40]}", "finite numbers", "Write null if it is unknown.")
        return number

    try:
        text = line.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
        if text.count("[") + text.count("{") > MAX_DEPTH:  # it may be deep
            _refuse_depth(value, where)
        if "\\u" in text:  # the only way in for what UTF-8 cannot hold
            _refuse_surrogates(value, where)
        return value
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(
            where, f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text", "Convert the file."
        ) from error
    except json.JSONDecodeError as error:
        advice = "Repair the line; if the file ends here, it was cut off while it was written."
        raise DataError(where, f"malformed JSON ({error})", "one JSON object per line", advice) from error
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise DataError(where, f"a number that cannot be read ({error})", "a shorter one", "Correct it.") from None


def _too_deep(where: str) -> DataError:
    return DataError(where, f"JSON of more than {MAX_DEPTH} levels", "a few levels", "Repair or remove it.")


def _refuse_depth(value: Any, where: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:  # values that are no containers stand one below the last level
            raise _too_deep(where)
        containers = [item for item in level if isinstance(item, list | dict)]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]


def _refuse_surrogates(value: Any, where: str, name: str = "") -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            place = f" in {name!r}" if name else ""
            raise DataError(
                where, f"a lone surrogate{place}", "text that is valid UTF-8", "Repair the escape in the source file."
            ) from None
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, where, f"{name}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_surrogates(key, where, name or "a key")
            _refuse_surrogates(item, where, f"{name}.{key}" if name else key)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a file to read its bytes; raises OSError, also for what is no regular file.

    A pipe would be waited for without an end, and reading a device can do more than read; neither is opened.
    """
    path = os.fspath(path)
    if "\0" in path:
        raise OSError(errno.EINVAL, "a NUL character in the name", path)
    _require_regular(os.stat(path), path)
    # Not blocking, and checked once more: it may have been replaced by a pipe in between.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(os.fstat(handle), path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _require_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder", path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device", path)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a regular file; raises :class:`DataError` if it cannot be read."""
    try:
        with open_regular(path) as stream:
            return stream.read()
    except OSError as error:
        raise DataError(path, error.strerror or str(error), "a readable file", "Check the path.") from error


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file so that a reader sees the old or the new content, never a part; a full disk leaves the old one.

    Who may read it is what the user's umask says, as for any new file.
    """
    path = Path(path)
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


class FolderOfFiles:
    """Which relative paths are regular files inside of a folder; made for one reading, for it remembers folders.

    A folder is resolved once, and a file only where it is a link: for a path of every record that is one system call.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = os.fspath(root)
        self._base = os.path.realpath(self.root)
        self._inside: dict[str, bool] = {}

    def look(self, path: str) -> str:
        """ "there"; "missing": no regular file; "outside": the path, or a link on its way, leads out of the folder."""
        folder = os.path.dirname(path)
        if folder not in self._inside:
            self._inside[folder] = self._is_inside(os.path.join(self.root, folder))
        if not self._inside[folder]:
            return "outside"
        file = os.path.join(self.root, path)
        try:
            mode = os.lstat(file).st_mode
            if stat.S_ISLNK(mode):
                if not self._is_inside(file):
                    return "outside"
                mode = os.stat(file).st_mode
        except (OSError, ValueError):  # ValueError: a NUL character
            return "missing"
        return "there" if stat.S_ISREG(mode) else "missing"

    def _is_inside(self, path: str) -> bool:
        return os.path.commonpath([os.path.realpath(path), self._base]) == self._base


def jsonl_bytes(objects: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object per line, UTF-8, LF; NaN and infinities raise ValueError."""
    return "".join(_JSONL.encode(item) + "\n" for item in objects).encode("utf-8")


_JSONL = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps would make one for every line


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
