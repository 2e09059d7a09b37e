"""A post that is longer than the encoder reads, as overlapping windows of whole words (§4.1; not of the paper).

The paper cuts a post at its limit of word pieces, so that entities behind the limit are never found. Here a long post
is read in several windows. Two neighbours share up to ``overlap`` pieces, and a word belongs to the window in which it
has more context: with c(w, k) = min(pieces before k in w, pieces behind k in w), where a side that begins or ends the
post counts as infinite, word k belongs to the window w with the largest c(w, k). This is one cut in the middle of each
overlap. Every word belongs to exactly one window, so that its emissions are taken once and the CRF reads the whole
post; entities that lie across a cut are one path of tags, and their probability stays exact. To decode each window by
itself and to merge the entities would need a rule for entities that two windows see differently, and no probability
of the CRF would belong to the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Words ``first`` to ``last`` are read, ``own_first`` to ``own_last`` are scored here; half-open, in words."""

    first: int
    last: int
    own_first: int
    own_last: int


def make_windows(lengths: Sequence[int], room: int, overlap: int, no_cut: Container[int] = ()) -> list[Window]:
    """The windows of a post.

    Args:
        lengths: pieces of each word; a word with more than ``room`` counts as ``room`` (its first pieces are read).
        room: pieces that a window holds.
        overlap: pieces that two neighbours share at most, below ``room``.
        no_cut: words that do not begin a window's own part, as far as the overlap leaves a choice: in training those
            with an I- tag, so that no part begins inside of an entity.

    Returns:
        windows in order; their own parts are disjoint and hold every word. One window where all words fit.

    Raises:
        ValueError: ``room`` is not positive or ``overlap`` not in [0, room).
    """
    if room < 1 or not 0 <= overlap < room:
        raise ValueError(f"windows of {room} word pieces cannot share {overlap}: take 0 <= overlap < room")
    sizes = [min(length, room) for length in lengths]
    reads: list[tuple[int, int]] = []
    last = 0
    while last < len(sizes):
        first, free = last, room
        if reads:
            # At least one new word must fit beside the shared ones, and a window never begins where the last one did.
            first = _to_the_left(sizes, last, reads[-1][0] + 1, min(overlap, room - sizes[last]))
            free = room - sum(sizes[first:last])
        while last < len(sizes) and sizes[last] <= free:
            free -= sizes[last]
            last += 1
        if reads and last == len(sizes):  # the last window has room left for more of what stands before it
            first = _to_the_left(sizes, first, reads[-1][0] + 1, free)
        reads.append((first, last))
    cuts = [0, *(_cut(sizes, after[0], before[1], no_cut) for before, after in itertools.pairwise(reads)), len(sizes)]
    return [Window(*read, *own) for read, own in zip(reads, itertools.pairwise(cuts), strict=True)]


def _to_the_left(sizes: Sequence[int], first: int, lowest: int, free: int) -> int:
    """How far a window can begin before ``first``, with ``free`` pieces of room."""
    while first > lowest and sizes[first - 1] <= free:
        first -= 1
        free -= sizes[first]
    return first


def _cut(sizes: Sequence[int], start: int, end: int, no_cut: Container[int]) -> int:
    """The word in [start, end] that halves the pieces of an overlap best; the earlier one of equals."""
    total = sum(sizes[start:end])
    best, smallest, before = None, None, 0
    middle, middle_smallest = start, None
    for word in range(start, end + 1):
        uneven = abs(total - 2 * before)
        if middle_smallest is None or uneven < middle_smallest:
            middle, middle_smallest = word, uneven
        if word not in no_cut and (smallest is None or uneven < smallest):
            best, smallest = word, uneven
        if word < end:
            before += sizes[word]
    return middle if best is None else best
