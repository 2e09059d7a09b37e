"""Compiled programs are kept where the user keeps caches, small ones too; a folder that the user has set stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tmrjax.compilation import Compiled, keep_compiled

SETTINGS = (
    "jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs",
)  # fmt: skip


@pytest.fixture
def untouched(tmp_path, monkeypatch):
    """JAX as it is without any setting of the suite's, a cache folder below tmp_path; all put back behind the test."""
    given = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    yield
    for name, value in given.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_small_program_is_kept_although_others_were_compiled_before(untouched, tmp_path):
    jax.jit(lambda x: x * 7 + 2)(jnp.ones(3)).block_until_ready()  # JAX has looked for a folder and found none
    folder = keep_compiled()
    assert folder.parent == tmp_path / "tmrjax" and folder.name.startswith("compiled-")
    assert jax.config.jax_compilation_cache_dir == str(folder)
    jax.jit(lambda x: x * 5 + 3)(jnp.ones(3)).block_until_ready()
    assert list(folder.iterdir())
    assert keep_compiled() is None  # it is the user's folder from now on


def test_what_the_user_has_set_stays(untouched, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_compiled() is None and jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1.0")
    assert keep_compiled() and jax.config.jax_persistent_cache_min_compile_time_secs == 1.0


def test_a_folder_that_cannot_be_made_is_a_warning(untouched, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_compiled() is None and "compiled programs are not kept" in caplog.text
    assert jax.config.jax_compilation_cache_dir is None


def test_each_shape_is_compiled_once_and_timed():
    class Clock:
        compile_seconds = 0.0

    clock = Clock()
    step = Compiled(jax.jit(lambda state, batch: state + batch["x"].sum()), clock)
    times = []
    for size in (2, 3, 2):
        assert step(1.0, {"x": jnp.asarray(np.ones(size, np.float32))}) == 1 + size
        times.append(clock.compile_seconds)
    assert 0 < times[0] < times[1] == times[2]
