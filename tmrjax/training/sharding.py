"""Where arrays live: batches split over a mesh of devices, everything else on each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis over all devices of all processes, or over the first ``num_devices`` of a single process."""
    devices = jax.devices()
    if num_devices is not None:
        if jax.process_count() > 1:
            raise ValueError("num_devices is for a single process; several processes use all of their devices")
        if num_devices > len(devices):
            raise ValueError(f"{num_devices} devices were asked for, but this machine has {len(devices)}")
        devices = devices[:num_devices]
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The first axis divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise ValueError where a batch cannot be divided evenly."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        raise ValueError(
            f"a batch of {batch_size} does not divide into {mesh.size} devices times {accumulate} accumulated parts"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a tree of host arrays, equal in every process, on all devices."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def owned(tree: Any) -> Any:
    """The same arrays in memory of their own, so that a step can write its result over them.

    On CPU :func:`replicate` lets an array lie in the host array that it was given. That memory cannot be donated: the
    first step would keep it beside all that it makes. Elsewhere arrays are copies already, and remain as they are.
    """

    def own(leaf):
        on_host = all(device.platform == "cpu" for device in leaf.devices())
        return jax.device_put(leaf, leaf.sharding, may_alias=False) if on_host and leaf.is_fully_addressable else leaf

    return jax.block_until_ready(jax.tree.map(own, tree))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put this process's rows of a batch on its devices; together they are the global batch. A key may hold a tuple."""
    sharding = split_rows(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), dict(batch))
