"""Folders of Stable Diffusion: what is missing, extra, not supported or not installed is said before drawing."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_prep import make_tiny_diffusion
from data_prep.diffusion.folder import SCHEDULERS, open_folder
from data_prep.diffusion.weights import ExtraMissingError, import_flax, load_model
from tests.diffusion_parts import Folders
from tmrjax.files import DataError

UNET, VAE = "diffusion_pytorch_model.safetensors", "diffusion_flax_model.msgpack"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture
def folder(folders, tmp_path, request):
    """A copy that a test may damage."""
    return shutil.copytree(folders.folder(format=getattr(request, "param", "safetensors")), tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_folder_says_of_itself(folders):
    first, second = open_folder(folders.folder()), open_folder(folders.folder(version=2), scheduler="euler")
    assert (first.scheduler, first.vae_scale, first.multiple, first.default_size) == ("pndm", 8, 16, 64)
    assert second.scheduler == "euler" and not second.safety_checker
    assert open_folder(folders.folder(version=2)).scheduler == "ddim"
    checked = folders.folder(safety_checker=True)
    assert open_folder(checked).safety_checker and not open_folder(checked, safety_checker=False).safety_checker


def test_the_hash_is_of_all_that_is_read_and_computed_once(folder, monkeypatch):
    first = open_folder(folder)
    assert {name.split("/")[0] for name in first.files} == {"text_encoder", "tokenizer", "unet", "vae", "scheduler"}
    monkeypatch.setattr("hashlib.file_digest", None)  # nothing is hashed again
    assert open_folder(folder, known_files=first.files).sha256 == first.sha256
    monkeypatch.undo()
    for name in ("unet/" + UNET, "tokenizer/merges.txt", "scheduler/scheduler_config.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b" ")
        assert open_folder(folder, known_files=first.files).sha256 != first.sha256
        (folder / name).write_bytes(before)
    assert open_folder(folder).sha256 == first.sha256


def test_shards_and_half_precision(folder, folders):
    whole = load_model(open_folder(folder)).params["unet"]
    tensors = load_file(folder / "unet" / UNET)
    names = sorted(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / "unet" / part)
    index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
    (folder / "unet" / (UNET + ".index.json")).write_text(json.dumps(index))
    (folder / "unet" / UNET).unlink()
    weights = load_file(folder / "vae" / UNET)
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        for name in [name for name in weights if f".{new}." in name]:  # as the files of version 1 have them
            weights[name.replace(new, old)] = weights.pop(name)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in weights
    save_file({name: value.astype(np.float16) for name, value in weights.items()},
              folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")  # fmt: skip
    (folder / "vae" / UNET).unlink()
    model = load_model(open_folder(folder))
    assert np.array_equal(model.params["unet"]["conv_in"]["kernel"], whole["conv_in"]["kernel"])
    kernel = model.params["vae"]["decoder"]["conv_in"]["kernel"]
    exact = folders.model().params["vae"]["decoder"]["conv_in"]["kernel"]
    assert kernel.dtype == np.float32 and np.array_equal(kernel, exact.astype(np.float16).astype(np.float32))
    (folder / "unet" / "b.safetensors").unlink()
    with pytest.raises(DataError, match=r"index.json: found no b.safetensors beside it"):
        open_folder(folder)


# ------------------------------------------------------------------ damaged and foreign folders


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "the pipeline 'StableDiffusionXLPipeline'"),
        ("unet/config.json", {"in_channels": 9}, "in_channels = 9; expected 4, the VAE's latent channels"),
        ("unet/config.json", {"norm_num_groups": 16}, "norm_num_groups = 16; expected 32: Flax knows no other"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ("vae/config.json", {"use_quant_conv": False}, "use_quant_conv = False"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
        (
            "scheduler/scheduler_config.json",
            {"timestep_spacing": "trailing"},
            "'trailing' for pndm; expected one of lea",
        ),
        ("scheduler/scheduler_config.json", {"_class_name": "LMSDiscreteScheduler"}, "LMS.* cannot be compiled.*pndm"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "UniPCMultistepScheduler"},
            "'UniPC.*Choose one with --sch",
        ),
    ],
)
def test_what_flax_would_ignore_is_refused(folder, file, changes, message):
    edit(folder / file, **changes)
    with pytest.raises(DataError, match=message):
        open_folder(folder)


def test_another_scheduler_may_be_asked_for(folder):
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="LMSDiscreteScheduler")
    assert [open_folder(folder, scheduler=name).scheduler for name in SCHEDULERS] == list(SCHEDULERS)
    with pytest.raises(DataError, match=r"'lms' .the Flax LMS scheduler"):
        open_folder(folder, scheduler="lms")


def test_missing_files(folder, tmp_path):
    with pytest.raises(DataError, match=r"no model_index.json.*make_tiny_diffusion"):
        open_folder(tmp_path)
    (folder / "unet" / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"no weights \(config.json, diff.*bin\).*Pickled .bin files are not read"):
        open_folder(folder)
    shutil.rmtree(folder / "tokenizer")
    (folder / "unet" / "diffusion_pytorch_model.bin").rename(folder / "unet" / UNET)
    with pytest.raises(DataError, match="tokenizer: found no such folder"):
        open_folder(folder)
    edit(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    with pytest.raises(DataError, match="safety_checker: found no weights"):
        open_folder(folder)


def test_weights_that_do_not_fit_are_listed_at_once(folder):
    tensors = load_file(folder / "unet" / UNET)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:-1]
    tensors["mid_block.attentions.0.norm.surplus"] = tensors.pop("conv_out.bias")
    save_file(tensors, folder / "unet" / UNET)
    with pytest.raises(DataError) as error:
        load_model(open_folder(folder))
    for part in (
        "conv_in/kernel of shape (3, 3, 4, 31), not (3, 3, 4, 32)",
        "extra mid_block/",
        "missing conv_out/bias",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("folder", ["flax"], indirect=True)
def test_a_damaged_flax_file(folder):
    path = folder / "vae" / VAE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"vae/diffusion_flax_model.msgpack: found a damaged file"):
        load_model(open_folder(folder))
    path.write_bytes(b"\x93\x01\x02\x03")
    with pytest.raises(DataError, match=r"vae/diffusion_flax_model.msgpack: found list"):
        load_model(open_folder(folder))


def test_an_unknown_precision(folders):
    with pytest.raises(ValueError, match="dtype 'float16'; expected one of float32, bfloat16"):
        load_model(open_folder(folders.folder()), dtype="float16")


# ------------------------------------------------------------------ what is not installed


def test_without_diffusers(monkeypatch):
    real = importlib.import_module

    def absent(name, *rest):
        if name.startswith("diffusers"):
            raise ModuleNotFoundError("No module named 'diffusers'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ExtraMissingError, match=r"No module named 'diffusers'.*pip install -e '\.\[backtranslation\]'"):
        import_flax()


def test_dummies_are_not_taken_for_the_pipeline(monkeypatch):
    """What diffusers 0.39 hands out beside transformers 5, by the class that it hands out."""
    import diffusers
    from diffusers.utils import dummy_flax_and_transformers_objects as dummies

    monkeypatch.setattr(diffusers, "FlaxStableDiffusionPipeline", dummies.FlaxStableDiffusionPipeline)
    with pytest.raises(ExtraMissingError, match=r"FlaxStableDiffusionPipeline is a dummy.*'\.\[backtranslation\]'"):
        import_flax()


def test_the_command_that_makes_a_folder(tmp_path, monkeypatch, capsys):
    out = tmp_path / "tiny"
    monkeypatch.setattr(sys, "argv", ["make", f"--out={out}", "--safety-checker", "--version=2"])
    make_tiny_diffusion.main()
    assert "RANDOM WEIGHTS" in capsys.readouterr().out and open_folder(out).safety_checker
    assert json.loads((out / "model_index.json").read_text())["notice"].startswith("RANDOM WEIGHTS")
