"""A method in a folder of the user's own, that of CONTRIBUTING.md: train, evaluate, predict, checkpoints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.make_demo import make_demo
from experiments import evaluate
from experiments.configs.mner import get_config
from experiments.lib import build, experiment
from tmrjax.files import DataError
from tmrjax.methods import find_method, known_methods
from tmrjax.methods.outside import load_outside, source_of
from tmrjax.predict import Predictor
from tmrjax.records import read_dataset, write_dataset
from tmrjax.training.checkpoints import load_best

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"epochs": 3, "batch_size": 16, "eval_batch_size": 16, "devices": 1, "data.picture_size": 32,
         "data.picture_resize": 32}  # fmt: skip


def code_of_contributing():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "(Method" in block)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the module, on Python's path as the current folder of a command is."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_method.py").write_text(code_of_contributing())
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("outside") / "data"
    make_demo(root, posts=48, seed=1)
    config = root / "picture_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_sizes": [8, 16], "depths": [1, 1]}))
    return root


def config_for(world, **changes):
    config = get_config("demo", "own_method:PictureTagger")
    changes = {"rates": (("emission/kernel", 0.0),), "weight_decay": 0.0} | changes
    config.update_from_flattened_dict({"data.root": str(world), "model.size": 8, **SMALL, **changes})
    return config


@pytest.fixture(scope="module")
def finished(folder, world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("outside_runs") / "run"
    return workdir, experiment.run(config_for(world), workdir)


def test_it_is_as_long_as_said():
    assert 40 <= len(code_of_contributing().splitlines()) <= 60


def test_it_trains_with_its_own_options_inputs_and_losses(finished, world):
    workdir, report = finished
    assert report["method"] == "own_method:PictureTagger" and report["ablation"] == "none"
    variables, meta = load_best(workdir)
    assert meta["method"]["name"] == report["method"] and meta["model"]["size"] == 8
    words = {token.lower() for record in read_dataset(world).splits["train"] for token in record.tokens}
    assert set(meta["vocabularies"]["words"]) == words and meta["tokenizer"] is None
    params = variables["params"]
    assert params["embed_words"]["embedding"].shape == (len(words) + 2, 8) and "bert" not in params
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss_words" in line]
    assert steps and all(line["loss"] == pytest.approx(line["loss_head"] + line["loss_words"]) for line in steps)
    assert all(line["loss_words"] > 0 for line in steps)


def test_its_checkpoint_is_evaluated_and_predicts(finished):
    workdir, report = finished
    assert evaluate.evaluate(workdir, "test", devices=1)["f1"] == report["test"]["f1"]
    predictor = Predictor.load(workdir, devices=1)
    result = predictor.entities({"text": "neverseen words at the harbour"})
    assert result["unknown_words"] >= 1 and result["masked"] == ["picture"]


def test_the_commands_find_it_in_the_current_folder(finished, folder, world, tmp_path):
    workdir, _ = finished
    environment = os.environ | {"XLA_FLAGS": ""}

    def call(*arguments, cwd):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    changes = {
        "data.root": world,
        "model.size": 8,
        "rates": "(('emission/kernel', 0.0),)",
        "weight_decay": 0.0,
        **SMALL,
    }
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    run = call(
        ROOT / "experiments/mner.py", f"--config={ROOT}/experiments/configs/mner.py:demo",
        "--config.method=own_method:PictureTagger", f"--workdir={workdir}", *flags, cwd=folder,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr  # it is finished: the report is shown
    assert "method own_method:PictureTagger" in run.stdout
    posts = tmp_path / "posts.jsonl"
    posts.write_text(json.dumps({"text": "Jordan at the harbour"}) + "\n")
    output = tmp_path / "out.jsonl"
    script = ROOT / "experiments/predict.py"
    arguments = (script, f"--workdir={workdir}", f"--input={posts}", f"--output={output}")
    done = call(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["text"] == "Jordan at the harbour"
    other = f"--output={tmp_path / 'other.jsonl'}"
    lost = call(*arguments[:3], other, cwd=tmp_path)
    assert lost.returncode == 1 and "there is no module 'own_method'" in lost.stderr and "PYTHONPATH" in lost.stderr


def test_a_source_that_changed_since_is_said(finished, folder, caplog):
    source = folder / "own_method.py"
    before = source.read_text()
    try:
        source.write_text(before + "\n# changed\n")
        Predictor.load(finished[0], devices=1)
        assert "the source of the method own_method:PictureTagger is not the one" in caplog.text
    finally:
        source.write_text(before)
    caplog.clear()
    Predictor.load(finished[0], devices=1)
    assert "the source" not in caplog.text


def test_nothing_but_a_method_is_imported(folder, tmp_path, monkeypatch):
    """A checkpoint's name must not have a module imported that defines no such class."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "harm.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "plain.py").write_text("class Plain(dict):\n    pass\n")
    (tmp_path / "taskless.py").write_text(
        "from tmrjax.methods.base import Method\n\n\nclass Taskless(Method, kw_only=True):\n    pass\n"
    )
    for name, message in (
        ("harm:Harm", r"harm\.py defines no class Harm .*; it has no class"),
        ("plain:Plain", "plain:Plain is no method: it has to inherit from"),
        ("taskless:Taskless", 'write task = "ner" or task = "re"'),
        ("os:system", "defines no class system"),
        ("absent_module:A", "there is no module 'absent_module'"),
        ("own_method:../x", "is no module:Class"),
    ):
        with pytest.raises(ValueError, match=message):
            load_outside(name)
    assert "harm" not in sys.modules
    assert source_of("own_method:PictureTagger") == folder / "own_method.py"


