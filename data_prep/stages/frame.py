"""The frame of every stage between a folder of posts and training (paper sections 3.2 to 3.4): resumable, shardable.

A :class:`Stage` says what to do with a batch of records and how a result enters a record; :func:`run_stage` does the
rest. Each result is written at once to a journal, `journals/<stage>/shard-<i>-of-<n>.jsonl` in the data set's folder;
when every record that was asked for has one, the journals are folded into the split files, which are replaced as a
whole, and `dataset.json["stages"][<stage>]` says how it was done. So a kill at any moment costs the batch it hit and
nothing else; the same command goes on.

* A journal begins with the stage's options. A run with other options is an error, or begins anew with `--restart`.
* A result belongs to the input it was made from: where that has changed since, it is made again.
* A record whose work fails stops the run, or with `--on-error=skip` stays as it was, is counted and listed in
  `journals/<stage>/failed.jsonl`; the next run tries it again.
* `--shard=i/n` does the i-th part (1 to n), chosen by the records' ids. The run that makes the last missing result
  folds. Machines that share no folder copy their journals into one, and any further run folds them.

Journals stay: a data set that is imported once more gets its results back without work.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import functools
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tmrjax import __version__
from tmrjax.files import DataError, jsonl_bytes, parse_json, read_bytes, sha256, write_atomic
from tmrjax.records import (
    Dataset,
    DatasetInfo,
    Record,
    read_dataset,
    record_from_json,
    record_to_json,
    write_dataset,
)

logger = logging.getLogger(__name__)

JOURNALS = "journals"
FAILED = "failed.jsonl"
STATES = ("done", "failed", "not done", "of no concern")
_TORN = "Remove the line; its record is done again."
_RESULT_KEYS = {"id", "input", "value", "counts", "seconds"}
_FAILURE_KEYS = {"id", "input", "error", "seconds"}


@dataclass(frozen=True)
class Outcome:
    """What was found for one record: a JSON value, and what was met on the way (summed up in the manifest)."""

    value: Any
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What a stage does; every field but the functions goes into the manifest.

    name: key in `dataset.json["stages"]` and folder of the journals. tool: the command.
    options: JSON values that results depend on; other options are another stage run. batch_size is none of them.
    versions, sources, notes: of libraries, what was read beside the data set, and what is to be known of the results;
        for the manifest only.
    work: a batch of records to one :class:`Outcome` each, in order; a DataError in the place of one says that this
        record failed. A file that an outcome names must be whole on disk before `work` returns.
    apply: a record and the value of its outcome (as read back from JSON) to the new record. It is applied again at
        every fold, so it must give the same twice, and keep what later stages added to what it finds unchanged.
    inputs: the JSON value that a result depends on beside the options; never what the stage itself writes.
    concerns: whether there is anything to do for a record (default: always); others are counted, not touched.
    info: what changes in `dataset.json` beside the manifest, given it and the splits after the fold.
    """

    name: str
    tool: str
    work: Callable[[Sequence[Record]], Sequence[Outcome | DataError]]
    apply: Callable[[Record, Any], Record]
    inputs: Callable[[Record], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    concerns: Callable[[Record], bool] = lambda record: True
    info: Callable[[DatasetInfo, Mapping[str, Sequence[Record]]], DatasetInfo] = lambda info, splits: info
    model: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1


@dataclass(frozen=True)
class Selection:
    """Which records a run does, and how; the flags that all stages share."""

    splits: tuple[str, ...] | None = None  # all that the set has
    limit: int | None = None  # at most so many records that the stage concerns, from the start of the splits
    shard: tuple[int, int] = (1, 1)  # the first of one
    restart: bool = False
    on_error: str = "raise"  # or "skip"
    progress: bool = True

    def __post_init__(self):
        index, count = self.shard
        if not 1 <= index <= count:
            raise ValueError(f"shard {index}/{count}; expected 1/{count} to {count}/{count}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; expected at least 1, or none")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}; expected 'raise' or 'skip'")


def run_stage(root: str | os.PathLike, stage: Stage, selection: Selection | None = None) -> Dataset:
    """Does what is missing of a stage, then folds the results into the data set; returns the set as it is now.

    With several shards the set is folded (and changes) only once the others are there too. Raises
    :class:`DataError` for bad data, for journals of other options and where another process is at the same shard.
    """
    selection = selection or Selection()
    root = Path(root)
    dataset = read_dataset(root)
    wanted = _wanted(dataset, stage, selection)
    folder = root / JOURNALS / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "shard-{}-of-{}.jsonl".format(*selection.shard)
    with _locked(own.with_suffix(".lock"), f"another process is at {own.name}"):
        _prepare(folder, own, stage, selection.restart)
        done = _results(folder, stage)
        mine = [record for record in wanted if _shard(record.id, selection.shard[1]) == selection.shard[0]]
        todo = [record for record in mine if _state(done.get(record.id), stage, record) != "done"]
        _work_off(own, dataset, stage, todo, len(mine), selection)
    done = _results(folder, stage)
    missing = sum(_state(done.get(record.id), stage, record) == "not done" for record in wanted)
    if missing:
        logger.warning("%d records are left to other shards; the set is folded once they are there", missing)
        return dataset
    return _fold(root, stage, done)


