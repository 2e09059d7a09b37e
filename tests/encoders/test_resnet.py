"""The ResNet encoder beside transformers' torch ResNetModel: maps, gradients, batch statistics."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tmrjax.convert import resnet_params
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder

BOTTLENECK = ResNetConfig(embedding_size=6, hidden_sizes=(8, 12), depths=(1, 2))
BASIC = ResNetConfig(embedding_size=8, hidden_sizes=(8, 12), depths=(2, 1), layer_type="basic")


def torch_resnet(config: ResNetConfig, seed: int = 0) -> transformers.ResNetModel:
    """A torch ResNet whose batch normalisation is not the identity that it begins as."""
    torch.manual_seed(seed)
    model = transformers.ResNetModel(transformers.ResNetConfig(**config.to_dict())).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.2).mul_(torch.randn_like(module.weight).sign())
                module.bias.normal_(0, 0.3)
    return model


def numpy_state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    # Copies: in train mode torch overwrites the statistics in place.
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def pictures(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, height, width, channels)).astype(np.float32)


def run_torch(model: torch.nn.Module, pixels: np.ndarray) -> torch.Tensor:
    return model(torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state.permute(0, 2, 3, 1)


def gradient_tree(model: torch.nn.Module, config: ResNetConfig) -> dict[str, np.ndarray]:
    """Torch's gradients under our names, through the table that converts the weights."""
    state = numpy_state(model)
    state.update({name: parameter.grad.numpy() for name, parameter in model.named_parameters()})
    return flax.traverse_util.flatten_dict(resnet_params(state, config)["params"], sep="/")


def compare_with_torch(config: ResNetConfig, pixels: np.ndarray, *, seed: int, train: bool, tolerance: float) -> None:
    model = torch_resnet(config, seed)
    variables = jax.tree.map(lambda leaf: leaf.astype(pixels.dtype), resnet_params(numpy_state(model), config))
    model = model.to(torch.float64 if pixels.dtype == np.float64 else torch.float32).train(train)
    expected = run_torch(model, pixels)
    weights = np.random.default_rng(seed).normal(size=expected.shape).astype(pixels.dtype) / expected.shape[0]
    (expected * torch.tensor(weights)).sum().backward()
    encoder = ResNetEncoder(config, pixels.dtype, batch_norm="train" if train else "frozen")

    @jax.jit
    def loss(params):
        states, updated = encoder.apply({**variables, "params": params}, pixels, train=train, mutable=["batch_stats"])
        return jnp.sum(states.stages[-1] * weights), (states.stages[-1], updated)

    gradient, (maps, updated) = jax.grad(loss, has_aux=True)(variables["params"])
    expected = expected.detach().numpy()
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(maps / scale, expected / scale, atol=tolerance, rtol=0)
    gradient = flax.traverse_util.flatten_dict(gradient, sep="/")
    expected_gradient = gradient_tree(model, config)
    assert gradient.keys() == expected_gradient.keys()
    for name, value in expected_gradient.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(gradient[name] / scale, value / scale, atol=tolerance, rtol=0, err_msg=name)
    if train:
        after = flax.traverse_util.flatten_dict(resnet_params(numpy_state(model), config)["batch_stats"], sep="/")
        for name, value in flax.traverse_util.flatten_dict(updated["batch_stats"], sep="/").items():
            np.testing.assert_allclose(value, after[name], atol=tolerance, rtol=tolerance, err_msg=name)
            assert np.abs(after[name] - 1).max() > 0.01


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (BOTTLENECK, (2, 32, 32)),
        (dataclasses.replace(BOTTLENECK, downsample_in_bottleneck=True, hidden_act="gelu"), (2, 33, 45)),
        (dataclasses.replace(BOTTLENECK, num_channels=1, hidden_sizes=(8, 12, 16), depths=(1, 1, 1)), (3, 17, 16)),
        (BASIC, (2, 31, 24)),
    ],
)
def test_maps_and_gradients_equal_torch(config, shape):
    compare_with_torch(config, pictures(*shape, config.num_channels), seed=1, train=False, tolerance=2e-5)


@pytest.mark.parametrize("config", [BOTTLENECK, BASIC])
def test_trained_batch_statistics_equal_torch(config):
    compare_with_torch(config, pictures(4, 40, 33), seed=2, train=True, tolerance=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [ResNetConfig.resnet50(), ResNetConfig.resnet101()], ids=["50", "101"])
