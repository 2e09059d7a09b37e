"""Released checkpoints of the field as methods of this package with their variables."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from tmrjax.convert.tables import fill, shapes_of
from tmrjax.methods.base import Method


def method_from_release(
    name: str,
    state_dict: Mapping[str, np.ndarray],
    *,
    task: str,
    num_attention_heads: int | None = None,
    **sizes: Any,
) -> tuple[Method, dict[str, Any]]:
    """A method in its released arithmetic (``literal=True``): ``method.apply(variables, batch, train=False)``.

    Args:
        name: of the method, a module of :mod:`tmrjax.methods`.
        state_dict: name → array, with the torch names of the released class. A picture encoder may be left out: its
            maps come in the batch then.
        task: "ner" or "re".
        num_attention_heads: of BERT; hidden / 64 unless given.
        sizes: what shapes do not tell, as the method's converter lists it.

    Returns:
        the method with sizes read from the shapes, and its variables.

    Raises:
        ValueError: no converter of this name or task; or every missing, extra and misshaped name in one list.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "tmr"))
    if name not in known:
        raise ValueError(f"no released checkpoint of {name!r} is known here; expected one of {', '.join(known)}")
    read = importlib.import_module(f"{__name__}.{name}").read
    found = read(state_dict, task=task, num_attention_heads=num_attention_heads, **sizes)
    shapes = shapes_of(found.method, found.batch, train=False)
    what = f"released state dict of {name}"
    return found.method, fill(state_dict, found.table, shapes, dropped=found.dropped, what=what)
