"""A converted checkpoint reads what the authors' code feeds it: ids, pixels and masks from a reference of their rules.

The reference uses the slow tokenizer, PIL and numpy alone, and goes through the released equations in PyTorch.
Evaluation and prediction are watched where they make their batches.
"""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file

from data_prep import convert_release
from experiments.evaluate import evaluate
from tests.convert.test_convert import TorchvisionResNet
from tests.pictures.test_preprocessing import averaged, whole_then_crop
from tests.release_reference import ReleasedNER, ReleasedRE
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.inputs.collate import Collator
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.predict import Predictor
from tmrjax.records import Generated, Record, write_dataset
from tmrjax.tasks import system_from_meta
from tmrjax.training.checkpoints import load_best

LENGTH, SIZE = 12, 224
PIECES = ["jordan", "Jordan", "har", "##bour", "at", "the", "blue", "boat", "sky", "man"]
VOCABULARY = ["[PAD]", "[unused0]", "[unused1]", "[unused2]", "[unused3]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=(16, 32), depths=(1, 1))
LABELS = {"ner": ("MISC", "PER", "ORG", "LOC"), "re": ("None", "/per/loc/place")}
BOXES = ((0.11, 0.2, 0.52, 0.9), (0.3, 0.0, 1.0, 0.41), (0.0, 0.0, 0.07, 0.95))
GENERATED_BOXES = ((0.25, 0.25, 0.75, 0.5), (0.1, 0.1, 0.3, 0.9), (0.4, 0.6, 0.9, 0.65))


def records(task):
    labels = (
        {"tags": ("B-PER", "O", "O", "B-LOC")}
        if task == "ner"
        else {"head": (0, 1), "tail": (3, 4), "relation": "/per/loc/place"}
    )
    first = Record(
        "0", ("Jordan", "at", "the", "harbour"), **labels, image="images/a.png", regions=BOXES, scores=(0.1, 0.3, 0.6),
        phrases=("Jordan", "the harbour boat sky man at"), generated=Generated("images/g.png", GENERATED_BOXES),
        generated_scores=(0.2, 0.7, 0.1),
    )  # fmt: skip
    return [first, Record("1", ("jordan", "at", "the", "boat"), **labels, phrases=("harbour man",))]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["ner", "re"])
