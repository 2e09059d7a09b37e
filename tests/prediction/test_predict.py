"""Prediction from Python with a tiny model of random weights: any post, any picture, any error, constant memory."""

import dataclasses
import io
import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.files import DataError
from tmrjax.inputs.settings import TextSettings
from tmrjax.models import TMRForNER, TMRForRE
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.predict import Predictor
from tmrjax.prediction.posts import UnreadPostsError
from tmrjax.tasks.entities import Tagger
from tmrjax.tasks.relations import RelationClassifier
from tmrjax.text.tokenizers import load_tokenizer

WORDS = [
    "[PAD]", "[unused0]", "[unused1]", "[unused2]", "[unused3]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    "jordan", "har", "##bour", "at", "the", *"徐悲鸿绘130厘米",
]  # fmt: skip
BERT = BertConfig(
    vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=16,
)  # fmt: skip
RESNET = ResNetConfig(embedding_size=4, hidden_sizes=(8,), depths=(1,), layer_type="basic")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(WORDS)), encoding="utf-8")
    return load_tokenizer(folder)


def random_variables(system):
    """Large random weights, so that something is found."""
    variables = jax.eval_shape(lambda: system.method.init(jax.random.key(0), system.dummy_batch(), train=False))
    generator = np.random.default_rng(3)
    variables = jax.tree.map(lambda x: generator.normal(0, 0.7, x.shape).astype(np.float32), variables)
    if "batch_stats" in variables:  # variances
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    if "crf" in variables["params"]:  # every word wants to be an entity of its own
        variables["params"]["crf"] = jax.tree.map(np.zeros_like, variables["params"]["crf"])
        variables["params"]["emission"]["bias"] = np.float32([0, 3, 0, 3, 0])
    return variables


def make(system, **options) -> Predictor:
    return Predictor(system, random_variables(system), {}, devices=1, **options)


@pytest.fixture(scope="module")
def text_reader(tokenizer):
    model = TMRForNER(bert=BERT, num_tags=5, variant="text")
    return Tagger(model.method(), ("PER", "LOC"), tokenizer, TextSettings(12, 3), PictureSettings(), buckets=(12,))


@pytest.fixture(scope="module")
def predictor(text_reader):
    return make(text_reader)


@pytest.fixture(scope="module")
def with_pictures(tokenizer):
    model = TMRForNER(bert=BERT, resnet=RESNET, num_tags=5, num_heads=2, use_back_translation=False)
    return make(
        Tagger(model.method(), ("PER", "LOC"), tokenizer, TextSettings(12, 3), PictureSettings(8, 8), buckets=(12,))
    )


@pytest.fixture(scope="module")
def relations(tokenizer):
    model = TMRForRE(bert=BERT, num_relations=2, variant="text")
    return make(
        RelationClassifier(model.method(), ("None", "in"), tokenizer, TextSettings(12, 3), PictureSettings(), (12,))
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "root"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels).save(folder.parent / "outside.png")
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "damaged.png").write_bytes((folder / "a.png").read_bytes()[:400])
    return folder


def test_probabilities_of_relations_at_a_temperature(relations):
    """The softmax of logits / T, and what is predicted stays; as in float64."""
    logits = np.random.default_rng(0).normal(0, 3, (5, 2))
    output = {"probabilities": np.float32(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))}
    for temperature in (1.0, 0.5, 3.0):
        system = dataclasses.replace(relations.system, temperature=temperature)
        scaled = np.exp(logits / temperature)
        expected = scaled / scaled.sum(1, keepdims=True)
        for row, found in system._decode(output, dict.fromkeys(range(5)), probabilities=True).items():
            np.testing.assert_allclose(found.distribution, expected[row], rtol=1e-5)
            assert found.relation == system.labels[logits[row].argmax()]
            assert found.probability == pytest.approx(expected[row].max(), rel=1e-5)


# ---------------------------------------------------------------------- posts


