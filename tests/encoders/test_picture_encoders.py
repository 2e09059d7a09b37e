"""ViT, CLIP's vision tower, Swin (and ResNet) beside transformers' torch models: states, gradients, configs, sizes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from benchmarks.picture_parity import (
    PICTURE_MODELS,
    picture_errors,
    random_pixels,
    scaled_error,
    state_dict_of,
    torch_picture_model,
)
from tmrjax import convert
from tmrjax.encoders.base import Prefix
from tmrjax.encoders.open import picture_config, picture_encoder
from tmrjax.encoders.picture.clip import CLIPVisionConfig
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.picture.swin import SwinConfig, relative_positions, shifted_zones
from tmrjax.encoders.picture.vit import ViTConfig

KINDS = ("vit", "clip", "swin")


@pytest.fixture(scope="module")
def encoders():
    """Name → (config, variables, pixels) of tiny random models."""
    made = {}
    for name in KINDS:
        model = torch_picture_model(name)
        config = picture_config(model.config.to_dict())
        made[name] = config, convert.picture_variables(state_dict_of(model), config), random_pixels(name)
    return made


@pytest.mark.parametrize("name", [name for name in PICTURE_MODELS if name != "resnet, odd size"])
def test_states_and_gradients_equal_torch(name):
    errors = picture_errors(name)
    assert errors.states < 1e-5 and errors.gradients < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_pictures_do_not_influence_each_other(encoders, name):
    config, variables, pixels = encoders[name]
    pixels = np.concatenate([pixels, pixels[:1]])
    other = pixels.copy()
    other[1] = 5
    run = jax.jit(lambda pixels: picture_encoder(config).apply(variables, pixels, train=False))
    for ours, changed in zip(jax.tree.leaves(run(pixels)), jax.tree.leaves(run(other)), strict=True):
        np.testing.assert_array_equal(ours[::2], changed[::2])
        assert np.abs(ours[1] - changed[1]).max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_layers_that_are_computed_again_change_nothing(encoders, name):
    """Values, gradients, and dropout, which must fall on the same elements in the second computation."""
    config, variables, pixels = encoders[name]
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    config = dataclasses.replace(config, **rates)

    def loss(params, remat, key):
        encoder = picture_encoder(config, remat=remat)
        states = encoder.apply({"params": params}, pixels, train=True, rngs={"dropout": key})
        return jnp.sum(jnp.sin(states.tokens)) + jnp.sum(states.pooled)

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    kept, again = (run(variables["params"], remat, jax.random.key(0)) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), kept, again)
    assert kept[0] != run(variables["params"], False, jax.random.key(1))[0]  # dropout is on
    program = jax.make_jaxpr(jax.grad(loss), static_argnums=1)
    counts = [str(program(variables["params"], remat, jax.random.key(0))).count("remat") for remat in (False, True)]
    assert counts[0] == 0 < counts[1]


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_one_layer_at_a_time_is_the_whole(encoders, name):
    config, variables, pixels = encoders[name]
    encoder = picture_encoder(config)
    states = encoder.apply(variables, pixels, train=False)
    hidden = encoder.apply(variables, pixels, train=False, method="embed")
    assert hidden.shape == (2, 1 + config.grid**2, config.hidden_size)
    for index, stage in enumerate(states.stages):
        hidden = encoder.apply(variables, index, hidden, train=False, method="layer")
        np.testing.assert_allclose(hidden[:, 1:], stage.reshape(2, -1, config.hidden_size), atol=1e-6)
    tokens, pooled = encoder.apply(variables, hidden, method="read_out")
    np.testing.assert_allclose(tokens, states.tokens, atol=1e-6)
    np.testing.assert_allclose(pooled, states.pooled, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_a_prefix_is_attended_to_as_if_it_stood_before_the_picture(encoders, name):
    """The keys and values of some other states as prefix: what these states' own places do in one sequence."""
    config, variables, pixels = encoders[name]
    encoder = picture_encoder(config)
    hidden = encoder.apply(variables, pixels, train=False, method="embed")
    heads = config.num_attention_heads
    layer = variables["params"]["layer_0"]
    before = np.random.default_rng(0).normal(size=(2, 4, config.hidden_size)).astype(np.float32)

    def normed(states, norm):
        centred = states - states.mean(-1, keepdims=True)
        return centred / np.sqrt(centred.var(-1, keepdims=True) + config.layer_norm_eps) * norm["scale"] + norm["bias"]

    def projected(name):
        dense = layer["attention"][name]
        return (normed(before, layer["attention_norm"]) @ dense["kernel"] + dense["bias"]).reshape(2, 4, heads, -1)

    prefix = Prefix(projected("key"), projected("value"))
    run = functools.partial(encoder.apply, variables, 0, train=False, method="layer")
    expected = run(np.concatenate([before, hidden], axis=1))[:, 4:]
    np.testing.assert_allclose(run(hidden, prefix=prefix), expected, atol=1e-5)
    assert np.abs(run(hidden) - expected).max() > 1e-2
    hidden_away = prefix._replace(values=np.full_like(prefix.values, np.nan), mask=np.zeros((2, 4), bool))
    np.testing.assert_allclose(run(hidden, prefix=hidden_away), run(hidden), atol=1e-6)


