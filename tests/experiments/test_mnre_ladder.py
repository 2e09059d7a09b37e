"""The MNRE ladder: the told MTB against PyTorch, what reaches the models of each set, one row as a training."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from data_prep.make_demo import ENCODER_CONFIG
from data_prep.make_ladder import MADE, PHRASES, TEXT, make_ladder
from experiments.configs import mre
from experiments.lib import build, experiment
from experiments.lib.study import Places
from experiments.studies.ladder_methods import ThirdCrop, ToldMTB
from experiments.studies.mnre_ladder import REFERENCE, ROWS, TOLD, get_study
from tests.ladder_release import NAMES, write_release
from tests.methods.torch_blocks import HIDDEN, bert_config
from tmrjax import convert
from tmrjax.encoders.open import text_config
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_decoded
from tmrjax.records import Record, read_dataset

RELATIONS = 5
TINY = {"data.max_pieces": 16, "batch_size": 16, "eval_batch_size": 16, "devices": 1, "text_encoder.weights": "random"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """All sets of a small release, a text encoder of random weights, the picture encoder that lies beside the data."""
    root = tmp_path_factory.mktemp("ladder")
    make_ladder(write_release(root / "release"), root / "data", progress=False)
    for config in (root / "data").glob("*/picture_encoder/config.json"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_sizes": [8, 16], "depths": [1, 1]}))
    text = root / "text"
    text.mkdir()
    words = sorted({word.lower() for name in NAMES for word in (name, "in", "rome", "person", "location")})
    words += ["organization", *"traindevst0123456789", *(f"##{letter}" for letter in "abcdefghilmnoprstuvyz0123456789")]
    special = ["[PAD]", "[unused0]", "[unused1]", "[unused2]", "[unused3]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*special, *words]))
    (text / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "vocab_size": len(vocabulary)}
    (text / "config.json").write_text(json.dumps({**ENCODER_CONFIG, **sizes}))
    (text / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return Places(root / "data", text_encoder=str(text), seeds=(0,))


def config_of(training, **changes):
    config = mre.get_config(training.config.partition(":")[2], training.settings["method"])
    config.update_from_flattened_dict({**training.settings, **TINY, **changes})
    return config


# ------------------------------------------------------------------ the method


def torch_logits(bert, classifier, batch, use_phrases, use_crops):
    """The arithmetic of the module's docstring, on valid entries alone, one post at a time."""
    rows = []
    for b in range(len(batch["input_ids"])):
        ids = torch.tensor(batch["input_ids"][b][batch["attention_mask"][b]])[None]
        states = bert(ids).last_hidden_state[0]
        parts = [states[batch["head_start"][b]], states[batch["tail_start"][b]]]
        if use_phrases:
            phrase = torch.tensor(batch["phrase_ids"][b][batch["phrase_mask"][b]])[None]
            parts.append(bert(phrase).last_hidden_state[0].mean(0))
        if use_crops:
            parts.append(torch.tensor([batch["third_crop"][b]]))
        rows.append(classifier(torch.cat(parts)))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize(("use_phrases", "use_crops"), [(False, True), (True, False), (True, True)])
@torch.no_grad()
def test_logits_equal_torch(use_phrases, use_crops):
    torch.manual_seed(0)
    bert = transformers.BertModel(bert_config(), add_pooling_layer=False).eval()
    classifier = torch.nn.Linear(HIDDEN * (3 if use_phrases else 2) + use_crops, RELATIONS)
    text = text_config(bert.config.to_dict())
    state = {name: value.numpy() for name, value in bert.state_dict().items()}
    dense = {"kernel": classifier.weight.numpy().T, "bias": classifier.bias.numpy()}
    params = {"bert": convert.text_params(state, text), "classifier": dense}
    random = np.random.default_rng(0)
    batch = {
        "input_ids": random.integers(1, 40, (3, 8)),
        "attention_mask": np.arange(8) < np.array([[8], [5], [6]]),
        "head_start": np.array([1, 3, 0]), "tail_start": np.array([5, 1, 2]),
        "phrase_ids": random.integers(1, 40, (3, 4)),
        "phrase_mask": np.arange(4) < np.array([[4], [2], [3]]),
        "third_crop": np.array([10, -10, 10], np.float32),
    }  # fmt: skip
    method = ToldMTB(num_labels=RELATIONS, text=text, use_phrases=use_phrases, use_crops=use_crops)
    outputs = jax.jit(lambda batch: method.apply({"params": params}, batch, train=False))(batch)
    expected = torch_logits(bert, classifier, batch, use_phrases, use_crops)
    np.testing.assert_allclose(outputs.scores, expected, rtol=1e-4, atol=1e-5)


def test_the_number_stands_behind_the_dropout():
    text = text_config(bert_config().to_dict())
    method = ToldMTB(num_labels=RELATIONS, text=text, use_crops=True, dropout=0.9)
    batch = {
        "input_ids": np.ones((64, 4), np.int32), "attention_mask": np.ones((64, 4), bool),
        "head_start": np.zeros(64, np.int32), "tail_start": np.ones(64, np.int32),
        "third_crop": np.full(64, 10, np.float32),
    }  # fmt: skip
    params = jax.tree.map(np.zeros_like, method.init(jax.random.key(0), batch, train=False)["params"])
    params["classifier"]["kernel"][-1] = 1  # reads the number and nothing else
    outputs = method.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(outputs.scores, np.full((64, RELATIONS), 10.0))


