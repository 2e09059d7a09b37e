"""Is one method better than another? A paired bootstrap over posts with seeds nested (§4.1's comparisons, made fair).

Both methods were run with several seeds and read the same test posts. The statistic is the difference of mean micro F1
over seeds. A resample draws posts with replacement, the same for both methods and all runs, and for each method as many
of its runs with replacement as it has: so both what posts happen to be in the test set and what seeds happen to give
take part in the interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tmrjax.records.schema import NO_RELATION

SAMPLES = 2_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The first method against the second, in F1 (from 0 to 1).

    difference: of mean F1. low, high: its 95 % interval. p_value: two-sided, of no difference: twice the smaller share
    of resamples on the other side of 0, with one added above and below so that it is never 0.
    """

    difference: float
    low: float
    high: float
    p_value: float


def counts_of_entities(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """(correct, predicted, gold) of each post [N, 3]; ``rows`` as a run keeps them in predictions/test.jsonl."""

    def spans(found):
        return {(span["start"], span["end"], span["label"]) for span in found}

    pairs = [(spans(row["gold"]), spans(row["predicted"])) for row in rows]
    return np.array([[len(gold & found), len(found), len(gold)] for gold, found in pairs], float).reshape(-1, 3)


def counts_of_relations(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """The same of relations; ``None`` is neither predicted nor gold."""
    found = []
    for row in rows:
        gold, predicted = row["gold"] != NO_RELATION, row["predicted"] != NO_RELATION
        found.append([gold and row["gold"] == row["predicted"], predicted, gold])
    return np.array(found, float).reshape(-1, 3)


COUNTS = {"ner": counts_of_entities, "re": counts_of_relations}  # by task


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """2 correct / (predicted + gold) of sums [..., 3]; 0 where there is nothing."""
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.zeros(total.shape), where=total > 0)


def paired_bootstrap(first: np.ndarray, second: np.ndarray, *, samples: int = SAMPLES, seed: int = 0) -> Comparison:
    """Compares two methods.

    Args:
        first, second: counts [S, N, 3] of each method's S runs on the same N posts in the same order; the numbers of
            runs may differ.
        samples: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: the test sets differ in size or in their numbers of gold answers.
    """
    if first.shape[1:] != second.shape[1:] or not np.array_equal(first[0, :, 2], second[0, :, 2]):
        raise ValueError(f"runs on different test sets: counts {first.shape} and {second.shape}, or other gold answers")
    generator = np.random.default_rng(seed)
    posts = first.shape[1]
    # How often each post is drawn [samples, N]; sums of counts over a resample are a product with it.
    drawn = generator.multinomial(posts, np.full(posts, 1 / posts), size=samples).astype(float)
    means = []
    for counts in (first, second):
        runs = np.stack([micro_f1(drawn @ one) for one in counts], axis=1)  # [samples, S]
        chosen = generator.integers(len(counts), size=runs.shape)
        means.append(np.take_along_axis(runs, chosen, axis=1).mean(1))
    differences = means[0] - means[1]
    observed = float(micro_f1(first.sum(1)).mean() - micro_f1(second.sum(1)).mean())
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    low, high = np.quantile(differences, (0.025, 0.975))
    return Comparison(observed, float(low), float(high), min(1.0, 2 * (beyond + 1) / (samples + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of m comparisons made together, corrected so that one false finding among them stays rare (Holm 1979).

    In rising order p_(k) becomes max over j <= k of min(1, (m - j + 1) p_(j)).
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