def test_patches_of_any_size_are_embedded_without_positions(encoders):
    """MKGformer reads crops of 128 and 64 pixels with the tower's patches and positions of its own."""
    config, variables, _ = encoders["clip"]
    side = config.patch_size
    pixels = np.random.default_rng(0).normal(size=(1, 2 * side, 3 * side, 3)).astype(np.float32)
    patches = picture_encoder(config).apply(variables, pixels, method="patches")
    assert patches.shape == (1, 6, config.hidden_size)
    kernel = variables["params"]["patch_embeddings"]["kernel"]
    for place, (row, column) in enumerate((row, column) for row in range(2) for column in range(3)):
        part = pixels[0, row * side : (row + 1) * side, column * side : (column + 1) * side]
        np.testing.assert_allclose(patches[0, place], np.tensordot(part, kernel, 3), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_keeps_float32_parameters_and_comes_close(encoders, name):
    config, variables, pixels = encoders[name]
    encoder = picture_encoder(config, dtype=jnp.bfloat16)
    made = jax.eval_shape(lambda: encoder.init(jax.random.key(0), pixels, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert jax.tree.map(jnp.shape, made["params"]) == shapes  # and they are those of the table
    both = [lambda v, e=e: e.apply(v, pixels, train=False) for e in (encoder, picture_encoder(config))]
    coarse, exact = jax.jit(lambda v: [run(v) for run in both])(variables)
    for ours, expected in zip(jax.tree.leaves(coarse), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.bfloat16
        difference = np.abs(np.asarray(ours, np.float32) - expected)
        assert 0 < difference.mean() < 0.05 * np.abs(expected).mean()


def test_stochastic_depth_drops_whole_pictures_past_a_block(encoders):
    """With a rate near 1 only the first block, whose rate is 0, changes a picture; it is on in training alone."""
    _, variables, pixels = encoders["swin"]
    config = dataclasses.replace(encoders["swin"][0], drop_path_rate=0.9999, depths=(1, 1))
    params = {
        name: value for name, value in variables["params"].items() if "block" not in name or name.endswith("block_0")
    }
    run = jax.jit(
        lambda config, train: picture_encoder(config).apply(
            {"params": params}, pixels, train=train, rngs={"dropout": jax.random.key(0)}
        ),
        static_argnums=(0, 1),
    )
    dropped = run(config, True)
    merged_alone = run(dataclasses.replace(config, drop_path_rate=0.0), False)
    np.testing.assert_allclose(dropped.stages[0], merged_alone.stages[0], atol=1e-6)
    assert np.abs(dropped.stages[1] - merged_alone.stages[1]).max() > 1e-2
    for ours, expected in zip(jax.tree.leaves(run(config, False)), jax.tree.leaves(merged_alone), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_windows_by_brute_force():
    """Rows of the bias table, and zones: places share one where the map's edges do not lie between them."""
    side, shift, height, width = 3, 1, 6, 9
    table = relative_positions(side)
    pairs = {}
    for i in range(side**2):
        for j in range(side**2):
            delta = (i // side - j // side, i % side - j % side)
            assert pairs.setdefault(delta, table[i, j]) == table[i, j]
    assert len(set(pairs.values())) == len(pairs) == (2 * side - 1) ** 2
    assert sorted(pairs.values()) == list(range(25)) and pairs[-2, -2] == 0 and pairs[-2, -1] == 1
    zones = shifted_zones(height, width, side, shift)
    window = 0
    for top in range(0, height, side):
        for left in range(0, width, side):
            places = [(row + shift, column + shift) for row in range(top, top + 3) for column in range(left, left + 3)]
            for i, first in enumerate(places):
                for j, second in enumerate(places):
                    wrapped = [(place[0] >= height, place[1] >= width) for place in (first, second)]
                    assert (zones[window, i] == zones[window, j]) == (wrapped[0] == wrapped[1])
            window += 1


# ------------------------------------------------------------------ configs and sizes

REAL = {
    "vit-base": (ViTConfig(), 224, (12, (14, 14, 768))),
    "vit-large": (
        ViTConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
        224, (24, (14, 14, 1024)),
    ),
    "clip-vit-base-patch32": (CLIPVisionConfig(), 224, (12, (7, 7, 768))),
    "clip-vit-base-patch16": (CLIPVisionConfig(patch_size=16), 224, (12, (14, 14, 768))),
    "clip-vit-large-patch14": (
        CLIPVisionConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, patch_size=14
        ),
        224, (24, (16, 16, 1024)),
    ),
    "swin-tiny": (SwinConfig(), 224, (4, (7, 7, 768))),
    "swin-base": (
        SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)), 224, (4, (7, 7, 1024)),
    ),
    "swin-large-384": (
        SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12),
        384, (4, (12, 12, 1536)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_sizes(name):
    """Nothing is computed; the numbers of parameters are those of transformers' models."""
    config, size, (stages, last) = REAL[name]
    pixels = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    encoder = picture_encoder(config)
    states, variables = jax.eval_shape(
        lambda pixels: encoder.init_with_output(jax.random.key(0), pixels, train=False), pixels
    )
    assert len(states.stages) == stages and states.stages[-1].shape == (2, *last)
    assert states.tokens.shape == (2, last[0] * last[1], last[2]) and states.pooled.shape == (2, last[2])
    assert config.feature_size == last[2]
    family = {ViTConfig: "ViT", CLIPVisionConfig: "CLIPVision", SwinConfig: "Swin"}[type(config)]
    with torch.device("meta"):
        model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**config.to_dict()))
    count = sum(value.numel() for part, value in model.named_parameters() if not part.startswith("pooler."))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count > 2e7
    assert picture_config(json.loads(json.dumps(config.to_dict()))) == config and hash(config)


def test_config_files_of_transformers_are_read():
    whole = transformers.CLIPConfig(vision_config={"patch_size": 16, "attention_dropout": 0.1}).to_dict()
    expected = CLIPVisionConfig(patch_size=16, attention_probs_dropout_prob=0.1)
    assert picture_config(whole) == expected == picture_config(whole["vision_config"])
    assert picture_config({"model_type": "clip", "vision_config": {"model_type": "clip", "patch_size": 32}}) == (
        CLIPVisionConfig()
    )
    assert picture_config(transformers.ViTConfig(hidden_act="gelu_new").to_dict()) == ViTConfig(hidden_act="gelu_new")
    assert picture_config(transformers.SwinConfig().to_dict()) == SwinConfig()
    assert picture_config({"architecture": "resnet50"}) == ResNetConfig.resnet50()
    for config in (expected, ViTConfig(), SwinConfig(window_size=5)):
        ours = config.to_dict()
        theirs = transformers.AutoConfig.for_model(**ours).to_dict()
        assert picture_config(theirs) == config


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"model_type": "convnext"}, "'convnext' is no picture encoder.*supported are resnet, vit, clip, clip_vision"),
        ({}, "model_type None is no picture encoder"),
        ({"model_type": "vit", "qkv_bias": False}, "ViT config: qkv_bias False is not supported"),
        ({"model_type": "vit", "image_size": 225}, "ViT config: image_size 225 is not divisible by patch_size 16"),
        ({"model_type": "vit", "image_size": [224, 224]}, r"image_size must be a positive integer, got \[224, 224\]"),
        ({"model_type": "vit", "hidden_dropout_prob": 1}, r"hidden_dropout_prob must be a number in \[0, 1\)"),
        ({"model_type": "clip"}, "no vision_config in it"),
        ({"model_type": "clip_vision_model", "hidden_size": 10}, "hidden_size 10 is not divisible by num_attention"),
        ({"model_type": "swin", "use_absolute_embeddings": True}, "use_absolute_embeddings True is not supported"),
        ({"model_type": "swin", "depths": [2, 2]}, r"depths \(2, 2\) and num_heads \(3, 6, 12, 24\) differ in length"),
        ({"model_type": "swin", "num_heads": [5, 6, 12, 24]}, "96 channels of stage 0 and 5 num_heads"),
        ({"model_type": "swin", "hidden_act": "mish"}, "activation 'mish' is not supported"),
    ],
)
def test_what_is_not_built_is_named(mapping, message):
    with pytest.raises(ValueError, match=message):
        picture_config(mapping)


