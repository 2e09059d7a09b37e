"""Which values a config may have: what is out of range is refused by the name of its key, before anything is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from tmrjax.training.optimizer import DECAYS, OPTIMIZERS

LADDER = (24, 32, 40, 56, 80, 128, 256, 512)  # lengths in word pieces; each that is in use is compiled


def _above(limit: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: math.isfinite(value) and value > limit, f"a number above {limit}"


def _at_least(limit: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: math.isfinite(value) and value >= limit, f"a number of at least {limit}"


def _among(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, f"one of {', '.join(names)}"


_WEIGHTS = _among("pretrained", "random")
# Keys of all configs: where a config has the key, its value must be so.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda value: 0 <= value < 2**31, "a number from 0 to 2^31 - 1"),
    "data.fraction": (lambda value: 0 < value <= 1, "a share above 0 and up to 1"),
    "data.on_error": _among("raise", "skip"),
    "data.max_pieces": _at_least(3),  # [CLS], one piece, [SEP]
    "data.max_phrase_pieces": _at_least(1),
    "data.picture_size": _at_least(0),
    "data.picture_resize": _at_least(0),
    "data.picture_longest": _at_least(1),
    "data.picture_reducing_gap": (lambda value: value == 0 or 1 <= value < math.inf, "0 (exact), or at least 1"),
    "data.feature_cache_dtype": _among("float32", "float16"),
    "data.num_threads": _at_least(1),
    "data.num_workers": _at_least(0),
    "text_encoder.weights": _WEIGHTS,
    "picture_encoder.weights": _WEIGHTS,
    "encoder.weights": _WEIGHTS,
    "model.dropout": (lambda value: 0 <= value < 1, "a share from 0 to below 1"),
    "model.dtype": _among("float32", "bfloat16", "float16"),
    "model.batch_norm": _among("frozen", "train"),
    "batch_size": _at_least(1),
    "eval_batch_size": _at_least(1),
    "accumulate": _at_least(1),
    "epochs": _at_least(1),
    "steps": _at_least(1),
    "evaluate_every": _at_least(1),
    "optimizer": _among(*OPTIMIZERS),
    "momentum": (lambda value: 0 <= value < 1, "a share from 0 to below 1"),
    "decay": _among(*DECAYS),
    "word_vectors.most_frequent": _at_least(0),
    "lr": _above(0),
    "lr_encoder": _at_least(0),
    "lr_fusion": _above(0),
    "lr_crf": _at_least(0),
    "weight_decay": _at_least(0),
    "warmup": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "clip": _above(0),
    "temperature": _above(0),
    "negatives": _at_least(0),
    "devices": _at_least(0),
    "log_every": _at_least(1),
    "checkpoint_every": _at_least(0),
}


def check_settings(config: ConfigDict) -> None:
    """Raise ValueError for the first value out of range, and for settings that contradict each other."""
    for key, (allowed, expected) in RULES.items():
        value: Any = config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, ConfigDict) else None
        if value is None:
            continue
        try:
            fine = bool(allowed(value))
        except TypeError:
            fine = False
        if not fine:
            raise ValueError(f"--config.{key} is {value!r}; expected {expected}")
    for key in ("buckets", "length_buckets"):
        values = config.data.get(key, ())
        if any(not isinstance(value, int) or value < 3 for value in values):
            raise ValueError(f"--config.data.{key} is {tuple(values)!r}; expected whole numbers of at least 3")
    if config.data.get("feature_cache") and config.data.get("pixel_cache"):
        raise ValueError("data.feature_cache and data.pixel_cache keep two things of the same pictures: set one")
    model = config.model
    if model.get("freeze_pictures") and model.get("batch_norm") == "train":
        raise ValueError(
            "model.batch_norm='train' moves the statistics of the ResNet that model.freeze_pictures=True freezes; "
            "set one of --config.model.batch_norm=frozen, --config.model.freeze_pictures=False"
        )


def buckets_of(data: ConfigDict) -> tuple[int, ...]:
    """Lengths that batches are padded to: data.buckets, or LADDER, below max_pieces; then max_pieces itself."""
    return (*sorted({length for length in data.buckets or LADDER if length < data.max_pieces}), data.max_pieces)
