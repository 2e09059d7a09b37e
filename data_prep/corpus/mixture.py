"""Which text stands beside which picture, and in which split (paper section 3.4).

strengthen and complement are pairs as their source has them. weaken is a text of either with the picture of another
pair of the same source and split, so that texts and pictures of weaken look like those of the other two: nothing but
their relation tells them apart. Or with that of any source of the domain (WEAKEN_FROM; the paper does not say which):
then half of the weaken pairs of two equal sources betray themselves by a text and a picture of different kinds. Where
as many weaken pairs are asked for as others, each text appears once with its own picture and once with another's, and
nearly each picture twice as well.

Splits are drawn by picture; as the pool holds each picture and each text once, no split shares either with another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_prep.corpus.pool import Pool
from tmrjax.divergence.corpus import CLASSES
from tmrjax.files import DataError

IN_DOMAIN, OUT_OF_DOMAIN = "in", "out"
WEAKEN, COMPLEMENT, STRENGTHEN = range(3)
ROLES = {COMPLEMENT: "complement", STRENGTHEN: "strengthen"}
LABELLED = "labelled"
WEAKEN_FROM = ("source", "domain")  # where the other picture of a weaken pair is from


class Counts(NamedTuple):
    """Pairs of each class, in the order of CLASSES."""

    weaken: int
    complement: int
    strengthen: int

    def scaled(self, factor: float) -> Counts:
        """Each times `factor`, rounded down but for the float's own error."""
        return Counts(*(int(count * factor + 1e-6) for count in self))


def draft_plan(
    pool: Pool, counts: Mapping[str, Counts], domain: str, seed: int, weaken_from: str = "source"
) -> dict[str, Counts]:
    """Draw the splits of one domain from the pool; `counts` are the most that each split gets.

    Where the sources have less, all classes of all splits shrink by one factor, so that the mixture stays. Returns
    what was drawn. Raises :class:`DataError` where a class that is asked for has no pair left.
    """
    present = [label for label in ROLES if _pictures(pool, label, domain)]
    missing = [
        CLASSES[label]
        for label in ROLES
        if label not in present and domain == IN_DOMAIN and any(wanted[label] for wanted in counts.values())
    ]
    if missing:
        advice = f"Give a source with --{missing[0]}, or ask for none with --counts."
        raise DataError(pool.path.parent, f"no usable pair of the class {missing[0]}", "pairs of all classes", advice)
    if not present:
        return {}
    ranges, factor = {}, 1.0
    for label in present:
        first = 0
        wanted_in_all = sum(wanted[label] for wanted in counts.values())
        used = min(_pictures(pool, label, domain), wanted_in_all)
        so_far = 0
        for split, wanted in counts.items():
            so_far += wanted[label]
            last = used * so_far // wanted_in_all if wanted_in_all else 0
            ranges[split, label] = first, last
            if wanted[label]:
                factor = min(factor, _texts(pool, label, domain, first, last) / wanted[label])
            first = last
    drawn = {}
    for split, wanted in counts.items():
        # without one of the two positive classes (out of domain) weaken shrinks with what is there
        share = sum(wanted[label] for label in present) / max(1, wanted.complement + wanted.strengthen)
        most = wanted.scaled(factor)
        drawn[split] = Counts(
            int(most.weaken * share + 1e-6),
            *(most[label] if label in present else 0 for label in (COMPLEMENT, STRENGTHEN)),
        )
        if any(wanted[label] and not drawn[split][label] for label in present):
            raise DataError(
                pool.path.parent, f"too few pictures for the split {split!r}", f"{wanted} in proportion",
                "Give larger sources, or other shares with --dev and --test.",
            )  # fmt: skip
        for label in present:
            _choose(pool, split, label, domain, *ranges[split, label], drawn[split][label])
        _add_positives(pool, split, seed)
        _add_weaken(pool, split, drawn[split].weaken, seed, weaken_from)
    return drawn


def draft_labelled(pool: Pool, split: str, seed: int) -> int:
    """Every pair of the labelled sources, with its own label, into `split`; returns their number."""
    query = (
        "SELECT p.number, p.label, t.place FROM pictures p JOIN sources s ON s.number = p.source "
        "JOIN texts t ON t.picture = p.number WHERE s.role = ? ORDER BY p.number, t.place"
    )
    number = 0
    for picture, label, place in pool.database.execute(query, (LABELLED,)):
        _add(pool, split, seed, label, picture, picture, place)
        number += 1
    return number


def order_plan(pool: Pool) -> None:
    """Number the drafted pairs of each split in a random order."""
    pair = "label, picture, text_picture, text_place"
    number = f"ROW_NUMBER() OVER (PARTITION BY split ORDER BY rank, {pair}) - 1"
    pool.database.execute(f"INSERT INTO plan SELECT split, {number}, {pair} FROM draft")
    pool.database.execute("DELETE FROM draft")


# ------------------------------------------------------------------ drawing

_OF_ROLE = "FROM pictures p JOIN sources s ON s.number = p.source WHERE s.role = :role AND s.domain = :domain"
_MINE = (
    "WITH ordered AS (SELECT p.number, p.source, p.rank, p.apart, ROW_NUMBER() OVER (ORDER BY p.rank, p.number) - 1 "
    f"AS place {_OF_ROLE}), mine AS (SELECT * FROM ordered WHERE place >= :first AND place < :last) "
)


