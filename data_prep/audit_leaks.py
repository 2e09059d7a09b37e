"""How much of the labels can be read from side inputs alone: phrases, scores, boxes, file names, what is missing.

    python data_prep/audit_leaks.py DATASET

A side input is to say what a picture shows, not what the annotators wrote. Simple predictors that never see the text
are trained on train and scored on test; where one is far above the majority class, the labels leak. (The phrase files
released with TMR, paper section 3.2, end in the entities' types wherever there is a relation: reading these endings
alone gives 86.6 micro-F1.) Words of the phrases that are the post's own are no leak: the text has them too, so the bag
of phrase words is held against the bag of the post's words.

The label of a post is its relation (RE, none for `None`) or the set of its entity types (NER); micro-F1 counts these.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scipy.stats import binomtest

from tmrjax.files import DataError
from tmrjax.metrics import Score
from tmrjax.records import NO_RELATION, Box, Dataset, Record, read_dataset

MARGIN = 0.05  # of micro-F1 and of accuracy above the baseline, from which on a side input is said to tell labels
CHANCE = 0.01  # of the sign test: the probability that a predictor without knowledge wins so often
SMOOTHING = 0.5  # of naive Bayes, added to every count
QUANTILES = 10  # into which a score is cut
GRID = 4  # steps per side into which boxes are rounded

Label = frozenset[str]
Features = tuple[Hashable, ...]


@dataclass(frozen=True)
class AuditRow:
    """One predictor: what it reads, its scores on test, and whether they say "leak"."""

    predictor: str
    reads: str
    f1: float
    accuracy: float
    leak: bool


# ------------------------------------------------------------------ what predictors read


def label_of(record: Record) -> Label:
    """The relation of a record, nothing for ``None``, or its entity types (of B- tags)."""
    if record.relation is not None:
        return frozenset() if record.relation == NO_RELATION else frozenset([record.relation])
    return frozenset(tag[2:] for tag in record.tags or () if tag.startswith("B-"))


def text_words(record: Record) -> Features:
    """The post's own words."""
    return tuple(token.lower() for token in record.tokens)


def phrase_words(record: Record) -> Features:
    """All words of the phrases."""
    return tuple(" ".join(record.phrases).lower().split())


def foreign_words(record: Record) -> Features:
    """Words of the phrases that the post does not have, not even inside another word (a hash tag, a handle)."""
    text = " ".join(record.tokens).lower()
    return tuple(word for word in phrase_words(record) if word not in text)


def foreign_suffix(record: Record) -> Features:
    """The words at the end of the phrases, as many in a row as the post does not have; one feature."""
    text, words = " ".join(record.tokens).lower(), list(phrase_words(record))
    suffix: list[str] = []
    while words and words[-1] not in text:
        suffix.insert(0, words.pop())
    return (tuple(suffix),)


def box_features(record: Record) -> Features:
    """How many boxes there are, and where, in quarters of the picture."""

    def rounded(boxes: Sequence[Box]) -> Features:
        return tuple(tuple(round(side * GRID) for side in box) for box in boxes)

    generated = record.generated.regions if record.generated else ()
    counts = ("boxes", len(record.regions)), ("generated boxes", len(generated))
    return (*counts, *rounded(record.regions), *(("generated", box) for box in rounded(generated)))


def file_name_parts(record: Record) -> Features:
    """Runs of letters and of digits in the pictures' names."""
    names = [record.image, record.generated.image if record.generated else None]
    return tuple(part for name in names if name for part in re.findall(r"[^\W\d_]+|\d+", Path(name).name))


def missing_parts(record: Record) -> Features:
    """Which side inputs are there, and how many phrases."""
    there = record.image, record.generated, record.scores, record.generated_scores
    return (*((name, value is not None) for name, value in enumerate(there)), ("phrases", len(record.phrases)))


