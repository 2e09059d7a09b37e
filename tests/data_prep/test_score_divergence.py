"""Scores into a prepared set: the estimator's own, for every picture that is there, null for others; resumable."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import BertTokenizerFast

from data_prep import convert_release
from data_prep import score_divergence as module
from data_prep.score_divergence import NAME, Scorer, main, mean_scores, score_divergence
from data_prep.stages.frame import Selection
from experiments import evaluate_mde
from tests.corpus_pictures import encoded, picture
from tests.divergence.test_divergence import TINY, released_state
from tmrjax.divergence import DivergenceEstimator, score
from tmrjax.divergence.pictures import PairPictureSettings, estimator_pixels
from tmrjax.divergence.pipeline import PairTextSettings, collate_inputs, encode_text
from tmrjax.divergence.system import Estimator
from tmrjax.encoders.joint.vilt import ViltConfig
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.records import DatasetInfo, Generated, Record, read_dataset, write_dataset
from tmrjax.training.checkpoints import BEST, CheckpointStore
from tmrjax.training.sharding import make_mesh, replicate

QUIET = Selection(progress=False)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Two estimators with random weights, as experiments/mde.py leaves them."""
    root = tmp_path_factory.mktemp("estimators")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "at", "the", "harbour"]
    (root / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    vilt = ViltConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, image_size=32, patch_size=16,
    )  # fmt: skip
    estimator = Estimator(
        DivergenceEstimator(vilt),
        BertTokenizerFast.from_pretrained(str(root)),
        PairTextSettings(max_pieces=8),
        PairPictureSettings(size=32, longest=64),
    )
    initialise = jax.jit(functools.partial(estimator.model.init, train=False))
    for seed in (0, 1):
        variables = initialise(jax.random.key(seed), estimator.dummy_batch())
        # large weights, so that the scores of different pairs differ
        variables = jax.tree.map(lambda leaf: np.asarray(leaf) * 5, variables)
        meta = estimator.to_meta() | {"best": {"step": 7}, "dataset": {"name": "tiny corpus"}}
        CheckpointStore(root / str(seed) / BEST).save(7, variables, meta)
    return root / "0", root / "1"


def write_set(root, count=20):
    (root / "images").mkdir(parents=True)
    records = []
    for i in range(count):
        for kind in ("o", "g"):
            shape = [(40, 40), (32, 60), (70, 33)][(i + (kind == "g")) % 3]
            (root / f"images/{kind}{i}.jpg").write_bytes(encoded(picture([i, ord(kind)], *shape)))
        tokens = ("a", "dog", "at", "the", "harbour", "dog", "dog", "dog")[: 3 + i % 6]
        records.append(
            Record(
                id=str(i), tokens=tokens, tags=("O",) * len(tokens), scores=(0.2, 0.3, 0.5),
                image=None if i % 5 == 0 else f"images/o{i}.jpg",
                generated=None if i % 7 == 0 else Generated(f"images/g{i}.jpg"),
            )
        )  # fmt: skip
    write_dataset(root, DatasetInfo("tiny", "ner", ("PER",)), {"train": records[:12], "test": records[12:]})
    return root


@pytest.fixture
def data(tmp_path):
    return write_set(tmp_path / "set")


@pytest.fixture(scope="module")
def scored(workdirs, tmp_path_factory):
    root = write_set(tmp_path_factory.mktemp("scored") / "set")
    return score_divergence(root, workdirs[0], batch_size=8, selection=QUIET)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, batch):
    return model.apply(variables, batch, train=False)


def direct(workdir, record, path, root):
    """The estimator on one pair alone, unpadded: softmax in float64."""
    estimator, variables, _ = Estimator.load(workdir)
    ids = estimator.tokenizer(" ".join(record.tokens))["input_ids"]
    ids = ids if len(ids) <= 8 else [*ids[:7], ids[-1]]
    pixels = estimator_pixels(load_picture(root / path), estimator.pictures)[None]
    batch = {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), bool),
        "pixel_values": pixels,
        "pixel_mask": np.ones(pixels.shape[:3], bool),
    }
    logits = np.asarray(apply(estimator.model, variables, batch)[0][0], np.float64)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def test_scores_are_those_of_the_pair_alone_and_null_without_a_picture(scored, workdirs):
    records = [record for split in scored.splits.values() for record in split]
    found = []
    for record in records:
        slots = ((record.scores, record.image), (record.generated_scores, record.generated and record.generated.image))
        for scores, path in slots:
            assert (scores is None) == (path is None)
            if path is not None and int(record.id) < 5:
                np.testing.assert_allclose(scores, direct(workdirs[0], record, path, scored.root), atol=2e-5)
            if scores is not None:
                found.append(scores)
    assert np.std(found, 0).max() > 0.02  # or the comparison says nothing
    manifest = scored.info.stages[NAME]
    assert manifest["counts"]["without a picture"] == 4 and manifest["counts"]["without a generated picture"] == 3
    assert manifest["counts"]["texts that are cut"] == sum(len(record.tokens) > 6 for record in records)
    assert manifest["options"]["corpus"] == "tiny corpus" and manifest["options"]["normalise"] == "none"
    assert not scored.info.renormalised_scores
    assert "train, generated scores" in mean_scores(scored)


