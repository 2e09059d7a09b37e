"""Tagged text in columns (CoNLL's format), and its tag schemes written as IOB2 (paper section 4.1: BIO tags).

A file is one token a line, in columns, with an empty line after each sentence. What is known beside that: `IMGID:<id>`
before a sentence names its picture, as in the files of UMT and TMR; a column may name it instead; `-DOCSTART-` begins a
document. Every line has as many columns as the first one, so that a token with a blank in it does not shift its tag.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.importing.release_files import Fault, read_blocks
from tmrjax.files import DataError
from tmrjax.text.tags import OUTSIDE

SCHEMES = ("iob2", "iob1", "bioes", "plain")
DOCUMENT, PICTURE = "-DOCSTART-", "IMGID:"
NO_PICTURE = ("", "-", "_")  # in a picture column
_BIOES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}  # BILOU and BMES too
_WHITE = b" \t\r\v\f"


@dataclass(frozen=True)
class Columns:
    """Where things stand in a line. Columns count from 1, or from the end: -1 is the last one.

    separator: "tab"; "blank", any number of blanks and tabs; "auto", tab where the first line has one, else blank; or
    the separator itself. comment: how a line begins that is no token, such as "# id".
    """

    separator: str = "auto"
    token: int = 1
    tag: int = -1
    image: int | None = None
    comment: str | None = None

    def __post_init__(self):
        if 0 in (self.token, self.tag, self.image) or not self.separator or self.comment == "":
            raise ValueError(f"{self}: columns count from 1 or from the end (-1); a separator or comment is not empty")


@dataclass(frozen=True)
class Sentence:
    """A sentence as the file has it, tags in IOB2; `lines` are those of its tokens, `document` counts the markers."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    lines: tuple[int, ...]
    picture: str | None = None
    document: int = 0
    counts: Mapping[str, int] = field(default_factory=Counter)


def to_iob2(tags: Sequence[str], scheme: str, renamed: Mapping[str, str]) -> tuple[list[str], Counter[str]]:
    """Tags of one sentence as IOB2, and what was changed or found broken, counted.

    * ``iob2``: as they are; an I- without a fitting predecessor stays (a strict scorer takes it for no entity).
    * ``iob1``: I- begins an entity, B- only one that touches another of its type.
    * ``bioes``: S- is an entity of one token, E- the end of one; BILOU (L-, U-) and BMES (M-, W-) are read as well.
      An I- or E- without a beginning begins an entity.
    * ``plain``: the bare type on each token; neighbours of one type are one entity.

    Args:
        tags: as the file has them.
        scheme: one of SCHEMES.
        renamed: entity type → its name in the data set.

    Raises:
        TagError: a tag that the scheme does not have.
    """
    counts: Counter[str] = Counter()
    result, open_label, needs_end = [], None, False
    for index, tag in enumerate(tags):
        prefix, label = _parts(tag, scheme, index)
        counts["types renamed"] += label in renamed
        label = renamed.get(label, label)
        goes_on = prefix in ("I", "E") and label == open_label
        if scheme == "bioes":
            counts["entities without E- (kept)"] += needs_end and not goes_on
            counts["entities without B- (begun at their I- or E-)"] += prefix in ("I", "E") and not goes_on
            needs_end = prefix in ("B", "I")
        if prefix == OUTSIDE:
            written = OUTSIDE
        elif scheme == "iob2":
            written = f"{prefix}-{label}"
        else:
            written = f"{'I' if goes_on else 'B'}-{label}"
            changed = scheme == "plain" or written[0] != tag[0]
            counts[f"tags written as IOB2 ({scheme})"] += changed
        result.append(written)
        open_label = None if prefix in (OUTSIDE, "E", "S") else label
    counts["entities without E- (kept)"] += needs_end
    return result, +counts  # without zeros


class TagError(ValueError):
    """A tag outside of the scheme, at `index` of its sentence."""

    def __init__(self, index: int, found: str, expected: str, advice: str):
        super().__init__(found)
        self.index, self.found, self.expected, self.advice = index, found, expected, advice


