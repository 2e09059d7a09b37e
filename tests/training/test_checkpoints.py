"""Checkpoints: exact, self-contained, and unharmed by a save that fails."""

import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tmrjax.training.checkpoints import (
    BEST,
    CheckpointError,
    CheckpointStore,
    array_hashes,
    config_difference,
    load_best,
)
from tmrjax.training.sharding import make_mesh, replicate


@pytest.fixture
def state():
    key = jax.random.key(0)
    return {"params": {"a": jax.random.normal(key, (300, 300)), "b": jnp.float32(3)}, "batch_stats": {}, "step": 7}


@pytest.mark.parametrize("devices", [1, 8])
def test_a_state_comes_back_bit_by_bit_on_any_number_of_devices(tmp_path, state, devices):
    store = CheckpointStore(tmp_path / "c")
    state = replicate(jax.device_get(state), make_mesh(8))
    store.save(5, state, {"config": {"x": [1, 2]}, "best": None})
    store.close()
    again = CheckpointStore(tmp_path / "c")
    assert again.latest_step() == 5
    mesh = make_mesh(devices)
    restored, meta = again.restore(state, mesh)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored["params"]["a"].sharding.mesh == mesh
    assert meta["config"] == {"x": [1, 2]} and meta["best"] is None


def test_the_best_is_read_as_numpy_without_a_template(tmp_path, state):
    store = CheckpointStore(tmp_path / BEST)
    store.save(1, {name: state[name] for name in ("params", "batch_stats")}, {"a": 1})
    store.save(2, {"params": {"a": jnp.ones(3)}, "batch_stats": {}}, {"a": 2})
    variables, meta = load_best(tmp_path)
    assert isinstance(variables["params"]["a"], np.ndarray)
    np.testing.assert_array_equal(variables["params"]["a"], np.ones(3))
    assert variables["batch_stats"] == {} and meta["a"] == 2
    assert [path.name for path in (tmp_path / BEST).iterdir() if path.name.isdigit()] == ["2"]


def test_a_step_is_saved_again_by_a_run_that_died_behind_it(tmp_path, state):
    store = CheckpointStore(tmp_path)
    for value in (1, 2):
        store.save(3, {"x": jnp.full(2, value)}, {"value": value})
    restored, meta = store.restore({"x": jnp.zeros(2, jnp.int32)}, make_mesh(1))
    assert restored["x"].tolist() == [2, 2] and meta["value"] == 2


