"""Markers around two entities: where they stand, whatever the entities' order and overlap, and what a window keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from tmrjax.text.marking import MARKERS, WindowError, encode_marked

WORDS = ["a", "b", "c", "d", "long", "##er"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    vocabulary = ["[PAD]", *MARKERS, "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "unused", "##0", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    return BertTokenizerFast(str(folder / "vocab.txt"))


def pieces(tokenizer, marked):
    return " ".join(tokenizer.convert_ids_to_tokens(marked.input_ids))


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ((0, 1), (2, 4), "[CLS] [unused0] a [unused1] b [unused2] c d [unused3] longer [SEP]"),
        ((2, 4), (0, 1), "[CLS] [unused2] a [unused3] b [unused0] c d [unused1] longer [SEP]"),
        ((1, 3), (2, 3), "[CLS] a [unused0] b [unused2] c [unused1] [unused3] d longer [SEP]"),
        ((1, 2), (1, 4), "[CLS] a [unused0] [unused2] b [unused1] c d [unused3] longer [SEP]"),
        ((4, 5), (3, 4), "[CLS] a b c [unused2] d [unused3] [unused0] longer [unused1] [SEP]"),
    ],
)
def test_markers_stand_around_both_entities(tokenizer, head, tail, expected):
    marked = encode_marked(tokenizer, ["a", "b", "c", "d", "longer"], head, tail, 40)
    assert pieces(tokenizer, marked) == expected.replace("longer", "long ##er")
    found = tokenizer.convert_ids_to_tokens([marked.input_ids[marked.head_start], marked.input_ids[marked.tail_start]])
    assert found == ["[unused0]", "[unused2]"] and marked.cut == [] and marked.empty == []


def test_a_word_that_reads_like_a_marker_is_none(tokenizer):
    marked = encode_marked(tokenizer, ["[unused0]", "a"], (1, 2), (0, 1), 20)
    assert marked.input_ids.count(tokenizer.convert_tokens_to_ids("[unused0]")) == 1
    assert marked.input_ids[marked.head_start + 1] == tokenizer.convert_tokens_to_ids("a")


def test_an_entity_without_a_piece_is_marked_all_the_same(tokenizer):
    marked = encode_marked(tokenizer, ["a", "\u200b", "b"], (1, 2), (2, 3), 20)
    assert pieces(tokenizer, marked) == "[CLS] a [unused0] [unused1] [unused2] b [unused3] [SEP]"
    assert marked.empty == [1]


@given(data=st.data())
def test_a_window_keeps_both_entities_and_cannot_grow(tokenizer, data):
    lengths = data.draw(st.lists(st.integers(1, 2), min_size=2, max_size=14))
    tokens = ["a" if length == 1 else "longer" for length in lengths]
    spans = st.integers(0, len(tokens) - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(start + 1, min(start + 3, len(tokens))))
    )
    head, tail, limit = data.draw(spans), data.draw(spans), data.draw(st.integers(8, 24))
    first, last = min(head[0], tail[0]), max(head[1], tail[1])
    if 6 + sum(lengths[first:last]) > limit:
        with pytest.raises(WindowError, match="word pieces too long"):
            encode_marked(tokenizer, tokens, head, tail, limit)
        return
    marked = encode_marked(tokenizer, tokens, head, tail, limit)
    kept = [word for word in range(len(tokens)) if word not in marked.cut]
    assert kept == list(range(kept[0], kept[-1] + 1)) and kept[0] <= first and kept[-1] >= last - 1
    assert len(marked.input_ids) == 6 + sum(lengths[word] for word in kept) <= limit
    for neighbour in (kept[0] - 1, kept[-1] + 1):
        if 0 <= neighbour < len(tokens):
            assert len(marked.input_ids) + lengths[neighbour] > limit
    assert [marked.input_ids.count(i) for i in tokenizer.convert_tokens_to_ids(list(MARKERS))] == [1] * 4


def test_ranges_and_vocabularies_that_do_not_fit_are_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"tail \[1, 3\) lies outside of 2 words"):
        encode_marked(tokenizer, ["a", "b"], (0, 1), (1, 3), 20)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "a"]))
    with pytest.raises(ValueError, match=r"the vocabulary lacks \[unused0\], \[unused2\], \[unused3\]"):
        encode_marked(BertTokenizerFast(str(tmp_path / "vocab.txt")), ["a", "a"], (0, 1), (1, 2), 20)
