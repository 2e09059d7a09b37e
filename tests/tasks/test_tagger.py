"""A tagger without its commands: exact span probabilities, cut words, the released tag set, JSON."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from data_prep import convert_release
from experiments.configs.mner import get_config
from experiments.lib import build
from tests.convert.test_convert import TorchvisionResNet
from tests.release_reference import ReleasedNER
from tmrjax import crf
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.heads.crf_head import constrain
from tmrjax.inputs.base import Reading
from tmrjax.inputs.labels import RELEASE_TAGS
from tmrjax.inputs.settings import TextSettings
from tmrjax.models import TMRForNER
from tmrjax.predict import Predictor
from tmrjax.records import DatasetInfo, Record
from tmrjax.tasks.calibration import log_loss, outcomes
from tmrjax.tasks.entities import Tagger
from tmrjax.tasks.report import format_report
from tmrjax.tasks.system import TEMPERATURES, PictureSettings
from tmrjax.text.tags import spans_from_tags
from tmrjax.text.tokenizers import load_tokenizer
from tmrjax.training.checkpoints import load_best
from tmrjax.training.sharding import make_mesh, replicate

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
    return Tagger(
        model.method(), labels, load_tokenizer(vocabulary), TextSettings(8, 3), PictureSettings(), buckets=(8,)
    )


@pytest.fixture(scope="module")
def variables(tagger):
    variables = jax.jit(lambda key: tagger.method.init(key, tagger.dummy_batch(), train=False))(jax.random.key(0))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(0, 0.7, x.shape).astype(np.float32), variables)


RECORDS = [
    Record(id="a", tokens=("Jordan", "\ufe0f", "the", "harbour")),
    Record(id="b", tokens=("harbour", "Jordan")),
    Record(id="c", tokens=("at",) * 9),
    Record(id="d", tokens=("\ufe0f",)),
]


def predict(tagger, variables, devices=1, records=RECORDS):
    mesh = make_mesh(devices)
    step = tagger.predict_step(mesh)
    arguments = step, replicate(variables, mesh), tagger.encode(records), None, mesh
    return tagger.predict(*arguments, batch_size=8, probabilities=True)


def without_windows(tagger):
    return dataclasses.replace(tagger, text=dataclasses.replace(tagger.text, windows=False))


def enumerated(emissions, params) -> dict[tuple, float]:
    """exp(score) of every tag path over emissions [W, 5]."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    weights = {}
    for path in itertools.product(range(5), repeat=len(emissions)):
        score = params.start_transitions[path[0]] + params.end_transitions[path[-1]]
        score += sum(params.transitions[i, j] for i, j in itertools.pairwise(path))
        score += sum(float(emissions[position, tag]) for position, tag in enumerate(path))
        weights[path] = np.exp(score)
    return weights


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_span_probabilities_equal_enumeration(tagger, variables, temperature):
    predictions = predict(dataclasses.replace(tagger, temperature=temperature), variables)
    assert [one.tags for one in predictions] == [one.tags for one in predict(tagger, variables)]
    checked = 0
    for record, prediction in zip(RECORDS, predictions, strict=True):
        assert len(prediction.tags) == len(record.tokens)
        assert prediction.spans == spans_from_tags(prediction.tags, strict=True)
        [example] = tagger.encode([record])
        kept = example.pieces.words
        if len(kept) > 3 or not prediction.spans:
            continue
        output = jax.jit(lambda v, b: tagger.method.apply(v, b, train=False))(
            variables, tagger.collator(None)([example], 8)
        ).scores
        params = constrain(crf.CRFParams(**jax.tree.map(jnp.asarray, variables["params"]["crf"])), tagger.tags)
        weights = enumerated(output[0, : len(kept)], params)
        weights = {path: weight ** (1 / temperature) for path, weight in weights.items()}
        for span, probability in zip(prediction.spans, prediction.probabilities, strict=True):
            # A word without a piece takes no part in the CRF: spans are compared on the kept words.
            start = kept.index(span.start)
            end = start + sum(span.start <= word < span.end for word in kept)
            matching = sum(
                weight
                for path, weight in weights.items()
                if (start, end, span.label) in spans_from_tags(tagger.tag_set.decode(path), strict=True)
            )
            assert probability == pytest.approx(matching / sum(weights.values()), rel=1e-5)
            checked += 1
    assert checked >= 2


def test_other_lengths_and_fewer_rows_change_rounding_alone(tagger, variables, monkeypatch):
    """The same posts in batches of eight rows of one length, and one by one in rows as long as each needs."""
    mesh, shapes = make_mesh(1), []
    step = tagger.predict_step(mesh)
    close = dataclasses.replace(tagger, buckets=(4, 8))
    monkeypatch.setattr("tmrjax.tasks.system.READING_LENGTHS", (4, 6))
    assert close.reading_lengths == (4, 6, 8)

    def told(variables, batch):
        shapes.append(batch["input_ids"].shape)
        return step(variables, batch)

    examples = tagger.encode(RECORDS)
    arguments = (told, variables, examples, None, mesh)
    together = tagger.predict(*arguments, batch_size=8, probabilities=True)
    assert {length for _, length in shapes} == {8}
    shapes.clear()
    apart = [
        close.predict(told, variables, [example], None, mesh, batch_size=8, probabilities=True)[0]
        for example in examples
    ]
    assert {rows for rows, _ in shapes} <= {1, 4} and (1, 4) in shapes and len({length for _, length in shapes}) > 1
    found = 0
    for one, other in zip(together, apart, strict=True):
        assert one.tags == other.tags and one.spans == other.spans
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)
        found += len(one.spans)
    assert found > 2