def test_a_second_run_scores_nothing_and_changes_nothing(scored, workdirs, monkeypatch):
    monkeypatch.setattr(module, "_score", lambda *_: pytest.fail("scored again"))
    before = {path.name: path.read_bytes() for path in scored.root.glob("*.json*")}
    again = score_divergence(scored.root, workdirs[0], batch_size=16, selection=QUIET)
    assert again.splits == scored.splits
    assert {path.name: path.read_bytes() for path in scored.root.glob("*.json*")} == before
    with pytest.raises(DataError, match="--restart"):
        score_divergence(scored.root, workdirs[1], batch_size=8, selection=QUIET)


def test_an_interrupted_run_goes_on(data, scored, workdirs, monkeypatch):
    whole, calls = module._score, []

    def interrupted(records, *rest):
        calls.append([record.id for record in records])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(records, *rest)

    monkeypatch.setattr(module, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_divergence(data, workdirs[0], batch_size=8, selection=QUIET)
    result = score_divergence(data, workdirs[0], batch_size=8, selection=QUIET)
    assert sorted(identifier for call in calls[:1] + calls[2:] for identifier in call) == sorted(map(str, range(20)))
    assert result.splits == scored.splits


def test_release_normalisation(data, scored, workdirs):
    with pytest.raises(DataError, match="one kind in a whole set"):
        score_divergence(data, workdirs[0], normalise="release", selection=dataclasses.replace(QUIET, limit=3))
    result = score_divergence(data, workdirs[0], normalise="release", batch_size=8, selection=QUIET)
    assert result.info.renormalised_scores and read_dataset(data).info.renormalised_scores
    for plain, record in zip(scored.splits["test"], result.splits["test"], strict=True):
        if record.scores is not None:
            _, complement, strengthen = plain.scores
            expected = (0, complement / (complement + strengthen), strengthen / (complement + strengthen))
            np.testing.assert_allclose(record.scores, expected, atol=1e-4)


def test_a_broken_picture_stops_or_is_listed(data, workdirs):
    (data / "images/g3.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(DataError, match=r"g3\.jpg"):
        score_divergence(data, workdirs[0], batch_size=8, selection=QUIET)
    result = score_divergence(data, workdirs[0], batch_size=8, selection=dataclasses.replace(QUIET, on_error="skip"))
    assert result.splits["train"][3].scores == (0.2, 0.3, 0.5)  # as it was
    assert result.info.stages[NAME]["records"]["train"]["failed"] == 1


def test_eight_devices_score_as_one(workdirs):
    scorer, _ = Scorer.load(workdirs[0], 16)
    estimator, variables, _ = Estimator.load(workdirs[0])
    mesh = make_mesh(1)
    single = Scorer(estimator, replicate(variables, mesh), mesh, estimator.score_step(mesh), 5)
    texts = [[2, 5, 6, 3], [2, 9, 3], [2, *[6] * 6, 3]] * 4
    pictures = [estimator_pixels(picture(i, *shape), estimator.pictures) for i, shape in
                enumerate([(40, 40), (90, 40), (40, 60), (33, 33)] * 3)]  # fmt: skip
    assert scorer.mesh.size == 8
    np.testing.assert_allclose(scorer(texts, pictures), single(texts, pictures), atol=1e-5)


def test_the_command_prints_what_there_is(scored, workdirs, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["score_divergence", str(scored.root), f"--checkpoint={workdirs[0]}", "--batch-size=8"]
    )
    main()
    printed = capsys.readouterr().out
    assert "without a generated picture" in printed and "test, scores" in printed and "texts that are cut" in printed


def test_no_estimator_there_is_told(data, tmp_path):
    with pytest.raises(DataError, match="the workdir of a divergence estimator"):
        score_divergence(data, tmp_path / "none", selection=QUIET)


def test_the_released_estimator_scores_and_says_that_it_is(data, workdirs, tmp_path, capsys):
    _, _, state = released_state()
    # Larger than drawn, so that the scores of different pairs differ.
    state = {name: np.ascontiguousarray(value) * (1 if value.dtype.kind == "i" else 4) for name, value in state.items()}
    save_file(state, tmp_path / "mde.safetensors")
    arguments = [
        "--weights",
        tmp_path / "mde.safetensors",
        "--vocabulary",
        workdirs[0].parent,
        "--out",
        tmp_path / "run",
    ]
    convert_release.main([*map(str, arguments), "--estimator", f"--num-attention-heads={TINY.num_attention_heads}"])
    assert f"{TINY.max_position_embeddings} word pieces" in capsys.readouterr().out
    scored = score_divergence(data, tmp_path / "run", batch_size=8, selection=QUIET)
    stage = scored.info.stages[NAME]
    assert stage["options"]["source"] == "mde.safetensors" and stage["model"] == "run, mde.safetensors"
    estimator, variables, _ = Estimator.load(tmp_path / "run")
    record = next(record for record in scored.splits["test"] if record.image)
    pixels = estimator_pixels(load_picture(data / record.image), estimator.pictures)
    ids = encode_text(estimator.tokenizer, " ".join(record.tokens), estimator.texts)
    expected = score(estimator.model, variables, collate_inputs([ids], [pixels], (len(ids), *pixels.shape[:2])))[0]
    np.testing.assert_allclose(record.scores, expected, atol=1e-4)
    found = [record.scores for record in scored.splits["train"] if record.scores]
    assert np.ptp(found, axis=0).max() > 0.01
    with pytest.raises(ValueError, match="names no data of its own"):
        evaluate_mde.evaluate(tmp_path / "run", devices=1)
