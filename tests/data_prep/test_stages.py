"""The frame of the stages: killed at every point, sharded, limited, with other options, failing, started twice."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.stages import frame as stages
from data_prep.stages.command import stage_table
from data_prep.stages.frame import Selection, file_digest, run_stage
from tests.killed_stage import shout
from tmrjax.files import DataError
from tmrjax.records import Record, read_dataset, read_info, write_dataset

ROOT = Path(__file__).resolve().parents[2]
INFO = {"name": "posts", "task": "ner", "labels": ("PER",)}
TRAIN = [f"t{number}" for number in range(7)]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    train = [Record(name, ("hello", name), ("O", "O")) for name in TRAIN]
    write_dataset(folder, INFO, {"train": train, "dev": [Record("d0", ("Köln",), ("O",))]})
    return folder


def run(root, stage=None, **selection):
    return run_stage(root, stage or shout(root), Selection(**{"progress": False, **selection}))


def worked(root):
    return (root / "worked").read_text().split() if (root / "worked").exists() else []


def phrases(dataset):
    return {record.id: record.phrases for records in dataset.splits.values() for record in records}


def test_a_run_folds_and_says_how(root):
    dataset = run(root)
    assert phrases(dataset)["t0"] == ("HELLO T0!",) and phrases(dataset)["d0"] == ("KÖLN!",)
    assert phrases(read_dataset(root)) == phrases(dataset)
    manifest = dataset.info.stages["shout"]
    assert manifest["records"]["train"] == {"done": 7, "failed": 0, "not done": 0, "of no concern": 0}
    assert manifest["counts"] == {"words": 15} and manifest["options"] == {"mark": "!"} and manifest["failed"] is None
    assert manifest["seconds"] >= 0 and manifest["finished"].endswith("+00:00") and manifest["version"]
    table = stage_table(dataset, "shout")
    assert (
        "done                                7        1" in table and "words                              15" in table
    )
    assert stage_table(dataset, "other") == "other: not folded yet"


def test_a_repeat_does_nothing(root):
    run(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    dataset = run(root)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert worked(root) == [*TRAIN, "d0"] and phrases(dataset)["t6"] == ("HELLO T6!",)


def test_killed_at_every_point_nothing_is_lost_and_one_batch_at_most_repeated(root, tmp_path):
    command = [sys.executable, "tests/killed_stage.py", str(root), str(tmp_path / "copies")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    *deaths, last = map(json.loads, done.stdout.splitlines())
    assert last["died"] == 0 and last["again"] == [] and len(deaths) > 12
    everything = [*TRAIN, "d0"]
    folded = [item["folded"] for item in deaths]
    assert 0 in folded and 8 in folded and set(folded) == {0, 8}  # the set is the old one or the new one
    for item in deaths:
        assert item["died"] == -9
        repeated = [name for name in item["again"] if name in item["before"]]
        assert len(repeated) <= 2 and item["before"] + item["again"] == sorted(
            everything + repeated, key=(everything).index
        )
        assert item["files"] == last["files"] and len(last["files"]) == 2
        assert item["names"] == last["names"] and len(last["names"]) == 7  # nothing half-written is left


def test_a_torn_line_is_done_again(root):
    run(root, limit=4)
    journal = root / "journals/shout/shard-1-of-1.jsonl"
    whole = journal.read_bytes()
    for cut in (5, 60, len(whole.split(b"\n")[-2])):  # of the last line
        (root / "worked").unlink()
        journal.write_bytes(whole[:-cut])
        assert phrases(run(root, limit=4))["t3"] == ("HELLO T3!",) and worked(root) == ["t3"]
    journal.write_bytes(whole[:20])  # not even the first line
    assert len(phrases(run(root))) == 8 and worked(root) == ["t3", *TRAIN, "d0"]
    journal.write_bytes(whole.replace(b'"t1"', b'"t1'))
    with pytest.raises(DataError, match=r"shard-1-of-1.jsonl:3: found malformed JSON"):
        run(root)


def test_limit_and_split(root):
    dataset = run(root, limit=3)
    assert worked(root) == TRAIN[:3] and phrases(dataset)["t2"] and not phrases(dataset)["t3"]
    assert dataset.info.stages["shout"]["records"]["train"]["not done"] == 4
    run(root, splits=("dev",))
    dataset = run(root, limit=5, splits=("train",))
    assert worked(root) == [*TRAIN[:3], "d0", "t3", "t4"] and phrases(dataset)["d0"]
    assert dataset.info.stages["shout"]["counts"] == {"words": 11}
    with pytest.raises(DataError, match="no split 'test'; expected one of train, dev"):
        run(root, splits=("test",))


def test_shards_meet_whatever_their_order(root):
    dataset = run(root, shard=(2, 3))
    first = worked(root)
    assert 0 < len(first) < 8 and "shout" not in dataset.info.stages and not any(phrases(dataset).values())
    run(root, shard=(3, 3))
    dataset = run(root, shard=(1, 3))
    assert sorted(worked(root)) == sorted([*TRAIN, "d0"]) and all(phrases(dataset).values())
    whole = [(root / f"{split}.jsonl").read_bytes() for split in ("train", "dev")]
    run(root, restart=True)
    assert len(worked(root)) == 16 and whole == [(root / f"{split}.jsonl").read_bytes() for split in ("train", "dev")]
    assert [path.name for path in (root / "journals/shout").glob("*.jsonl")] == ["shard-1-of-1.jsonl"]
    for shard in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(ValueError, match=r"expected 1/"):
            Selection(shard=shard)


def test_journals_of_other_machines_are_folded(root, tmp_path):
    run(root, shard=(1, 2))
    journal = (root / "journals/shout/shard-1-of-2.jsonl").read_bytes()
    (root / "journals/shout/shard-1-of-2.jsonl").unlink()
    run(root, shard=(2, 2))
    (root / "journals/shout/shard-1-of-2.jsonl").write_bytes(journal)
    assert all(phrases(run(root, shard=(2, 2))).values()) and len(worked(root)) == 8


def test_other_options_are_an_error_or_a_new_beginning(root):
    run(root, limit=2)
    other = shout(root, mark="?")
    with pytest.raises(DataError, match=r'found results of .*"mark": "!".*expected .*"mark": "\?".*--restart'):
        run(root, other)
    assert phrases(run(root, other, restart=True))["t0"] == ("HELLO T0?",)
    assert worked(root) == [*TRAIN[:2], *TRAIN, "d0"]
    run(root, shout(root, batch_size=5, mark="?"))  # the batch size changes nothing
    assert len(worked(root)) == 10
    assert len(worked(root)) == 10 and phrases(run(root, other, restart=True, limit=1))["t0"] == ("HELLO T0?",)


def test_a_restart_of_one_shard_leaves_its_sisters(root):
    run(root, shard=(1, 2)), run(root, shard=(2, 2))
    (root / "worked").unlink()
    run(root, shard=(1, 2), restart=True)
    assert 0 < len(worked(root)) < 8
    run(root, shout(root, mark="?"), shard=(1, 2), restart=True)  # sisters of other options go
    assert [path.name for path in (root / "journals/shout").glob("*.jsonl")] == ["shard-1-of-2.jsonl"]


def test_what_was_made_from_another_input_is_made_again(root):
    dataset = run(root)
    train = list(dataset.splits["train"])
    train[2] = dataclasses.replace(train[2], tokens=("new", "words"))
    write_dataset(root, dataset.info, {**dataset.splits, "train": train})
    assert phrases(run(root))["t2"] == ("NEW WORDS!",) and worked(root)[8:] == ["t2"]


def test_results_come_back_to_a_set_that_is_written_anew(root):
    dataset = read_dataset(root)
    run(root)
    write_dataset(root, INFO, dataset.splits)
    assert phrases(run(root))["t2"] == ("HELLO T2!",) and len(worked(root)) == 8


def test_a_failure_stops_or_is_listed_and_tried_again(root):
    failing = shout(root, fails=("t3",))
    with pytest.raises(DataError, match="t3: found a dislike"):
        run(root, failing)
    assert worked(root) == TRAIN[:4]
    dataset = run(root, failing, on_error="skip")
    assert worked(root)[4:] == ["t3", *TRAIN[4:], "d0"]  # t2 of the same batch was kept
    manifest = dataset.info.stages["shout"]
    assert manifest["records"]["train"]["failed"] == 1 and phrases(dataset)["t3"] == ()
    listed = [json.loads(line) for line in (root / manifest["failed"]).read_text().splitlines()]
    assert listed == [{"split": "train", "id": "t3", "error": "t3: found a dislike; expected none. Like it."}]
    assert "listed in" in stage_table(dataset, "shout")
    dataset = run(root)
    assert worked(root)[9:] == ["t3"] and phrases(dataset)["t3"] and dataset.info.stages["shout"]["failed"] is None
    assert not list((root / "journals/shout").glob("failed*"))


def test_a_result_that_breaks_the_format_is_a_failure(root):
    broken = dataclasses.replace(
        shout(root), apply=lambda record, value: dataclasses.replace(record, regions=((0.5, 0, 0.25, 1),))
    )
    with pytest.raises(DataError, match=r"shout: t0: found the box .* without area"):
        run(root, broken)
    short = dataclasses.replace(shout(root), work=lambda batch: [])
    with pytest.raises(ValueError, match="shorter"):
        run(root, short)
    assert phrases(run(root))["t0"] == ("HELLO T0!",)


def test_records_of_no_concern_are_counted_and_left_alone(root):
    dataset = run(root, dataclasses.replace(shout(root), concerns=lambda record: record.id in "t1t5"), limit=1)
    assert worked(root) == ["t1"] and not phrases(dataset)["t0"]
    assert dataset.info.stages["shout"]["records"]["train"] == {
        "done": 1, "failed": 0, "not done": 1, "of no concern": 5,
    }  # fmt: skip


def test_two_processes_at_one_shard(root):
    folder = root / "journals/shout"
    folder.mkdir(parents=True)
    with stages._locked(folder / "shard-1-of-1.lock"):
        with pytest.raises(DataError, match="another process is at shard-1-of-1"):
            run(root)
        run(root, shard=(1, 2))
    assert worked(root) and len(worked(root)) < 8


def test_what_the_stage_says_of_the_set(root):
    leaky = dataclasses.replace(read_info(root), leaky_phrases=True)
    write_dataset(root, leaky, read_dataset(root).splits)

    def mark(info, splits):
        without = [record.id for records in splits.values() for record in records if not record.phrases]
        return dataclasses.replace(info, leaky_phrases=bool(without))

    stage = dataclasses.replace(shout(root), info=mark)
    assert run(root, stage, limit=5).info.leaky_phrases and not run(root, stage).info.leaky_phrases


def test_the_digest_of_a_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    first = file_digest(path)
    assert first == file_digest(str(path)) and len(first) == 16
    path.write_bytes(b"12")
    assert file_digest(path) != first


@pytest.mark.parametrize("selection", [{"limit": 0}, {"on_error": "ignore"}])
def test_misspelt_selections(selection):
    with pytest.raises(ValueError, match="expected"):
        Selection(**selection)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.pop("counts"),
        lambda line: line.update({"coumts": line.pop("counts")}),
        lambda line: line.update(counts=[1]),
        lambda line: line.update(counts={"words": "2"}),
        lambda line: line.pop("seconds"),
        lambda line: line.update(seconds="1"),
        lambda line: line.update(id=7),
        lambda line: line.update(id=["t0"]),
        lambda line: line.update(input=None),
        lambda line: line.pop("value"),
        lambda line: line.update(more=1),
    ],
)
def test_a_damaged_line_of_a_journal_is_named_and_what_to_do_helps(root, change):
    run(root)
    (journal,) = (root / "journals").glob("*/shard-*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    line = json.loads(lines[2])
    change(line)
    journal.write_text("".join([*lines[:2], json.dumps(line) + "\n", *lines[3:]]))
    with pytest.raises(DataError, match=r"shard-1-of-1.jsonl:3: .*Remove the line"):
        run(root)
    journal.write_text("".join([*lines[:2], *lines[3:]]))
    assert phrases(run(root))["t1"] == ("HELLO T1!",)


def test_a_value_that_the_stage_did_not_write_is_a_clear_error(root):
    run(root)
    (journal,) = (root / "journals").glob("*/shard-*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], json.dumps(json.loads(lines[2]) | {"value": None}) + "\n", *lines[3:]]))
    with pytest.raises(DataError, match=r"result of t1: found a value that is none of this stage's|t1.*phrases"):
        run(root)


def test_a_journal_of_a_foreign_name_is_no_traceback(root):
    run(root)
    (journal,) = (root / "journals").glob("*/shard-*.jsonl")
    journal.with_name("shard-x.jsonl").write_bytes(journal.read_bytes())
    assert phrases(run(root))["t1"] == ("HELLO T1!",)
