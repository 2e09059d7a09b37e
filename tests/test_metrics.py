"""Strict and lenient F1 against seqeval, on tag sequences that a CRF could never be trusted not to produce."""

import pytest
import seqeval.metrics
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2

from tmrjax.metrics import entity_scores
from tmrjax.tagging import TagSet

tags = st.sampled_from(TagSet(("PER", "LOC", "ORG")).tags)


@st.composite
def posts(draw):
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    return [[[draw(tags) for _ in range(length)] for length in lengths] for _ in range(2)]


@given(posts())
def test_scores_equal_seqeval(case):
    gold, predicted = case
    for strict, options in ((True, {"mode": "strict", "scheme": IOB2}), (False, {})):
        score, per_label = entity_scores(gold, predicted, strict=strict)
        for name in ("precision", "recall", "f1"):
            theirs = getattr(seqeval.metrics, f"{name}_score")(gold, predicted, zero_division=0, **options)
            assert getattr(score, name) == pytest.approx(theirs, abs=1e-12), (name, strict)
        assert sum(item.correct for item in per_label.values()) == score.correct


def test_counts_are_added_over_posts_before_dividing():
    gold = [["B-PER", "O"], ["B-PER", "B-LOC"]]
    predicted = [["B-PER", "O"], ["O", "B-PER"]]
    score, per_label = entity_scores(gold, predicted, strict=True)
    assert (score.correct, score.predicted, score.gold) == (1, 2, 3)
    assert per_label["LOC"].to_dict() == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 posts with gold tags, but 0"):
        entity_scores([["O"]], [], strict=True)
    with pytest.raises(ValueError, match="post 0: 1 gold tags, but 2"):
        entity_scores([["O"]], [["O", "O"]], strict=True)
