"""Text to picture (paper section 3.3, the back-translation) in one compiled program over all devices.

The loop is this project's own, over the parts of diffusers' Flax pipeline, because that pipeline's `_generate` draws
the noise of a batch from one key (a picture would depend on its neighbours), stops PNDM one step early (50 steps are 51
evaluations) and rounds Euler's fractional time steps, which its scheduler then does not find. The batch is divided over
the devices with `shard_map`: each runs the very program that a single one would, so their number changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.diffusion.folder import DiffusionFolder
from data_prep.diffusion.weights import DiffusionModel
from tmrjax.training.sharding import make_mesh, replicate, replicated, split_rows


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How to draw. `guidance` is w of classifier-free guidance, e(negative) + w (e(text) - e(negative)); <= 1: off."""

    steps: int = 50
    guidance: float = 7.5
    height: int | None = None  # pixels; default: the size the model was trained for
    width: int | None = None
    negative_prompt: str = ""
    batch_size: int = 4  # pictures at a time on each device

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}; expected 0 or more (7.5 is usual, up to 1 is off)")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One result: pixels uint8 [height, width, 3], which mean nothing unless `finite`.

    `finite`: no NaN or infinity was computed. `flagged`: by the safety checker. `pieces`: of the whole prompt.
    """

    pixels: np.ndarray
    finite: bool
    flagged: bool
    pieces: int


def picture_size(folder: DiffusionFolder, drawing: Drawing) -> tuple[int, int]:
    """Height and width in pixels; raises ValueError for what the model cannot draw."""
    size = drawing.height or folder.default_size, drawing.width or folder.default_size
    for name, value in zip(("height", "width"), size, strict=True):
        if value < folder.multiple or value % folder.multiple:
            raise ValueError(f"{name} is {value}; this model draws multiples of {folder.multiple} pixels")
    return size


def seed_of(record_id: str, base_seed: int = 0) -> int:
    """The seed of a record: the first 32 bits of SHA-256 of base seed and id. Shards and batches have no part in it."""
    return int.from_bytes(hashlib.sha256(f"{base_seed}:{record_id}".encode()).digest()[:4], "big")


def initial_noise(seeds: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Standard normal noise, one seed per picture: uint32 [n] to float32 [n, *shape]."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), tuple(shape), jnp.float32))(seeds)


def denoise(scheduler, state, predict, noise: jax.Array, steps: int) -> jax.Array:
    """Runs a scheduler of diffusers over all of its time steps.

    `predict(latents, time_step)` is the model's output (noise or v) for latents scaled as the scheduler wants them;
    `noise` is standard normal, [n, channels, height, width]. Returns the latents of the picture, float32.
    """
    state = scheduler.set_timesteps(state, num_inference_steps=steps, shape=noise.shape)
    time_steps = state.timesteps

    def step(index, carry):
        latents, state = carry
        time_step = time_steps[index]
        output = predict(scheduler.scale_model_input(state, latents, time_step), time_step)
        latents, state = scheduler.step(state, output.astype(jnp.float32), time_step, latents).to_tuple()
        return latents, state

    latents, _ = jax.lax.fori_loop(0, len(time_steps), step, (noise * state.init_noise_sigma, state))
    return latents


class Generator:
    """Draws pictures with one program, compiled on first use for a fixed batch; the last batch is filled up.

    `devices` bounds the number of devices (default: all of this process), `compiler_options` go to XLA. Raises
    ValueError for sizes the model cannot draw and for a negative prompt that it cannot read whole.
    """

    def __init__(
        self,
        model: DiffusionModel,
        drawing: Drawing,
        *,
        devices: int | None = None,
        compiler_options: Mapping[str, Any] | None = None,
    ):
        self.model, self.drawing = model, drawing
        self.mesh = make_mesh(devices)
        self.rows = drawing.batch_size * self.mesh.size
        self.height, self.width = picture_size(model.folder, drawing)
        negative, (pieces,) = self.tokenize([drawing.negative_prompt])
        if pieces > self.max_pieces:
            raise ValueError(f"the negative prompt has {pieces} pieces; the model reads {self.max_pieces}: shorten it")
        parameters = {name: tree for name, tree in model.params.items() if name != "safety_checker"}
        self._params = replicate(parameters, self.mesh)
        self._fixed = replicate((negative, np.float32(drawing.guidance)), self.mesh)
        self._draw = jax.jit(
            jax.shard_map(
                functools.partial(_draw, model.pipeline, drawing.steps, self.height, self.width, drawing.guidance > 1),
                mesh=self.mesh,
                in_specs=(replicated(self.mesh).spec,) * 2 + (split_rows(self.mesh).spec,) * 2,
                out_specs=split_rows(self.mesh).spec,
                check_vma=False,  # schedulers start from zeros that are the same everywhere and differ later
            ),
            compiler_options=dict(compiler_options or {}),
        )
        if model.pipeline.safety_checker is not None:
            self._checker_params = replicate(model.params["safety_checker"], self.mesh)
            self._check = jax.jit(lambda params, pixels: model.pipeline.safety_checker(pixels, params))

    @property
    def max_pieces(self) -> int:
        """Word pieces that the text encoder reads, the two special ones among them (77)."""
        return self.model.pipeline.text_encoder.config.max_position_embeddings

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """Ids [n, 77], cut and padded as the encoder wants them, and how many pieces each whole prompt has."""
        tokenizer, length = self.model.pipeline.tokenizer, self.max_pieces
        whole = tokenizer(list(prompts)).input_ids
        padded = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="np"
        ).input_ids
        return padded.astype(np.int32), [len(pieces) for pieces in whole]

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        """Pictures for prompts and their seeds (32 bits), of any number, batch by batch."""
        pictures: list[Picture] = []
        for start in range(0, len(prompts), self.rows):
            rows = slice(start, start + self.rows)
            pictures += self._batch(list(prompts[rows]), list(seeds[rows]))
        return pictures

    def _batch(self, prompts: list[str], seeds: list[int]) -> list[Picture]:
        missing = self.rows - len(prompts)
        ids, pieces = self.tokenize(prompts + prompts[:1] * missing)
        batch = ids, np.asarray(seeds + seeds[:1] * missing, np.uint32)
        sharding = split_rows(self.mesh)
        pixels, finite = self._draw(
            self._params, self._fixed, *(jax.make_array_from_process_local_data(sharding, rows) for rows in batch)
        )
        pixels, finite = np.asarray(pixels), np.asarray(finite)
        flags = self._flags(pixels)
        return [Picture(pixels[row], bool(finite[row]), bool(flags[row]), pieces[row]) for row in range(len(prompts))]

    def _flags(self, pixels: np.ndarray) -> np.ndarray:
        pipeline = self.model.pipeline
        if pipeline.safety_checker is None:
            return np.zeros(len(pixels), bool)
        features = pipeline.feature_extractor(list(pixels), return_tensors="np").pixel_values
        features = jax.make_array_from_process_local_data(split_rows(self.mesh), features)
        return np.asarray(self._check(self._checker_params, features))


def _draw(pipeline, steps, height, width, guided, params, fixed, ids, seeds):
    """One device's part: ids [n, 77] and seeds [n] to (uint8 [n, height, width, 3], whether all was finite [n])."""
    negative, guidance = fixed
    context = pipeline.text_encoder(ids, params=params["text_encoder"])[0]
    if guided:
        without = pipeline.text_encoder(negative, params=params["text_encoder"])[0]
        context = jnp.concatenate([jnp.broadcast_to(without, context.shape), context])

    def predict(latents, time_step):
        latents = jnp.concatenate([latents, latents]) if guided else latents
        output = pipeline.unet.apply(
            {"params": params["unet"]},
            latents,
            jnp.broadcast_to(time_step, len(latents)),
            encoder_hidden_states=context,
        ).sample
        if not guided:
            return output
        without, given = jnp.split(output.astype(jnp.float32), 2)
        return without + guidance * (given - without)

    scale = pipeline.vae_scale_factor
    noise = initial_noise(seeds, (pipeline.unet.config.in_channels, height // scale, width // scale))
    latents = denoise(pipeline.scheduler, params["scheduler"], predict, noise, steps)
    latents = latents / pipeline.vae.config.scaling_factor
    values = pipeline.vae.apply({"params": params["vae"]}, latents, method=pipeline.vae.decode).sample
    values = values.astype(jnp.float32).transpose(0, 2, 3, 1)
    finite = jnp.isfinite(values).all((1, 2, 3))
    return jnp.round(255 * (values / 2 + 0.5).clip(0, 1)).astype(jnp.uint8), finite
