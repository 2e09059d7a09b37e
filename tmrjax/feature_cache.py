"""Maps of a frozen ResNet, computed once and kept: training on a laptop then costs no picture at all.

A map is keyed by what it depends on: the bytes of the picture, the box, the sizes of preprocessing, the weights. A
folder holds one sub-folder per (weights, preprocessing, dtype) and in it, per process, rows of maps in one file of raw
numbers and their keys, a line each. A row counts once it and its key are written, in this order: an interrupted build
loses a batch at most and continues where it stopped. Builds of the same shard wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: there, processes that build at once must differ in their shard
    fcntl = None

from tmrjax.files import DataError, sha256, write_atomic
from tmrjax.images import PictureError, load_picture, picture_to_pixels, region_to_pixels
from tmrjax.record_schema import Box

_DTYPES = ("float32", "float16")


class PictureRequest(NamedTuple):
    """A picture, or the part of it inside a box (fractions)."""

    path: Path
    box: Box | None


class FeatureCache:
    """Maps by request; make one with :meth:`build`."""

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: str, digests: dict[Path, str]):
        self.folder, self.feature_shape, self.dtype = folder, tuple(shape), dtype
        self._digests = digests
        self._rows: dict[str, tuple[Path, int]] = {}
        self._maps: dict[Path, np.ndarray] = {}
        for keys in sorted(folder.glob("*.keys")):
            self._rows |= {key: (keys.with_suffix(".maps"), row) for row, key in enumerate(self._written(keys))}

    def __getstate__(self) -> dict:
        # Workers open the files themselves; a memory map would be pickled as its whole content.
        return self.__dict__ | {"_maps": {}}

    def __contains__(self, request: PictureRequest) -> bool:
        return self._key(request) in self._rows

    def __getitem__(self, request: PictureRequest) -> np.ndarray:
        """The map [patches, C] as float32. Raises KeyError for what :meth:`build` was not asked for."""
        try:
            path, row = self._rows[self._key(request)]
        except KeyError:
            raise KeyError(f"{request.path} {request.box or ''}: not in the feature cache {self.folder}") from None
        if path not in self._maps:
            stored = path.stat().st_size // self._row_bytes
            self._maps[path] = np.memmap(path, self.dtype, "r", shape=(stored, *self.feature_shape))
        return np.asarray(self._maps[path][row], np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.feature_shape)) * np.dtype(self.dtype).itemsize

    def _written(self, keys: Path) -> list[str]:
        """Keys whose rows are there; after a power cut a file may have keys without rows."""
        maps = keys.with_suffix(".maps")
        return _whole_lines(keys)[: maps.stat().st_size // self._row_bytes] if maps.exists() else []

    def _key(self, request: PictureRequest) -> str:
        digest = self._digests.get(request.path)
        if digest is None:
            digest = self._digests[request.path] = sha256(_bytes_of(request.path))
        return _key(digest, request.box)

    @classmethod
    def build(
        cls,
        directory: str | Path,
        requests: Sequence[PictureRequest],
        encode: Callable[[np.ndarray], np.ndarray],
        *,
        weights_hash: str,
        size: int,
        resize: int,
        batch_size: int = 32,
        dtype: str = "float32",
        progress: bool = True,
        num_threads: int = 2,
        shard: int = 0,
    ) -> FeatureCache:
        """Compute the maps that are missing and open the cache.

        Args:
            directory: where caches are kept, shared by all weights and sizes.
            requests: everything that will be asked for; doubles are computed once.
            encode: pixels [batch_size, size, size, 3] -> maps [batch_size, patches, C]; always called with that shape.
            weights_hash: of the ResNet, a part of the key.
            size: see :func:`tmrjax.images.picture_to_pixels`.
            resize: likewise.
            batch_size: pictures at a time.
            dtype: "float32", or "float16" for half the space (and maps rounded to 11 bits).
            progress: show a bar on a terminal.
            num_threads: that decode pictures.
            shard: file of this process; processes that build at once should differ in it, or wait for each other.

        Raises:
            PictureError: lists every picture that cannot be read; the maps of the others are kept.
            ValueError: an unknown dtype, or maps of another shape than the cache's, or not finite.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"the dtype of a feature cache is {dtype!r}; expected one of {_DTYPES}")
        identity = {"weights": weights_hash, "size": size, "resize": resize, "dtype": dtype}
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(directory) / name
        folder.mkdir(parents=True, exist_ok=True)

        with ThreadPoolExecutor(max(num_threads, 1)) as pool:
            digests = _digests(list(dict.fromkeys(request.path for request in requests)), pool)
            about = folder / "cache.json"
            if about.exists():
                shape = json.loads(about.read_text())["shape"]
            else:
                shape = list(np.shape(encode(np.zeros((batch_size, size, size, 3), np.float32)))[1:])
                write_atomic(about, json.dumps({**identity, "shape": shape}, indent=2).encode())
            with _lock(folder / f"shard-{shard:05d}.lock"):
                cache = cls(folder, tuple(shape), dtype, digests)
                missing = list({cache._key(request): request for request in requests if request not in cache}.items())
                if missing:
                    cache._append(missing, encode, pool, size, resize, batch_size, progress, shard)
        return cls(folder, tuple(shape), dtype, digests)

    def _append(self, missing, encode, pool, size, resize, batch_size, progress, shard) -> None:
        maps, keys = self.folder / f"shard-{shard:05d}.maps", self.folder / f"shard-{shard:05d}.keys"
        written = self._written(keys) if keys.exists() else []
        write_atomic(keys, "".join(f"{key}\n" for key in written).encode())  # without what a killed build left
        maps.touch()
        faults: set[str] = set()

        def pixels(request: PictureRequest) -> np.ndarray | None:
            try:
                picture = load_picture(request.path)
            except PictureError as error:
                faults.add(str(error))
                return None
            if request.box is None:
                return picture_to_pixels(picture, size, resize)
            return region_to_pixels(picture, request.box, size)

        chunks = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]

        def decode(number: int) -> list[Future]:
            chunk = chunks[number] if number < len(chunks) else []
            return [pool.submit(pixels, request) for _, request in chunk]

        bar = tqdm(total=len(missing), desc="picture features", unit="map", disable=None if progress else True)
        with maps.open("r+b") as map_file, keys.open("a", encoding="utf-8") as key_file, bar:
            map_file.truncate(len(written) * self._row_bytes)
            map_file.seek(0, 2)
            pending = decode(0)
            for number, chunk in enumerate(chunks):
                loaded = [future.result() for future in pending]
                pending = decode(number + 1)  # the next pictures are decoded while these are encoded
                kept = [(key, array) for (key, _), array in zip(chunk, loaded, strict=True) if array is not None]
                batch = np.zeros((batch_size, size, size, 3), np.float32)
                for row, (_, array) in enumerate(kept):
                    batch[row] = array
                features = self._checked(np.asarray(encode(batch)))[: len(kept)]
                map_file.write(features.tobytes())
                map_file.flush()
                key_file.write("".join(f"{key}\n" for key, _ in kept))
                key_file.flush()
                bar.update(len(chunk))
        if faults:
            raise PictureError(
                self.folder,
                f"{len(faults)} pictures that cannot be read:\n  " + "\n  ".join(sorted(faults)),
                "pictures",
                "Replace them, or set their records' image to null.",
            )

    def _checked(self, features: np.ndarray) -> np.ndarray:
        if features.shape[1:] != self.feature_shape:
            raise ValueError(
                f"{self.folder}: maps of shape {features.shape[1:]}, but the cache holds {self.feature_shape}; "
                "do these weights have another weights_hash?"
            )
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(features.astype(self.dtype))
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{self.folder}: maps with NaN or infinity as {self.dtype}; "
                "expected finite numbers: check the weights, or use float32"
            )
        return stored


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other build holds the lock; it ends with its process, so that a killed build blocks nobody."""
    with path.open("w") as stream:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _key(digest: str, box: Box | None) -> str:
    return digest if box is None else f"{digest}:{','.join(f'{side:.9g}' for side in box)}"


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _bytes_of(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PictureError(path, f"a file that cannot be read ({error.strerror})", "a picture", "Restore it.") from None


def _digests(paths: Sequence[Path], pool: ThreadPoolExecutor) -> dict[Path, str]:
    def digest(path: Path) -> tuple[Path, str | DataError]:
        try:
            return path, sha256(_bytes_of(path))
        except DataError as error:
            return path, error

    found = dict(pool.map(digest, paths))
    faults = [str(error) for error in found.values() if isinstance(error, DataError)]
    if faults:
        raise PictureError(
            paths[0].parent, "pictures that cannot be read:\n  " + "\n  ".join(faults), "pictures", "Restore them."
        )
    return found
