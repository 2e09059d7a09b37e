"""Imports posts of which is known whether the picture adds to the text: the second task of RpBERT (AAAI 2021).

    python data_prep/import_text_picture.py --source=textimage-data.csv --images=DIR --out=DATASET [--rows=3576]

--source is the corpus of Vempala and Preotiuc-Pietro (ACL 2019), `textimage-data.csv` of its repository, or any file
of the same form: a first line with names, comma-separated (quotes, inner ones behind a backslash or doubled) or
tab-separated (no quotes), with the columns --text, --id and --label (0 or 1). The picture of a post is `<id>` or
`T<id>` with .jpg, .jpeg or .png in --images; a post without one is left out and counted, with --pictures=require an
error. RpBERT trains on the first 3576 rows (--rows); one link to t.co at the end of a text, which is the picture's, is
removed.

DATASET gets `text_picture.jsonl`, a post a line: {"id", "tokens", "image", "regions": [], "picture_adds": true}, and
the pictures in `text_picture/`. Training finds the file in the data set's folder; with --out elsewhere, name it with
--config.data.text_picture.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.importing.frame import find_pictures, place_picture
from tmrjax import __version__
from tmrjax.files import DataError, jsonl_bytes, read_bytes, sha256, write_atomic
from tmrjax.records import DATASET_FILE, read_dataset, write_dataset
from tmrjax.records.schema import RecordChecker
from tmrjax.text.splitting import split_words

NAME = "text_picture"  # file, folder of pictures, stage
_LINK = re.compile(r"\s+https?://t\.co/\w+\s*$")


@dataclasses.dataclass(frozen=True)
class Options:
    """How the corpus is read; the fields are the command's flags."""

    source: Path
    images: Path
    out: Path
    text: str = "tweet"
    id: str = "tweet_id"
    label: str = "image_adds"
    rows: int | None = None
    pictures: str = "optional"  # or "require"
    link: bool = False

    def __post_init__(self):
        if self.pictures not in ("optional", "require"):
            raise ValueError(f"pictures is {self.pictures!r}; expected optional or require")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; expected at least 1, or none")


def import_text_picture(options: Options) -> dict[str, int]:
    """Writes the posts and their pictures; returns what was met. Raises :class:`DataError`."""
    found = find_pictures(options.images, "--images")
    content = read_bytes(options.source)
    counts: Counter[str] = Counter()
    posts: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for line, identifier, text, adds in _rows(content, options):
        where = f"{options.source}:{line}"
        if identifier in seen:
            raise DataError(
                where, f"the id {identifier!r} again, first at line {seen[identifier]}", "an id once", "Drop one."
            )
        seen[identifier] = line
        counts["rows"] += 1
        picture = found.get(identifier) or found.get(f"T{identifier}")
        if picture is None:
            if options.pictures == "require":
                expected = f"{identifier} or T{identifier} with .jpg, .jpeg or .png in {options.images}"
                raise DataError(where, f"no picture of {identifier!r}", expected, "Use --pictures=optional.")
            counts["rows without a picture (left out)"] += 1
            continue
        tokens = [word.word for word in split_words(_LINK.sub("", text))]
        if not tokens:
            counts["rows without a word (left out)"] += 1
            continue
        image = place_picture(picture, options.out, NAME, where, options.link)
        posts.append({"id": identifier, "tokens": tokens, "image": image, "regions": [], "picture_adds": adds})
        counts["posts"] += 1
        counts["posts whose picture adds"] += adds
    if not posts:
        expected = f"at least one of {counts['rows']:,} rows with a picture in {options.images} and a word"
        raise DataError(options.source, "no post to write", expected, "Correct --images.")
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / f"{NAME}.jsonl", jsonl_bytes(posts))
    if (options.out / DATASET_FILE).is_file():
        _note(options, sha256(content), counts)
    return dict(counts)


def _rows(content: bytes, options: Options) -> Iterator[tuple[int, str, str, bool]]:
    """(line, id, text, label) of the rows that are asked for."""
    path = options.source
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text", "Convert it.") from None
    first = text.split("\n", 1)[0]
    if "\t" in first:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(io.StringIO(text, newline=""), escapechar="\\", strict=True)
    try:
        names = next(reader, [])
        lacking = [name for name in (options.id, options.text, options.label) if name not in names]
        if lacking:
            advice = "Name the columns with --text, --id, --label."
            raise DataError(f"{path}:1", f"the columns {names}", f"{', '.join(map(repr, lacking))} too", advice)
        for number, row in enumerate(reader):
            if number == options.rows:
                return
            where = f"{path}:{reader.line_num}"
            if len(row) != len(names):
                raise DataError(where, f"{len(row)} fields", f"{len(names)}, as in the first line", "Repair the line.")
            values = dict(zip(names, row, strict=True))
            if values[options.label].strip() not in ("0", "1"):
                found = f"{values[options.label][:40]!r} in {options.label!r}"
                raise DataError(where, found, "0 or 1", "Is another column meant (--label)?")
            identifier = RecordChecker(where).word(values[options.id].strip(), options.id)
            yield reader.line_num, identifier, values[options.text], values[options.label].strip() == "1"
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}", f"no row that can be read ({error})", "a row", "Repair it."
        ) from None


def _note(options: Options, digest: str, counts: Counter[str]) -> None:
    """Says in the data set's manifest where the posts come from."""
    dataset = read_dataset(options.out)
    stage = {
        "tool": "data_prep/import_text_picture.py",
        "version": __version__,
        "options": {name: getattr(options, name) for name in ("text", "id", "label", "rows", "pictures", "link")},
        "sources": {options.source.name: digest},
        "counts": dict(counts),
        "sha256": sha256(read_bytes(options.out / f"{NAME}.jsonl")),
    }
    info = dataclasses.replace(dataset.info, stages={**dataset.info.stages, NAME: stage})
    write_dataset(options.out, info, dataset.splits)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", type=Path, required=True, help="comma- or tab-separated file")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, <id>.jpg or T<id>.jpg")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set, or another one")
    parser.add_argument("--text", default="tweet", help="column (default: %(default)s)")
    parser.add_argument("--id", default="tweet_id", help="column (default: %(default)s)")
    parser.add_argument("--label", default="image_adds", help="column, 0 or 1 (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="only so many, from the first (RpBERT: 3576)")
    parser.add_argument("--pictures", choices=("optional", "require"), default="optional")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies of the pictures")
    flags = parser.parse_args()
    try:
        counts = import_text_picture(Options(**vars(flags)))
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"import_text_picture: {error}")
    for name, count in counts.items():
        print(f"  {name:40s}{count:9d}")


if __name__ == "__main__":
    main()
