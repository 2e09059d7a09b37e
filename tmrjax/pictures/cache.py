"""What is made of pictures once and kept: states of a frozen encoder, so that training on a laptop costs no picture at
all, or the decoded pixels, so that training with pictures decodes none.

What is kept is chosen: the tokens, the pooled state, the maps of all stages
(:class:`tmrjax.encoders.base.PictureStates`), or the uint8 pixels that the encoder would read. Whole pictures and
regions have a cache each, or one together where they keep the same. States are keyed by what they depend on: the bytes
of the picture, the box, the preprocessing, the encoder (its weights, its config, the type it computes in). Where
``reducing_gap`` is not 0, pixels depend a little on which parts of a picture were asked for together; those of the
first build are kept. A folder holds one sub-folder per (encoder, preprocessing, what is kept, dtype)::

    cache.json             what the cache is of, the shapes of what it keeps, a checksum of both
    shard-00000.maps       rows of raw numbers, the states of one request each, one array behind the other
    shard-00000.keys       a line per row: its number, a checksum, the picture's SHA-256 and its box

A row counts once it and its line are written, in this order: an interrupted build loses a batch at most and continues
where it stopped. The checksum covers number, key and row, and every row that is asked for is checked before it is
used: what is damaged is computed again, and no damage gives a picture another one's states. Builds of the same shard
wait for each other; processes that build at once have a shard each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: there, processes that build at once must differ in their shard
    fcntl = None

from tmrjax.files import DataError, parse_json, read_bytes, sha256, write_atomic
from tmrjax.pictures.decode import PictureError
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.pictures.requests import PictureRequest, RequestedPixels, bytes_of, digests_of, key_of

logger = logging.getLogger(__name__)

KEEP = ("tokens", "pooled", "stages", "pixels")
# By name, without the axis of pictures: an array, or several of them (stages).
States = Mapping[str, np.ndarray | tuple[np.ndarray, ...]]

_DTYPES = ("float32", "float16", "uint8")
_FORMAT = 3  # of the files and of what is done to pixels; part of the identity, so that older caches are left alone
_LINE = re.compile(rb"(0|[1-9][0-9]{0,17}) ([0-9a-f]{8}) ([0-9a-f]{64}(?::[-+.,0-9e]+)?)", re.ASCII)


class FeatureCache:
    """States by request; make one with :meth:`build`.

    Attributes:
        shapes: of what is kept, by name: one shape, or a tuple of them (stages).
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Any], dtype: str, digests: dict[Path, str]):
        self.folder, self.shapes, self.dtype = folder, dict(shapes), dtype
        self._row_size = sum(math.prod(shape) for value in shapes.values() for shape in _several(value))
        self._digests = digests
        self._rows: dict[str, _Row] = {}
        self._maps: dict[Path, np.ndarray] = {}
        for keys in sorted(folder.glob("*.keys")):
            self._rows |= {row.key: row for row in self._written(keys)}

    def __getstate__(self) -> dict:
        # Workers open the files themselves; a memory map would be pickled as its whole content.
        return self.__dict__ | {"_maps": {}}

    def __contains__(self, request: PictureRequest) -> bool:
        return self._key(request) in self._rows

    def __getitem__(self, request: PictureRequest) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
        """What is kept of a picture by name: tokens [P, C], pooled [C], stages as a tuple of [h, w, C_i], as float32;
        pixels [S, S, 3] as uint8.

        Raises KeyError for what :meth:`build` was not asked for.
        """
        try:
            row = self._rows[self._key(request)]
        except KeyError:
            raise KeyError(f"{request.path} {request.box or ''}: not in the feature cache {self.folder}") from None
        return self._arrays(np.asarray(self._stored(row), self._given))

    def empty(self) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
        """Zeros in the shapes of what is kept: for a picture that is not there."""
        return self._arrays(np.zeros(self._row_size, self._given))

    @property
    def _given(self) -> str:
        """The type of what is handed out."""
        return "uint8" if self.dtype == "uint8" else "float32"

    def _arrays(self, row: np.ndarray) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
        arrays, start = {}, 0
        for name, value in self.shapes.items():
            parts = []
            for shape in _several(value):
                parts.append(row[start : start + math.prod(shape)].reshape(shape))
                start += math.prod(shape)
            arrays[name] = tuple(parts) if _is_several(value) else parts[0]
        return arrays

    def _stored(self, row: _Row) -> np.ndarray:
        if row.path not in self._maps:
            stored = row.path.stat().st_size // self._row_bytes
            self._maps[row.path] = np.memmap(row.path, self.dtype, "r", shape=(stored, self._row_size))
        return self._maps[row.path][row.number]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _row_bytes(self) -> int:
        return self._row_size * np.dtype(self.dtype).itemsize

    def _written(self, keys: Path) -> list[_Row]:
        """Lines that are whole and whose rows are there; after a power cut a file may have keys without rows."""
        maps = keys.with_suffix(".maps")
        stored = maps.stat().st_size // self._row_bytes if maps.exists() else 0
        matches = (_LINE.fullmatch(line) for line in read_bytes(keys).split(b"\n")[:-1])
        rows = (_Row(maps, int(m[1]), m[3].decode(), int(m[2], 16)) for m in matches if m)
        return [row for row in rows if row.number < stored]

    def _drop_damaged(self, requests: Sequence[PictureRequest], pool: ThreadPoolExecutor) -> None:
        """Forgets the rows asked for that are not what was written; they are computed again."""
        rows = [self._rows[key] for key in dict.fromkeys(map(self._key, requests)) if key in self._rows]
        for path in {row.path for row in rows}:  # opened here: the threads only read
            self._stored(next(row for row in rows if row.path == path))
        whole = pool.map(lambda row: _checksum(row.number, row.key, self._stored(row)) == row.checksum, rows)
        damaged = [row for row, is_whole in zip(rows, whole, strict=True) if not is_whole]
        for row in damaged:
            del self._rows[row.key]
        if damaged:
            logger.warning("%s: %d of %d rows are damaged and computed again", self.folder, len(damaged), len(rows))

    def _key(self, request: PictureRequest) -> str:
        digest = self._digests.get(request.path)
        if digest is None:
            digest = self._digests[request.path] = sha256(bytes_of(request.path))
        return key_of(digest, request.box)

    @classmethod
    def build(
        cls,
        directory: str | Path,
        requests: Sequence[PictureRequest],
        encode: Callable[[np.ndarray], States],
        *,
        encoder_identity: Mapping[str, Any],
        settings: PictureSettings,
        keep: Sequence[str] = ("tokens",),
        batch_size: int = 32,
        dtype: str = "float32",
        progress: bool = True,
        num_threads: int = 2,
        shard: int = 0,
    ) -> FeatureCache:
        """Compute the states that are missing and open the cache.

        Args:
            directory: where caches are kept, shared by all weights and sizes.
            requests: everything that will be asked for; doubles are computed once.
            encode: uint8 pixels [batch_size, size, size, 3], not normalised -> arrays [batch_size, ...] under the names
                in ``keep``, a tuple of them for stages; other names are ignored. Always called with that shape. For
                "pixels" it hands them on.
            encoder_identity: all that the states depend on beside the pixels (hash of weights, config, type of the
                computation), as JSON; part of the cache's identity.
            settings: how pictures become pixels; part of the identity too.
            keep: some of KEEP.
            batch_size: pictures at a time.
            dtype: "float32", or "float16" for half the space (and states rounded to 11 bits); "uint8" for pixels.
            progress: show a bar on a terminal.
            num_threads: that decode pictures.
            shard: file of this process; processes that build at once should differ in it, or wait for each other.

        Raises:
            PictureError: lists every picture that cannot be read; the states of the others are kept.
            ValueError: an unknown dtype or name, settings of released weights, or states that are not there, of
                another shape than the cache's, or not finite.
        """
        keep = tuple(name for name in KEEP if name in keep) if set(keep) <= set(KEEP) else tuple(keep)
        if not keep or not set(keep) <= set(KEEP):
            raise ValueError(f"a feature cache was asked to keep {list(keep)}; expected some of {', '.join(KEEP)}")
        if not settings.as_bytes or settings.whole == "area_bgr":
            raise ValueError(
                "a feature cache keeps states of pictures that are normalised, and gives none for what is missing; "
                f"whole={settings.whole!r} and missing={settings.missing!r} of released weights ask for other ones"
            )
        if dtype not in _DTYPES:
            raise ValueError(f"the dtype of a feature cache is {dtype!r}; expected one of {_DTYPES}")
        if (dtype == "uint8") != (keep == ("pixels",)):
            raise ValueError(f"a feature cache was asked to keep {list(keep)} as {dtype}; pixels, alone, are uint8")
        identity = {
            "format": _FORMAT,
            "encoder": dict(encoder_identity),
            "pictures": settings.of_pixels,
            "keep": list(keep),
            "dtype": dtype,
        }
        identity = json.loads(json.dumps(identity))
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(directory) / name
        folder.mkdir(parents=True, exist_ok=True)

        with ThreadPoolExecutor(max(num_threads, 1)) as pool:
            digests = digests_of(list(dict.fromkeys(request.path for request in requests)), pool)
            about = folder / "cache.json"
            shapes = _read_shapes(about, identity)
            if shapes is None:
                blank = np.zeros((batch_size, settings.size, settings.size, 3), np.uint8)
                shapes = {name: _shapes_of(value) for name, value in _chosen(encode(blank), keep).items()}
                content = {**identity, "shapes": shapes}
                write_atomic(about, json.dumps({**content, "checksum": _json_checksum(content)}, indent=2).encode())
            with _lock(folder / f"shard-{shard:05d}.lock"):
                cache = cls(folder, shapes, dtype, digests)
                cache._drop_damaged(requests, pool)
                missing = list({cache._key(request): request for request in requests if request not in cache}.items())
                if missing:
                    pixels = RequestedPixels(requests, settings, pool)
                    cache._append(missing, encode, pixels, batch_size, progress, shard)
        return cache

    def _append(self, missing, encode, pixels, batch_size, progress, shard) -> None:
        maps, keys = self.folder / f"shard-{shard:05d}.maps", self.folder / f"shard-{shard:05d}.keys"
        written = self._written(keys) if keys.exists() else []
        # Without half a line that a killed build left, and without what is damaged. A row that has lost its line stays
        # as a gap: whoever has the file open reads a row as what it was.
        write_atomic(keys, b"".join(row.line() for row in written if self._rows.get(row.key) == row))
        maps.touch()
        end = maps.stat().st_size // self._row_bytes
        chunks = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        side = pixels.settings.size

        def begin(number: int) -> Callable:
            return pixels.begin([request for _, request in chunks[number]] if number < len(chunks) else [])

        bar = tqdm(total=len(missing), desc="picture features", unit="picture", disable=None if progress else True)
        with maps.open("r+b") as map_file, keys.open("ab") as key_file, bar:
            map_file.truncate(end * self._row_bytes)
            map_file.seek(0, 2)
            decoded = begin(0)
            for number, chunk in enumerate(chunks):
                loaded = decoded()
                decoded = begin(number + 1)  # the next pictures are decoded while these are encoded
                kept = [(key, array) for (key, _), array in zip(chunk, loaded, strict=True) if array is not None]
                batch = np.zeros((batch_size, side, side, 3), np.uint8)
                for row, (_, array) in enumerate(kept):
                    batch[row] = array
                features = self._checked(encode(batch))[: len(kept)]
                map_file.write(features.tobytes())
                map_file.flush()
                rows = [
                    _Row(maps, end + place, key, _checksum(end + place, key, features[place]))
                    for place, (key, _) in enumerate(kept)
                ]
                end += len(rows)
                key_file.write(b"".join(row.line() for row in rows))
                key_file.flush()
                self._rows |= {row.key: row for row in rows}
                bar.update(len(chunk))
        self._maps.pop(maps, None)  # it has grown
        if faults := sorted(pixels.faults):
            raise PictureError(
                self.folder,
                f"{len(faults)} pictures that cannot be read:\n  " + "\n  ".join(faults),
                "pictures",
                "Replace them, or set their records' image to null.",
            )

    def _checked(self, states: States) -> np.ndarray:
        """Rows [pictures, numbers] as they are stored."""
        states = _chosen(states, self.shapes)
        found = {name: _shapes_of(value) for name, value in states.items()}
        if found != self.shapes:
            raise ValueError(
                f"{self.folder}: states of shapes {found}, but the cache holds {self.shapes}; "
                "does this encoder have another identity?"
            )
        parts = [np.asarray(part) for value in states.values() for part in _several(value)]
        rows = np.concatenate([part.reshape(len(part), -1).astype(self._given) for part in parts], axis=1)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(rows.astype(self.dtype))
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{self.folder}: states with NaN or infinity as {self.dtype}; "
                "expected finite numbers: check the weights, or use float32"
            )
        return stored


