"""BERT (Devlin et al. 2019), the text encoder of TMR §3.2: T^w of a sentence, T^p of its phrases.

The arithmetic is that of Hugging Face's ``BertModel`` without its pooler: post-layer-norm blocks, the config's GELU
(with the error function unless it says otherwise), learned absolute positions. ``tmrjax.convert.bert_params`` fills it
from a Hugging Face folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.text.transformer import TextTransformer


@dataclasses.dataclass(frozen=True)
class BertConfig(TransformerConfig):
    """Sizes of a BERT."""

    kind: ClassVar[str] = "BERT"
    only_value: ClassVar[Mapping[str, Any]] = {
        "model_type": "bert",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }


class BertEncoder(TextTransformer):
    """BERT without its pooler; :class:`tmrjax.encoders.text.transformer.TextTransformer` says how it is called."""

    config: BertConfig
