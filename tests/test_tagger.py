"""A tagger without its commands: exact span probabilities, cut words, the released tag set, JSON."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from release_reference import ReleasedNER
from safetensors.numpy import save_file
from test_convert import TorchvisionResNet

from data_prep import convert_release
from tmrjax import crf
from tmrjax.checkpoints import load_best
from tmrjax.encoders.bert import BertConfig
from tmrjax.encoders.resnet import ResNetConfig
from tmrjax.examples import RELEASE_TAGS, TextSettings
from tmrjax.models import TMRForNER
from tmrjax.predict import Predictor
from tmrjax.reader import PictureSettings
from tmrjax.records import Record
from tmrjax.sharding import make_mesh, replicate
from tmrjax.tagger import Tagger
from tmrjax.tagging import spans_from_tags
from tmrjax.tokenizers import load_tokenizer
from tmrjax.train import constrain

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "jordan", "har", "##bour", "at", "the"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tagger(vocabulary):
    bert = BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    model = TMRForNER(bert=bert, num_tags=5, variant="text")
    labels = ("PER", "LOC")
    return Tagger(model, labels, load_tokenizer(vocabulary), TextSettings(8, 3), PictureSettings(), buckets=(8,))


@pytest.fixture(scope="module")
def variables(tagger):
    variables = jax.jit(lambda key: tagger.model.init(key, tagger.dummy_batch(), train=False))(jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(0, 0.7, x.shape).astype(np.float32), variables)


RECORDS = [
    Record(id="a", tokens=("Jordan", "\ufe0f", "the", "harbour")),
    Record(id="b", tokens=("harbour", "Jordan")),
    Record(id="c", tokens=("at",) * 9),
    Record(id="d", tokens=("\ufe0f",)),
]


def predict(tagger, variables, devices=1):
    mesh = make_mesh(devices)
    step = tagger.predict_step(mesh)
    arguments = step, replicate(variables, mesh), tagger.encode(RECORDS), None, mesh
    return tagger.predict(*arguments, batch_size=8, probabilities=True)


def test_span_probabilities_equal_enumeration(tagger, variables):
    predictions = predict(tagger, variables)
    checked = 0
    for record, prediction in zip(RECORDS, predictions, strict=True):
        assert len(prediction.tags) == len(record.tokens)
        assert prediction.spans == spans_from_tags(prediction.tags, strict=True)
        [example] = tagger.encode([record])
        kept = example.pieces.words
        if len(kept) > 3 or not prediction.spans:
            continue
        output, _ = jax.jit(lambda v, b: tagger.model.apply(v, b, train=False))(
            variables, tagger.collator(None)([example], 8)
        )
        params = constrain(crf.CRFParams(**jax.tree.map(jnp.asarray, variables["params"]["crf"])), tagger.tags)
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        weights = {}
        for path in itertools.product(range(5), repeat=len(kept)):
            score = params.start_transitions[path[0]] + params.end_transitions[path[-1]]
            score += sum(params.transitions[i, j] for i, j in itertools.pairwise(path))
            score += sum(float(output[0, position, tag]) for position, tag in enumerate(path))
            weights[path] = np.exp(score)
        for span, probability in zip(prediction.spans, prediction.probabilities, strict=True):
            # A word without a piece takes no part in the CRF: spans are compared on the kept words.
            start = kept.index(span.start)
            end = start + sum(span.start <= word < span.end for word in kept)
            matching = sum(
                weight
                for path, weight in weights.items()
                if (start, end, span.label) in spans_from_tags(tagger.tag_set.decode(path), strict=True)
            )
            assert probability == pytest.approx(matching / sum(weights.values()), rel=1e-4)
            checked += 1
    assert checked >= 2


def test_cut_words_come_back_as_outside_and_a_post_without_pieces_is_no_error(tagger, variables):
    predictions = predict(tagger, variables, devices=8)
    assert len(predictions[2].tags) == 9 and predictions[2].tags[6:] == ["O", "O", "O"]
    assert predictions[3].tags == ["O"] and predictions[3].spans == []


def test_a_tagger_survives_json(tagger):
    again = Tagger.from_meta(json.loads(json.dumps(tagger.to_meta())))
    text = ["Jordan", "harbour", "\ufe0f", "x"]
    assert again.encode([Record("a", tuple(text))]) == tagger.encode([Record("a", tuple(text))])
    names = [field.name for field in dataclasses.fields(Tagger) if field.name != "tokenizer"]
    assert all(getattr(again, name) == getattr(tagger, name) for name in names)


def test_sizes_that_do_not_fit_are_refused(tagger):
    with pytest.raises(ValueError, match="longest bucket 6 is below max_pieces 8"):
        dataclasses.replace(tagger, buckets=(6,))
    with pytest.raises(ValueError, match="the model has 5 tags, but its tag set 3"):
        dataclasses.replace(tagger, labels=("PER",))


@pytest.mark.parametrize("with_resnet", [True, False])
def test_released_weights_become_a_checkpoint_that_predicts(vocabulary, tmp_path, capsys, with_resnet):
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=(16, 32), depths=(1, 1))
    released = ReleasedNER(
        config, length=8, tags=13, features=32, resnet=TorchvisionResNet(resnet) if with_resnet else None
    )
    with torch.no_grad():  # every piece wants to be B-PER, [CLS], X and [SEP] as well
        released.fc.bias[RELEASE_TAGS.index("B-PER")] = 50.0
    save_file({name: tensor.numpy() for name, tensor in released.state_dict().items()}, tmp_path / "ner.safetensors")
    arguments = [f"--weights={tmp_path / 'ner.safetensors'}", f"--vocabulary={vocabulary}", f"--out={tmp_path / 'run'}"]
    convert_release.main(arguments)
    assert (
        "8 word pieces, labels MISC, PER, ORG, LOC; " + ("pictures" if with_resnet else "feature maps only")
        in capsys.readouterr().out
    )
    assert load_best(tmp_path / "run")[1]["source"]["file"] == "ner.safetensors"
    predictor = Predictor.load(tmp_path / "run", devices=1)
    if with_resnet:
        result = predictor.entities({"text": "Jordan at the harbour"})
        assert [entity["text"] for entity in result["entities"]] == ["Jordan", "at", "the", "harbour"]
    else:
        with pytest.raises(ValueError, match="has no ResNet"):
            predictor.entities({"text": "Jordan at the harbour"})


def test_released_pth_is_read_with_weights_only(tmp_path):
    torch.save({"state_dict": {"module.a": torch.ones(2, dtype=torch.float16)}}, tmp_path / "a.pth")
    weights = convert_release.read_weights(tmp_path / "a.pth")
    assert weights["a"].dtype == np.float32 and weights["a"].tolist() == [1, 1]
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ValueError, match="expected a state dict"):
        convert_release.read_weights(tmp_path / "b.pth")
    torch.save(convert_release.read_weights, tmp_path / "c.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        convert_release.read_weights(tmp_path / "c.pth")
