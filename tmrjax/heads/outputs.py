"""What a method hands to its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jax import Array

from tmrjax.crf import CRFParams


class Outputs(NamedTuple):
    """The result of a method for B posts.

    scores: emissions [B, W, K] of K tags for W words (NER), or logits [B, R] of R relations (RE), float32.
    crf: the parameters of the CRF that reads emissions; None for RE.
    losses: auxiliary losses by name, [B] each, weighted already. Training adds them to the head's loss.
    states: intermediate results by name; jit prunes those that nobody uses.
    """

    scores: Array
    crf: CRFParams | None = None
    losses: Mapping[str, Array] = {}
    states: Mapping[str, Array] = {}
