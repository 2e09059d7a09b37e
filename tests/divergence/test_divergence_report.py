"""Table 3's figures beside scikit-learn's and a calibration error by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from tmrjax.divergence.report import divergence_report, format_divergence_report
from tmrjax.records.schema import SCORE_CLASSES


def sample(seed, size=60, classes=3):
    random = np.random.default_rng(seed)
    return random.integers(0, classes, size), random.dirichlet(np.ones(3) * 0.7, size).astype(np.float32)


@pytest.mark.parametrize(("seed", "size", "classes"), [(0, 60, 3), (1, 7, 3), (2, 40, 2), (3, 1, 1)])
def test_figures_are_scikit_learns(seed, size, classes):
    labels, scores = sample(seed, size, classes)
    report, predicted = divergence_report(labels, scores), scores.argmax(1)
    assert report["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert report["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert report["log_loss"] == pytest.approx(
        log_loss(labels, scores.astype(float) / scores.sum(1, dtype=float, keepdims=True), labels=[0, 1, 2]), rel=1e-5
    )
    expected = precision_recall_fscore_support(labels, predicted, labels=[0, 1, 2], zero_division=0)
    for row, name in zip(np.transpose(expected), SCORE_CLASSES, strict=True):
        found = report["per_label"][name]
        assert [found[key] for key in ("precision", "recall", "f1", "support")] == pytest.approx(row)
    counts = [list(row.values()) for row in report["confusion"].values()]
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predicted, labels=[0, 1, 2]))


def test_calibration_error_by_hand():
    scores = np.array([[0.95, 0.05, 0], [0.97, 0.03, 0], [0.4, 0.3, 0.3], [1.0, 0, 0]])
    # 15 bins: three in the last one (1.0 belongs to it), two of them right; one of 0.4, right.
    expected = 0.75 * abs(2 / 3 - (0.95 + 0.97 + 1.0) / 3) + 0.25 * 0.6
    assert divergence_report([0, 1, 0, 0], scores)["ece"] == pytest.approx(expected)
    assert divergence_report([], np.zeros((0, 3)))["ece"] == 0.0


def test_what_does_not_fit_is_named_and_nothing_gives_zeros():
    labels, scores = sample(0)
    with pytest.raises(ValueError, match="59 labels, but scores of shape"):
        divergence_report(labels[:59], scores)
    with pytest.raises(ValueError, match="labels must be positions in"):
        divergence_report(labels + 1, scores)
    empty = divergence_report([], np.zeros((0, 3)))
    assert empty["records"] == 0 and empty["macro_f1"] == 0


def test_splits_stand_side_by_side():
    reports = {name: divergence_report(*sample(seed)) for seed, name in enumerate(("test", "test_out_of_domain"))}
    lines = format_divergence_report(reports, "title", synthetic=True).splitlines()
    assert lines[0] == "title" and "SYNTHETIC" in lines[1]
    assert lines[2].split() == ["test", "test_out_of_domain"]
    assert lines[3].split()[-2:] == [f"{100 * report['macro_f1']:.2f}" for report in reports.values()]
