"""Windows of a long post: every word is scored once, in the window where it has the most context."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmrjax.text.windows import Window, make_windows


def contexts(sizes: list[int], window: Window, word: int) -> float:
    left = math.inf if window.first == 0 else sum(sizes[window.first : word])
    right = math.inf if window.last == len(sizes) else sum(sizes[word + 1 : window.last])
    return min(left, right)


def cases(smallest: int):
    return st.integers(2, 12).flatmap(
        lambda room: st.tuples(
            st.lists(st.integers(smallest, room + 3), min_size=1, max_size=30),
            st.just(room),
            st.integers(0, room - 1),
        )
    )


@given(cases(1))
def test_windows_hold_their_pieces_and_own_every_word_once(case):
    lengths, room, overlap = case
    sizes = [min(length, room) for length in lengths]
    windows = make_windows(lengths, room, overlap)
    assert [word for w in windows for word in range(w.own_first, w.own_last)] == list(range(len(lengths)))
    for before, after in itertools.pairwise(windows):
        assert before.first < after.first <= before.last < after.last
    for window in windows:
        assert window.first <= window.own_first <= window.own_last <= window.last
        assert sum(sizes[window.first : window.last]) <= room
    assert (len(windows) == 1) == (sum(sizes) <= room)


@given(st.lists(st.just(1), min_size=1, max_size=80), st.integers(2, 14), st.data())
def test_a_word_is_scored_where_it_has_the_most_context(lengths, room, data):
    windows = make_windows(lengths, room, data.draw(st.integers(0, room // 2)))
    for window in windows:
        for word in range(window.own_first, window.own_last):
            best = max(contexts(lengths, other, word) for other in windows if other.first <= word < other.last)
            assert contexts(lengths, window, word) == best


def test_neighbours_share_the_overlap_and_the_last_window_is_full():
    windows = make_windows([1] * 20, 8, 4)
    assert [(w.first, w.last) for w in windows] == [(0, 8), (4, 12), (8, 16), (12, 20)]
    assert [(w.own_first, w.own_last) for w in windows] == [(0, 6), (6, 10), (10, 14), (14, 20)]
    assert [(w.first, w.last) for w in make_windows([1] * 9, 8, 2)] == [(0, 8), (1, 9)]


def test_a_part_does_not_begin_where_it_must_not_as_far_as_the_overlap_leaves_a_choice():
    assert [w.own_first for w in make_windows([1] * 12, 8, 4, no_cut={6, 7})] == [0, 5]
    assert [w.own_first for w in make_windows([1] * 12, 8, 4, no_cut={4, 5, 6, 7})] == [0, 8]
    assert [w.own_first for w in make_windows([1] * 12, 8, 4, no_cut=range(1, 12))] == [0, 6]


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="cannot share 4"):
        make_windows([1, 1], 4, 4)
    with pytest.raises(ValueError, match="windows of 0 word pieces"):
        make_windows([1, 1], 0, 0)
