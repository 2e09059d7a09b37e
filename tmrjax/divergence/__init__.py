"""The divergence estimator (§3.4): model, loss, corpus of pairs, report."""

from tmrjax.divergence.model import (
    VARIANTS,
    Batch,
    DivergenceEstimator,
    DivergenceHead,
    model_from_dict,
    model_to_dict,
    normalise_as_released,
    score,
)

__all__ = [
    "VARIANTS",
    "Batch",
    "DivergenceEstimator",
    "DivergenceHead",
    "model_from_dict",
    "model_to_dict",
    "normalise_as_released",
    "score",
]
