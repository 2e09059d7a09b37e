"""The pool of a corpus under construction: every usable picture and text once, on disk, with what was refused and why.

One SQLite file holds the pictures as they will be stored, their texts, how far each source was read, and later the
plan of the corpus (:mod:`data_prep.corpus.mixture`). A chunk of a source is one transaction, so a kill at any moment
costs that chunk and nothing else. A picture that equals an earlier one, or nearly so (256-bit difference hash), and a
text that stands there already are left out and listed: what is in the pool once is in one split only.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_prep.corpus.sources import Item, Source
from data_prep.corpus.texts import clean_text, text_digest
from tmrjax.divergence.corpus import CLASSES
from tmrjax.files import DataError
from tmrjax.pictures.decode import decode_picture

JPEG_QUALITY = 90
MAX_ASPECT = 10  # beyond it a picture is a banner: two patches thick at most in ViLT's geometry
NEAR_BITS = 7  # of 256; at most one less than there are bands, so that a near picture shares one of them
BANDS = 8
CHUNK = 64  # items in one transaction, and in memory at once
_CACHE_KIB = 32 * 1024

_TABLES = f"""
CREATE TABLE options (value TEXT);
CREATE TABLE sources (number INTEGER PRIMARY KEY, name TEXT, role TEXT, domain TEXT, position INTEGER, done INTEGER);
CREATE TABLE pictures (
    number INTEGER PRIMARY KEY, source INTEGER, key TEXT, height INTEGER, width INTEGER, apart TEXT, rank INTEGER,
    exact BLOB, label INTEGER, {", ".join(f"band{i} INTEGER" for i in range(BANDS))});