def _pictures(pool: Pool, label: int, domain: str) -> int:
    (number,) = pool.database.execute(
        f"SELECT COUNT(*) {_OF_ROLE}", {"role": ROLES[label], "domain": domain}
    ).fetchone()
    return number


def _texts(pool: Pool, label: int, domain: str, first: int, last: int) -> int:
    """Texts of the pictures with places [first, last) in the random order of a class."""
    values = {"role": ROLES[label], "domain": domain, "first": first, "last": last}
    query = f"{_MINE} SELECT COUNT(*) FROM mine JOIN texts t ON t.picture = mine.number"
    (number,) = pool.database.execute(query, values).fetchone()
    return number


def _choose(pool: Pool, split: str, label: int, domain: str, first: int, last: int, count: int) -> None:
    """`count` pairs out of these pictures: one text of each, then a second of each, and so on."""
    values = {"role": ROLES[label], "domain": domain, "first": first, "last": last}
    query = (
        f"{_MINE}, candidates AS (SELECT mine.*, t.place AS text_place, ROW_NUMBER() OVER (PARTITION BY mine.number "
        "ORDER BY t.digest, t.place) AS round FROM mine JOIN texts t ON t.picture = mine.number), "
        "taken AS (SELECT * FROM candidates ORDER BY round, rank, number LIMIT :count) "
        "INSERT INTO chosen SELECT :split, :label, source, "
        "ROW_NUMBER() OVER (PARTITION BY source ORDER BY round, rank, number) - 1, number, text_place, apart FROM taken"
    )
    pool.database.execute(query, values | {"split": split, "label": label, "count": count})


def _add_positives(pool: Pool, split: str, seed: int) -> None:
    query = "SELECT label, picture, text_place FROM chosen WHERE split = ? ORDER BY label, source, place"
    for label, picture, place in pool.database.execute(query, (split,)):
        _add(pool, split, seed, label, picture, picture, place)


class _Entry(NamedTuple):
    """A pair that was chosen: of weaken, what gives the text or the picture."""

    picture: int
    text_place: int
    apart: str | None


def _add_weaken(pool: Pool, split: str, count: int, seed: int, weaken_from: str) -> None:
    """`count` texts of the split, in proportion to its sources, each with the picture of another pair."""
    groups = pool.database.execute(
        "SELECT label, source, COUNT(*) FROM chosen WHERE split = ? GROUP BY label, source ORDER BY label, source",
        (split,),
    ).fetchall()
    total, before = sum(size for *_, size in groups), 0
    for label, source, size in groups:
        share = (before + size) * count // total - before * count // total
        generator = np.random.default_rng((seed, label, source, *split.encode()))
        among, first = ([(label, source, size)], 0) if weaken_from == "source" else (groups, before)
        for number in range(share):
            if number % size == 0:  # each text once more, in another order of pictures
                shift, stride = _order(generator, size if weaken_from == "source" else total, weaken_from)
            place = first + number % size
            text = _entry(pool, split, among, place)
            other = _partner(pool, split, among, place * stride + shift, text)
            _add(pool, split, seed, WEAKEN, other.picture, text.picture, text.text_place)
        before += size


def _order(generator: np.random.Generator, size: int, weaken_from: str) -> tuple[int, int]:
    """Shift and stride of a random affine order of `size` places: no list of them is kept. Within a source, which is in
    random order already, a shift is enough."""
    shift = int(generator.integers(1, size)) if size > 1 else 0
    if weaken_from == "source":
        return shift, 1
    while math.gcd(stride := int(generator.integers(1, size + 1)), size) != 1:
        pass
    return shift, stride


def _entry(pool: Pool, split: str, groups: Sequence[tuple[int, int, int]], place: int) -> _Entry:
    """The pair at a place of these (label, source, size), one after the other."""
    for label, source, size in groups:
        if place < size:
            return _Entry(
                *pool.one(
                    "SELECT picture, text_place, apart FROM chosen "
                    "WHERE split = ? AND label = ? AND source = ? AND place = ?",
                    split, label, source, place,
                )
            )  # fmt: skip
        place -= size
    raise IndexError(place)


def _partner(pool: Pool, split: str, groups: Sequence[tuple[int, int, int]], start: int, text: _Entry) -> _Entry:
    """The first from `start` on with another picture, and of another kind where `apart` says so."""
    total = sum(size for *_, size in groups)
    for step in range(total):
        other = _entry(pool, split, groups, (start + step) % total)
        if other.picture != text.picture and (text.apart is None or text.apart != other.apart):
            return other
    names = [repr(*pool.one("SELECT name FROM sources WHERE number = ?", source)) for _, source, _ in groups]
    kind = "" if text.apart is None else f" that is not of {text.apart!r}"
    raise DataError(
        pool.path.parent, f"no second picture{kind} among the {total} pairs of {', '.join(names)} in {split!r}",
        "one, for weaken", "Give more pairs, or a larger share of them to this split.",
    )  # fmt: skip


def _add(pool: Pool, split: str, seed: int, label: int, picture: int, text_picture: int, place: int) -> None:
    name = f"{seed}\0{split}\0{label}\0{picture}\0{text_picture}\0{place}"
    rank = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1
    values = (split, rank, label, picture, text_picture, place)
    pool.database.execute("INSERT INTO draft VALUES (?, ?, ?, ?, ?, ?)", values)