def test_the_temperature_of_least_log_loss_is_found(tagger, variables):
    """By trying each, on posts of which every other one was tagged rightly."""
    tags = [tuple(one.tags) for one in predict(tagger, variables)]
    records = [
        dataclasses.replace(record, tags=found if index % 2 else ("O",) * len(found))
        for index, (record, found) in enumerate(zip(RECORDS, tags, strict=True))
    ]
    examples, mesh = tagger.encode(records), make_mesh(1)
    given = tagger.predict_step(mesh), replicate(variables, mesh), examples, None, mesh
    losses = {}
    for temperature in TEMPERATURES:
        found = predict(dataclasses.replace(tagger, temperature=temperature), variables)
        losses[temperature] = log_loss(*outcomes(tagger.prediction_rows(examples, found), "ner"))
    assert losses[tagger.fit_temperature(*given, batch_size=8)[0]] == min(losses.values())
    assert 1.0 in TEMPERATURES and len(set(losses.values())) > 5
    with pytest.raises(ValueError, match="temperature is 0; expected a number above 0"):
        dataclasses.replace(tagger, temperature=0)


def test_cut_words_come_back_as_outside_and_a_post_without_pieces_is_no_error(tagger, variables):
    predictions = predict(without_windows(tagger), variables, devices=8)
    assert len(predictions[2].tags) == 9 and predictions[2].tags[6:] == ["O", "O", "O"]
    assert predictions[3].tags == ["O"] and predictions[3].spans == []


# ---------------------------------------------------------------------- long posts

WORDS_OF_LONG = ("Jordan", "at", "the", "at", "Jordan", "Jordan", "the")
LONG = Record(id="long", tokens=WORDS_OF_LONG, tags=("O",) * 7)


def emissions_of(tagger, variables, record):
    """[words, 5] of a post that fits, without System.predict."""
    [example] = without_windows(tagger).encode([record])
    assert not example.pieces.cut
    output = jax.jit(lambda v, b: tagger.method.apply(v, b, train=False))(
        variables, tagger.collator(None)([example], 8)
    ).scores
    return np.asarray(output[0, : len(record.tokens)])


def test_short_posts_are_read_as_without_windows(tagger, variables):
    short = [record for record in RECORDS if record.id != "c"]
    assert predict(tagger, variables, records=short) == predict(without_windows(tagger), variables, records=short)


def test_a_long_post_is_read_in_windows_and_decoded_as_a_whole(tagger, variables):
    """7 words, 6 in a window, 3 shared: [0, 6) owns 0 to 2, [1, 7) the rest; the CRF reads all seven."""
    windows = [WORDS_OF_LONG[:6], WORDS_OF_LONG[1:]]
    first, second = (emissions_of(tagger, variables, Record(id="w", tokens=tokens)) for tokens in windows)
    params = constrain(crf.CRFParams(**jax.tree.map(jnp.asarray, variables["params"]["crf"])), tagger.tags)
    weights = enumerated(np.concatenate([first[:3], second[2:]]), params)
    best = max(weights, key=weights.get)
    for devices, others in ((1, []), (8, RECORDS)):
        prediction = predict(tagger, variables, devices, [*others, LONG, *others])[len(others)]
        assert prediction.tags == list(tagger.tag_set.decode(best))
        assert prediction.spans == spans_from_tags(prediction.tags, strict=True) != []
        for span, probability in zip(prediction.spans, prediction.probabilities, strict=True):
            matching = sum(
                weight
                for path, weight in weights.items()
                if span in spans_from_tags(tagger.tag_set.decode(path), strict=True)
            )
            assert probability == pytest.approx(matching / sum(weights.values()), rel=1e-4)
    assert any(span.start < 3 < span.end or span.start >= 3 for span in prediction.spans)


def test_a_post_of_thousands_of_words_loses_none(tagger, variables):
    record = Record(id="book", tokens=("Jordan", "harbour", "\ufe0f") * 700)
    [prediction] = predict(tagger, variables, records=[record])
    [example] = tagger.encode([record])
    assert (example.pieces.cut, len(example.pieces.words), len(prediction.tags)) == ([], 1400, 2100)
    assert prediction.spans[-1].end > 2000 and len(prediction.spans) == len(prediction.probabilities)
    assert all(0 < probability <= 1 for probability in prediction.probabilities)