def test_maps_and_gradients_equal_torch_at_real_sizes(config):
    """Maps in float32 to 1e-4; gradients in float64.

    In float32 one of the millions of units lies so near to ReLU's kink that rounding sends it to either side, which
    shifts one picture's gradient by 1e-3 of its size; nothing of that sort happens in float64.
    """
    pixels = pictures(2, 224, 224)
    with torch.no_grad():
        model = torch_resnet(config, seed=0)
        expected = run_torch(model, pixels).numpy()
    maps = jax.jit(lambda v: ResNetEncoder(config).apply(v, pixels, train=False).stages[-1])(
        resnet_params(numpy_state(model), config)
    )
    np.testing.assert_allclose(maps / np.abs(expected).max(), expected / np.abs(expected).max(), atol=1e-5)
    with jax.enable_x64(True):
        compare_with_torch(config, pixels.astype(np.float64), seed=0, train=False, tolerance=1e-6)


@pytest.fixture(scope="module")
def bottleneck():
    return resnet_params(numpy_state(torch_resnet(BOTTLENECK)), BOTTLENECK)


def test_stages_tokens_and_pooled_are_torchs(bottleneck):
    pixels = pictures(2, 32, 32)
    with torch.no_grad():
        expected = torch_resnet(BOTTLENECK)(
            torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True
        ).hidden_states
    tokens, pooled, stages = ResNetEncoder(BOTTLENECK).apply(bottleneck, pixels, train=False)
    for ours, theirs in zip(stages, expected[1:], strict=True):  # theirs begin with the stem's
        np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-4, rtol=1e-5)
    last = expected[-1].numpy()
    np.testing.assert_allclose(tokens, last.reshape(2, 12, 16).swapaxes(1, 2), atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(pooled, last.mean((2, 3)), atol=1e-4, rtol=1e-5)


def test_real_sizes_give_seven_by_seven_maps():
    for config in (ResNetConfig.resnet50(), ResNetConfig.resnet101()):
        encoder = ResNetEncoder(config)
        pixels = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
        states, _ = jax.eval_shape(lambda x, e=encoder: e.init_with_output(jax.random.key(0), x, train=False), pixels)
        assert states.tokens.shape == (2, 49, 2048) and states.pooled.shape == (2, 2048)
        assert [stage.shape for stage in states.stages] == [
            (2, side, side, channels) for side, channels in ((56, 256), (28, 512), (14, 1024), (7, 2048))
        ]
        assert (config.feature_size, config.stride, config.map_size(224), config.map_size(225)) == (2048, 32, 7, 8)


def test_frozen_statistics_stay_and_train_changes_nothing(bottleneck):
    pixels = pictures(2, 16, 16)
    encoder = ResNetEncoder(BOTTLENECK)
    states, updated = encoder.apply(bottleneck, pixels, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(states.tokens, encoder.apply(bottleneck, pixels, train=False).tokens)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], bottleneck["batch_stats"])


def test_pictures_do_not_influence_each_other(bottleneck):
    pixels = pictures(3, 16, 16)
    other = pixels.copy()
    other[1] = 100
    run = jax.jit(lambda pixels: ResNetEncoder(BOTTLENECK).apply(bottleneck, pixels, train=True).tokens)
    np.testing.assert_array_equal(run(pixels)[::2], run(other)[::2])


def test_absent_pictures_have_no_influence_on_batch_statistics(bottleneck):
    """With a mask the present pictures give what they give alone, whatever stands in the absent ones' places."""
    encoder = ResNetEncoder(BOTTLENECK, batch_norm="train")
    pixels, mask = pictures(4, 16, 24), np.array([True, False, True, False])
    pixels[1], pixels[3] = 1e4, -5

    @jax.jit
    def run(pixels, mask):
        return encoder.apply(bottleneck, pixels, train=True, mask=mask, mutable=["batch_stats"])

    states, updated = run(pixels, mask)
    alone, updated_alone = run(pixels[mask], np.array([True, True]))
    np.testing.assert_allclose(states.tokens[mask], alone.tokens, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), updated, updated_alone)
    nothing, unchanged = run(pixels, np.zeros(4, bool))
    assert np.isfinite(nothing.tokens).all()
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], bottleneck["batch_stats"])


