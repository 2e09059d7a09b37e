"""The pattern parser of noun phrases: hand-checked posts, what tweets hold, and rules that no post may break."""

import itertools
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.phrases.pattern import choose_phrases, phrase_spans

POSTS = {  # a post, and its phrases in the order of the text
    "The latest Arkham Horror deluxe expansion the Circle Undone has been released": [
        "latest Arkham Horror deluxe expansion",
        "Circle Undone",
    ],
    "RT @WLWT : Kevin Love and Kyle Korver of the Cleveland Cavaliers": [
        "Kevin Love",
        "Kyle Korver of the Cleveland Cavaliers",
    ],
    "New Post : Blackburn Festival of Voice 2017": ["New Post", "Blackburn Festival of Voice 2017"],
    "# NBA : Kawhi Leonard wins # NBAAwards #NBA2 by @shyamagolden": [
        "NBA",
        "Kawhi Leonard",
        "NBAAwards",
        "#NBA2",
        "@shyamagolden",
    ],
    "Canadian women ’ s soccer team and Bill 's dog": ["Canadian women ’ s soccer team", "Bill 's dog"],
    "we ' re sure it isn ' t true": [],
    "the dog http://t.co/x https : //t.co/y cat 👍🏽 ! ️ bird": ["dog", "cat", "bird"],
    "THE DOG AND THE CAT WERE IN PARIS": ["DOG", "CAT", "PARIS"],
    "they join US troops": ["US troops"],
    "Dolce & Gabbana open a small shop": ["Dolce & Gabbana", "small shop"],
}


@pytest.mark.parametrize("post", POSTS)
def test_phrases_of_posts_checked_by_hand(post):
    tokens = post.split(" ")
    assert [" ".join(tokens[start:end]) for start, end in phrase_spans(tokens)] == POSTS[post]


USUAL = "RT @user : # #tag the of & ' s 's 2017 http://t.co/x 👍🏽 ️ Köln House of Cards in VERY BIG dogs"
WORDS = st.one_of(st.sampled_from(USUAL.split()), st.text(min_size=1, max_size=6))


@given(st.lists(WORDS, max_size=14), st.integers(0, 4))
def test_no_post_breaks_the_rules(tokens, maximum):
    spans = phrase_spans(tokens)
    assert all(0 <= start < end <= len(tokens) for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    phrases = choose_phrases(tokens, spans, maximum)
    assert phrases == choose_phrases(tuple(tokens), random.Random(0).sample(spans, len(spans)), maximum)
    said = [" ".join(tokens[start:end]) for start, end in spans]
    assert set(phrases) <= set(said) and len(phrases) == min(maximum, len({phrase.casefold() for phrase in said}))
    lengths = [spans[said.index(phrase)][1] - spans[said.index(phrase)][0] for phrase in phrases]
    assert lengths == sorted(lengths, reverse=True)
    assert not any("http" in phrase or "👍" in phrase for phrase in phrases)


def test_the_choice_is_longest_first_and_said_once():
    tokens = list("abcdefA")
    spans = [(0, 1), (1, 3), (3, 6), (6, 7)]
    assert choose_phrases(tokens, spans) == ("d e f", "b c", "a")
    assert choose_phrases(tokens, spans, 9) == ("d e f", "b c", "a")  # A is a, said already
    assert choose_phrases(tokens, spans, 1) == ("d e f",) and choose_phrases(tokens, spans, 0) == ()
    assert choose_phrases(tokens, [(0, 1), (2, 3), (1, 2)], 2) == ("a", "b")
    with pytest.raises(ValueError, match=r"span \(6, 8\) of 7 tokens"):
        choose_phrases(tokens, [(6, 8)])
    with pytest.raises(ValueError, match="expected 0 or more"):
        choose_phrases(tokens, spans, -1)


def test_one_strange_token_is_no_reason_to_stop():
    for token in [*string.printable, "\u200d", "\ufffd", "é" * 500, "a/b", "&amp;"]:
        phrase_spans([token]), phrase_spans(["New", token, "York"])
