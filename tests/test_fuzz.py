"""The fuzzing benchmark itself: it tells outcomes apart, repeats its damage, finds nothing in a sample."""

import shutil
import time
from collections import Counter

import numpy as np
import pytest

from benchmarks.fuzz import Hang as Hung
from benchmarks.fuzz import damaged, run_case, table, time_limit
from benchmarks.fuzz_targets import TARGETS, Target
from tmrjax.files import DataError


def target(read, **options):
    return Target("a", 1, lambda folder, _: None, read, **options)


def error(folder, skip):
    raise DataError("a", "b", "c", "d")


def fault(folder, skip):
    raise KeyError("counts")


def sleep(folder, skip):
    time.sleep(5)


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda folder, skip: ("sound", 0), "same"),
        (lambda folder, skip: ("changed", 0), "other"),
        (lambda folder, skip: ("sound", 2), "skipped"),
        (error, "error"),
        (fault, "traceback"),
        (sleep, "hang"),
    ],
)
def test_outcomes(tmp_path, read, outcome):
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "a").write_bytes(b"a line\nanother")
    case = run_case(target(read), tmp_path / "sound", "sound", [0], tmp_path, limit=0.5)
    assert case.outcome == outcome
    assert ("KeyError" in case.detail) == (outcome == "traceback")


def test_the_same_seed_makes_the_same_damage_and_all_kinds_occur():
    data = b'{"a": [1, "x"]}\n{"b": {"c": null}}\n'
    made = [damaged(data, np.random.default_rng(seed)) for seed in range(400)]
    assert made == [damaged(data, np.random.default_rng(seed)) for seed in range(400)]
    assert len(set(made)) > 150 and damaged(b"", np.random.default_rng(0)) is not None
    assert any(b"NaN" in item for item in made) and any(len(item) < 10 for item in made)


def test_the_limit_is_no_exception_that_a_reader_can_take_for_its_own():
    with pytest.raises(Hung), time_limit(0.05):
        try:
            time.sleep(2)
        except Exception:
            pytest.fail("taken for an error")


# The importers need released data, the checkpoint a second an input: python -m benchmarks.fuzz has them.
SAMPLED = [one for one in TARGETS if one.name.split()[0] not in ("import_twitter", "import_mnre", "checkpoint")]


@pytest.mark.parametrize("one", SAMPLED, ids=lambda one: one.name)
def test_a_sample_of_damages_ends_well(tmp_path, one):
    sound, place = tmp_path / "sound", tmp_path / "place"
    sound.mkdir()
    place.mkdir()
    one.make(sound, tmp_path)
    shutil.copytree(sound, place / "input")  # reading may finish a write
    expected = one.read(place / "input", False)[0]
    cases = [run_case(one, sound, expected, [7, number], place) for number in range(8)]
    wrong = {"traceback", "hang"} | ({"other"} if one.is_recognisable else set())
    assert not [case for case in cases if case.outcome in wrong]
    assert {case.outcome for case in cases} - {"same"} or one.name.startswith("feature")


def test_the_table_counts():
    text = table({"pictures": Counter(same=2, error=1), "checkpoint files": Counter(error=4)})
    assert "| pictures | 3 | 2 | 0 | 0 | 1 | 0 | 0 |" in text and "| all | 7 | 2 | 0 | 0 | 5 | 0 | 0 |" in text
    assert "| checkpoint files * | 4 |" in text