def _is_several(value: Any) -> bool:
    """Whether these are several arrays, or several shapes, and not one."""
    return isinstance(value, tuple | list) and not all(isinstance(side, int) for side in value)


def _several(value: Any) -> tuple:
    return tuple(value) if _is_several(value) else (value,)


def _shapes_of(value: Any) -> tuple:
    """Shapes of one picture's part of an array, or of each of several."""
    return tuple(_shapes_of(part) for part in value) if _is_several(value) else tuple(np.shape(value)[1:])


def _chosen(states: States, keep: Iterable[str]) -> dict[str, Any]:
    missing = [name for name in keep if name not in states]
    if missing:
        raise ValueError(f"this encoder gives no {', '.join(missing)}; it gives {', '.join(states)}")
    return {name: states[name] for name in keep}


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other build holds the lock; it ends with its process, so that a killed build blocks nobody."""
    with path.open("w") as stream:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class _Row(NamedTuple):
    """Where the states of a request lie, and the checksum that they were written with."""

    path: Path
    number: int
    key: str
    checksum: int

    def line(self) -> bytes:
        return f"{self.number} {self.checksum:08x} {self.key}\n".encode()


def _checksum(number: int, key: str, row: np.ndarray) -> int:
    """CRC-32 over the row's number, its key and its bytes: swapped rows and changed keys do not pass either."""
    return zlib.crc32(row, zlib.crc32(f"{number} {key}\n".encode()))


def _json_checksum(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())[:16]


def _read_shapes(about: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Shapes by name as `cache.json` says them; None where that is not there or damaged: it can be made again."""
    if not about.exists():
        return None
    try:
        content = dict(parse_json(read_bytes(about), str(about)))
        checksum, shapes = content.pop("checksum"), content["shapes"]
        if checksum == _json_checksum(content) and {**identity, "shapes": shapes} == content:
            return {name: _as_tuples(shapes[name]) for name in identity["keep"]}
    except (DataError, KeyError, TypeError, ValueError):
        pass
    logger.warning("%s is damaged and made again", about)
    return None


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list) else value
