"""TMRForNER: Eq. 1 to 9 from its own intermediates in float64, masks, ablations, pixels and features."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.methods.base import method_from_dict, method_to_dict
from tmrjax.models import TMRForNER

BERT = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=32,
)  # fmt: skip
RESNET = ResNetConfig(embedding_size=4, hidden_sizes=(8, 12), depths=(1, 1), layer_type="basic")
B, T, W, P, TAGS = 3, 8, 6, 5, 5
FEATURES, PATCHES, SIZE = 12, 4, 16


def make_model(**options) -> TMRForNER:
    return TMRForNER(**{"bert": BERT, "num_tags": TAGS, "resnet": RESNET, "num_heads": 2, **options})


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    batch = {
        "input_ids": generator.integers(0, 40, (B, T)),
        "attention_mask": np.array([[1] * 8, [1] * 5 + [0] * 3, [1] * 3 + [0] * 5], bool),
        "word_starts": np.array([[1, 2, 4, 5, 6, 0], [1, 3, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
        "word_mask": np.array([[1] * 5 + [0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool),
        "phrase_ids": generator.integers(0, 40, (B, P)),
        "phrase_mask": np.array([[1] * 5, [1, 1, 1, 0, 0], [1] * 5], bool),
    }
    for prefix in ("", "generated_"):
        batch[f"{prefix}image"] = generator.normal(size=(B, SIZE, SIZE, 3)).astype(np.float32)
        batch[f"{prefix}regions"] = generator.normal(size=(B, 3, SIZE, SIZE, 3)).astype(np.float32)
        batch[f"{prefix}image_mask"] = np.array([True, True, prefix == ""])
        batch[f"{prefix}region_mask"] = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
        batch[f"{prefix}scores"] = generator.dirichlet(np.ones(3), B).astype(np.float32)
    return batch


@pytest.fixture(scope="module")
def variables(batch):
    variables = jax.jit(lambda key: make_model().init(key, batch, train=False))(jax.random.key(0))
    generator = np.random.default_rng(1)
    # Away from initial values: biases of zero and scales of one would hide what is left out.
    return jax.tree.map(lambda x: x + jnp.asarray(generator.normal(0, 0.1, x.shape), x.dtype), variables)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, batch):
    return model.apply(variables, batch, train=False)


@jax.jit
def resnet_maps(variables, pixels):
    resnet = {name: tree["picture_encoder"]["resnet"] for name, tree in variables.items()}
    maps = ResNetEncoder(RESNET).apply(resnet, pixels.reshape(-1, SIZE, SIZE, 3), train=False).tokens
    return maps.reshape(*pixels.shape[:-3], PATCHES, FEATURES)


def emissions(model, variables, batch):
    return np.asarray(apply(model, variables, batch)[0])


def layer_norm(x, params):
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normalised * params["scale"] + params["bias"]


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def reference_emissions(params, batch, text, phrases, maps, *, literal):
    """Eq. 1 to 8 of one post at a time, in float64, by valid entries alone."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = []
    for b in range(B):
        keys, words = [], np.asarray(text[b], np.float64)[batch["attention_mask"][b]]
        phrase = np.asarray(phrases[b], np.float64)[batch["phrase_mask"][b]]
        for prefix in ("", "generated_"):
            projection = params["visual_projection"]
            total = np.zeros(16)
            present = False
            for grain, states, visual, score in (
                ("fine", words, maps[f"{prefix}image"][b][[batch[f"{prefix}image_mask"][b]] * PATCHES], 2),
                ("coarse", phrase, maps[f"{prefix}region"][b].mean(1)[batch[f"{prefix}region_mask"][b]], 1),
            ):
                if not len(visual):
                    continue
                present = True
                visual = np.asarray(visual, np.float64) @ projection["kernel"] + projection["bias"]  # noqa: PLW2901
                weight = params["grain_fusion"][f"{grain}_weight"]
                attended = softmax(visual @ weight @ states.T / 4) @ states
                if literal:
                    correlation = attended.sum(0)
                else:
                    correlation = layer_norm((attended + visual).mean(0), params["grain_fusion"][f"{grain}_norm"])
                total += batch[f"{prefix}scores"][b, score] * correlation
            if present:
                keys.append(total)
        fused = np.asarray(text[b], np.float64)
        if keys:
            attention = params["text_fusion"]["attention"]

            def project(name, x, attention=attention):
                return np.einsum("nd,dhe->hne", x, attention[name]["kernel"]) + attention[name]["bias"][:, None]

            query, key, value = (
                project("query", fused),
                project("key", np.stack(keys)),
                project("value", np.stack(keys)),
            )
            heads = softmax(query @ key.swapaxes(1, 2) / np.sqrt(8)) @ value
            fused = fused + np.einsum("hne,hed->nd", heads, attention["output"]["kernel"]) + attention["output"]["bias"]
        fused = layer_norm(fused, params["text_fusion"]["norm"])
        rows.append(fused[batch["word_starts"][b]] @ params["emission"]["kernel"] + params["emission"]["bias"])
    return np.stack(rows)