def test_a_post_may_be_a_text_and_other_keys_are_carried_through(predictor):
    assert predictor.entities("Jordan at the harbour") == predictor.entities({"text": "Jordan at the harbour"})
    one, two = predictor.entities(
        ["at the harbour", {"text": "Jordan", "id": 7, "created_at": "2026", "user": {"a": [1]}, "full_text": "x"}]
    )
    assert one["id"] is None and two["id"] == 7
    assert (two["created_at"], two["user"], two["full_text"]) == ("2026", {"a": [1]}, "x")
    assert list(predictor.entities([])) == []


@pytest.mark.parametrize("key", ["txet", "imgae", "token", "region", "Text", "img", "score"])
def test_a_near_miss_of_a_known_key_is_an_error_that_names_it(predictor, key):
    with pytest.raises(DataError, match=rf"unknown key '{key}'.*Did you mean '\w+'"):
        predictor.entities({"text": "Jordan", key: 1} if key not in ("txet", "Text") else {key: "Jordan"})
    if key not in ("txet", "Text"):
        assert predictor.entities({"text": "Jordan", key: 1}, carry=[key])[key] == 1


def test_a_key_of_the_result_is_not_overwritten(predictor):
    with pytest.raises(DataError, match="the key 'masked'"):
        predictor.entities({"text": "Jordan", "masked": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", True, [1], {"a": 1}])
def test_an_id_is_checked_when_it_is_read(predictor, value):
    with pytest.raises(DataError, match=r"^post 0: .*'id'"):
        predictor.entities({"text": "Jordan", "id": value})


@pytest.mark.parametrize("value", [None, "", "a", 3, 2.5])
def test_ids_come_back(predictor, value):
    assert predictor.entities({"text": "Jordan", "id": value})["id"] == value


# ---------------------------------------------------------------------- errors


def test_a_bad_post_of_many_raises_after_the_others_are_done(predictor):
    posts = ["Jordan", {"text": "", "id": 5}, "at the harbour", {"txet": "x"}, {"text": "the", "id": "z"}]
    with pytest.raises(UnreadPostsError, match=r"2 of 5 .*the first: post 1: found '' in 'text'") as caught:
        predictor.entities(posts)
    good = [predictor.entities(posts[i]) for i in (0, 2, 4)]
    assert [one["text"] for one in caught.value.results if one] == [one["text"] for one in good]
    assert [(e.index, e.id) for e in caught.value.errors] == [(1, 5), (3, None)]
    assert pickle.loads(pickle.dumps(caught.value)).errors[0].index == 1
    returned = predictor.entities(posts, on_error="return")
    assert [set(one) == {"id", "error"} for one in returned] == [False, True, False, True, False]
    assert returned[1]["id"] == 5 and "post 1: found ''" in returned[1]["error"]
    assert predictor.entities({"text": ""}, on_error="return")["error"].startswith("post 0")
    with pytest.raises(ValueError, match="'raise' or 'return', not 'skip'"):
        predictor.entities(posts, on_error="skip")


def test_a_stream_is_lazy_and_raises_in_its_place(predictor):
    taken = []

    def posts():
        for number in range(1000):
            taken.append(number)
            yield "Jordan at the harbour" if number != 5 else {"text": ""}

    results = predictor.stream(posts(), chunk=4, batch_size=4)
    assert [next(results)["text"] for _ in range(5)] == ["Jordan at the harbour"] * 5
    assert len(taken) <= 8
    with pytest.raises(DataError, match=r"^post 5: "):
        next(results)
    returned = list(predictor.stream(["Jordan", {"text": ""}, "the"], chunk=2, on_error="return"))
    assert ["error" in one for one in returned] == [False, True, False]


def test_chunks_and_batches_do_not_change_what_is_found(predictor):
    posts = [f"{'Jordan at the ' * (1 + number % 5)}harbour" for number in range(23)]
    whole = predictor.entities(posts)
    assert sum(len(result["entities"]) for result in whole) > 5
    for chunk, batch_size in ((1, 1), (7, 4)):
        streamed = list(predictor.stream(posts, chunk=chunk, batch_size=batch_size))
        for one, two in zip(whole, streamed, strict=True):
            assert [(e["start"], e["end"], e["label"]) for e in one["entities"]] == [
                (e["start"], e["end"], e["label"]) for e in two["entities"]
            ]


def test_new_numbers_of_posts_are_not_compiled_anew(text_reader):
    predictor = make(text_reader)
    for count in (1, 2, 3, 5, 9, 16, 17, 40):
        predictor.entities(["Jordan at the harbour"] * count)
    assert len(predictor._step) == 3  # of one row, of four, and of a whole batch
    assert predictor.compile_seconds > 0


# ---------------------------------------------------------------------- pictures


def test_a_picture_may_be_a_path_an_object_or_bytes(with_pictures, root):
    opened = Image.open(root / "a.png")
    pictures = ["a.png", Path("a.png"), root / "a.png", opened, np.asarray(opened), (root / "a.png").read_bytes()]
    posts = [{"text": "Jordan at the harbour", "image": picture} for picture in pictures]
    results = with_pictures.entities(posts, root=root)
    assert all(result == results[0] for result in results) and results[0]["masked"] == []
    without = with_pictures.entities("Jordan at the harbour")
    assert without["masked"] == ["picture"]
    scores = [[entity["score"] for entity in result["entities"]] for result in (results[0], without)]
    assert scores[0] and scores[0] != scores[1]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("http://example.com/a.jpg", "URLs are not fetched"),
        ("../outside.png", "leads out of"),
        ("/etc/passwd", "leads out of"),
        ("link.png", "leads out of"),
        ("missing.png", r"missing\.png: found no such file"),
        ("damaged.png", r"damaged\.png: found a damaged picture"),
        ("a\0.png", "NUL"),
        (3, "int in 'image'"),
        (b"no picture", "post 1, 'image': found a file that is no picture"),
        (np.zeros((4, 4), np.uint8), r"an array uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), "an array float32"),
    ],
)
def test_a_bad_picture_touches_no_other_post(with_pictures, root, picture, message):
    good = {"text": "Jordan at the harbour", "image": "a.png"}
    posts = [good, {"text": "at the harbour", "image": picture}, good]
    with pytest.raises(UnreadPostsError, match=message) as caught:
        with_pictures.entities(posts, root=root)
    assert [result is None for result in caught.value.results] == [False, True, False]
    assert caught.value.results[0] == caught.value.results[2]
    assert caught.value.errors[0].error.where.startswith("post 1")


def test_paths_may_lead_out_where_asked(with_pictures, root):
    for picture in ("../outside.png", "link.png", str(root.parent / "outside.png")):
        [result] = with_pictures.entities([{"text": "Jordan", "image": picture}], root=root, allow_outside=True)
        assert result["masked"] == []
    assert with_pictures.entities({"text": "Jordan", "image": Path("../outside.png")}, root=root)["masked"] == []


def test_warnings_come_once_and_speak_of_prediction(with_pictures, caplog):
    predictor = make(with_pictures.system)
    for _ in range(3):
        predictor.entities(["Jordan", "at the harbour"])
    predictor.entities(["zzz yyy xxx"] * 8)
    predictor.entities(["zzz yyy xxx"] * 8)
    assert caplog.text.count("2 of 2 posts come without picture: that input is masked") == 1
    assert caplog.text.count("come without") == 1 and "missed" not in caplog.text
    assert caplog.text.count("[UNK]") == 1 and "Wrong vocabulary?" in caplog.text


# ---------------------------------------------------------------------- words


def split_like(system, splitting) -> Predictor:
    return make(dataclasses.replace(system, text=dataclasses.replace(system.text, word_splitting=splitting)))


def test_raw_text_is_read_as_the_tokens_that_the_model_was_trained_on(text_reader):
    predictor = split_like(text_reader, "characters")
    raw = predictor.entities("徐悲鸿绘130厘米")
    tokens = predictor.entities({"tokens": list("徐悲鸿绘130厘米")})
    assert raw == tokens and raw["entities"]
    for entity in raw["entities"]:
        assert raw["text"][entity["start"] : entity["end"]] == entity["text"]
    spaces = split_like(text_reader, "spaces").entities("徐悲鸿绘130厘米")
    assert [e["text"] for e in spaces["entities"]] != [e["text"] for e in raw["entities"]]


def test_tokens_are_joined_by_a_blank_or_as_told(text_reader):
    tokens = {"tokens": ["Jordan", "harbour"]}
    assert split_like(text_reader, "spaces").entities(tokens)["text"] == "Jordan harbour"
    assert split_like(text_reader, "graphemes").entities(tokens)["text"] == "Jordanharbour"
    result = make(text_reader, joiner="--").entities(tokens)
    assert result["text"] == "Jordan--harbour"
    assert all(result["text"][e["start"] : e["end"]] == e["text"] for e in result["entities"])


@pytest.mark.parametrize(
    ("splitting", "message"), [("unseen", "--word-splitting"), ("segmented", "cut by that program"), ("spaces", None)]
)
def test_a_script_without_blanks_that_training_had_not_is_said_once(text_reader, caplog, splitting, message):
    predictor = split_like(text_reader, splitting)
    predictor.entities("Jordan at the harbour")
    predictor.entities({"tokens": ["徐悲鸿", "绘"]})
    assert "writes no blanks" not in caplog.text
    for _ in range(2):
        predictor.entities("徐悲鸿绘")
    assert caplog.text.count("writes no blanks") == (0 if message is None else 1)
    assert message is None or message in caplog.text


def test_long_posts_lose_no_word_unless_asked(text_reader, caplog):
    text = " ".join(["Jordan at the harbour"] * 20)
    result = make(text_reader).entities(text)
    assert result["unread_words"] == 0 and result["entities"][-1]["end"] > 300 and "outside" not in caplog.text
    text_settings = dataclasses.replace(text_reader.text, windows=False)
    cut = make(dataclasses.replace(text_reader, text=text_settings)).entities(text)
    assert cut["unread_words"] == 72
    assert "1 of 1 posts have words outside of the limit of 12 word pieces" in caplog.text


# ---------------------------------------------------------------------- relations


def test_relations_of_many_posts_with_errors(relations, predictor):
    good = {"text": "Jordan at the harbour", "head": [0, 6], "tail": [14, 21], "lang": "en"}
    far = {"text": f"Jordan {'at ' * 20}harbour", "head": [0, 6], "tail": [67, 74]}
    found = relations.relations([good, far, {"text": "Jordan"}], on_error="return")
    assert found[0]["relations"][0]["head"]["text"] == "Jordan" and found[0]["lang"] == "en"
    assert "too long" in found[1]["error"] and "neither 'head' nor 'tail'" in found[2]["error"]
    # Found pairs that are too far apart are counted; they are no error of the post.
    searched = relations.relations(far["text"], entities=predictor, keep_none=True)
    entities = predictor.entities(far["text"])["entities"]
    asked = len(searched["relations"]) + searched["unread_pairs"]
    assert asked == len(entities) * (len(entities) - 1) and searched["unread_pairs"] > 0
    bad = relations.relations(["Jordan at the harbour", {"text": ""}], entities=predictor, on_error="return")
    assert "relations" in bad[0] and bad[1]["error"].startswith("post 1")


def test_results_are_json(with_pictures, root):
    result = with_pictures.entities({"text": "Jordan", "image": "a.png"}, root=root)
    assert json.loads(json.dumps(result)) == result
    with io.BytesIO() as file:
        Image.new("RGB", (9, 9)).save(file, "PNG")
        assert with_pictures.entities({"text": "Jordan", "image": file.getvalue()})["masked"] == []
