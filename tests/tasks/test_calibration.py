"""Calibration and risk against the definitions, written as loops over answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmrjax.tasks.calibration import (
    COVERAGES,
    area_under_risk_coverage,
    calibration_report,
    expected_calibration_error,
    log_loss,
    outcomes,
    reliability,
    risk_coverage,
)

# Multiples of 1/64 are exact, so an answer on the border of a bin is on it for both.
ANSWERS = st.lists(st.tuples(st.integers(0, 64), st.booleans()), min_size=1, max_size=40)


def arrays(answers):
    return np.array([p / 64 for p, _ in answers]), np.array([right for _, right in answers])


@given(ANSWERS, st.integers(1, 16))
def test_ece_by_the_definition(answers, bins):
    probabilities, right = arrays(answers)
    members = {}
    for p, r in zip(probabilities, right, strict=True):
        members.setdefault(min(int(p * bins), bins - 1), []).append((p, r))
    expected = sum(
        len(inside) / len(answers) * abs(np.mean([r for _, r in inside]) - np.mean([p for p, _ in inside]))
        for inside in members.values()
    )
    assert expected_calibration_error(probabilities, right, bins) == pytest.approx(expected)
    found = reliability(probabilities, right, bins)
    assert [one["count"] for one in found] == [len(members[number]) for number in sorted(members)]
    for one, number in zip(found, sorted(members), strict=True):
        assert one["probability"] == pytest.approx(np.mean([p for p, _ in members[number]]))
        assert one["accuracy"] == pytest.approx(np.mean([r for _, r in members[number]]))
        assert (one["low"], one["high"]) == (number / bins, (number + 1) / bins)


@given(ANSWERS)
def test_risk_and_coverage_by_the_definition(answers):
    probabilities, right = arrays(answers)
    coverage, risk, thresholds = risk_coverage(probabilities, right)
    assert list(thresholds) == sorted(set(probabilities), reverse=True)
    area = before = 0.0
    for c, r, t in zip(coverage, risk, thresholds, strict=True):
        kept = [ok for p, ok in zip(probabilities, right, strict=True) if p >= t]
        assert c == len(kept) / len(answers) and r == pytest.approx(1 - np.mean(kept))
        area, before = area + r * (c - before), c
    assert area_under_risk_coverage(probabilities, right) == pytest.approx(area)
    report = calibration_report(probabilities, right)
    shares = [point["coverage"] for point in report["risk_coverage"]]
    assert shares[-1] == 1 and report["risk_coverage"][-1]["risk"] == pytest.approx(1 - report["accuracy"])
    for wanted in COVERAGES:  # the smallest that reaches it is there
        assert min(c for c in coverage if c >= wanted - 1e-9) in shares
    assert report["answers"] == len(answers) and report["mean_probability"] == pytest.approx(probabilities.mean())


def test_who_keeps_his_word_has_no_error_and_who_is_sure_and_wrong_has_all():
    half = np.full(10, 0.5)
    assert expected_calibration_error(half, np.arange(10) % 2 == 0) == 0
    assert expected_calibration_error(np.ones(4), np.zeros(4, bool)) == 1
    sure_first = np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False])
    assert area_under_risk_coverage(*sure_first) == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert area_under_risk_coverage(sure_first[0], ~sure_first[1]) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)


def test_log_loss_by_hand():
    found = log_loss(np.array([0.5, 0.25, 0.75]), np.array([True, False, False]))
    assert found == pytest.approx(-(np.log(0.5) + np.log(0.75) + np.log(0.25)) / 3)
    assert np.isfinite(log_loss(np.array([0.0, 1.0]), np.array([True, False])))


def test_nothing_predicted():
    nothing = np.zeros(0), np.zeros(0, bool)
    assert log_loss(*nothing) == 0
    assert calibration_report(*nothing) == {
        "answers": 0, "accuracy": 0.0, "mean_probability": 0.0, "ece": 0.0, "reliability": [], "aurc": 0.0,
        "risk_coverage": [],
    }  # fmt: skip


def test_outcomes():
    def span(start, label, probability=None):
        return {
            "start": start,
            "end": start + 1,
            "label": label,
            **({"probability": probability} if probability else {}),
        }

    entities = [
        {"gold": [span(0, "PER"), span(2, "LOC")], "predicted": [span(0, "PER", 0.9), span(2, "PER", 0.25)]},
        {"gold": [], "predicted": [span(1, "LOC", 0.5)]},
        {"gold": [span(0, "PER")], "predicted": []},
    ]
    probabilities, right = outcomes(entities, "ner")
    assert probabilities.tolist() == [0.9, 0.25, 0.5] and right.tolist() == [True, False, False]
    relations = [
        {"gold": "a", "predicted": "a", "probability": 0.75}, {"gold": "a", "predicted": "None", "probability": 0.5},
        {"gold": "None", "predicted": "None", "probability": 1.0},
    ]  # fmt: skip
    probabilities, right = outcomes(relations, "re")
    assert probabilities.tolist() == [0.75, 0.5, 1.0] and right.tolist() == [True, False, True]