def score_features(train: Sequence[Record]) -> Callable[[Record], Features]:
    """Every score as the tenth it falls into, cut at the quantiles of train."""

    def values(record: Record) -> list[tuple[str, float]]:
        pairs = ("scores", record.scores), ("generated scores", record.generated_scores)
        return [(f"{name}[{i}]", value) for name, scores in pairs if scores for i, value in enumerate(scores)]

    seen = defaultdict(list)
    for record in train:
        for name, value in values(record):
            seen[name].append(value)
    edges = {
        name: [sorted(found)[len(found) * i // QUANTILES] for i in range(QUANTILES)] for name, found in seen.items()
    }

    def features(record: Record) -> Features:
        return tuple((name, sum(value >= edge for edge in edges.get(name, ()))) for name, value in values(record))

    return features


# ------------------------------------------------------------------ predictors


class NaiveBayes:
    """Multinomial naive Bayes over whole labels, with features that train does not have left out."""

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
class _Found:
    """How a predictor did: its micro-F1, and which posts it got right."""

    f1: float
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    def above(self, other: _Found, margin: float) -> bool:
        """Whether this is better by more than a margin, and by more than chance."""
        if min(self.f1 - other.f1, self.accuracy - other.accuracy) <= margin:
            return False
        wins = sum(a and not b for a, b in zip(self.right, other.right, strict=True))
        losses = sum(b and not a for a, b in zip(self.right, other.right, strict=True))
        return binomtest(wins, wins + losses, alternative="greater").pvalue < CHANCE


def audit(dataset: Dataset, *, margin: float = MARGIN) -> list[AuditRow]:
    """Trains every predictor on train and scores it on test (dev where there is no test); empty where one is missing.

    A predictor "leaks" where both its micro-F1 and its accuracy are more than ``margin`` above its baseline: the
    majority class, or for the bag of phrase words the bag of the post's own words, if that is higher. Micro-F1 alone
    would not do: a blind guess among relations has more of it than a majority of ``None``. On few posts any margin
    comes by chance: of the posts that one of the two gets right and the other does not, the predictor must besides win
    more than a coin would (one-sided sign test, p < CHANCE).
    """
    train = dataset.splits.get("train", ())
    held_out = dataset.splits.get("test") or dataset.splits.get("dev") or ()
    if not train or not held_out:
        return []
    labels, gold = [label_of(record) for record in train], [label_of(record) for record in held_out]

    def score(kind: type, read: Callable[[Record], Features]) -> _Found:
        predict = kind([read(record) for record in train], labels)
        found = [predict(read(record)) for record in held_out]
        correct = sum(len(a & b) for a, b in zip(gold, found, strict=True))
        micro = Score(correct, sum(map(len, found)), sum(map(len, gold)))
        return _Found(micro.f1, tuple(a == b for a, b in zip(gold, found, strict=True)))

    majority, text = score(Lookup, lambda record: ()), score(NaiveBayes, text_words)
    rows = [
        AuditRow("majority class", "nothing", majority.f1, majority.accuracy, False),
        AuditRow("naive Bayes", "the post's words (no side input: to compare with)", text.f1, text.accuracy, False),
    ]
    for predictor, kind, reads, features in (
        ("suffix rule", Lookup, "last phrase words that the post lacks", foreign_suffix),
        ("naive Bayes", NaiveBayes, "phrase words that the post lacks", foreign_words),
        ("naive Bayes", NaiveBayes, "phrase words", phrase_words),
        ("naive Bayes", NaiveBayes, "scores, in tenths", score_features(train)),
        ("naive Bayes", NaiveBayes, "boxes: how many, where", box_features),
        ("naive Bayes", NaiveBayes, "file names of pictures", file_name_parts),
        ("naive Bayes", NaiveBayes, "which parts are missing", missing_parts),
    ):
        found = score(kind, features)
        baselines = (majority, text) if features is phrase_words else (majority,)
        leak = all(found.above(baseline, margin) for baseline in baselines)
        rows.append(AuditRow(predictor, reads, found.f1, found.accuracy, leak))
    return rows


def audit_table(rows: Sequence[AuditRow]) -> str:
    """The rows as text, and a last line that says whether labels leak."""
    if not rows:
        return "leak audit: needs records in train and in test (or dev)"
    lines = [f"{'leak audit: trained on train, read from':52s}  {'by':14s}  micro-F1  accuracy"]
    lines += [
        f"  {row.reads:50s}  {row.predictor:14s}  {100 * row.f1:8.2f}  {100 * row.accuracy:8.2f}"
        + ("  LEAK" if row.leak else "")
        for row in rows
    ]
    leaks = [row.reads for row in rows if row.leak]
    lines.append(f"  labels can be read from: {'; '.join(leaks)}" if leaks else "  no side input tells labels")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset", type=Path, help="folder of a prepared data set")
    parser.add_argument("--margin", type=float, default=MARGIN, help="above the baseline (default: %(default)s)")
    options = parser.parse_args()
    try:
        dataset = read_dataset(options.dataset)
    except DataError as error:
        sys.exit(f"audit_leaks: {error}")
    print(f"{dataset.info.name} ({dataset.info.task})")
    print(audit_table(audit(dataset, margin=options.margin)))


if __name__ == "__main__":
    main()
