"""What to do with answers that a model is not sure of: leave them out, keep silent on a post, ask a person first.

Results are those of :class:`tmrjax.predict.Predictor`: a post with its ``entities`` or ``relations``, each with the
``score`` that it is right. How far scores can be trusted stands in a run's report
(:func:`tmrjax.tasks.calibration.calibration_report`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

ANSWERS = ("entities", "relations")


def _name_of(result: Mapping[str, Any]) -> str:
    return next(name for name in ANSWERS if name in result)


def expected_errors(result: Mapping[str, Any]) -> float:
    """Σ (1 − score) over the answers of a post: how many of them are wrong in the mean, if scores keep their word.

    What was missed takes no part.
    """
    return sum(1.0 - answer["score"] for answer in result[_name_of(result)])


def chosen(result: Mapping[str, Any], *, min_score: float = 0.0, abstain_below: float = 0.0) -> dict[str, Any]:
    """The result without what is not sure enough.

    Answers below ``min_score`` are left out, and "left_out" says how many. A post that has an answer below
    ``abstain_below`` gets none, and "abstained" is true. Both keys are there only where the option is above 0.
    """
    name, found = _name_of(result), dict(result)
    if abstain_below > 0:
        found["abstained"] = any(answer["score"] < abstain_below for answer in found[name])
        found[name] = [] if found["abstained"] else found[name]
    if min_score > 0:
        sure = [answer for answer in found[name] if answer["score"] >= min_score]
        found |= {name: sure, "left_out": len(found[name]) - len(sure)}
    return found


def most_worth_a_look(results: Iterable[Mapping[str, Any]], posts: int) -> list[Mapping[str, Any]]:
    """The ``posts`` results in which a second look mends most: the highest "expected_errors" first, of equals the
    earlier one. Constant memory.
    """
    kept = heapq.nlargest(posts, enumerate(results), key=lambda item: (item[1]["expected_errors"], -item[0]))
    return [result for _, result in kept]
