"""What a trained system computes, as StableHLO programs of :mod:`jax.export`: batch size open, weights handed in.

There is one ``model`` program for each bucket: ``(weights, batch) -> outputs``. Weights are a flat dict by path, as
in ``model.safetensors``, and no constants of the program; a batch has the keys of the method's inputs, pictures as
uint8.

=========  ==================================================================================================
``ner``    ``emissions`` [B, W, K], ``tags`` [B, W] by Viterbi under IOB2, ``mask`` [B, W], and the CRF that
           decodes, ``transitions`` [K, K], ``start_transitions``, ``end_transitions`` [K]
``re``     ``logits`` [B, R], ``probabilities`` [B, R]
=========  ==================================================================================================

For NER two further programs have an open length too, so that a post that was read in windows is decoded as a whole:
``decode(emissions, mask, crf) -> tags`` and ``probability(emissions, mask, allowed, crf) -> p``, both by the textbook
recursions of :mod:`tmrjax.crf`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from tmrjax import crf
from tmrjax.crf import CRFParams
from tmrjax.inputs.base import Reading
from tmrjax.inputs.collate import Collator
from tmrjax.prediction.folder import nested
from tmrjax.serving.reader import SCORES
from tmrjax.tasks.system import System

PLATFORMS = ("cpu", "cuda")


def model_function(system: System, length: int) -> Callable[[Mapping[str, Array], Mapping[str, Array]], dict]:
    """``(weights, batch) -> outputs`` for batches of ``length`` pieces, see the module."""
    gold = system.gold.spec(length, Reading(None, system.text))

    def model(weights: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        rows = batch["row_mask"].shape[0]
        unknown = {key: jnp.zeros((rows, *shape), dtype) for key, (shape, dtype) in gold.items()}
        batch = system.prepare({**batch, **unknown})
        outputs = system.method.apply(nested(weights), batch, train=False)
        found = {**system.head.predict(outputs, batch), SCORES[system.task]: outputs.scores}
        return found | (found.pop("crf")._asdict() if "crf" in found else {})

    return model


def batch_of(system: System, length: int, rows: int = 1) -> dict[str, Any]:
    """A batch of padding with every key that the ``model`` program reads."""
    return Collator(system.fitted, Reading(None, system.text, system.pixels(Path())))([None] * rows, length)


def export_programs(
    system: System, weights: Mapping[str, Array], platforms: tuple[str, ...] = PLATFORMS
) -> Iterator[tuple[str, export.Exported]]:
    """The programs by name: ``model_48`` for each bucket, ``decode`` and ``probability`` for NER.

    Raises ValueError where the method cannot be traced with an open batch size: it asks a batch for its ``len()``, or
    its shapes depend on it otherwise.
    """
    described = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
    for length in system.buckets:
        (rows,) = export.symbolic_shape("b")
        batch = {
            name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype)
            for name, value in batch_of(system, length).items()
        }
        try:
            yield (
                f"model_{length}",
                export.export(jax.jit(model_function(system, length)), platforms=platforms)(described, batch),
            )
        except (TypeError, jax.errors.JAXTypeError) as error:
            raise ValueError(
                f"{type(system.method).__name__} cannot be exported with an open batch size ({error}): take shapes "
                "from array.shape in it, never from len(array)"
            ) from error
    if system.task != "ner":
        return
    rows, words = export.symbolic_shape("n, w")
    count = len(system.tags)
    emissions = jax.ShapeDtypeStruct((rows, words, count), jnp.float32)
    mask, allowed = (jax.ShapeDtypeStruct(shape, bool) for shape in ((rows, words), (rows, words, count)))
    shapes = {"transitions": (count, count), "start_transitions": (count,), "end_transitions": (count,)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    yield "decode", export.export(jax.jit(decode), platforms=platforms)(emissions, mask, params)
    yield "probability", export.export(jax.jit(probability), platforms=platforms)(emissions, mask, allowed, params)


def decode(emissions: Array, mask: Array, params: Mapping[str, Array]) -> Array:
    """The best tags [N, W] of emissions [N, W, K]."""
    return crf.viterbi_decode.reference(emissions, mask, CRFParams(**params))[0]


def probability(emissions: Array, mask: Array, allowed: Array, params: Mapping[str, Array]) -> Array:
    """p [N]: the share of all tag sequences, by weight, whose tags are ``allowed`` [N, W, K] at every word."""
    chain = CRFParams(**params)
    # p stays the same under any shift of a position's emissions, and sums near 0 lose no digits in their difference.
    emissions = jax.nn.log_softmax(emissions)
    constrained = crf.constrained_log_normalizer.reference(emissions, mask, allowed, chain)
    return jnp.minimum(jnp.exp(constrained - crf.log_normalizer.reference(emissions, mask, chain)), 1)
