"""A tiny Stable Diffusion folder with RANDOM weights, to try back-translation (paper section 3.3) without a download.

    python data_prep/make_tiny_diffusion.py --out=DIR [--format=flax|safetensors] [--version=1|2] [--safety-checker]

Every part of a real folder is there, only small: a CLIP text encoder and its byte-pair tokenizer, a UNet, a VAE, a
scheduler and, if asked for, a safety checker. Its pictures are coloured noise of 64 x 64: they show that the program
works, nothing else. `--version=2` is built like Stable Diffusion 2.1: v-prediction, the activation and the padding of
OpenCLIP, linear projections. Both formats hold the same numbers; neither needs torch.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.diffusion.folder import COMPONENTS
from data_prep.diffusion.weights import ExtraMissingError, expected_shapes
from tmrjax.files import write_atomic

NOTICE = "RANDOM WEIGHTS: pictures of this model are noise"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# Enough of English that common words are fewer pieces than letters, as in the real vocabulary.
_MERGES = (
    "t h", "i n", "a n", "th e</w>", "o n", "e r", "r e", "in g</w>", "an d</w>", "o f</w>", "t o</w>", "o u",
    "a t</w>", "e n", "i s</w>", "o r", "a r", "s t", "e s</w>", "a l", "l l", "a c", "e d</w>", "i n</w>", "o n</w>",
)  # fmt: skip


def make_tiny_diffusion(
    out: Path,
    *,
    format: str = "flax",
    version: int = 1,
    safety_checker: bool = False,
    safety_threshold: float = 0.0,
    seed: int = 0,
) -> Path:
    """Writes the folder and returns it. `format`: "flax" (msgpack), "safetensors" (PyTorch's names). `version`: 1, 2.

    A `safety_checker` flags pictures where one of its cosines exceeds `safety_threshold`: 2 flags none, -2 all.
    """
    if format not in ("flax", "safetensors") or version not in (1, 2):
        raise ValueError(f"format {format!r}, version {version!r}; expected flax or safetensors, and 1 or 2")
    out = Path(out)
    vocabulary = _vocabulary()
    configs = _configs(version, len(vocabulary))
    if not safety_checker:
        del configs["safety_checker"], configs["feature_extractor"]
    for name, config in configs.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        file = {"scheduler": "scheduler_config.json", "feature_extractor": "preprocessor_config.json"}
        _write_json(out / name / file.get(name, "config.json"), config)
        if name in COMPONENTS:
            # Seeds by name: the same component has the same weights in every folder that has it.
            shapes = expected_shapes(name, config)
            weights = _random_weights(shapes, np.random.default_rng([seed, zlib.crc32(name.encode())]))
            if name == "safety_checker":
                for key in ("concept_embeds_weights", "special_care_embeds_weights"):
                    weights[(key,)] = np.full(shapes[(key,)], safety_threshold, np.float32)
            _write_weights(out / name, name, weights, format)
    _write_tokenizer(out / "tokenizer", vocabulary, version)
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.39.0", "notice": NOTICE}
    libraries = {
        "scheduler": ["diffusers", configs["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"] if safety_checker else [None, None],
        "feature_extractor": ["transformers", "CLIPImageProcessor"] if safety_checker else [None, None],
    }
    _write_json(out / "model_index.json", index | libraries)
    return out


def _configs(version: int, words: int) -> dict[str, dict[str, Any]]:
    """The config of each part, by the name of its folder."""
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    second = version == 2
    return {
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": words,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "hidden_act": "gelu" if second else "quick_gelu",
            "projection_dim": 32,
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
            "pad_token_id": 0 if second else words - 1,
        },
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.39.0",
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": blocks[0],
            "up_block_types": blocks[1],
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "attention_head_dim": (1, 2) if second else 2,  # heads, whatever the name says
            "cross_attention_dim": 32,
            "use_linear_projection": second,
            "norm_num_groups": 32,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.39.0",
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (8, 8, 16, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_size": 64,
            "scaling_factor": 0.18215,
        },
        "scheduler": {
            "_class_name": "DDIMScheduler" if second else "PNDMScheduler",
            "_diffusers_version": "0.39.0",
            "num_train_timesteps": 1000,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "prediction_type": "v_prediction" if second else "epsilon",
        },
        "safety_checker": {
            "architectures": ["StableDiffusionSafetyChecker"],
            "model_type": "clip",
            "projection_dim": 16,
            "text_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": words},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 16,
                "projection_dim": 16,
            },
        },
        "feature_extractor": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "do_normalize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    }


def _random_weights(
    shapes: dict[tuple[str, ...], tuple[int, ...]], generator: np.random.Generator
) -> dict[tuple[str, ...], np.ndarray]:
    """Values for every path; no bias is zero and no scale one, so that a confusion of two of them shows."""
    weights = {}
    for path, shape in sorted(shapes.items()):
        noise = generator.standard_normal(shape, np.float32)
        if path[-1] == "kernel":
            weights[path] = noise / np.float32(np.sqrt(np.prod(shape[:-1])))
        elif path[-1] == "scale":
            weights[path] = 1 + noise / 8
        else:
            weights[path] = noise / 8
    return weights


# ------------------------------------------------------------------ both formats


def _write_weights(folder: Path, name: str, weights: dict[tuple[str, ...], np.ndarray], format: str) -> None:
    from flax.serialization import msgpack_serialize
    from flax.traverse_util import unflatten_dict
    from safetensors.numpy import save

    component = COMPONENTS[name]
    if format == "flax":
        write_atomic(folder / component.flax_file, msgpack_serialize(unflatten_dict(weights)))
        return
    tensors = dict(torch_tensor(path, array, component.library) for path, array in weights.items())
    write_atomic(folder / component.torch_file, save(tensors, metadata={"format": "pt"}))


def torch_tensor(path: tuple[str, ...], array: np.ndarray, library: str) -> tuple[str, np.ndarray]:
    """PyTorch's name and layout of one Flax array of `library` ("diffusers" or "transformers")."""
    *modules, kind = path
    if kind == "kernel":
        # Flax: [in, out] and [height, width, in, out]; torch: [out, in] and [out, in, height, width].
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    if library == "diffusers":
        numbered = r"(blocks|resnets|attentions|downsamplers|upsamplers|net|to_out)_(\d+)$"
        modules = [re.sub(numbered, r"\1.\2", module) for module in modules]
        if "group_norm" in modules or modules[-1] in ("query", "key", "value", "proj_attn"):  # the VAE's attention
            modern = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
            modules = [modern.get(module, module) for module in modules]
    kind = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(kind, kind)
    return ".".join((*modules, kind)), np.ascontiguousarray(array)


# ------------------------------------------------------------------ the tokenizer


def _vocabulary() -> list[str]:
    """Bytes as characters, the same at a word's end, the merges, the two special words: CLIP's order."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    return [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in _MERGES),
        BOS,
        EOS,
    ]


def _write_tokenizer(folder: Path, vocabulary: list[str], version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {word: index for index, word in enumerate(vocabulary)})
    write_atomic(folder / "merges.txt", ("#version: 0.2\n" + "\n".join(_MERGES) + "\n").encode())
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": "!" if version == 2 else EOS}
    _write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", choices=("flax", "safetensors"), default="flax")
    parser.add_argument("--version", type=int, choices=(1, 2), default=1)
    parser.add_argument("--safety-checker", action="store_true", help="add one; it flags some pictures")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    try:
        folder = make_tiny_diffusion(options.pop("out"), **options, safety_threshold=0.4)
    except (ExtraMissingError, OSError) as error:
        sys.exit(f"make_tiny_diffusion: {error}")
    print(f"{folder}: {NOTICE}")


if __name__ == "__main__":
    main()
