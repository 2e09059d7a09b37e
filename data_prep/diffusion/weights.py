"""Loads the parts of a Stable Diffusion folder into diffusers' Flax pipeline, without torch.

The only module that imports diffusers, and only when it is needed: version 0.39 with transformers 4 is the last pair
that has Flax. Flax weights are read as they are; PyTorch's names and layouts are translated by the rules of diffusers
and transformers themselves. Every name and shape is checked against the model, and all faults are listed at once.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from data_prep.diffusion.folder import COMPONENTS, DTYPES, SCHEDULERS, DiffusionFolder
from tmrjax.convert.state_dicts import read_state_dict
from tmrjax.files import DataError, read_bytes

_BUFFERS = ("position_ids",)  # stored by PyTorch, not a weight


class ExtraMissingError(ImportError):
    """diffusers with Flax, or a transformers that still has Flax, is not installed."""


@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """A loaded folder: diffusers' pipeline and its parameters on the host."""

    folder: DiffusionFolder
    pipeline: Any
    params: dict[str, Any]
    dtype: str


def load_model(folder: DiffusionFolder, *, dtype: str = "float32") -> DiffusionModel:
    """Reads the weights of a folder and builds diffusers' pipeline around them; `dtype` is one of :data:`DTYPES`.

    Raises :class:`DataError` that lists what is missing, extra or misshaped, :class:`ExtraMissingError` where diffusers
    with Flax is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    flax = import_flax()
    scheduler, state = build_scheduler(folder.scheduler, folder.configs["scheduler"])
    modules, params = {}, {"scheduler": state}
    for name, paths in folder.weights.items():
        modules[name] = build_module(name, folder.configs[name], dtype)
        params[name] = _read_weights(paths, name, folder.configs[name], dtype)
    features = (
        _from_folder(flax.CLIPImageProcessor, folder.path / "feature_extractor") if folder.safety_checker else None
    )
    pipeline = flax.FlaxStableDiffusionPipeline(
        vae=modules["vae"],
        text_encoder=modules["text_encoder"],
        tokenizer=_from_folder(flax.CLIPTokenizerFast, folder.path / "tokenizer"),
        unet=modules["unet"],
        scheduler=scheduler,
        safety_checker=modules.get("safety_checker"),
        feature_extractor=features,
        dtype=jax.numpy.dtype(dtype),
    )
    return DiffusionModel(folder, pipeline, params, dtype)


# ------------------------------------------------------------------ libraries


def import_flax() -> SimpleNamespace:
    """The Flax classes of diffusers and transformers by name; raises :class:`ExtraMissingError`.

    diffusers dropped Flax in 0.40, transformers in 5.0; with the latter diffusers 0.39 hands out dummies in silence.
    """
    found = {}
    try:
        for name in ("diffusers", "transformers"):
            found[name] = importlib.import_module(name).__version__
        for name in found:  # "Flax classes are deprecated", once for every layer
            importlib.import_module(f"{name}.utils.logging").set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import diffusers
            import transformers
            from diffusers.pipelines.stable_diffusion import safety_checker_flax

            names = ("FlaxStableDiffusionPipeline", "FlaxUNet2DConditionModel", "FlaxAutoencoderKL")
            schedulers = tuple(f"Flax{name}" for name in SCHEDULERS.values())
            classes = {name: getattr(diffusers, name) for name in (*names, *schedulers)}
            for name in (
                "FlaxCLIPTextModel",
                "CLIPTextConfig",
                "CLIPConfig",
                "CLIPTokenizerFast",
                "CLIPImageProcessor",
            ):
                classes[name] = getattr(transformers, name)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ExtraMissingError(_advice(found, str(error).strip().split("\n")[0])) from error
    dummies = [name for name, value in classes.items() if type(value).__name__ == "DummyObject"]
    if dummies:
        raise ExtraMissingError(_advice(found, f"{dummies[0]} is a dummy: the installed parts do not fit together"))
    # diffusers 0.39 calls jnp.clip(..., a_min=), which jax 0.10 no longer has.
    safety_checker_flax.jax_cosine_distance = _cosine
    return SimpleNamespace(**classes, FlaxSafetyChecker=safety_checker_flax.FlaxStableDiffusionSafetyChecker)


def _advice(found: Mapping[str, str], reason: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found.items()) or "neither"
    return (
        f"back-translation needs diffusers 0.39 with Flax and transformers 4 (found: {versions}; {reason}). "
        "Install them with: pip install -e '.[backtranslation]'"
    )


def _cosine(left: jax.Array, right: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Cosines between the rows of two matrices, [n, d] and [m, d] to [n, m]."""
    unit = [
        rows / jax.numpy.maximum(jax.numpy.linalg.norm(rows, axis=1, keepdims=True), epsilon) for rows in (left, right)
    ]
    return unit[0] @ unit[1].T


# ------------------------------------------------------------------ the parts


