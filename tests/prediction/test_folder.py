"""A model as a folder: equal predictions, every damage noticed, a card that tells what figures are worth, the hub."""

import json
import shutil

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

from experiments import export
from tests.prediction.test_predict import (  # noqa: F401 - fixtures
    random_variables,
    root,
    text_reader,
    tokenizer,
    with_pictures,
)
from tmrjax.predict import Predictor
from tmrjax.prediction.card import model_card
from tmrjax.prediction.folder import FILES, is_folder
from tmrjax.training.checkpoints import BEST, CheckpointError, CheckpointStore

POSTS = ["Jordan at the harbour", {"text": "the harbour", "image": "a.png"}]
META = {
    "config": {"seed": 3, "data": {"root": "/home/ada/data/small"}, "text_encoder": {"folder": "/home/ada/BERT/"}},
    "dataset": {"name": "small", "files": {"test.jsonl": "ab" * 32}, "labels_sha256": {"test": "cd" * 32},
                "synthetic": True, "leaky_phrases": False, "leaky_regions": True},
    "encoders": {"text": {"name": "/home/ada/BERT", "revision": None}},
    "best": {"step": 7, "epoch": 2, "f1": 0.5}, "versions": {"jax": "0"},
}  # fmt: skip
REPORT = {
    "task": "ner", "seed": 3, "best_epoch": 2, "steps": 1234, "dev": {"f1": 0.5}, "label_version": "Twitter-2017",
    "test": {"precision": 0.25, "recall": 0.5, "f1": 1 / 3, "support": 8,
             "per_label": {"PER": {"precision": 1.0, "recall": 0.125, "f1": 0.2222, "support": 8}}},
    "calibration": {"test": {"answers": 40, "accuracy": 0.75, "mean_probability": 0.875, "ece": 0.125}},
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor(with_pictures):  # noqa: F811
    system = with_pictures.system
    return Predictor(system, random_variables(system), system.to_meta() | META, devices=1)


@pytest.fixture(scope="module")
def saved(predictor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    predictor.save(folder, report=REPORT, name="ada/small", languages=["en"], licence="mit")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_predictions_are_equal_to_the_last_bit(predictor, saved, root):  # noqa: F811
    again = Predictor.load(saved, devices=1)
    assert again.entities(POSTS, root=root) == predictor.entities(POSTS, root=root)
    assert any(result["entities"] for result in again.entities(POSTS, root=root))
    assert again.identity() == predictor.identity()
    jax.tree.map(np.testing.assert_array_equal, again.variables, predictor.variables)
    assert {path.name for path in saved.iterdir()} == set(FILES) - {"merges.json"}
    assert is_folder(saved) and not is_folder(saved.parent)


def test_bfloat16_is_half_the_size_and_rounds_matrices_alone(predictor, saved, tmp_path):
    predictor.save(tmp_path / "small", dtype="bfloat16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "small", saved)]
    assert sizes[0] < 0.75 * sizes[1]  # so tiny a model is mostly names
    again = Predictor.load(tmp_path / "small", devices=1)

    def check(rounded, exact):
        expected = exact if np.ndim(exact) < 2 else np.asarray(exact).astype(jax.numpy.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(rounded, expected)

    jax.tree.map(check, again.variables, predictor.variables)
    with pytest.raises(ValueError, match="no temperature was fitted"):
        Predictor.load(tmp_path / "small", calibrated=True)
    with pytest.raises(ValueError, match="dtype is 'int8'; expected one of float32, bfloat16"):
        predictor.save(tmp_path / "small", dtype="int8")


def test_no_path_of_the_machine_is_kept(saved):
    text = (saved / "config.json").read_text() + (saved / "README.md").read_text()
    assert "| text encoder | BERT |" in text and "photo.jpg" in text
    assert "/home" not in text and str(saved.parent) not in text
    config = json.loads((saved / "config.json").read_text())
    assert config["config"]["data"]["root"] == "small" and config["config"]["text_encoder"]["folder"] == "BERT"


@pytest.mark.parametrize("name", sorted(set(FILES) - {"merges.json", "README.md"}))
def test_every_damage_is_one_clear_error(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-2])
    with pytest.raises(CheckpointError, match=f"{name}: (its SHA-256 is|damaged)"):
        Predictor.load(copy)
    (copy / name).unlink()
    if name in ("config.json", "model.safetensors"):  # then it is none of these folders
        with pytest.raises(CheckpointError, match="no checkpoint under best/"):
            Predictor.load(copy)
    else:
        with pytest.raises(CheckpointError, match=f"{name}: missing; copy the folder again"):
            Predictor.load(copy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"library_name": "transformers"}, "no model of tmrjax"),
        ({"folder_format": 0}, r"folder format 0, but this version reads 1: take the version of tmrjax .*0\.1\.0"),
        ({"files": {"../../secret": "aa"}}, "damaged .its list of files"),
        ({"files": None}, "damaged .its list of files"),
    ],
)
def test_other_folders_are_refused(copy, changed, message):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(CheckpointError, match=message):
        Predictor.load(copy)


