"""Checkpoints: exact, self-contained, and unharmed by a save that fails."""

import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tmrjax.checkpoints import BEST, CheckpointError, CheckpointStore, config_difference, load_best
from tmrjax.sharding import make_mesh, replicate


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
    monkeypatch.setattr("tmrjax.checkpoints.FORMAT", 99)
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