def _wanted(dataset: Dataset, stage: Stage, selection: Selection) -> list[Record]:
    unknown = [split for split in selection.splits or () if split not in dataset.splits]
    if unknown:
        raise DataError(dataset.root, f"no split {unknown[0]!r}", f"one of {', '.join(dataset.splits)}", "Correct it.")
    splits = dataset.splits if selection.splits is None else selection.splits
    wanted = [record for split in splits for record in dataset.splits[split] if stage.concerns(record)]
    return wanted[: selection.limit]


def _shard(identifier: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") % count + 1


def _work_off(own: Path, dataset: Dataset, stage: Stage, todo: list[Record], total: int, selection: Selection) -> None:
    info = dataclasses.replace(dataset.info, renormalised_scores=False)  # whether they are, the fold will know
    bar = tqdm(
        desc=stage.name,
        total=total,
        initial=total - len(todo),
        unit="post",
        disable=None if selection.progress else True,
    )
    with bar, open(own, "ab") as journal:
        for start in range(0, len(todo), stage.batch_size):
            batch = todo[start : start + stage.batch_size]
            began = time.perf_counter()
            outcomes = stage.work(batch)
            seconds = (time.perf_counter() - began) / len(batch)
            lines, first = [], None
            for record, raw in zip(batch, outcomes, strict=True):
                outcome = _checked(raw, record, stage, info, dataset.root)
                if isinstance(outcome, DataError):
                    first = first or outcome
                    if selection.on_error == "raise":
                        continue
                    found = {"error": str(outcome)}
                else:
                    found = {"value": outcome.value, "counts": dict(outcome.counts)}
                lines.append({"id": record.id, "input": _digest(stage, record), **found, "seconds": round(seconds, 6)})
            journal.write(jsonl_bytes(lines))
            journal.flush()
            os.fsync(journal.fileno())
            if first is not None and selection.on_error == "raise":
                raise first
            bar.update(len(batch))


def _checked(
    outcome: Outcome | DataError, record: Record, stage: Stage, info: DatasetInfo, root: Path
) -> Outcome | DataError:
    """The outcome, or why it can't enter the record: nothing is journaled that a fold would stumble over."""
    if isinstance(outcome, DataError):
        return outcome
    try:
        changed = stage.apply(record, json.loads(json.dumps(outcome.value, allow_nan=False)))
        record_from_json(record_to_json(changed, info.task), info, where=f"{stage.name}: {record.id}", root=root)
    except DataError as error:
        return error
    return outcome


# ------------------------------------------------------------------ the journals


def _header(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.name, "options": dict(stage.options), "model": stage.model, "seed": stage.seed}


def _digest(stage: Stage, record: Record) -> str:
    text = json.dumps(stage.inputs(record), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _state(line: Mapping[str, Any] | None, stage: Stage, record: Record) -> str:
    """One of STATES, given the last line about a record."""
    if not stage.concerns(record):
        return "of no concern"
    if line is None or line["input"] != _digest(stage, record):
        return "not done"
    return "failed" if "error" in line else "done"


@contextmanager
def _locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds a file's lock, which ends with the process; waits for it, or with `busy` raises at once."""
    with open(path, "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise DataError(path, busy or "", "one process a shard", "Let it end, or use --shard=i/n.") from None
        yield


def _prepare(folder: Path, own: Path, stage: Stage, restart: bool) -> None:
    """Leaves journals of these options only, and the own one ending with a whole line.

    A restart drops the own journal and those that can't belong to its sisters: of other options or another number of
    shards.
    """
    header = _header(stage)
    _sweep(folder, own.name)
    for path in sorted(folder.glob("shard-*.jsonl")):
        data = read_bytes(path)
        whole = data[: data.rfind(b"\n") + 1]
        found = parse_json(whole.split(b"\n", 1)[0], f"{path}:1") if whole else header
        sister = path != own and path.stem.partition("-of-")[2] == own.stem.partition("-of-")[2]
        if restart and not (sister and found == header):
            if path == own:
                path.unlink()
                continue
            with _locked(path.with_suffix(".lock"), f"another process is at {path.name}"):
                path.unlink()
        elif found != header:
            raise DataError(
                path,
                f"results of {json.dumps(found, ensure_ascii=False)}",
                json.dumps(header, ensure_ascii=False),
                "Use the same options to go on, or --restart to begin anew.",
            )
        elif path == own and whole != data:
            write_atomic(path, whole)  # a line that was cut off while it was written is done again
    if not own.exists() or not own.stat().st_size:
        write_atomic(own, jsonl_bytes([header]))


def _results(folder: Path, stage: Stage) -> dict[str, dict[str, Any]]:
    """The last line of each record over all journals; a result wins over a failure."""
    results: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("shard-*.jsonl")):
        data = read_bytes(path)
        for number, raw in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[1:-1], start=2):
            where = f"{path}:{number}"
            line = parse_json(raw, where)
            if not _is_result(line):
                raise DataError(where, repr(raw[:80]), "a result of a record", _TORN)
            before = results.get(line["id"])
            if before is None or "error" not in line or before["input"] != line["input"]:
                results[line["id"]] = line
    return results


def _is_result(line: Any) -> bool:
    """Whether a line of a journal has the keys and types that :func:`_work_off` writes."""
    if not isinstance(line, dict) or line.keys() not in (_RESULT_KEYS, _FAILURE_KEYS):
        return False
    counts, seconds = line.get("counts", {}), line["seconds"]
    return (
        all(isinstance(line[key], str) for key in ("id", "input", "error") if key in line)
        and isinstance(seconds, int | float)
        and isinstance(counts, dict)
        and all(type(count) is int for count in counts.values())
    )


def _sweep(folder: Path, name: str) -> None:
    """Removes what a kill left of an atomic write; only under the lock of all who write that file."""
    for path in folder.glob(f".{name}.*"):
        path.unlink()


# ------------------------------------------------------------------ the fold


def _fold(root: Path, stage: Stage, done: Mapping[str, Mapping[str, Any]]) -> Dataset:
    """Applies all results that fit their records, with the manifest; what is equal already is not written again."""
    with _locked(root / JOURNALS / ".lock"):  # another stage may fold at the same time
        _sweep(root, "*.next")
        dataset = read_dataset(root)
        counts: Counter[str] = Counter()
        failed, splits, per_split, seconds = [], {}, {}, 0.0
        for split, records in dataset.splits.items():
            tally = dict.fromkeys(STATES, 0)
            folded = []
            for record in records:
                line, new = done.get(record.id), record
                state = _state(line, stage, record)
                tally[state] += 1
                if state == "failed":
                    failed.append({"split": split, "id": record.id, "error": line["error"]})
                elif state == "done":
                    counts.update(line["counts"])
                    seconds += line["seconds"]
                    new = _applied(stage, record, line["value"], root)
                folded.append(new)
            splits[split], per_split[split] = tuple(folded), tally
        listing = root / JOURNALS / stage.name / FAILED
        if failed:
            write_atomic(listing, jsonl_bytes(failed))
        else:
            listing.unlink(missing_ok=True)
        manifest = {
            "tool": stage.tool,
            "version": __version__,
            "versions": dict(stage.versions),
            "sources": dict(stage.sources),
            "notes": dict(stage.notes),
            "model": stage.model,
            "options": dict(stage.options),
            "seed": stage.seed,
            "records": per_split,
            "counts": dict(sorted(counts.items())),
            "seconds": round(seconds, 3),
            "failed": f"{JOURNALS}/{stage.name}/{FAILED}" if failed else None,
        }
        info = stage.info(dataset.info, splits)
        before = {key: value for key, value in info.stages.get(stage.name, {}).items() if key != "finished"}
        if splits == dataset.splits and before == json.loads(json.dumps(manifest)) and info == dataset.info:
            return dataset
        manifest["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_dataset(root, dataclasses.replace(info, stages={**info.stages, stage.name: manifest}), splits)
        return read_dataset(root)


def _applied(stage: Stage, record: Record, value: Any, root: Path) -> Record:
    """The new record; a value that the stage did not write, as after damage on the disk, is an error with its place."""
    try:
        return stage.apply(record, value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        where = f"{root / JOURNALS / stage.name}: the result of {record.id}"
        found = f"a value that is none of this stage's ({type(error).__name__}: {error})"
        raise DataError(where, found, "what the stage wrote", _TORN) from error


def file_digest(path: str | os.PathLike) -> str:
    """The beginning of a file's SHA-256: an input of a stage that reads pictures. An unchanged file is read once."""
    status = os.stat(path)
    return _file_digest(os.fspath(path), status.st_size, status.st_mtime_ns)


def folder_digest(folder: str | os.PathLike) -> str:
    """The beginning of a SHA-256 over the names and contents of a folder's files: it names a model."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            with open(path, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


@functools.cache
def _file_digest(path: str, size: int, modified: int) -> str:
    del size, modified
    return sha256(read_bytes(Path(path)))[:16]