def test_wrong_pixels_are_named(encoders):
    config, variables, pixels = encoders["vit"]
    encoder = picture_encoder(config)
    for wrong, message in (
        (np.zeros((2, 24, 24, 3), np.uint8), "must be floating and normalised, got uint8; PictureSettings.normalise"),
        (np.zeros((2, 3, 24, 24), np.float32), r"\[N,H,W,3\], channels last; got shape \(2, 3, 24, 24\)"),
        (np.zeros((2, 32, 24, 3), np.float32), "pixels are 32 × 24.*made for 24 × 24"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.apply(variables, wrong, train=False)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        encoder.apply(variables, pixels, train=False, mask=np.ones(3, bool))
    with pytest.raises(ValueError, match="patches of 8 × 8 need multiples of 8"):
        encoder.apply(variables, np.zeros((1, 20, 24, 3), np.float32), method="patches")
    config, variables, _ = encoders["swin"]
    with pytest.raises(ValueError, match="the map of stage 1 is 3 × 8, smaller than the window of 4"):
        picture_encoder(config).apply(variables, np.zeros((1, 12, 32, 3), np.float32), train=False)


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", KINDS)
def test_heads_and_prefixes_are_left_out_and_every_fault_is_listed(name, encoders):
    config, expected, _ = encoders[name]
    state = state_dict_of(torch_picture_model(name))
    prefix = {"vit": "vit.", "clip": "vision_model.", "swin": "swin."}[name]
    bare = {key.removeprefix(prefix): value for key, value in state.items()}
    headed = {prefix + key: value for key, value in bare.items()}
    extra = {
        "vit": ("vit.pooler.dense.weight", "classifier.bias", "vit.embeddings.mask_token"),
        "clip": (
            "text_model.encoder.x",
            "logit_scale",
            "visual_projection.weight",
            "vision_model.embeddings.position_ids",
        ),
        "swin": ("classifier.weight", "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"),
    }[name]
    headed |= dict.fromkeys(extra, np.zeros((2, 2), np.float32))
    for source in (bare, headed):
        jax.tree.map(np.testing.assert_array_equal, convert.picture_variables(source, config), expected)
    assert set(expected) == {"params", "batch_stats"} and not expected["batch_stats"]
    norm = {"vit": "layernorm", "clip": "post_layernorm", "swin": "layernorm"}[name]
    faulty = {**headed, f"{prefix}{norm}.weight": np.zeros(7, np.float32), "surprise": np.zeros(1, np.float32)}
    del faulty[f"{prefix}{norm}.bias"]
    with pytest.raises(ValueError, match="state dict: 3 of its names do not fit") as error:
        convert.picture_variables(faulty, config)
    for line in (f"missing: {norm}.bias", f"misshaped: {norm}.weight is (7,)", "extra: surprise (1,)"):
        assert line in str(error.value)


def test_a_resnet_is_filled_by_the_same_function():
    state = state_dict_of(torch_picture_model("resnet"))
    config = picture_config(torch_picture_model("resnet").config.to_dict())
    ours, expected = convert.picture_variables(state, config), convert.resnet_params(state, config)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert ours["batch_stats"] and scaled_error(np.zeros(2), np.ones(2)) == 1
