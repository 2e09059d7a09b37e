"""Any encoders by folder or hub name, from config to checkpoint: a RoBERTa and a ViT for relations."""

import json

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants

from data_prep.make_demo import make_demo
from experiments import evaluate
from experiments.configs.mre import get_config
from experiments.lib import build, experiment
from tests.tokenizer_folders import write_byte_pairs
from tmrjax.predict import Predictor
from tmrjax.records import read_dataset
from tmrjax.text.marking import MARKERS
from tmrjax.training.checkpoints import load_best

COMMIT = "3" * 40
SMALL = {
    "epochs": 1, "batch_size": 16, "eval_batch_size": 16, "devices": 1, "data.max_pieces": 128, "data.buckets": (128,),
    "data.picture_size": 0, "data.picture_resize": 0, "text_encoder.weights": "pretrained",
    "picture_encoder.weights": "pretrained", "text_encoder.folder": "owner/tiny-roberta", "model.freeze_text": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders") / "data"
    make_demo(root, posts=40, seed=2, task="re")
    return root


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A RoBERTa in a hub's cache, under its commit, and a ViT in a folder with its preprocessing."""
    root = tmp_path_factory.mktemp("hub")
    model = root / "models--owner--tiny-roberta"
    roberta, vit = model / "snapshots" / COMMIT, root / "vit"
    roberta.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    write_byte_pairs(roberta)
    vocabulary = json.loads((roberta / "vocab.json").read_text())
    torch.manual_seed(0)
    text = transformers.RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=140, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    transformers.RobertaModel(text, add_pooling_layer=False).save_pretrained(roberta)
    picture = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16,
    )  # fmt: skip
    transformers.ViTModel(picture, add_pooling_layer=False).save_pretrained(vit)
    (vit / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3})
    )
    return root, roberta, vit


@pytest.fixture(scope="module")
def finished(world, encoders, tmp_path_factory):
    root, _, vit = encoders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(root))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        config = get_config("demo", "tmr")
        config.update_from_flattened_dict({"data.root": str(world), "picture_encoder.folder": str(vit), **SMALL})
        workdir = tmp_path_factory.mktemp("encoder_runs") / "run"
        report = experiment.run(config, workdir)
        dataset = read_dataset(world)
        return workdir, report, build.initial_variables(config, dataset, build.build_system(config, dataset))


def test_the_checkpoint_says_where_its_encoders_came_from(finished, encoders):
    workdir, report, _ = finished
    _, meta = load_best(workdir)
    assert meta["encoders"] == {
        "text": {"name": "owner/tiny-roberta", "revision": COMMIT, "added_tokens": 4},
        "picture": {"name": str(encoders[2]), "revision": None},
    }
    assert meta["model"]["text"]["model_type"] == "roberta" and meta["model"]["picture"]["model_type"] == "vit"
    assert report["method"] == "tmr" and set(report["test"]) >= {"f1", "accuracy"}


def test_markers_are_new_rows_of_the_word_table(finished, encoders):
    _, _, drawn = finished
    state = transformers.RobertaModel.from_pretrained(encoders[1], add_pooling_layer=False).state_dict()
    theirs = state["embeddings.word_embeddings.weight"].numpy()
    table = drawn["params"]["roberta"]["embeddings"]["word"]["embedding"]
    assert table.shape == (len(theirs) + len(MARKERS), 16)
    np.testing.assert_array_equal(table[: len(theirs)], theirs)
    assert 0 < np.abs(table[len(theirs) :]).max() < 0.15


def test_pictures_are_read_as_the_encoders_folder_says(finished):
    _, meta = load_best(finished[0])
    pictures = meta["pictures"]
    assert (pictures["size"], pictures["whole"], pictures["resample"]) == (32, "squash", "bicubic")
    assert pictures["mean"] == [0.5, 0.5, 0.5]
    params = load_best(finished[0])[0]["params"]
    assert list(params["picture_encoder"]) == ["vit"] and params["visual_projection"]["kernel"].shape == (24, 16)


def test_it_is_evaluated_and_predicts_without_folder_and_hub(finished):
    workdir, report, _ = finished
    assert evaluate.evaluate(workdir, "test", devices=1)["f1"] == report["test"]["f1"]
    predictor = Predictor.load(workdir, devices=1)
    result = predictor.relations({"text": "Rosa at the harbour 😂", "head": [0, 4], "tail": [12, 19]})
    assert result["relations"][0]["head"]["text"] == "Rosa" and result["unread_words"] == 0


def test_weights_are_of_the_commit_whose_config_was_read(world, encoders, monkeypatch):
    """The hub's main branch moves on, to a commit that is not here, between the two."""
    root, _, vit = encoders
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config, dataset = get_config("demo", "mtb"), read_dataset(world)
    config.update_from_flattened_dict({"data.root": str(world), "picture_encoder.folder": str(vit), **SMALL})
    system, main = build.build_system(config, dataset), root / "models--owner--tiny-roberta" / "refs" / "main"
    main.write_text("4" * 40)
    try:
        assert "roberta" in build.initial_variables(config, dataset, system)["params"]
    finally:
        main.write_text(COMMIT)


def test_unsupported_encoders_are_named_with_what_is_supported(world, encoders, tmp_path):
    for part, kind, supported in (
        ("text_encoder", "t5", "bert.*roberta.*electra.*distilbert.*deberta-v2"),
        ("picture_encoder", "beit", "resnet.*vit.*clip.*swin"),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        config = get_config("demo", "tmr")
        config.update_from_flattened_dict({"data.root": str(world), f"{part}.folder": str(folder)})
        with pytest.raises(ValueError, match=f"model_type '{kind}' .*supported are .*{supported}"):
            experiment.run(config, tmp_path / "run")
    config = get_config("demo", "tmr")
    config.update_from_flattened_dict({"data.root": str(world), "text_encoder.folder": "owner/absent"})
    with pytest.raises(FileNotFoundError, match="owner/absent: no folder of this machine"):
        experiment.run(config, tmp_path / "run")
