"""On a real SLURM of this machine: an array of trainings, one preempted and requeued; a training of two processes."""

import json
import os
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data_prep.make_demo import make_demo
from experiments.lib.launchers import slurm
from experiments.lib.launchers.states import Place, state_of
from experiments.lib.study import Training, command_of
from tests.experiments.slurm_machine import SlurmMachine, missing
from tmrjax.training.checkpoints import load_best

if missing():
    pytest.skip(f"no SLURM can be started here: {missing()}", allow_module_level=True)

SETTINGS = {
    "method": "bert_crf", "data.max_pieces": 40, "data.buckets": (40,), "batch_size": 8, "eval_batch_size": 16,
    "log_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    machine = SlurmMachine(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in machine.environment.items():
            patch.setenv(name, value)
        patch.setenv("XLA_FLAGS", "")  # one device a process
        yield machine
    machine.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("slurm-data") / "demo"
    make_demo(root, posts=60, seed=1)
    return root


def jobs_of(folder: Path, trainings: list[Training]) -> list[tuple[str, Place, list[str]]]:
    return [(t.name, Place(folder / t.name), command_of(t, folder / t.name)) for t in trainings]


def wait_for(true, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_array_of_trainings_one_requeued_and_one_of_two_processes(machine, data, tmp_path, capsys):
    settings = SETTINGS | {"data.root": str(data), "epochs": 20}
    rows = {"undisturbed": settings, "preempted": settings, "third": SETTINGS | settings | {"epochs": 1}}
    trainings = [Training(row, "demo", "mner.py:demo", found, 0) for row, found in rows.items()]
    trainings.append(Training("broken", "demo", "mner.py:demo", settings | {"data.root": str(tmp_path)}, 0))
    jobs = jobs_of(tmp_path, trainings)
    ids = slurm.submit(tmp_path, jobs, slurm.SlurmOptions(minutes=30), at_once=4)
    assert len({identifier.partition("_")[0] for identifier in ids.values()}) == 1  # one array
    two = [Training("two processes", "demo", "mner.py:demo", rows["third"], 0)]
    slurm.submit(tmp_path, jobs_of(tmp_path, two), slurm.SlurmOptions(minutes=30, tasks=2), at_once=1)
    assert set(slurm.queue_of(tmp_path)) == {training.name for training in trainings + two}
    assert slurm.submit(tmp_path, jobs, slurm.SlurmOptions(), at_once=4) == {}  # what is in the queue stays there

    name, place, _ = jobs[1]
    wait_for((place.workdir / "metrics.jsonl").exists)
    # What SLURM sends when it takes a job's time away: submitit's signal, to the steps of the job.
    machine.preempt(ids[name])
    wait_for(lambda: "and saved; the same command resumes" in place.log.read_text())
    assert not (place.workdir / "report.json").exists()
    wait_for(lambda: not slurm.queue_of(tmp_path), 600)

    found = {training.row: state_of(Place(tmp_path / training.name)) for training in trainings + two}
    assert found == {
        "undisturbed": "done",
        "preempted": "done",
        "third": "done",
        "broken": "failed",
        "two processes": "done",
    }
    reports = {t.row: json.loads((tmp_path / t.name / "report.json").read_text()) for t in trainings[:3] + two}
    assert reports["preempted"]["test"] == reports["undisturbed"]["test"]
    assert reports["preempted"]["steps"] == reports["undisturbed"]["steps"]
    assert [reports[row]["devices"] for row in ("third", "two processes")] == [1, 2]
    whole, resumed = (load_best(tmp_path / t.name)[0]["params"] for t in trainings[:2])
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)  # to the same bits
    one, both = (load_best(tmp_path / t.name)[0]["params"]["emission"]["kernel"] for t in (trainings[2], two[0]))
    np.testing.assert_allclose(one, both, atol=1e-4)
    log = machine.say("scontrol", "show", "job", ids[name])
    assert "Restarts=1" in log
    assert "dataset.json" in Place(tmp_path / trainings[3].name).log.read_text()
    if os.environ.get("TMRJAX_SHOW_SLURM"):
        with capsys.disabled():
            print(log, (machine.folder / "log" / "slurmctld").read_text()[-4000:])


def test_what_slurm_refuses_is_said_in_its_words(machine, data, tmp_path):
    training = Training("one", "demo", "mner.py:demo", SETTINGS | {"data.root": str(data)}, 0)
    with pytest.raises(ValueError, match=r"SLURM does not take the jobs.*nowhere"):
        slurm.submit(tmp_path, jobs_of(tmp_path, [training]), slurm.SlurmOptions(partition="nowhere"), at_once=1)
