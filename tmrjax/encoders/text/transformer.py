"""What the transformers over word pieces share: the checks, the embeddings, the layers one by one or in a row (§3.2).

An encoder is a subclass of :class:`TextTransformer` that says how its embeddings and its layers are made.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tmrjax.encoders.base import Fusion, Prefix
from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.layers import PostNormLayer, TextEmbeddings


class TextTransformer(nn.Module):
    """A transformer without a pooler; parameters are float32 whatever ``dtype`` the layers compute in.

    Layer norms, attention scores and softmax are float32 inside. Dropout takes the RNG collection "dropout" and is
    on where ``train`` is True.

    Attributes:
      config: the sizes.
      dtype: the computation type of the matrix products and of the result, float32 or bfloat16.
      remat: compute each layer again in the backward pass instead of keeping its insides (gradient checkpointing).
    """

    config: TransformerConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    layer_type: ClassVar[type[nn.Module]] = PostNormLayer

    def setup(self) -> None:
        """Parameters are named "embeddings", "layer_0", ...."""
        self.embeddings = self.make_embeddings()
        layer = nn.remat(self.layer_type, static_argnums=(5,)) if self.remat else self.layer_type
        for index in range(self.config.num_hidden_layers):
            setattr(self, f"layer_{index}", layer(self.config, self.dtype))

    def make_embeddings(self) -> nn.Module:
        """The module that :meth:`embed_valid` calls."""
        return TextEmbeddings(self.config, self.config.layer_norm_eps, self.dtype)

    def embed_valid(
        self,
        input_ids: Array | None,
        valid: Array,
        *,
        train: bool,
        token_type_ids: Array | None,
        word_embeddings: Array | None,
    ) -> Array:
        """The embeddings; ``valid`` is the attention mask as booleans."""
        return self.embeddings(input_ids, token_type_ids, train=train, word_embeddings=word_embeddings)

    def shared(self) -> Array | None:
        """What every layer takes beside its states."""
        return None

    def embed(
        self,
        input_ids: Array | None,
        attention_mask: Array,
        *,
        train: bool,
        token_type_ids: Array | None = None,
        word_embeddings: Array | None = None,
    ) -> Array:
        """The states before the first layer, [B,T,D]; arguments and errors are those of ``__call__``."""
        self._check(input_ids, attention_mask, token_type_ids, word_embeddings)
        return self.embed_valid(
            input_ids,
            attention_mask.astype(bool),
            train=train,
            token_type_ids=token_type_ids,
            word_embeddings=word_embeddings,
        )

    def embed_rows(
        self, rows: Array, *, train: bool, token_type_ids: Array | None = None, positions: Array | None = None
    ) -> Array:
        """States before the first layer of what is no text, such as a picture's patches: [B,R,E] → [B,R,D].

        The embeddings' norm and dropout; rows of the tables are added where ``token_type_ids`` or ``positions`` [B,R]
        are given. Call ``embed`` first. Raises ValueError for an encoder whose embeddings have another form.
        """
        if not isinstance(self.embeddings, TextEmbeddings):
            raise ValueError(f"a {self.config.kind} cannot read pictures as rows of its text: take a BERT")
        return self.embeddings(None, token_type_ids, train=train, word_embeddings=rows, positions=positions, bare=True)

    def layer(
        self, index: int, hidden: Array, attention_mask: Array, *, train: bool, prefix: Prefix | None = None
    ) -> Array:
        """Layer ``index`` alone, [B,T,D] → [B,T,D]; raises ValueError where there is no such layer."""
        self._check_layer(index)
        # One row per piece: XLA's CPU products of matrices are faster, forward and backward, than of three-way arrays.
        flat, name = hidden.reshape(-1, hidden.shape[-1]), f"layer_{index}"
        arguments = flat, attention_mask.astype(bool), prefix, self.shared()
        if train or self.scope.mutable or not self.has_variable("params", name):
            return getattr(self, name)(*arguments, train).reshape(hidden.shape)
        block = self.layer_type(self.config, self.dtype, parent=None)
        return _without_dropout(block, self.variables["params"][name], *arguments).reshape(hidden.shape)

    def fused_layer(
        self, index: int, hidden: Array, attention_mask: Array, fusion: Fusion, *, train: bool
    ) -> tuple[Array, Prefix]:
        """Layer ``index`` alone with another modality inside; also its own keys and values.

        Raises ValueError where there is no such layer, or the layers are not BERT's.
        """
        self._check_layer(index)
        if self.layer_type is not PostNormLayer:
            raise ValueError(f"nothing can be fused inside of a layer of {self.config.kind}: take a BERT")
        block, flat = getattr(self, f"layer_{index}"), hidden.reshape(-1, hidden.shape[-1])
        states, own = block(flat, attention_mask.astype(bool), None, self.shared(), train, fusion)
        return states.reshape(hidden.shape), own

    def __call__(
        self,
        input_ids: Array | None,
        attention_mask: Array,
        *,
        train: bool,
        token_type_ids: Array | None = None,
        word_embeddings: Array | None = None,
        prefixes: Sequence[Prefix | None] | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Encodes word pieces.

        Args:
          input_ids: [B,T] integers below ``vocab_size``; None where ``word_embeddings`` are given.
          attention_mask: [B,T], nonzero or True where a piece is valid. What stands at other places has no influence on
            the states of valid ones. A row without a valid piece gives finite states (of no meaning).
          train: whether dropout is on.
          token_type_ids: [B,T], or None for type 0 everywhere.
          word_embeddings: [B,T,E] in place of the word table's rows; E is ``config.embedding_width``.
          prefixes: keys and values before those of the text, one or None a layer.

        Returns:
          The last states [B,T,D], and the states after the embeddings and after each block under the names
          "embeddings", "layer_0", ....

        Raises:
          ValueError: where shapes disagree (both are named), T exceeds ``config.max_length``, token types are given to
            an encoder that has none, or there are not as many prefixes as layers.
        """
        depth = self.config.num_hidden_layers
        prefixes = (None,) * depth if prefixes is None else prefixes
        if len(prefixes) != depth:
            raise ValueError(f"{len(prefixes)} prefixes for {depth} layers: give one, or None, for each")
        hidden = self.embed(
            input_ids, attention_mask, train=train, token_type_ids=token_type_ids, word_embeddings=word_embeddings
        )
        intermediates = {"embeddings": hidden}
        for index, prefix in enumerate(prefixes):
            hidden = self.layer(index, hidden, attention_mask, train=train, prefix=prefix)
            intermediates[f"layer_{index}"] = hidden
        return hidden, intermediates

    def _check_layer(self, index: int) -> None:
        if not 0 <= index < self.config.num_hidden_layers:
            raise ValueError(f"layer {index} of {self.config.num_hidden_layers} (counted from 0)")

    def _check(self, input_ids, attention_mask, token_type_ids, word_embeddings) -> None:
        if (input_ids is None) == (word_embeddings is None):
            raise ValueError("give either input_ids or word_embeddings, and None for the other")
        if input_ids is not None:
            name, shape = "input_ids", input_ids.shape
            if len(shape) != 2:
                raise ValueError(f"input_ids must be [B,T], got shape {shape}")
        else:
            name, shape = "word_embeddings", word_embeddings.shape
            if len(shape) != 3 or shape[2] != self.config.embedding_width:
                raise ValueError(f"word_embeddings must be [B,T,{self.config.embedding_width}], got shape {shape}")
        for other, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is not None and value.shape != shape[:2]:
                raise ValueError(f"{other} has shape {value.shape}, but {name} has {shape}")
        if token_type_ids is not None and not self.config.type_vocab_size:
            raise ValueError(f"token_type_ids: this {self.config.kind} has no token types; give None")
        if shape[1] > self.config.max_length:
            raise ValueError(
                f"{shape[1]} word pieces exceed this encoder's {self.config.max_length} positions "
                "(max_position_embeddings): cut the text into shorter pieces"
            )


@functools.partial(jax.jit, static_argnames="block")
def _without_dropout(block: nn.Module, params: Any, *arguments: Any) -> Array:
    """A layer outside of training: traced once for all layers of one size, which a predicting program is mostly made
    of. XLA puts its body in the place of each call."""
    return block.apply({"params": params}, *arguments, False)
