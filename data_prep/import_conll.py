"""Imports tagged text of your own: columns as in CoNLL's files, with or without pictures (paper section 4.1: BIO tags).

    python data_prep/import_conll.py --train=T.txt --dev=D.txt --test=E.txt --out=DIR [--images=FOLDER]
    python data_prep/import_conll.py --file=ALL.txt --split=0.8,0.1,0.1 --seed=0 --out=DIR

A line is a token and its tag in columns (--separator, --token-column, --tag-column), an empty line ends a sentence; see
:mod:`data_prep.importing.column_files`. A sentence is a post. Its picture is named by a line `IMGID:<id>` before it
(`<id>.jpg`, `.jpeg` or `.png` in --images, as UMT and TMR have it) or by a column (--image-column: a path inside
--images); one that is not there is null and counted, or an error with --pictures=require. What the files have otherwise
is handled knowingly and counted in the table that is printed and in `dataset.json`:

* Tags become IOB2 (--scheme says what they are: iob2, iob1, bioes, plain). Entity types are those of the files in their
  order, or exactly --labels; --rename OTHER=MISC renames. An I- without a beginning stays as it is under iob2.
* `-DOCSTART-` lines are left out, and so are those that begin with --comment.
* --split draws train, dev and test by --seed. Sentences with one picture, with the same words or, where the file has
  several documents, of one document go into the same split: otherwise test would not be unseen.
* An id is that of the picture, numbered where several sentences have it, or split and line (`train-17`).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.importing.column_files import SCHEMES, Columns, Sentence, read_sentences
from data_prep.importing.frame import PICTURE_SUFFIXES, Import, command, find_pictures
from data_prep.importing.release_files import is_invisible
from tmrjax.files import DataError, read_bytes, sha256
from tmrjax.records import SKIPPED_FILE, SPLITS, Dataset, DatasetInfo, Record

TOOL = "import_conll"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to import; the fields are the command's flags. Either `train`, `dev`, `test`, or `file` with `split`."""

    out: Path
    train: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    file: Path | None = None
    split: tuple[float, ...] | None = None
    seed: int = 0
    columns: Columns = dataclasses.field(default_factory=Columns)
    scheme: str = "iob2"
    labels: tuple[str, ...] | None = None  # None: those of the files
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Path | None = None
    pictures: str = "optional"  # or "require": a sentence without its picture is an error
    on_error: str = "raise"  # or "skip": drop the sentence, count it, list it
    link: bool = False  # hard links instead of copies of the pictures
    name: str | None = None  # of the data set; default: of the files' folder
    progress: bool = True

    def __post_init__(self):
        files = [getattr(self, split) for split in SPLITS]
        if (self.file is None) == (None in files) or (self.file is not None and any(files)):
            raise ValueError("give --train, --dev and --test, or --file with --split")
        if (self.file is None) != (self.split is None):
            raise ValueError("--split goes with --file: shares of train, dev and test, as 0.8,0.1,0.1")
        if self.split and (len(self.split) != len(SPLITS) or min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6):
            raise ValueError(f"--split is {self.split}; expected three positive shares that sum to 1, as 0.8,0.1,0.1")

    @property
    def files(self) -> dict[str, Path]:
        """Split, or "all", → its file."""
        return {"all": self.file} if self.file else {split: getattr(self, split) for split in SPLITS}

    @property
    def source(self) -> Path:
        """The folder of the files."""
        return next(iter(self.files.values())).parent


