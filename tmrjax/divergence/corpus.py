"""The divergence estimator's corpus: pairs of text and picture with their relation, at random access (§3.4, app. B).

A corpus is a folder::

    corpus.json                                 name, classes, splits with counts and SHA-256, sources, options, seed
    {split}-00000-of-00003.array_record         ArrayRecord shards; a record is a MessagePack map, see :class:`Pair`
    {split}.index.npy                           per record: height, width, characters, label, source (INDEX_TYPE)

The splits are train, dev, test (in domain) and test_out_of_domain. The index lets batches be planned by picture size
without decoding; it is memory-mapped, and shards are read record by record, so memory does not grow with the corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import typing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from tmrjax.files import DataError, parse_json, read_bytes, write_atomic
from tmrjax.records.schema import SCORE_CLASSES, RecordChecker

CORPUS_FILE = "corpus.json"
CLASSES = SCORE_CLASSES  # the order of logits and scores
SPLITS = ("train", "dev", "test", "test_out_of_domain")
SHARD_RECORDS = 4096
# Records are read one by one in random order, and JPEG does not compress: groups of one, stored as they are.
_WRITER_OPTIONS = "group_size:1,uncompressed"

INDEX_TYPE = np.dtype([("height", "<u4"), ("width", "<u4"), ("characters", "<u4"), ("label", "u1"), ("source", "<u2")])


class Pair(NamedTuple):
    """One text with one picture. label: position in CLASSES; domain: "in" or "out"; image: the bytes of a JPEG."""

    id: str
    text: str
    label: int
    source: str
    domain: str
    image: bytes
    height: int
    width: int


_PAIR_TYPES = typing.get_type_hints(Pair)


@dataclass(frozen=True)
class SplitInfo:
    """counts: {source: {class: records}}; shards: [{"file", "records", "sha256"}]; index: {"file", "sha256"}."""

    records: int
    counts: dict[str, dict[str, int]]
    shards: tuple[dict[str, Any], ...]
    index: dict[str, str]

    def class_counts(self) -> dict[str, int]:
        """Records per class over all sources."""
        return {name: sum(by_class.get(name, 0) for by_class in self.counts.values()) for name in CLASSES}


@dataclass(frozen=True)
class CorpusInfo:
    """What `corpus.json` says.

    `sources` describes each source, `source_names` orders them for the index; `options`, `seed`, `tool`, `version` say
    how the corpus was made; `skipped` counts what was dropped and why, `duplicates` what was found twice. `synthetic`:
    a generated world, not real pairs.
    """

    name: str
    splits: dict[str, SplitInfo]
    source_names: tuple[str, ...]
    sources: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    tool: str = ""
    version: str = ""
    synthetic: bool = False
    skipped: dict[str, Any] = field(default_factory=dict)
    duplicates: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = CLASSES


# ------------------------------------------------------------------ writing


def pack_pair(pair: Pair) -> bytes:
    """The record of a pair, the same bytes for the same pair."""
    return msgpack.packb(pair._asdict())


def write_shard(path: Path, pairs: Iterable[Pair], source_names: Sequence[str]) -> tuple[np.ndarray, str]:
    """Write one ArrayRecord shard whole or not at all; returns its part of the index and its SHA-256."""
    rows = []
    partial = path.with_name(f".{path.name}.partial")
    writer = ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
    try:
        for pair in pairs:
            writer.write(pack_pair(pair))
            rows.append((pair.height, pair.width, len(pair.text), pair.label, source_names.index(pair.source)))
    finally:
        writer.close()
    digest = hash_file(partial)
    os.replace(partial, path)
    return np.array(rows, INDEX_TYPE), digest


def write_corpus(
    root: str | os.PathLike,
    splits: Mapping[str, Iterable[Pair]],
    *,
    name: str,
    source_names: Sequence[str],
    shard_records: int = SHARD_RECORDS,
    **info: Any,
) -> CorpusInfo:
    """Write a whole corpus from streams of pairs, never holding more than one pair of each; returns its info.

    `info` are further fields of :class:`CorpusInfo`. An interrupted call leaves no `corpus.json`, so nothing that
    :func:`open_corpus` would read. data_prep/build_divergence_corpus.py writes the same format shard by shard.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / CORPUS_FILE).unlink(missing_ok=True)
    written = {}
    for split, pairs in splits.items():
        if split not in SPLITS:
            raise DataError(root, f"the split {split!r}", f"splits out of {SPLITS}", "Rename it.")
        shards, parts = [], []
        for number, chunk in enumerate(_chunks(iter(pairs), shard_records)):
            path = root / f".{split}-{number:05d}"
            part, digest = write_shard(path, chunk, source_names)
            shards.append((path, len(part), digest))
            parts.append(part)
        entries = []
        for number, (path, records, digest) in enumerate(shards):
            final = shard_name(split, number, len(shards))
            os.replace(path, root / final)
            entries.append({"file": final, "records": records, "sha256": digest})
        written[split] = finish_split(root, split, parts, entries, source_names)
    result = CorpusInfo(name=name, splits=written, source_names=tuple(source_names), **info)
    write_info(root, result)
    return result


