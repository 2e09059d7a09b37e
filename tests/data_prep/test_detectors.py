"""Zero-shot detectors of transformers, tiny and random, against the post-processing of their own processors."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from data_prep.ground_regions import ground_regions
from data_prep.regions.detectors import Detector
from data_prep.stages.frame import Selection
from tmrjax.files import DataError
from tmrjax.records import Grounding, Record, write_dataset

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) > 4, reason="the extra grounding needs transformers below 5"
)

QUIET = Selection(progress=False)
PHRASES = ["a dog", "Kevin Love vs. dogs", "love"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of either model, as a user would have it."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    _owlvit(root / "owlvit")
    _groundingdino(root / "groundingdino")
    return root


def _owlvit(folder):
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz."
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="a")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.OwlViTConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": len(words) - 1},
        vision_config={**small, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    transformers.OwlViTForObjectDetection(config).save_pretrained(folder)
    pictures = transformers.OwlViTImageProcessor(size={"height": 64, "width": 64})
    transformers.OwlViTProcessor(pictures, tokenizer).save_pretrained(folder)


def _groundingdino(folder):
    folder.mkdir()
    words = [f"[unused{number}]" for number in range(1030)]
    # The model knows its special pieces by BERT's numbers.
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    for number, word in {**special, 1: "a", 2: "dog", 3: "kevin", 4: "love", 5: "##s", 6: "vs"}.items():
        words[number] = word
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = transformers.GroundingDinoConfig(
        backbone_config={
            "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2],
            "window_size": 4, "out_features": ["stage2", "stage3", "stage4"],
        },
        text_config={
            "model_type": "bert", "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
        },
        num_queries=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, d_model=32,
        encoder_attention_heads=2, decoder_attention_heads=2, disable_custom_kernels=True, max_text_len=32,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    transformers.GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def detectors(folders):
    return {method: Detector(folders / method, method, threshold=0.0) for method in ("owlvit", "groundingdino")}


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def in_pixels(found, picture):
    width, height = picture.size
    return [[side * size for side, size in zip(item.box, (width, height) * 2, strict=True)] for item in found]


def test_owlvit_against_its_processor(detectors, picture, folders):
    detector = detectors["owlvit"]
    found, cut = detector(picture, PHRASES[:2])
    assert cut == 1 and len(found) == 16  # the second has more letters than the model has places
    processor = transformers.AutoProcessor.from_pretrained(folders / detector.method)
    inputs = processor(text=[PHRASES[:2]], images=picture, return_tensors="pt", truncation=True, max_length=16)
    with torch.inference_mode():
        outputs = detector.model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[picture.size[::-1]], text_labels=[PHRASES[:2]]
    )
    order = theirs["scores"].argsort(descending=True)
    assert [item.score for item in found] == pytest.approx(theirs["scores"][order].tolist(), abs=1e-6)
    assert [item.phrase for item in found] == [theirs["text_labels"][index] for index in order]
    assert np.allclose(in_pixels(found, picture), theirs["boxes"][order].numpy(), atol=1e-3)
    with_logits = outputs.logits[0].sigmoid().amax(1).argsort(descending=True)
    features = outputs.class_embeds[0][with_logits].numpy()
    assert np.allclose([item.feature for item in found], features, atol=1e-5) and features.shape[1] == 16


def test_groundingdino_against_its_processor(detectors, picture, folders):
    """Their score of a box is its best piece; ours of a phrase the best of its own pieces: the best over phrases agree
    wherever the best piece belongs to a phrase and is no full stop."""
    detector = detectors["groundingdino"]
    found, cut = detector(picture, PHRASES)
    assert cut == 0 and len(found) == 8
    processor = transformers.AutoProcessor.from_pretrained(folders / detector.method)
    inputs = processor(text="a dog. kevin love vs  dogs. love.", images=picture, return_tensors="pt")
    with torch.inference_mode():
        outputs = detector.model(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.99, target_sizes=[picture.size[::-1]]
    )
    pieces = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    owners = {1: 0, 2: 0, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 10: 2}
    assert pieces == ["[CLS]", "a", "dog", ".", "kevin", "love", "vs", "dog", "##s", ".", "love", ".", "[SEP]"]
    probabilities = outputs.logits[0].sigmoid()
    agreed = 0
    ours = {tuple(np.round(box, 3)): item for box, item in zip(in_pixels(found, picture), found, strict=True)}
    for row, (box, score) in enumerate(zip(theirs["boxes"], theirs["scores"], strict=True)):
        item = ours[tuple(np.round(box.tolist(), 3))]
        best = max(owners, key=lambda column: probabilities[row, column].item())
        assert item.phrase == PHRASES[owners[best]]
        assert item.score == pytest.approx(probabilities[row, best].item(), abs=1e-6)
        if int(probabilities[row].argmax()) in owners:
            agreed += 1
            assert item.score == pytest.approx(score.item(), abs=1e-6)
    assert agreed >= 2


def test_long_prompts_and_thresholds(detectors, picture, folders):
    detector = detectors["groundingdino"]
    found, cut = detector(picture, ["a dog " * 12, "love " * 12, "kevin"])
    assert cut == 2 and len(found) == 8  # 24 + 12 + 1 pieces and stops, 32 are read
    for one in detectors.values():
        assert one(picture, []) == ([], 0)
    scores = [item.score for item in detector(picture, PHRASES)[0]]
    strict = Detector(folders / "groundingdino", "groundingdino", threshold=scores[2])
    assert [item.score for item in strict(picture, PHRASES)[0]] == pytest.approx(scores[:2])
    assert Detector(folders / "groundingdino", "groundingdino").threshold == 0.25


def test_the_stage(folders, picture, tmp_path):
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images/1.png")
    train = [
        Record("1", ("a", "dog", "love"), ("O",) * 3, image="images/1.png", phrases=("a dog", "love")),
        Record("2", ("!",), ("O",), image="images/1.png"),
    ]
    write_dataset(tmp_path, {"name": "x", "task": "ner", "labels": ("PER",)}, {"train": train})
    options = {"method": "owlvit", "model": folders / "owlvit", "threshold": 0.0}
    dataset = ground_regions(tmp_path, QUIET, **options)
    first, second = dataset.splits["train"]
    assert len(first.regions) == 3 and second.regions == () and not second.grounding
    said = [item.phrase for item in first.grounding]
    found, _ = Detector(folders / "owlvit", "owlvit", threshold=0.0)(picture, first.phrases)
    best = {phrase: next(item for item in found if item.phrase == phrase) for phrase in {item.phrase for item in found}}
    assert set(said[: len(best)]) == set(best)  # the best box of every phrase comes first
    assert first.grounding[0] == Grounding(found[0].phrase, round(found[0].score, 6))
    manifest = dataset.info.stages["regions"]
    assert manifest["counts"]["pictures without a phrase to look for"] == 1
    assert manifest["model"].startswith("owlvit ") and manifest["options"]["threshold"] == 0.0
    assert set(manifest["versions"]) == {"transformers", "torch"}
    objects = first.sides["objects"]
    assert second.sides["objects"]["labels"] == [] and 3 <= len(objects["labels"]) <= 16
    by_score = {round(item.score, 6): item for item in found}
    for label, score, feature in zip(objects["labels"], objects["scores"], objects["rows"].load(), strict=True):
        item = by_score[min(by_score, key=lambda other: abs(other - score))]
        assert item.phrase == label and np.array_equal(item.feature, feature)
    assert objects["scores"] == sorted(objects["scores"], reverse=True)


def test_folders_that_are_no_model(folders, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"the model_type 'owlvit'; expected a model_type of 'grounding-dino'"):
        Detector(folders / "owlvit", "groundingdino")
    with pytest.raises(DataError, match=r"config.json: found No such file"):
        Detector(tmp_path, "owlvit")
    (tmp_path / "config.json").write_text('{"model_type": "owlvit"}')
    with pytest.raises(DataError, match=r"no model that loads.*Copy all its files"):
        Detector(tmp_path, "owlvit")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DataError, match=r"pip install 'tmrjax\[grounding\]'"):
        Detector(folders / "owlvit", "owlvit")