@pytest.mark.parametrize("batch_norm", ["frozen", pytest.param("train", marks=pytest.mark.slow)])
def test_blocks_that_are_computed_again_change_nothing(bottleneck, batch_norm):
    pixels, mask = pictures(2, 16, 16), np.array([True, False])

    def run(params, remat):
        encoder = ResNetEncoder(BOTTLENECK, batch_norm=batch_norm, remat=remat)
        variables = {**bottleneck, "params": params}
        states, updated = encoder.apply(variables, pixels, train=True, mask=mask, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(states.tokens)), updated

    gradients = jax.jit(jax.grad(run, has_aux=True), static_argnums=1)
    kept, again = (gradients(bottleneck["params"], remat) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), kept, again)
    program = jax.make_jaxpr(jax.grad(run, has_aux=True), static_argnums=1)
    assert "remat" in str(program(bottleneck["params"], True)) and "remat" not in str(
        program(bottleneck["params"], False)
    )


def test_initialising_leaves_the_statistics_neutral():
    encoder = ResNetEncoder(dataclasses.replace(BASIC, hidden_sizes=(8,), depths=(1,)), batch_norm="train")
    made = jax.jit(lambda key: encoder.init(key, pictures(2, 16, 16), train=True))(jax.random.key(0))["batch_stats"]
    for name, value in flax.traverse_util.flatten_dict(made).items():
        np.testing.assert_array_equal(value, 0 if name[-1] == "mean" else 1)


def test_bfloat16_keeps_float32_parameters_and_comes_close(bottleneck):
    pixels = pictures(2, 32, 32)
    encoder = ResNetEncoder(BOTTLENECK, jnp.bfloat16)
    made = jax.eval_shape(lambda: encoder.init(jax.random.key(0), pixels, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}

    @jax.jit
    def run(variables):
        exact = ResNetEncoder(BOTTLENECK)
        return [module.apply(variables, pixels, train=False).tokens for module in (encoder, exact)]

    maps, exact = run(bottleneck)
    assert maps.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(maps, np.float32) - exact)
    assert 0 < difference.mean() < 0.02 * np.abs(exact).mean()


def test_wrong_inputs_are_named(bottleneck):
    encoder = ResNetEncoder(BOTTLENECK)
    with pytest.raises(ValueError, match=r"\[N,H,W,3\], channels last; got shape \(2, 3, 16, 16\)"):
        encoder.apply(bottleneck, np.zeros((2, 3, 16, 16), np.float32), train=False)
    with pytest.raises(ValueError, match="must be floating and normalised, got uint8"):
        encoder.apply(bottleneck, np.zeros((2, 16, 16, 3), np.uint8), train=False)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), but pixels has \(2, 16, 16, 3\)"):
        encoder.apply(bottleneck, pictures(2, 16, 16), train=False, mask=np.ones(3, bool))
    with pytest.raises(ValueError, match="'frozen' or 'train', got 'melted'"):
        ResNetEncoder(BOTTLENECK, batch_norm="melted").apply(bottleneck, pictures(2, 16, 16), train=False)


def test_config_reads_hugging_faces_and_timms():
    config = dataclasses.replace(BOTTLENECK, downsample_in_bottleneck=True, hidden_act="gelu")
    hugging_face = transformers.ResNetConfig(**config.to_dict())
    assert ResNetConfig.from_dict(hugging_face.to_dict()) == config
    assert ResNetConfig.from_dict(config.to_dict()) == config
    assert ResNetConfig.from_dict(transformers.ResNetConfig().to_dict()) == ResNetConfig.resnet50()
    timm = {"architecture": "resnet101", "num_classes": 1000, "pretrained_cfg": {}}
    assert ResNetConfig.from_dict(timm) == ResNetConfig.resnet101()
    assert hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "model_type 'vit'"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage True"),
        ({"layer_type": "dense"}, "layer_type 'dense'"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported; known are gelu"),
        ({"depths": [1, 1, 1]}, r"hidden_sizes \(8, 12\) and depths \(1, 1, 1\) differ in length"),
        ({"depths": [1, 0]}, r"depths must be positive integers, got \(1, 0\)"),
        ({"hidden_sizes": [2, 4]}, "at least 4"),
        ({"embedding_size": -1}, "embedding_size must be positive"),
    ],
)
def test_config_names_what_it_does_not_support(changes, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig.from_dict({**BOTTLENECK.to_dict(), **changes})


def test_an_unknown_timm_architecture_is_named():
    with pytest.raises(ValueError, match="architecture 'resnet50d' is not supported; known are resnet18"):
        ResNetConfig.from_dict({"architecture": "resnet50d"})
