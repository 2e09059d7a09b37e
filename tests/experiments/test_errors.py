"""Kinds of errors, against a count over words that knows nothing of spans, and by hand."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from experiments.analysis.errors import KINDS, MEANINGS, count_errors, entity_errors, relation_error

LENGTH = 8


@st.composite
def entities(draw):
    """Spans of a text, apart from each other, as a tagger gives them."""
    cuts = sorted(draw(st.sets(st.integers(0, LENGTH), max_size=6)))
    spans = [{"start": a, "end": b, "label": draw(st.sampled_from("XY"))} for a, b in itertools.pairwise(cuts)]
    return [span for span in spans if draw(st.booleans())]


def words(span):
    return set(range(span["start"], span["end"]))


@given(entities(), entities())
def test_every_entity_is_counted_once(gold, predicted):
    kinds, missed = entity_errors(gold, predicted)
    found_words = set().union(*map(words, predicted)) if predicted else set()
    gold_words = set().union(*map(words, gold)) if gold else set()
    assert missed == [i for i, one in enumerate(gold) if not words(one) & found_words]
    for span, kind in zip(predicted, kinds, strict=True):
        assert (kind == "right") == (span in gold)
        assert (kind == "invented") == (not words(span) & gold_words)
        touched = [one for one in gold if words(one) & words(span)]
        if kind in ("span", "type", "span and type"):
            same_type = any(one["label"] == span["label"] for one in touched)
            same_words = any(words(one) == words(span) for one in touched)
            assert (kind == "span", kind == "type") == (same_type, same_words and not same_type)
    row = {"gold": gold, "predicted": predicted}
    counts = count_errors([row, row], "ner")
    assert list(counts) == list(KINDS["ner"])
    assert sum(counts.values()) == 2 * (len(predicted) + len(missed)) and counts["right"] == 2 * kinds.count("right")
    assert entity_errors(gold, gold) == (["right"] * len(gold), [])


def test_kinds_by_example():
    def span(start, end, label="X"):
        return {"start": start, "end": end, "label": label}

    gold = [span(0, 2), span(3, 4, "Y"), span(5, 6), span(7, 8)]
    predicted = [span(0, 1), span(1, 2, "Y"), span(2, 3), span(3, 4), span(5, 6)]
    assert entity_errors(gold, predicted) == (["span", "span and type", "invented", "type", "right"], [3])
    # A prediction over two gold entities, one of its type: its borders are what is wrong.
    assert entity_errors([span(0, 1), span(1, 2, "Y")], [span(0, 2, "Y")]) == (["span"], [])


def test_relations():
    pairs = {("a", "a"): "right", ("a", "b"): "relation", ("a", "None"): "missed", ("None", "a"): "invented"}
    for (gold, predicted), kind in pairs.items():
        assert relation_error(gold, predicted) == kind
    assert relation_error("None", "None") is None
    rows = [{"gold": gold, "predicted": predicted} for gold, predicted in [*pairs, ("None", "None"), ("a", "None")]]
    assert count_errors(rows, "re") == {"right": 1, "relation": 1, "missed": 2, "invented": 1}


def test_every_kind_has_a_meaning():
    assert {kind for kinds in KINDS.values() for kind in kinds} == set(MEANINGS)
