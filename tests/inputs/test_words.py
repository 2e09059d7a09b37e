"""Words and characters by vocabularies of the training text: fitted once, kept in the checkpoint, padded right."""

import dataclasses
import json

import pytest

from tmrjax.inputs.base import Reading, encode_records
from tmrjax.inputs.characters import Characters
from tmrjax.inputs.collate import Collator
from tmrjax.inputs.labels import Relation, Tags
from tmrjax.inputs.marked import PairDistanceError
from tmrjax.inputs.settings import TextSettings
from tmrjax.inputs.vocabulary import Vocabulary
from tmrjax.inputs.words import Words
from tmrjax.records import Record

TRAIN = [
    Record("0", ("Jordan", "at", "the", "harbour"), ("B-PER", "O", "O", "B-LOC")),
    Record("1", ("at", "the", "Seine"), ("O", "O", "B-LOC")),
]
SETTINGS = TextSettings(max_pieces=6)


def encode(records, inputs, settings=SETTINGS):
    return encode_records(records, inputs, Reading(None, settings))


def batch_of(records, inputs, length=6, settings=SETTINGS):
    return Collator(inputs, Reading(None, settings))(encode(records, inputs, settings), length)


def fitted(*inputs):
    return tuple(one.fit(TRAIN) for one in inputs)


def test_the_most_frequent_words_come_first_and_ties_by_text():
    (words,) = fitted(Words())
    assert words.vocabulary.entries == ("at", "the", "harbour", "jordan", "seine")
    assert words.sizes() == {"num_words": 7} == {"num_words": len(words.vocabulary)}
    assert fitted(Words(lowercase=False))[0].vocabulary.entries[:3] == ("at", "the", "Jordan")
    assert fitted(Words(min_count=2))[0].vocabulary.entries == ("at", "the")


def test_rows_hold_indices_characters_and_tags_of_the_same_words():
    inputs = (*fitted(Words(), Characters(longest=4)), Tags(("PER", "LOC"), specials=0))
    batch = batch_of([*TRAIN, Record("2", ("Xylophones",))], inputs)
    assert batch["input_ids"].tolist() == [[5, 2, 3, 4, 0, 0], [2, 3, 6, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert batch["word_mask"].sum(1).tolist() == batch["attention_mask"].sum(1).tolist() == [4, 3, 1]
    assert batch["word_starts"][0].tolist() == [0, 1, 2, 3, 0, 0]
    assert batch["tags"][:2].tolist() == [[1, 0, 0, 3, 0, 0], [0, 0, 3, 0, 0, 0]]
    known = inputs[1].vocabulary.indices
    assert batch["character_ids"].shape == (3, 6, 4)
    assert batch["character_ids"][0, 1].tolist() == [known["a"], known["t"], 0, 0]
    # Of a long word the first two and the last two; X, y and s are in no training word.
    assert batch["character_ids"][2, 0].tolist() == [1, 1, known["e"], 1]
    assert not batch["character_ids"][:, 5].any()


def test_what_lies_behind_the_limit_is_cut_and_counted():
    (words,) = fitted(Words())
    [example] = encode([Record("x", ("at",) * 9)], (words,))
    assert example.pieces.cut == [6, 7, 8] and example.pieces.words == [0, 1, 2, 3, 4, 5]


def test_pairs_are_read_through_a_window_with_both_ends_of_each_entity():
    inputs = (*fitted(Words(pair=True)), Relation(("None", "in")))
    tokens = ("at", "the", "Seine", "harbour", "at", "the", "Jordan", "the")
    record = Record("p", tokens, head=(6, 7), tail=(2, 4), relation="in")
    batch = batch_of([record], inputs)
    first = 2  # the window of six words: it grows to the right last
    kept = batch["input_ids"][0][batch["attention_mask"][0]].tolist()
    assert len(kept) == 6
    where = {name: int(batch[name][0]) for name in ("head_start", "head_end", "tail_start", "tail_end")}
    known = inputs[0].vocabulary.indices
    assert kept[where["head_start"]] == kept[where["head_end"]] == known["jordan"]
    assert (kept[where["tail_start"]], kept[where["tail_end"]]) == (known["seine"], known["harbour"])
    assert where["tail_end"] - where["tail_start"] == 1 and batch["relation"].tolist() == [1]
    [example] = encode([record], inputs)
    assert len(example.pieces.cut) == 2 and first not in example.pieces.cut
    with pytest.raises(PairDistanceError, match="record p"):
        encode([dataclasses.replace(record, tail=(0, 1))], inputs)


def test_vocabularies_survive_json_and_damage_is_named():
    words, characters = fitted(Words(min_count=1), Characters())
    for one in (words, characters):
        again = type(one)().from_meta(json.loads(json.dumps(one.to_meta())))
        assert again == one
        with pytest.raises(ValueError, match=f"the vocabulary of the input '{one.name}' is no list of texts"):
            type(one)().from_meta({"a": 1})
    assert Vocabulary.of([], 1).entries == () and len(Vocabulary()) == 2
