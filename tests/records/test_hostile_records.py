"""Prepared data made to hurt: nothing outside of the set is touched or read, and each value is one clear error."""

import json
import os

import pytest

from tests.records.test_records import BARE, NER, PAIR, RE, RECORD, edit, put, put_generated
from tmrjax.files import FolderOfFiles, sha256
from tmrjax.records import DataError, DatasetInfo, Record, read_dataset, read_records, write_dataset


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for name in ("images", "generated"):
        (root / name).mkdir(parents=True)
        (root / name / "1.jpg").write_bytes(b"not looked into here")
    write_dataset(root, NER, {"train": [RECORD], "dev": [BARE]})
    return root


def lay_next(root, change):
    """A `dataset.json.next` beside the set, as after a kill, with `change` made to its object."""
    info = json.loads((root / "dataset.json").read_text())
    change(info)
    (root / "dataset.json.next").write_text(json.dumps(info))


@pytest.mark.parametrize("name", ["../victim", "{absolute}", "skipped.jsonl", "images/1.jpg", "dataset.json"])
def test_reading_replaces_nothing_but_the_split_files(folder, name):
    victim = folder.parent / "victim"
    victim.write_text("dear")
    (folder.parent / "victim.next").write_text("EVIL")
    name = name.format(absolute=victim)
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}

    def name_it(info):
        info["files"][name] = sha256(b"EVIL")
        info["labels_sha256"][name.removesuffix(".jsonl")] = "0" * 64

    lay_next(folder, name_it)
    with pytest.raises(DataError, match=r"dataset.json.next: found the unknown file"):
        read_dataset(folder)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("kind", ["another text", "missing", "a pipe"])
def test_a_new_set_is_checked_whole_before_it_replaces_anything(folder, kind):
    good = (folder / "train.jsonl").read_bytes()
    lay_next(folder, lambda info: info["files"].update({"dev.jsonl": sha256(b"new")}))
    (folder / "train.jsonl.next").write_bytes(good)
    if kind == "another text":
        (folder / "dev.jsonl.next").write_text("damaged")
    elif kind == "a pipe":
        os.mkfifo(folder / "dev.jsonl.next")
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(DataError, match=r"dev.jsonl"):
        read_dataset(folder)
    assert (folder / "dataset.json").read_bytes() == before and (folder / "train.jsonl.next").exists()
    for path in folder.glob("*.next"):
        path.unlink()
    assert read_dataset(folder).splits["train"] == (RECORD,)  # what the message says to do


def test_a_new_set_that_lists_other_names_is_refused_in_dataset_json_too(folder):
    info = json.loads((folder / "dataset.json").read_text())
    info["files"]["../other.jsonl"] = "0" * 64
    info["labels_sha256"]["../other"] = "0" * 64
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"the unknown file '../other.jsonl'; expected one of train.jsonl"):
        read_dataset(folder)


