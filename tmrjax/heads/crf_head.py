"""Tags of words by a linear-chain CRF: parameters, loss (Eq. 9), decoding under IOB2, exact probabilities (§3.5)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tmrjax import crf
from tmrjax.crf import CRFParams
from tmrjax.heads.outputs import Outputs
from tmrjax.text.tags import forbidden_transitions

# Added to forbidden transitions while decoding: beyond any score, yet finite, so that no NaN arises.
_FORBIDDEN = -1e8


class CRFLayer(nn.Module):
    """The parameters of the linear-chain CRF; its arithmetic is :mod:`tmrjax.crf`."""

    num_tags: int

    @nn.compact
    def __call__(self) -> CRFParams:
        """The parameters, float32 whatever the encoder's precision is."""

        def uniform(key, shape):
            return jax.random.uniform(key, shape, minval=-0.1, maxval=0.1)

        size = self.num_tags
        return CRFParams(
            transitions=self.param("transitions", uniform, (size, size)),
            start_transitions=self.param("start_transitions", uniform, (size,)),
            end_transitions=self.param("end_transitions", uniform, (size,)),
        )


@dataclasses.dataclass(frozen=True)
class CRFHead:
    """Reads emissions.

    Attributes:
        tags: names of the K tags.
        constrained: decode under IOB2 (ours: without it a linear-chain CRF may predict an entity without a beginning).
        mask: the batch key that says where tags are scored, "word_mask" or "attention_mask".
    """

    tags: tuple[str, ...]
    constrained: bool = True
    mask: str = "word_mask"

    def loss(self, outputs: Outputs, batch: dict[str, Array]) -> Array:
        """Eq. 9 for each post, [B]: −log p(y) of the gold tags ``batch["tags"]``."""
        return -crf.log_likelihood(outputs.scores, batch["tags"], batch[self.mask], outputs.crf)

    def predict(self, outputs: Outputs, batch: dict[str, Array]) -> dict[str, Array]:
        """{"tags" [B, W], "emissions" [B, W, K], "mask" [B, W], "crf"}: the best sequence, and what gives it."""
        params = constrain(outputs.crf, self.tags if self.constrained else None)
        mask = batch[self.mask]
        best, _ = crf.viterbi_decode(outputs.scores, mask, params)
        return {"tags": best, "emissions": outputs.scores, "mask": mask, "crf": params}


def constrain(params: CRFParams, tags: tuple[str, ...] | None) -> CRFParams:
    """The CRF with the transitions that IOB2 never allows made impossible; as it is where ``tags`` is None."""
    if tags is None:
        return params
    starts, pairs = forbidden_transitions(tags)
    before, after = (jnp.array(side) for side in zip(*pairs, strict=True))
    return params._replace(
        start_transitions=params.start_transitions.at[jnp.array(starts)].set(_FORBIDDEN),
        transitions=params.transitions.at[before, after].set(_FORBIDDEN),
    )


@jax.jit
def decode(emissions: Array, mask: Array, params: CRFParams) -> Array:
    """The best tags [B, W] of emissions [B, W, K] under a CRF as it is."""
    return crf.viterbi_decode(emissions, mask, params)[0]
