"""BERT (Devlin et al. 2019), the text encoder of TMR §3.1: T^w and T^p of design P1.

The arithmetic is that of Hugging Face's ``BertModel`` without its pooler: post-layer-norm blocks, the config's GELU
(with the error function unless it says otherwise), learned absolute positions. ``tmrjax.convert.bert_params`` fills it
from a Hugging Face folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from tmrjax.encoders.activations import ACTIVATIONS, check_activation
from tmrjax.encoders.dropout import Dropout

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
# Settings of config.json that change the arithmetic in ways not built here: each with the value that does not.
_ONLY_VALUE = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT, named as in Hugging Face's config.json.

    Raises ValueError, naming the field, where a size is not positive, a probability is outside [0, 1), the hidden size
    is not divisible by the number of heads, or the activation is unknown.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name in (*_REQUIRED, "type_vocab_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"BERT config: {name} must be a positive integer, got {value!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"BERT config: {name} must be a number in [0, 1), got {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BERT config: hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )
        check_activation(self.hidden_act)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> "BertConfig":
        """Reads the contents of a Hugging Face config.json; keys that do not touch the arithmetic are ignored.

        Raises ValueError naming every missing size, or a setting that this encoder does not build (a ``model_type``
        other than bert, relative positions, a decoder, pruned heads) with the value found.
        """
        missing = [name for name in _REQUIRED if name not in mapping]
        if missing:
            raise ValueError(f"BERT config: missing {', '.join(missing)}; is this the config.json of a BERT?")
        for name, allowed in _ONLY_VALUE.items():
            found = mapping.get(name, allowed)
            if found != allowed:
                raise ValueError(f"BERT config: {name} {found!r} is not supported, only {allowed!r} is")
        if mapping.get("pruned_heads"):
            raise ValueError(f"BERT config: pruned_heads {mapping['pruned_heads']!r} is not supported")
        fields = {field.name for field in dataclasses.fields(cls)}
        # A null stands for the default in files that older versions of transformers wrote.
        return cls(**{name: value for name, value in mapping.items() if name in fields and value is not None})

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, with ``model_type``, which ``from_dict`` and transformers read back."""
        return {"model_type": "bert", **dataclasses.asdict(self)}


class _LayerNorm(nn.Module):
    """(x − mean) / √(var + ε) · scale + bias over the last axis, computed in float32, returned as ``dtype``."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        var = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * lax.rsqrt(var + self.epsilon) * scale + bias).astype(self.dtype)


class _Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised: [B,T] → [B,T,D]."""

    config: BertConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, input_ids: Array, token_type_ids: Array | None, *, train: bool) -> Array:
        config = self.config

        def table(name: str, rows: int) -> nn.Embed:
            # Summed in float32 whatever the dtype of the rest: it costs nothing and three roundings are spared.
            return nn.Embed(rows, config.hidden_size, name=name, embedding_init=nn.initializers.normal(0.02))

        word = table("word", config.vocab_size)(input_ids)
        position = table("position", config.max_position_embeddings).embedding[: input_ids.shape[1]]
        token_type = table("token_type", config.type_vocab_size)
        kinds = token_type.embedding[0] if token_type_ids is None else token_type(token_type_ids)
        total = word + position + kinds
        normalised = _LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(total)
        return Dropout(config.hidden_dropout_prob)(normalised, deterministic=not train)


class _SelfAttention(nn.Module):
    """Multi-head self-attention with its output projection: [B·T,D], keys valid where ``attention_mask`` → [B·T,D]."""

    config: BertConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Array, attention_mask: Array, *, train: bool) -> Array:
        config = self.config
        batch, length = attention_mask.shape
        width, heads = config.hidden_size, config.num_attention_heads

        def project(name: str) -> Array:
            return _dense(width, self.dtype, name)(hidden).reshape(batch, length, heads, width // heads)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores * (width // heads) ** -0.5
        # A finite minimum and not -inf: a row without any valid key (an absent phrase) becomes uniform, not NaN.
        scores = jnp.where(attention_mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(config.attention_probs_dropout_prob)(weights, deterministic=not train)
        context = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch * length, width)
        return _dense(config.hidden_size, self.dtype, "output")(context)


class _Layer(nn.Module):
    """One post-layer-norm transformer block: [B·T,D] → [B·T,D]."""

    config: BertConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Array, attention_mask: Array, *, train: bool) -> Array:
        config = self.config

        def add_and_normalise(change: Array, residual: Array, name: str) -> Array:
            change = Dropout(config.hidden_dropout_prob)(change, deterministic=not train)
            return _LayerNorm(config.layer_norm_eps, self.dtype, name=name)(change + residual)

        attended = _SelfAttention(config, self.dtype, name="attention")(hidden, attention_mask, train=train)
        hidden = add_and_normalise(attended, hidden, "attention_norm")
        inner = ACTIVATIONS[config.hidden_act](_dense(config.intermediate_size, self.dtype, "intermediate")(hidden))
        return add_and_normalise(_dense(config.hidden_size, self.dtype, "output")(inner), hidden, "output_norm")


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
        hidden = _Embeddings(self.config, self.dtype, name="embeddings")(input_ids, token_type_ids, train=train)
        intermediates = {"embeddings": hidden}
        shape = hidden.shape
        # One row per piece: XLA's CPU products of matrices are faster, forward and backward, than of three-way arrays.
        hidden = hidden.reshape(-1, shape[-1])
        for index in range(self.config.num_hidden_layers):
            name = f"layer_{index}"
            hidden = _Layer(self.config, self.dtype, name=name)(hidden, valid, train=train)
            intermediates[name] = hidden.reshape(shape)
        return hidden.reshape(shape), intermediates


def _dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, name=name, kernel_init=nn.initializers.normal(0.02))
