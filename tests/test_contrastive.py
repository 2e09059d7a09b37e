"""Eq. 6 beside a literal double loop in float64, finite differences, properties, one device beside eight."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmrjax.contrastive import supervised_contrastive_loss
from tmrjax.training.sharding import make_mesh, replicate, replicated, shard_batch, split_rows

B, D = 16, 5
ROOT = Path(__file__).resolve().parent.parent


def literal(features, labels, temperature, mask=None) -> list[float]:
    """The formula, term by term."""
    rows = [i for i in range(len(labels)) if mask is None or mask[i]]
    z = {i: np.asarray(features[i], np.float64) / math.sqrt(float(np.sum(np.float64(features[i]) ** 2))) for i in rows}
    losses = [0.0] * len(labels)
    for i in rows:
        positives = [p for p in rows if p != i and labels[p] == labels[i]]
        if not positives:
            continue
        total = 0.0
        for p in positives:
            denominator = 0.0
            for a in rows:
                if a != i:
                    denominator += math.exp(float(z[i] @ z[a]) / temperature)
            total += math.log(math.exp(float(z[i] @ z[p]) / temperature) / denominator)
        losses[i] = -total / len(positives)
    return losses


def sample(seed: int, classes: int = 3, masked: float = 0.3):
    random = np.random.default_rng(seed)
    features = (random.normal(size=(B, D)) * random.choice([1e-3, 1.0, 1e3], (B, 1))).astype(np.float32)
    return features, random.integers(0, classes, B).astype(np.int32), random.random(B) > masked


@jax.jit
def losses(features, labels, mask, temperature_index):
    """All temperatures in one program."""
    found = [supervised_contrastive_loss(features, labels, temperature=t, mask=mask) for t in TEMPERATURES]
    return jnp.stack(found)[temperature_index]


TEMPERATURES = (0.07, 0.5, 2.0)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_double_loop(seed):
    features, labels, mask = sample(seed, classes=(3, 3, 1, 10, 16, 2)[seed])
    for mask in (mask, np.ones(B, bool)):  # noqa: B020
        for index, temperature in enumerate(TEMPERATURES):
            expected = literal(features, labels, temperature, mask)
            np.testing.assert_allclose(losses(features, labels, mask, index), expected, rtol=2e-5, atol=2e-5)


def test_without_a_mask_every_row_counts():
    features, labels, _ = sample(1)
    found = supervised_contrastive_loss(features, labels, temperature=0.5)
    np.testing.assert_allclose(found, losses(features, labels, np.ones(B, bool), 1), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_gradients_are_finite_differences_in_float64(temperature):
    features, labels, mask = sample(3, classes=4)
    features = features / np.linalg.norm(features, axis=1, keepdims=True) * 2
    weights = np.random.default_rng(0).normal(size=B)

    def total(x):
        return float(np.dot(weights, literal(x, labels, temperature, mask)))

    gradient = jax.jit(
        jax.grad(lambda x: jnp.dot(weights, supervised_contrastive_loss(x, labels, temperature=temperature, mask=mask)))
    )(features)
    step, x = 1e-5, features.astype(np.float64)
    for i, j in [(0, 0), (3, 1), (7, 4), (11, 2), (15, 3)]:
        shifted = [x.copy(), x.copy()]
        shifted[0][i, j] += step
        shifted[1][i, j] -= step
        expected = (total(shifted[0]) - total(shifted[1])) / (2 * step)
        np.testing.assert_allclose(gradient[i, j], expected, rtol=1e-3, atol=1e-4)
    assert (np.asarray(gradient)[~mask] == 0).all()


@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_properties(seed, scale):
    """Not the length of a vector, not the order of rows, not the names of labels; never negative."""
    features, labels, mask = sample(seed)
    found = np.asarray(losses(features, labels, mask, 1))
    assert np.isfinite(found).all() and (found >= -1e-6).all() and (found[~mask] == 0).all()
    order = np.random.default_rng(seed).permutation(B)
    np.testing.assert_allclose(losses(features[order], labels[order], mask[order], 1), found[order], atol=1e-4)
    np.testing.assert_allclose(losses(features * np.float32(scale), 7 - labels, mask, 1), found, atol=1e-4)
    alone = np.array([np.sum(mask & (labels == label)) == 1 for label in labels])
    assert (found[alone] == 0).all()


def test_extremes_stay_finite():
    same, labels = np.ones((B, D), np.float32), np.zeros(B, np.int32)
    value = jax.jit(lambda x: supervised_contrastive_loss(x, labels, temperature=1e-4))
    gradient = jax.jit(jax.grad(lambda x: supervised_contrastive_loss(x, labels, temperature=1e-2).sum()))
    np.testing.assert_allclose(value(same), np.log(B - 1), rtol=1e-4)
    opposed = same * np.where(np.arange(B) % 2, 1, -1)[:, None].astype(np.float32)
    assert np.isfinite(value(opposed)).all()
    for features in (same, opposed, np.zeros_like(same), same * 1e15):
        assert np.isfinite(gradient(features)).all()
    one = supervised_contrastive_loss(same[:1], labels[:1], temperature=0.1)
    assert one.tolist() == [0.0]


def test_eight_devices_contrast_the_global_batch():
    """Loss and gradients of one device; a contrast within each device's two rows would be another."""
    features, labels, mask = sample(5, masked=0.1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows = {"features": features, "labels": labels, "mask": mask}

    def total(weight, batch):
        projected = batch["features"] @ weight
        return supervised_contrastive_loss(projected, batch["labels"], temperature=0.07, mask=batch["mask"]).sum()

    results = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        run = jax.jit(jax.value_and_grad(total), in_shardings=(replicated(mesh), split_rows(mesh)))
        weight = replicate(np.random.default_rng(1).normal(size=(D, D)).astype(np.float32), mesh)
        results.append(jax.device_get(run(weight, shard_batch(rows, mesh))))
    (one, one_gradient), (eight, eight_gradient) = results
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    np.testing.assert_allclose(eight_gradient, one_gradient, rtol=1e-4, atol=1e-4)
    weight = np.random.default_rng(1).normal(size=(D, D)).astype(np.float32)
    local = sum(
        sum(literal(features[i : i + 2] @ weight, labels[i : i + 2], 0.07, mask[i : i + 2])) for i in range(0, B, 2)
    )
    assert abs(local - one) > 1


PROCESS = """
import sys
import jax, numpy as np
port, index, out = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
from tmrjax.contrastive import supervised_contrastive_loss
from tmrjax.training.sharding import make_mesh, replicated, shard_batch, split_rows
from tests.test_contrastive import sample
features, labels, mask = sample(5, masked=0.1)
mine = slice(int(index) * len(labels) // 2, (int(index) + 1) * len(labels) // 2)
mesh = make_mesh()
assert mesh.size == 4 and jax.process_count() == 2
rows = shard_batch({"features": features[mine], "labels": labels[mine], "mask": mask[mine]}, mesh)
total = lambda f, l, m: supervised_contrastive_loss(f, l, temperature=0.07, mask=m).sum()
everywhere = replicated(mesh)
run = jax.jit(jax.value_and_grad(total), in_shardings=(split_rows(mesh),) * 3, out_shardings=everywhere)
loss, gradient = run(rows["features"], rows["labels"], rows["mask"])
np.savez(out, loss=np.asarray(loss), gradient=np.asarray(gradient))
"""


def test_two_processes_contrast_the_global_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(index), str(tmp_path / f"{index}.npz")],
            cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    features, labels, mask = sample(5, masked=0.1)

    def total(x):
        return supervised_contrastive_loss(x, labels, temperature=0.07, mask=mask).sum()

    loss, gradient = jax.jit(jax.value_and_grad(total))(features)
    for index in range(2):
        found = np.load(tmp_path / f"{index}.npz")
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(found["gradient"], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(3, int)}, r"labels \[B\], got \(4, 2\) and \(3,\)"),
        ({"mask": np.ones((4, 1))}, r"mask has shape \(4, 1\)"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    arguments = {"features": np.ones((4, 2)), "labels": np.zeros(4, int), "temperature": 0.07, "mask": None} | changes
    with pytest.raises(ValueError, match=message):
        supervised_contrastive_loss(
            arguments["features"], arguments["labels"], temperature=arguments["temperature"], mask=arguments["mask"]
        )