class _Import(Import):
    def __init__(self, options: Options):
        super().__init__(
            options, {"scheme": SCHEMES, "pictures": ("optional", "require"), "on_error": ("raise", "skip")}
        )
        named = options.columns.image is None  # by IMGID, without a suffix
        self.pictures = find_pictures(options.images, "--images") if named else {}
        self.numbers: Counter[str] = Counter()
        self.used: dict[str, str] = {}  # picture -> the split that has it first
        self.ids: dict[str, str] = {}

    def read(self, name: str, path: Path) -> list[Sentence]:
        options, met = self.options, Counter()
        self.sources[f"{name}: {path.name}"] = sha256(read_bytes(path))
        arguments = options.columns, options.scheme, options.rename, self.fault(path), met
        sentences = list(read_sentences(path, *arguments))
        if not sentences:
            raise DataError(path, "no sentence", "lines of a token and its tag", "Is it the right file?")
        self._check_scheme(path, sentences)
        for key, number in met.items():
            self.counts["train" if name == "all" else name][key] += number
        return sentences

    def _check_scheme(self, path: Path, sentences: Sequence[Sentence]) -> None:
        """Refuses IOB1 that is read as IOB2: most of its entities would be none."""
        beginnings = sum(tag.startswith("B-") for sentence in sentences for tag in sentence.tags)
        orphans = sum(
            tag.startswith("I-") and before == "O"
            for sentence in sentences
            for before, tag in zip(("O", *sentence.tags), sentence.tags, strict=False)
        )
        if self.options.scheme == "iob2" and orphans > beginnings:
            found = f"{orphans} entities that begin with I- and {beginnings} with B-"
            raise DataError(path, found, "B- at the beginning of each entity (IOB2)", "Is it --scheme=iob1?")

    def records(self, split: str, sentences: Sequence[tuple[str, Path, Sentence]]) -> list[Record]:
        counts, records = self.counts[split], []
        bar = tqdm(sentences, desc=split, unit="sentence", disable=None if self.options.progress else True)
        for name, path, sentence in bar:
            where = f"{path}:{sentence.lines[0]}"
            identifier = f"{path.stem if name == 'all' else name}-{sentence.lines[0]}"
            if sentence.picture is not None and self.options.columns.image is None:
                identifier = self._number(sentence.picture)
            try:
                if identifier in self.ids:
                    found = f"the id {identifier} again, first at {self.ids[identifier]}"
                    raise DataError(where, found, "an id once over all splits", "Rename one of them.")
                image = self._picture(split, sentence, where)
            except DataError as error:
                self.fault(path)(error, sentence.lines[0], identifier)
                continue
            self.ids[identifier] = where
            for key, number in sentence.counts.items():
                counts[key] += number
            counts["words that vanish in BERT's cleaning"] += sum(map(is_invisible, sentence.tokens))
            records.append(Record(id=identifier, tokens=sentence.tokens, tags=sentence.tags, image=image))
        if not records:
            raise DataError(self.options.source, f"no sentence for {split}", "some in each split", "See the files.")
        return records

    def _number(self, picture: str) -> str:
        name = picture.removesuffix(PurePosixPath(picture).suffix) if _has_suffix(picture) else picture
        self.numbers[name] += 1
        return name if self.numbers[name] == 1 else f"{name}-{self.numbers[name]}"

    def _picture(self, split: str, sentence: Sentence, where: str) -> str | None:
        counts, named, options = self.counts[split], sentence.picture, self.options
        if named is None and options.pictures == "require":
            raise DataError(where, "no name of a picture", "one a sentence", "Name it, or take --pictures=optional.")
        if named is None or options.images is None:
            counts["pictures that are named, without --images"] += named is not None
            return None
        path, folder = self._find(named, where)
        if path is None:
            if options.pictures == "require":
                advice = "Add it, or use --pictures=optional."
                raise DataError(where, f"no picture {named}", f"one in {options.images}", advice)
            counts["pictures that are named, but not in --images"] += 1
            return None
        placed = self.place(path, folder, where)
        counts["sentences with a picture that another split has"] += self.used.setdefault(placed, split) != split
        return placed

    def _find(self, named: str, where: str) -> tuple[Path | None, str]:
        """The file of a picture, None where it is missing, and the folder of the data set that it goes to."""
        relative = PurePosixPath(named)
        if relative.is_absolute() or ".." in relative.parts or "\\" in named:
            raise DataError(where, f"the picture {named!r}", f"a path inside {self.options.images}", "Correct it.")
        if self.options.columns.image is None:
            return self.pictures.get(relative.stem if _has_suffix(named) else named), "images"
        names = [named] if _has_suffix(named) else [named + suffix for suffix in PICTURE_SUFFIXES]
        found = [path for path in (self.options.images / name for name in names) if path.is_file()]
        return (found[0] if found else None), str(PurePosixPath("images") / relative.parent)

    def labels(self, splits: Mapping[str, Sequence[Record]]) -> tuple[str, ...]:
        """The entity types: those asked for, or those of the files in their order."""
        found = {
            split: dict.fromkeys(tag[2:] for record in records for tag in record.tags if tag != "O")
            for split, records in splits.items()
        }
        labels = self.options.labels or tuple(dict.fromkeys(label for types in found.values() for label in types))
        for split, types in found.items():
            if unknown := [label for label in types if label not in labels]:
                advice = "Name it in --labels, or rename it with --rename."
                raise DataError(split, f"the entity type {unknown[0]!r}", f"one of {', '.join(labels)}", advice)
            self.counts[split]["entity types that train does not have"] = len(types.keys() - found["train"].keys())
        if not labels:
            raise DataError(self.options.source, "no entity", "tagged entities", "Is the tag in another column?")
        return labels


