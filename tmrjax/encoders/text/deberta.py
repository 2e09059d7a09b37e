"""DeBERTa-v2 and -v3 (He et al. 2021, 2023): attention to content and to relative position, disentangled.

With content states H, their heads' q, k, v, and a table P of relative positions, the logit of query i and key j is

    (q_i · k_j + q_i · K^r_{δ(i-j)} + k_j · Q^r_{δ(i-j)}) / √(3 D/H)          "c2c", "c2p", "p2c"

K^r = P W_k and Q^r = P W_q are linear maps of P: of their own, or the content's with ``share_att_key``. δ puts
distances into buckets: every distance up to half of ``position_buckets`` has one, larger ones share them on a
logarithmic scale. Terms that ``pos_att_type`` does not name are left out, and √3 becomes √2 or 1. The arithmetic is
that of Hugging Face's ``DebertaV2Model``. Of the first version (model_type "deberta") nothing is built here.

The terms of position depend on i - j alone: they are products with the 2T rows of distances that a text of T pieces
has, whose diagonals become columns by a change of shape (:func:`diagonals`), not with all of P and a gather for each
pair.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from tmrjax.attention import attend
from tmrjax.encoders.activations import ACTIVATIONS, check_activation
from tmrjax.encoders.base import Prefix
from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import (
    LayerNorm,
    PostNormLayer,
    dense,
    embed_words,
    embedding_table,
    weight_dropout,
    with_prefix,
)
from tmrjax.encoders.text.transformer import TextTransformer

TERMS = ("c2p", "p2c")


@dataclasses.dataclass(frozen=True)
class DebertaConfig(TransformerConfig):
    """Sizes of a DeBERTa-v2 or -v3, which differ in their weights alone.

    embedding_size: E, None is the hidden size. position_biased_input: absolute positions in the embeddings too.
    position_buckets: of relative positions, to either side; 0 or less gives each distance its own.
    max_relative_positions: the largest distance; less than 1 is ``max_position_embeddings``. conv_kernel_size: of the
    convolution beside the first layer (v2's xlarge and xxlarge), 0 without it.
    """

    kind: ClassVar[str] = "DeBERTa"
    only_value: ClassVar[Mapping[str, Any]] = {"model_type": "deberta-v2"}
    sizes_with_default: ClassVar[tuple[str, ...]] = ("conv_groups",)
    sizes_or_zero: ClassVar[tuple[str, ...]] = ("type_vocab_size", "conv_kernel_size")

    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    embedding_size: int | None = None
    position_biased_input: bool = True
    relative_attention: bool = False
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    position_buckets: int = -1
    max_relative_positions: int = -1
    norm_rel_ebd: str = "none"
    attention_head_size: int | None = None
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()

        def refuse(name: str, expected: str) -> None:
            raise ValueError(f"DeBERTa config: {name} {getattr(self, name)!r} is not supported, only {expected} is")

        if self.relative_attention is not True:
            refuse("relative_attention", "True")
        if not set(self.pos_att_type) <= set(TERMS):
            refuse("pos_att_type", " and ".join(TERMS))
        if self.norm_rel_ebd not in ("none", "layer_norm"):
            refuse("norm_rel_ebd", "'none' or 'layer_norm'")
        if self.attention_head_size not in (None, self.hidden_size // self.num_attention_heads):
            refuse("attention_head_size", "hidden_size / num_attention_heads")
        if self.conv_kernel_size and not self.conv_kernel_size % 2:
            refuse("conv_kernel_size", "an odd number")
        check_activation(self.conv_act)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads a config.json; ``pos_att_type`` is a list there, or one string such as "p2c|c2p"."""
        terms = mapping.get("pos_att_type") or ()
        terms = terms.lower().split("|") if isinstance(terms, str) else terms
        norm = str(mapping.get("norm_rel_ebd") or "none").strip().lower()
        terms = tuple(sorted(term.strip() for term in terms))
        return super().from_dict({**mapping, "pos_att_type": terms, "norm_rel_ebd": norm})

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, which ``from_dict`` and transformers read back."""
        fields = {name: value for name, value in super().to_dict().items() if value is not None}
        return fields | {"pos_att_type": list(self.pos_att_type)}

    @property
    def embedding_width(self) -> int:
        """E."""
        return self.embedding_size or self.hidden_size

    @property
    def largest_distance(self) -> int:
        """The distance from which on all are one."""
        return self.max_relative_positions if self.max_relative_positions >= 1 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Half the rows of P."""
        return self.position_buckets if self.position_buckets > 0 else self.largest_distance


def distance_rows(distances: np.ndarray, config: DebertaConfig) -> np.ndarray:
    """δ: the row of P of each distance i - j, whole numbers.

    >>> sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> config = DebertaConfig(**sizes, max_position_embeddings=64, relative_attention=True, position_buckets=8)
    >>> distance_rows(np.array([-63, -9, -4, -1, 0, 1, 4, 9, 63]), config).tolist()
    [1, 2, 4, 7, 8, 9, 12, 14, 15]
    """
    buckets = distances.astype(np.int64)
    if config.position_buckets > 0:
        middle = config.position_buckets // 2
        # float32 as in PyTorch: the ceiling of a logarithm hangs on its last digit.
        ratio = np.maximum(np.abs(buckets), middle).astype(np.float32) / np.float32(middle)
        largest = np.float32((config.largest_distance - 1) / middle)
        steps = np.ceil(np.log(ratio) / np.log(largest) * np.float32(middle - 1)).astype(np.int64)
        buckets = np.where(np.abs(buckets) <= middle, buckets, np.sign(buckets) * (steps + middle))
    return np.clip(buckets + config.span, 0, 2 * config.span - 1)


def diagonals(products: Array) -> Array:
    """[..., T, 2T] → [..., T, T]: y_ij = x_{i, T-1-i+j}, row i shifted to the left by T-1-i.

    Row i of x, laid out flat with rows of 2T, begins at 2T i; the wanted entry at (2T-1) i + (T-1) + j: rows of 2T-1.

    >>> diagonals(jnp.arange(8).reshape(2, 4)).tolist()
    [[1, 2], [4, 5]]
    """
    *batch, length, width = products.shape
    flat = products.reshape(*batch, length * width)[..., length - 1 : length - 1 + length * (width - 1)]
    return flat.reshape(*batch, length, width - 1)[..., :length]


class _Embeddings(nn.Module):
    """Words, with absolute positions and token types where the config has them; projected, normalised, masked."""

    config: DebertaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, input_ids, valid, token_type_ids, word_embeddings, *, train: bool) -> Array:
        config = self.config
        total = embed_words(config, input_ids, word_embeddings)
        if config.position_biased_input:
            table = embedding_table("position", config.max_position_embeddings, config.embedding_width)
            total = total + table.embedding[: total.shape[1]]
        if config.type_vocab_size:
            table = embedding_table("token_type", config.type_vocab_size, config.embedding_width)
            total = total + (table.embedding[0] if token_type_ids is None else table(token_type_ids))
        if config.embedding_width != config.hidden_size:
            total = nn.Dense(
                config.hidden_size,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.02),
                name="projection",
            )(total)
        normalised = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(total)
        return Dropout(config.hidden_dropout_prob)(
            jnp.where(valid[..., None], normalised, 0).astype(self.dtype), deterministic=not train
        )


