"""Pickled weights to safetensors, read back by the library; nothing is unpickled."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from data_prep.convert_weights import convert_weights
from tmrjax import convert

torch = pytest.importorskip("torch")

COMMIT = "1" * 40


@pytest.fixture
def state():
    """Two names of one tensor, a view that is not contiguous, half precision and integers."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(5, 3, generator=generator)
    return {"table": table, "tied": table, "view": table.T, "half": table[0].half(), "ids": torch.arange(4)}


def assert_converted(folder, state):
    found = convert.read_state_dict(folder)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def write_shards(folder, state):
    places = {name: f"pytorch_model-0000{1 + (number > 2)}-of-00002.bin" for number, name in enumerate(state)}
    for shard in set(places.values()):
        torch.save({name: tensor for name, tensor in state.items() if places[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_a_folder_is_converted_in_place_by_the_command(tmp_path, state):
    torch.save(state, tmp_path / "pytorch_model.bin")
    command = [sys.executable, "data_prep/convert_weights.py", str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert_converted(tmp_path, state)
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "model.safetensors: there already" in result.stderr


def test_shards_are_converted_as_one(tmp_path, state):
    write_shards(tmp_path, state)
    convert_weights(str(tmp_path))
    assert_converted(tmp_path, state)


def test_a_model_of_the_hub_goes_into_a_folder_of_its_own(tmp_path, state, monkeypatch):
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    torch.save(state, snapshot / "pytorch_model.bin")
    (snapshot / "config.json").write_text('{"model_type": "roberta"}')
    (snapshot / "bpe.codes").write_text("#version")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="owner/name is a model of the hub: say with --out=FOLDER"):
        convert_weights("owner/name")
    out = tmp_path / "encoders" / "name"
    convert_weights("owner/name", out)
    assert sorted(file.name for file in out.iterdir()) == ["bpe.codes", "config.json", "model.safetensors"]
    assert_converted(out, state)
    assert sorted(file.name for file in snapshot.iterdir()) == ["bpe.codes", "config.json", "pytorch_model.bin"]


def test_faults_are_named_and_leave_nothing(tmp_path, state):
    with pytest.raises(FileNotFoundError, match=r"neither pytorch_model\.bin nor .*the folder holds nothing"):
        convert_weights(str(tmp_path))
    places = write_shards(tmp_path, state)
    (tmp_path / places["ids"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-00002-of-00002\.bin: no such shard"):
        convert_weights(str(tmp_path))
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../outside.bin"}}')
    with pytest.raises(ValueError, match=r"'\.\./outside\.bin' is not a file name in the same folder"):
        convert_weights(str(tmp_path))
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected a state dict"):
        convert_weights(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"run": subprocess.run}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: damaged, or it holds more than tensors"):
        convert_weights(str(tmp_path))
    assert not list(tmp_path.glob("*.safetensors"))
