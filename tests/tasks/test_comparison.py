"""The paired bootstrap against one written as loops, on cases whose answer is known, and on runs that do not fit."""

import numpy as np
import pytest

from tmrjax.tasks.comparison import counts_of_entities, counts_of_relations, holm, micro_f1, paired_bootstrap


def runs(generator, rate, posts=200, seeds=3, gold=None):
    """Counts of runs that find each of two entities a post with probability ``rate``."""
    gold = np.full(posts, 2.0) if gold is None else gold
    correct = generator.binomial(gold.astype(int), rate, size=(seeds, posts))
    return np.stack([correct, np.broadcast_to(gold, correct.shape), np.broadcast_to(gold, correct.shape)], -1).astype(
        float
    )


def test_counts_are_those_of_micro_scores():
    span = {"start": 0, "end": 1, "label": "PER", "probability": 0.9}
    rows = [
        {"gold": [{"start": 0, "end": 1, "label": "PER"}], "predicted": [span, {**span, "label": "LOC"}]},
        {"gold": [], "predicted": []},
    ]
    assert counts_of_entities(rows).tolist() == [[1, 2, 1], [0, 0, 0]]
    relations = [
        {"gold": gold, "predicted": found}
        for gold, found in (("None", "None"), ("None", "a"), ("a", "None"), ("a", "a"), ("a", "b"))
    ]
    counts = counts_of_relations(relations)
    assert counts.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert micro_f1(counts.sum(0)) == pytest.approx(2 / 6) and micro_f1(np.zeros(3)) == 0
    assert micro_f1(np.array([1.0, 3.0, 5.0])) == pytest.approx(2 / 8)  # predicted and gold differ


def test_interval_and_p_agree_with_a_bootstrap_written_as_loops():
    generator = np.random.default_rng(0)
    first, second = runs(generator, 0.60, 80), runs(generator, 0.52, 80)
    found = paired_bootstrap(first, second, samples=4000, seed=1)
    differences = []
    for _ in range(2000):
        posts = generator.integers(80, size=80)
        means = []
        for counts in (first, second):
            chosen = [counts[generator.integers(3)][posts].sum(0) for _ in range(3)]
            means.append(np.mean([2 * c / (p + g) for c, p, g in chosen]))
        differences.append(means[0] - means[1])
    differences = np.array(differences)
    assert found.difference == pytest.approx(
        np.mean([a[:, 0].sum() / a[:, 2].sum() for a in first])
        - np.mean([a[:, 0].sum() / a[:, 2].sum() for a in second])
    )
    np.testing.assert_allclose((found.low, found.high), np.quantile(differences, (0.025, 0.975)), atol=0.01)
    assert found.p_value == pytest.approx(2 * min((differences <= 0).mean(), (differences >= 0).mean()), abs=0.02)


def test_equal_methods_do_not_differ_and_clear_ones_do():
    generator = np.random.default_rng(3)
    same = runs(generator, 0.6)
    assert paired_bootstrap(same, same).p_value > 0.3 and paired_bootstrap(same, same).difference == 0
    better = paired_bootstrap(runs(generator, 0.9), runs(generator, 0.6))
    assert better.p_value < 0.01 and 0 < better.low < better.difference < better.high
    worse = paired_bootstrap(runs(generator, 0.6), runs(generator, 0.9))
    assert worse.p_value < 0.01 and worse.high < 0


def test_other_test_sets_are_refused():
    generator = np.random.default_rng(4)
    with pytest.raises(ValueError, match="different test sets"):
        paired_bootstrap(runs(generator, 0.6), runs(generator, 0.6, posts=100))
    with pytest.raises(ValueError, match="different test sets"):
        paired_bootstrap(runs(generator, 0.6), runs(generator, 0.6, gold=np.full(200, 1.0)))


def test_holm_rejects_what_its_steps_reject():
    """The corrected value is at most a exactly where Holm's procedure at level a rejects."""
    generator = np.random.default_rng(5)
    for size in (1, 2, 7):
        values = generator.uniform(size=size) ** 3
        corrected = holm(values)
        for level in (0.01, 0.05, 0.2, 0.9):
            rejected, left = set(), size
            for index in np.argsort(values):
                if values[index] > level / left:
                    break
                rejected.add(int(index))
                left -= 1
            assert {index for index, value in enumerate(corrected) if value <= level} == rejected
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []
