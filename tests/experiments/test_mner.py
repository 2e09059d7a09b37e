"""The commands end to end on a small demo world: train, resume, evaluate, predict, several devices and processes."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest
import torch
import transformers

from data_prep.make_demo import make_demo
from experiments import evaluate
from experiments.configs.mner import get_config
from experiments.lib import build, command, experiment, workdirs
from experiments.lib.posts import PostExperiment
from experiments.lib.settings import buckets_of, check_settings
from tmrjax.predict import Predictor
from tmrjax.records import read_dataset, write_dataset
from tmrjax.tasks.comparison import counts_of_entities, micro_f1
from tmrjax.text.tags import spans_from_tags
from tmrjax.training.checkpoints import CheckpointError, load_best

ROOT = Path(__file__).resolve().parents[2]
# One bucket and few posts: each run compiles two programs and takes a dozen steps.
SMALL = {
    "data.max_pieces": 40, "data.buckets": (40,), "batch_size": 8, "eval_batch_size": 16, "epochs": 2, "log_every": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world") / "data"
    make_demo(root, posts=60, seed=1)
    return root


# Long enough to find some entities; split over two devices.
LONG = {"epochs": 12, "lr_encoder": 3e-3, "lr_fusion": 1e-2, "devices": 2, "log_every": 6, "batch_size": 14}


def small_config(world: Path, method: str = "tmr", **changes):
    config = get_config("demo", method)
    config.update_from_flattened_dict({"data.root": str(world), **SMALL, **changes})
    return config


def arrays_of(workdir: Path):
    return load_best(workdir)[0]["params"]


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory) -> tuple[Path, dict]:
    workdir = tmp_path_factory.mktemp("runs") / "full"
    return workdir, experiment.run(small_config(world, **LONG), workdir)


@pytest.fixture(scope="module")
def predictor(finished) -> Predictor:
    return Predictor.load(finished[0], devices=1)


def test_a_run_leaves_a_report_metrics_and_a_checkpoint(finished, world):
    workdir, report = finished
    assert json.loads((workdir / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (report["task"], report["method"], report["dataset"], report["devices"]) == ("ner", "tmr", "demo", 2)
    assert report["data"]["synthetic"] and not report["leaky_phrases"] and report["steps"] == 36
    assert {"precision", "recall", "f1"} <= set(report["dev"]) and "lenient_f1" in report["test"]
    assert report["seconds_per_step"] > 0 and report["compile_seconds"] > 0
    assert 0 <= report["waiting_share"] <= 1 and report["peak_memory"]["host"] > 2**28
    assert report["data"]["files"] == dict(read_dataset(world).info.files)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(3, 37, 3))
    # 4 of 36 steps of warm-up: the second update, behind one, has a quarter of the rate; the last one 1 / 32.
    rates = {line["step"]: line["learning_rate/fusion"] for line in lines if "loss" in line}
    assert rates[3] == pytest.approx(1e-2 * 2 / 4) and rates[36] == pytest.approx(1e-2 / 32)
    assert [line["epoch"] for line in lines if "epoch" in line] == list(range(1, 13))
    assert list((workdir / "tensorboard").iterdir())
    assert np.isfinite([leaf for tree in jax.tree.leaves(arrays_of(workdir)) for leaf in np.ravel(tree)]).all()


def test_predictions_of_dev_and_test_are_kept_with_what_they_belong_to(finished, world, tmp_path):
    workdir, report = finished
    dataset = read_dataset(world)
    for split in ("dev", "test"):
        path = workdir / "predictions" / f"{split}.jsonl"
        about = json.loads(path.with_name(f"{split}.jsonl.about.json").read_text())
        assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert about["split"] == split and about["posts"] == len(dataset.splits[split])
        assert about["data"]["files"] == dict(dataset.info.files) and about["best"]["epoch"] == report["best_epoch"]
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        correct = found = 0
        for record, line in zip(dataset.splits[split], lines, strict=True):
            assert (line["id"], line["tokens"]) == (record.id, list(record.tokens))
            gold = {(s["start"], s["end"], s["label"]) for s in line["gold"]}
            assert gold == {tuple(span) for span in spans_from_tags(record.tags, strict=True)}
            assert all(0 < s["probability"] <= 1 for s in line["predicted"])
            found += len(line["predicted"])
            correct += len(gold & {(s["start"], s["end"], s["label"]) for s in line["predicted"]})
        assert found > 0 and correct / found == report[split]["precision"]
    evaluate.evaluate(workdir, "test", devices=1, predictions=tmp_path / "again.jsonl")
    again, kept = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (tmp_path / "again.jsonl", workdir / "predictions" / "test.jsonl")
    )
    for one, other in zip(again, kept, strict=True):
        assert [{**span, "probability": 0} for span in one["predicted"]] == [
            {**span, "probability": 0} for span in other["predicted"]
        ]
    meta = load_best(workdir)[1]
    assert json.loads((tmp_path / "again.jsonl.about.json").read_text())["config_sha256"] == about["config_sha256"]
    assert about["config_sha256"] == command.config_hash(meta["config"])


def test_a_part_of_the_training_posts_does_not_look_like_all_of_them(finished, world, capsys):
    report = finished[1]
    posts = len(read_dataset(world).splits["train"])
    assert report["fraction"] == 1 and report["train_posts"] == {"used": posts, "of": posts}
    show = PostExperiment(small_config(world)).show
    show(report)
    assert "% of train" not in capsys.readouterr().out
    show(report | {"fraction": 0.1, "train_posts": {"used": 4, "of": 40}})
    assert "left out: none, 10 % of train (4 of 40 posts), seed 0" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"report\.json: damaged or of an older version"):
        workdirs.finished_report(broken_copy(finished[0]), show)


def broken_copy(workdir: Path) -> Path:
    copy = workdir.parent / "broken"
    copy.mkdir(exist_ok=True)
    report = json.loads((workdir / "report.json").read_text())
    del report["train_posts"]
    (copy / "report.json").write_text(json.dumps(report))
    return copy


def test_a_finished_run_is_not_run_again(finished, world, capsys):
    workdir, report = finished
    before = (workdir / "report.json").stat().st_mtime_ns
    assert experiment.run(small_config(world, **LONG), workdir) == json.loads(json.dumps(report))
    assert (workdir / "report.json").stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert "strict IOB2" in printed and "SYNTHETIC DATA" in printed


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluate_reproduces_the_runs_figures_exactly(finished, devices):
    workdir, report = finished
    again = evaluate.evaluate(workdir, "test", devices=devices)
    assert {name: again[name] for name in report["test"]} == report["test"]


def test_the_same_run_beside_other_pictures(finished, world, tmp_path, capsys):
    """Kinds, their test against the post's own, a file of predictions for each; nothing is written into the data."""
    workdir, report = finished
    before = sorted(path for path in world.rglob("*") if path.is_file())
    found = evaluate.evaluate(
        workdir, "test", pictures=["shuffled", "none", "grey"], devices=1, predictions=tmp_path / "test.jsonl"
    )
    assert sorted(path for path in world.rglob("*") if path.is_file()) == before
    assert found["f1"] == report["test"]["f1"] == found["pictures"]["own"]["f1"]
    assert (
        list(found["pictures"]) == ["own", "none", "shuffled", "grey"] and "against_own" not in found["pictures"]["own"]
    )
    own = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    for kind in ("none", "shuffled", "grey"):
        of_kind, path = found["pictures"][kind], tmp_path / f"test-{kind}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["gold"] for row in rows] == [row["gold"] for row in own] and rows != own
        counts = counts_of_entities(rows)
        assert micro_f1(counts.sum(0)) == pytest.approx(of_kind["f1"])
        against = of_kind["against_own"]
        assert against["difference"] == pytest.approx(of_kind["f1"] - found["f1"])
        assert against["posts_scored_otherwise"] == (counts != counts_of_entities(own)).any(1).sum()
        assert against["p_value"] <= against["p_value_holm"] <= 1
        about = json.loads(path.with_name(f"{path.name}.about.json").read_text())
        assert (about["pictures"], about["seed"], about["workdir"]) == (kind, 0, str(workdir))
    assert "Does the picture matter? demo test, tmr" in capsys.readouterr().out


