"""F1 of entities against seqeval, on tag sequences that a CRF could never be trusted not to produce; of relations
against scikit-learn."""

import pytest
import seqeval.metrics
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2

from tmrjax.records import DatasetInfo
from tmrjax.tasks.metrics import entity_scores, relation_scores
from tmrjax.tasks.report import format_report, relation_report
from tmrjax.text.tags import TagSet

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


RELATIONS = ("None", "/per/org/member_of", "/per/per/peer", "/loc/loc/contain")


@given(st.lists(st.tuples(st.sampled_from(RELATIONS), st.sampled_from(RELATIONS)), min_size=1, max_size=30))
def test_relation_scores_equal_sklearn_without_none(pairs):
    gold, predicted = zip(*pairs, strict=True)
    options = {"labels": RELATIONS[1:], "zero_division": 0}
    micro, per_relation = relation_scores(gold, predicted)
    for name in ("precision", "recall", "f1"):
        theirs = getattr(sklearn.metrics, f"{name}_score")
        assert getattr(micro, name) == pytest.approx(theirs(gold, predicted, average="micro", **options), abs=1e-12)
        for relation, value in zip(RELATIONS[1:], theirs(gold, predicted, average=None, **options), strict=True):
            if relation in per_relation:
                assert getattr(per_relation[relation], name) == pytest.approx(value, abs=1e-12)
            else:
                assert value == 0 and relation not in gold + predicted
    assert "None" not in per_relation and micro.gold == sum(relation != "None" for relation in gold)
    report = relation_report(gold, predicted, RELATIONS)
    assert report["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted))
    matrix = sklearn.metrics.confusion_matrix(gold, predicted, labels=RELATIONS)
    counts = [[report["confusion"].get(a, {}).get(b, 0) for b in RELATIONS] for a in RELATIONS]
    assert counts == matrix.tolist()


def test_a_relation_report_shows_marks_and_confusions():
    report = relation_report(["None", RELATIONS[1], RELATIONS[2]], [RELATIONS[1], RELATIONS[1], "None"], RELATIONS)
    info = DatasetInfo("mnre", "re", RELATIONS, leaky_phrases=True, leaky_regions=True)
    lines = format_report("re", report, "title", info, "MNRE").splitlines()
    assert lines[:2] == ["title", "  labels: MNRE"]
    assert lines[2].startswith("  ! LEAKY PHRASES") and lines[3].startswith("  ! LEAKY REGIONS")
    [micro] = [line.split() for line in lines if line.startswith("  micro")]
    assert micro == ["micro", "50.00", "50.00", "50.00", "2"]
    assert "  1 x /per/per/peer taken for None" in lines
    with pytest.raises(ValueError, match="1 gold relations, but 0 predicted"):
        relation_scores(["None"], [])
