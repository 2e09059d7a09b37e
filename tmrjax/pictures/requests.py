"""What a cache is asked for: pictures and parts of them, by content; and their pixels, each file decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tmrjax.files import DataError, open_regular, sha256
from tmrjax.pictures.decode import PictureError, load_decoded
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records.schema import Box


class PictureRequest(NamedTuple):
    """A picture, or the part of it inside a box (fractions)."""

    path: Path
    box: Box | None


def key_of(digest: str, box: Box | None) -> str:
    """The name of a request in a cache: the SHA-256 of the file, and the box."""
    return digest if box is None else f"{digest}:{','.join(f'{side:.9g}' for side in box)}"


def bytes_of(path: Path) -> bytes:
    """The content of a picture file; raises PictureError."""
    try:
        with open_regular(path) as stream:
            return stream.read()
    except OSError as error:
        raise PictureError(path, f"a file that cannot be read ({error.strerror})", "a picture", "Restore it.") from None


def digests_of(paths: Sequence[Path], pool: Executor) -> dict[Path, str]:
    """The SHA-256 of each file; raises a PictureError that lists all that cannot be read."""

    def digest(path: Path) -> tuple[Path, str | DataError]:
        try:
            return path, sha256(bytes_of(path))
        except DataError as error:
            return path, error

    found = dict(pool.map(digest, paths))
    faults = [str(error) for error in found.values() if isinstance(error, DataError)]
    if faults:
        raise PictureError(
            paths[0].parent, "pictures that cannot be read:\n  " + "\n  ".join(faults), "pictures", "Restore them."
        )
    return found


class RequestedPixels:
    """The pixels of requests, decoded in threads; of a picture in a chunk the file is decoded once for all its parts.

    How much smaller a picture is decoded depends on all that is asked of it, not on how requests fall into chunks.
    A picture that cannot be read has None as pixels and an entry in ``faults``.
    """

    def __init__(self, requests: Iterable[PictureRequest], settings: PictureSettings, pool: Executor):
        self.settings, self._pool = settings, pool
        self.faults: set[str] = set()
        self._boxes: dict[Path, dict[Box | None, None]] = {}
        for path, box in requests:
            self._boxes.setdefault(path, {})[box] = None

    def begin(self, chunk: Sequence[PictureRequest]) -> Callable[[], list[np.ndarray | None]]:
        """Begin to decode; the function that comes back waits for the pixels, in the order of ``chunk``."""
        numbers: dict[Path, list[int]] = {}
        for number, request in enumerate(chunk):
            numbers.setdefault(request.path, []).append(number)
        pending: list[tuple[list[int], Future]] = [
            (members, self._pool.submit(self._pixels, path, [chunk[number].box for number in members]))
            for path, members in numbers.items()
        ]

        def finish() -> list[np.ndarray | None]:
            found: list[np.ndarray | None] = [None] * len(chunk)
            for members, future in pending:
                for number, pixels in zip(members, future.result(), strict=True):
                    found[number] = pixels
            return found

        return finish

    def _pixels(self, path: Path, boxes: Sequence[Box | None]) -> list[np.ndarray | None]:
        settings = self.settings
        try:
            picture = load_decoded(path, settings.shrinking(list(self._boxes[path])))
        except PictureError as error:
            self.faults.add(str(error))
            return [None] * len(boxes)
        return [
            settings.whole_pixels(picture) if box is None else settings.region_pixels(picture, box) for box in boxes
        ]
