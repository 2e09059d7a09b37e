"""Pictures per second of back-translation at the size of Stable Diffusion v1.5 and v2.1, and the share of peak.

python -m benchmarks.back_translation [--versions 1.5 2.1] [--batch-sizes 1 2 4 8 16] [--steps 50] [--dtype bfloat16]
python -m benchmarks.back_translation --smoke       # the tiny model, two steps: only shows that the benchmark runs

Weights are random at the real shapes (speed does not depend on their values), written out below. One program draws all
of it: text encoder, 50 steps of DDIM with guidance (two UNet evaluations a step and picture), VAE, bytes on the host.
Operations are counted by XLA from an unrolled UNet evaluation, text encoding and decoding (a loop is counted once by
XLA, so the parts are counted apart). Peak is what --peak says in TFLOP/s, or the known dense bf16 figure of the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.diffusion.folder import DiffusionFolder, open_folder
from data_prep.diffusion.sampler import Drawing, Generator
from data_prep.diffusion.weights import DiffusionModel, build_module, build_scheduler, expected_shapes, load_model
from data_prep.make_tiny_diffusion import make_tiny_diffusion

# Dense bf16 TFLOP/s from the makers' data sheets, by a part of jax's device_kind.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165, "V100": 125, "T4": 65}

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": [_CROSS, _CROSS, _CROSS, _PLAIN],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
}
_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_TEXT = {"vocab_size": 49408, "max_position_embeddings": 77}
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
CONFIGS = {
    "1.5": {
        "text_encoder": _TEXT
        | {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
        },
        "unet": _UNET | {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
        "vae": _VAE | {"sample_size": 512},
        "scheduler": _SCHEDULER | {"prediction_type": "epsilon"},
    },
    "2.1": {
        "text_encoder": _TEXT
        | {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        "unet": _UNET
        | {
            "sample_size": 96,
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "vae": _VAE | {"sample_size": 768},
        "scheduler": _SCHEDULER | {"prediction_type": "v_prediction"},
    },
}


def random_model(version: str, dtype: str, tokenizer) -> DiffusionModel:
    """A model of the real shapes with random weights; `tokenizer` is that of another model (its ids are in range)."""
    from flax.traverse_util import unflatten_dict

    from data_prep.diffusion.weights import import_flax

    configs = CONFIGS[version]
    modules, params = {}, {}
    for name in ("text_encoder", "unet", "vae"):
        modules[name] = build_module(name, configs[name], dtype)
        generator = np.random.default_rng(0)
        tree = {}
        for path, shape in expected_shapes(name, configs[name]).items():
            spread = 1 / np.sqrt(np.prod(shape[:-1])) if path[-1] == "kernel" else 0.02
            values = generator.standard_normal(shape, np.float32) * np.float32(spread) + (path[-1] == "scale")
            tree[path] = values.astype(jnp.dtype(dtype))
        params[name] = unflatten_dict(tree)
    scheduler, params["scheduler"] = build_scheduler("ddim", configs["scheduler"])
    pipeline = import_flax().FlaxStableDiffusionPipeline(
        **modules,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        dtype=jnp.dtype(dtype),
    )
    folder = DiffusionFolder(Path(version), {}, configs, "ddim", {}, "random weights")
    return DiffusionModel(folder, pipeline, params, dtype)


def operations(generator: Generator) -> float:
    """Floating-point operations of one picture as XLA counts them: text twice, steps × 2 UNet evaluations, one VAE."""
    pipeline, params = generator.model.pipeline, generator.model.params
    shape = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)  # noqa: E731
    scale = pipeline.vae_scale_factor
    latents = jax.ShapeDtypeStruct((1, 4, generator.height // scale, generator.width // scale), jnp.float32)
    width = pipeline.text_encoder.config.hidden_size
    context = jax.ShapeDtypeStruct((1, generator.max_pieces, width), jnp.dtype(generator.model.dtype))
    ids = jax.ShapeDtypeStruct((1, generator.max_pieces), jnp.int32)

    def count(function, *arguments) -> float:
        return jax.jit(function).lower(*arguments).cost_analysis()["flops"]

    text = count(lambda p, i: pipeline.text_encoder(i, params=p)[0], shape(params["text_encoder"]), ids)
    step = count(
        lambda p, x, c: pipeline.unet.apply({"params": p}, x, jnp.zeros(1), encoder_hidden_states=c).sample,
        shape(params["unet"]),
        latents,
        context,
    )
    decode = count(
        lambda p, x: pipeline.vae.apply({"params": p}, x, method=pipeline.vae.decode).sample,
        shape(params["vae"]),
        latents,
    )
    passes = 2 if generator.drawing.guidance > 1 else 1
    return text + generator.drawing.steps * passes * step + decode  # the negative prompt's text: once a batch, left out


def measure(model: DiffusionModel, drawing: Drawing, rounds: int) -> tuple[float, float, Generator]:
    """(seconds of compilation and a first batch, median seconds of a batch, generator)."""
    start = time.perf_counter()
    generator = Generator(model, drawing)
    prompts, seeds = ["a photo of the harbour at night"] * generator.rows, list(range(generator.rows))
    generator.draw(prompts, seeds)
    first = time.perf_counter() - start
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        generator.draw(prompts, seeds)
        seconds.append(time.perf_counter() - start)
    return first, statistics.median(seconds), generator


def peak_of(device: jax.Device, given: float | None) -> float | None:
    """TFLOP/s of one device: what was given, or what is known of its kind."""
    return given or next((peak for name, peak in PEAKS.items() if name in device.device_kind), None)


def main() -> None:
    """Measure each version at each batch size, until one does not fit into memory; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="on each device")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, help="TFLOP/s of one device, dense, in this dtype")
    parser.add_argument("--smoke", action="store_true", help="the tiny model, float32, two steps")
    options = parser.parse_args()
    device = jax.devices()[0]
    if device.platform == "cpu" and not options.smoke:
        parser.error("on a CPU a picture takes many minutes; --smoke runs the tiny model instead")
    peak = peak_of(device, options.peak)
    print(f"{len(jax.devices())} x {device.device_kind}, peak {peak or 'unknown'} TFLOP/s each, jax {jax.__version__}")
    print(f"{'model':>8} {'batch':>6} {'compile s':>10} {'s/batch':>9} {'pictures/s':>11} {'TFLOP':>8} {'of peak':>8}")
    with tempfile.TemporaryDirectory() as place:
        tiny = load_model(open_folder(make_tiny_diffusion(Path(place) / "tiny"), scheduler="ddim"))
        for version in ["tiny"] if options.smoke else options.versions:
            model = tiny if options.smoke else random_model(version, options.dtype, tiny.pipeline.tokenizer)
            drawing = Drawing(steps=2 if options.smoke else options.steps)
            best = None
            for batch in [1, 2] if options.smoke else options.batch_sizes:
                try:
                    first, seconds, generator = measure(
                        model, dataclasses.replace(drawing, batch_size=batch), options.rounds
                    )
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    print(f"{version:>8} {batch:6d}  does not fit into memory")
                    break
                speed, work = generator.rows / seconds, operations(generator)
                share = speed * work / (peak * 1e12 * len(jax.devices())) if peak else None
                print(
                    f"{version:>8} {batch:6d} {first:10.1f} {seconds:9.3f} {speed:11.3f} {work / 1e12:8.4g} "
                    + (f"{share:8.1%}" if share else f"{'-':>8}"),
                    flush=True,
                )
                if best is None or speed > best[1]:
                    best = batch, speed
                del generator
            if best:
                print(f"{version:>8} best: batch {best[0]}, {best[1]:.3f} pictures per second")


if __name__ == "__main__":
    main()
