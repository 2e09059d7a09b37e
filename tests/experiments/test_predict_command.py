"""The command that predicts: a stream that survives kills, bad posts listed with file and line, nothing lost."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import predict
from experiments.lib.journal import Journal
from tests.prediction.test_predict import random_variables, text_reader, tokenizer  # noqa: F401 - fixtures
from tmrjax.files import DataError
from tmrjax.training.checkpoints import BEST, CheckpointError, CheckpointStore

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = {
    "entities": None, "root": None, "batch_size": 32, "on_error": "raise", "allow_outside": False, "carry": [],
    "keep_none": False, "windows": None, "word_splitting": None, "joiner": None, "calibrated": False, "num_threads": 2,
    "min_score": 0.0, "abstain_below": 0.0,
    "review": None, "review_posts": 1000,
}  # fmt: skip


@pytest.fixture(scope="module")
def workdir(text_reader, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("run")
    store = CheckpointStore(folder / BEST)
    store.save(1, random_variables(text_reader), text_reader.to_meta())
    store.close()
    return folder


@pytest.fixture
def run(workdir, tmp_path, monkeypatch):
    """Calls the command in this process."""

    def call(**options):
        chosen = {"workdir": workdir, "input": tmp_path / "posts.jsonl", "output": tmp_path / "out.jsonl", **options}
        monkeypatch.setattr(predict, "FLAGS", SimpleNamespace(**DEFAULTS | chosen))
        predict.main(None)
        return [json.loads(line) for line in Path(chosen["output"]).read_text(encoding="utf-8").splitlines()]

    return call


def write_posts(path: Path, count: int, **changed) -> None:
    posts = [
        json.dumps({"id": i, "text": f"{'Jordan at the ' * (1 + i % 3)}harbour", "lang": "en"}) for i in range(count)
    ]
    for line, content in changed.items():
        posts[int(line.removeprefix("line")) - 1] = content
    path.write_text("\n".join(posts) + "\n", encoding="utf-8")


def files_beside(tmp_path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


def test_results_come_in_the_order_of_the_input_with_other_keys(run, tmp_path, capsys, caplog):
    write_posts(tmp_path / "posts.jsonl", 70)
    results = run()
    assert "read_only" not in caplog.text  # Orbax's warnings of its own defaults
    assert [result["id"] for result in results] == list(range(70)) and results[0]["lang"] == "en"
    assert files_beside(tmp_path) == {"posts.jsonl", "out.jsonl"}
    found = sum(len(result["entities"]) for result in results)
    assert found > 70 and f"{found} entities in 70 posts written to" in capsys.readouterr().out
    assert run() == results


def test_unsure_answers_are_left_out_counted_and_listed_for_a_second_look(run, tmp_path, capsys):
    write_posts(tmp_path / "posts.jsonl", 30)
    every = run()
    scores = sorted(entity["score"] for result in every for entity in result["entities"])
    limit = scores[len(scores) // 2]
    sure = run(output=tmp_path / "sure.jsonl", min_score=limit)
    for result, whole in zip(sure, every, strict=True):
        assert result["entities"] == [entity for entity in whole["entities"] if entity["score"] >= limit]
        assert result["left_out"] == len(whole["entities"]) - len(result["entities"])
    assert f"{sum(score < limit for score in scores)} entities below --min-score, left out" in capsys.readouterr().out
    review = tmp_path / "deep" / "review.jsonl"
    silent = run(output=tmp_path / "silent.jsonl", abstain_below=limit, review=review, review_posts=7)
    for result, whole in zip(silent, every, strict=True):
        unsure = any(entity["score"] < limit for entity in whole["entities"])
        assert result["abstained"] == unsure and result["entities"] == ([] if unsure else whole["entities"])
        assert result["expected_errors"] == pytest.approx(sum(1 - entity["score"] for entity in whole["entities"]))
    listed = [json.loads(line) for line in review.read_text().splitlines()]
    assert listed == sorted(silent, key=lambda result: -result["expected_errors"])[:7]  # of equals the earlier one
    assert "7 posts with" in capsys.readouterr().out
    assert not any({"left_out", "abstained", "expected_errors"} & set(result) for result in every)


def test_bad_posts_are_listed_with_file_line_and_id(run, tmp_path, capsys):
    bad = {
        "line3": '{"id": "x", "text": ""}', "line4": '{"text": "a", "id": "\\ud800"}',
        "line5": '{"text": "a", "id": NaN}', "line7": "plain text, no JSON",
        "line8": '{"text": "a"', "line9": "", "line10": '["a"]',
    }  # fmt: skip
    write_posts(tmp_path / "posts.jsonl", 12, **bad)
    with pytest.raises(DataError, match=r"posts\.jsonl:3: found '' in 'text'.*2 posts before it are kept"):
        run()
    assert "out.jsonl" not in files_beside(tmp_path)
    results = run(on_error="skip")  # the same command goes on, so the two posts before are not read again
    assert [result["id"] for result in results] == [0, 1, 5, 10, 11]
    skipped = [json.loads(line) for line in (tmp_path / "out.jsonl.skipped.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"], entry["id"]) for entry in skipped] == [
        ("posts.jsonl", 3, "x"), ("posts.jsonl", 4, None), ("posts.jsonl", 5, None), ("posts.jsonl", 7, None),
        ("posts.jsonl", 8, None), ("posts.jsonl", 10, None),
    ]  # fmt: skip
    assert "not JSONL" in skipped[3]["error"] and "posts.jsonl:5" in skipped[2]["error"]
    assert "6 posts could not be read" in capsys.readouterr().out
    write_posts(tmp_path / "posts.jsonl", 12)
    assert len(run()) == 12 and "out.jsonl.skipped.jsonl" not in files_beside(tmp_path)


@pytest.mark.parametrize("content", ["Jordan at the harbour\n", "id,text\n1,Jordan\n", '[{"text": "a"}]\n'])
def test_what_is_not_jsonl_is_called_so(run, tmp_path, content):
    (tmp_path / "posts.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"posts\.jsonl:1: found '.*not JSONL"):
        run()


def test_files_that_cannot_be_read_are_one_clear_error(run, tmp_path):
    with pytest.raises(DataError, match="No such file"):
        run()
    (tmp_path / "posts.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no post"):
        run()
    (tmp_path / "posts.jsonl").unlink()
    os.mkfifo(tmp_path / "posts.jsonl")
    with pytest.raises(DataError, match="a pipe"):
        run()


def test_a_byte_order_mark_is_no_part_of_the_first_post(run, tmp_path):
    (tmp_path / "posts.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "Jordan"}\r\n{"text": "the"}')
    assert [result["text"] for result in run()] == ["Jordan", "the"]


def interrupted(run, monkeypatch, posts: int) -> None:
    """A run that dies, without any cleaning up, behind so many posts."""

    class Killed(BaseException):
        pass

    class Dying(Journal):
        def done_to(self, line, offset):
            super().done_to(line, offset)
            if line == posts:
                self.commit = lambda: None
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(predict, "Journal", Dying)
        with pytest.raises(Killed):
            run()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    write_posts(tmp_path / "posts.jsonl", 700)
    run()
    whole = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    interrupted(run, monkeypatch, 600)
    partial = tmp_path / "out.jsonl.partial"
    assert whole.startswith(partial.read_bytes()) and partial.stat().st_size > 0
    with partial.open("ab") as file:  # a line that was cut while it was written
        file.write(b'{"id": 600, "te')
    with (tmp_path / "out.jsonl.partial.journal").open("ab") as file:
        file.write(b'{"line": 9')
    run()
    assert "goes on behind line 512, 512 posts are done" in caplog.text
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert files_beside(tmp_path) == {"posts.jsonl", "out.jsonl"}


def test_another_input_checkpoint_or_partial_is_refused(run, tmp_path, monkeypatch, workdir, text_reader):  # noqa: F811
    write_posts(tmp_path / "posts.jsonl", 600)
    interrupted(run, monkeypatch, 550)
    with pytest.raises(CheckpointError, match=r"made of something else(.|\n)*workdir"):
        run(word_splitting="graphemes")
    with pytest.raises(CheckpointError, match=r"made of something else(.|\n)*root"):
        run(root=workdir)
    partial = tmp_path / "out.jsonl.partial"
    original = partial.read_bytes()
    partial.write_bytes(original.replace(b"Jordan", b"Jordon", 1))
    with pytest.raises(DataError, match="other bytes than were written"):
        run()
    partial.write_bytes(original[:100])
    with pytest.raises(DataError, match="other bytes than were written"):
        run()
    partial.write_bytes(original)
    write_posts(tmp_path / "posts.jsonl", 601)
    with pytest.raises(CheckpointError, match=r"made of something else(.|\n)*input"):
        run()
    journal = tmp_path / "out.jsonl.partial.journal"
    journal.write_bytes(b"[]\n" + journal.read_bytes())
    with pytest.raises(DataError, match="a damaged journal"):
        run()


def test_two_runs_do_not_write_one_output(tmp_path):
    first = Journal(tmp_path / "out", {"input": "a"})
    with pytest.raises(DataError, match="another process"):
        Journal(tmp_path / "out", {"input": "a"})
    first.close()
    Journal(tmp_path / "out", {"input": "a"}).close()
    with pytest.raises(DataError, match="no such folder"):
        Journal(tmp_path / "no" / "out", {})


def test_a_line_of_progress_is_logged_where_there_is_no_terminal(run, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(predict, "SECONDS_BETWEEN_LINES", 0)
    write_posts(tmp_path / "posts.jsonl", 3)
    run()
    assert "of 3 posts" in caplog.text and "posts/s" in caplog.text


def test_sigkill_and_the_same_command(workdir, run, tmp_path):
    write_posts(tmp_path / "posts.jsonl", 1600)
    arguments = [
        sys.executable,
        "experiments/predict.py",
        f"--workdir={workdir}",
        f"--input={tmp_path / 'posts.jsonl'}",
    ]
    process = subprocess.Popen(
        [*arguments, f"--output={tmp_path / 'out.jsonl'}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "out.jsonl.partial.journal"
    deadline = time.time() + 200
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.time() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out.jsonl").exists()
    assert [result["id"] for result in run()] == list(range(1600))
