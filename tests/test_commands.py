"""How every command starts and fails: one clear line, the right exit code, compiled programs kept."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import running
from tmrjax.files import DataError

ROOT = Path(__file__).resolve().parent.parent
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
    assert running.with_underscores("--no-compile-cache") == "--nocompile_cache"
    assert running.with_underscores("--on-error=skip-this") == "--on_error=skip-this"
    assert running.with_underscores("--config.data.root=a-b") == "--config.data.root=a-b"
    assert running.with_underscores("a-b") == "a-b"


def test_an_error_says_its_kind_where_its_message_would_not_do():
    assert running.one_line(DataError("f:3", "x", "y", "Do z.")) == "f:3: found x; expected y. Do z."
    assert running.one_line(ValueError("5")) == "ValueError: 5"
    assert running.one_line(PermissionError(13, "denied", "f")) == "PermissionError: [Errno 13] denied: 'f'"


def test_compiled_programs_are_kept_where_the_user_keeps_caches(tmp_path, monkeypatch):
    given = jax.config.jax_compilation_cache_dir
    running.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == given  # set by conftest.py: kept
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        running.keep_compiled()
        [folder] = (tmp_path / "tmrjax").iterdir()
        assert jax.config.jax_compilation_cache_dir == str(folder) and folder.name.startswith("compiled-")
    finally:
        jax.config.update("jax_compilation_cache_dir", given)