def released(request, tmp_path_factory):
    """(task, released model, file of its weights, data set)."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    bert = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32,
        max_position_embeddings=128,
    )  # fmt: skip
    sizes = {"features": 32, "resnet": TorchvisionResNet(RESNET)}
    if task == "ner":
        model = ReleasedNER(bert, length=LENGTH, tags=13, **sizes)
    else:
        model = ReleasedRE(bert, relations=2, **sizes)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "model_resnet50" in name and "running_mean" in name:
                tensor.fill_(100.0 if task == "re" and ".bn1." in name and "layer" not in name else 0.0)
            if name.endswith("linear_pic.weight"):
                tensor.mul_(0.02)  # the tanh behind 784 positions must not saturate
    model.eval()
    save_file({name: tensor.numpy() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors")
    root, generator = folder / "data", np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for name, (height, width) in (("a.png", (230, 290)), ("g.png", (256, 256))):
        coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
        Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width]).save(root / "images" / name)
    info = {"name": "posts", "task": task, "labels": LABELS[task]}
    write_dataset(root, info, {split: records(task) if split == "test" else [] for split in ("train", "dev", "test")})
    (folder / "ours_rel2id.json").write_text(json.dumps({name: i for i, name in enumerate(LABELS["re"])}))
    return task, model, folder / "weights.safetensors", root


def converted(released, vocabulary, out, *more):
    task, _, weights, root = released
    arguments = [f"--weights={weights}", f"--vocabulary={vocabulary}", f"--out={out}", f"--data={root}", *more]
    arguments += [f"--relations={weights.parent / 'ours_rel2id.json'}"] if task == "re" else []
    convert_release.main(arguments)
    return out


def reference_batch(task, vocabulary, root, *, zeros):
    """What the authors' dataset classes return for the two posts, by their rules."""
    tokenizer = transformers.BertTokenizer(str(vocabulary / "vocab.txt"))
    batch = {name: [] for name in ("phrase_ids", "phrase_mask", "input_ids", "attention_mask")}
    for prefix in ("", "generated_"):
        for name in ("image", "regions", "image_mask", "region_mask", "scores"):
            batch[prefix + name] = []
    for record in records(task):
        phrases = " ".join(record.phrases)
        if task == "ner":
            encoded = tokenizer(phrases, max_length=5, truncation=True, padding="max_length")
            batch["phrase_ids"].append(encoded["input_ids"])
            batch["phrase_mask"].append(encoded["attention_mask"])
            pieces, length = [piece for word in record.tokens for piece in tokenizer.tokenize(word)], LENGTH
        else:
            words = [VOCABULARY.index(word) if word in VOCABULARY else 5 for word in phrases.split(" ")]
            batch["phrase_ids"].append((words + [0] * 6)[:6])
            batch["phrase_mask"].append([1] * 6)
            before, after = tokenizer.tokenize(record.tokens[0]), tokenizer.tokenize(record.tokens[3])
            pieces, length = (
                ["[unused0]", *before, "[unused1]", "at", "the", "[unused2]", *after, "[unused3]"],
                128,
            )
        ids = tokenizer.convert_tokens_to_ids(["[CLS]", *pieces, "[SEP]"])
        batch["input_ids"].append(ids + [0] * (length - len(ids)))
        batch["attention_mask"].append([1] * len(ids) + [0] * (length - len(ids)))
        for prefix in ("", "generated_"):
            owner = record.generated if prefix else record
            image, regions, there = np.zeros((SIZE, SIZE, 3)), np.zeros((3, SIZE, SIZE, 3)), np.zeros(3)
            present = owner is not None and owner.image is not None
            if present:
                picture = Image.open(root / owner.image)
                if task == "ner":
                    image = whole_then_crop(picture, SIZE, 256)
                else:
                    image = averaged(np.asarray(picture), SIZE)[..., ::-1]
                if not (prefix and zeros and task == "ner"):  # their NER code never gets a region of a generated one
                    for i, (x1, y1, x2, y2) in enumerate(owner.regions):
                        w, h = picture.size
                        part = picture.crop((x1 * w, y1 * h, x2 * w, y2 * h))
                        regions[i], there[i] = whole_then_crop(part, SIZE, 256), 1
            scores = (record.generated_scores if prefix else record.scores) or (0, 1, 1)
            values = (image, regions, present or zeros, there if not zeros else np.ones(3), scores)
            names = ("image", "regions", "image_mask", "region_mask", "scores")
            for name, value in zip(names, values, strict=True):
                batch[prefix + name].append(value)
    batch = {name: np.array(value, np.float32) for name, value in batch.items()}
    for name in batch:
        if name.endswith("_ids"):
            batch[name] = batch[name].astype(np.int32)
    if task == "re":
        batch["head_start"], batch["tail_start"] = np.array([1, 1]), np.array([6, 6])
    return batch


def released_output(model, batch, task):
    """Emissions or logits of the released equations; masks of pictures have no place in them."""
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    resnet = model.model_resnet50
    with torch.no_grad():
        for prefix in ("", "generated_"):
            for ours, theirs in (("image", "image_features"), ("regions", "region_features")):
                pixels = tensors[prefix + ours].float()
                maps = resnet(pixels.flatten(0, -4).movedim(-1, 1))
                tensors[prefix + theirs] = maps.flatten(2).movedim(1, 2).reshape(*pixels.shape[:-3], -1, 32)
            tensors[f"{prefix}scores"] = tensors[f"{prefix}scores"][:, 1:]
        return model(tensors).numpy()


@pytest.fixture
def batches(monkeypatch):
    """Every batch that is made while a test runs."""
    made, collate = [], Collator.__call__

    def watched(self, examples, length):
        made.append(collate(self, examples, length))
        return made[-1]

    monkeypatch.setattr(Collator, "__call__", watched)
    return made


def assert_same(batch, expected, task):
    for name, array in expected.items():
        found = batch[name][: len(array)]
        if name.endswith(("image", "regions")):
            there = batch[f"{name.removesuffix('s')}_mask"][: len(array), ..., None, None, None]
            settings = PictureSettings(whole="area_bgr" if task == "re" else "torchvision")
            pixels = settings.normalise(found, whole=name.endswith("image"))
            found = np.where(there, pixels, 0)  # as the model reads it
            # One of 255 levels, in the units of the array.
            level = 1.001 if task == "re" and name.endswith("image") else 2.001 / 255 / 0.224
            np.testing.assert_allclose(found, array, atol=level, err_msg=name)
            assert np.abs(found - array).mean() < 0.3 * level, name
        else:
            np.testing.assert_allclose(found, array, rtol=1e-6, err_msg=name)