class _RelativePositions(nn.Module):
    """P [2 span, D], normalised where the config says so."""

    config: DebertaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Array:
        config = self.config
        table = self.param("embedding", nn.initializers.normal(0.02), (2 * config.span, config.hidden_size))
        if config.norm_rel_ebd == "layer_norm":
            return LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(table)
        return table.astype(self.dtype)


class DisentangledSelfAttention(nn.Module):
    """The attention of the module's formula with its output projection: [B·T,D] → [B·T,D].

    The keys of a prefix have no position: to them the logit is q · k alone, with the same scale.
    """

    config: DebertaConfig
    dtype: jnp.dtype

    @property
    def num_heads(self) -> int:
        """H."""
        return self.config.num_attention_heads

    @nn.compact
    def __call__(
        self, hidden: Array, attention_mask: Array, positions: Array, *, train: bool, prefix: Prefix | None = None
    ) -> Array:
        """``positions``: P."""
        config, width = self.config, hidden.shape[-1]
        query_layer, key_layer, value_layer = (dense(width, self.dtype, name) for name in ("query", "key", "value"))
        heads = (self.num_heads, width // self.num_heads)

        def split(states: Array, rows: tuple[int, ...]) -> Array:
            return states.reshape(*rows, *heads)

        rows = attention_mask.shape
        query, key = split(query_layer(hidden), rows), split(key_layer(hidden), rows)
        value = split(value_layer(hidden), rows)

        scale = (heads[1] * (1 + len(config.pos_att_type))) ** -0.5
        positions = Dropout(config.hidden_dropout_prob)(positions, deterministic=not train)
        length = rows[1]
        descending = np.arange(length - 1, -length - 1, -1)  # 2T distances; the last one is there to make rows of 2T
        bias = jnp.zeros((), jnp.float32)
        if "c2p" in config.pos_att_type:
            layer = key_layer if config.share_att_key else dense(width, self.dtype, "position_key")
            relative = split(layer(positions[distance_rows(descending, config)]), (-1,))
            bias = bias + diagonals(_products(query, relative))  # row i, column j: distance i - j
        if "p2c" in config.pos_att_type:
            layer = query_layer if config.share_att_key else dense(width, self.dtype, "position_query")
            relative = split(layer(positions[distance_rows(-descending, config)]), (-1,))
            bias = bias + diagonals(_products(key, relative)).swapaxes(-1, -2)  # row j, column i: distance i - j
        bias = bias * scale
        keys, values, mask = with_prefix(prefix, key, value, attention_mask)
        if prefix is not None and bias.ndim:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (prefix.keys.shape[1], 0)))
        attended = attend(
            query,
            keys,
            values,
            mask,
            bias=bias,
            scale=scale,
            dropout=weight_dropout(config.attention_probs_dropout_prob, train=train),
            zero_without_keys=False,
        )
        return dense(width, self.dtype, "output")(attended.reshape(hidden.shape))


