"""Checkpoints of older versions: the JSON of a variant becomes that of a method, with the same arithmetic."""

import dataclasses
import json

import pytest

from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods import name_of
from tmrjax.models import TMRForNER, TMRForRE
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.tasks import system_from_meta
from tmrjax.tasks.entities import Tagger
from tmrjax.tasks.relations import RelationClassifier
from tmrjax.text.tokenizers import load_tokenizer
from tmrjax.training.checkpoints import CheckpointError

BERT = BertConfig(
    vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=16,
)  # fmt: skip
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1))
SHARED = {
    "use_back_translation": False, "use_scores": True, "grains": ["fine"], "literal": True, "dropout": 0.25,
    "dtype": "bfloat16", "batch_norm": "frozen", "freeze_text": False, "freeze_pictures": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\n")
    return load_tokenizer(folder)


def old_meta(task, variant, tokenizer):
    """As versions before methods wrote it."""
    kind = {"ner": Tagger, "re": RelationClassifier}[task]
    face = {"ner": TMRForNER, "re": TMRForRE}[task]
    tags = {"num_tags": 13 if variant == "release" else 3, "num_heads": 2, "release_length": 8}
    sizes = tags if task == "ner" else {"num_relations": 2}
    labels = {"ner": ("MISC", "PER", "ORG", "LOC") if variant == "release" else ("PER",), "re": ("None", "in")}[task]
    method = face(bert=BERT, resnet=RESNET, variant=variant, **sizes).method()
    text = TextSettings(8, 3, piece_tags=task == "ner" and variant == "release")
    new = json.loads(json.dumps(kind(method, labels, tokenizer, text, PictureSettings(), (8,)).to_meta()))
    model = {**SHARED, **sizes, "bert": BERT.to_dict(), "resnet": RESNET.to_dict(), "variant": variant}
    without = ("method", "vocabularies", "encoders")
    return {key: value for key, value in new.items() if key not in without} | {"model": model}


@pytest.mark.parametrize(
    ("task", "variant", "name"),
    [
        ("ner", "paper", "tmr"), ("re", "paper", "tmr"), ("ner", "release", "tmr_release"),
        ("re", "release", "tmr_release"), ("ner", "text", "bert_crf"), ("re", "text", "mtb"),
    ],
)  # fmt: skip
def test_a_checkpoint_from_before_methods_is_read(tokenizer, task, variant, name):
    method = system_from_meta(old_meta(task, variant, tokenizer)).method
    assert name_of(method) == name and method.text == BERT and method.dropout == 0.25
    assert method.dtype.__name__ == "bfloat16" if hasattr(method.dtype, "__name__") else str(method.dtype) == "bfloat16"
    if variant == "text":
        assert method.pictures is None and method.picture is None
    else:
        assert method.picture == RESNET and method.freeze_pictures and not method.pictures.generated
    if variant == "paper":
        assert (method.grains, method.literal, method.left_out) == (
            ("fine",), True, "w/o back-translation, fine only, literal sums",
        )  # fmt: skip
    if variant == "release" and task == "ner":
        assert method.max_pieces == 8


def test_options_that_a_method_does_not_have_and_other_tasks_are_errors(tokenizer):
    system = system_from_meta(old_meta("ner", "text", tokenizer))
    meta = json.loads(json.dumps(system.to_meta()))
    assert system_from_meta(meta).method == system.method
    with pytest.raises(ValueError, match=r"the method bert_crf does not have the options of this checkpoint: .*grains"):
        system_from_meta(meta | {"model": meta["model"] | {"grains": ["fine"]}})
    with pytest.raises(ValueError, match="there is no method 'tmr2'"):
        system_from_meta(meta | {"method": {"name": "tmr2", "source_sha256": None}})
    with pytest.raises(CheckpointError, match="the task 'mde'; expected one of ner, re"):
        system_from_meta(meta | {"task": "mde"})
    with pytest.raises(ValueError, match="a method for 'ner' cannot be trained for 're'"):
        fields = {field.name: getattr(system, field.name) for field in dataclasses.fields(RelationClassifier)}
        RelationClassifier(**fields)
