"""AdamW as BERT is fine-tuned, or SGD as recurrent taggers are trained, with learning rates by pattern (appendix B)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Weight decay on kernels only; clipping by the global norm.

    Attributes:
        steps: of the run. epochs: in them.
        rates: the peak learning rate of each group of parameters.
        warmup: share of the steps over which rates rise from 0.
        kind: "adamw", or "sgd" with ``momentum``.
        decay: after the warm-up, one of DECAYS.
    """

    steps: int
    rates: Mapping[str, float]
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    kind: str = "adamw"
    momentum: float = 0.0
    decay: str = "linear"
    epochs: int = 1


OPTIMIZERS = ("adamw", "sgd")
DECAYS = ("linear", "inverse", "constant")


def schedule(peak: float, steps: int, warmup: float, decay: str = "linear", epochs: int = 1) -> optax.Schedule:
    """0 → peak over the first ``warmup`` share of ``steps``; then by ``decay``.

    "linear": peak → 0 over the rest. "constant": peak. "inverse": peak / (1 + 0.05 t) in the epoch t from 0, as
    recurrent taggers decay (Ma and Hovy 2016).
    """
    rise = max(1, round(warmup * steps))
    if decay == "linear":
        fall = optax.linear_schedule(peak, 0.0, max(1, steps - rise))
        return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), fall], [rise])
    per_epoch = max(1, steps // epochs)

    def rate(step):
        epoch = step // per_epoch
        share = jnp.minimum(1.0, (step + 1) / rise) if warmup else 1.0
        return peak * share / (1 + 0.05 * epoch if decay == "inverse" else 1.0)

    return rate


def schedules_of(settings: OptimizerSettings, groups: Any) -> dict[str, optax.Schedule]:
    """Of each group of ``groups`` that is trained the learning rate by the number of updates made before.

    Raises ValueError for a group without a learning rate in ``settings.rates``.
    """
    used = sorted(set(jax.tree.leaves(groups)) - {FROZEN})
    missing = [group for group in used if group not in settings.rates]
    if missing:
        raise ValueError(f"the groups {missing} have no learning rate; those that have are {sorted(settings.rates)}")
    return {
        group: schedule(settings.rates[group], settings.steps, settings.warmup, settings.decay, settings.epochs)
        for group in used
    }


def parameter_groups(params: Any, patterns: Sequence[tuple[str, str]], frozen: Sequence[str] = ()) -> Any:
    """A tree of group names in the shape of ``params``.

    Args:
        params: of a model; the path of a parameter is like ``bert/layer_0/attention/query/kernel``.
        patterns: (regular expression, group) pairs; the first one that fits the whole path counts.
        frozen: regular expressions that come before them, of the group FROZEN.

    Raises:
        ValueError: lists every parameter that no pattern fits, and every bad expression.
    """
    rules = [*((pattern, FROZEN) for pattern in frozen), *patterns]
    try:
        compiled = [(re.compile(pattern), group) for pattern, group in rules]
    except re.error as error:
        raise ValueError(
            f"the pattern {error.pattern!r} of a learning rate is no regular expression: {error}"
        ) from None
    unmatched = []

    def decide(path, _):
        name = "/".join(key.key for key in path)
        for pattern, group in compiled:
            if pattern.fullmatch(name):
                return group
        unmatched.append(name)
        return ""

    groups = jax.tree_util.tree_map_with_path(decide, params)
    if unmatched:
        raise ValueError(
            f"no pattern gives a learning rate to {', '.join(sorted(unmatched))}; the patterns are "
            f"{', '.join(pattern for pattern, _ in rules)}: end them with ('.*', 'fusion')"
        )
    return groups


def is_kernel(params: Any) -> Any:
    """True for the kernels of dense and convolutional layers and the weights of Eq. 1, by name.

    Biases, norms, embeddings and the CRF's transitions are not decayed.
    """

    def decide(path, _):
        return path[-1].key == "kernel" or path[-1].key.endswith("_weight")

    return jax.tree_util.tree_map_with_path(decide, params)


def make_optimizer(settings: OptimizerSettings, groups: Any) -> optax.GradientTransformation:
    """Clipping over all groups together, then AdamW or SGD with the group's learning rate; frozen groups hold no state.

    Args:
        settings: see the class.
        groups: of :func:`parameter_groups`.

    Raises:
        ValueError: a group without a learning rate in ``settings.rates``.
    """

    def one(rate):
        if settings.kind == "sgd":
            decayed = optax.add_decayed_weights(settings.weight_decay, mask=is_kernel)
            return optax.chain(decayed, optax.sgd(rate, settings.momentum or None))
        return optax.adamw(
            rate,
            settings.b1,
            settings.b2,
            weight_decay=settings.weight_decay,
            mask=is_kernel,
        )

    transforms = {group: one(rate) for group, rate in schedules_of(settings, groups).items()}
    transforms[FROZEN] = optax.set_to_zero()
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.multi_transform(transforms, groups))
