"""What the importers of released data share: counting what they meet, faults, pictures, the table that is printed."""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_prep.audit_leaks import audit, audit_table
from data_prep.importing.hashes import released_name
from tmrjax import __version__
from tmrjax.files import DataError, jsonl_bytes, read_bytes, sha256, write_atomic
from tmrjax.pictures.decode import load_picture
from tmrjax.records import (
    SKIPPED_FILE,
    SPLITS,
    Dataset,
    DatasetInfo,
    Record,
    Skipped,
    completeness_table,
    read_dataset,
    write_dataset,
)

RELEASED_SPLITS = {"train": "train", "dev": "val", "test": "test"}  # ours -> the release's
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Options(Protocol):
    """The options that every importer has."""

    source: Path
    out: Path
    images: Path | None
    generated: Path | None
    pictures: str
    text_only: bool
    on_error: str
    link: bool
    name: str | None


@dataclasses.dataclass(frozen=True)
class Needed:
    """A file of the release: the names that it may have, what it holds, the flag that goes on without (None: none)."""

    names: tuple[str, ...]
    what: str
    without: str | None = None


class Import:
    """One run of an importer: what it counts, the faults it met, what is to be said of the files (`notes`)."""

    def __init__(self, options: Options, allowed: Mapping[str, Sequence[str]]):
        for name, values in allowed.items():
            if getattr(options, name) not in values:
                raise ValueError(f"{name} is {getattr(options, name)!r}; expected one of {tuple(values)}")
        if not options.source.is_dir():
            raise DataError(options.source, "no such folder", "a folder of the release", "Correct --source.")
        options.out.mkdir(parents=True, exist_ok=True)
        self.options = options
        self.counts: dict[str, dict[str, int]] = {split: defaultdict(int) for split in RELEASED_SPLITS}
        self.sources: dict[str, str] = {}
        self.notes: list[str] = []
        self.skipped: list[Skipped] = []
        self.dropped: set[str] = set()

    def locate(self, needed: Mapping[Any, Needed]) -> dict[Any, Path]:
        """Finds all files before any is read; keeps their hashes and names those that are not the released ones.

        Raises one :class:`DataError` for all that lack, with the flags that go on without them, and for a file that is
        a released one of another name.
        """
        root, found = self.options.source, {}
        lacking: dict[tuple[str, str | None], list[Needed]] = defaultdict(list)
        for key, one in needed.items():
            path = next((root / name for name in one.names if (root / name).is_file()), None)
            if path is None:
                lacking[one.what, one.without].append(one)
            else:
                found[key] = path
        if lacking:
            raise self._lack(lacking)
        unknown, releases = [], set()
        for path in dict.fromkeys(found.values()):
            digest = sha256(read_bytes(path))
            self.sources[path.name] = digest
            name = released_name(digest)
            release, _, known = (name or "").partition("/")
            if name is None:
                unknown.append(path.name)
            elif known != path.name:
                expected = f"{path.name}: this is the released {known} (by its SHA-256)"
                raise DataError(path, f"the content of {known}", expected, "Were files swapped or renamed?")
            releases |= {release} if release else set()
        if unknown:
            self.notes.append(f"not the released files, by SHA-256: {', '.join(unknown)}")
        if len(releases) > 1:
            self.notes.append(f"files of different releases: {', '.join(sorted(releases))}")
        return found

    def _lack(self, lacking: Mapping[tuple[str, str | None], Sequence[Needed]]) -> DataError:
        parts, flags = [], []
        for (what, without), files in sorted(lacking.items(), key=lambda item: item[0][1] is not None):
            more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            parts.append(f"none of {', '.join(files[0].names)}{more} ({what})")
            flags += [without] if without is not None else []
        advice = []
        if len(flags) < len(lacking):
            advice.append("Correct --source")
        if flags:
            advice.append(f"go on without {'it' if len(lacking) == 1 else 'them'} with {' '.join(flags)}")
        if len(flags) > 1:
            advice.append("or with --text-only")
        advice = ", ".join(advice)
        expected = "a folder of the release with one of each"
        return DataError(self.options.source, "; ".join(parts), expected, f"{advice[0].upper()}{advice[1:]}.")

    def fault(self, path: Path) -> Callable[[DataError, int, str | None], None]:
        """What to do with a faulty line of `path`: raise, or drop the record it belongs to and list it."""

        def handle(error: DataError, line: int, identifier: str | None) -> None:
            if self.options.on_error == "raise":
                raise error
            self.skipped.append(Skipped(path.name, line, identifier, str(error)))
            if identifier is not None:
                self.dropped.add(identifier)

        return handle

    def note_swapped(self, name: str, released: str, weak: Iterable[float], strong: Iterable[float]) -> None:
        """Notes where weak scores are smaller than strong ones: in the release they are far greater on average."""
        if sum(weak) < sum(strong):
            self.notes.append(
                f"{released}: weak {name} are smaller than strong ones on average, unlike in the release; are the files"
                " swapped?"
            )

    def place(self, picture: Path | None, folder: str, where: str) -> str | None:
        """Checks that the picture can be read and puts it into the data set; an older copy that is equal stays."""
        return None if picture is None else place_picture(picture, self.options.out, folder, where, self.options.link)

    def finish(self, tool: str, info: DatasetInfo, splits: Mapping[str, Sequence[Record]], **stage: Any) -> Dataset:
        """Writes the set with what was met on the way in its stage, and reads it back."""
        options = {
            name: value.resolve().name if isinstance(value, Path) else value  # a machine's paths mean nothing elsewhere
            for name, value in dataclasses.asdict(self.options).items()
            if name not in ("out", "progress")
        }
        manifest = {
            "tool": f"data_prep/{tool}.py",
            "version": __version__,
            "options": options,
            "sources": self.sources,
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "skipped": len(self.skipped),
            "notes": self.notes,
            "equal_texts": equal_texts(splits),
            **stage,
        }
        out = self.options.out
        info = dataclasses.replace(info, stages={tool: manifest})
        if self.skipped or (out / SKIPPED_FILE).exists():
            write_atomic(out / SKIPPED_FILE, jsonl_bytes(dataclasses.asdict(item) for item in self.skipped))
        write_dataset(out, info, splits)
        return dataclasses.replace(read_dataset(out), skipped=tuple(self.skipped))


