"""Chunks worked on ahead: side by side, in order, bounded, with errors and pauses in their place."""

import itertools
import threading

import pytest

from tmrjax.prediction.ahead import PAUSE, in_chunks, one_at_a_time, worked_ahead


def doubled(chunk, first):
    return [2 * item for item in chunk], first


def test_chunks_come_in_order_with_the_number_of_their_first_item():
    found = list(worked_ahead(doubled, range(10), 4))
    assert found == [
        ([0, 1, 2, 3], ([0, 2, 4, 6], 0)), ([4, 5, 6, 7], ([8, 10, 12, 14], 4)), ([8, 9], ([16, 18], 8)),
    ]  # fmt: skip
    assert list(worked_ahead(doubled, range(10), 4, depth=1)) == found
    assert list(worked_ahead(doubled, [], 4)) == []


def test_a_chunk_is_begun_before_the_one_before_it_is_done():
    begun = [threading.Event() for _ in range(4)]

    def work(chunk, first):
        begun[first].set()
        if first < 3:
            assert begun[first + 1].wait(30), "the next chunk waits for this one"
        return first

    assert [result for _, result in worked_ahead(work, range(4), 1)] == [0, 1, 2, 3]


def test_no_more_than_two_chunks_are_read_ahead_however_long_the_stream_is():
    taken, furthest, items = 0, 0, itertools.count()

    def source():
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    stream = worked_ahead(doubled, source(), 5)
    for handed_over in range(1, 200):
        next(stream)
        furthest = max(furthest, taken - 5 * handed_over)
    stream.close()
    assert furthest == 5  # when a chunk is handed over, one more is in work


def test_an_error_of_the_source_comes_behind_the_results_before_it():
    def source():
        yield from range(7)
        raise OSError("the connection is gone")

    found = []
    with pytest.raises(OSError, match="the connection is gone"):
        found.extend(chunk for chunk, _ in worked_ahead(doubled, source(), 3))
    assert found == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_error_of_the_work_comes_in_its_place():
    def work(chunk, first):
        if first == 3:
            raise KeyError("three")
        return first

    found = []
    with pytest.raises(KeyError, match="three"):
        found.extend(result for _, result in worked_ahead(work, range(9), 3))
    assert found == [0]


def test_at_a_pause_all_that_was_read_is_handed_over_before_more_is_read():
    asked = []

    def source():
        for item in (0, 1, 2, PAUSE, 3, PAUSE, PAUSE, 4):
            asked.append(item)
            yield item

    stream = worked_ahead(doubled, source(), 2)
    assert [next(stream)[0], next(stream)[0]] == [[0, 1], [2]] and asked == [0, 1, 2, PAUSE]
    assert next(stream)[0] == [3] and asked[-2:] == [3, PAUSE][: len(asked[-2:])] and 4 not in asked
    assert next(stream)[0] == [4] and list(stream) == []
    assert list(in_chunks([0, 1, PAUSE, 2], 2)) == [[0, 1], [], [2]]


def test_a_single_post_needs_no_thread():
    threads = [thread for _, thread in worked_ahead(lambda *_: threading.current_thread(), [1], 8)]
    assert threads == [threading.current_thread()]


def test_a_step_on_several_devices_runs_in_one_thread_at_a_time():
    inside, most = 0, 0

    def step(value):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.01)
        inside -= 1
        return value

    guarded = one_at_a_time(step)
    threads = [threading.Thread(target=guarded, args=(1.0,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
