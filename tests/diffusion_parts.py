"""What the tests of back-translation share: tiny folders, loaded models, generators, each made once per process."""

import functools

import numpy as np
import pytest
import torch

from data_prep.diffusion.folder import open_folder
from data_prep.diffusion.sampler import Drawing, Generator, initial_noise
from data_prep.diffusion.weights import DiffusionModel, load_model
from data_prep.make_tiny_diffusion import make_tiny_diffusion

# Whatever imports this module is skipped without it, as with the newest packages (make test-newest).
diffusers = pytest.importorskip("diffusers", reason="the extra backtranslation is not installed")

# XLA spends most of its time on code that runs for milliseconds here.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
STEPS = 2
PROMPTS = ["the cat and the dog", "Paris in the rain", "RT @user : 😀 naïve façade", "x"]


class Folders:
    """Tiny folders under one temporary folder, by their options."""

    def __init__(self, root):
        self.root = root

    @functools.cache  # noqa: B019 (lives as long as the session)
    def folder(self, **options):
        name = "-".join(f"{key}={value}" for key, value in sorted(options.items())) or "plain"
        return make_tiny_diffusion(self.root / name, **options)

    @functools.cache  # noqa: B019
    def model(self, scheduler=None, dtype="float32", **options) -> DiffusionModel:
        return load_model(open_folder(self.folder(**options), scheduler=scheduler), dtype=dtype)

    @functools.cache  # noqa: B019
    def generator(self, drawing=None, devices=1, **options) -> Generator:
        drawing = drawing or Drawing(steps=STEPS)
        return Generator(self.model(**options), drawing, devices=devices, compiler_options=FAST)


def torch_pictures(folder, scheduler_class, prompts, seeds, *, steps, guidance, height=64, width=64, **settings):
    """What PyTorch's pipeline draws with the folder's safetensors and the same noise, [n, height, width, 3] 0..255."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **settings)
    noise = torch.tensor(np.asarray(initial_noise(np.asarray(seeds, np.uint32), (4, height // 8, width // 8))))
    drawn = pipeline(
        prompts,
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=height,
        width=width,
        output_type="np",
    )
    return np.round(255 * drawn.images)


def pixels(pictures):
    return np.stack([picture.pixels for picture in pictures]).astype(int)