def test_windows_of_training_own_every_word_once_and_begin_outside_of_entities(tagger, caplog):
    tags = ("O", "O", "B-PER", "I-PER", "I-PER", "O", "B-LOC")  # without tags the cut would be at 3
    [example] = tagger.encode([dataclasses.replace(LONG, tags=tags)])
    rows = tagger.training_rows([example])
    assert [row.pieces.words for row in rows] == [[0, 1], [2, 3, 4, 5, 6]]
    assert [tagger.tag_set.decode(tagger.gold.row(row, Reading(None, tagger.text))["tags"])[0] for row in rows] == [
        "O",
        "B-PER",
    ]
    assert [row.pieces.word_starts for row in rows] == [[1, 2], [2, 3, 4, 5, 6]]
    names = [tagger.tokenizer.convert_ids_to_tokens(row.pieces.input_ids) for row in rows]
    assert names[0] == ["[CLS]", *(word.lower() for word in WORDS_OF_LONG[:6]), "[SEP]"]
    assert names[1] == ["[CLS]", *(word.lower() for word in WORDS_OF_LONG[1:]), "[SEP]"]
    # An entity that is longer than the overlap: what no window can begin with takes no part.
    caplog.set_level("INFO")
    [example] = tagger.encode([dataclasses.replace(LONG, tags=("B-PER", *["I-PER"] * 6))])
    rows = tagger.training_rows([example])
    assert [row.pieces.words for row in rows] == [[0, 1, 2]]
    assert "4 words of entities longer than the overlap of two windows are not trained on" in caplog.text
    batch = tagger.collator(None)(rows, 8)
    assert batch["word_mask"].sum() == 3


def test_a_word_longer_than_a_window_is_read_by_its_first_pieces(tagger, variables, caplog):
    caplog.set_level("INFO")
    record = Record(id="url", tokens=("at", "at." * 9, "Jordan"))  # 18 pieces, "." is [UNK]
    [prediction] = predict(tagger, variables, records=[record])
    assert len(prediction.tags) == 3 and "1 words are longer than a window" in caplog.text


def test_a_long_post_of_the_released_tagger_keeps_its_limit_and_says_so(tagger, caplog):
    tagger = dataclasses.replace(
        tagger,
        text=dataclasses.replace(tagger.text, piece_tags=True),
        method=dataclasses.replace(tagger.method, num_labels=13),
    )
    [example] = tagger.encode([Record(id="c", tokens=("at",) * 9)])
    assert example.pieces.cut == [6, 7, 8] and len(tagger.rows(example)) == 1
    assert "3 words of 1 posts lie outside of the limit of 8 word pieces" in caplog.text


def test_words_that_the_vocabulary_does_not_know_are_said(tagger, caplog):
    known = [Record(id=str(i), tokens=("at", "the", "Jordan", "harbour")) for i in range(3)]
    tagger.encode(known)
    assert "[UNK]" not in caplog.text
    tagger.encode([*known, Record(id="x", tokens=("zzz", "the", "\ufe0f"))], say="train")
    assert "train: 1 of 15 words (7 %) are [UNK]" in caplog.text and "Wrong vocabulary" not in caplog.text
    tagger.encode([Record(id="x", tokens=("漢", "字", "the"))], say="train")
    assert "2 of 3 words (67 %) are [UNK]" in caplog.text and "Wrong vocabulary?" in caplog.text


def test_a_report_counts_words_and_its_table_says_what_was_not_read(tagger, variables):
    records = [Record(id="x", tokens=("漢", "字", "the"), tags=("O",) * 3), dataclasses.replace(LONG, id="y")]
    report = {}
    for windows, unread in ((True, 0), (False, 1)):
        one = tagger if windows else without_windows(tagger)
        examples = one.encode(records)
        report = one.report(examples, predict(one, variables, records=records))
        assert report["words"] == {"words": 10, "unread": unread, "unknown": 2}
    table = format_report("ner", report, "title", DatasetInfo(name="x", task="ner", labels=("PER", "LOC")))
    assert "! 2 of 10 words (20 %) are [UNK]" in table
    assert "! 1 of 10 words lie outside of the limit and were not read" in table


def test_the_training_data_decide_how_raw_text_is_split_unless_the_config_does():
    dataset = SimpleNamespace(splits={"train": [Record(id="a", tokens=tuple("徐悲鸿绘"))]})
    config = get_config("twitter2017")
    assert config.data.windows and build.word_splitting(config, dataset) == "characters"
    config.data.word_splitting = "spaces"
    assert build.word_splitting(config, dataset) == "spaces"
    with pytest.raises(ValueError, match="word_splitting is 'words'; expected one of spaces, graphemes"):
        TextSettings(word_splitting="words")


def test_a_checkpoint_from_before_windows_cuts_as_it_did(tagger):
    meta = json.loads(json.dumps(tagger.to_meta()))
    meta["text"] = {"max_pieces": 8, "max_phrase_pieces": 3, "piece_tags": False}
    again = Tagger.from_meta(meta)
    assert (again.text.windows, again.text.word_splitting) == (False, "unseen")
    assert again.encode([LONG])[0].pieces.cut == [6]


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
        with pytest.raises(ValueError, match="has no picture encoder"):
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
