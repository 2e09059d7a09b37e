"""The prepared-data format: one JSON record per post, checked on the way in and on the way out.

The paper's section 4.1 names the data (Twitter-2015, Twitter-2017, MNRE). A data set is a folder::

    dataset.json                         name, task, labels, how each stage was done, SHA-256 of every JSONL file
                                         and of the labels of every split, marks (:class:`DatasetInfo`)
    train.jsonl  dev.jsonl  test.jsonl   one record per line (:mod:`tmrjax.records.schema`)
    images/  generated/                  the pictures the records name, by paths relative to the folder

Needs only the standard library. The rules of a single record are in :mod:`tmrjax.records.schema`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmrjax.files import DataError, FolderOfFiles, jsonl_bytes, parse_json, read_bytes, sha256, write_atomic
from tmrjax.records.label_versions import hash_labels, label_version
from tmrjax.records.schema import (
    DATASET_FILE,
    NO_RELATION,
    TASKS,
    DatasetInfo,
    Record,
    RecordChecker,
    record_from_json,
    record_to_json,
)

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
SKIPPED_FILE = "skipped.jsonl"
_FILES = tuple(f"{split}.jsonl" for split in SPLITS)
MARKS = ("leaky_phrases", "leaky_regions", "renormalised_scores", "synthetic")  # true or false in `dataset.json`
_LATER_KEYS = ("leaky_regions", "labels_sha256")  # that older data sets do not have
_AGAIN = "Prepare the set again."
_NEXT = ".next"  # of a file of the set that is being written


@dataclass(frozen=True)
class Skipped:
    """A record that `on_error="skip"` dropped: its file, 1-based line, id when it could be read, and the error."""

    file: str
    line: int
    id: str | None
    error: str


@dataclass(frozen=True)
class Dataset:
    """A data set in memory; `splits` maps "train", "dev", "test" to records, `skipped` lists what was dropped."""

    root: Path
    info: DatasetInfo
    splits: dict[str, tuple[Record, ...]]
    skipped: tuple[Skipped, ...] = ()

    def path(self, relative: str) -> Path:
        """The file behind a path of a record."""
        return self.root / relative

    @property
    def label_version(self) -> str:
        """The known version of the labels, see :func:`tmrjax.records.label_versions.label_version`."""
        return label_version(self.info.labels_sha256, self.splits)


# ------------------------------------------------------------------ one file


def read_records(
    path: str | os.PathLike,
    info: DatasetInfo,
    *,
    root: str | os.PathLike | None = None,
    require_labels: bool = True,
    on_error: str = "raise",
    skipped: list[Skipped] | None = None,
    seen: dict[str, str] | None = None,
) -> list[Record]:
    """Reads and checks one JSONL file.

    `root` is the folder of the pictures (default: the file's own). `on_error="skip"` drops a bad record and appends
    it to `skipped`; "raise" stops at the first with :class:`DataError`. `seen` maps the ids met so far to where they
    stood, so that several files can be read as one set. Lines end with LF; a token may hold any other Unicode line
    separator.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    path = Path(path)
    seen = {} if seen is None else seen
    folder = FolderOfFiles(path.parent if root is None else root)
    records = []
    lines = read_bytes(path).split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        identifier = None
        try:
            value = parse_json(line, where)
            identifier = value.get("id") if isinstance(value, dict) else None
            record = record_from_json(value, info, where=where, root=folder, require_labels=require_labels)
            if record.id in seen:
                raise DataError(
                    where,
                    f"the id {record.id!r} again, first at {seen[record.id]}",
                    "an id once",
                    "Rename or drop one of them.",
                )
        except DataError as error:
            if on_error == "raise":
                raise
            if skipped is not None:
                skipped.append(
                    Skipped(path.name, number, identifier if isinstance(identifier, str) else None, str(error))
                )
            logger.warning("skipped: %s", error)
            continue
        seen[record.id] = where
        records.append(record)
    return records


# ------------------------------------------------------------------ one data set


def read_info(root: str | os.PathLike) -> DatasetInfo:
    """Reads and checks `dataset.json`; raises :class:`DataError`."""
    path = Path(root) / DATASET_FILE
    _finish_write(path.parent)
    if not path.is_file():
        raise DataError(
            path,
            "no such file",
            "the folder of a prepared data set",
            "Prepare one with data_prep/, or correct the path.",
        )
    return _info_from_json(parse_json(read_bytes(path), str(path)), str(path))


def _info_from_json(value: Any, where: str) -> DatasetInfo:
    check = RecordChecker(where)
    known = tuple(item.name for item in dataclasses.fields(DatasetInfo))
    lacking = [key for key in _LATER_KEYS if isinstance(value, dict) and key not in value]
    if lacking and value.keys() == set(known).difference(lacking):
        check.fail(
            f"no {' and '.join(map(repr, lacking))}: a data set that an older version prepared",
            f"the keys {', '.join(known)}",
            "Prepare it again with its importer or data_prep/make_demo.py; results of stages are in its journals.",
        )
    check.keys(value, known, known, DATASET_FILE)
    labels = check.texts(value["labels"], "labels")
    if not labels or len(set(labels)) != len(labels):
        check.fail(f"the labels {list(labels)}", "at least one label, each once", "Correct 'labels'.")
    for label in labels:
        if not label.strip() or (label == "O" and value["task"] == "ner"):
            check.fail(f"the label {label!r}", "a name; O is the tag of words without one", "Correct 'labels'.")
    for key in MARKS:
        if not isinstance(value[key], bool):
            check.fail(f"{value[key]!r} in {key!r}", "true or false", f"Correct {key!r}.")
    for key in ("stages", "files", "labels_sha256"):
        if not isinstance(value[key], dict):
            check.fail(f"{type(value[key]).__name__} in {key!r}", "a JSON object", f"Correct {key!r}.")
    return DatasetInfo(
        name=check.text(value["name"], "name"),
        task=check.member(value["task"], "task", TASKS),
        labels=labels,
        **{key: value[key] for key in (*MARKS, "stages")},
        files={
            check.member(name, "file", _FILES): check.text(digest, f"files.{name}")
            for name, digest in value["files"].items()
        },
        labels_sha256=_label_hashes(check, value),
    )


def _label_hashes(check: RecordChecker, value: dict[str, Any]) -> dict[str, str]:
    hashes, splits = value["labels_sha256"], {name.removesuffix(".jsonl") for name in value["files"]}
    if hashes.keys() != splits:
        check.fail(f"'labels_sha256' of {sorted(hashes)}", f"of the splits in 'files', {sorted(splits)}", _AGAIN)
    return {split: check.text(digest, f"labels_sha256.{split}") for split, digest in hashes.items()}


def read_dataset(
    root: str | os.PathLike,
    *,
    on_error: str = "raise",
    splits: Sequence[str] | None = None,
    verify_hashes: bool = True,
) -> Dataset:
    """Reads a prepared data set and checks every rule of it.

    `splits` (default: all that `dataset.json` lists) chooses files. With `verify_hashes` a JSONL file whose SHA-256
    is not the recorded one raises: it was edited after preparation; so do labels that are not those of
    `labels_sha256`. What was read may be less than the file: `info.labels_sha256` of the result is of the records in
    it. `on_error="skip"` drops bad records, counts them
    in `Dataset.skipped` and lists them in `skipped.jsonl`; `dataset.json`, a missing file and a wrong hash raise in
    any case. Ids are unique over all splits read.
    """
    root = Path(root)
    info = read_info(root)
    listed = [split for split in SPLITS if f"{split}.jsonl" in info.files]
    unknown = [split for split in splits or () if split not in listed]
    if unknown or not listed:
        wanted = ", ".join(unknown) or "any split"
        raise DataError(
            root / DATASET_FILE,
            f"no entry for {wanted} in 'files'",
            f"splits out of {listed}",
            "Ask for those, or add it.",
        )
    skipped: list[Skipped] = []
    seen: dict[str, str] = {}
    records, hashes = {}, dict(info.labels_sha256)
    for split in listed if splits is None else splits:
        path = root / f"{split}.jsonl"
        if verify_hashes:
            _verify_hash(path, info.files[path.name])
        before = len(skipped)
        records[split] = tuple(read_records(path, info, on_error=on_error, skipped=skipped, seen=seen))
        hashes[split] = hash_labels(records[split], info.task)
        if verify_hashes and len(skipped) == before and hashes[split] != info.labels_sha256[split]:
            raise DataError(
                root / DATASET_FILE,
                f"'labels_sha256' {info.labels_sha256[split][:12]}… of {split}",
                f"{hashes[split][:12]}…, as {path.name} has it",
                _AGAIN,
            )
    report = root / SKIPPED_FILE
    if skipped or (on_error == "skip" and report.exists()):  # an old report must not outlive its cause
        write_atomic(report, jsonl_bytes(dataclasses.asdict(item) for item in skipped))
        logger.warning("%d records skipped, listed in %s", len(skipped), report)
    return Dataset(root, dataclasses.replace(info, labels_sha256=hashes), records, tuple(skipped))


def _verify_hash(path: Path, recorded: str) -> None:
    actual = sha256(read_bytes(path))
    if actual != recorded:
        refresh = f"python -c \"from tmrjax.records import refresh_hashes; refresh_hashes('{path.parent}')\""
        raise DataError(
            path,
            f"the SHA-256 {actual[:12]}…",
            f"{recorded[:12]}… as recorded in {DATASET_FILE}: the file was edited after preparation",
            f"Prepare the set again, or accept the edit with: {refresh}",
        )


def refresh_hashes(root: str | os.PathLike) -> Dataset:
    """Accepts JSONL files edited by hand: checks every record, then writes their new SHA-256, and that of their labels,
    into `dataset.json`."""
    dataset = read_dataset(root, verify_hashes=False)
    files = {name: sha256(read_bytes(dataset.root / name)) for name in dataset.info.files}
    info = dataclasses.replace(dataset.info, files=files)
    _write_info(dataset.root, info)
    return dataclasses.replace(dataset, info=info)


def write_dataset(
    root: str | os.PathLike, info: DatasetInfo | Mapping[str, Any], splits: Mapping[str, Sequence[Record]]
) -> DatasetInfo:
    """Writes `dataset.json` and one JSONL file per split; returns the info with the hashes filled in.

    `info` is a :class:`DatasetInfo` or the keyword arguments of one; its `files` and `labels_sha256` are replaced. The
    pictures must lie in `root` already: every record is checked as the reader will check it. The set on disk is the old
    or the new one, never a mix: the new files are laid beside the old ones, and from the moment their `dataset.json`
    lies there any reader finishes what was interrupted. Raises :class:`DataError`.
    """
    root = Path(root)
    info = info if isinstance(info, DatasetInfo) else DatasetInfo(**info)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise DataError(
            root,
            f"the split {unknown[0]!r}",
            f"splits out of {SPLITS}",
            "Rename it: dev is for choosing, test for reporting.",
        )
    seen: dict[str, str] = {}
    contents = {}
    folder = FolderOfFiles(root)
    for split, records in splits.items():
        name = f"{split}.jsonl"
        objects = [record_to_json(record, info.task) for record in records]
        for number, item in enumerate(objects, start=1):
            where = f"{root / name}:{number}"
            identifier = record_from_json(item, info, where=where, root=folder).id
            if identifier in seen:
                raise DataError(
                    where, f"the id {identifier!r} again, first at {seen[identifier]}", "an id once", "Rename one."
                )
            seen[identifier] = where
        contents[name] = jsonl_bytes(objects)
    info = dataclasses.replace(
        info,
        files={name: sha256(data) for name, data in contents.items()},
        labels_sha256={split: hash_labels(records, info.task) for split, records in splits.items()},
    )
    _info_from_json(json.loads(_info_bytes(info)), str(root / DATASET_FILE))
    root.mkdir(parents=True, exist_ok=True)
    _finish_write(root)
    for name, data in contents.items():
        write_atomic(root / (name + _NEXT), data)
    write_atomic(root / (DATASET_FILE + _NEXT), _info_bytes(info))
    _finish_write(root)
    return info


def _finish_write(root: Path) -> None:
    """Moves the files of a whole new set into place; one that was interrupted before it was whole stays away.

    Nothing is replaced before every file of the new set has been seen with its hash, here or in place already.
    """
    whole = root / (DATASET_FILE + _NEXT)
    try:
        if not whole.exists():
            return
        files = _info_from_json(parse_json(read_bytes(whole), str(whole)), str(whole)).files
        waiting = [name for name in files if os.path.lexists(root / (name + _NEXT))]
        for name, digest in files.items():
            path = root / (name + _NEXT if name in waiting else name)
            if not os.path.lexists(path) or sha256(read_bytes(path)) != digest:
                found = f"a new set of which {path.name} is missing or not the file that was written"
                raise DataError(whole, found, "its SHA-256", f"Remove {root}/*{_NEXT} to keep the old set.")
    except DataError:
        if whole.exists():
            raise
        return  # another reader has finished the write meanwhile
    with contextlib.suppress(FileNotFoundError):  # or does so now
        for name in waiting:
            with contextlib.suppress(FileNotFoundError):
                os.replace(root / (name + _NEXT), root / name)
        os.replace(whole, root / DATASET_FILE)


def _info_bytes(info: DatasetInfo) -> bytes:
    return (json.dumps(dataclasses.asdict(info), ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8")


def _write_info(root: Path, info: DatasetInfo) -> None:
    write_atomic(root / DATASET_FILE, _info_bytes(info))


# ------------------------------------------------------------------ what is there


_LABEL_ROWS = {
    "ner": ("entities (B- tags)", "orphan inside tags", "without an entity"),
    "re": ("relations (not None)", "head and tail overlap"),
}


def completeness(records: Iterable[Record], task: str = "ner") -> dict[str, int]:
    """Counts what records of a task have and lack, in the order of the printed table.

    `orphan inside tags` are I- tags without a fitting predecessor: allowed (Twitter-2015 has them), and a strict scorer
    takes them for no entity while a lenient one opens an entity there.
    """
    counts = dict.fromkeys(
        (
            "records",
            "tokens",
            *_LABEL_ROWS[task],
            "without a picture",
            "without regions",
            "without a generated picture",
            "without generated regions",
            "without phrases",
            "without scores",
            "without generated scores",
        ),
        0,
    )
    for record in records:
        counts["records"] += 1
        counts["tokens"] += len(record.tokens)
        if task == "ner":
            tags = record.tags or ()
            counts["entities (B- tags)"] += sum(tag.startswith("B-") for tag in tags)
            counts["orphan inside tags"] += sum(
                tag.startswith("I-") and before[2:] != tag[2:] for before, tag in zip(("O", *tags), tags, strict=False)
            )
            counts["without an entity"] += record.tags is not None and all(tag == "O" for tag in tags)
        else:
            counts["relations (not None)"] += record.relation not in (None, NO_RELATION)
            if record.head and record.tail:
                overlap = max(record.head[0], record.tail[0]) < min(record.head[1], record.tail[1])
                counts["head and tail overlap"] += overlap
        counts["without a picture"] += record.image is None
        counts["without regions"] += not record.regions
        counts["without a generated picture"] += record.generated is None
        counts["without generated regions"] += record.generated is None or not record.generated.regions
        counts["without phrases"] += not record.phrases
        counts["without scores"] += record.scores is None
        counts["without generated scores"] += record.generated_scores is None
    return counts


def completeness_table(dataset: Dataset) -> str:
    """The counts of :func:`completeness` as text, one column per split, and what the data set says of itself."""
    info = dataset.info
    columns = {split: completeness(records, info.task) for split, records in dataset.splits.items()}
    marks = [name for name in MARKS if getattr(info, name)]
    lines = [f"{info.name} ({info.task}: {', '.join(info.labels)})" + (f"  [{', '.join(marks)}]" if marks else "")]
    lines.append(f"{'':30s}" + "".join(f"{split:>9s}" for split in columns))
    for row in completeness((), info.task):
        lines.append(f"{row:30s}" + "".join(f"{column[row]:9d}" for column in columns.values()))
    if dataset.skipped:
        lines.append(f"skipped records: {len(dataset.skipped)}, listed in {dataset.root / SKIPPED_FILE}")
    return "\n".join(lines)
