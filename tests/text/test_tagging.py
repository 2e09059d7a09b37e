"""Words, pieces, characters and tags: exact in every direction."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from tmrjax.text.pieces import encode_phrases, encode_words
from tmrjax.text.splitting import SPLITTINGS, join_words, split_words, splitting_of_tokens
from tmrjax.text.tags import (
    Span,
    TagSet,
    character_spans,
    forbidden_transitions,
    restore_tags,
    spans_from_tags,
    tags_from_spans,
)

TAGS = TagSet(("PER", "LOC"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789@#._-'"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "jordan", "har", "##bour", "at", "the"]
    pieces = [*words, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    return BertTokenizerFast.from_pretrained(str(folder))


def test_tag_set_order_and_errors():
    assert TAGS.tags == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert TAGS.encode(["O", "I-LOC"]) == [0, 4]
    assert TAGS.decode([1, 0]) == ["B-PER", "O"]
    with pytest.raises(ValueError, match=r"unknown tags \['B-ORG'\]"):
        TAGS.encode(["B-ORG"])
    with pytest.raises(ValueError, match="distinct"):
        TagSet(("PER", "PER"))


def test_strict_and_lenient_differ_on_orphans():
    tags = ["I-PER", "O", "B-LOC", "I-PER", "I-PER"]
    assert spans_from_tags(tags, strict=True) == [Span(2, 3, "LOC")]
    assert spans_from_tags(tags, strict=False) == [Span(0, 1, "PER"), Span(2, 3, "LOC"), Span(3, 5, "PER")]


@st.composite
def some_spans(draw):
    length = draw(st.integers(1, 20))
    spans, position = [], 0
    while position < length and draw(st.booleans()):
        start = draw(st.integers(position, length - 1))
        end = draw(st.integers(start + 1, length))
        spans.append(Span(start, end, draw(st.sampled_from(TAGS.labels))))
        position = end
    return spans, length


@given(some_spans())
def test_spans_and_tags_are_inverse(case):
    spans, length = case
    tags = tags_from_spans(spans, length)
    assert spans_from_tags(tags, strict=True) == spans
    assert spans_from_tags(tags, strict=False) == spans


def test_tags_from_spans_refuses_overlap_and_range():
    with pytest.raises(ValueError, match="overlaps"):
        tags_from_spans([Span(0, 2, "PER"), Span(1, 3, "LOC")], 4)
    with pytest.raises(ValueError, match="outside"):
        tags_from_spans([Span(2, 5, "PER")], 4)


@given(st.lists(st.sampled_from(TAGS.tags), min_size=1, max_size=12))
def test_forbidden_transitions_are_those_that_make_orphans(tags):
    starts, pairs = forbidden_transitions(TAGS.tags)
    indices = TAGS.encode(tags)
    broken = indices[0] in starts or any(pair in pairs for pair in itertools.pairwise(indices))
    assert broken == (spans_from_tags(tags, strict=True) != spans_from_tags(tags, strict=False))


@given(st.text(max_size=60))
def test_words_slice_back_to_the_text(text):
    words = split_words(text)
    assert all(text[word.start : word.end] == word.word for word in words)
    assert all(first.end <= second.start for first, second in itertools.pairwise(words))
    covered = {i for word in words for i in range(word.start, word.end)}
    # What no word covers is white space or invisible.
    assert not any(character.isalnum() for i, character in enumerate(text) if i not in covered)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RT @JayKen: so https://t.co/x1?a=b!", ["RT", "@JayKen", ":", "so", "https://t.co/x1?a=b!"]),
        ("#HalaMadrid👍🏽 don't", ["#HalaMadrid", "👍🏽", "don't"]),
        ("Jordan\u200b\u200bParis", ["Jordan", "Paris"]),
        ("👩‍👩‍👧 ok", ["👩‍👩‍👧", "ok"]),
        ("São Tomé\u0301 हिन्दी", ["São", "Tomé\u0301", "हिन्दी"]),
        ("a\u200d\nb", ["a", "b"]),
    ],
)
def test_split_words(text, expected):
    assert [word.word for word in split_words(text)] == expected


@pytest.mark.parametrize(
    ("splitting", "expected"),
    [
        ("spaces", ["徐悲鸿绘", "London", "130厘米", "ภาษาไทย", "コーヒー", "www.a.cn看"]),
        ("graphemes", [*"徐悲鸿绘", "London", "130", *"厘米", *"ภาษาไทย", *"コーヒー", "www.a.cn", "看"]),
        ("characters", list("徐悲鸿绘London130厘米ภาษาไทยコーヒーwww.a.cn看")),
    ],
)
def test_scripts_without_blanks_are_split_as_the_data_were(splitting, expected):
    text = "徐悲鸿绘 London 130厘米 ภาษาไทย コーヒー www.a.cn看"
    words = split_words(text, splitting)
    assert [word.word for word in words] == expected
    assert all(text[word.start : word.end] == word.word for word in words)


def test_a_grapheme_cluster_is_never_torn_apart():
    assert [word.word for word in split_words("ที่นี่ か\u3099 👍🏽", "graphemes")] == ["ที่", "นี่", "か\u3099", "👍🏽"]


@given(st.text(max_size=40), st.sampled_from(SPLITTINGS))
def test_words_slice_back_however_they_are_split(text, splitting):
    words = split_words(text, splitting)
    assert all(text[word.start : word.end] == word.word for word in words)
    assert all(first.end <= second.start for first, second in itertools.pairwise(words))
    covered = {i for word in words for i in range(word.start, word.end)}
    assert not any(character.isalnum() for i, character in enumerate(text) if i not in covered)


@pytest.mark.parametrize(
    ("posts", "expected"),
    [
        ([list("徐悲鸿绘纵130厘米，A")], "characters"),
        ([["I", "love", *"北京大学"]], "graphemes"),
        ([["The", "北京", "大学", "很", "好", "2019年"]], "segmented"),
        ([["so", "北京大学", "is", "good"]], "spaces"),
        ([["I", "am", "tired", "."]], "unseen"),
        ([], "unseen"),
    ],
)
def test_training_tokens_tell_how_they_were_split(posts, expected):
    assert splitting_of_tokens(posts) == expected


def test_tokens_are_joined_as_asked():
    text, words = join_words([*"雪岳", "ab"], "")
    assert text == "雪岳ab" and [text[word.start : word.end] for word in words] == ["雪", "岳", "ab"]


def test_join_words_slices_back():
    text, words = join_words(["New", "\u200b", "York", "👍🏽"])
    assert [text[word.start : word.end] for word in words] == ["New", "\u200b", "York", "👍🏽"]
    assert character_spans([Span(0, 3, "LOC")], words) == [(0, 10, "LOC")]
    assert text[0:10] == "New \u200b York"


def test_encode_words_keeps_cuts_and_reports(tokenizer):
    pieces = encode_words(tokenizer, ["Jordan", "\ufe0f", "harbour", "at", "the"], max_pieces=6)
    # [CLS] jordan har ##bour at [SEP]; the zero-width word has no piece, the last word no room.
    assert tokenizer.convert_ids_to_tokens(pieces.input_ids) == ["[CLS]", "jordan", "har", "##bour", "at", "[SEP]"]
    assert (pieces.word_starts, pieces.words, pieces.cut, pieces.empty) == ([1, 2, 4], [0, 2, 3], [4], [1])


def test_a_word_is_never_cut_in_half(tokenizer):
    pieces = encode_words(tokenizer, ["at", "harbour", "at"], max_pieces=4)
    assert (pieces.words, pieces.cut) == ([0], [1, 2])
    with pytest.raises(ValueError, match="max_pieces"):
        encode_words(tokenizer, ["at"], max_pieces=2)


token = st.text(st.sampled_from("ab1 @#é👍\u200b\ufe0f'"), min_size=1, max_size=6)


@given(st.lists(token, min_size=1, max_size=12), st.integers(3, 20))
def test_every_word_is_kept_cut_or_empty(tokenizer, tokens, limit):
    pieces = encode_words(tokenizer, tokens, limit)
    assert sorted([*pieces.words, *pieces.cut, *pieces.empty]) == list(range(len(tokens)))
    assert len(pieces.input_ids) <= limit
    assert len(pieces.word_starts) == len(pieces.words)
    assert all(0 < start < len(pieces.input_ids) - 1 for start in pieces.word_starts)
    # Each kept word's pieces are those it has alone, from its start to the next word's start.
    ends = [*pieces.word_starts, len(pieces.input_ids) - 1][1:]
    for word, start, end in zip(pieces.words, pieces.word_starts, ends, strict=True):
        alone = tokenizer([tokens[word]], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        assert pieces.input_ids[start:end] == alone


def test_restore_tags_fills_cut_words_with_outside_and_joins_over_invisible_ones():
    assert restore_tags(["B-PER", "O"], [0, 2], 4) == ["B-PER", "O", "O", "O"]
    assert restore_tags(["B-PER", "I-PER"], [0, 2], 3) == ["B-PER", "I-PER", "I-PER"]


def test_an_orphan_does_not_reach_to_its_left():
    """Decoding that is not constrained may begin with I-: words without pieces before it are no part of an entity."""
    assert restore_tags(["O", "I-PER"], [0, 2], 3) == ["O", "O", "I-PER"]
    assert restore_tags(["B-LOC", "I-PER"], [0, 2], 3) == ["B-LOC", "O", "I-PER"]
    assert restore_tags(["I-PER", "I-PER"], [0, 2], 3) == ["I-PER", "I-PER", "I-PER"]
    assert restore_tags(["I-PER"], [1], 2) == ["O", "I-PER"]


def test_phrases_are_cut_with_a_count_and_absent_ones_stay_absent(tokenizer):
    ids, cut = encode_phrases(tokenizer, ["jordan", "the harbour"], 3)
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "jordan", "the", "har", "[SEP]"]
    assert cut == 1
    assert encode_phrases(tokenizer, [], 4) == ([], 0)