def test_unknown_methods_and_wrong_tasks_are_told_with_what_there_is(folder):
    known = known_methods()
    assert known["tmr"] == ("ner", "re") and known["bert_crf"] == ("ner",) and known["mtb"] == ("re",)
    assert not {"base", "outside", "parts"} & set(known)
    with pytest.raises(ValueError, match=r"there is no method 'tmrr'; expected one of .*bert_crf.*, or module:Class"):
        find_method("tmrr", "ner")
    with pytest.raises(ValueError, match=r"'bert_crf' has no form for 're'; those that have are .*mtb.*tmr"):
        find_method("bert_crf", "re")
    with pytest.raises(ValueError, match=r"own_method:PictureTagger' is one for 'ner'"):
        find_method("own_method:PictureTagger", "re")


def test_inputs_that_the_data_lack_are_asked_for_by_stage(world, tmp_path):
    dataset = read_dataset(world)
    bare = {"image": None, "generated": None, "regions": (), "phrases": (), "scores": None, "generated_scores": None}
    splits = {
        split: [type(record)(**{**vars(record), **bare}) for record in records]
        for split, records in dataset.splits.items()
    }
    write_dataset(tmp_path / "data", {"name": "bare", "task": "ner", "labels": dataset.info.labels}, splits)
    for folder in ("text_encoder", "picture_encoder"):
        (tmp_path / "data" / folder).symlink_to(world / folder)
    config = get_config("demo", "tmr")
    config.update_from_flattened_dict({"data.root": str(tmp_path / "data"), **SMALL})
    with pytest.raises(DataError) as raised:
        experiment.run(config, tmp_path / "run")
    message = str(raised.value)
    assert "no record has phrases: run data_prep/extract_phrases.py" in message
    assert "no record has a picture" in message and "data_prep/score_divergence.py" in message
    assert "the inputs that the method tmr asks for" in message
    assert not (tmp_path / "run").exists()


def test_options_of_another_method_are_named(world, tmp_path):
    config = get_config("demo", "tmr")
    config.update_from_flattened_dict({"data.root": str(world), "method": "bert_crf", **SMALL})
    with pytest.raises(ValueError, match=r"config\.model has grains, literal, .*get_config\(NAME, method='bert_crf'\)"):
        experiment.run(config, tmp_path / "run")


def test_the_rates_of_patterns_come_before_the_methods_own(finished, world, tmp_path):
    """A rate of zero for one matrix: it stays as it was drawn, the bias beside it moves."""
    config, dataset = config_for(world), read_dataset(world)
    drawn = build.initial_variables(config, dataset, build.build_system(config, dataset))["params"]["emission"]
    trained = load_best(finished[0])[0]["params"]["emission"]
    np.testing.assert_array_equal(trained["kernel"], drawn["kernel"])
    assert np.abs(trained["bias"] - drawn["bias"]).max() > 0
    with pytest.raises(ValueError, match="is no regular expression"):
        experiment.run(config_for(world, rates=(("emission/(", 1.0),)), tmp_path / "other")
