"""Simple predictors of labels and when one of them knows more than a baseline does: what the leak audits are made of.

A predictor reads features (any hashable values) and gives a label, a set of names; it never sees what a model would
need pictures or texts for. :func:`trial` scores one on held-out records, :func:`above` compares two.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from tmrjax.tasks.metrics import Score

MARGIN = 0.05  # of micro-F1 and of accuracy above the baseline, from which on a side input is said to tell labels
CHANCE = 0.001  # of the sign test: the probability that a predictor without knowledge wins so often
SMOOTHING = 0.5  # of naive Bayes, added to every count
QUANTILES = 10  # into which a number is cut

Label = frozenset[str]
Features = tuple[Hashable, ...]


class NaiveBayes:
    """Multinomial naive Bayes over whole labels, with features that train does not have left out."""

    name = "naive Bayes"

    def __init__(self, features: Sequence[Features], labels: Sequence[Label]):
        self._prior = Counter(labels)
        self._counts: dict[Label, Counter] = {label: Counter() for label in self._prior}
        for found, label in zip(features, labels, strict=True):
            self._counts[label].update(found)
        self._known = set().union(*self._counts.values())
        self._totals = {
            label: math.log(counts.total() + SMOOTHING * max(len(self._known), 1))
            for label, counts in self._counts.items()
        }

    def __call__(self, features: Features) -> Label:
        """The most probable label; of equals the more frequent one, then the last by name."""
        known = [feature for feature in features if feature in self._known]

        def score(label: Label) -> tuple:
            counts, total = self._counts[label], self._totals[label]
            evidence = sum(math.log(counts[feature] + SMOOTHING) - total for feature in known)
            return math.log(self._prior[label]) + evidence, self._prior[label], sorted(label)

        return max(self._prior, key=score)


class Lookup:
    """A rule: the label that was most frequent with exactly these features, else the most frequent of all."""

    name = "lookup"

    def __init__(self, features: Sequence[Features], labels: Sequence[Label]):
        counts: dict[Features, Counter] = defaultdict(Counter)
        for found, label in zip(features, labels, strict=True):
            counts[found][label] += 1
        self._default = Counter(labels).most_common(1)[0][0]
        self._rules = {found: labels.most_common(1)[0][0] for found, labels in counts.items()}

    def __call__(self, features: Features) -> Label:
        """The rule's label."""
        return self._rules.get(features, self._default)


@dataclass(frozen=True)
class Trial:
    """How a predictor did on held-out records: its micro-F1 over the names in labels, and which labels it got right."""

    f1: float
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """The share of labels that it got right as a whole."""
        return sum(self.right) / len(self.right)


def trial(
    kind: Callable[[Sequence[Features], Sequence[Label]], Callable[[Features], Label]],
    train: Sequence[Features],
    labels: Sequence[Label],
    held_out: Sequence[Features],
    gold: Sequence[Label],
) -> Trial:
    """Trains a predictor and scores it."""
    predict = kind(train, labels)
    found = [predict(features) for features in held_out]
    correct = sum(len(a & b) for a, b in zip(gold, found, strict=True))
    micro = Score(correct, sum(map(len, found)), sum(map(len, gold)))
    return Trial(micro.f1, tuple(a == b for a, b in zip(gold, found, strict=True)))


def above(one: Trial, other: Trial, margin: float = MARGIN) -> bool:
    """Whether `one` is better than `other` by more than a margin, in micro-F1 and in accuracy, and by more than chance.

    Micro-F1 alone would not do: a blind guess among relations has more of it than a majority of ``None``. On few posts
    any margin comes by chance: of those that one of the two gets right and the other does not, `one` must win more than
    a coin would (one-sided sign test, p < CHANCE).
    """
    return min(one.f1 - other.f1, one.accuracy - other.accuracy) > margin and _wins(one, other)


def more_accurate(one: Trial, other: Trial, margin: float = MARGIN) -> bool:
    """The same by accuracy alone: for two labels, where nothing can be won by a blind guess."""
    return one.accuracy - other.accuracy > margin and _wins(one, other)


def _wins(one: Trial, other: Trial) -> bool:
    wins = sum(a and not b for a, b in zip(one.right, other.right, strict=True))
    losses = sum(b and not a for a, b in zip(one.right, other.right, strict=True))
    return bool(wins and binomtest(wins, wins + losses, alternative="greater").pvalue < CHANCE)


def quantile_edges(values: Sequence[float]) -> list[float]:
    """The lower edges of the QUANTILES parts of some numbers."""
    ordered = sorted(values)
    return [ordered[len(ordered) * number // QUANTILES] for number in range(QUANTILES)] if ordered else []


def quantile(value: float, edges: Sequence[float]) -> int:
    """Which part a number falls into, from 0 (below all) to QUANTILES."""
    return sum(value >= edge for edge in edges)
