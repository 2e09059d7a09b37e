"""What jax2onnx is given is the method's own program; the file where jax2onnx is installed."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.prediction.test_predict import random_variables, text_reader, tokenizer  # noqa: F401 - fixtures
from tmrjax.encoders.picture.resnet import max_pool
from tmrjax.prediction.folder import flat
from tmrjax.serving.onnx_file import onnx_bytes, written_out
from tmrjax.serving.programs import batch_of, model_function


def test_a_program_is_written_out_with_the_same_numbers_and_without_what_its_result_does_not_need():
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 12, 3)), jnp.float32)

    @jax.jit
    def inner(x, unused):
        del unused
        return jax.nn.relu(max_pool(x - 5))  # all below zero: padding must not win

    def program(x, y, unused):
        jnp.linalg.norm(unused)
        return inner(x, y).sum() + max_pool(x - 5) * y

    traced = jax.make_jaxpr(program)(pixels, jnp.float32(2), jnp.ones(3))
    function, used = written_out(traced)
    assert used == [True, True, False]
    np.testing.assert_array_equal(function(pixels, jnp.float32(2)), program(pixels, jnp.float32(2), jnp.ones(3)))
    left = str(jax.make_jaxpr(function)(pixels, jnp.float32(2)))
    assert "reduce_window" in str(traced) and "reduce_window" not in left and "pjit" not in left


def test_without_jax2onnx_it_is_said_what_to_install(text_reader, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'tmrjax\[onnx\]'"):
        onnx_bytes(text_reader, {"params": {}}, batch_of(text_reader, 12))


@pytest.mark.slow  # jax2onnx takes 20 seconds to import
def test_onnxruntime_finds_the_emissions(text_reader):  # noqa: F811
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    variables, batch = random_variables(text_reader), batch_of(text_reader, 12, rows=3)
    generator = np.random.default_rng(1)
    batch["input_ids"][:, :9] = generator.integers(6, 14, (3, 9))
    for name in ("attention_mask", "word_mask"):
        batch[name][:, :7] = True
    batch["word_starts"][:, :7] = np.arange(1, 8)
    content = onnx_bytes(text_reader, variables, batch)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(["emissions"], {one.name: batch[one.name] for one in session.get_inputs()})
    expected = model_function(text_reader, 12)(flat(variables), batch)["emissions"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(found[:, :7]) > 1
