"""The command in a pipe: answers at a pause, order, errors in their place, exit codes."""

import contextlib
import json
import os
import select
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments import export, predict
from experiments.lib.pipes import lines_of
from tests.experiments.test_predict_command import DEFAULTS, ROOT, run, workdir  # noqa: F401 - fixtures
from tests.prediction.test_predict import text_reader, tokenizer  # noqa: F401 - fixtures
from tmrjax.prediction.ahead import PAUSE

POSTS = [{"id": 1, "text": "Jordan at the harbour"}, {"id": 2, "text": ""}, {"id": 3, "text": "the Jordan"}]
LINES = [json.dumps(post).encode() for post in POSTS]


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):  # it is closed already
            os.close(descriptor)


def test_lines_come_whole_with_one_pause_where_none_comes(pipe):
    reading, writing = pipe
    lines = lines_of(reading, seconds=0.01)
    os.write(writing, b"one\ntw")
    assert next(lines) == b"one" and next(lines) is PAUSE
    os.write(writing, b"o\n\nthree")
    assert [next(lines), next(lines), next(lines)] == [b"two", b"", PAUSE]
    os.write(writing, b" and more")
    os.close(writing)
    assert list(lines) == [b"three and more"]


def answers(monkeypatch, capsysbinary, workdir, pipe, content, **options):  # noqa: F811
    reading, writing = pipe
    os.write(writing, content)
    os.close(writing)
    given = {"workdir": workdir, "input": "-", "output": "-", **options}
    monkeypatch.setattr(predict, "FLAGS", SimpleNamespace(**DEFAULTS | given))
    monkeypatch.setattr(predict.sys, "stdin", SimpleNamespace(fileno=lambda: reading))
    try:
        predict.main(None)
    finally:
        captured = capsysbinary.readouterr()
        answers.told = captured.err.decode()
        answers.found = [json.loads(line) for line in captured.out.splitlines()]
    return answers.found


def test_posts_that_cannot_be_read_have_their_error_in_their_place(monkeypatch, capsysbinary, workdir, pipe):  # noqa: F811
    content = b"\n".join([LINES[0], LINES[1], b"", b"no json", LINES[2]])
    found = answers(monkeypatch, capsysbinary, workdir, pipe, content, on_error="skip")
    assert [result["id"] for result in found] == [1, 2, None, 3]
    assert found[0]["entities"] and found[3]["entities"]
    assert found[1].keys() == {"id", "error"} and found[1]["error"].startswith("stdin:2: ")
    assert found[2]["error"].startswith("stdin:4: ") and "not JSONL" in found[2]["error"]
    assert "entities in 2 posts written to stdout\n2 posts could not be read" in answers.told


def test_the_first_post_that_cannot_be_read_ends_the_command_behind_the_results_before_it(
    monkeypatch,
    capsysbinary,
    workdir,  # noqa: F811
    pipe,
):
    with pytest.raises(ValueError, match=r"^stdin:2: .*The 1 posts before it are answered: --on-error=skip"):
        answers(monkeypatch, capsysbinary, workdir, pipe, b"\n".join(LINES))
    assert [result["id"] for result in answers.found] == [1]


def test_a_pipe_has_two_ends_and_no_review(run):  # noqa: F811
    with pytest.raises(ValueError, match="--input=- goes with the other end"):
        run(input="-")
    with pytest.raises(ValueError, match="--review sorts all posts"):
        run(input="-", output="-", review="review.jsonl")


def test_an_open_pipe_is_answered_line_by_line_and_a_closed_one_ends(workdir, tmp_path):  # noqa: F811
    command = [sys.executable, str(ROOT / "experiments" / "predict.py"), f"--workdir={workdir}"]
    process = subprocess.Popen(
        [*command, "--input=-", "--output=-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        for line, number in ((LINES[0], 1), (LINES[2], 3)):
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 240)[0], "the pipe stays open and no answer comes"
            assert json.loads(process.stdout.readline())["id"] == number
        rest, told = process.communicate(LINES[1] + b"\n", timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1 and rest == b"" and b"stdin:3: " in told and b"Traceback" not in told


def test_export_writes_a_folder_that_serves_and_refuses_flags_of_the_other_format(
    workdir,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    flags = SimpleNamespace(
        workdir=str(workdir), out=str(tmp_path / "served"), format="stablehlo", dtype="float32", language=[],
        licence="other", push=None, private=False, onnx_batch=1,
    )  # fmt: skip
    monkeypatch.setattr(export, "FLAGS", flags)
    export.main(None)
    told = capsys.readouterr().out
    assert "MB of weights and" in told and (tmp_path / "served" / "run.py").is_file()
    flags.dtype = "bfloat16"
    with pytest.raises(ValueError, match="--dtype belongs to --format=folder, and not to stablehlo"):
        export.main(None)