def test_pixels_give_the_predictions_of_cached_features(finished, predictor, world):
    """predict.py decodes pictures; training read the feature cache: the same entities come out."""
    _, report = finished
    records = read_dataset(world).splits["test"]
    posts = [
        {"tokens": list(r.tokens), "image": r.image, "regions": [list(box) for box in r.regions],
         "phrases": list(r.phrases), "scores": r.scores and list(r.scores),
         "generated_image": r.generated and r.generated.image,
         "generated_regions": [list(box) for box in r.generated.regions] if r.generated else [],
         "generated_scores": r.generated_scores and list(r.generated_scores)}
        for r in records
    ]  # fmt: skip
    results = predictor.entities(posts, root=world, batch_size=4)
    found = sum(len(result["entities"]) for result in results)
    correct = 0
    for record, result in zip(records, results, strict=True):
        starts = np.cumsum([0, *(len(token) + 1 for token in record.tokens)])
        gold = {(starts[s], starts[e] - 1, label) for s, e, label in spans_from_tags(record.tags, strict=True)}
        correct += len(gold & {(e["start"], e["end"], e["label"]) for e in result["entities"]})
        for entity in result["entities"]:
            assert result["text"][entity["start"] : entity["end"]] == entity["text"]
            assert 0 < entity["score"] <= 1
    assert found > 0
    assert report["test"]["precision"] == (correct / found)
    assert report["test"]["recall"] == correct / report["test"]["support"]


