"""One relation a post by a softmax: loss and probabilities (Eq. 11)."""

from __future__ import annotations

import dataclasses

import jax
from jax import Array

from tmrjax.heads.outputs import Outputs


@dataclasses.dataclass(frozen=True)
class RelationHead:
    """Reads logits. ``relations``: their names, ``None`` among them."""

    relations: tuple[str, ...]

    def loss(self, outputs: Outputs, batch: dict[str, Array]) -> Array:
        """Eq. 11 for each post, [B]: −log softmax(logits)[relation]."""
        import optax  # prediction needs none, and it is slow to import

        return optax.softmax_cross_entropy_with_integer_labels(outputs.scores, batch["relation"])

    def predict(self, outputs: Outputs, batch: dict[str, Array]) -> dict[str, Array]:
        """{"probabilities" [B, R]}."""
        del batch
        return {"probabilities": jax.nn.softmax(outputs.scores)}
