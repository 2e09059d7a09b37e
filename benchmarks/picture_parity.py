"""How far our picture encoders are from PyTorch's: tiny random models, for encoder_parity and the tests."""

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from tmrjax import convert
from tmrjax.encoders.base import PictureStates
from tmrjax.encoders.open import picture_config, picture_encoder


class Errors(NamedTuple):
    """The largest absolute error of states, and of gradients (of parameters and of what goes in).

    Each tensor is divided by its largest element where that is above 1.
    """

    states: float
    gradients: float


_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 24,
    "patch_size": 8,
}
_SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 2, "image_size": 32}
_RESNET = {"embedding_size": 6, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1]}
# Name → prefix of the classes of transformers, settings, height and width of the pictures.
PICTURE_MODELS = {
    "resnet": ("ResNet", _RESNET, (64, 64)),
    "resnet, odd size": ("ResNet", {**_RESNET, "layer_type": "basic"}, (45, 71)),
    "vit": ("ViT", _SIZES, (24, 24)),
    "vit, one channel": ("ViT", {**_SIZES, "num_channels": 1, "hidden_act": "gelu_new"}, (24, 24)),
    "clip": ("CLIPVision", {**_SIZES, "image_size": 32}, (32, 32)),
    "swin": ("Swin", _SWIN, (32, 32)),
    "swin, odd size": ("Swin", {**_SWIN, "mlp_ratio": 2.0}, (37, 51)),
    "swin, windows as large as the map": ("Swin", {**_SWIN, "depths": [2], "num_heads": [2]}, (8, 8)),
}


def torch_picture_model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random one of PICTURE_MODELS, its weights far from their initial values."""
    family, settings, _ = PICTURE_MODELS[name]
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**settings))
    if family == "ViT":
        model.pooler = None
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name.lower() or parameter_name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif family != "ResNet":
                parameter.copy_(0.15 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def state_dict_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Name → array."""
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def random_pixels(name: str, count: int = 2, seed: int = 0) -> np.ndarray:
    """Normalised pixels [count,H,W,C] of the size that the model of this name takes."""
    _, settings, (height, width) = PICTURE_MODELS[name]
    shape = (count, height, width, settings.get("num_channels", 3))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_states(model: transformers.PreTrainedModel, pixels: torch.Tensor) -> PictureStates:
    """Torch's states in our arrangement; ``pixels`` channels last."""
    pixels = pixels.permute(0, 3, 1, 2)
    if isinstance(model, transformers.SwinModel):
        # Its own hidden states are those behind a merge.
        embedded, size = model.embeddings(pixels)
        found = model.encoder(embedded, size, output_hidden_states=True, output_hidden_states_before_downsampling=True)
        stages = tuple(states.permute(0, 2, 3, 1) for states in found.reshaped_hidden_states[1:])
        tokens = model.layernorm(found.last_hidden_state)
        return PictureStates(tokens, tokens.mean(1), stages)
    found = model(pixels, output_hidden_states=True)
    if isinstance(model, transformers.ResNetModel):
        stages = tuple(states.permute(0, 2, 3, 1) for states in found.hidden_states[1:])
        return PictureStates(stages[-1].flatten(1, 2), found.pooler_output.flatten(1), stages)
    is_vit = isinstance(model, transformers.ViTModel)
    pooled = found.last_hidden_state[:, 0] if is_vit else found.pooler_output
    grid = round((found.last_hidden_state.shape[1] - 1) ** 0.5)
    stages = tuple(states[:, 1:].unflatten(1, (grid, grid)) for states in found.hidden_states[1:])
    return PictureStates(found.last_hidden_state[:, 1:], pooled, stages)


def picture_errors(name: str) -> Errors:
    """All states compared, and the gradients of a weighted sum of them."""
    model, pixels = torch_picture_model(name), random_pixels(name)
    config = picture_config(model.config.to_dict())
    encoder, variables = picture_encoder(config), convert.picture_variables(state_dict_of(model), config)
    their_pixels = torch.tensor(pixels, requires_grad=True)
    theirs = torch_states(model, their_pixels)
    random = np.random.default_rng(1)
    leaves = [theirs.tokens, theirs.pooled, *theirs.stages[:-1]]
    weights = [random.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    sum((leaf * torch.tensor(weight)).sum() for leaf, weight in zip(leaves, weights, strict=True)).backward()

    @jax.jit
    def compute(params, pixels):
        def loss(params, pixels):
            states = encoder.apply({**variables, "params": params}, pixels, train=False)
            ours = [states.tokens, states.pooled, *states.stages[:-1]]
            return sum(jnp.sum(leaf * weight) for leaf, weight in zip(ours, weights, strict=True)), states

        return jax.grad(loss, (0, 1), has_aux=True)(params, pixels)

    (gradient, of_pixels), states = compute(variables["params"], pixels)
    pairs = zip(jax.tree.leaves(states), [theirs.tokens, theirs.pooled, *theirs.stages], strict=True)
    state_error = max(scaled_error(ours, other.detach().numpy()) for ours, other in pairs)
    gradients = state_dict_of(model) | {n: p.grad.numpy() for n, p in model.named_parameters()}
    expected = {**convert.picture_variables(gradients, config)["params"], "pixels": their_pixels.grad.numpy()}
    return Errors(state_error, tree_error({**gradient, "pixels": of_pixels}, expected))


def scaled_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest error, divided by the largest element where that is above 1."""
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: {ours.shape} and {theirs.shape}")
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def tree_error(ours, theirs) -> float:
    """The largest of the scaled errors of two trees of arrays."""
    ours, theirs = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (ours, theirs))
    if ours.keys() != theirs.keys():
        raise AssertionError(f"parameters differ: {sorted(ours.keys() ^ theirs.keys())}")
    return max(scaled_error(np.asarray(ours[name]), theirs[name]) for name in ours)