HOSTILE = [
    (put("tokens", ["Ada", "in", "a\nb", "Köln", "x"]), r"a control character in 'tokens\[2\]', 'a\\nb'"),
    (put("tokens", ["Ada", "in", "a\0b", "Köln", "x"]), r"a control character in 'tokens\[2\]'"),
    (put("tokens", ["Ada", "in", "ö\x1b[2J", "Köln", "x"]), r"a control character in 'tokens\[2\]'"),
    (put("tokens", ["Ada", "in", "x" * 10_001, "Köln", "x"]), r"10,001 characters in 'tokens\[2\]'"),
    (put("tokens", ["Ada", "in", "ö" * 10_001, "Köln", "x"]), r"10,001 characters in 'tokens\[2\]'"),
    (put("tokens", ["Ada", "in", "", "Köln", "x"]), r"'' in 'tokens\[2\]'"),
    (put("tokens", ["Ada", "in", ["x"], "Köln", "x"]), r"\['x'\] in 'tokens\[2\]'"),
    (put("id", "1\n2"), "a control character in 'id'"),
    (put("id", "x" * 10_001), "10,001 characters in 'id'"),
    (put("phrases", ["a\tb"]), r"a control character in 'phrases\[0\]'"),
    (put("image", "images/1.jpg\0"), "a control character in 'image'"),
    (put("image", "images/" + "x" * 5_000), "no file 'images/x"),
    (put("image", "images/1.jpg/x"), "no file"),
    (put("scores", [10**400, 0, 0]), "1000.* in 'scores'; expected 3 finite numbers"),
    (put("regions", [[0, 0, 1, 10**400]]), r"1000.* in 'regions\[0\]'; expected 4 finite numbers"),
    (put("regions", [[0, 0, 1, [[]]]]), r"\[\[\]\] in 'regions\[0\]'"),
    (put_generated("image", "../../x"), "a path inside the data set's folder"),
    (put_generated("seed", True), "True in 'generated.seed'"),
    (put("x" * 1_000_000, 1), "the unknown key 'xxx"),
    (lambda item: '{"id": ' + "[" * 100_000 + "\n", "more than 100 levels"),
    (lambda item: '{"id": ' + "7" * 5_000 + "}\n", "a number that cannot be read"),
    (lambda item: json.dumps(item | {"id": [[[["deep"]]]]}) + "\n", "'deep'.* in 'id'"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_each_hostile_value_is_one_clear_error_and_can_be_skipped(folder, change, message):
    edit(folder, change)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(folder, verify_hashes=False)
    assert str(caught.value).startswith(f"{folder / 'train.jsonl'}:1: found ") and len(str(caught.value)) < 1_000
    read = read_dataset(folder, verify_hashes=False, on_error="skip")
    assert read.splits["train"] == () and [item.line for item in read.skipped] == [1]
    assert str(caught.value) == json.loads((folder / "skipped.jsonl").read_text())["error"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("PER", "O"), "the label 'O'"),
        (("PER", " "), "the label ' '"),
        (("PER\n<script>",), "a control character in 'labels"),
        (("PER", "x" * 10_001), "10,001 characters"),
    ],
)
def test_labels_that_no_tag_can_hold(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path, DatasetInfo("posts", "ner", labels), {"train": [Record("1", ("a",), ("O",))]})


def test_other_invisible_characters_stand_in_real_posts(tmp_path):
    tokens = ("\x92", "\u2028", "\u200d", "\ufe0f", "\u00a0", " ")  # the first is in Twitter-2017
    record = Record("1", tokens, ("O",) * len(tokens))
    write_dataset(tmp_path, NER, {"train": [record]})
    assert read_dataset(tmp_path).splits["train"] == (record,)


def test_relations_may_have_any_printable_name(tmp_path):
    write_dataset(tmp_path, DatasetInfo("pairs", "re", ("None", "O")), {"train": [PAIR]})
    assert read_dataset(tmp_path).splits["train"] == (PAIR,) and RE.task == "re"


def test_a_pipe_in_place_of_a_split_is_not_waited_for(folder):
    (folder / "train.jsonl").unlink()
    os.mkfifo(folder / "train.jsonl")
    with pytest.raises(DataError, match="a pipe"):
        read_dataset(folder)


# ------------------------------------------------------------------ paths


def test_what_lies_inside_and_what_a_link_leads_to(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    for path in (root / "a" / "x", root / "a" / "b" / "y", outside / "z"):
        path.write_bytes(b"x")
    links = {"in": "a/x", "out": outside / "z", "folder": outside, "inner": "a/b", "loop": "loop", "gone": "none"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "a" / "up").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    folder = FolderOfFiles(root)
    for _ in range(2):  # the second time from what is remembered
        assert [folder.look(path) for path in ("a/x", "a/b/y", "in", "inner/y", "./a/x")] == ["there"] * 5
        assert [folder.look(path) for path in ("out", "folder/z", "a/up/outside/z")] == ["outside"] * 3
        assert [folder.look(path) for path in ("a", "none", "a/none", "none/x", "loop", "gone", "pipe", "a\0", "")] == [
            "missing"
        ] * 9
    assert FolderOfFiles("/").look("etc/passwd") == "there"


def test_pictures_of_a_folder_are_looked_up_by_one_call_each(tmp_path, monkeypatch):
    """A realpath per picture is a system call per part of its path: 200,000 records took two minutes."""
    (tmp_path / "images").mkdir()
    for number in range(50):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"x")
    records = [Record(str(number), ("a",), ("O",), image=f"images/{number}.jpg") for number in range(50)]
    write_dataset(tmp_path, NER, {"train": records})
    calls, lstat = [], os.lstat
    monkeypatch.setattr(os, "lstat", lambda *a, **k: calls.append(a) or lstat(*a, **k))
    assert len(read_records(tmp_path / "train.jsonl", NER)) == 50
    assert len(calls) < 50 + 40