def _has_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def split_by_hand(sentences: Sequence[Sentence], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Indices of the sentences of each split, in the order of the file.

    Sentences that share a picture, their words or, where there are several documents, a document stay together. The
    groups are drawn by `seed`; each goes to the first split that has not its share yet. Raises ValueError where there
    are fewer groups than splits.
    """
    several = len({sentence.document for sentence in sentences}) > 1
    first: dict[tuple, int] = {}
    edges = []
    for index, sentence in enumerate(sentences):
        keys = [("words", sentence.tokens)]
        keys += [("picture", sentence.picture)] * (sentence.picture is not None)
        keys += [("document", sentence.document)] * several
        edges.extend((first.setdefault(key, index), index) for key in keys)
    rows, columns = np.array(edges).T
    size = len(sentences)
    links = coo_array((np.ones(len(edges), np.int8), (rows, columns)), shape=(size, size))
    number, groups = connected_components(links, directed=False)
    if number < len(shares):
        raise ValueError(f"{number} groups of sentences that belong together, for {len(shares)} splits")
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(number)
    ends = np.cumsum(shares)
    before = (np.cumsum(sizes[order]) - sizes[order]) / size
    chosen = np.searchsorted(ends[:-1], before, side="right")
    # A split that large groups jumped over gets one of the others' last ones.
    for split in range(len(shares)):
        if not (chosen == split).any():
            chosen[np.flatnonzero(chosen == np.bincount(chosen).argmax())[-1]] = split
    split_of = np.empty(number, int)
    split_of[order] = chosen
    return [np.flatnonzero(split_of[groups] == split).tolist() for split in range(len(shares))]


def import_conll(options: Options) -> Dataset:
    """Imports tagged text (see the module's docstring) and reads it back. Raises :class:`DataError`."""
    run = _Import(options)
    read = {name: [(name, path, item) for item in run.read(name, path)] for name, path in options.files.items()}
    if options.file:
        whole = read["all"]
        try:
            parts = split_by_hand([item for _, _, item in whole], options.split, options.seed)
        except ValueError as error:
            advice = "Give more text, or split by files: --train, --dev, --test."
            raise DataError(options.file, str(error), "at least one group a split", advice) from None
        read = {split: [whole[index] for index in part] for split, part in zip(SPLITS, parts, strict=True)}
    splits = {split: run.records(split, sentences) for split, sentences in read.items()}
    placed = {Path(picture).stem for picture in run.used}
    run.counts["train"]["pictures of no sentence of any split (left out)"] = len(run.pictures.keys() - placed)
    name = options.name or options.source.resolve().name
    return run.finish(TOOL, DatasetInfo(name, "ner", run.labels(splits)), splits)


def _renaming(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    if not (old and new):
        raise argparse.ArgumentTypeError(f"{text!r}; expected OLD=NEW")
    return old, new


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, help=f"file of {split}")
    parser.add_argument("--file", type=Path, help="one file for all three, with --split")
    parser.add_argument("--split", type=_shares, metavar="0.8,0.1,0.1", help="shares of train, dev and test")
    parser.add_argument("--seed", type=int, default=0, help="of --split (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set to write")
    parser.add_argument("--separator", default="auto", help="tab, blank, auto, or the separator itself")
    parser.add_argument("--token-column", type=int, default=1, help="from 1, or from the end: -1 (default: 1)")
    parser.add_argument("--tag-column", type=int, default=-1, help="likewise (default: -1)")
    parser.add_argument(
        "--image-column", type=int, help="likewise: the picture of each sentence (default: IMGID lines)"
    )
    parser.add_argument("--comment", metavar="PREFIX", help="lines that begin so are left out")
    parser.add_argument("--scheme", choices=SCHEMES, default="iob2", help="of the tags (default: %(default)s)")
    parser.add_argument("--labels", nargs="+", help="the entity types in order (default: those of the files)")
    parser.add_argument("--rename", type=_renaming, nargs="+", default=[], metavar="OLD=NEW", help="entity types")
    parser.add_argument("--images", type=Path, help="folder of pictures")
    parser.add_argument("--pictures", choices=("optional", "require"), default="optional")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help=f"skip lists in {SKIPPED_FILE}")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies of the pictures")
    parser.add_argument("--name", help="name of the data set (default: of the files' folder)")
    flags = vars(parser.parse_args())
    columns = {name: flags.pop(f"{name}_column") for name in ("token", "tag", "image")}
    try:
        columns = Columns(flags.pop("separator"), **columns, comment=flags.pop("comment"))
        labels, rename = flags.pop("labels"), dict(flags.pop("rename"))
        options = Options(columns=columns, labels=tuple(labels) if labels else None, rename=rename, **flags)
    except ValueError as error:
        parser.error(str(error))
    command(TOOL, lambda: import_conll(options))


if __name__ == "__main__":
    main()
