"""How every command starts and fails: one clear line, the right exit code."""

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments.lib import command
from tmrjax.files import DataError
from tmrjax.inputs.batching import BatchPlan, PlannedBatches
from tmrjax.pictures.decode import PictureError
from tmrjax.training.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
DEMO = "--config=experiments/configs/mner.py:demo"


def call(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines of stderr without the log."""
    done = subprocess.run(
        [sys.executable, *arguments], check=False, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith(("INFO", "WARNING"))]


def test_bad_data_are_told_of_in_one_line_and_debug_shows_the_traceback(tmp_path):
    arguments = ["experiments/mner.py", DEMO, f"--workdir={tmp_path}/run", f"--config.data.root={tmp_path}/none"]
    code, lines = call(*arguments)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith(f"mner: {tmp_path}/none/dataset.json: found no such file; expected")
    code, lines = call(*arguments, "--debug")
    assert code == 1 and lines[0].startswith("Traceback") and "DataError" in lines[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=experiments/configs/mner.py:dmo", "--workdir=x"], "mner: there is no MNER config 'dmo'"),
        (["--config=experiments/configs/absent.py", "--workdir=x"], "mner: the config file cannot be read: Attempted"),
        ([DEMO, "--workdir=x", "stray"], "mner: 'stray' is no flag"),
    ],
)
def test_bad_flags_are_told_of_in_one_line(arguments, message):
    code, lines = call("experiments/mner.py", *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(message)


def test_dashes_are_underscores_in_flags_but_not_in_keys_of_a_config():
    assert command.with_underscores("--no-compile-cache") == "--nocompile_cache"
    assert command.with_underscores("--on-error=skip-this") == "--on_error=skip-this"
    assert command.with_underscores("--config.data.root=a-b") == "--config.data.root=a-b"
    assert command.with_underscores("a-b") == "a-b"


def test_a_shipped_config_is_found_from_any_folder_and_one_that_is_there_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(command.CONFIGS / "mner.py")
    assert command.with_config_found("--config=mner.py:own") == f"--config={shipped}:own"
    assert command.with_config_found("--config=experiments/configs/mner.py") == f"--config={shipped}"
    assert command.with_config_found("--config=another:own") == "--config=another:own"
    assert command.with_config_found("--config.data.root=mner.py") == "--config.data.root=mner.py"
    (tmp_path / "mner.py").write_text("")
    assert command.with_config_found("--config=mner.py:own") == "--config=mner.py:own"


def test_an_error_says_its_kind_where_its_message_would_not_do():
    assert command.one_line(DataError("f:3", "x", "y", "Do z.")) == "f:3: found x; expected y. Do z."
    assert command.one_line(ValueError("5")) == "ValueError: 5"
    assert command.one_line(PermissionError(13, "denied", "f")) == "PermissionError: [Errno 13] denied: 'f'"


@dataclasses.dataclass(frozen=True)
class Together(PlannedBatches):
    """Batches that are made only when eight threads make one each at the same time, or that fail."""

    meeting: threading.Barrier | None = None
    plan: BatchPlan = dataclasses.field(default_factory=lambda: BatchPlan([1] * 8, [1], 1))
    process_index: int = 0
    process_count: int = 1

    def load(self, bucket, indices):
        if self.meeting is None:
            raise PictureError("a.jpg", "a cut file", "a whole picture", "Replace it.")
        self.meeting.wait(timeout=60)
        return {"x": np.zeros(1)}


def test_as_many_threads_prepare_batches_as_were_asked_for():
    """Grain has no more threads than batches that it prepares ahead, four unless told."""
    assert len(list(Together(threading.Barrier(8)).iterate(num_threads=8))) == 8


def test_an_error_of_the_threads_that_prepare_batches_is_told_of_by_its_own_words():
    with pytest.raises(PictureError) as found:
        next(Together().iterate())
    assert command.one_line(found.value) == "a.jpg: found a cut file; expected a whole picture. Replace it."
    for error in (found.value, DataError("f:3", "x", "y", "Do z."), CheckpointError("c: damaged")):
        again = pickle.loads(pickle.dumps(error))  # as worker processes hand it over
        assert type(again) is type(error) and command.one_line(again) == command.one_line(error)
