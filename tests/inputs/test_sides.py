"""What few methods ask of a post: objects, their alignment with words, words beside pieces, a second stream."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from data_prep.make_demo import vocabulary
from tmrjax.files import DataError
from tmrjax.inputs.alignment import Alignment
from tmrjax.inputs.base import Reading, encode_records
from tmrjax.inputs.batching import BatchPlan
from tmrjax.inputs.collate import Batches, Collator
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.objects import Objects
from tmrjax.inputs.picture_adds import PictureAdds
from tmrjax.inputs.pieces import Pieces, windows_of
from tmrjax.inputs.settings import TextSettings
from tmrjax.inputs.words import WordIds
from tmrjax.records import DatasetInfo, Record, read_dataset, record_from_json, record_to_json, write_dataset
from tmrjax.records.arrays import table_path

INFO = DatasetInfo("set", "ner", ("PER", "LOC"))
SETTINGS = TextSettings(max_pieces=12)
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def record(identifier, tokens=("so", "Jordan"), **sides):
    return Record(identifier, tuple(tokens), ("O",) * len(tokens), sides=sides)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import BertTokenizerFast

    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(vocabulary()), encoding="utf-8")
    return BertTokenizerFast(str(path), do_lower_case=True)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Three posts as a data set on the disk: with two objects, with one, with none."""
    root = tmp_path_factory.mktemp("set")
    table_path(root, "objects").parent.mkdir()
    np.save(table_path(root, "objects"), TABLE)
    found = [
        record("a", objects={"labels": ["dog", "traffic light"], "scores": [0.9, 0.5], "rows": [1, 3]}),
        record("b", objects={"labels": ["dog"], "scores": [0.9], "rows": [3, 4]}),
        record("c"),
    ]
    write_dataset(root, INFO, {"train": found})
    return read_dataset(root).splits["train"]


def batch(records, inputs, tokenizer, length=12, settings=SETTINGS):
    reading = Reading(tokenizer, settings)
    return Collator(inputs, reading)(encode_records(records, inputs, reading), length)


def test_objects_have_masks_labels_and_rows_of_the_table(stored, tokenizer):
    objects = Objects(limit=3, labels=True, features=True).fit(stored)
    assert objects.sizes() == {"num_objects": 4, "object_size": 3} and objects.vocabulary.entries[0] == "dog"
    found = batch([*stored, record("d", objects={"labels": ["cat"], "rows": None, "features": [[1, 2, 3]]})],
                  (Pieces(), objects), tokenizer)  # fmt: skip
    assert found["object_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert found["object_ids"].tolist() == [[2, 3, 0], [2, 0, 0], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_array_equal(found["object_features"][0], [*TABLE[1:3], [0, 0, 0]])
    np.testing.assert_array_equal(found["object_features"][1, 0], TABLE[3])
    np.testing.assert_array_equal(found["object_features"][3, 0], [1, 2, 3])
    again = Objects(limit=3, labels=True, features=True).from_meta(json.loads(json.dumps(objects.to_meta())))
    assert again == objects
    assert "object_features" not in batch(stored, (Pieces(), Objects(labels=True).fit(stored)), tokenizer)
    one = Objects(limit=1, labels=True, features=True).fit(stored)
    assert batch(stored, (Pieces(), one), tokenizer)["object_features"].shape == (3, 1, 3)


def test_sides_survive_the_disk_and_rows_know_their_table(stored):
    side = stored[0].sides["objects"]
    assert record_to_json(stored[0], "ner")["sides"]["objects"]["rows"] == [1, 3]
    assert "sides" not in record_to_json(stored[2], "ner")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(side["rows"])).load(), TABLE[1:3])
    again = record_from_json(json.loads(json.dumps(record_to_json(stored[0], "ner"))), INFO, where="x")
    assert again == dataclasses.replace(stored[0], sides=again.sides) and again.sides["objects"]["rows"] == [1, 3]


@pytest.mark.parametrize(
    ("sides", "message"),
    [([], "an object, by name"), ({"objects": {"labels": [], "rows": [2, 1]}}, "sides.objects.rows"),
     ({"objects": {"labels": [], "rows": [True, 1]}}, "two integers")],
)  # fmt: skip
def test_a_broken_side_is_named_with_its_line(sides, message):
    value = record_to_json(record("a"), "ner") | {"sides": sides}
    with pytest.raises(DataError, match=message) as error:
        record_from_json(value, INFO, where="train.jsonl:7")
    assert str(error.value).startswith("train.jsonl:7")


