"""The JSON object of a checkpoint, read back; checkpoints of older versions too."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tmrjax.inputs.settings import TextSettings
from tmrjax.methods import find_method, name_of
from tmrjax.methods.base import Method, method_from_dict
from tmrjax.methods.outside import source_sha256
from tmrjax.models import VARIANTS
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.text.tokenizers import tokenizer_from_json

logger = logging.getLogger(__name__)


def method_meta(method: Method) -> dict[str, Any]:
    """The name of a method and, for one from outside, the SHA-256 of its source."""
    name = name_of(method)
    return {"name": name, "source_sha256": source_sha256(name) if ":" in name else None}


def fields_from_meta(task: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a :class:`tmrjax.tasks.system.System` out of a checkpoint's JSON.

    Raises:
        ValueError: the method is not there, or its options are others than the checkpoint's.
    """
    if meta.get("source") and "whole" not in meta["pictures"]:
        logger.warning(
            "this checkpoint was converted by an older version, which did not keep the inputs of the released "
            "code: phrases, pictures and regions differ from those that it was trained on. Convert the weights "
            "again with data_prep/convert_release.py"
        )
    if "method" not in meta:
        meta = _upgraded(task, meta)
    name = meta["method"]["name"]
    kind = find_method(name, task)
    if ":" in name and source_sha256(name) != meta["method"]["source_sha256"]:
        logger.warning("the source of the method %s is not the one that this checkpoint was trained with", name)
    try:
        method = method_from_dict(kind, meta["model"])
    except TypeError as error:
        raise ValueError(f"the method {name} does not have the options of this checkpoint: {error}") from None
    vocabularies = meta["vocabularies"]
    return {
        "method": method,
        "labels": tuple(meta["labels"]),
        "tokenizer": None if meta["tokenizer"] is None else tokenizer_from_json(meta["tokenizer"]),
        "text": TextSettings.from_meta(meta["text"]),
        "pictures": PictureSettings(**meta["pictures"]),
        "buckets": tuple(meta["buckets"]),
        "fitted": tuple(
            one.from_meta(vocabularies[one.name]) if one.name in vocabularies else one for one in method.inputs
        ),
        "encoders": meta["encoders"],
    }


def _upgraded(task: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a checkpoint from before methods had files of their own; its weights have the same names."""
    old = dict(meta["model"])
    name = VARIANTS[old.pop("variant")][task]
    renamed = {
        "text": old.pop("bert"),
        "picture": old.pop("resnet"),
        "num_labels": old.pop("num_tags" if task == "ner" else "num_relations"),
        "max_pieces": old.pop("release_length", None),
    }
    known = find_method(name, task).__dataclass_fields__
    model = {key: value for key, value in (old | renamed).items() if key in known}
    if name in ("bert_crf", "mtb"):
        model["picture"] = None
    return {**meta, "method": {"name": name, "source_sha256": None}, "model": model, "vocabularies": {}, "encoders": {}}
