"""Words from their characters: by a convolution (Ma and Hovy 2016) or by a bidirectional LSTM (Lample et al. 2016).

Both read ``character_ids`` [B, W, C], 0 behind a word's last character, and depend on a word's own characters alone:
not on C, which is the longest word of the program, nor on the words beside it. A word without characters, which is
padding, is all zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tmrjax.encoders.dropout import Dropout
from tmrjax.methods.parts.recurrent import LSTM
from tmrjax.methods.parts.words import by_width


class CharacterConvolution(nn.Module):
    """c = max over positions j of act(conv(e_{j−⌊k/2⌋}, …))_j for each window k: [B, W, filters · windows].

    e are embeddings, ⌊k/2⌋ zeros stand on each side of the word. Of several windows the results are stacked filter by
    filter: number f · windows + k.

    Attributes:
        rows: of the table of characters. size: of an embedding.
        filters: of each window. windows: their lengths.
        activation: before the maximum.
        dropout: on the embeddings.
        literal: the maximum over the first C − k + 1 positions, padding included, as released code for AdapCoAtt takes
            it: the longest words lose their ends, and the embedding of padding speaks.
        dtype: of the convolutions.
    """

    rows: int
    size: int
    filters: int
    windows: tuple[int, ...] = (3,)
    activation: Callable[[Array], Array] = jnp.tanh
    dropout: float = 0.0
    literal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, character_ids: Array, *, train: bool) -> Array:
        """See the class."""
        embedded, lengths = _embed(self, character_ids, train, zero_padding=not self.literal)
        longest, found = character_ids.shape[-1], []
        for window in self.windows:
            sides = window // 2
            convolution = nn.Conv(
                self.filters, (window,), padding=[(sides, sides)], dtype=self.dtype, name=f"convolution_{window}",
                kernel_init=nn.initializers.glorot_uniform(),
            )  # fmt: skip
            outputs = self.activation(convolution(embedded))
            if self.literal:
                found.append(outputs[:, : longest - window + 1].max(1))
                continue
            # As many positions as a convolution over the word alone has.
            positions = jnp.arange(outputs.shape[1]) < (lengths + 2 * sides - window + 1)[:, None]
            valid = (positions & (lengths > 0)[:, None])[..., None]
            lowest = jnp.where(valid, outputs, -jnp.inf).max(1)
            found.append(jnp.where(lengths[:, None] > 0, lowest, 0))
        return jnp.stack(found, axis=-1).reshape(*character_ids.shape[:2], -1)


class CharacterLSTM(nn.Module):
    """c = [last forward state; last backward state] of a bidirectional LSTM over a word: [B, W, 2 features].

    Attributes:
        rows: of the table of characters. size: of an embedding.
        features: of each direction.
        dropout: on the embeddings.
        dtype: of products.
    """

    rows: int
    size: int
    features: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, character_ids: Array, *, train: bool) -> Array:
        """See the class."""
        embedded, lengths = _embed(self, character_ids, train, zero_padding=True)
        mask = jnp.arange(embedded.shape[1]) < lengths[:, None]
        _, last = LSTM(self.features, dtype=self.dtype, name="lstm")(embedded, mask, train=train)
        return last.reshape(*character_ids.shape[:2], -1)


def _embed(module: CharacterConvolution | CharacterLSTM, ids: Array, train: bool, *, zero_padding: bool):
    """(embeddings [B·W, C, size], lengths [B·W]); part of the compact method that calls it."""
    table = module.param("embedding", by_width, (module.rows, module.size))
    ids = ids.reshape(-1, ids.shape[-1])
    embedded = Dropout(module.dropout)(jnp.take(table, ids, axis=0), deterministic=not train)
    if zero_padding:
        embedded = jnp.where((ids > 0)[..., None], embedded, 0)
    return embedded.astype(module.dtype), jnp.sum(ids > 0, axis=-1)