CREATE TABLE files (picture INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE texts (picture INTEGER, place INTEGER, text TEXT, digest INTEGER, PRIMARY KEY (picture, place))
    WITHOUT ROWID;
CREATE TABLE dropped (source INTEGER, key TEXT, reason TEXT, detail TEXT);
CREATE INDEX picture_exact ON pictures (exact);
CREATE INDEX picture_order ON pictures (source, rank);
CREATE INDEX text_digest ON texts (digest);
CREATE TABLE chosen (
    split TEXT, label INTEGER, source INTEGER, place INTEGER, picture INTEGER, text_place INTEGER, apart TEXT,
    PRIMARY KEY (split, label, source, place)) WITHOUT ROWID;
CREATE TABLE draft (
    split TEXT, rank INTEGER, label INTEGER, picture INTEGER, text_picture INTEGER, text_place INTEGER);
CREATE TABLE plan (
    split TEXT, number INTEGER, label INTEGER, picture INTEGER, text_picture INTEGER, text_place INTEGER,
    PRIMARY KEY (split, number)) WITHOUT ROWID;
CREATE TABLE shards (split TEXT, number INTEGER, records INTEGER, digest TEXT, part BLOB, PRIMARY KEY (split, number));
""" + "".join(
    # A band without or full of edges says nothing about a picture, and half of all posters share it.
    f"CREATE INDEX picture_band{i} ON pictures (band{i}) WHERE band{i} NOT IN (0, {2**32 - 1});"
    for i in range(BANDS)
)


# Pictures that are equal, then those that share a band; one look-up in an index each.
_TWINS = " UNION ALL ".join(
    f"SELECT source, key, exact, {', '.join(f'band{i}' for i in range(BANDS))} FROM pictures WHERE {condition}"
    for condition in (
        "exact = ?1",
        *(f"band{i} = ?{i + 2} AND band{i} NOT IN (0, {2**32 - 1})" for i in range(BANDS)),
    )
)


class Normalised(NamedTuple):
    """A picture as it is stored: JPEG bytes, height, width, its difference hash as BANDS numbers of 32 bits."""

    data: bytes
    height: int
    width: int
    bands: tuple[int, ...]


# A picture; the error or the reason for which it can't be used; None where the user left it out.
Prepared = Normalised | DataError | str | None


@dataclass(frozen=True)
class Rules:
    """What a source must keep, beside being readable.

    smallest, store_size: limits of the short side. exclude, only: {column: values}; apart: the column in which the
    picture of a weaken pair differs from its text's own; clean: of :data:`data_prep.corpus.texts.CLEANERS`.
    """

    smallest: int = 32
    store_size: int = 384
    clean: tuple[str, ...] = ()
    exclude: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    apart: str | None = None


def difference_hash(picture: Image.Image) -> tuple[int, ...]:
    """256 bits: whether each of 16 × 16 places is darker than its right neighbour; equal pictures of other sizes and
    compressions differ in a few of them. As BANDS numbers of 32 bits.
    """
    grey = np.asarray(picture.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    bits = np.packbits(grey[:, :-1] < grey[:, 1:])
    return tuple(int(band) for band in bits.view(">u4"))


def normalise(picture: Image.Image, store_size: int) -> Normalised:
    """Short side at most `store_size` (never enlarged), one and the same JPEG encoding: no format tells a source."""
    scale = store_size / min(picture.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Normalised(buffer.getvalue(), picture.height, picture.width, difference_hash(picture))


class Pool:
    """The SQLite file behind a build; see the module."""

    def __init__(self, path: Path, options: Mapping[str, Any]):
        """Opens or begins a pool; raises :class:`DataError` where it is one of other options."""
        self.path = path
        self.database = sqlite3.connect(path, isolation_level=None)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"cache_size = -{_CACHE_KIB}",
            "temp_store = FILE",
        ):
            self.database.execute(f"PRAGMA {pragma}")
        wanted = json.dumps(options, sort_keys=True)
        if not self.database.execute("SELECT 1 FROM sqlite_master").fetchone():
            self.database.executescript(f"BEGIN; {_TABLES} INSERT INTO options VALUES ({_quoted(wanted)}); COMMIT;")
        (found,) = self.one("SELECT value FROM options")
        if found != wanted:
            self.close()
            raise DataError(
                path,
                f"a build with other options: {found}",
                wanted,
                "Use the same options, or --restart to begin anew.",
            )

    def one(self, query: str, *values: Any) -> Any:
        """The first row of a query, or None."""
        return self.database.execute(query, values).fetchone()

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    # -------------------------------------------------------------- filling

    def add_source(self, number: int, source: Source, role: str, domain: str) -> None:
        """Register a source before it is read; its number decides who goes first among equal pictures."""
        self.database.execute(
            "INSERT OR IGNORE INTO sources VALUES (?, ?, ?, ?, 0, 0)", (number, source.name, role, domain)
        )

    def fill(
        self,
        number: int,
        source: Source,
        rules: Rules,
        *,
        wanted: int,
        limit: int | None,
        seed: int,
        workers: int,
        on_error: str,
        progress: Callable[[int], None],
    ) -> None:
        """Read a source until it gave `wanted` pictures, or `limit` items were read, or it ends; resumes."""
        position, done = self.one("SELECT position, done FROM sources WHERE number = ?", number)
        if done:
            return
        (accepted,) = self.one("SELECT COUNT(*) FROM pictures WHERE source = ?", number)
        progress(position)
        items = source.items(position)

        def prepare(item: Item) -> Prepared:
            return _prepare(item, rules)

        with ThreadPoolExecutor(workers) as executor:
            while not done:
                room = CHUNK if limit is None else min(CHUNK, limit - position)
                chunk = list(islice(items, room))
                prepared = list(executor.map(prepare, chunk))
                begin = position
                with self.database:
                    self.database.execute("BEGIN IMMEDIATE")
                    for item, result in zip(chunk, prepared, strict=True):
                        accepted += self._add(number, item, result, rules, seed, on_error)
                        position += 1
                        if accepted >= wanted:
                            break
                    done = len(chunk) < CHUNK or accepted >= wanted
                    self.database.execute(
                        "UPDATE sources SET position = ?, done = ? WHERE number = ?", (position, int(done), number)
                    )
                progress(position - begin)

    def _add(self, number: int, item: Item, result: Prepared, rules: Rules, seed: int, on_error: str) -> bool:
        """Whether the item's picture went into the pool."""

        def drop(reason: str, detail: str = "") -> None:
            self.database.execute("INSERT INTO dropped VALUES (?, ?, ?, ?)", (number, item.key, reason, detail))

        if item.error is not None:
            if on_error == "raise":
                raise item.error
            drop("unreadable item", str(item.error))
            return False
        if result is None:
            return False  # excluded by the user
        if isinstance(result, str):
            drop(result)
            return False
        if isinstance(result, DataError):
            drop("broken picture", str(result))
            return False
        texts, seen = [], set()
        for place, caption in enumerate(item.captions):
            text = clean_text(caption, rules.clean)
            digest = text_digest(text)
            if not text:
                drop("empty text", f"caption {place}")
            elif digest in seen or self._text_owner(digest, number, item.label):
                drop("text that is there already", text[:200])
            else:
                seen.add(digest)
                texts.append((place, text, digest))
        if not texts:
            drop("no text left")
            return False
        exact = hashlib.blake2b(result.data, digest_size=16).digest()
        twin = self._twin(exact, result.bands, number, item.label)
        if twin is not None:
            drop(*twin)
            return False
        rank = _rank(seed, number, item.key)
        label = None if item.label is None else CLASSES.index(item.label)
        apart = None if rules.apart is None else _column(item, rules.apart)
        cursor = self.database.execute(
            f"INSERT INTO pictures VALUES (NULL, {', '.join('?' * (8 + BANDS))})",
            (number, item.key, result.height, result.width, apart, rank, exact, label, *result.bands),
        )
        picture = cursor.lastrowid
        self.database.execute("INSERT INTO files VALUES (?, ?)", (picture, result.data))
        self.database.executemany("INSERT INTO texts VALUES (?, ?, ?, ?)", [(picture, *text) for text in texts])
        return True

    def _text_owner(self, digest: int, number: int, label: str | None) -> bool:
        """Whether a text is there; a labelled source may show a text with several pictures."""
        query = "SELECT p.source FROM texts t JOIN pictures p ON p.number = t.picture WHERE t.digest = ?"
        owners = (owner for (owner,) in self.database.execute(query, (digest,)))
        return any(label is None or owner != number for owner in owners)

    def _twin(self, exact: bytes, bands: Sequence[int], number: int, label: str | None) -> tuple[str, str] | None:
        """Why a picture is there already; a labelled source may show a picture with several texts."""
        found = self.database.execute(_TWINS, (exact, *bands))
        for source, key, theirs, *others in found:
            if label is not None and source == number:
                continue
            if theirs == exact:
                reason = "picture that is there already"
            elif sum((a ^ b).bit_count() for a, b in zip(bands, others, strict=True)) <= NEAR_BITS:
                reason = "nearly the same picture is there already"
            else:
                continue
            (name,) = self.one("SELECT name FROM sources WHERE number = ?", source)
            return reason, f"{name}: {key}"
        return None

    # -------------------------------------------------------------- reports

    def dropped_counts(self) -> dict[str, dict[str, int]]:
        """{reason: {source: number}}."""
        counts: dict[str, dict[str, int]] = {}
        query = (
            "SELECT d.reason, s.name, COUNT(*) FROM dropped d JOIN sources s ON s.number = d.source "
            "GROUP BY d.reason, s.number ORDER BY d.reason, s.number"
        )
        for reason, name, number in self.database.execute(query):
            counts.setdefault(reason, {})[name] = number
        return counts

    def dropped_lines(self) -> Iterator[dict[str, str]]:
        """Each thing that was left out: source, key, reason, detail."""
        tables = "dropped d JOIN sources s ON s.number = d.source"
        query = f"SELECT s.name, d.key, d.reason, d.detail FROM {tables} ORDER BY d.rowid"
        for name, key, reason, detail in self.database.execute(query):
            yield {"source": name, "key": key, "reason": reason, "detail": detail}


def _prepare(item: Item, rules: Rules) -> Prepared:
    """The stored picture; a DataError or a reason where it can't be used, None where the user left it out."""
    if item.error is not None or item.image is None:
        return None
    if any(_column(item, name) in values for name, values in rules.exclude.items()):
        return None
    if any(_column(item, name) not in values for name, values in rules.only.items()):
        return None
    try:
        picture = decode_picture(item.image, item.where)
    except DataError as error:
        return error
    if min(picture.size) < rules.smallest:
        return f"picture with a side below {rules.smallest} pixels"
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        return f"picture more than {MAX_ASPECT} times as long as wide"
    return normalise(picture, rules.store_size)


def _column(item: Item, name: str) -> str:
    if name not in item.columns:
        known = ", ".join(sorted(item.columns)) or "none"
        raise DataError(item.where, f"no column {name!r}", f"one of: {known}", "Correct the rule.")
    return item.columns[name]


def _rank(seed: int, number: int, key: str) -> int:
    """A place in a random order that depends on seed and key alone."""
    digest = hashlib.blake2b(f"{seed}\0{number}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