def test_the_card_may_be_edited_and_other_folders_are_not_overwritten(predictor, copy, tmp_path):
    (copy / "README.md").write_text("mine")
    Predictor.load(copy, devices=1)
    predictor.save(copy)
    assert (copy / "README.md").read_text() != "mine"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files; name a new folder"):
        predictor.save(tmp_path / "full")


def test_the_card(saved, predictor):
    card = ModelCard.load(saved / "README.md")
    assert card.data.to_dict() == {
        "language": ["en"], "license": "mit", "library_name": "tmrjax", "pipeline_tag": "token-classification",
        "tags": ["tmrjax", "multimodal", "tmr"],
    }  # fmt: skip
    text = card.text
    assert 'Predictor.load("ada/small")' in text and "PER, LOC" in text and "| parameters | " in text
    assert "SYNTHETIC DATA" in text and "LEAKY REGIONS" in text and "marked leaky_regions" in text
    assert "| **all** | 25.00 | 50.00 | 33.33 | 8 |" in text and "| PER | 100.00 | 12.50 | 22.22 | 8 |" in text
    assert "seed 3, epoch 2 chosen on dev, F1 there 50.00); labels: Twitter-2017" in text
    assert "of 40 answers 75.0 % are right at a mean score of 87.5 %" in text
    assert f"`test.jsonl` {'ab' * 32}" in text and "Seed 3, 1,234 steps" in text and "zheng2023rethinking" in text
    assert "F1 on dev 50.00 (epoch 2" in model_card(predictor.meta, 1)
    assert "None were recorded" in model_card({**predictor.meta, "best": None}, 1)


def test_the_hub(predictor, saved, tmp_path, monkeypatch):
    """Loaded from the hub's cache as huggingface_hub lays it out; pushed to a stand-in of its interface."""
    cache = tmp_path / "cache"
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--ada--small"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    assert Predictor.load("ada/small", devices=1).identity() == predictor.identity()
    assert Predictor.load("ada/small", revision=commit, devices=1).identity() == predictor.identity()
    with pytest.raises(FileNotFoundError, match="ada/absent: no folder of this machine"):
        Predictor.load("ada/absent")
    with pytest.raises(ValueError, match="which has no revision"):
        Predictor.load(saved, revision=commit)

    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), set(allow_patterns)))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert predictor.push("ada/small", private=True) == "https://hub/ada/small"
    assert calls[0] == ("ada/small", {"private": True, "exist_ok": True})
    assert calls[1] == ("ada/small", sorted(set(FILES) - {"merges.json"}), set(FILES))


def test_the_command(text_reader, tmp_path, monkeypatch, capsys):  # noqa: F811
    store = CheckpointStore(tmp_path / "run" / BEST)
    store.save(1, random_variables(text_reader), text_reader.to_meta() | META)
    store.close()
    (tmp_path / "run" / "report.json").write_text(json.dumps(REPORT))
    flags = {
        "workdir": tmp_path / "run",
        "out": tmp_path / "out",
        "format": "folder",
        "dtype": "float32",
        "language": [],
        "licence": "mit",
    }
    monkeypatch.setattr(export, "FLAGS", type("Flags", (), {**flags, "push": None, "private": False}))
    export.main(None)
    assert "MB of weights, float32" in capsys.readouterr().out
    assert "33.33" in (tmp_path / "out" / "README.md").read_text()
    whole, exported = (Predictor.load(tmp_path / name, devices=1) for name in ("run", "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'Predictor.load("out")' in card and str(tmp_path) not in card and "/home" not in card
    assert "posts, their text alone, and" in card and "photo.jpg" not in card and "multimodal" not in card
    assert whole.entities(POSTS[0]) == exported.entities(POSTS[0]) and whole.entities(POSTS[0])["entities"]