def test_a_full_disk_leaves_the_previous_checkpoint_good(tmp_path, state):
    store = CheckpointStore(tmp_path / BEST)
    arrays = {name: state[name] for name in ("params", "batch_stats")}
    store.save(1, arrays, {"step": 1})
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # the system's own refusal to write on
    try:
        with pytest.raises(CheckpointError, match=r"step 2 could not be written.*The previous one is intact"):
            store.save(2, arrays, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    variables, meta = load_best(tmp_path)
    assert meta["step"] == 1
    np.testing.assert_array_equal(variables["params"]["a"], state["params"]["a"])
    again = CheckpointStore(tmp_path / BEST)
    again.save(2, arrays, {"step": 2})
    assert load_best(tmp_path)[1]["step"] == 2


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="is it the workdir of a training run"):
        load_best(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has not finished its first epoch"):
        load_best(tmp_path)


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tmrjax.training.checkpoints.FORMAT", 99)
    CheckpointStore(tmp_path / BEST).save(1, {"params": {"a": jnp.ones(1)}}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        load_best(tmp_path)


def test_config_differences_are_named():
    saved = {"a": 1, "b": {"c": [1, 2], "d": 3}}
    assert config_difference(saved, {"a": 1, "b": {"c": (1, 2), "d": 3}}) == []
    assert config_difference(saved, {"a": 2, "b": {"c": [1, 2], "e": 3}}) == [
        "a: 1 → 2", "b.d: 3 → '(absent)'", "b.e: '(absent)' → 3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with a best checkpoint, and what is in it."""
    workdir = tmp_path_factory.mktemp("saved")
    key = jax.random.key(0)
    arrays = {"params": {"a": jax.random.normal(key, (30, 20)), "b": jnp.arange(5)}, "batch_stats": {"c": jnp.ones(3)}}
    CheckpointStore(workdir / BEST).save(4, arrays, {"config": {"lr": 0.1, "name": "é"}, "tokenizer": "x" * 300})
    return workdir, load_best(workdir)


def damages(content: bytes, random) -> list[bytes | None]:
    """A flip, zeros, a cut, no file."""
    if not content:
        return [None]
    place = int(random.integers(len(content)))
    flipped = bytearray(content)
    flipped[place] ^= 1 << int(random.integers(8))
    end = min(len(content), place + 32)
    return [bytes(flipped), content[:place] + bytes(end - place) + content[end:], content[:place], None]


def test_a_damaged_file_is_one_clear_error_or_has_no_effect(saved, tmp_path):
    """Every file of a checkpoint, damaged in four ways: no other weights, no other JSON, no error of another class."""
    workdir, (variables, meta) = saved
    random, outcomes = np.random.default_rng(0), {"same": 0, "error": 0}
    files = sorted(path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    for file in files:
        content = (workdir / file).read_bytes()
        for number, damaged in enumerate(damages(content, random)):
            copy = tmp_path / f"{len(outcomes)}-{number}-{random.integers(1 << 30)}"
            shutil.copytree(workdir, copy)
            (copy / file).unlink()
            if damaged is not None:
                (copy / file).write_bytes(damaged)
            try:
                found, found_meta = load_best(copy)
            except CheckpointError as error:
                assert str(copy / BEST) in str(error), error
                outcomes["error"] += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, found, variables)
                assert found_meta == meta
                outcomes["same"] += 1
    assert len(files) > 5 and outcomes["error"] > 10, outcomes


def test_changed_weights_and_changed_json_are_noticed(saved, tmp_path):
    """Whole and readable, but other than what was saved: only the hashes can tell."""
    workdir, (variables, meta) = saved
    changed = jax.tree.map(np.array, variables)
    changed["params"]["a"][3, 4] += 1
    hashes = array_hashes(variables)
    assert hashes.keys() == {"params/a", "params/b", "batch_stats/c"} and hashes != array_hashes(changed)
    for file in workdir.rglob("*"):
        if file.is_file() and b'"lr": 0.1' in file.read_bytes():
            copy = tmp_path / "copy"
            shutil.copytree(workdir, copy)
            other = copy / file.relative_to(workdir)
            other.write_bytes(file.read_bytes().replace(b'"lr": 0.1', b'"lr": 0.2'))
            with pytest.raises(CheckpointError, match="its JSON does not have the hash"):
                load_best(copy)
            break
    else:
        pytest.fail("the JSON of the checkpoint was not found")
    store = CheckpointStore(tmp_path / "changed" / BEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tmrjax.training.checkpoints.array_hashes", lambda _: hashes)
        store.save(4, changed, meta)
    with pytest.raises(CheckpointError, match=r"best/4: this checkpoint is damaged \(1 arrays are not .* params/a"):
        load_best(tmp_path / "changed")
    with pytest.raises(CheckpointError, match="params/a"):
        store.restore(changed, make_mesh(1))
    assert store.meta()["config"] == {"lr": 0.1, "name": "é"}


def test_a_checkpoint_without_hashes_loads_with_a_warning(tmp_path, state, caplog, monkeypatch):
    monkeypatch.setattr("tmrjax.training.checkpoints._sealed", lambda meta, _: {"format": 1, **meta})
    CheckpointStore(tmp_path / BEST).save(1, {"params": {"a": state["params"]["a"]}}, {"x": 1})
    variables, meta = load_best(tmp_path)
    np.testing.assert_array_equal(variables["params"]["a"], state["params"]["a"])
    assert meta["x"] == 1 and "without hashes" in caplog.text


def test_a_step_that_is_not_complete_is_no_reason_to_start_anew(tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"checkpoints/7: this checkpoint is damaged"):
        CheckpointStore(tmp_path / "checkpoints").meta()
