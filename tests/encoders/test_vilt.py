"""ViLT beside transformers' torch ViltModel: states, gradients, padded pictures of several sizes, masks, remat."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tmrjax.convert import vilt_params
from tmrjax.encoders.joint.vilt import ViltConfig, ViltEncoder, interpolation_weights

TINY = ViltConfig(
    vocab_size=37,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=12,
    image_size=16,
    patch_size=4,
)
# Height and width in patches: the grid's own size, wider, higher, a single row, a single column, a single patch.
SIZES = ((4, 4), (3, 7), (6, 2), (1, 5), (5, 1), (1, 1))


def torch_vilt(config: ViltConfig, seed: int = 0) -> transformers.ViltModel:
    """A torch ViLT with weights far enough from their initialisation that every term matters."""
    torch.manual_seed(seed)
    fields = config.to_dict() | {"attn_implementation": "eager", "max_image_length": -1}
    model = transformers.ViltModel(transformers.ViltConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or name.endswith("bias") or parameter.ndim == 3:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif config.hidden_size < 100:
                parameter.mul_(5.0)
    return model.eval()


def numpy_state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def inputs(config: ViltConfig, length: int, sizes=SIZES, seed: int = 0) -> dict[str, np.ndarray]:
    """Ragged texts and pictures of ``sizes`` patches, padded to one shape with noise that must not matter."""
    random = np.random.default_rng(seed)
    batch, side = len(sizes), config.patch_size
    lengths = random.integers(1, length + 1, batch)
    lengths[0] = length
    height, width = (side * max(size[axis] for size in sizes) for axis in (0, 1))
    mask = np.zeros((batch, height, width), bool)
    for row, (h, w) in enumerate(sizes):
        mask[row, : h * side, : w * side] = True
    return {
        "input_ids": random.integers(1, config.vocab_size, (batch, length)),
        "attention_mask": np.arange(length) < lengths[:, None],
        "pixel_values": random.normal(size=(batch, height, width, config.num_channels)).astype(np.float32),
        "pixel_mask": mask,
    }


def torch_inputs(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    masks = {name: tensors[name].long() for name in ("attention_mask", "pixel_mask")}
    return tensors | masks | {"pixel_values": tensors["pixel_values"].movedim(-1, 1)}


def compare_with_torch(config: ViltConfig, length: int, seed: int, tolerance: float, sizes=SIZES) -> None:
    model, batch = torch_vilt(config, seed), inputs(config, length, sizes, seed)
    random = np.random.default_rng(seed)
    on_pooled = random.normal(size=(len(sizes), config.hidden_size)).astype(np.float32)
    on_text = random.normal(size=(len(sizes), length, config.hidden_size)).astype(np.float32)
    on_text *= batch["attention_mask"][..., None]
    output = model(**torch_inputs(batch))
    text = output.last_hidden_state[:, :length]
    ((output.pooler_output * torch.tensor(on_pooled)).sum() + (text * torch.tensor(on_text)).sum()).backward()
    expected_gradient = vilt_params({name: p.grad.numpy() for name, p in model.named_parameters()}, config)

    @jax.jit
    def loss(params):
        pooled, states = ViltEncoder(config).apply({"params": params}, **batch, train=False)
        text = states["states"][:, :length]
        return jnp.sum(pooled * on_pooled) + jnp.sum(text * on_text), (pooled, text)

    gradient, (pooled, states) = jax.grad(loss, has_aux=True)(vilt_params(numpy_state(model), config))
    np.testing.assert_allclose(pooled, output.pooler_output.detach(), atol=tolerance, rtol=0)
    mask = batch["attention_mask"]
    np.testing.assert_allclose(states[mask], text.detach().numpy()[mask], atol=tolerance, rtol=0)
    flat, expected_flat = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (gradient, expected_gradient))
    assert flat.keys() == expected_flat.keys()
    for name, value in expected_flat.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(flat[name] / scale, value / scale, atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "seed"),
    [
        ({}, 0),
        (
            {"hidden_act": "relu", "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 4}
            | {"layer_norm_eps": 1e-2, "num_channels": 1, "intermediate_size": 7},
            1,
        ),
    ],
)
def test_states_and_gradients_equal_torch_on_padded_pictures_of_all_sizes(changes, seed):
    compare_with_torch(dataclasses.replace(TINY, **changes), length=9, seed=seed, tolerance=2e-5)


@pytest.mark.slow
def test_states_and_gradients_equal_torch_at_real_size():
    base = ViltConfig(30522, 768, 12, 12, 3072, 40)
    compare_with_torch(base, length=40, seed=0, tolerance=1e-4, sizes=((12, 12), (12, 20), (20, 12), (3, 20)))


@pytest.fixture(scope="module")
def tiny():
    """Parameters, a batch, and a jitted ``run(batch, params, remat=, key=)`` with the pooled state and its gradient."""
    params = vilt_params(numpy_state(torch_vilt(TINY)), TINY)

    @jax.jit
    def run(batch, params):
        return ViltEncoder(TINY).apply({"params": params}, **batch, train=False)

    return params, inputs(TINY, 9), run


def test_every_state_of_valid_pieces_and_patches_is_torchs(tiny):
    params = tiny[0]
    model = torch_vilt(TINY)
    whole = {name: value[:1] for name, value in inputs(TINY, 9, SIZES[1:2]).items()}  # nothing is padded
    with torch.no_grad():
        torch.manual_seed(0)
        output = model(**torch_inputs(whole), output_hidden_states=True)
    pooled, states = jax.jit(lambda p: ViltEncoder(TINY).apply({"params": p}, **whole, train=False))(params)
    # transformers shuffles the patches of a picture where nothing is padded: sort them by their embedding.
    order, expected_order = (
        10 + np.lexsort(np.round(np.asarray(x[0][10:]), 3).T) for x in (states["embeddings"], output.hidden_states[0])
    )
    for name, expected in zip(("embeddings", "layer_0", "layer_1"), output.hidden_states, strict=True):
        np.testing.assert_allclose(states[name][0, :10], expected[0, :10], atol=2e-5)
        np.testing.assert_allclose(states[name][0, order], expected[0, expected_order], atol=2e-5)
    np.testing.assert_allclose(pooled, output.pooler_output, atol=2e-5)


def test_padding_of_texts_and_pictures_has_no_influence(tiny):
    params, batch, run = tiny
    pooled, _ = run(batch, params)
    changed = dict(batch)
    changed["pixel_values"] = np.where(batch["pixel_mask"][..., None], batch["pixel_values"], 9.0).astype(np.float32)
    changed["input_ids"] = np.where(batch["attention_mask"], batch["input_ids"], 5)
    np.testing.assert_array_equal(run(changed, params)[0], pooled)
    changed["pixel_values"] = batch["pixel_values"] + 0.1
    assert np.abs(run(changed, params)[0] - pooled).max() > 1e-3
    # More padding, the same pictures.
    wider = dict(batch)
    for name in ("pixel_values", "pixel_mask"):
        wider[name] = np.pad(batch[name], [(0, 0), (0, 4), (0, 8)] + [(0, 0)] * (batch[name].ndim - 3))
    np.testing.assert_allclose(run(wider, params)[0], pooled, atol=1e-5)


def test_a_picture_without_a_valid_pixel_is_its_class_token_alone(tiny):
    params, batch, run = tiny
    empty = batch | {"pixel_mask": np.zeros_like(batch["pixel_mask"])}
    pooled, states = run(empty, params)
    assert np.isfinite(pooled).all() and (np.asarray(states["mask"])[:, 9:].sum(1) == 1).all()
    noise = empty | {"pixel_values": batch["pixel_values"] + 3}
    np.testing.assert_array_equal(run(noise, params)[0], pooled)


@pytest.mark.parametrize(("valid", "grid"), [(1, 4), (2, 4), (4, 4), (7, 4), (5, 1)])
def test_interpolation_is_numpys_from_end_to_end(valid, grid):
    values = np.random.default_rng(0).normal(size=grid)
    weights = np.asarray(interpolation_weights(jnp.array([valid]), 9, grid))[0, :valid]
    places = np.linspace(0, grid - 1, valid) if valid > 1 else np.zeros(1)
    np.testing.assert_allclose(weights @ values, np.interp(places, np.arange(grid), values), atol=1e-6)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_but_memory(tiny):
    config = dataclasses.replace(TINY, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1, num_hidden_layers=1)
    params = {name: tree for name, tree in tiny[0].items() if name != "layer_1"}
    batch = inputs(TINY, 9, SIZES[1:3])

    def gradient(params, key, remat):
        model = ViltEncoder(config, remat=remat)
        return jax.grad(lambda p: model.apply({"params": p}, **batch, train=True, rngs={"dropout": key})[0].sum())(
            params
        )

    both = jax.jit(lambda params, key: [gradient(params, key, remat) for remat in (False, True)])
    kept, again = both(params, jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, again)
    text = str(jax.make_jaxpr(lambda p: gradient(p, jax.random.key(1), True))(params))
    assert "remat" in text or "checkpoint" in text


def test_bfloat16_stays_near_float32(tiny):
    params, batch, run = tiny
    low = jax.jit(lambda p: ViltEncoder(TINY, jnp.bfloat16).apply({"params": p}, **batch, train=False)[0])(params)
    assert low.dtype == jnp.float32
    difference = np.abs(np.asarray(low) - np.asarray(run(batch, params)[0]))
    assert difference.max() > 0 and difference.mean() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": np.ones((6, 3))}, r"attention_mask has shape \(6, 3\), but input_ids has \(6, 9\)"),
        ({"pixel_values": np.zeros((6, 24, 27, 3))}, r"H and W multiples of 4, got \(6, 24, 27, 3\)"),
        ({"pixel_values": np.zeros((6, 24, 28, 1))}, r"must be \[6,H,W,3\]"),
        ({"pixel_mask": None}, r"pixel_mask must have shape \(6, 24, 28\) as pixel_values have, got None"),
        ({"input_ids": np.ones((6, 13), int), "attention_mask": np.ones((6, 13))}, "13 word pieces exceed"),
        ({"input_ids": np.ones(9, int)}, r"must be \[B,T\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tiny, change, message):
    params, batch, _ = tiny
    with pytest.raises(ValueError, match=message):
        ViltEncoder(TINY).apply({"params": params}, **(batch | change), train=False)


def test_config_reads_hugging_faces_and_refuses_what_is_not_built():
    theirs = transformers.ViltConfig().to_dict()
    config = ViltConfig.from_dict(theirs)
    assert (config.hidden_size, config.image_size, config.patch_size, config.grid) == (768, 384, 32, 12)
    assert ViltConfig.from_dict(config.to_dict()) == config
    for change, message in (
        ({"model_type": "bert"}, "ViLT config: model_type 'bert'"),
        ({"qkv_bias": False}, "qkv_bias False"),
        ({"modality_type_vocab_size": 3}, "modality_type_vocab_size 3"),
        ({"image_size": 100}, "image_size 100 is not a multiple of patch_size 32"),
        ({"patch_size": 0}, "patch_size must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            ViltConfig.from_dict(theirs | change)
    with pytest.raises(ValueError, match="missing vocab_size"):
        ViltConfig.from_dict({"model_type": "vilt"})