def test_one_post_or_many_raw_text_without_pictures(finished, caplog):
    predictor = Predictor.load(finished[0], devices=1)
    text = "RT 👍🏽 Jordan\u200b at the harbour!"
    one = predictor.entities({"text": text})
    many = predictor.entities([{"text": text}, {"text": "so tired today", "id": 7}])
    assert [e["label"] for e in many[0]["entities"]] == [e["label"] for e in one["entities"]]
    assert [e["text"] for e in one["entities"]] == [text[e["start"] : e["end"]] for e in one["entities"]]
    assert one["masked"] == ["picture", "generated picture"] and many[1]["id"] == 7
    assert caplog.text.count("posts come without generated picture: that input is masked") == 1
    assert predictor.entities([]) == []


@pytest.mark.parametrize(
    ("post", "message"),
    [
        ({"txet": "a"}, "Did you mean 'text'"),
        ({"text": "a", "tokens": ["a"]}, "both 'text' and 'tokens'"),
        ({"text": " \u200b"}, "no word"),
        ({"text": "a", "image": "missing.jpg"}, r"missing\.jpg.*no such file"),
        ({"text": "a", "scores": [0.5, 0.5, 0.5]}, "sum"),
        ({"text": "a", "image": "x.jpg", "regions": [[0, 0, 2, 1]]}, "outside the picture"),
    ],
)
def test_bad_posts_are_named(predictor, post, message):
    with pytest.raises(ValueError, match=message):
        predictor.entities([post])


def test_a_workdir_of_another_run_is_refused(finished, world, tmp_path):
    with pytest.raises(CheckpointError, match=r"belongs to another run(.|\n)*seed: 0 → 5"):
        experiment.run(small_config(world, **LONG, **{"seed": 5}), finished[0])
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="neither empty nor the workdir of a run"):
        experiment.run(small_config(world), tmp_path)


def test_changed_data_make_another_run(tmp_path):
    for _ in range(2):
        with workdirs.claimed_workdir(tmp_path / "run", {"dataset": {"files": {"train.jsonl": "a"}}}):
            pass
    with pytest.raises(CheckpointError, match=r"dataset\.files\.train\.jsonl: 'a' → 'b'"):
        workdirs.check_workdir(tmp_path / "run", {"dataset": {"files": {"train.jsonl": "b"}}})


def test_data_with_other_labels_is_refused(finished, world, tmp_path):
    dataset = read_dataset(world)
    records = [
        type(r)(**{**r.__dict__, "tags": ("O",) * len(r.tokens), "image": None, "generated": None, "regions": ()})
        for r in dataset.splits["test"]
    ]
    write_dataset(tmp_path, {"name": "other", "task": "ner", "labels": ("PER", "LOC")}, {"test": records})
    with pytest.raises(CheckpointError, match=r"was trained for 'ner' with \['PER', 'LOC', 'ORG', 'MISC'\]"):
        evaluate.evaluate(finished[0], data=str(tmp_path), devices=1)