def _products(states: Array, relative: Array) -> Array:
    """[B,T,H,d] and [R,H,d] → [B,H,T,R] in float32."""
    return jnp.einsum("bthd,rhd->bhtr", states, relative, preferred_element_type=jnp.float32)


class _Layer(PostNormLayer):
    """BERT's block around the disentangled attention."""

    def attention(self, hidden, attention_mask, prefix, shared, train) -> Array:
        """The attention with its output projection."""
        module = DisentangledSelfAttention(self.config, self.dtype, name="attention")
        return module(hidden, attention_mask, shared, train=train, prefix=prefix)


class _Convolution(nn.Module):
    """LayerNorm(states of layer 0 + act(conv of the embeddings)) at valid pieces, 0 at others: [B,T,D] → [B,T,D]."""

    config: DebertaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, embeddings: Array, states: Array, valid: Array, *, train: bool) -> Array:
        config, valid = self.config, valid[..., None]
        convolved = nn.Conv(
            config.hidden_size,
            (config.conv_kernel_size,),
            feature_group_count=config.conv_groups,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            name="convolution",
        )(embeddings)
        dropped = Dropout(config.hidden_dropout_prob)(jnp.where(valid, convolved, 0), deterministic=not train)
        total = states + ACTIVATIONS[config.conv_act](dropped)
        return jnp.where(valid, LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(total), 0)


class DebertaEncoder(TextTransformer):
    """DeBERTa-v2 or -v3; :class:`tmrjax.encoders.text.transformer.TextTransformer` says how it is called.

    Layer 0 holds the convolution where the config has one.
    """

    config: DebertaConfig
    layer_type: ClassVar[type[nn.Module]] = _Layer

    def setup(self) -> None:
        """Beside "embeddings" and "layer_0", ...: "relative_positions", and "convolution" where there is one."""
        super().setup()
        self.relative_positions = _RelativePositions(self.config, self.dtype)
        if self.config.conv_kernel_size:
            self.convolution = _Convolution(self.config, self.dtype)

    def make_embeddings(self) -> nn.Module:
        """Masked embeddings."""
        return _Embeddings(self.config, self.dtype)

    def embed_valid(self, input_ids, valid, *, train, token_type_ids, word_embeddings) -> Array:
        """The embeddings, 0 at padding: the convolution reads neighbours."""
        return self.embeddings(input_ids, valid, token_type_ids, word_embeddings, train=train)

    def shared(self) -> Array:
        """P."""
        return self.relative_positions()

    def layer(
        self, index: int, hidden: Array, attention_mask: Array, *, train: bool, prefix: Prefix | None = None
    ) -> Array:
        """Layer ``index`` alone, [B,T,D] → [B,T,D]."""
        states = super().layer(index, hidden, attention_mask, train=train, prefix=prefix)
        if index or not self.config.conv_kernel_size:
            return states
        return self.convolution(hidden, states, attention_mask.astype(bool), train=train)