def _parts(tag: str, scheme: str, index: int) -> tuple[str, str]:
    """(prefix, type) of a tag, the prefix in the letters of BIOES; (O, "") outside of entities."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    prefixed = bool(dash and label and prefix in _BIOES)
    if scheme == "plain":
        if prefixed:
            raise TagError(index, f"the tag {tag!r}", "a bare type or O", "Take --scheme=iob2 or bioes.")
        return "I", tag
    known = _BIOES if scheme == "bioes" else {"B": "B", "I": "I"}
    if not (prefixed and prefix in known):
        advice = "Take --scheme=bioes." if prefixed else "Is it another column (--tag-column), or --scheme=plain?"
        raise TagError(index, f"the tag {tag!r}", f"O or {', '.join(f'{name}-TYPE' for name in known)}", advice)
    return known[prefix], label


def read_sentences(
    path: Path, columns: Columns, scheme: str, renamed: Mapping[str, str], fault: Fault, counts: Counter[str]
) -> Iterator[Sentence]:
    """The sentences of a file. One with a fault is handed to `fault` with its line and picture, and left out.

    `counts` gets what belongs to no sentence: markers of documents, comments, lines of white space.
    """
    reader = _Reader(path, columns, scheme, renamed)
    for block in read_blocks(path, _WHITE):
        try:
            sentence = reader.sentence(block)
        except DataError as error:
            head = block[0][1].removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").strip()
            fault(error, block[0][0], head.removeprefix(PICTURE).strip() if head.startswith(PICTURE) else None)
            continue
        if sentence is not None:
            yield sentence
    counts.update(reader.counts)


class _Reader:
    """Reads the blocks of one file; remembers its separator, its number of columns and the document it is in."""

    def __init__(self, path: Path, columns: Columns, scheme: str, renamed: Mapping[str, str]):
        self.path, self.columns, self.scheme, self.renamed = path, columns, scheme, renamed
        self.separator = {"tab": "\t", "blank": " ", "auto": None}.get(columns.separator, columns.separator)
        self.width: int | None = None
        self.document = 0
        self.counts: Counter[str] = Counter()

    def sentence(self, block: list[tuple[int, bytes]]) -> Sentence | None:
        """One block of lines; None where it holds markers and comments alone."""
        tokens, tags, lines, pictures, named = [], [], [], set(), None
        for number, raw in block:
            where, line = f"{self.path}:{number}", self._decode(number, raw)
            if self.columns.comment is not None and line.startswith(self.columns.comment):
                self.counts["comments (left out)"] += 1
            elif line.startswith(PICTURE):
                if lines or named is not None:
                    self._fail(where, repr(line), f"'{PICTURE}' before the first token only", "Part by an empty line.")
                named = line.removeprefix(PICTURE).strip()
                if not named or any(part in named for part in "/\\\t"):
                    self._fail(where, repr(line), f"'{PICTURE}<id>'", "Write the picture's name without its folder.")
            else:
                cells = self._cells(where, line)
                if cells[0] == DOCUMENT:
                    self.counts["markers of documents (left out)"] += 1
                    self.document += 1
                    continue
                token, tag, picture = (self._cell(where, cells, name) for name in ("token", "tag", "image"))
                if not token:
                    self._fail(where, f"no token in {line!r}", "a token in each line", "Write it, or drop the line.")
                tokens.append(token)
                tags.append(tag)
                lines.append(number)
                if picture not in NO_PICTURE:
                    pictures.add(picture)
        if not lines and named is None:
            return None
        first = f"{self.path}:{block[0][0]}"
        if not lines:
            self._fail(first, f"the picture {named} without a token", "its words below it", "Give them, or drop it.")
        if len(pictures | {named} - {None}) > 1:
            found = f"the pictures {sorted(pictures | {named} - {None})} in one sentence"
            self._fail(first, found, "one picture a sentence", "Part the sentences by an empty line.")
        written, counts = self._tags(tags, lines)
        picture = next(iter(pictures), named)
        return Sentence(tuple(tokens), tuple(written), tuple(lines), picture, self.document, counts)

    def _decode(self, number: int, raw: bytes) -> str:
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            found = f"bytes that are not UTF-8 ({error.reason})"
            raise DataError(f"{self.path}:{number}", found, "UTF-8 text", "Convert the file.") from None
        return line.rstrip("\r")

    def _cells(self, where: str, line: str) -> list[str]:
        if self.separator is None:
            self.separator = "\t" if "\t" in line else " "
        cells = re.split("[ \t]+", line.strip(" \t")) if self.separator == " " else line.split(self.separator)
        if cells[0] == DOCUMENT:
            return cells
        if self.width is None:
            self._check_width(where, len(cells), line)
            self.width = len(cells)
        if len(cells) != self.width:
            expected = f"{self.width} columns as in the lines above, parted by {self.separator!r}"
            advice = "Repair the line; is it another --separator, or a --comment?"
            self._fail(where, f"{len(cells)} columns in {line!r}", expected, advice)
        return cells

    def _check_width(self, where: str, width: int, line: str) -> None:
        asked = [self.columns.token, self.columns.tag, *([self.columns.image] if self.columns.image else [])]
        places = {column if column > 0 else width + 1 + column for column in asked}
        if len(places) < len(asked) or not places <= set(range(1, width + 1)):
            expected = f"columns {asked} that are {len(asked)} different ones, parted by {self.separator!r}"
            advice = "Choose --separator, --token-column, --tag-column, --image-column."
            self._fail(where, f"{width} columns in {line!r}", expected, advice)

    def _cell(self, where: str, cells: list[str], name: str) -> str:
        column = getattr(self.columns, name)
        if column is None:
            return ""
        return cells[column - 1 if column > 0 else column]

    def _tags(self, tags: list[str], lines: list[int]) -> tuple[list[str], Counter[str]]:
        try:
            return to_iob2(tags, self.scheme, self.renamed)
        except TagError as error:
            where = f"{self.path}:{lines[error.index]}"
            raise DataError(where, error.found, error.expected, error.advice) from None

    def _fail(self, where: str, found: str, expected: str, advice: str) -> None:
        raise DataError(where, found, expected, advice)
