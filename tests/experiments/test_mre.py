"""Relations end to end on a small demo world: train, stop and resume, evaluate, predict, on one device and on eight."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from data_prep.make_demo import make_demo
from experiments import evaluate
from experiments.configs.mre import get_config
from experiments.lib import experiment
from tests.experiments.test_mner import LONG, SMALL, starts_from
from tmrjax.files import DataError
from tmrjax.predict import Predictor
from tmrjax.records import label_versions, read_dataset, write_dataset
from tmrjax.tasks import system_from_meta
from tmrjax.tasks.report import relation_report
from tmrjax.text.splitting import split_words
from tmrjax.training.checkpoints import CheckpointError

FULL = {**LONG, "batch_size": 16, "model.dropout": 0.0}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("relations") / "data"
    make_demo(root, posts=60, seed=1, task="re")
    return root


def small_config(world, method="tmr", **changes):
    config = get_config("demo", method)
    config.update_from_flattened_dict({"data.root": str(world), **SMALL, **changes})
    return config


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("relation_runs") / "full"
    return workdir, experiment.run(small_config(world, **FULL), workdir)


@pytest.fixture(scope="session")
def predictor(finished):
    return Predictor.load(finished[0], devices=1)


def test_a_run_leaves_a_report(finished, world):
    workdir, report = finished
    assert json.loads((workdir / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (report["task"], report["method"], report["dataset"]) == ("re", "tmr", "demo-relations")
    assert report["data"]["synthetic"] and not report["leaky_phrases"]
    assert {"precision", "recall", "f1", "accuracy", "per_label", "confusion"} <= set(report["test"])
    gold = [record.relation for record in read_dataset(world).splits["test"]]
    assert report["test"]["support"] == sum(relation != "None" for relation in gold)
    assert report["dev"]["f1"] > 0
    found = report["calibration"]["test"]
    assert found["accuracy"] == report["test"]["accuracy"] and found["answers"] == report["test"]["records"]
    assert 0 < found["ece"] < 1 and report["calibration"]["dev"]["answers"] == len(read_dataset(world).splits["dev"])
    assert report["calibration"]["test_at_temperature"]["accuracy"] == found["accuracy"]


def test_scores_at_the_fitted_temperature(finished, predictor, world):
    """Of a run and of an exported folder: the same answers, other scores, those that the report counted."""
    workdir, report = finished
    temperature = report["calibration"]["temperature"]
    calibrated = Predictor.load(workdir, calibrated=True, devices=1)
    assert calibrated.system.temperature == temperature != 1 and predictor.system.temperature == 1
    posts = [json.loads(line) for line in (world / "posts.jsonl").read_text().splitlines()][:12]
    plain, at_temperature = (one.relations(posts, root=world) for one in (predictor, calibrated))
    for one, other in zip(plain, at_temperature, strict=True):
        assert [r["relation"] for r in one["relations"]] == [r["relation"] for r in other["relations"]]
    assert plain != at_temperature and predictor.identity() != calibrated.identity()
    predictor.save(workdir.parent / "exported")
    again = Predictor.load(workdir.parent / "exported", calibrated=True, devices=1)
    assert again.relations(posts, root=world) == at_temperature
    assert Predictor.load(workdir.parent / "exported", devices=1).relations(posts, root=world) == plain


def test_predictions_are_kept_with_both_probabilities(finished, world):
    workdir, report = finished
    lines = [json.loads(line) for line in (workdir / "predictions" / "test.jsonl").read_text().splitlines()]
    records = read_dataset(world).splits["test"]
    for record, line in zip(records, lines, strict=True):
        assert (line["id"], line["gold"]) == (record.id, record.relation)
        assert (line["head"], line["tail"]) == (list(record.head), list(record.tail))
        assert 0 <= line["gold_probability"] <= line["probability"] <= 1
        assert line["gold"] != line["predicted"] or line["gold_probability"] == line["probability"]
    assert sum(line["gold"] == line["predicted"] for line in lines) / len(lines) == report["test"]["accuracy"]


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluate_reproduces_the_runs_figures_exactly(finished, devices):
    workdir, report = finished
    again = evaluate.evaluate(workdir, "test", devices=devices)
    assert {name: again[name] for name in report["test"]} == report["test"]


def as_post(record, *, text: bool):
    post = {"tokens": list(record.tokens), "head": list(record.head), "tail": list(record.tail)}
    if text:
        starts = np.cumsum([0, *(len(token) + 1 for token in record.tokens)])
        post = {"text": " ".join(record.tokens)}
        for key, (start, end) in (("head", record.head), ("tail", record.tail)):
            post[key] = [int(starts[start]), int(starts[end]) - 1]
    generated = record.generated
    return post | {
        "image": record.image, "regions": [list(box) for box in record.regions], "phrases": list(record.phrases),
        "scores": record.scores and list(record.scores), "generated_image": generated and generated.image,
        "generated_regions": [list(box) for box in generated.regions] if generated else [],
        "generated_scores": record.generated_scores and list(record.generated_scores),
    }  # fmt: skip


def test_predicted_posts_give_the_reports_figures(finished, predictor, world):
    """From pixels where training read cached features, as tokens: the report of the run."""
    _, report = finished
    records = read_dataset(world).splits["test"]
    results = predictor.relations([as_post(record, text=False) for record in records], root=world)
    found = [result["relations"][0]["relation"] for result in results]
    gold, labels = [record.relation for record in records], read_dataset(world).info.labels
    expected = {name: report["test"][name] for name in relation_report(gold, found, labels)}
    assert json.loads(json.dumps(relation_report(gold, found, labels))) == json.loads(json.dumps(expected))
    for record, result in zip(records, results, strict=True):
        [relation] = result["relations"]
        for name, span in (("head", record.head), ("tail", record.tail)):
            entity = relation[name]
            words = " ".join(record.tokens[slice(*span)])
            assert entity["text"] == result["text"][entity["start"] : entity["end"]] == words
        assert 0 < relation["score"] <= 1


def test_a_subset_is_scored_alone(finished, predictor, world):
    dataset = read_dataset(world)
    chosen = [record for record in dataset.splits["train"] if record.scores and record.scores[1] > 0.5]
    results = predictor.relations([as_post(record, text=False) for record in chosen], root=world)
    found = [result["relations"][0]["relation"] for result in results]
    expected = relation_report([record.relation for record in chosen], found, dataset.info.labels)
    subset = evaluate.evaluate(finished[0], "train", subset="complementary", devices=1)
    assert 0 < len(chosen) < len(dataset.splits["train"]) and subset["subset"] == "complementary"
    assert {name: subset[name] for name in expected} == expected


def test_text_with_characters_is_the_same_as_tokens(predictor, world):
    def plain(record):
        return [word.word for word in split_words(" ".join(record.tokens))] == list(record.tokens)

    record = next(record for record in read_dataset(world).splits["train"] if plain(record))
    tokens, text = (predictor.relations(as_post(record, text=text), root=world) for text in (False, True))
    assert tokens["relations"][0]["relation"] == text["relations"][0]["relation"]
    assert tokens["relations"][0]["head"] == text["relations"][0]["head"]


class FoundEntities:
    """A predictor of entities that finds what it is told to."""

    def _expect(self, *_):
        pass

    def outcomes(self, posts, **_):
        spans = [(0, 6, "PER"), (11, 16, "LOC"), (21, 28, "ORG")]
        names = ("start", "end", "label")
        found = [{**dict(zip(names, span, strict=True)), "score": 0.9} for span in spans]
        for given in posts:
            text = given.post["text"]
            yield given, {"entities": [e | {"text": text[e["start"] : e["end"]]} for e in found]}


def test_every_ordered_pair_of_found_entities_is_asked_for(predictor):
    post = {"text": "Harlow and Paris and Chelsea", "id": 3}
    result = predictor.relations(post, entities=FoundEntities(), keep_none=True)
    pairs = [(r["head"]["text"], r["tail"]["text"]) for r in result["relations"]]
    assert sorted(pairs) == sorted(itertools.permutations(("Harlow", "Paris", "Chelsea"), 2))
    assert result["relations"][0]["head"]["label"] == "PER" and result["id"] == 3
    assert result["masked"] == ["picture", "generated picture"]
    given = [predictor.relations({"text": post["text"], "head": [r["head"]["start"], r["head"]["end"]],
                                  "tail": [r["tail"]["start"], r["tail"]["end"]]})["relations"][0]
             for r in result["relations"]]  # fmt: skip
    assert [r["relation"] for r in given] == [r["relation"] for r in result["relations"]]
    kept = predictor.relations(post, entities=FoundEntities())["relations"]
    assert kept == [r for r in result["relations"] if r["relation"] != "None"]
    assert predictor.relations([]) == []


@pytest.mark.parametrize(
    ("post", "message"),
    [
        ({"text": "Ada in Bonn"}, "neither 'head' nor 'tail'"),
        ({"text": "Ada in Bonn", "head": [0, 3]}, "'head' alone"),
        ({"text": "Ada in Bonn", "head": [0, 3], "tail": [0, 2]}, "'head' and 'tail' equal"),
        ({"text": "Ada in Bonn", "head": [0, 3], "tail": [3, 4]}, "no word in 'tail'"),
        ({"tokens": ["Ada", "Bonn"], "head": [0, 1], "tail": [1, 3]}, "0 <= start < end <= 2"),
        ({"tokens": ["Ada", *["x"] * 60, "Bonn"], "head": [0, 1], "tail": [61, 62]}, "too long.*max_pieces"),
    ],
)
def test_bad_posts_are_named(predictor, post, message):
    with pytest.raises(DataError, match=message):
        predictor.relations(post)


def test_a_checkpoint_of_the_other_task_is_refused(predictor, finished):
    with pytest.raises(CheckpointError, match=r"one for 're': it has \.relations\(\), not \.entities\(\)"):
        predictor.entities({"text": "Ada"})
    with pytest.raises(CheckpointError, match="the task 'mde'; expected one of ner, re"):
        system_from_meta({"task": "mde"})


def test_another_relation_set_and_an_empty_subset_are_refused(finished, world, tmp_path):
    dataset = read_dataset(world)
    bare = {"image": None, "generated": None, "regions": (), "scores": None, "relation": "None"}
    records = [dataclasses.replace(record, **bare) for record in dataset.splits["test"]]
    info = {"name": "other", "task": "re", "labels": ("None", "/a")}
    write_dataset(tmp_path / "other", info, {"test": records})
    with pytest.raises(CheckpointError, match=r"was trained for 're' with \['None', '/per/per/peer'"):
        evaluate.evaluate(finished[0], data=str(tmp_path / "other"), devices=1)
    write_dataset(tmp_path / "same", info | {"labels": dataset.info.labels}, {"test": records})
    with pytest.raises(DataError, match="no record of test in the subset 'complementary'"):
        evaluate.evaluate(finished[0], subset="complementary", data=str(tmp_path / "same"), devices=1)
    with pytest.raises(DataError, match=r"same: found no record in train; expected records to learn from"):
        experiment.run(small_config(tmp_path / "same"), tmp_path / "run")
    with pytest.raises(ValueError, match="a data set for 're', but this experiment is 'ner'"):
        experiment.run(get_ner_config(world), tmp_path / "run")


def get_ner_config(world):
    from experiments.configs.mner import get_config as ner

    config = ner("demo")
    config.data.root = str(world)
    return config


def test_a_run_with_pretrained_encoders_starts_from_exactly_their_weights(world, tmp_path):
    starts_from(small_config(world), world, tmp_path)


def test_leaks_are_warned_of_and_marked(world, tmp_path, caplog, capsys):
    dataset = read_dataset(world)
    bare = {"image": None, "generated": None, "regions": ()}
    splits = {split: [dataclasses.replace(r, **bare) for r in records] for split, records in dataset.splits.items()}
    info = {"name": "leaky", "task": "re", "labels": dataset.info.labels, "leaky_phrases": True, "leaky_regions": True}
    write_dataset(tmp_path / "data", info, splits)
    for folder in ("text_encoder", "picture_encoder"):
        (tmp_path / "data" / folder).symlink_to(world / folder)
    config = small_config(tmp_path / "data", "mtb", epochs=1)
    report = experiment.run(config, tmp_path / "run")
    table = capsys.readouterr().out
    again = evaluate.evaluate(tmp_path / "run", "dev", devices=1)
    for found, mark in itertools.product((report, report["data"], again), ("leaky_phrases", "leaky_regions")):
        assert found[mark] is True
    for text in (table, capsys.readouterr().out):
        assert "! LEAKY PHRASES" in text and "! LEAKY REGIONS" in text
    assert "LEAKY PHRASES" in caplog.text and "LEAKY REGIONS" in caplog.text


def test_the_version_of_the_labels_is_named(finished, world, monkeypatch, capsys):
    """In a run's report and table, and in those of an evaluation."""
    workdir, report = finished
    hashes = read_dataset(world).info.labels_sha256
    assert report["labels_sha256"] == report["data"]["labels_sha256"] == hashes and len(hashes) == 3
    assert report["label_version"] == "unknown version" and report["leaky_regions"] is False
    monkeypatch.setitem(label_versions.KNOWN, "the demo of this test", hashes)
    again = evaluate.evaluate(workdir, "test", devices=1)
    assert (again["labels_sha256"], again["label_version"]) == (hashes, "the demo of this test")
    assert "\n  labels: the demo of this test\n" in capsys.readouterr().out
    experiment.run(small_config(world, **FULL), workdir)
    assert "\n  labels: the demo of this test\n" in capsys.readouterr().out