@pytest.mark.parametrize("literal", [False, True])
def test_emissions_equal_the_formulas_in_float64(batch, variables, literal):
    model = make_model(literal=literal)
    result, states = apply(model, variables, batch)
    maps = {f"{prefix}{kind}": np.asarray(resnet_maps(variables, batch[f"{prefix}{kind}{'s' * (kind == 'region')}"]))
            for prefix in ("", "generated_") for kind in ("image", "region")}  # fmt: skip
    expected = reference_emissions(
        variables["params"], batch, states["text_states"], states["phrase_states"], maps, literal=literal
    )
    np.testing.assert_allclose(np.asarray(result)[batch["word_mask"]], expected[batch["word_mask"]], atol=1e-4)


def as_features(variables, batch):
    batch = dict(batch)
    for prefix in ("", "generated_"):
        for pixels, features in (("image", "image_features"), ("regions", "region_features")):
            array = batch.pop(f"{prefix}{pixels}")
            batch[f"{prefix}{features}"] = np.asarray(resnet_maps(variables, array))
    return batch


def test_pixels_and_features_give_the_same(batch, variables):
    features = as_features(variables, batch)
    expected = emissions(make_model(), variables, batch)
    np.testing.assert_allclose(emissions(make_model(), variables, features), expected, atol=1e-5)
    # A model without a ResNet takes the features, and says so when pixels come.
    np.testing.assert_allclose(emissions(make_model(resnet=None), variables, features), expected, atol=1e-5)
    with pytest.raises(ValueError, match="takes features"):
        emissions(make_model(resnet=None), variables, batch)
    with pytest.raises(ValueError, match="'generated_regions'"):
        emissions(make_model(), variables, {k: v for k, v in batch.items() if k != "generated_regions"})


def spoil(batch):
    """The same posts with NaN and garbage wherever a mask is False."""
    spoiled = dict(batch)
    for prefix in ("", "generated_"):
        image_mask, region_mask = batch[f"{prefix}image_mask"], batch[f"{prefix}region_mask"]
        spoiled[f"{prefix}image"] = np.where(image_mask[:, None, None, None], batch[f"{prefix}image"], np.nan)
        spoiled[f"{prefix}regions"] = np.where(region_mask[..., None, None, None], batch[f"{prefix}regions"], np.nan)
    spoiled["phrase_ids"] = np.where(batch["phrase_mask"], batch["phrase_ids"], 7)
    spoiled["input_ids"] = np.where(batch["attention_mask"], batch["input_ids"], 9)
    return spoiled