def place_picture(picture: Path, out: Path, folder: str, where: str, link: bool) -> str:
    """Checks that a picture can be read and puts it into `out`/`folder`, as a copy or a hard link; its path in `out`.

    An older copy that is equal stays. Raises :class:`DataError`, which begins with `where`.
    """
    try:
        load_picture(picture)
    except DataError as error:
        raise DataError(where, str(error), "a picture that can be read", "Replace or remove it.") from error
    target = out / folder / picture.name
    if not (target.exists() and filecmp.cmp(picture, target, shallow=False)):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        temporary.unlink(missing_ok=True)
        if link:
            os.link(picture.resolve(), temporary)
        else:
            shutil.copyfile(picture, temporary)
        os.replace(temporary, target)
    return f"{folder}/{picture.name}"


def find_pictures(folder: Path | None, option: str, below: Sequence[str] = ()) -> dict[str, Path]:
    """Pictures of a folder, and of those ``below`` it that are there, by file name without suffix.

    Raises :class:`DataError` for a missing folder or two files of one name.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise DataError(folder, "no such folder", "a folder of pictures named <id>.jpg", f"Correct {option}.")
    found: dict[str, Path] = {}
    folders = [folder, *(folder / name for name in below if (folder / name).is_dir())]
    for path in (path for place in folders for path in sorted(place.iterdir())):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            if path.stem in found:
                raise DataError(path, f"a second picture of {path.stem}", f"only {found[path.stem]}", "Keep one.")
            found[path.stem] = path
    return found


def text_only(options: Any, **without: Any) -> Any:
    """The options where only text and labels are asked for: no pictures, and ``without`` for the rest.

    Raises ValueError where pictures are asked for as well.
    """
    if not options.text_only:
        return options
    if options.images is not None or options.generated is not None or options.pictures == "require":
        raise ValueError("text_only leaves pictures out: drop images, generated and pictures=require")
    return dataclasses.replace(options, **without)


def equal_texts(splits: Mapping[str, Sequence[Record]]) -> list[list[str]]:
    """Groups of tweets with the same words, as "split:id": where they cross splits, test is not unseen."""
    groups = defaultdict(list)
    for split, records in splits.items():
        for record in records:
            groups[record.tokens].append(f"{split}:{record.id}")
    return [group for group in groups.values() if len(group) > 1]


def import_table(dataset: Dataset, tool: str) -> str:
    """The completeness table, what the import met, one column per split, and how much side inputs tell of labels."""
    stage = dataset.info.stages[tool]
    rows = list(dict.fromkeys(name for counts in stage["counts"].values() for name in counts))
    lines = [completeness_table(dataset), f"labels: {dataset.label_version}", "met on the way:"]
    for row in rows:
        values = (stage["counts"][split].get(row, 0) for split in SPLITS)
        lines.append(f"  {row:60s}" + "".join(f"{value:8d}" for value in values))
    groups = stage["equal_texts"]
    crossing = sum(len({item.split(":")[0] for item in group}) > 1 for group in groups)
    lines.append(
        f"  texts that occur more than once: {len(groups)}, of these across splits: {crossing} (in dataset.json)"
    )
    lines += [f"  ! {note}" for note in stage["notes"]]
    return "\n".join([*lines, audit_table(audit(dataset), dataset.info)])


def add_arguments(parser: argparse.ArgumentParser, *, boxes: str, boxes_help: str) -> None:
    """The flags that every importer has; `boxes` is the default of --generated-boxes."""
    parser.add_argument("--source", type=Path, required=True, help="folder of the release")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set to write")
    parser.add_argument("--images", type=Path, help="folder of original pictures, <id>.jpg|jpeg|png")
    parser.add_argument("--generated", type=Path, help="folder of generated pictures, likewise")
    parser.add_argument("--text-only", action="store_true", help="text and labels: no pictures, phrases, boxes, scores")
    parser.add_argument("--generated-boxes", choices=("released", "none"), default=boxes, help=boxes_help)
    parser.add_argument("--pictures", choices=("optional", "require"), default="optional")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help=f"skip lists in {SKIPPED_FILE}")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies of the pictures")
    parser.add_argument("--name", help="name of the data set (default: the importer's choice)")


def command(tool: str, run: Callable[[], Dataset]) -> None:
    """Runs an importer and prints its table; a fault ends the process with one line."""
    try:
        dataset = run()
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"{tool}: {error}")
    print(import_table(dataset, tool))
    print(f"written to {dataset.root}")
