"""A Stable Diffusion folder of Hugging Face, looked at: which files, which configs, which hash. Needs no library.

    model_index.json · text_encoder/ · tokenizer/ · unet/ · vae/ · scheduler/ [· safety_checker/ · feature_extractor/]

Weights are `flax_model.msgpack`, `diffusion_flax_model.msgpack` (Flax) or `model.safetensors`,
`diffusion_pytorch_model.safetensors` (PyTorch's names and layout; whole, in shards or as `.fp16.`), part by part, Flax
first. Nothing is fetched, pickles are not read. Configs that the Flax classes would ignore in silence are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmrjax.files import DataError, parse_json, read_bytes


@dataclasses.dataclass(frozen=True)
class Component:
    """One part with weights: where its class lives and what its files are called."""

    library: str  # whose rules translate PyTorch's names: "diffusers" or "transformers"
    flax_file: str
    torch_file: str


COMPONENTS = {
    "text_encoder": Component("transformers", "flax_model.msgpack", "model.safetensors"),
    "unet": Component("diffusers", "diffusion_flax_model.msgpack", "diffusion_pytorch_model.safetensors"),
    "vae": Component("diffusers", "diffusion_flax_model.msgpack", "diffusion_pytorch_model.safetensors"),
    "safety_checker": Component("transformers", "flax_model.msgpack", "model.safetensors"),
}
DTYPES = ("float32", "bfloat16")  # of the computation
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}

# Settings that the Flax classes do not know: any other value would be ignored, and the pictures would be wrong.
_ONLY: dict[str, dict[str, Any]] = {
    "unet": {
        "act_fn": "silu",
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "num_class_embeds": None,
        "resnet_time_scale_shift": "default",
        "time_cond_proj_dim": None,
        "time_embedding_type": "positional",
    },
    "vae": {
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "shift_factor": None,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    "scheduler": {
        "rescale_betas_zero_snr": False,
        "thresholding": False,
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_flow_sigmas": False,
        "use_karras_sigmas": False,
        "use_lu_lambdas": False,
    },
}
_SPACINGS = {  # the first is what the Flax class does unasked
    "ddim": ("leading",),
    "pndm": ("leading",),
    "dpm-solver++": ("linspace", "leading", "trailing"),
    "euler": ("linspace", "leading"),
}


@dataclasses.dataclass(frozen=True)
class DiffusionFolder:
    """A folder that was looked at, not loaded: its parts, their files and configs, what identifies it.

    `sha256` is that of the names and hashes of all `files` that the pipeline reads: weights, configs, vocabulary.
    """

    path: Path
    weights: dict[str, list[Path]]
    configs: dict[str, dict[str, Any]]
    scheduler: str
    files: dict[str, dict[str, Any]]
    sha256: str

    @property
    def safety_checker(self) -> bool:
        """Whether pictures are checked."""
        return "safety_checker" in self.weights

    @property
    def vae_scale(self) -> int:
        """Pixels of a picture per cell of its latents, on each side."""
        return 2 ** (len(self.configs["vae"].get("block_out_channels", (64,))) - 1)

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this: the VAE's scale times the UNet's."""
        return self.vae_scale * 2 ** (len(self.configs["unet"].get("block_out_channels", (320, 640, 1280, 1280))) - 1)

    @property
    def default_size(self) -> int:
        """The side of the pictures that the model was trained for."""
        return self.configs["unet"].get("sample_size", 32) * self.vae_scale


def open_folder(
    path: str | os.PathLike,
    *,
    scheduler: str | None = None,
    safety_checker: bool = True,
    known_files: Mapping[str, Mapping[str, Any]] | None = None,
) -> DiffusionFolder:
    """Looks at a folder; needs neither diffusers nor much time, once its hashes are known.

    `scheduler` is one of :data:`SCHEDULERS` (default: the folder's own). With `safety_checker` the folder's checker is
    used where `model_index.json` names one. `known_files` are the `files` of an earlier look: the hash of a file with
    the same size and time is taken from there. Raises :class:`DataError` for what is missing or not supported.
    """
    path = Path(path)
    index = _read_index(path)
    names = ["text_encoder", "unet", "vae"]
    if safety_checker and any(index.get("safety_checker") or ()):
        names.append("safety_checker")
    weights = {name: _weights_files(path / name, COMPONENTS[name]) for name in names}
    configs = {name: _read_config(path / name / "config.json") for name in names}
    configs["scheduler"] = _read_config(path / "scheduler" / "scheduler_config.json")
    _check_config(path, configs)
    scheduler = _choose_scheduler(path, configs["scheduler"], scheduler)
    read = [file for name in names for file in (*weights[name], path / name / "config.json")]
    read += [path / "scheduler" / "scheduler_config.json", *_files_of(path / "tokenizer")]
    read += _files_of(path / "feature_extractor") if "safety_checker" in names else []
    files = {str(file.relative_to(path)): _file_hash(file, path, known_files or {}) for file in sorted(read)}
    listing = json.dumps({name: entry["sha256"] for name, entry in files.items()}, sort_keys=True)
    return DiffusionFolder(path, weights, configs, scheduler, files, hashlib.sha256(listing.encode()).hexdigest())