def test_what_is_missing_is_said_before_anything_is_computed(world, tmp_path):
    with pytest.raises(ValueError, match="no data set was given"):
        experiment.run(get_config("twitter2017"), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"safetensors"):
        experiment.run(small_config(world, **{"text_encoder.weights": "pretrained"}), tmp_path / "b")
    with pytest.raises(ValueError, match="freeze_pictures=True"):
        experiment.run(small_config(world, **{"model.freeze_pictures": False}), tmp_path / "c")
    with pytest.raises(ValueError, match="expected one of pretrained, random"):
        experiment.run(small_config(world, **{"text_encoder.weights": "rnadom"}), tmp_path / "d")
    with pytest.raises(ValueError, match=r"data\.max_pieces is 600, but .*text_encoder reads at most 128 word pieces"):
        experiment.run(small_config(world, **{"data.max_pieces": 600}), tmp_path / "e")
    assert not list(tmp_path.iterdir())  # a start that failed claims nothing


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0), ("eval_batch_size", -1), ("data.max_pieces", 1), ("seed", -1), ("epochs", 0), ("clip", 0.0),
        ("data.fraction", float("nan")), ("data.fraction", 1.5), ("lr_encoder", -1e-5), ("lr_fusion", float("inf")),
        ("warmup", 1.5), ("weight_decay", -0.1), ("accumulate", 0), ("devices", -1), ("log_every", 0),
        ("data.num_threads", 0), ("model.dropout", 1.0), ("model.dtype", "float8"), ("data.on_error", "ignore"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_the_name_of_their_key(world, tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"--config\.{key} is .*; expected "):
        experiment.run(small_config(world, **{key: value}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_frozen_pictures_with_moving_statistics_are_refused():
    config = get_config("demo")
    config.model.batch_norm = "train"
    with pytest.raises(ValueError, match=r"batch_norm='train' moves the statistics of the ResNet that model\.freeze"):
        check_settings(config)
    config.model.freeze_pictures = False
    check_settings(config)


def test_max_pieces_alone_sets_the_buckets():
    config = get_config("twitter2017")
    assert buckets_of(config.data) == (24, 32, 40, 56, 80)
    config.data.max_pieces = 300
    assert buckets_of(config.data) == (24, 32, 40, 56, 80, 128, 256, 300)
    config.data.max_pieces, config.data.buckets = 60, (50, 24, 80)
    assert buckets_of(config.data) == (24, 50, 60)


def pretrained_folders(folder: Path, world: Path) -> tuple[Path, Path, dict, dict]:
    """A BERT and a ResNet of the demo's sizes as transformers saves them, and their torch weights."""
    transformers.set_seed(5)
    found = []
    for name, config, model in (
        ("text_encoder", transformers.BertConfig, transformers.BertModel),
        ("picture_encoder", transformers.ResNetConfig, transformers.ResNetModel),
    ):
        built = model(config.from_pretrained(world / name))
        for module in built.modules():  # a fresh norm has the values that a forgotten one has
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
                for tensor in (*module.parameters(), *module.buffers()):
                    if tensor.dtype.is_floating_point:
                        tensor.data.uniform_(0.5, 1.5)
        built.save_pretrained(folder / name)
        for file in ("vocab.txt", "tokenizer_config.json"):
            if (world / name / file).exists():
                shutil.copy(world / name / file, folder / name)
        found.append({key: value.numpy() for key, value in built.state_dict().items()})
    return folder / "text_encoder", folder / "picture_encoder", *found


def starts_from(config, world: Path, folder: Path) -> None:
    """The model of a config with pretrained encoders holds exactly the weights of their folders."""
    text, picture, bert, resnet = pretrained_folders(folder, world)
    for name, path in (("text_encoder", text), ("picture_encoder", picture)):
        config[name].folder, config[name].weights = str(path), "pretrained"
    dataset = read_dataset(world)
    system = build.build_system(config, dataset)
    variables = build.initial_variables(config, dataset, system)
    ours, stem = variables["params"]["bert"], variables["params"]["picture_encoder"]["resnet"]["stem"]
    equal = np.testing.assert_array_equal
    equal(ours["embeddings"]["word"]["embedding"], bert["embeddings.word_embeddings.weight"])
    for layer in range(system.method.text.num_hidden_layers):
        theirs = f"encoder.layer.{layer}"
        equal(ours[f"layer_{layer}"]["attention"]["query"]["kernel"].T, bert[f"{theirs}.attention.self.query.weight"])
        equal(ours[f"layer_{layer}"]["output"]["kernel"].T, bert[f"{theirs}.output.dense.weight"])
        equal(ours[f"layer_{layer}"]["output_norm"]["scale"], bert[f"{theirs}.output.LayerNorm.weight"])
    first = "embedder.embedder"
    equal(stem["kernel"].transpose(3, 2, 0, 1), resnet[f"{first}.convolution.weight"])
    equal(stem["scale"], resnet[f"{first}.normalization.weight"])
    statistics = variables["batch_stats"]["picture_encoder"]["resnet"]["stem"]
    equal(statistics["mean"], resnet[f"{first}.normalization.running_mean"])
    equal(statistics["var"], resnet[f"{first}.normalization.running_var"])
    config.text_encoder.weights = config.picture_encoder.weights = "random"
    other = build.initial_variables(config, dataset, system)["params"]
    assert np.abs(other["bert"]["embeddings"]["word"]["embedding"] - ours["embeddings"]["word"]["embedding"]).max() > 0


def test_a_run_with_pretrained_encoders_starts_from_exactly_their_weights(world, tmp_path):
    starts_from(small_config(world), world, tmp_path)


# ---------------------------------------------------------------------- processes


def command_line(world: Path, workdir: Path, *extra: str) -> list[str]:
    overrides = {"method": "bert_crf", "data.root": world, **SMALL, **dict(item.split("=", 1) for item in extra)}
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    config = "--config=experiments/configs/mner.py:demo"
    return [sys.executable, "experiments/mner.py", config, f"--workdir={workdir}", *flags]


def environment(devices: int = 1) -> dict[str, str]:
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return os.environ | {"XLA_FLAGS": flags}


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    return output


def start(arguments: list[str], devices: int = 1, extra: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen:
    env = {**environment(devices), **extra}
    return subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    imports = {"PYTHONPROFILEIMPORTTIME": "1"}
    output = finish(start(command_line(world, workdir, "epochs=4"), extra=imports))
    (workdir.parent / "output.txt").write_text(output)
    return workdir


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) > 4, reason="transformers 5 imports torch unasked")
def test_a_command_does_not_wait_for_torch(uninterrupted):
    """tensorboardX and transformers import it wherever it is installed, which takes seconds of every start."""
    output = (uninterrupted.parent / "output.txt").read_text()
    imported = set(re.findall(r"^import time: .*\| +(\S+)$", output, re.MULTILINE))
    assert {"tensorboardX", "transformers", "jax"} <= imported
    assert not [name for name in imported if name.startswith("torch.")]


def test_a_run_told_to_stop_resumes_to_the_same_bits(world, uninterrupted, tmp_path):
    process = start(command_line(world, tmp_path / "run", "epochs=4"))
    deadline = time.time() + 300
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = finish(process, 128 + signal.SIGTERM)
    assert "and saved; the same command resumes" in output
    assert not (tmp_path / "run" / "report.json").exists()
    assert "resumed at step" in finish(start(command_line(world, tmp_path / "run", "epochs=4")))
    jax.tree.map(np.testing.assert_array_equal, arrays_of(tmp_path / "run"), arrays_of(uninterrupted))
    first, second = (json.loads((path / "report.json").read_text()) for path in (tmp_path / "run", uninterrupted))
    assert first["test"] == second["test"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_two_processes_learn_what_one_does(world, uninterrupted, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = [*command_line(world, tmp_path / "run", "epochs=4"), f"--coordinator=localhost:{port}", "--processes=2"]
    processes = [start([*arguments, f"--process={index}"], devices=2) for index in range(2)]
    outputs = [finish(process) for process in processes]
    assert "strict IOB2" in outputs[0] and "strict IOB2" not in outputs[1]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["devices"] == 4
    single = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    double = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (single, double)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_a_misspelt_key_is_refused(world, tmp_path):
    output = finish(start(command_line(world, tmp_path / "run", "lr_encodr=1")), 2)
    assert "lr_encodr" in output and "lr_encoder" in output
    assert not (tmp_path / "run").exists()
