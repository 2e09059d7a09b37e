"""BERT (Devlin et al. 2019), the text encoder of TMR §3.2: T^w of a sentence, T^p of its phrases.

The arithmetic is that of Hugging Face's ``BertModel`` without its pooler: post-layer-norm blocks, the config's GELU
(with the error function unless it says otherwise), learned absolute positions. ``tmrjax.convert.bert_params`` fills it
from a Hugging Face folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tmrjax.encoders.activations import ACTIVATIONS
from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import LayerNorm, SelfAttention, TextEmbeddings, dense


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


class _Layer(nn.Module):
    """One post-layer-norm transformer block: [B·T,D] → [B·T,D]."""

    config: BertConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Array, attention_mask: Array, *, train: bool) -> Array:
        config = self.config

        def add_and_normalise(change: Array, residual: Array, name: str) -> Array:
            change = Dropout(config.hidden_dropout_prob)(change, deterministic=not train)
            return LayerNorm(config.layer_norm_eps, self.dtype, name=name)(change + residual)

        attention = SelfAttention(
            config.num_attention_heads, config.attention_probs_dropout_prob, self.dtype, name="attention"
        )
        attended = attention(hidden, attention_mask, train=train)
        hidden = add_and_normalise(attended, hidden, "attention_norm")
        inner = ACTIVATIONS[config.hidden_act](dense(config.intermediate_size, self.dtype, "intermediate")(hidden))
        return add_and_normalise(dense(config.hidden_size, self.dtype, "output")(inner), hidden, "output_norm")


class BertEncoder(nn.Module):
    """BERT without a pooler; parameters are float32 whatever ``dtype`` the layers compute in.

    Layer norms, attention scores and softmax are float32 inside. Dropout takes the RNG collection "dropout" and is
    on where ``train`` is True.

    Attributes:
      config: the sizes.
      dtype: the computation type of the matrix products and of the result, float32 or bfloat16.
    """

    config: BertConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, input_ids: Array, attention_mask: Array, *, train: bool, token_type_ids: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Encodes word pieces.

        Args:
          input_ids: [B,T] integers below ``vocab_size``.
          attention_mask: [B,T], nonzero or True where a piece is valid. What stands at other places has no influence on
            the states of valid ones. A row without a valid piece gives finite states (of no meaning).
          train: whether dropout is on.
          token_type_ids: [B,T], or None for type 0 everywhere.

        Returns:
          The last states [B,T,D], and the states after the embeddings and after each block under the names
          "embeddings", "layer_0", ....

        Raises:
          ValueError: where shapes disagree (both are named) or T exceeds ``max_position_embeddings``.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be [B,T], got shape {input_ids.shape}")
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {value.shape}, but input_ids has {input_ids.shape}")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} word pieces exceed this encoder's {self.config.max_position_embeddings} "
                "positions (max_position_embeddings): cut the text into shorter pieces"
            )
        valid = attention_mask.astype(bool)
        hidden = TextEmbeddings(self.config, self.config.layer_norm_eps, self.dtype, name="embeddings")(
            input_ids, token_type_ids, train=train
        )
        intermediates = {"embeddings": hidden}
        shape = hidden.shape
        # One row per piece: XLA's CPU products of matrices are faster, forward and backward, than of three-way arrays.
        hidden = hidden.reshape(-1, shape[-1])
        for index in range(self.config.num_hidden_layers):
            name = f"layer_{index}"
            hidden = _Layer(self.config, self.dtype, name=name)(hidden, valid, train=train)
            intermediates[name] = hidden.reshape(shape)
        return hidden.reshape(shape), intermediates