# ------------------------------------------------------------------ configs


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        raise DataError(
            folder,
            "no model_index.json",
            "a Stable Diffusion folder with model_index.json, text_encoder/, tokenizer/, unet/, vae/, scheduler/",
            "Correct --model; `python data_prep/make_tiny_diffusion.py --out=DIR` makes a random one to try.",
        )
    index = _read_config(folder / "model_index.json")
    if index.get("_class_name") not in ("StableDiffusionPipeline", "FlaxStableDiffusionPipeline"):
        raise DataError(
            folder / "model_index.json",
            f"the pipeline {index.get('_class_name')!r}",
            "StableDiffusionPipeline (v1.x or v2.x, text to picture)",
            "Other pipelines (XL, inpainting, upscaling) are not supported.",
        )
    return index


def _read_config(path: Path) -> dict[str, Any]:
    value = parse_json(read_bytes(path), str(path))
    if not isinstance(value, dict):
        raise DataError(path, type(value).__name__, "a JSON object", "Fetch the file again.")
    return value


def _check_config(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    for name, config in configs.items():
        _check_only(folder / name / "config.json", config, _ONLY.get(name, {}))
    channels = configs["vae"].get("latent_channels", 4)
    for key in ("in_channels", "out_channels"):
        if configs["unet"].get(key, 4) != channels:
            raise DataError(
                folder / "unet" / "config.json",
                f"{key} = {configs['unet'][key]}",
                f"{channels}, the VAE's latent channels",
                "This is not a text-to-picture model (inpainting models have more channels).",
            )


def _check_only(path: Path, config: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    for key, value in only.items():
        if key in config and config[key] not in (value, None):
            raise DataError(
                path, f"{key} = {config[key]!r}", f"{value!r}: Flax knows no other", "Use another model or scheduler."
            )


def _choose_scheduler(folder: Path, config: Mapping[str, Any], name: str | None) -> str:
    """The name asked for, or the folder's own; refuses what the Flax class cannot do."""
    where = folder / "scheduler" / "scheduler_config.json"
    if name is None:
        own = str(config.get("_class_name")).removeprefix("Flax")
        name = next((short for short, long in SCHEDULERS.items() if long == own), own)
    if name not in SCHEDULERS:
        lms = " (the Flax LMS scheduler integrates with scipy and cannot be compiled)" if "lms" in name.lower() else ""
        raise DataError(
            where,
            f"the scheduler {name!r}{lms}",
            f"one of {', '.join(SCHEDULERS)}",
            "Choose one with --scheduler; all of them sample from the same model.",
        )
    _check_only(where, config, _ONLY["scheduler"])
    spacing = config.get("timestep_spacing", _SPACINGS[name][0])
    if spacing not in _SPACINGS[name]:
        expected = f"one of {', '.join(_SPACINGS[name])}"
        raise DataError(where, f"timestep_spacing {spacing!r} for {name}", expected, "Choose another --scheduler.")
    return name


# ------------------------------------------------------------------ files


def _weights_files(folder: Path, component: Component) -> list[Path]:
    """The files with the weights of one part: Flax first, then safetensors, whole, sharded or in half precision."""
    if (folder / component.flax_file).is_file():
        return [folder / component.flax_file]
    half = component.torch_file.replace(".safetensors", ".fp16.safetensors")
    for name in (component.torch_file, half):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            shards = sorted(set(_read_config(index).get("weight_map", {}).values()))
            paths = [folder / Path(str(shard)).name for shard in shards]
            if absent := [path.name for path in paths if not path.is_file()]:
                raise DataError(index, f"no {absent[0]} beside it", "every shard it names", "Complete the download.")
            return [index, *paths]
    present = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
    raise DataError(
        folder,
        f"no weights ({present})",
        f"{component.flax_file} or {component.torch_file}",
        "Complete the download. Pickled .bin files are not read: fetch the safetensors of the same repository.",
    )


def _files_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(folder, "no such folder", "a part that model_index.json names", "Complete the download.")
    return [path for path in folder.iterdir() if path.is_file()]


def _file_hash(path: Path, folder: Path, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """SHA-256, size and time of a file; the hash of an unchanged one is taken from `known`."""
    status = path.stat()
    entry = known.get(str(path.relative_to(folder)), {})
    if (entry.get("bytes"), entry.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
        return dict(entry)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
