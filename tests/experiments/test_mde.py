"""The estimator's commands end to end on a corpus of coloured squares: train, resume, evaluate, several processes."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from experiments import evaluate_mde
from experiments.configs.mde import get_config
from experiments.lib import experiment, pairs
from experiments.lib.build_estimator import build_estimator, initial_variables
from experiments.lib.measuring import Timer
from tmrjax import compilation
from tmrjax.compilation import Compiled
from tmrjax.divergence import score
from tmrjax.divergence.corpus import CLASSES, Pair, open_corpus, write_corpus
from tmrjax.divergence.system import Estimator
from tmrjax.files import DataError
from tmrjax.training.checkpoints import CheckpointError, CheckpointStore, load_best
from tmrjax.training.sharding import make_mesh, replicate

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "grey": (120, 120, 120)}
STYLES = {"captions": "a {} square on a wall .", "tweets": "omg {} again lol"}
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    *COLOURS,
    *["a", "square", "on", "wall", "omg", "again", "lol", "and"],
)


def picture(colour: str, random) -> tuple[bytes, int, int]:
    height, width = ((16, 16), (16, 24))[random.integers(2)]
    noise = random.integers(-20, 20, (height, width, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), height, width


def make_pairs(count: int, seed: int, *, classes=(0, 1, 2), text="{}"):
    random = np.random.default_rng(seed)
    for number in range(count):
        label, colour = classes[number % len(classes)], random.choice(list(COLOURS))
        source = {1: "tweets", 2: "captions"}.get(label) or random.choice(list(STYLES))
        shown = random.choice([other for other in COLOURS if other != colour]) if label == 0 else colour
        image, height, width = picture(shown, random)
        words = text.format(STYLES[source].format(colour))
        yield Pair(f"{seed}-{number}", words, label, source, "in", image, height, width)


def make_corpus(root: Path, **splits) -> Path:
    write_corpus(root, splits, name="squares", source_names=tuple(STYLES), synthetic=True, seed=1)
    (root / "text_encoder").mkdir()
    (root / "text_encoder" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(
        tmp_path_factory.mktemp("corpus") / "squares",
        train=make_pairs(120, 0),
        dev=make_pairs(45, 1),
        test=make_pairs(37, 2),
        # Longer than the limit of 10 pieces.
        test_out_of_domain=make_pairs(20, 3, text="{} and red and blue and green"),
    )


SMALL = {
    "data.max_pieces": 10, "data.length_buckets": (), "data.picture_size": 16, "data.picture_longest": 24,
    "sizes.hidden": 16, "sizes.layers": 1, "sizes.heads": 2, "sizes.intermediate": 32, "sizes.patch": 8,
    "sizes.grid_size": 16, "model.dropout": 0.0, "batch_size": 24, "eval_batch_size": 16, "steps": 18,
    "evaluate_every": 6, "lr": 3e-3, "data.picture_square": True, "log_every": 3, "devices": 1,
    "mode": "supervised_contrastive",
}  # fmt: skip


def small_config(corpus: Path, **changes):
    config = get_config("demo")
    config.update_from_flattened_dict({"data.root": str(corpus), **SMALL, **changes})
    return config


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> tuple[Path, dict]:
    workdir = tmp_path_factory.mktemp("runs") / "contrast"
    return workdir, experiment.run(small_config(corpus), workdir)


def losses(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_leaves_a_report_and_a_checkpoint_of_its_best_step(finished, corpus):
    workdir, report = finished
    assert json.loads((workdir / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (report["task"], report["mode"], report["variant"], report["steps"]) == (
        "mde", "supervised_contrastive", "both", 18,
    )  # fmt: skip
    assert report["data"]["synthetic"] and report["data"]["pairs"]["dev"] == dict.fromkeys(CLASSES, 15)
    assert set(report["dev"]) == {"macro_f1", "micro_f1", "ece", "log_loss"}
    assert report["best_step"] in (6, 12, 18) and report["examples_per_second"] > 0
    assert report["test"]["records"] == 37 and report["test_out_of_domain"]["records"] == 20
    assert sum(sum(row.values()) for row in report["test"]["confusion"].values()) == 37
    evaluations = [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines() if "dev/ece" in line
    ]
    assert evaluations == [6, 12, 18]
    assert len(losses(workdir)) == 6 and np.isfinite(losses(workdir)).all()


def test_texts_over_the_limit_are_counted(finished):
    _, report = finished
    assert report["train_texts"] == {"cut": 0, "without_pieces": 0} and report["test"]["texts_cut"] == 0
    assert report["test_out_of_domain"]["texts_cut"] == 20


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_of_the_checkpoint_gives_the_runs_figures(finished, devices, capsys):
    workdir, report = finished
    again = evaluate_mde.evaluate(workdir, devices=devices)
    for split in ("test", "test_out_of_domain"):
        assert again[split]["confusion"] == report[split]["confusion"]
        assert again[split]["log_loss"] == pytest.approx(report[split]["log_loss"], rel=1e-5)
    printed = capsys.readouterr().out
    assert "SYNTHETIC DATA" in printed and "test_out_of_domain" in printed and "macro F1" in printed


def test_a_checkpoint_stands_alone_and_scores_pairs_by_itself(finished):
    workdir, _ = finished
    estimator, variables, meta = Estimator.load(workdir)
    assert Estimator.from_meta(json.loads(json.dumps(estimator.to_meta()))).to_meta() == estimator.to_meta()
    assert meta["task"] == "mde"
    pairs = list(make_pairs(3, 9))
    found = np.asarray(score(estimator.model, variables, estimator.collate(pairs, (10, 16, 16))))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    alone = score(estimator.model, variables, estimator.collate(pairs[1:2], (10, 24, 24)))
    np.testing.assert_allclose(found[1:2], alone, atol=1e-5)  # neither its neighbours nor its padding


def test_an_interrupted_run_ends_as_if_it_never_was(finished, corpus, tmp_path, monkeypatch):
    evaluate_split, calls = pairs.evaluate_split, []

    def interrupted(*arguments):
        calls.append(len(calls))
        if len(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return evaluate_split(*arguments)

    monkeypatch.setattr(pairs, "evaluate_split", interrupted)
    workdir = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        experiment.run(small_config(corpus), workdir)
    assert stopped.value.code == 128 + signal.SIGTERM and not (workdir / "report.json").exists()
    report = experiment.run(small_config(corpus), workdir)
    first, second = (load_best(path)[0]["params"] for path in (workdir, finished[0]))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert report["test"] == finished[1]["test"] and losses(workdir) == losses(finished[0])


@pytest.mark.slow
def test_the_contrast_over_two_processes_is_that_of_one(finished, corpus, tmp_path):
    """Two processes of two devices each: the losses of one device, which a contrast within processes would not give."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    overrides = {"data.root": corpus, **SMALL, "devices": 0}
    arguments = [
        sys.executable, "experiments/mde.py", "--config=experiments/configs/mde.py:demo", f"--workdir={tmp_path}/run",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
        f"--coordinator=localhost:{port}", "--processes=2",
    ]  # fmt: skip
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    processes = [
        subprocess.Popen(
            [*arguments, f"--process={index}"], cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["devices"] == 4
    # Later Adam blows rounding up where gradients are all but zero.
    found, expected = losses(tmp_path / "run"), losses(finished[0])
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-4)
    np.testing.assert_allclose(found, expected, rtol=0.1)
    assert found[0] > np.log(23)  # the contrast among 24 rows; among a process's 12 it would be near log 11 + log 3


def test_what_cannot_be_trained_is_said_before_anything_is_computed(corpus, tmp_path):
    with pytest.raises(ValueError, match="no corpus was given"):
        experiment.run(get_config("base"), tmp_path / "a")
    with pytest.raises(DataError, match="no such file"):
        experiment.run(small_config(tmp_path), tmp_path / "b")
    one_missing = make_corpus(tmp_path / "two", train=make_pairs(6, 0, classes=(0, 2)), dev=make_pairs(3, 1))
    with pytest.raises(DataError, match="no pair of the class complement in the split 'train'"):
        experiment.run(small_config(one_missing), tmp_path / "c")
    with pytest.raises(ValueError, match="choose_by is 'f1'; expected one of macro_f1, micro_f1, ece, log_loss"):
        experiment.run(small_config(corpus, choose_by="f1"), tmp_path / "g")
    with pytest.raises(ValueError, match="no mode 'contrast'"):
        experiment.run(small_config(corpus, mode="contrast"), tmp_path / "d")
    with pytest.raises(FileNotFoundError, match=r"no such folder\. Give a Hugging Face ViLT"):
        experiment.run(small_config(corpus, **{"text_encoder.folder": str(tmp_path / "none")}), tmp_path / "e")
    with pytest.raises(ValueError, match=r"pictures are cut to multiples of 8|expected a multiple of 8"):
        experiment.run(small_config(corpus, **{"data.picture_size": 12}), tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["two"]  # a start that failed claims nothing


def test_checkpoints_of_another_kind_are_refused(finished, tmp_path):
    store = CheckpointStore(tmp_path / "tagger" / "best")
    store.save(1, {"params": {"x": np.zeros(1)}}, {"task": "ner"})
    store.close()
    with pytest.raises(CheckpointError, match=r"for the task 'ner', but a divergence estimator \('mde'\) is needed"):
        Estimator.load(tmp_path / "tagger")
    meta = Estimator.load(finished[0])[0].to_meta()
    with pytest.raises(CheckpointError, match="a checkpoint with the classes"):
        Estimator.from_meta(meta | {"labels": ["weaken", "strengthen"]})


def test_settings_that_the_model_does_not_have_are_refused(finished):
    estimator = Estimator.load(finished[0])[0]
    meta = estimator.to_meta()
    for change, message in (
        ({"texts": {"max_pieces": 10, "buckets": [8]}}, "longest bucket 8 is below max_pieces 10"),
        ({"texts": {"max_pieces": 11, "buckets": []}}, "texts of 11 word pieces, but the model has 10 positions"),
        ({"pictures": {**meta["pictures"], "size": 12, "divisor": 12}}, "multiples of 12, but the model's patches"),
    ):
        with pytest.raises(ValueError, match=message):
            Estimator.from_meta(meta | change)


def test_weights_of_a_vilt_and_of_a_berts_text_side_are_where_training_begins(corpus, tmp_path):
    sizes = {
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 12,
    }  # fmt: skip
    vilt = transformers.ViltModel(transformers.ViltConfig(**sizes, image_size=16, patch_size=8))
    bert = transformers.BertModel(transformers.BertConfig(**sizes))
    for name, model in (("vilt", vilt), ("bert", bert)):
        model.save_pretrained(tmp_path / name)
        shutil.copy(corpus / "text_encoder" / "vocab.txt", tmp_path / name)
    # A model of the text only has no patches; the other weights of the folder are taken all the same.
    config = small_config(corpus, **{"encoder.folder": str(tmp_path / "vilt"), "model.variant": "text"})
    estimator = build_estimator(config, corpus)
    params = initial_variables(config, corpus, estimator)["params"]["vilt"]
    for folder in (str(tmp_path / "vilt"), ""):
        # As the authors' ViLT: hidden states are dropped, attention weights are not.
        sizes = build_estimator(small_config(corpus, **{"encoder.folder": folder, "model.dropout": 0.25}), corpus).model
        assert (sizes.vilt.hidden_dropout_prob, sizes.vilt.attention_probs_dropout_prob) == (0.25, 0.0)
    assert estimator.model.vilt.max_position_embeddings == 12 and "patch_embeddings" not in params
    np.testing.assert_array_equal(params["pooler"]["kernel"].T, vilt.pooler.dense.weight.detach())
    changes = {"text_encoder.folder": str(tmp_path / "bert"), "text_encoder.weights": "pretrained"}
    config = small_config(corpus, **changes)
    params = initial_variables(config, corpus, build_estimator(config, corpus))["params"]["vilt"]
    np.testing.assert_array_equal(
        params["text_embeddings"]["position"]["embedding"], bert.embeddings.position_embeddings.weight.detach()[:10]
    )
    wider = small_config(corpus, **changes, **{"sizes.hidden": 18})
    with pytest.raises(ValueError, match=r"word/embedding \(18, 16\), here \(18, 18\)"):
        initial_variables(wider, corpus, build_estimator(wider, corpus))


def test_a_step_is_compiled_once_per_shape_of_any_array(monkeypatch):
    """What a compilation leaves of memory is given back each time."""
    returned = []
    monkeypatch.setattr(compilation, "return_memory", lambda: returned.append(True))
    compiled = Compiled(jax.jit(lambda state, batch: state + batch["pixel_values"].sum()), Timer())
    for width in (2, 3, 2, 3):
        batch = {"input_ids": np.ones(2), "pixel_values": np.ones((2, width))}
        assert compiled(np.float32(1), batch) == 1 + 2 * width
    assert len(returned) == 2


def test_scores_are_the_same_on_any_number_of_devices(finished, corpus):
    estimator, variables, _ = Estimator.load(finished[0])
    split = open_corpus(corpus)["test"]
    results = []
    for devices, size in ((1, 5), (8, 16)):
        mesh = make_mesh(devices)
        batches, _ = estimator.batches(split, size)
        results.append(estimator.scores(estimator.score_step(mesh), replicate(variables, mesh), batches, mesh))
    assert np.isfinite(results[0]).all()
    np.testing.assert_allclose(*results, atol=1e-5)
