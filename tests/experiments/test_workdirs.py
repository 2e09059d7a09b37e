"""A workdir belongs to one run: claimed late, locked while it runs, damaged files named."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from experiments.lib import workdirs
from tmrjax.training.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from experiments.lib import workdirs
with workdirs.claimed_workdir(Path(sys.argv[1]), {"a": 1}):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_workdir_in_use_is_refused_and_a_kill_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"in use by another run \(process {holder.pid} on .+\); wait for it"
        with pytest.raises(CheckpointError, match=message), workdirs.claimed_workdir(tmp_path, {"a": 1}):
            pass
    finally:
        holder.kill()
        holder.wait()
    with workdirs.claimed_workdir(tmp_path, {"a": 1}):
        assert (tmp_path / workdirs.LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_checking_writes_nothing_and_a_lock_alone_claims_nothing(tmp_path):
    assert not workdirs.check_workdir(tmp_path / "new", {"a": 1}) and not (tmp_path / "new").exists()
    (tmp_path / workdirs.LOCK).touch()
    assert not workdirs.check_workdir(tmp_path, {"a": 1})
    with workdirs.claimed_workdir(tmp_path, {"a": 1}):
        assert (tmp_path / "config.json").exists()
    with pytest.raises(CheckpointError, match=r"belongs to another run(.|\n)*a: 1 → 2"):
        workdirs.check_workdir(tmp_path, {"a": 2})


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[1]", b'{"a": NaN}'])
def test_damaged_files_of_a_workdir_are_one_clear_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: damaged .*take another --workdir") as found:
        workdirs.check_workdir(tmp_path, {"a": 1})
    assert "\n" not in str(found.value)
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"report\.json: damaged .*delete it, and the same command"):
        workdirs.finished_report(tmp_path, print)
    (tmp_path / "report.json").write_bytes(b'{"task": "ner"}')
    with pytest.raises(CheckpointError, match=r"report\.json: damaged or of an older version \(KeyError\('dev'\)"):
        workdirs.finished_report(tmp_path, lambda report: report["dev"])


class OneOfTwo:
    """This process as one of two; what process 0 sends is what ``sent`` says."""

    def __init__(self, patch, index, sent=(False, False)):
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(jax, "process_index", lambda: index)
        patch.setattr(multihost_utils, "broadcast_one_to_all", lambda value: value if index == 0 else sent)


def test_process_0_alone_decides_and_the_others_hear_of_it(tmp_path, monkeypatch):
    def forbidden():
        raise AssertionError("process 1 touched the workdir")

    OneOfTwo(monkeypatch, 1, (False, True))
    assert workdirs.on_first_process(forbidden) is True
    OneOfTwo(monkeypatch, 1, (True, False))
    with pytest.raises(CheckpointError, match="process 0 cannot use the workdir"):
        workdirs.on_first_process(forbidden)
    OneOfTwo(monkeypatch, 1)
    with workdirs.claimed_workdir(tmp_path / "run", {"a": 1}):
        assert not (tmp_path / "run").exists()
    OneOfTwo(monkeypatch, 0)
    with pytest.raises(AssertionError):
        workdirs.on_first_process(forbidden)
    with workdirs.claimed_workdir(tmp_path / "run", {"a": 1}):
        assert (tmp_path / "run" / "config.json").exists()
