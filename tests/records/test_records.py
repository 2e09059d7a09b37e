"""The prepared-data format: every rule broken once, and what is written reads back."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmrjax import files
from tmrjax.records import (
    DataError,
    DatasetInfo,
    Generated,
    Grounding,
    Record,
    completeness,
    completeness_table,
    read_dataset,
    read_records,
    record_from_json,
    record_to_json,
    refresh_hashes,
    write_dataset,
)

NER = DatasetInfo("posts", "ner", ("PER", "LOC"))
RE = DatasetInfo("pairs", "re", ("None", "/per/org/member_of"))
RECORD = Record(
    id="1",
    tokens=("Ada", "in", "\u2028", "Köln", "👩\u200d🚀"),
    tags=("B-PER", "O", "O", "B-LOC", "I-PER"),
    image="images/1.jpg",
    regions=((0.0, 0.25, 0.5, 1.0),),
    phrases=("ada",),
    generated=Generated("generated/1.jpg", ((0.1, 0.1, 0.2, 0.2),), "Ada in Köln", 3, "drawer"),
    scores=(0.5, 0.25, 0.25),
    generated_scores=(0.0, 0.0, 1.0),
)
PAIR = Record(id="1", tokens=("Ada", "at", "X"), head=(0, 1), tail=(2, 3), relation="None")
BARE = Record(id="2", tokens=("nothing",), tags=("O",))


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "generated"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"not looked into here")
    write_dataset(tmp_path, NER, {"train": [RECORD], "dev": [BARE]})
    return tmp_path


def edit(folder, change, name="train.jsonl"):
    """Rewrites the first line after `change` (of its object, or of its text)."""
    path = folder / name
    text = path.read_text(encoding="utf-8")
    item = json.loads(text.split("\n")[0])
    result = change(item)
    path.write_text(result if isinstance(result, str) else json.dumps(result or item) + "\n", encoding="utf-8")


def test_round_trip(folder):
    dataset = read_dataset(folder)
    assert dataset.splits == {"train": (RECORD,), "dev": (BARE,)}
    assert dataset.info.tag_set == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert dataset.path("images/1.jpg").is_file()
    assert list(read_dataset(folder, splits=["dev"]).splits) == ["dev"]


def test_relations_round_trip(tmp_path):
    write_dataset(tmp_path, dataclasses.asdict(RE), {"test": [PAIR]})
    dataset = read_dataset(tmp_path)
    assert dataset.splits["test"] == (PAIR,) and dataset.info.task == "re" and dataset.info.tag_set == ()


fractions = st.floats(0, 1)
boxes = st.tuples(fractions, fractions, fractions, fractions).filter(lambda box: box[0] < box[2] and box[1] < box[3])
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)


@given(st.lists(words, min_size=1, max_size=4), st.lists(boxes, max_size=2), st.data())
def test_any_valid_record_survives_json(tokens, regions, data):
    tags = data.draw(st.lists(st.sampled_from(NER.tag_set), min_size=len(tokens), max_size=len(tokens)))
    weights = data.draw(st.tuples(*[st.floats(0.01, 1)] * 3))
    grounding = [Grounding(None, 0.5), Grounding("a phrase"), Grounding()][: len(regions)]
    record = Record(
        id="x",
        tokens=tuple(tokens),
        tags=tuple(tags),
        regions=tuple(regions),
        grounding=tuple(data.draw(st.sampled_from([grounding, []]))),
        scores=tuple(part / sum(weights) for part in weights),
    )
    if data.draw(st.booleans()):
        drawn = Generated("g.png", record.regions, "p", 1, None, record.grounding)
        record = dataclasses.replace(record, generated=drawn)
    line = files.jsonl_bytes([record_to_json(record, "ner")])
    assert line.count(b"\n") == 1
    assert record_from_json(files.parse_json(line, "x:1"), NER, where="x:1") == record


def drop(key):
    return lambda item: {name: value for name, value in item.items() if name != key}


def put(key, value):
    return lambda item: item | {key: value}


def put_generated(key, value):
    return lambda item: item | {"generated": item["generated"] | {key: value}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: '{"id": "1", "tok\n', "malformed JSON"),
        (lambda item: "[]\n", "expected a JSON object"),
        (lambda item: "\n", "malformed JSON"),
        (lambda item: '{"id": "1", "id": "2"}\n', "'id' more than once"),
        (drop("scores"), "no 'scores' in the record"),
        (lambda item: drop("image")(item) | {"imgae": None}, "unknown key 'imgae'.*Did you mean 'image'"),
        (put("head", [0, 1]), "unknown key 'head'"),
        (put_generated("colour", 1), "unknown key 'colour' in the 'generated'"),
        (put_generated("seed", 1.5), "1.5 in 'generated.seed'"),
        (put("id", ""), "'' in 'id'"),
        (put("id", 7), "7 in 'id'"),
        (put("id", "\ud800"), "lone surrogate in 'id'"),
        (lambda item: item | {"tokens": [], "tags": []}, "no token"),
        (put("tokens", "Ada"), "a list of strings"),
        (put("tags", ["O"]), "1 tags for 5 tokens"),
        (put("tags", ["O", "O", "B-FOO", "O", "O"]), "unknown tag 'B-FOO'; expected one of O, B-PER, I-PER"),
        (put("tags", None), "None in 'tags'"),
        (put("regions", [[0, 0, 1.01, 1]]), "outside the picture in 'regions\\[0\\]'.*Divide pixels"),
        (put("regions", [[-0.1, 0, 1, 1]]), "outside the picture"),
        (put("regions", [[0.5, 0, 0.5, 1]]), "without area"),
        (put("regions", [[0, 0.9, 1, 0.1]]), "without area"),
        (put("regions", [[0, 0, 1]]), "a list of 4 numbers"),
        (put("regions", [[0, 0, 1, True]]), "True in 'regions"),
        (put("regions", None), "Write \\[\\]"),
        (put_generated("regions", [[0, 0, 768, 768]]), "outside the picture in 'generated.regions"),
        (put("scores", [float("nan"), 0.5, 0.5]), "the number NaN; expected finite"),
        (put("scores", [float("inf"), 0, 0]), "the number Infinity; expected finite"),
        (put("scores", [0.4, 0.4, 0.3]), "sum 1.1"),
        (put("scores", [0.499, 0.25, 0.2495]), "sum 0.9985"),
        (put("scores", [-0.5, 1, 0.5]), "weaken, complement, strengthen >= 0"),
        (put("generated_scores", [0.5, 0.5]), "a list of 3 numbers in|\\[0.5, 0.5\\] in 'generated_scores'"),
        (put("image", "../secret.jpg"), "a path inside the data set's folder"),
        (put("image", "/etc/hostname"), "a path inside the data set's folder"),
        (put("image", "images/2.jpg"), "no file 'images/2.jpg'"),
        (put("image", "images"), "no file 'images'"),
        (put_generated("image", None), "None in 'generated.image'"),
        (put("grounding", None), "None in 'grounding'; expected a list of 1, one per region"),
        (put("grounding", [{"phrase": "a", "score": 1}] * 2), "2 entries in 'grounding'"),
        (put("grounding", [{"phrase": "a"}]), "no 'score' in the 'grounding'"),
        (put("grounding", [{"phrase": "", "score": 1}]), "'' in 'grounding.phrase'"),
        (put_generated("grounding", [{"phrase": None, "score": "1"}]), "'1' in 'generated.grounding.score'"),
        (put_generated("grounding", [{"phrase": None, "score": True}]), "True in 'generated.grounding.score'"),
    ],
)
def test_each_broken_rule_is_one_clear_error(folder, change, message):
    edit(folder, change)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(folder, verify_hashes=False)
    assert str(caught.value).startswith(f"{folder / 'train.jsonl'}:1: found ")
    assert "; expected " in str(caught.value) and str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("head", [1, 1]), "0 <= start < end <= 3"),
        (put("tail", [2, 4]), "0 <= start < end <= 3"),
        (put("head", [0.0, 1]), "two integers"),
        (put("relation", "/per/per/peer"), "unknown relation '/per/per/peer'"),
        (put("tags", ["O"] * 3), "unknown key 'tags'"),
    ],
)
def test_broken_relations(tmp_path, change, message):
    write_dataset(tmp_path, RE, {"train": [PAIR]})
    edit(tmp_path, change)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path, verify_hashes=False)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "2.jpg"
    outside.write_bytes(b"x")
    (folder / "images" / "2.jpg").symlink_to(outside)
    edit(folder, put("image", "images/2.jpg"))
    with pytest.raises(DataError, match="leads out of"):
        read_dataset(folder, verify_hashes=False)


def test_bytes_that_are_not_text(folder):
    (folder / "train.jsonl").write_bytes(b"{}\n\xff\n")
    with pytest.raises(DataError, match=r"train.jsonl:1: found no 'id'"):
        read_dataset(folder, verify_hashes=False)
    with pytest.raises(DataError, match=r"train.jsonl:1: found bytes that are not UTF-8"):
        (folder / "train.jsonl").write_bytes(b"\xff\n")
        read_dataset(folder, verify_hashes=False)


def test_scores_within_the_tolerance_pass(folder):
    edit(folder, put("scores", [0.4995, 0.25, 0.25]))
    assert sum(read_dataset(folder, verify_hashes=False).splits["train"][0].scores) == pytest.approx(0.9995)


def test_renormalised_scores_have_no_weaken(tmp_path):
    info = dataclasses.replace(NER, renormalised_scores=True)
    fine = dataclasses.replace(BARE, scores=(0.0, 0.9, 0.1))
    write_dataset(tmp_path, info, {"train": [fine]})
    with pytest.raises(DataError, match=r"weaken = 0.2"):
        write_dataset(tmp_path, info, {"train": [dataclasses.replace(BARE, scores=(0.2, 0.7, 0.1))]})


def test_the_same_id_twice(folder):
    record = record_to_json(BARE, "ner")
    (folder / "dev.jsonl").write_bytes(files.jsonl_bytes([record, record]))
    with pytest.raises(DataError, match=r"dev.jsonl:2: found the id '2' again, first at .*dev.jsonl:1"):
        read_dataset(folder, verify_hashes=False)
    (folder / "dev.jsonl").write_bytes(files.jsonl_bytes([record | {"id": "1"}]))  # the one of train
    with pytest.raises(DataError, match=r"first at .*train.jsonl:1"):
        read_dataset(folder, verify_hashes=False)
    with pytest.raises(DataError, match="again"):
        write_dataset(folder, NER, {"train": [BARE], "dev": [BARE]})


def test_an_edited_file_is_noticed_and_can_be_accepted(folder):
    edit(folder, put("phrases", ["somebody"]))
    with pytest.raises(DataError, match=r"edited after preparation.*refresh_hashes"):
        read_dataset(folder)
    refresh_hashes(folder)
    assert read_dataset(folder).splits["train"][0].phrases == ("somebody",)
    edit(folder, put("phrases", 3))
    with pytest.raises(DataError, match="'phrases'"):
        refresh_hashes(folder)  # a broken edit is not accepted


def test_missing_files(folder, tmp_path_factory):
    (folder / "dev.jsonl").unlink()
    with pytest.raises(DataError, match=r"dev.jsonl: found No such file"):
        read_dataset(folder)
    assert len(read_dataset(folder, splits=["train"]).splits["train"]) == 1
    with pytest.raises(DataError, match="no entry for test"):
        read_dataset(folder, splits=["test"])
    with pytest.raises(DataError, match=r"dataset.json: found no such file.*Prepare"):
        read_dataset(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("task"), "no 'task'"),
        (put("task", "pos"), "unknown task 'pos'"),
        (put("labels", ["PER", "PER"]), "each once"),
        (put("labels", []), "at least one label"),
        (put("leaky_phrases", "no"), "true or false"),
        (put("files", []), "a JSON object"),
        (put("leaky_phrase", True), "Did you mean 'leaky_phrases'"),
        (lambda item: "{", "malformed JSON"),
    ],
)
def test_broken_dataset_json(folder, change, message):
    path = folder / "dataset.json"
    result = change(json.loads(path.read_text()))
    path.write_text(result if isinstance(result, str) else json.dumps(result))
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(folder)
    assert str(caught.value).startswith(str(path))


def test_skipping_counts_and_lists(folder):
    good = record_to_json(RECORD, "ner")
    bad = good | {"id": "9", "scores": [1, 1, 1]}
    (folder / "train.jsonl").write_bytes(files.jsonl_bytes([bad, good]) + b"{\n")
    dataset = read_dataset(folder, on_error="skip", verify_hashes=False)
    assert dataset.splits["train"] == (RECORD,)
    assert [(item.file, item.line, item.id) for item in dataset.skipped] == [
        ("train.jsonl", 1, "9"),
        ("train.jsonl", 3, None),
    ]
    listed = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert listed == [dataclasses.asdict(item) for item in dataset.skipped] and "sum 3" in listed[0]["error"]
    assert "skipped records: 2" in completeness_table(dataset)
    (folder / "train.jsonl").write_bytes(files.jsonl_bytes([good]))
    assert read_dataset(folder, on_error="skip").skipped == ()
    assert (folder / "skipped.jsonl").read_text() == ""
    with pytest.raises(ValueError, match="on_error"):
        read_dataset(folder, on_error="ignore")


def test_posts_to_predict_need_only_tokens(folder, tmp_path):
    path = tmp_path / "posts.jsonl"
    path.write_text('{"id": "a", "tokens": ["hi"]}\n{"id": "b", "tokens": ["hi"], "image": "1.jpg", "tags": null}\n')
    records = read_records(path, NER, root=folder / "images", require_labels=False)
    assert [(record.id, record.tags, record.image) for record in records] == [("a", None, None), ("b", None, "1.jpg")]
    with pytest.raises(DataError, match="no 'image', 'regions'"):
        read_records(path, NER)


def test_writing_refuses_what_reading_would(folder):
    before = (folder / "train.jsonl").read_bytes()
    for broken in (dataclasses.replace(BARE, image="nowhere.jpg"), dataclasses.replace(BARE, tags=("I-X",))):
        with pytest.raises(DataError):
            write_dataset(folder, NER, {"train": [broken]})
    with pytest.raises(DataError, match="'val'"):
        write_dataset(folder, NER, {"val": [BARE]})
    assert (folder / "train.jsonl").read_bytes() == before


def test_a_write_that_fails_leaves_the_old_file(folder, monkeypatch):
    before = sorted((path.name, path.read_bytes()) for path in folder.glob("*.json*"))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_dataset(folder, NER, {"train": [BARE]})
    assert sorted((path.name, path.read_bytes()) for path in folder.glob("*.json*")) == before
    assert not list(folder.glob(".*"))


def test_a_record_without_grounding_looks_as_it_always_did():
    assert "grounding" not in json.dumps(record_to_json(RECORD, "ner"))
    known = dataclasses.replace(RECORD, grounding=(Grounding("ada", 0.5),))
    assert record_to_json(known, "ner")["grounding"] == [{"phrase": "ada", "score": 0.5}]


def test_a_set_is_the_old_or_the_new_one(folder, monkeypatch):
    """A kill between two renames leaves what the next reader completes."""
    moves = []

    def stop(source, target):
        moves.append(target)
        if len(moves) == 4:  # train.jsonl.next, dataset.json.next, train.jsonl in place; then the power fails
            raise KeyboardInterrupt
        move(source, target)

    move = files.os.replace
    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(folder, NER, {"train": [BARE]})
    monkeypatch.undo()
    assert (folder / "dataset.json.next").exists() and "dev.jsonl" in (folder / "dataset.json").read_text()
    assert read_dataset(folder).splits == {"train": (BARE,)} and not list(folder.glob("*.next"))
    (folder / "train.jsonl.next").write_text("of a set that never was whole")
    assert read_dataset(folder).splits == {"train": (BARE,)}


def test_completeness_counts():
    orphans = Record("3", ("a", "b", "c", "d"), ("I-PER", "B-PER", "I-LOC", "I-LOC"))
    counts = completeness([RECORD, BARE, orphans])
    assert counts == {
        "records": 3,
        "tokens": 10,
        "entities (B- tags)": 3,
        "orphan inside tags": 3,  # I-PER after B-LOC, I-PER at the start, I-LOC after B-PER; the next continues it
        "without an entity": 1,
        "without a picture": 2,
        "without regions": 2,
        "without a generated picture": 2,
        "without generated regions": 2,
        "without phrases": 2,
        "without scores": 2,
        "without generated scores": 2,
    }
