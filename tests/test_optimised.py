"""The program that users run: the suite compiles without most of what XLA optimises, these commands with all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.make_demo import make_demo

ROOT = Path(__file__).resolve().parent.parent
# One length of batch, so that each program is compiled once; dropout off, so that two compilations can be compared.
CHANGES = {
    "epochs": 1, "batch_size": 8, "eval_batch_size": 8, "log_every": 1, "data.buckets": "(48,)", "model.dropout": 0.0,
}  # fmt: skip


def command(script, environment, *flags):
    done = subprocess.run(
        [sys.executable, f"experiments/{script}.py", *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the data of one small run on one device."""
    folder = tmp_path_factory.mktemp("optimised")
    data = make_demo(folder / "data", posts=40).root
    smaller = {
        "text_encoder": {
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_size": 32, "num_hidden_layers": 1,
        },
        "picture_encoder": {"hidden_sizes": [16, 32], "depths": [1, 1]},
    }  # fmt: skip
    for encoder, sizes in smaller.items():
        config = data / encoder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | sizes))
    return folder


def trained(folder, *, optimised):
    """(workdir, environment) of a run."""
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not optimised)), "XLA_FLAGS": ""}
    flags = [f"--config.{key}={value}" for key, value in (CHANGES | {"data.root": folder / "data"}).items()]
    workdir = folder / f"run-{optimised}"
    command("mner", environment, "--config=experiments/configs/mner.py:demo", f"--workdir={workdir}", *flags)
    return workdir, environment


@pytest.fixture(scope="module")
def run(world):
    return trained(world, optimised=True)


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_optimisations_change_rounding_only(run, world):
    plain, optimised = losses(trained(world, optimised=False)[0]), losses(run[0])
    assert len(plain) == len(optimised) == 4 and plain[0] != plain[1]
    assert optimised == pytest.approx(plain, rel=2e-3)


def test_a_run_learns_and_evaluation_gives_its_figure(run):
    workdir, environment = run
    values = losses(workdir)
    assert len(values) == 4 and all(0 < value < 100 for value in values) and values[0] != values[1]
    report = json.loads((workdir / "report.json").read_text())
    output = workdir.parent / "evaluated.json"
    command("evaluate", environment, f"--workdir={workdir}", "--split=test", f"--output={output}")
    evaluated = json.loads(output.read_text())
    assert {key: evaluated[key] for key in report["test"]} == report["test"]