def test_what_lacks_names_the_stage_that_makes_it(stored, tokenizer, tmp_path):
    assert "import_objects.py" in Objects().check([record("a")]) and Objects(features=True).check(stored) is None
    bare = record("a", objects={"labels": ["dog"], "rows": None})
    assert "--features" in Objects(features=True).check([bare]) and Objects(labels=True).check([bare]) is None
    assert "align_objects.py" in Alignment().check([bare]) and "import_text_picture.py" in PictureAdds().check([bare])
    assert Objects().lacking(record("a")) == ("objects",) and Objects().lacking(stored[0]) == ()
    assert Alignment().lacking(bare) == ("alignment",) and Alignment().lacking(record("a", alignment=[])) == ()
    assert Alignment().lacking(record("a")) == ("alignment",)
    assert Alignment().lacking(record("a", objects={"labels": []})) == ()
    objects = Objects(features=True).fit(stored)
    with pytest.raises(DataError, match=r"record x: found object features \[1, 2\]; expected \[1, 3\]"):
        batch([record("x", objects={"labels": ["dog"], "features": [[1, 2]]})], (Pieces(), objects), tokenizer)
    with pytest.raises(DataError, match=r"record x: .*a list of 'labels'"):
        batch([record("x", objects={"labels": [3]})], (Pieces(), objects), tokenizer)
    with pytest.raises(DataError, match=r"one row for each of the 2 words"):
        batch([record("x", alignment=[[0.5]])], (Pieces(), Alignment()), tokenizer)
    gone = stored[0].sides["objects"]["rows"]
    with pytest.raises(ValueError, match="no table of numbers"):
        type(gone)(tmp_path / "no.npy", 0, 1).load()
    with pytest.raises(ValueError, match="has 4 rows, but a record names the rows 3 to 9"):
        type(gone)(gone.path, 3, 9).load()


def test_alignment_gives_each_piece_its_words_row_and_special_ones_none(tokenizer):
    words = ("Jordan", "zq", "harbour")  # "zq" has two pieces
    weights = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    found = batch([record("a", words, alignment=weights), record("b")], (Pieces(), Alignment(limit=3)), tokenizer)
    expected = np.zeros((12, 3), np.float32)
    expected[1:5, :2] = [weights[0], weights[1], weights[1], weights[2]]
    np.testing.assert_array_equal(found["alignment"][0], expected)
    assert not found["alignment"][1].any()
    pair = Record("c", words, head=(0, 1), tail=(2, 3), relation="x", sides={"alignment": weights})
    marked = batch([pair], (Marked(), Alignment(limit=2)), tokenizer)["alignment"][0]
    # [CLS] [unused0] Jordan [unused1] z ##q [unused2] harbour [unused3] [SEP]
    np.testing.assert_array_equal(marked[[2, 4, 5, 7]], np.float32([weights[i] for i in (0, 1, 1, 2)]))
    assert not marked[[0, 1, 3, 6, 8, 9, 10, 11]].any()


def test_a_window_aligns_the_words_that_it_reads(tokenizer):
    words = ("jordan", "harbour", "so", "the", "jordan", "harbour", "so", "the")
    weights = np.arange(1, 9, dtype=np.float32)[:, None] / 10
    settings = TextSettings(max_pieces=6, window_overlap=2)
    inputs, reading = (Pieces(), Alignment(limit=1)), Reading(tokenizer, settings)
    [example] = encode_records([record("a", words, alignment=weights.tolist())], inputs, reading)
    windows = windows_of(example, settings)
    assert len(windows) > 1
    rows = Collator(inputs, reading)(windows, 6)["alignment"][..., 0]
    for window, row in zip(windows, rows, strict=True):
        read = window.pieces.piece_words[1:-1]
        np.testing.assert_array_equal(row[1 : 1 + len(read)], weights[read, 0])
        assert row[0] == 0 and not row[1 + len(read) :].any()


def test_words_beside_pieces_are_those_that_a_row_scores(tokenizer):
    words = WordIds().fit([record("a", ("Jordan", "zq"))])
    found = batch([record("a", ("zq", "Jordan", "so"))], (Pieces(), words), tokenizer)
    known = words.vocabulary.indices
    assert found["word_ids"][0].tolist() == [known["zq"], known["jordan"], 1, *[0] * 7]
    assert words.sizes() == {"num_words": 4}


def test_a_second_stream_adds_its_keys_to_every_batch_and_resumes(tokenizer):
    reading = Reading(tokenizer, SETTINGS)
    main = encode_records([record(str(i)) for i in range(10)], (Pieces(),), reading)
    second = (Pieces(), PictureAdds())
    others = encode_records(
        [record(str(i), ("so",) * (i + 1), picture_adds=i % 2 == 0) for i in range(3)], second, reading
    )

    def stream(examples, inputs, further=None):
        lengths = [len(example.pieces.input_ids) for example in examples]
        plan = BatchPlan(lengths, (12,), 4, epochs=3, seed=1)
        return Batches(examples, plan, Collator(inputs, Reading(None, SETTINGS)), second=further)

    batches = stream(main, (Pieces(),), stream(others, second))
    seen = set()
    for step, (_, one) in enumerate(batches.iterate(num_threads=1)):
        assert one["second_input_ids"].shape == one["input_ids"].shape == (4, 12)
        rows = one["second_row_mask"]
        assert rows.sum() == 3 and "second_tags" not in one
        lengths = one["second_attention_mask"].sum(1)[rows] - 2
        np.testing.assert_array_equal(one["second_picture_adds"][rows], lengths % 2)
        seen |= set(lengths.tolist())
        _, again = next(batches.iterate(step, num_threads=1))
        np.testing.assert_array_equal(again["second_input_ids"], one["second_input_ids"])
    assert seen == {1, 2, 3}
    with pytest.raises(DataError, match="true or false"):
        encode_records([record("x", picture_adds=1)], second, reading)
