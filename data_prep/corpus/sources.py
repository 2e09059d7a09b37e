"""Where pairs of picture and text come from: tensorflow-datasets, tar shards, JSONL, a folder (paper section 3.4).

Every source is a stream of :class:`Item`, in an order that depends on nothing but the source (tar shards: and the
seed), from any position on. Nothing of it is held in memory but the item at hand.

    NAME=FOLDER with features.json            a tensorflow-datasets folder prepared as array_record
    NAME=FOLDER of *.tar, or one .tar         WebDataset as img2dataset writes it: .jpg, .txt, .json members
    NAME=FILE.jsonl, or a folder with         lines {"image", "captions" or "caption", further columns}; an index.tsv
         pairs.jsonl                          beside it, in the same order, adds columns
    NAME=FOLDER of pictures                   the captions of a.jpg are the lines of a.txt
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from tmrjax.divergence.corpus import CLASSES
from tmrjax.files import DataError, parse_json, read_bytes

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PAIRS_FILE, INDEX_FILE = "pairs.jsonl", "index.tsv"

TFDS_COMMANDS = """\
tensorflow-datasets folders are prepared once, with tensorflow, by
    pip install tensorflow tensorflow-datasets
    python -c "import tensorflow_datasets as tfds; tfds.builder('coco_captions', data_dir='DIR', \
file_format='array_record').download_and_prepare()"
    (laion400m/images: the same, after its manual download; https://www.tensorflow.org/datasets/catalog/laion400m)
and read without it: give DIR/coco_captions/2014/1.1.0, the folder that holds features.json"""


@dataclass(frozen=True)
class Item:
    """One picture and its texts as the source has them.

    key: unique in the source. where: for messages. image: the bytes of a picture file. columns: whatever else the
    source says, as strings. label: a class of CLASSES where the source gives one. error: why there is no picture.
    """

    key: str
    where: str
    captions: tuple[str, ...] = ()
    image: bytes | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    error: DataError | None = None


class Source(Protocol):
    """A stream of items. shuffled: its order is random, so its beginning is a fair sample of the whole."""

    name: str
    shuffled: bool

    def describe(self) -> dict[str, Any]:
        """What `corpus.json` says of the source."""

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from position `start` on."""


def open_source(spec: str, *, seed: int = 0) -> Source:
    """The source behind ``NAME=PATH`` or ``PATH`` (named after its folder); raises :class:`DataError`."""
    name, _, path = spec.rpartition("=")
    root = Path(path)
    name = name or (root.parent.name if root.name == PAIRS_FILE else root.stem if root.is_file() else root.name)
    if not root.exists():
        raise DataError(
            root, "no such file or folder", "a source of pairs", f"Correct the path of {name!r}.\n{TFDS_COMMANDS}"
        )
    if root.is_file():
        if root.suffix == ".tar":
            return TarSource(name, (root,), seed)
        if root.suffix == ".jsonl":
            return JsonlSource(name, root)
        raise DataError(root, f"a {root.suffix or 'nameless'} file", ".jsonl or .tar", "See data_prep/corpus_sources.")
    if (root / "features.json").is_file() or (root / "dataset_info.json").is_file():
        return TfdsSource(name, root)
    if (root / PAIRS_FILE).is_file():
        return JsonlSource(name, root / PAIRS_FILE)
    entries = sorted(entry.name for entry in os.scandir(root))
    tars = [root / entry for entry in entries if entry.endswith(".tar")]
    if tars:
        return TarSource(name, tuple(tars), seed)
    if any(entry.lower().endswith(PICTURES) for entry in entries):
        return FolderSource(name, root, tuple(entry for entry in entries if entry.lower().endswith(PICTURES)))
    raise DataError(
        root,
        "a folder of " + (", ".join(entries[:4]) or "nothing"),
        f"features.json (tensorflow-datasets), {PAIRS_FILE}, *.tar or pictures",
        f"Give the folder itself.\n{TFDS_COMMANDS}",
    )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(where, f"{value!r:.80} as captions", "a string or a list of strings", "Correct the line.")
    return tuple(captions)


# ------------------------------------------------------------------ JSONL and folders


@dataclass(frozen=True)
class JsonlSource:
    """Lines {"image": path relative to the file, "captions": [...] or "caption": "...", ...}; label: one of CLASSES."""

    shuffled: ClassVar[bool] = False
    name: str
    path: Path

    def describe(self) -> dict[str, Any]:
        """Kind and file name."""
        return {"kind": "jsonl", "path": f"{self.path.parent.name}/{self.path.name}"}

    def items(self, start: int = 0) -> Iterator[Item]:
        """One item a line; raises on a malformed line, with its number."""
        index = self.path.with_name(INDEX_FILE)
        with open(self.path, "rb") as lines, open(index if index.is_file() else os.devnull, encoding="utf-8") as table:
            rows = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
            for number, line in enumerate(lines):
                row = next(rows, None) if index.is_file() else {}
                if number >= start:
                    yield self._item(f"{self.path}:{number + 1}", line, row)

    def _item(self, where: str, line: bytes, row: Mapping[str, str] | None) -> Item:
        try:
            value = parse_json(line, where)
            if not isinstance(value, dict) or not isinstance(value.get("image"), str):
                raise DataError(where, f"{line[:80]!r}", 'an object with "image": a path', "Correct the line.")
            captions = _texts(value["caption"] if "caption" in value else value.get("captions"), where)
            label = value.get("label")
            if label is not None and label not in CLASSES:
                raise DataError(where, f"the label {label!r}", f"one of {', '.join(CLASSES)}", "Correct it.")
            if row is None or (row and row.get("image", "") != Path(value["image"]).name):
                found = "no line" if row is None else f"the picture {row.get('image')!r}"
                raise DataError(
                    self.path.with_name(INDEX_FILE), f"{found} for {where}", "one line per pair, in the same order",
                    f"Sort {INDEX_FILE} as {self.path.name}.",
                )  # fmt: skip
        except DataError as error:
            return Item(where.rpartition(":")[2], where, error=error)
        columns = {key: str(value[key]) for key in value if key not in ("image", "caption", "captions", "label")}
        key = value["image"] if label is None else f"{value['image']}#{where.rpartition(':')[2]}"
        try:
            image = read_bytes(self.path.parent / value["image"])
        except DataError as error:
            return Item(key, where, captions, error=DataError(where, str(error), "its picture", "Add the file."))
        return Item(key, where, captions, image, columns | dict(row), label)


@dataclass(frozen=True)
class FolderSource:
    """Pictures with their captions, one a line, in a text file of the same name. Names are held in memory."""

    shuffled: ClassVar[bool] = False
    name: str
    root: Path
    files: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Kind, folder name and number of pictures."""
        return {"kind": "folder", "path": self.root.name, "pictures": len(self.files)}

    def items(self, start: int = 0) -> Iterator[Item]:
        """One item a picture, by name."""
        for file in self.files[start:]:
            path = self.root / file
            try:
                text = read_bytes(path.with_suffix(".txt")).decode("utf-8")
                yield Item(file, str(path), tuple(text.splitlines()), read_bytes(path))
            except DataError as error:
                yield Item(file, str(path), error=error)
            except UnicodeDecodeError as error:
                found = f"bytes that are not UTF-8 ({error.reason})"
                bad = DataError(path.with_suffix(".txt"), found, "UTF-8 text", "Convert the file.")
                yield Item(file, str(path), error=bad)


# ------------------------------------------------------------------ tar shards


@dataclass(frozen=True)
class TarSource:
    """WebDataset shards: the members of one sample follow each other and share their name up to its first dot.

    The text is the .txt member, else "caption" of the .json; the scalars of the .json are columns. Shards come in an
    order drawn by the seed, so that the first pictures are no particular ones.
    """

    shuffled: ClassVar[bool] = True
    name: str
    files: tuple[Path, ...]
    seed: int

    def describe(self) -> dict[str, Any]:
        """Kind, folder name and number of shards."""
        return {"kind": "tar shards", "path": self.files[0].parent.name, "shards": len(self.files)}

    def items(self, start: int = 0) -> Iterator[Item]:
        """One item a sample; a shard that is cut off ends with an item that has an error."""
        position = 0
        for number in np.random.default_rng(self.seed).permutation(len(self.files)):
            path = self.files[number]
            try:
                with tarfile.open(path, "r:") as shard:
                    files = (member for member in shard if member.isfile())
                    for key, group in itertools.groupby(files, lambda member: _stem(member.name)):
                        members = list(group)
                        if position >= start:
                            yield self._item(shard, path, key, members)
                        position += 1
                with open(path, "rb") as file:  # tarfile takes a file that was cut off between members for a whole one
                    file.seek(-1024, os.SEEK_END)
                    if any(file.read()):
                        raise tarfile.ReadError("no mark of its end: it was cut off")
            except (tarfile.TarError, OSError) as error:
                if position >= start:
                    fault = DataError(path, f"a damaged shard ({error})", "a whole tar file", "Download it again.")
                    yield Item(f"{path.name}/", str(path), error=fault)
                position += 1

    def _item(self, shard: tarfile.TarFile, path: Path, key: str, members: Sequence[tarfile.TarInfo]) -> Item:
        where = f"{path}/{key}"
        content: dict[str, bytes] = {}
        for member in members:
            data = shard.extractfile(member).read()
            if len(data) != member.size:
                raise tarfile.ReadError(f"{member.name} is cut off")
            content[member.name[len(key) :].lower()] = data
        try:
            meta = parse_json(content[".json"], where + ".json") if ".json" in content else {}
            text = content[".txt"].decode("utf-8") if ".txt" in content else meta.get("caption")
            image = next((content[suffix] for suffix in PICTURES if suffix in content), None)
            if image is None:
                status = f" (status {meta['status']})" if "status" in meta else ""
                raise DataError(where, f"no picture{status}", "a .jpg, .png or .webp member", "Download it again.")
            if text is None:
                raise DataError(where, "no text", ".txt, or caption in .json", "Write the captions into the shard.")
            columns = {name: str(value) for name, value in meta.items() if isinstance(value, str | int | float)}
            return Item(f"{path.name}/{key}", where, _texts(text, where), image, columns)
        except UnicodeDecodeError as error:
            found = f"bytes that are not UTF-8 ({error.reason})"
            return Item(f"{path.name}/{key}", where, error=DataError(where, found, "UTF-8 text", "Convert it."))
        except DataError as error:
            return Item(f"{path.name}/{key}", where, error=error)


def _stem(name: str) -> str:
    folder, _, file = name.rpartition("/")
    stem = file.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


# ------------------------------------------------------------------ tensorflow-datasets


@dataclass(frozen=True)
class TfdsSource:
    """A prepared tensorflow-datasets folder (array_record), all of its splits one after another, without tensorflow.

    The picture is the feature "image", the texts "captions"/"text" or "caption"; scalar features are columns.
    """

    shuffled: ClassVar[bool] = True
    name: str
    root: Path

    def describe(self) -> dict[str, Any]:
        """Kind, data set with version, and splits."""
        builder = self._builder()
        splits = {name: split.num_examples for name, split in sorted(builder.info.splits.items())}
        return {"kind": "tensorflow-datasets", "path": builder.info.full_name, "splits": splits}

    def _builder(self):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            advice = "pip install 'tmrjax[corpora]' (tensorflow itself is not needed)."
            raise DataError(self.root, f"no tensorflow-datasets ({error})", "the package", advice) from error
        try:
            return tfds.builder_from_directory(str(self.root))
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
            raise DataError(self.root, f"no data set ({error})", "a prepared data set", TFDS_COMMANDS) from error

    def items(self, start: int = 0) -> Iterator[Item]:
        """One item an example."""
        builder = self._builder()
        import tensorflow_datasets as tfds

        features = builder.info.features
        if "image" not in features or not {"captions", "caption"} & set(features):
            raise DataError(
                self.root, f"the features {', '.join(features)}", "image, and captions or caption",
                "For laion400m prepare the config 'images', not 'embeddings'.",
            )  # fmt: skip
        for split in sorted(builder.info.splits):
            try:
                examples = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
            except (ValueError, NotImplementedError) as error:
                advice = (
                    "Convert it: python -m tensorflow_datasets.scripts.convert_format "
                    f"--dataset_version_path={self.root} --out_file_format=array_record --out_path=NEW"
                )
                raise DataError(self.root, f"{split!r} not readable ({error})", "array_record files", advice) from error
            for number in range(start, len(examples)):
                yield self._item(f"{split}/{number}", examples[number], features)
            start = max(0, start - len(examples))

    def _item(self, key: str, example: Mapping[str, Any], features: Mapping[str, Any]) -> Item:
        where, columns = f"{self.root}/{key}", {}
        try:
            for name, value in example.items():
                if isinstance(value, bytes | str | int | float | np.number) and name not in ("image", "caption"):
                    labels = getattr(features[name], "int2str", None)
                    columns[name] = (
                        labels(int(value)) if labels and not isinstance(value, bytes | str) else _text(value)
                    )
            texts = example["captions"]["text"] if "captions" in example else [example["caption"]]
            return Item(key, where, tuple(_text(text) for text in texts), bytes(example["image"]), columns)
        except UnicodeDecodeError as error:
            found = f"bytes that are not UTF-8 ({error.reason})"
            return Item(key, where, error=DataError(where, found, "UTF-8 text", "Prepare the data set again."))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