def posts(task):
    for record in records(task):
        post = {"id": record.id, "tokens": list(record.tokens), "phrases": list(record.phrases)}
        if task == "re":
            post |= {"head": list(record.head), "tail": list(record.tail)}
        if record.image:
            post |= {"image": record.image, "regions": [list(box) for box in record.regions]}
            post |= {"scores": list(record.scores), "generated_scores": list(record.generated_scores)}
            post["generated_image"] = record.generated.image
            post["generated_regions"] = [list(box) for box in record.generated.regions]
        yield post


@pytest.mark.parametrize("missing", ["mask", pytest.param("zeros", marks=pytest.mark.slow)])
def test_evaluation_and_prediction_read_what_the_released_code_reads(released, vocabulary, tmp_path, batches, missing):
    task, model, _, root = released
    run = converted(released, vocabulary, tmp_path / "run", f"--missing={missing}")
    expected = reference_batch(task, vocabulary, root, zeros=missing == "zeros")

    evaluate(run, "test", devices=1, batch_size=3)
    evaluated = batches.pop()
    assert_same(evaluated, expected, task)

    predictor = Predictor.load(run, devices=1)
    (predictor.entities if task == "ner" else predictor.relations)(list(posts(task)), root=root, batch_size=3)
    predicted = batches.pop()
    assert_same(predicted, expected, task)
    padding = ~evaluated["row_mask"]
    assert padding.tolist() == [False, False, True]
    for name in ("image_mask", "region_mask", "generated_image_mask", "generated_region_mask"):
        assert not evaluated[name][padding].any()  # rows of padding are nobody's pictures

    # The reference's batch through the released equations gives what the checkpoint makes of its own batch. Where what
    # is missing is masked, that holds for the post that has everything.
    rows = slice(0, 2 if missing == "zeros" else 1)
    method, prepare = predictor.system.method, predictor.system.prepare
    apply = jax.jit(lambda variables, batch: method.apply(variables, prepare(batch), train=False).scores)
    found = np.asarray(apply(jax.device_get(predictor.variables), evaluated))[rows]
    theirs = released_output(model, expected, task)[rows]
    np.testing.assert_allclose(found, theirs, atol=0.02 * np.abs(theirs).max())


def test_the_checkpoint_and_the_command_say_what_was_converted(released, vocabulary, tmp_path, capsys):
    task = released[0]
    run = converted(released, vocabulary, tmp_path / "run", "--missing=zeros")
    said = capsys.readouterr().out
    authors = {"ner": "bert-large-uncased (24 layers of 1024) with ResNet-101", "re": "bert-base-uncased"}[task]
    assert f"this checkpoint: BERT with 1 layers of 64, {len(VOCABULARY)} word pieces; ResNet-8" in said
    assert f"the authors' scripts train {authors}" in said
    phrases = {"ner": "3 word pieces between [CLS] and [SEP]", "re": "6 whole words"}[task]
    assert phrases in said and "missing pictures and regions are zeros" in said
    meta = load_best(run)[1]
    assert authors in meta["source"]["authors"] and "ResNet-8" in meta["source"]["encoders"]
    again = system_from_meta(json.loads(json.dumps(meta)))
    assert again.pictures.missing == "zeros" and again.pictures.regions == "torchvision"
    with pytest.raises(ValueError, match=r"data\.feature_cache=False"):
        again.features(tmp_path, [], {}, tmp_path)


def test_a_vocabulary_of_another_bert_is_said_and_flags_of_another_model_are_refused(
    released, vocabulary, tmp_path, caplog, capsys
):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY[:-1]), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    converted(released, tmp_path, tmp_path / "run")
    assert f"has {len(VOCABULARY) - 1} word pieces, the weights {len(VOCABULARY)}" in caplog.text
    assert "keeps upper case" in caplog.text
    for flags, message in (
        (["--estimator", "--missing=zeros"], "not for the estimator's"),
        (["--max-phrase-pieces=0"], "must be at least 1, found 0"),
    ):
        with pytest.raises(SystemExit):
            convert_release.main([f"--weights={tmp_path}", f"--vocabulary={vocabulary}", f"--out={tmp_path}", *flags])
        assert message in capsys.readouterr().err


def test_a_checkpoint_from_before_these_settings_reads_as_it_did(released, vocabulary, tmp_path, caplog):
    meta = load_best(converted(released, vocabulary, tmp_path / "run"))[1]
    old = {name: meta["pictures"][name] for name in ("size", "resize")}
    text = {name: value for name, value in meta["text"].items() if name != "phrases"}
    again = system_from_meta(meta | {"pictures": old, "text": text | {"max_phrase_pieces": 4}})
    assert again.pictures == PictureSettings() and again.text.phrases == "pieces" and again.text.phrase_length == 6
    assert "convert_release.py" in caplog.text and "again" in caplog.text