@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": "train"}, pytest.param({"literal": True}, marks=pytest.mark.slow)]
)
def test_masked_content_has_no_influence_on_output_or_gradient(batch, variables, options):
    model = make_model(**options)

    def loss(params, batch):
        (result, _), _ = model.apply(
            variables | {"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.where(batch["word_mask"][..., None], result, 0).sum()

    gradient = jax.jit(jax.value_and_grad(loss))
    value, tree = gradient(variables["params"], batch)
    spoiled_value, spoiled_tree = gradient(variables["params"], spoil(batch))
    assert value == spoiled_value
    jax.tree.map(np.testing.assert_array_equal, tree, spoiled_tree)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_a_masked_post_is_the_text_alone_whatever_its_pictures_are(batch, variables):
    masked = dict(batch)
    for prefix in ("", "generated_"):
        masked[f"{prefix}image_mask"] = np.zeros(B, bool)
        masked[f"{prefix}region_mask"] = np.zeros((B, 3), bool)
    result, states = apply(make_model(), variables, masked)
    norm = jax.tree.map(np.asarray, variables["params"]["text_fusion"]["norm"])
    np.testing.assert_allclose(states["fused"], layer_norm(np.asarray(states["text_states"]), norm), atol=1e-5)
    assert np.isfinite(result).all()


def test_ablations_are_masks_and_neutral_scores(batch, variables):
    without = {k: v for k, v in batch.items() if not k.startswith("generated_")}
    masked = dict(batch)
    masked["generated_image_mask"] = np.zeros(B, bool)
    masked["generated_region_mask"] = np.zeros((B, 3), bool)
    np.testing.assert_allclose(
        emissions(make_model(use_back_translation=False), variables, without),
        emissions(make_model(), variables, masked),
        atol=1e-6,
    )
    neutral = dict(batch)
    for prefix in ("", "generated_"):
        neutral[f"{prefix}scores"] = np.tile(np.array([0, 1, 1], np.float32), (B, 1))
    full = emissions(make_model(), variables, batch)
    unscored = emissions(make_model(use_scores=False), variables, batch)
    np.testing.assert_array_equal(unscored, emissions(make_model(), variables, neutral))
    for options in ({"use_scores": False}, {"grains": ("fine",)}, {"grains": ("coarse",)}, {"literal": True}):
        assert np.abs(emissions(make_model(**options), variables, batch) - full)[0].max() > 1e-3, options


def test_text_variant_needs_no_picture_keys(batch, variables):
    text = {k: batch[k] for k in ("input_ids", "attention_mask", "word_starts", "word_mask")}
    model = make_model(variant="text", resnet=None)
    params = model.init(jax.random.key(0), text, train=False)["params"]
    assert set(params) == {"bert", "crf", "emission"}
    result, states = apply(model, {"params": variables["params"]}, text)
    words = np.take_along_axis(np.asarray(states["text_states"]), text["word_starts"][..., None], 1)
    head = variables["params"]["emission"]
    np.testing.assert_allclose(result, words @ head["kernel"] + head["bias"], atol=1e-5)


def test_rows_do_not_influence_each_other(batch, variables):
    whole = emissions(make_model(), variables, batch)
    for row in range(B):
        alone = emissions(make_model(), variables, {k: v[row : row + 1] for k, v in batch.items()})
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-5)


def test_frozen_encoders_get_no_gradient(batch, variables):
    model = make_model(freeze_text=True, freeze_pictures=True)
    gradient = jax.jit(jax.grad(lambda p: model.apply(variables | {"params": p}, batch, train=False)[0].sum()))
    tree = gradient(variables["params"])
    for name in ("bert", "picture_encoder"):
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(tree[name]))
    assert np.asarray(tree["visual_projection"]["kernel"]).any()


def test_bfloat16_keeps_emissions_and_parameters_float32(batch, variables):
    model = make_model(dtype=jnp.bfloat16)
    result, states = apply(model, variables, batch)
    assert (result.dtype, states["crf"].transitions.dtype, states["text_states"].dtype) == (
        jnp.float32, jnp.float32, jnp.bfloat16,
    )  # fmt: skip
    params = jax.eval_shape(lambda key: model.init(key, batch, train=False), jax.random.key(0))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(result, emissions(make_model(), variables, batch), atol=0.15)


def test_a_model_survives_json_and_bad_fields_are_named():
    model = make_model(dtype=jnp.bfloat16, grains=("coarse",))
    assert (
        method_from_dict(type(model.method()), json.loads(json.dumps(method_to_dict(model.method())))) == model.method()
    )
    with pytest.raises(ValueError, match="variant 'papre'"):
        make_model(variant="papre")
    with pytest.raises(ValueError, match="grains"):
        make_model(grains=("middle",))
    with pytest.raises(ValueError, match="release_length"):
        make_model(variant="release")
