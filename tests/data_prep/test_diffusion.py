"""Text to picture: against PyTorch's pipeline on the same weights and noise; batch, devices, format change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.diffusion.folder import SCHEDULERS, open_folder
from data_prep.diffusion.sampler import Drawing, Generator, denoise, initial_noise, seed_of
from data_prep.diffusion.weights import build_scheduler, load_model
from tests.diffusion_parts import FAST, PROMPTS, STEPS, Folders, diffusers, pixels, torch_pictures

SEEDS = [seed_of(prompt) for prompt in PROMPTS]
# float32 on both sides, but Flax computes GELU by its tanh formula and GroupNorm with another epsilon.
LEVELS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture(scope="module")
def drawn(folders):
    """The four pictures of the plain generator: version 1, PNDM, guidance 7.5, a batch of four on one device."""
    return folders.generator().draw(PROMPTS, SEEDS)


def torch_class(name):
    return getattr(diffusers, SCHEDULERS[name])


# ------------------------------------------------------------------ the whole path


def test_pndm_is_torchs(folders, drawn):
    theirs = torch_pictures(
        folders.folder(format="safetensors"), torch_class("pndm"), PROMPTS, SEEDS, steps=STEPS, guidance=7.5
    )
    assert np.abs(pixels(drawn) - theirs).max() <= LEVELS
    assert pixels(drawn).std() > 30 and np.abs(pixels(drawn)[0] - pixels(drawn)[1]).mean() > 20  # not one grey


@pytest.mark.parametrize(
    "scheduler, version, steps, size, guidance, negative, dtype",
    [
        ("ddim", 1, 2, (48, 64), 3.0, "rain and the dog", "float32"),
        ("euler", 2, 3, (64, 64), 7.5, "", "float32"),  # three steps: the second is at 499.5; v-prediction
        pytest.param("dpm-solver++", 1, 3, (64, 64), 0.0, "", "bfloat16", marks=pytest.mark.slow),  # no guidance
    ],
)
def test_every_other_scheduler_is_torchs(
    folders, scheduler, version, steps, size, guidance, negative, dtype, monkeypatch
):
    drawing = Drawing(steps, guidance, *size, negative_prompt=negative, batch_size=2)
    generator = folders.generator(drawing, scheduler=scheduler, version=version, dtype=dtype)
    ours = generator.draw(PROMPTS[:3], SEEDS[:3])
    settings = {"final_sigmas_type": "sigma_min"} if scheduler == "dpm-solver++" else {}
    call = diffusers.StableDiffusionPipeline.__call__
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline,
        "__call__",
        lambda self, prompts, **rest: call(self, prompts, negative_prompt=[negative] * len(prompts), **rest),
    )
    theirs = torch_pictures(
        folders.folder(version=version, format="safetensors"),
        torch_class(scheduler),
        PROMPTS[:3],
        SEEDS[:3],
        steps=steps,
        guidance=guidance,
        height=size[0],
        width=size[1],
        **settings,
    )
    difference = np.abs(pixels(ours) - theirs)
    assert pixels(ours).shape == (3, *size, 3)
    if dtype == "float32":
        assert difference.max() <= LEVELS
    else:
        assert 0 < difference.mean() < 3 and difference.max() < 40
        assert {leaf.dtype for leaf in jax.tree.leaves({**generator.model.params, "scheduler": {}})} == {
            np.dtype(jnp.bfloat16)
        }


@pytest.mark.parametrize("version", [1, 2])
def test_both_formats_are_one_model(folders, version):
    one, other = (folders.model(version=version, format=name) for name in ("flax", "safetensors"))
    leaves = [jax.tree_util.tree_leaves_with_path(model.params) for model in (one, other)]
    assert len(leaves[0]) == len(leaves[1]) > 200
    for (path, left), (other_path, right) in zip(*leaves, strict=True):
        assert path == other_path and np.array_equal(left, right)
    assert one.folder.sha256 != other.folder.sha256


def test_the_safetensors_folder_draws_the_same_bytes(folders, drawn, monkeypatch):
    generator, other = folders.generator(), folders.generator(format="safetensors")
    monkeypatch.setattr(other, "_draw", generator._draw)  # the same program, compiled once
    assert np.array_equal(pixels(other.draw(PROMPTS, SEEDS)), pixels(drawn))


# ------------------------------------------------------------------ what must not matter


def test_two_devices_draw_the_same_bytes(folders, drawn):
    two = folders.generator(devices=2)
    assert two.rows == 8 and two.mesh.size == 2
    # Six pictures: both devices have a part, the second one's is filled up.
    six = two.draw(PROMPTS + PROMPTS[:2], SEEDS + SEEDS[:2])
    assert np.array_equal(pixels(six), pixels([*drawn, *drawn[:2]]))


def test_batches_of_one_draw_the_same(folders, drawn):
    alone = folders.generator(Drawing(STEPS, batch_size=1)).draw(PROMPTS, SEEDS)
    assert np.abs(pixels(alone) - pixels(drawn)).max() <= 1  # sums in another order: one level of 255


def test_neighbours_and_places_do_not_matter(folders, drawn):
    again = folders.generator().draw(PROMPTS[::-1] + PROMPTS[1:2], SEEDS[::-1] + SEEDS[1:2])
    assert np.array_equal(pixels(again), pixels([*drawn[::-1], drawn[1]]))
    other = folders.generator().draw(PROMPTS[:1], [SEEDS[0] + 1])
    assert np.abs(pixels(other) - pixels(drawn[:1])).mean() > 5
    assert folders.generator().draw([], []) == []


def test_noise_is_one_seed_a_picture():
    assert seed_of("16_05_01_820") == 3067396216 and seed_of("16_05_01_820", 1) != seed_of("16_05_01_820")
    seeds = np.asarray([0, 5, 2**32 - 1], np.uint32)
    noise = np.asarray(initial_noise(seeds, (4, 8, 8)))
    for row, seed in zip(noise, seeds, strict=True):
        assert np.array_equal(row, jax.random.normal(jax.random.key(seed), (4, 8, 8)))
    many = np.asarray(initial_noise(np.arange(64, dtype=np.uint32), (4, 8, 8)))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
    assert np.abs(np.corrcoef(many.reshape(64, -1)) - np.eye(64)).max() < 0.35


# ------------------------------------------------------------------ schedulers alone


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_takes_the_steps_of_torchs(name, prediction):
    """Both integrate the same field, smooth and nonlinear, that looks at latents and time."""
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    config |= {"prediction_type": prediction, "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}
    config |= {"clip_sample": False} if name == "ddim" else {}
    config |= {"final_sigmas_type": "sigma_min"} if name == "dpm-solver++" else {}
    noise = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)

    def field(latents, time_step, sin, cos):
        return 0.8 * sin(2 * latents) + 0.3 * cos(latents * time_step / 400)

    scheduler, state = build_scheduler(name, config)
    for steps in (2, 7):  # of one step torch's Euler makes t = 0, Flax's t = 999
        theirs = torch_class(name).from_config(config)
        theirs.set_timesteps(steps)
        latents = torch.tensor(noise) * theirs.init_noise_sigma
        for time_step in theirs.timesteps:
            output = field(theirs.scale_model_input(latents, time_step), time_step, torch.sin, torch.cos)
            latents = theirs.step(output, time_step, latents).prev_sample
        run = jax.jit(
            functools.partial(denoise, scheduler, state, lambda x, time: field(x, time, jnp.sin, jnp.cos), steps=steps),
            compiler_options=FAST,
        )
        np.testing.assert_allclose(run(noise), latents.numpy(), atol=2e-3, rtol=2e-3)


# ------------------------------------------------------------------ prompts, faults, safety


@pytest.mark.parametrize("version", [1, 2])
def test_pieces_are_those_of_torchs_tokenizer_and_counted(folders, version):
    from transformers import CLIPTokenizer

    long = " ".join(["the"] * 75)
    generator = folders.generator(version=version)
    ids, pieces = generator.tokenize([*PROMPTS, long, f"{long} x", ""])
    theirs = CLIPTokenizer.from_pretrained(folders.folder(version=version) / "tokenizer")
    expected = theirs([*PROMPTS, long, f"{long} x", ""], padding="max_length", truncation=True, max_length=77)
    assert ids.tolist() == expected["input_ids"] and ids.shape == (7, 77)
    assert pieces[-3:] == [77, 78, 2] and generator.max_pieces == 77
    assert ids[-1, -1] == (0 if version == 2 else ids[-1, 1])  # OpenCLIP pads with "!", CLIP with the end


def test_nan_is_told(folders, drawn, monkeypatch):
    generator = folders.generator()
    damaged = jax.tree.map(lambda leaf: leaf, generator._params)
    damaged["vae"]["decoder"]["conv_in"]["bias"] = damaged["vae"]["decoder"]["conv_in"]["bias"] * jnp.nan
    monkeypatch.setattr(generator, "_params", damaged)
    assert [picture.finite for picture in generator.draw(PROMPTS[:2], SEEDS[:2])] == [False, False]
    assert all(picture.finite and not picture.flagged for picture in drawn)


def test_the_safety_checker_flags_what_torchs_does(folders, drawn, monkeypatch):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    options = {"safety_checker": True, "safety_threshold": 0.4}
    generator = folders.generator(**options)
    monkeypatch.setattr(generator, "_draw", folders.generator()._draw)  # the checker comes after it
    checked = generator.draw(PROMPTS, SEEDS)
    assert np.array_equal(pixels(checked), pixels(drawn))
    theirs = StableDiffusionSafetyChecker.from_pretrained(
        folders.folder(format="safetensors", **options) / "safety_checker", local_files_only=True
    )
    flat = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 90, 255, 200)])
    found = []
    for batch in (pixels(drawn).astype(np.uint8), flat):
        features = generator.model.pipeline.feature_extractor([Image.fromarray(item) for item in batch])
        _, flags = theirs(images=np.zeros((4, 2, 2, 3)), clip_input=torch.tensor(np.stack(features["pixel_values"])))
        found.append([bool(flag) for flag in flags])
        assert generator._flags(batch).tolist() == found[-1]
    assert [picture.flagged for picture in checked] == found[0] and {True, False} == {*found[0], *found[1]}
    other = open_folder(folders.folder(**options), safety_checker=False)
    assert not other.safety_checker and load_model(other).pipeline.safety_checker is None


@pytest.mark.parametrize(
    "drawing, message",
    [
        (Drawing(height=72), "height is 72; this model draws multiples of 16 pixels"),
        (Drawing(width=8), "width is 8"),
        (Drawing(negative_prompt="the " * 76), "the negative prompt has 78 pieces; the model reads 77"),
    ],
)
def test_what_cannot_be_drawn(folders, drawing, message):
    with pytest.raises(ValueError, match=message):
        Generator(folders.model(), drawing, devices=1)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"guidance": -1.0}])
def test_options_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Drawing(**wrong)
