"""What a picture did: weights as computed by hand from the same parameters, answers without pictures."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from tests.prediction.test_predict import (  # noqa: F401 - fixtures
    make,
    predictor,
    relations,
    root,
    text_reader,
    tokenizer,
    with_pictures,
)
from tests.test_models import softmax
from tmrjax.explain import PICTURE_KEYS, Explainer
from tmrjax.files import DataError
from tmrjax.inputs.settings import TextSettings
from tmrjax.models import TMRForRE
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.tasks.relations import RelationClassifier

BOXES = [[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 1.0, 1.0]]
POST = {"text": "Jordan at the harbour", "image": "a.png", "regions": BOXES, "phrases": ["the harbour"]}


@pytest.fixture(scope="module")
def explained(with_pictures, root):  # noqa: F811
    return Explainer(with_pictures)(POST, root=root)


def test_weights_equal_eq_1_by_hand(explained, with_pictures, root):  # noqa: F811
    """A = softmax((V W) Tᵀ / √D) in float64, from the states of the encoders and the parameters of the checkpoint."""
    system, variables = with_pictures.system, jax.device_get(with_pictures.variables)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    picture = Image.open(root / "a.png").convert("RGB")
    pixels = np.stack(
        [system.pictures.whole_pixels(picture), *(system.pictures.region_pixels(picture, b) for b in BOXES)]
    )
    encoder = {name: tree["picture_encoder"]["resnet"] for name, tree in variables.items()}
    tokens = np.asarray(system.picture_states(("tokens",))(encoder, pixels)["tokens"], np.float64)
    project = params["visual_projection"]
    visual = {"fine": tokens[0], "coarse": tokens[1:].mean(1)}

    def states_of(text):
        from tmrjax.encoders.text.bert import BertEncoder

        ids = np.array([system.tokenizer(text)["input_ids"]])
        bert = BertEncoder(system.method.text)
        return np.asarray(
            bert.apply({"params": variables["params"]["bert"]}, ids, ids >= 0, train=False)[0], np.float64
        )[0]

    expected = {}
    for grain, text in (("fine", POST["text"]), ("coarse", "the harbour")):
        queries = (visual[grain] @ project["kernel"] + project["bias"]) @ params["grain_fusion"][f"{grain}_weight"]
        expected[grain] = softmax(queries @ states_of(text).T / np.sqrt(8))
    found = explained.attention["image"]
    assert list(explained.attention) == ["image"] and found.patches.shape == (2, 2, 4)
    # [CLS] jordan at the har ##bour [SEP]: the last word has two pieces.
    pieces = expected["fine"]
    by_word = np.stack([pieces[:, 1], pieces[:, 2], pieces[:, 3], pieces[:, 4] + pieces[:, 5]], -1)
    np.testing.assert_allclose(found.patches, by_word.reshape(2, 2, 4), rtol=2e-4, atol=1e-5)
    assert found.phrase_pieces == ("[CLS]", "the", "har", "##bour", "[SEP]")
    np.testing.assert_allclose(found.region_weights, expected["coarse"], rtol=2e-4, atol=1e-5)
    assert by_word.std() > 0.02 and found.regions == tuple(map(tuple, BOXES)) and found.seen == (1 / 6, 0, 5 / 6, 1)
    assert [POST["text"][slice(*word)] for word in explained.words] == POST["text"].split()


def test_the_answer_is_the_predictors_with_and_without_pictures(explained, with_pictures, root):  # noqa: F811
    assert explained.result == with_pictures.entities(POST, root=root) and explained.result["entities"]
    assert explained.without_pictures == with_pictures.entities(POST["text"])
    assert explained.without_pictures["entities"] != explained.result["entities"]
    alone = Explainer(with_pictures)(POST["text"])
    assert (alone.without_pictures, alone.attention, alone.pair) == (None, {}, None)
    assert {"image", "generated_image", "sides"} <= set(PICTURE_KEYS)


def test_a_method_without_eq_1_has_no_weights(predictor, root):  # noqa: F811
    found = Explainer(predictor)(POST, root=root)
    assert found.attention == {} and found.without_pictures["entities"] == found.result["entities"]


def test_windows_of_a_long_post_are_joined(with_pictures, root):  # noqa: F811
    """Each word from the window that owns it: the first and the last window as posts of their own."""
    explain = Explainer(with_pictures)
    long = explain({**POST, "text": "Jordan at the harbour " * 6}, root=root).attention["image"].patches
    assert long.shape == (2, 2, 24) and (long.sum((0, 1)) > 0).all() and (long.sum(-1) < 3).all()
    # Two windows of ten pieces begin with the same words in the same places.
    first = (
        explain({**POST, "text": "Jordan at the harbour Jordan at the harbour"}, root=root).attention["image"].patches
    )
    np.testing.assert_allclose(long[..., :4], first[..., :4], atol=1e-6)


def test_relations_look_with_their_pair_marked(tokenizer, predictor, root):  # noqa: F811
    from tests.prediction.test_predict import BERT, RESNET

    model = TMRForRE(bert=BERT, resnet=RESNET, num_relations=2, use_back_translation=False)
    text = TextSettings(12, 3)
    system = RelationClassifier(model.method(), ("None", "in"), tokenizer, text, PictureSettings(8, 8), (12,))
    reader = make(system)
    buffer = io.BytesIO()
    Image.open(root / "a.png").save(buffer, "PNG")
    post = {**POST, "image": buffer.getvalue(), "head": [0, 6], "tail": [14, 21]}
    found = Explainer(reader)(post)
    assert found.result == reader.relations(post) and found.pair[0]["text"] == "Jordan"
    assert found.attention["image"].patches.shape == (2, 2, 4)
    turned = Explainer(reader)({**post, "head": [14, 21], "tail": [0, 6]})
    assert np.abs(turned.attention["image"].patches - found.attention["image"].patches).max() > 1e-4
    unmarked = {key: value for key, value in post.items() if key not in ("head", "tail")}
    searched = Explainer(reader, entities=predictor)(unmarked)
    listed = {"result": searched.result["relations"], "without": searched.without_pictures["relations"]}
    assert len(listed["result"]) == len(listed["without"]) > 0
    for ours, theirs in zip(listed["result"], listed["without"], strict=True):
        assert "in" in (ours["relation"], theirs["relation"]) and ours["head"] == theirs["head"]
    with pytest.raises(DataError, match="neither 'head' nor 'tail'"):
        Explainer(reader)(unmarked)
