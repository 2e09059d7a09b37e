"""The weights of any text encoder out of a Hugging Face state dict: its table, its prefix, its unused names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.bert import BERT_DROPPED, ELECTRA_DROPPED, ROBERTA_DROPPED, bert_table, electra_table
from tmrjax.convert.deberta import deberta_dropped, deberta_table
from tmrjax.convert.distilbert import DISTILBERT_DROPPED, distilbert_table
from tmrjax.convert.tables import Entry, fill, shapes_of, without_prefix
from tmrjax.encoders.base import TextConfig
from tmrjax.encoders.open import text_encoder
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.encoders.text.deberta import DebertaConfig
from tmrjax.encoders.text.distilbert import DistilBertConfig
from tmrjax.encoders.text.electra import ElectraConfig
from tmrjax.encoders.text.roberta import RobertaConfig


class Family(NamedTuple):
    """prefix: of the names in the file of a model with a head. table, dropped: from a config."""

    prefix: str
    table: Callable[[Any], list[Entry]]
    dropped: Callable[[Any], tuple[str, ...]]


FAMILIES = {
    BertConfig: Family("bert.", bert_table, lambda config: BERT_DROPPED),
    RobertaConfig: Family("roberta.", bert_table, lambda config: ROBERTA_DROPPED),
    ElectraConfig: Family("electra.", electra_table, lambda config: ELECTRA_DROPPED),
    DistilBertConfig: Family("distilbert.", distilbert_table, lambda config: DISTILBERT_DROPPED),
    DebertaConfig: Family("deberta.", deberta_table, deberta_dropped),
}
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def text_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of the variables of a text encoder."""
    token = jnp.zeros((1, 1), jnp.int32)
    return shapes_of(text_encoder(config), token, token, train=False)


def text_params(state_dict: Mapping[str, np.ndarray], config: TextConfig) -> dict[str, Any]:
    """The parameters of the text encoder of ``config`` out of a Hugging Face state dict.

    Names are read with or without the prefix of their family (``bert.``, ``roberta.``, ...), layer norms as ``weight``,
    ``bias`` or, as in the oldest files, ``gamma``, ``beta``. Poolers, the heads of pre-training and buffers of
    positions are left out knowingly.

    Raises ValueError that lists every missing, extra and misshaped name.
    """
    family, what = FAMILIES[type(config)], f"{config.kind} state dict"
    renamed = {}
    for name, array in without_prefix(state_dict, family.prefix).items():
        for old, new in _OLD_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new  # noqa: PLW2901 (at most one of the two fits)
        if name in renamed:
            raise ValueError(f"{what}: {name} stands there twice, under its old name and its new one")
        renamed[name] = array
    table, dropped = family.table(config), family.dropped(config)
    return fill(renamed, table, text_shapes(config), dropped=dropped, what=what)["params"]


def bert_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of the variables of ``BertEncoder``."""
    return text_shapes(config)


def bert_params(state_dict: Mapping[str, np.ndarray], config: BertConfig) -> dict[str, Any]:
    """The parameters of ``BertEncoder(config)``: :func:`text_params` for a BERT."""
    return text_params(state_dict, config)