def shard_name(split: str, number: int, count: int) -> str:
    """The file of one shard."""
    return f"{split}-{number:05d}-of-{count:05d}.array_record"


def finish_split(
    root: Path, split: str, parts: Iterable[np.ndarray], shards: Sequence[dict[str, Any]], source_names: Sequence[str]
) -> SplitInfo:
    """Write the index of a split from the parts of its shards and count what is in it."""
    records = sum(shard["records"] for shard in shards)
    if not records:
        raise DataError(root, f"no pair in the split {split!r}", "at least one", "Leave the split out, or fill it.")
    path, partial = root / f"{split}.index.npy", root / f".{split}.index.npy"
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(CLASSES, 0))
    index = np.lib.format.open_memmap(partial, mode="w+", dtype=INDEX_TYPE, shape=(records,))
    start = 0
    for part in parts:
        index[start : start + len(part)] = part
        start += len(part)
        kinds, numbers = np.unique(part[["source", "label"]], return_counts=True)
        for (source, label), number in zip(kinds.tolist(), numbers.tolist(), strict=True):
            counts[source_names[source]][CLASSES[label]] += number
    index.flush()
    del index
    digest = hash_file(partial)
    os.replace(partial, path)
    return SplitInfo(records, dict(sorted(counts.items())), tuple(shards), {"file": path.name, "sha256": digest})


def write_info(root: Path, info: CorpusInfo) -> None:
    """Write `corpus.json`: the last act of a build."""
    text = json.dumps(dataclasses.asdict(info), ensure_ascii=False, indent=2, allow_nan=False)
    write_atomic(root / CORPUS_FILE, (text + "\n").encode("utf-8"))