@pytest.mark.parametrize(("crops", "expected"), [(0, -10.0), (2, -10.0), (3, 10.0), (4, 10.0)])
def test_the_number_says_whether_there_is_a_third_crop(crops, expected):
    record = Record("a", ("Ada", "Bo"), head=(0, 1), tail=(1, 2), relation="None", sides={"crops": crops})
    assert ThirdCrop().encode(record, None, None) == {"third_crop": expected}
    for wrong in ({}, {"crops": None}, {"crops": True}, {"crops": "3"}, {"crops": -1}):
        with pytest.raises(DataError, match=r"record a: .*sides.crops.*make_ladder"):
            ThirdCrop().encode(dataclasses.replace(record, sides=wrong), None, None)


# ------------------------------------------------------------------ the study


def test_every_row_builds_and_reads_what_its_set_holds(places):
    study = get_study(places)
    assert [one.row for one in study.trainings] == list(ROWS) and study.reference == REFERENCE in ROWS
    assert {Path(one.settings["data.root"]).name for one in study.trainings} == {TEXT, PHRASES, *MADE}
    for one in study.trainings:
        config = config_of(one)
        system = build.build_system(config, read_dataset(config.data.root))
        keys = set(system.dummy_batch())
        row = one.row
        assert ("third_crop" in keys) == ("third" in row) and ("image" in keys) == ("grey" in row)
        assert ("phrase_ids" in keys) == ("phrases" in row or "TMR" in row) and not any("generated" in k for k in keys)
        info = read_dataset(config.data.root).info
        assert config.epochs == 3 and ("leaky" in config.name) == (info.leaky_phrases or info.leaky_regions)


def batch_of(training):
    """All train posts in one batch with pixels."""
    config = config_of(training)
    dataset = read_dataset(config.data.root)
    system = build.build_system(config, dataset)
    examples = system.encode(dataset.splits["train"], say=None)
    return dataset, system.collator(system.pixels(dataset.root))(examples, 16)


def test_released_crops_reach_the_models_and_clean_batches_differ_by_the_text_alone(places):
    rows = {one.row: one for one in get_study(places).trainings}
    for method in ("HVPNeT", "TMR"):
        dataset, batch = batch_of(rows[f"{method}, grey pictures, released crops"])
        bright = batch["regions"].astype(int).min(axis=(2, 3, 4)) == 200
        there = [(np.array([box[3] for box in record.regions]) < 1) for record in dataset.splits["train"]]
        np.testing.assert_array_equal(bright, there)
        assert batch["region_mask"].all() and batch["image_mask"].all() and set(bright.sum(1)) == {1, 2, 3}
        relations = np.array([record.relation != "None" for record in dataset.splits["train"]])
        np.testing.assert_array_equal(bright[:, 2], relations)  # as this release was made
        dataset, clean = batch_of(rows[f"{method}, grey pictures, clean"])
        for key in ("image", "regions", "image_mask", "region_mask"):
            assert (clean[key] == clean[key][:1]).all(), key
        assert clean["region_mask"].all() and (clean["regions"] == 200).all()
        np.testing.assert_array_equal(clean["image"], batch["image"])
        for key in ("input_ids", "head_start", "tail_start"):
            np.testing.assert_array_equal(clean[key], batch[key])


def test_sets_that_lack_are_named_with_the_command_that_makes_them(places, tmp_path):
    with pytest.raises(ValueError, match=r"no prepared mnre-text, mnre-crop-count, .*make_ladder.py --source=TMR-RE"):
        get_study(dataclasses.replace(places, data=tmp_path))
    training = next(one for one in get_study(places).trainings if one.settings["method"] == TOLD)
    config = config_of(training, **{"data.root": str(places.data / TEXT)})
    with pytest.raises(DataError, match=r"60 of 60 records have no number of crops.*make_ladder"):
        build.build_system(config, read_dataset(config.data.root))


def test_features_of_the_constant_picture_are_computed_once(places, tmp_path, monkeypatch):
    """Three in all, of the picture and of its two kinds of regions, however many posts there are."""
    loaded = []

    def counted(path, shrinking):
        loaded.append(path)
        return load_decoded(path, shrinking)

    monkeypatch.setattr("tmrjax.pictures.requests.load_decoded", counted)
    training = next(one for one in get_study(places).trainings if "HVPNeT" in one.row and "released" in one.row)
    config = config_of(training, **{"model.prefix_size": 8})
    dataset = read_dataset(config.data.root)
    system = build.build_system(config, dataset)
    variables = build.initial_variables(config, dataset, system)
    source = system.features(dataset.root, dataset.splits["train"], variables, tmp_path, progress=False)
    assert len(loaded) == 1  # decoded once for all three
    assert [len(cache) for cache in source.caches.values()] == [3]
    stages = [source.load(record)["region_stages"] for record in dataset.splits["train"][:2]]  # one crop, three crops
    for lacking, there in zip(*stages, strict=True):
        np.testing.assert_array_equal(lacking[0], there[0])
        assert np.abs(lacking[2] - there[2]).max() > 1e-3  # the encoder tells a region from zeros


def test_a_row_trains_and_its_report_is_marked(places, tmp_path):
    """With what is told alone the made-up release can be learned: relation or not is the third crop."""
    training = next(one for one in get_study(places).trainings if one.row == "text, is there a third crop")
    config = config_of(training, epochs=2, lr_fusion=1e-2)
    report = experiment.run(config, tmp_path / "run")
    assert report["method"] == TOLD and report["leaky_regions"] and not report["leaky_phrases"]
    assert report["test"]["confusion"]["None"] == {"None": 15} and report["test"]["recall"] > 0
