"""A conversion as a table of name pairs: every name is accounted for, every fault is told at once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Entry(NamedTuple):
    """One tensor: ``ours``, a path such as "params/stem/kernel", is ``theirs`` with its axes in the order ``axes``.

    ``part`` (index, count): one of ``count`` equal parts of theirs along its first axis, as in a fused projection.
    """

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)


LINEAR = (1, 0)  # torch.nn.Linear has [out, in]
CONVOLUTION = (2, 3, 1, 0)  # torch.nn.Conv2d has [out, in, height, width]


def linear(theirs: str, ours: str, part: tuple[int, int] = (0, 1)) -> list[Entry]:
    """A linear layer, or one of the equal parts of a fused one."""
    return [
        Entry(f"{theirs}.weight", f"{ours}/kernel", LINEAR, part),
        Entry(f"{theirs}.bias", f"{ours}/bias", None, part),
    ]


def layer_norm(theirs: str, ours: str) -> list[Entry]:
    """A layer norm."""
    return [Entry(f"{theirs}.weight", f"{ours}/scale"), Entry(f"{theirs}.bias", f"{ours}/bias")]


def fill(
    state_dict: Mapping[str, np.ndarray],
    table: Iterable[Entry],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dropped: Sequence[str] = (),
    what: str = "state dict",
) -> dict[str, Any]:
    """Arranges a state dict as a tree of float32 arrays.

    Args:
      state_dict: name → array.
      table: the pairs of names.
      shapes: our path → our shape, of every array of the tree; ``shapes_of`` gives them for a module.
      dropped: regular expressions for names that are left out knowingly (full matches).
      what: names the source in the error.

    Raises:
      ValueError: lists every missing, extra and misshaped name, the latter with the shape found and the one expected,
        both as the source writes them.
    """
    table = list(table)
    ours = [entry.ours for entry in table]
    if sorted(ours) != sorted(shapes):  # a fault of the table, not of the weights
        raise AssertionError(f"the table does not cover the model once: {sorted(set(ours) ^ set(shapes))}")
    faults, flat = [], {}
    for entry in table:
        expected = source_shape(shapes[entry.ours], entry.axes)
        index, count = entry.part
        if count > 1:
            rows, expected = expected[0], (count * expected[0], *expected[1:])
        if entry.theirs not in state_dict:
            faults.append(f"missing: {entry.theirs} {expected}")
            continue
        array = np.asarray(state_dict[entry.theirs])
        if array.shape != expected:
            faults.append(f"misshaped: {entry.theirs} is {array.shape}, expected {expected}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            faults.append(f"not floating: {entry.theirs} is {array.dtype} (quantised weights are not supported)")
        else:
            array = array[index * rows : (index + 1) * rows] if count > 1 else array
            array = array if entry.axes is None else array.transpose(entry.axes)
            flat[entry.ours] = np.ascontiguousarray(array, dtype=np.float32)
    known = {entry.theirs for entry in table}
    drop = re.compile("|".join(f"(?:{pattern})" for pattern in dropped) or r"(?!)")
    for name in sorted(set(state_dict) - known):
        if not drop.fullmatch(name):
            faults.append(f"extra: {name} {np.shape(state_dict[name])}")
    faults = list(dict.fromkeys(faults))  # the parts of a tensor have one fault together
    if faults:
        lines = "\n  ".join(faults)
        raise ValueError(f"{what}: {len(faults)} of its names do not fit the config:\n  {lines}")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def source_shape(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that an array has in the state dict, from ours and the order of axes of its entry."""
    if axes is None:
        return shape
    source = [0] * len(shape)
    for ours, theirs in enumerate(axes):
        source[theirs] = shape[ours]
    return tuple(source)


def shapes_of(module: nn.Module, *arguments: Any, **keywords: Any) -> dict[str, tuple[int, ...]]:
    """Path → shape of every variable that ``module`` makes for these arguments; nothing is computed."""
    variables = jax.eval_shape(lambda key: module.init(key, *arguments, **keywords), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items()}


def without_prefix(state_dict: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The same arrays, ``prefix`` taken off the names that have it.

    Raises ValueError where two names become one.
    """
    renamed = {name.removeprefix(prefix): array for name, array in state_dict.items()}
    if len(renamed) != len(state_dict):
        doubled = sorted(name for name in state_dict if prefix + name in state_dict)
        raise ValueError(f"state dict: names that stand there with and without prefix {prefix!r}: {', '.join(doubled)}")
    return renamed