def hash_file(path: Path) -> str:
    """The SHA-256 of a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _chunks(items: Iterator[Pair], size: int) -> Iterator[Iterator[Pair]]:
    """Consecutive streams of at most `size` items; each must be read to its end before the next is asked for."""

    def chunk(first: Pair) -> Iterator[Pair]:
        yield first
        for _ in range(size - 1):
            try:
                yield next(items)
            except StopIteration:
                return

    for first in items:
        yield chunk(first)


# ------------------------------------------------------------------ reading


class CorpusSplit(Sequence):
    """The pairs of one split at random access, decoded from their record on each access; pickles as its paths."""

    def __init__(self, root: Path, info: CorpusInfo, name: str):
        self.root, self.info, self.name = root, info, name
        self._open()

    def _open(self) -> None:
        split = self.info.splits[self.name]
        try:
            self._shards = ArrayRecordDataSource([str(self.root / shard["file"]) for shard in split.shards])
        except (RuntimeError, ValueError) as error:  # a shard that was cut off
            raise DataError(
                self.root,
                f"an unreadable shard of {self.name!r} {error}".strip(),
                "ArrayRecord files",
                "Copy it again.",
            ) from error
        # height, width, characters, label, source of every pair: a memory map of INDEX_TYPE [N]
        path = self.root / split.index["file"]
        try:
            self.index = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError) as error:
            raise DataError(path, f"no index ({error})", "an .npy file", "Copy or build the corpus again.") from error
        if self.index.dtype != INDEX_TYPE or self.index.ndim != 1:
            found = f"an array of {self.index.dtype}, {self.index.ndim} axes"
            raise DataError(path, found, f"one axis of {INDEX_TYPE}", "Build the corpus again.")

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "info": self.info, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Pair:
        """One pair; raises IndexError, and :class:`DataError` for a record that does not hold one."""
        number = range(len(self))[number]
        where = f"{self.root}/{self.name}, record {number}"
        try:
            pair = Pair(**msgpack.unpackb(self._shards[number]))
            for name, kind in _PAIR_TYPES.items():
                if type(getattr(pair, name)) is not kind:
                    raise TypeError(f"{name} is a {type(getattr(pair, name)).__name__}, not {kind.__name__}")
            if not 0 <= pair.label < len(CLASSES):
                raise ValueError(f"the label {pair.label}")
            return pair
        except (ValueError, TypeError, RuntimeError) as error:
            advice = "The shard is damaged: copy the corpus again, or build it again."
            raise DataError(where, f"no pair ({error})", f"the keys {', '.join(Pair._fields)}", advice) from error


@dataclass(frozen=True)
class Corpus:
    """An opened corpus; ``corpus["train"]`` is its training split."""

    root: Path
    info: CorpusInfo

    def __contains__(self, split: str) -> bool:
        return split in self.info.splits

    def __getitem__(self, split: str) -> CorpusSplit:
        """One split; raises :class:`DataError` where the corpus has none of that name."""
        if split not in self.info.splits:
            raise DataError(
                self.root / CORPUS_FILE, f"no split {split!r}", f"one of {', '.join(self.info.splits)}", "Ask for it."
            )
        return CorpusSplit(self.root, self.info, split)


def read_corpus_info(root: str | os.PathLike) -> CorpusInfo:
    """Reads and checks `corpus.json`; raises :class:`DataError`."""
    path = Path(root) / CORPUS_FILE
    if not path.is_file():
        advice = (
            "Build it with data_prep/build_divergence_corpus.py (an unfinished build resumes), or correct the path."
        )
        raise DataError(path, "no such file", "the folder of a corpus", advice)
    value, check = parse_json(read_bytes(path), str(path)), RecordChecker(str(path))
    known = [item.name for item in dataclasses.fields(CorpusInfo)]
    check.keys(value, known, known, CORPUS_FILE)
    if value["classes"] != list(CLASSES):
        check.fail(f"other classes in {CORPUS_FILE}", f"{list(CLASSES)}, in this order", "Build the corpus again.")
    for kind, keys in _TYPES.items():
        for key in keys:
            _require(check, value[key], kind, key)
    names = check.texts(value["source_names"], "source_names")
    splits = {}
    for name, split in value["splits"].items():
        check.member(name, "split", SPLITS)
        splits[name] = _split_from_json(split, name, names, check)
    return CorpusInfo(**{**value, "splits": splits, "source_names": names, "classes": CLASSES})


_TYPES = {
    str: ("name", "tool", "version"),
    dict: ("splits", "sources", "options", "skipped", "duplicates"),
    list: ("source_names",),
    int: ("seed",),
    bool: ("synthetic",),
}
_KINDS = {str: "a string", dict: "an object", list: "a list", int: "a number >= 0", bool: "true or false"}


def _require(check: RecordChecker, value: Any, kind: type, name: str) -> None:
    if type(value) is not kind or (kind is int and value < 0):
        check.fail(f"a {type(value).__name__} in {name!r}", _KINDS[kind], "Copy or build the corpus again.")


def _split_from_json(split: Any, name: str, names: Sequence[str], check: RecordChecker) -> SplitInfo:
    keys = [item.name for item in dataclasses.fields(SplitInfo)]
    check.keys(split, keys, keys, f"split {name!r}")
    _require(check, split["records"], int, f"{name}.records")
    _require(check, split["counts"], dict, f"{name}.counts")
    _require(check, split["shards"], list, f"{name}.shards")
    for source, counts in split["counts"].items():
        check.member(source, "source", names)
        _require(check, counts, dict, f"{name}.counts.{source}")
        for label, count in counts.items():
            check.member(label, "class", CLASSES)
            _require(check, count, int, f"{name}.counts.{source}.{label}")
    files = (("file", "sha256"), split["index"]), *((("file", "records", "sha256"), shard) for shard in split["shards"])
    for fields, entry in files:
        check.keys(entry, fields, fields, f"file of the split {name!r}")
        for key in fields:
            _require(check, entry[key], int if key == "records" else str, f"{name}.{key}")
        if entry["file"] != os.path.basename(check.word(entry["file"], f"{name}.file")):
            check.fail(f"the path {entry['file']!r} in {name!r}", "a file in the corpus's folder", "Copy it there.")
    return SplitInfo(**{**split, "shards": tuple(split["shards"])})


def open_corpus(root: str | os.PathLike, *, require_classes: Sequence[str] = ("train",)) -> Corpus:
    """Opens a corpus: its shards must be there with the number of records, its indices with the hash, of corpus.json.

    A split of `require_classes` must hold every class, for a class without examples is never learned. Raises
    :class:`DataError`. The shards' own hashes are checked by :func:`verify_corpus`, which reads them all.
    """
    root = Path(root)
    info = read_corpus_info(root)
    for name, split in info.splits.items():
        for file in (split.index["file"], *(shard["file"] for shard in split.shards)):
            if not (root / file).is_file():
                raise DataError(root / file, "no such file", f"a file of the split {name!r}", "Copy the whole corpus.")
        _check_hash(root / split.index["file"], split.index["sha256"])
        missing = [label for label, count in split.class_counts().items() if not count]
        if missing and name in require_classes:
            raise DataError(
                root / CORPUS_FILE,
                f"no pair of the class {', '.join(missing)} in the split {name!r}",
                f"pairs of all classes: {', '.join(CLASSES)}",
                "Give the builder a source for it (--strengthen, --complement); weaken is made from both.",
            )
    corpus = Corpus(root, info)
    for name, split in info.splits.items():
        reader = corpus[name]
        found = len(reader._shards)
        if not found == len(reader) == split.records:
            raise DataError(
                root, f"{found} records in the shards of {name!r}", f"{split.records}", "Copy the corpus again."
            )
    return corpus


def verify_corpus(root: str | os.PathLike) -> Corpus:
    """Reads every byte: the hash of each shard, and each record against the index. Raises :class:`DataError`."""
    corpus = open_corpus(root, require_classes=())
    for name, split in corpus.info.splits.items():
        for shard in split.shards:
            _check_hash(corpus.root / shard["file"], shard["sha256"])
        reader = corpus[name]
        for number, row in enumerate(reader.index):
            pair = reader[number]
            names = corpus.info.source_names
            source = names.index(pair.source) if pair.source in names else pair.source
            found = (pair.height, pair.width, len(pair.text), pair.label, source)
            if found != row.item():
                raise DataError(
                    f"{corpus.root}/{name}, record {number}", str(found), f"{row} as in the index", "Build it again."
                )
    return corpus


def _check_hash(path: Path, recorded: str) -> None:
    actual = hash_file(path)
    if actual != recorded:
        raise DataError(
            path, f"the SHA-256 {actual[:12]}…", f"{recorded[:12]}… as in {CORPUS_FILE}", "Copy or build it again."
        )


def corpus_table(info: CorpusInfo) -> str:
    """Pairs per split, source and class as text, with what was dropped and what the corpus says of itself."""
    lines = [f"{info.name}" + ("  [synthetic]" if info.synthetic else "")]
    lines.append(f"{'':40s}" + "".join(f"{name:>12s}" for name in CLASSES))
    for split, content in info.splits.items():
        for source, counts in content.counts.items():
            row = "".join(f"{counts.get(name, 0):12d}" for name in CLASSES)
            lines.append(f"{split + ' · ' + source:40s}{row}")
    for title, counts in (("dropped", info.skipped), ("duplicates", info.duplicates)):
        lines += [f"{title}: {name}: {value}" for name, value in counts.items() if value]
    return "\n".join(lines)
