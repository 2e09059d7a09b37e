"""The scores of a method as one ONNX file, by jax2onnx: ``emissions`` [B, W, K], or ``logits`` [B, R].

What jax2onnx gets is not the method's Python but its traced program: what the scores do not depend on is left out
(auxiliary losses), calls are written out, and max pooling is the maximum of shifted slices, the same numbers:
onnxruntime has no pooling over four axes, which is how JAX writes it. Weights are inside of the file. The batch size is
fixed and posts are padded to the longest bucket; inputs have the names, shapes and dtypes of a batch, pictures as
uint8. Decoding is left to who runs it: the CRF's transitions are in the default folder's model.safetensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters import partial_eval

from tmrjax.files import write_atomic
from tmrjax.prediction.folder import flat
from tmrjax.serving.programs import batch_of, model_function
from tmrjax.serving.reader import SCORES
from tmrjax.tasks.system import System

LIMIT = 2**31  # bytes of a protocol buffer; a larger model needs files beside it


def write_onnx(path: Path, system: System, variables: Mapping[str, Any], *, rows: int = 1) -> int:
    """Write a system's scores for batches of ``rows`` posts at the longest bucket; returns the size in bytes.

    Raises:
        ValueError: jax2onnx is not installed, cannot convert the method, or the file would be above 2 GiB.
    """
    content = onnx_bytes(system, variables, batch_of(system, max(system.buckets), rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return len(content)


def onnx_bytes(system: System, variables: Mapping[str, Any], batch: Mapping[str, Any]) -> bytes:
    """The ONNX model for batches of this one's shapes; inputs that the scores do not depend on are left out.

    Raises ValueError, see :func:`write_onnx`.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ValueError(f"ONNX files are made by jax2onnx ({error}): pip install 'tmrjax[onnx]'") from error
    weights = {name: jnp.asarray(leaf) for name, leaf in flat(jax.device_get(variables)).items()}
    length, names = max(system.buckets), sorted(batch)

    def scores(*values: jax.Array) -> jax.Array:
        return model_function(system, length)(weights, dict(zip(names, values, strict=True)))[SCORES[system.task]]

    shapes = [jax.ShapeDtypeStruct(batch[name].shape, batch[name].dtype) for name in names]
    function, used = written_out(jax.make_jaxpr(scores)(*shapes))
    kept = [index for index, is_used in enumerate(used) if is_used]
    try:
        model = to_onnx(
            function,
            [shapes[index] for index in kept],
            model_name=type(system.method).__name__,
            input_names=[names[index] for index in kept],
            output_names=[SCORES[system.task]],
        )
        content = model.SerializeToString()
    except Exception as error:  # a primitive that jax2onnx lacks is any of several kinds
        found = " ".join(str(error).split())[:300]
        raise ValueError(f"{type(system.method).__name__} cannot be converted to ONNX by jax2onnx: {found}") from error
    if len(content) >= LIMIT:
        raise ValueError(f"the model takes {len(content) / 2**30:.1f} GiB, and an ONNX file 2 at most: use stablehlo")
    return content


def written_out(program: ClosedJaxpr) -> tuple[Callable[..., jax.Array], list[bool]]:
    """A function of the inputs that the program's only result depends on, and which these are."""
    jaxpr, used = partial_eval.dce_jaxpr(program.jaxpr, [True])

    def function(*values: jax.Array) -> jax.Array:
        (result,) = _evaluated(jaxpr, program.consts, values)
        return result

    return function, used


def _evaluated(jaxpr: Any, constants: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The results of a traced program, its calls written out and its max pooling as slices."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *values), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        inner = next((equation.params[name] for name in ("jaxpr", "call_jaxpr") if name in equation.params), None)
        if equation.primitive.name == "reduce_window_max":
            results = [_slices_maximum(given[0], **equation.params)]
        elif inner is not None and equation.primitive.name not in ("scan", "while", "cond"):
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            results = _evaluated(closed.jaxpr, closed.consts, given)
        else:
            bound = equation.primitive.bind(*given, **equation.params)
            results = list(bound) if equation.primitive.multiple_results else [bound]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _slices_maximum(
    operand: jax.Array,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **_: Any,
) -> jax.Array:
    """``reduce_window_max`` without dilation: the maximum over the places of the window of strided slices."""
    lowest = np.array(-np.inf, operand.dtype)
    padded = jnp.pad(operand, padding, constant_values=lowest)
    sizes = [
        (total - window) // stride + 1
        for total, window, stride in zip(padded.shape, window_dimensions, window_strides, strict=True)
    ]
    found = None
    for place in itertools.product(*map(range, window_dimensions)):
        ends = [
            start + (size - 1) * stride + 1 for start, size, stride in zip(place, sizes, window_strides, strict=True)
        ]
        part = jax.lax.slice(padded, place, ends, window_strides)
        found = part if found is None else jnp.maximum(found, part)
    return found