def build_scheduler(name: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """A Flax scheduler and its state out of the content of a `scheduler_config.json`.

    As PyTorch's pipeline does for latents, samples are not clipped and steps are offset by one, whatever the file says.
    """
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    defaults = {"set_alpha_to_one": False, "skip_prk_steps": True}
    settings = defaults | config | {"clip_sample": False, "steps_offset": 1}
    scheduler = getattr(import_flax(), f"Flax{SCHEDULERS[name]}").from_config(settings)
    return scheduler, scheduler.create_state()


def build_module(name: str, config: Mapping[str, Any], dtype: str) -> Any:
    """The Flax model of a component, without parameters. The safety checker always computes in float32."""
    flax = import_flax()
    precision = jax.numpy.dtype(dtype)
    if name == "unet":
        return flax.FlaxUNet2DConditionModel.from_config(dict(config), dtype=precision)
    if name == "vae":
        return flax.FlaxAutoencoderKL.from_config(dict(config), dtype=precision)
    if name == "text_encoder":
        text = flax.CLIPTextConfig.from_dict(dict(config))
        return flax.FlaxCLIPTextModel(text, dtype=precision, _do_init=False)
    checker = flax.CLIPConfig.from_dict(dict(config))
    size = checker.vision_config.image_size
    return flax.FlaxSafetyChecker(checker, input_shape=(1, size, size, 3), _do_init=False)


def expected_shapes(name: str, config: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path → shape of the parameters of a component; nothing is computed."""
    return dict(_expected_shapes(name, json.dumps(config, sort_keys=True)))


@functools.cache
def _expected_shapes(name: str, config: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    from flax.traverse_util import flatten_dict

    module = build_module(name, json.loads(config), "float32")
    if COMPONENTS[name].library == "diffusers":
        tree = jax.eval_shape(module.init_weights, jax.random.PRNGKey(0))
    else:
        tree = module.params_shape_tree
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(dict(tree)).items()}


def _from_folder(loader: Any, folder: Path) -> Any:
    try:
        return loader.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(folder, f"a part that cannot be read ({error})", "a whole one", "Fetch it again.") from error


# ------------------------------------------------------------------ weights


def _read_weights(paths: list[Path], name: str, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The parameters of one part as a tree of host arrays in `dtype`; raises :class:`DataError` with every fault."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    expected = expected_shapes(name, config)
    if paths[0].suffix == ".msgpack":
        found = {tuple(map(str, path)): leaf for path, leaf in flatten_dict(_read_msgpack(paths[0])).items()}
    else:
        found = {}
        for path in paths:
            if path.suffix != ".json":
                try:
                    tensors = read_state_dict(path)
                except (OSError, ValueError) as error:
                    raise DataError(path, str(error), "safetensors", "Fetch the file again.") from error
                found |= _translated(tensors, COMPONENTS[name].library, expected)
    found = {path: leaf for path, leaf in found.items() if path[-1] not in _BUFFERS}
    faults = [f"missing {'/'.join(path)}" for path in expected.keys() - found.keys()]
    faults += [f"extra {'/'.join(path)}" for path in found.keys() - expected.keys()]
    faults += [
        f"{'/'.join(path)} of shape {tuple(found[path].shape)}, not {shape}"
        for path, shape in expected.items()
        if path in found and tuple(found[path].shape) != shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise DataError(paths[0], shown, f"the weights that {name}/config.json describes", "Fetch the folder again.")
    precision = np.float32 if name == "safety_checker" else jax.numpy.dtype(dtype)
    return unflatten_dict({path: np.asarray(leaf).astype(precision) for path, leaf in found.items()})


def _read_msgpack(path: Path) -> dict[str, Any]:
    from flax.serialization import msgpack_restore

    try:
        tree = msgpack_restore(read_bytes(path))
    except Exception as error:  # msgpack's own errors share no base class
        raise DataError(path, f"a damaged file ({error})", "Flax weights in msgpack", "Fetch it again.") from error
    if not isinstance(tree, dict):
        raise DataError(path, type(tree).__name__, "a tree of Flax weights", "Fetch it again.")
    return tree


def _translated(
    tensors: Mapping[str, np.ndarray], library: str, expected: Mapping[tuple[str, ...], tuple[int, ...]]
) -> dict[tuple[str, ...], np.ndarray]:
    """PyTorch's names and layouts to Flax's, by the rules of the library that defines the module."""
    if library == "diffusers":
        from diffusers.models.modeling_flax_pytorch_utils import rename_key, rename_key_and_reshape_tensor
    else:
        from transformers import modeling_flax_pytorch_utils as rules
    # Both want arrays beside the names; only their shapes are looked at.
    shaped = {path: np.broadcast_to(np.float32(0), shape) for path, shape in expected.items()}
    found = {}
    for name, tensor in tensors.items():
        if library == "diffusers":
            path, array = rename_key_and_reshape_tensor(tuple(rename_key(name).split(".")), tensor, shaped)
        else:
            path, array = rules.rename_key_and_reshape_tensor(tuple(name.split(".")), tensor, shaped, "")
        found[path] = array
    return found
