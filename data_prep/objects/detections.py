"""What an object detector found in pictures, as files of any detector: read once, the surest objects of each kept.

* JSONL, a picture a line: `{"image": "images/a.jpg", "objects": [{"label": "dog", "score": 0.9,
  "box": [x1, y1, x2, y2], "feature": [...]?}, ...]}`.
* npz of one picture: arrays `labels` [n] (text), `scores` [n], `boxes` [n, 4], `features` [n, F]?, and `image`, a text;
  without it the picture is the path of the file below the folder that was given, less ".npz".
* npz of many pictures: the same arrays with all objects, and `images` [n], the picture of each.

A folder stands for all `.npz` files in it. The picture is its path in the data set's folder, the end of an absolute
path with that end, or the file's name alone.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmrjax.files import DataError, open_regular, parse_json
from tmrjax.records.schema import RecordChecker

MAXIMUM = 36  # objects of a picture, as bottom-up attention gives them
_ARRAYS = ("labels", "scores", "boxes")


@dataclass(frozen=True)
class Detection:
    """The objects of one picture, the surest first; `rows`: of the table of features, None without features.

    boxes: as the file has them.
    """

    where: str
    image: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    boxes: tuple[tuple[float, ...], ...]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Choice:
    """Which objects are kept of a picture, and whether with their features."""

    maximum: int = MAXIMUM
    least_score: float = 0.0
    features: bool = False

    def __post_init__(self):
        if not 1 <= self.maximum <= MAXIMUM:
            raise ValueError(f"maximum is {self.maximum}; expected 1 to {MAXIMUM}")


class Detections:
    """The kept objects of some files.

    counts: what was left out. sources: of each file, or folder, a SHA-256 of names
    and contents. width: F, None without features.
    """

    def __init__(self, paths: Sequence[Path], choice: Choice, table: Path | None):
        """Reads the files; features go to the new file `table`, float32 [N, F]. Raises :class:`DataError`."""
        self.choice, self.counts, self.sources = choice, Counter(), {}
        self.width: int | None = None
        self._by_path: dict[str, Detection] = {}
        self._rows = 0
        if choice.features != (table is not None):
            raise ValueError("a table is needed for features, and for nothing else")
        if table is None:
            self._read_all(paths, None)
            return
        with open(table, "wb") as stream:
            stream.write(_header(0, 0))
            self._read_all(paths, stream)
            stream.seek(0)
            stream.write(_header(self._rows, self.width or 0))
            stream.flush()
            os.fsync(stream.fileno())

    def __len__(self) -> int:
        return len(self._by_path)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self._by_path.values())

    def of(self, image: str) -> Detection | None:
        """The objects of a picture of the data set, by its path there."""
        if image in self._by_path:
            return self._by_path[image]
        return self._by_path.get(Path(image).name) or self._by_end.get(image)

    def _read_all(self, paths: Sequence[Path], stream: Any) -> None:
        for path in paths:
            read = [path]
            if path.is_dir():
                read = sorted(path.rglob("*.npz"))
                if not read:
                    raise DataError(path, "no .npz file", "a detector's output", "Name another file or folder.")
            digest = hashlib.sha256()
            for one in read:
                name = str(one.relative_to(path).with_suffix("")) if path.is_dir() else one.stem
                with _opened(one) as file:
                    digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
                for found in _read_npz(one, name) if one.suffix == ".npz" else _read_jsonl(one):
                    self._keep(found, stream)
            if path.resolve().name in self.sources:
                raise DataError(path, "a second file of this name", "files of different names", "Rename one.")
            self.sources[path.resolve().name] = digest.hexdigest()
        # Detectors write absolute paths: their ends, from every folder on.
        self._by_end = {}
        for key, detection in self._by_path.items():
            parts = Path(key).parts
            for start in range(1, len(parts)) if os.path.isabs(key) else ():
                self._by_end.setdefault("/".join(parts[start:]), detection)

    def _keep(self, found: _Found, stream: Any) -> None:
        if found.image in self._by_path:
            first = self._by_path[found.image].where
            raise DataError(
                found.where, f"the picture {found.image!r} again, first at {first}", "a picture once", "Join the two."
            )
        order = np.argsort(-found.scores, kind="stable")
        sure = [int(number) for number in order if found.scores[number] >= self.choice.least_score]
        kept = sure[: self.choice.maximum]
        self.counts["objects below the least score (left out)"] += len(order) - len(sure)
        self.counts["objects beyond the maximum (left out)"] += len(sure) - len(kept)
        rows = None
        if stream is None:
            self.counts["objects whose features are left out"] += 0 if found.features is None else len(kept)
        elif kept:
            self._check_width(found)
            stream.write(np.ascontiguousarray(found.features[kept], "<f4").tobytes())
            rows = (self._rows, self._rows + len(kept))
            self._rows += len(kept)
        self._by_path[found.image] = Detection(
            found.where, found.image, tuple(found.labels[number] for number in kept),
            tuple(float(found.scores[number]) for number in kept),
            tuple(tuple(map(float, found.boxes[number])) for number in kept), rows,
        )  # fmt: skip

    def _check_width(self, found: _Found) -> None:
        if found.features is None:
            advice = "Import without --features, or let the detector write them."
            raise DataError(found.where, "objects without features", "a feature of each (--features)", advice)
        width = found.features.shape[1]
        self.width = self.width or width
        if width != self.width:
            advice = "Import the objects of one detector."
            raise DataError(found.where, f"features of {width} numbers", f"{self.width}, as of the first", advice)


@dataclass(frozen=True)
class _Found:
    """All objects of a picture, as a file has them."""

    where: str
    image: str
    labels: Sequence[str]
    scores: np.ndarray
    boxes: np.ndarray
    features: np.ndarray | None


def _opened(path: Path) -> Any:
    try:
        return open_regular(path)
    except OSError as error:
        raise DataError(path, error.strerror or "no file", "a detector's output", "Correct the path.") from None


def _header(rows: int, width: int) -> bytes:
    """The 128 bytes at the beginning of a .npy file of float32 [rows, width], format 1.0."""
    text = repr({"descr": "<f4", "fortran_order": False, "shape": (rows, width)}).encode()
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117) + b"\n"


def _read_jsonl(path: Path) -> Iterator[_Found]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            check, value = RecordChecker(where), parse_json(line, where)
            check.keys(value, ("image", "objects"), ("image", "objects"), "entry")
            image, objects = check.word(value["image"], "image"), value["objects"]
            if not isinstance(objects, list):
                check.fail(f"{str(objects)[:80]!r} in 'objects'", "a list of objects", "Write [] where there are none.")
            for index, item in enumerate(objects):
                check.keys(item, ("label", "score", "box"), ("label", "score", "box", "feature"), f"objects[{index}]")
            with_features = sum("feature" in item for item in objects)
            if with_features not in (0, len(objects)):
                check.fail(
                    f"features of {with_features} of {len(objects)} objects", "one of each, or none", "Detect again."
                )
            lengths = {len(item["feature"]) if isinstance(item["feature"], list) else 0 for item in objects
                       if with_features}  # fmt: skip
            if len(lengths) > 1 or 0 in lengths:
                check.fail(f"features of {sorted(lengths)} numbers", "lists of the same length", "Detect again.")
            (width,) = lengths or (0,)
            features = [check.numbers(item["feature"], f"objects[{index}].feature", width)
                        for index, item in enumerate(objects) if with_features]  # fmt: skip
            yield _Found(
                where, image,
                [check.word(item["label"], f"objects[{index}].label") for index, item in enumerate(objects)],
                np.array([check.numbers([item["score"]], f"objects[{index}].score", 1)[0]
                          for index, item in enumerate(objects)], np.float64),
                np.array([check.numbers(item["box"], f"objects[{index}].box", 4)
                          for index, item in enumerate(objects)], np.float64).reshape(-1, 4),
                np.array(features, np.float64) if with_features else None,
            )  # fmt: skip


def _read_npz(path: Path, name: str) -> Iterator[_Found]:
    """The objects of one picture, or of many; `name`: of the picture, where the file does not say it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(path, f"no arrays that can be read ({error})", "a .npz file", "Detect again.") from None
    check = RecordChecker(str(path))
    check.keys(arrays, _ARRAYS, (*_ARRAYS, "features", "image", "images"), "file")
    number = len(arrays["labels"]) if arrays["labels"].ndim else 0
    shapes = {"labels": (number,), "scores": (number,), "boxes": (number, 4)}
    shapes |= {"images": (number,)} if "images" in arrays else {}
    for key, shape in shapes.items():
        if arrays[key].shape != shape and not (arrays[key].size == 0 == number):
            check.fail(f"{key} {arrays[key].shape}", f"{shape}, as there are {number} labels", "Detect again.")
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or len(features) != number):
        check.fail(f"features {features.shape}", f"({number}, F)", "Detect again.")
    for key in ("labels", "images", "image"):
        if key in arrays and arrays[key].size and arrays[key].dtype.kind != "U":
            check.fail(f"{key} of the type {arrays[key].dtype}", "text", "Save it as an array of str.")
    for key in ("scores", "boxes", "features"):
        if key in arrays and not (arrays[key].dtype.kind in "fiu" and np.isfinite(arrays[key]).all()):
            check.fail(f"{key} of the type {arrays[key].dtype}, not all finite", "finite numbers", "Detect again.")
    labels = [check.word(str(label), f"labels[{index}]") for index, label in enumerate(arrays["labels"])]
    scores, boxes = arrays["scores"].reshape(-1).astype(np.float64), arrays["boxes"].reshape(-1, 4).astype(np.float64)
    groups: Mapping[str, Any] = {str(arrays["image"]) if "image" in arrays else name: slice(None)}
    if "images" in arrays:
        names = [str(image) for image in arrays["images"]]
        groups = {image: np.flatnonzero(arrays["images"] == image) for image in dict.fromkeys(names)}
    for image, chosen in groups.items():
        some = labels if isinstance(chosen, slice) else [labels[index] for index in chosen]
        part = None if features is None else features[chosen]
        yield _Found(str(path), image, some, scores[chosen], boxes[chosen], part)


def write_detection(path: Path, image: str, detection: Mapping[str, Any]) -> None:
    """Writes a picture's npz, whole or not at all: labels, scores, boxes (fractions), features where there are some."""
    arrays = {
        "image": np.array(image),
        "labels": np.array(detection["labels"], str).reshape(-1),
        "scores": np.array(detection["scores"], np.float32),
        "boxes": np.array(detection["boxes"], np.float64).reshape(-1, 4),
    }
    if detection.get("features") is not None:
        arrays["features"] = np.asarray(detection["features"], np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as stream:
        np.savez(stream, **arrays)
    os.replace(temporary, path)
