"""PyTorch modules under released parameter names, for references of methods, and what their tests share."""

import jax
import numpy as np
import torch
import torchcrf
import transformers
from torch import nn

HIDDEN, LAYERS, HEADS, VOCABULARY = 16, 1, 2, 40


def bert_config(**options):
    return transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=24, max_position_embeddings=32, attn_implementation="eager", **options,
    )  # fmt: skip


class Layers(nn.Module):
    """``layer.0``: one layer of BERT, called with queries from x, keys and values from y."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList([transformers.models.bert.modeling_bert.BertLayer(bert_config())])

    def forward(self, x, y, mask):
        """``mask`` [B, S]; a row of keys without a valid one adds nothing."""
        (layer,) = self.layer
        attention = layer.attention.self

        def heads(states):
            return states.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        query, key, value = heads(attention.query(x)), heads(attention.key(y)), heads(attention.value(y))
        scores = query @ key.transpose(-1, -2) / (HIDDEN // HEADS) ** 0.5
        weights = torch.softmax(scores + (1 - mask.double())[:, None, None] * -1e4, -1)
        attended = layer.attention.output.dense((weights @ value).transpose(1, 2).flatten(2))
        attended = attended * mask.any(-1)[:, None, None]
        hidden = layer.attention.output.LayerNorm(x + attended)
        return layer.output(layer.intermediate(hidden), hidden)


class Reference(nn.Module):
    """A module in float64 without dropout whose parameters lie away from their initial values."""

    def randomise(self, seed=0, scale=0.2):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        return self.double().eval()

    def numpy(self):
        return {name: tensor.numpy().astype(np.float32) for name, tensor in self.state_dict().items()}


def crf_loss(crf: torchcrf.CRF, emissions, tags, mask):
    """−log p(tags) of each row."""
    return -crf(emissions, tags, mask=mask, reduction="none")


def tensors(batch):
    """A batch for a reference in float64."""
    found = {name: torch.tensor(np.asarray(value)) for name, value in batch.items()}
    return {name: value.double() if value.is_floating_point() else value for name, value in found.items()}


def text_batch(generator):
    """Three posts of 7, 5 and 4 word pieces."""
    mask = np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3], bool)
    return {
        "input_ids": generator.integers(5, VOCABULARY, mask.shape).astype(np.int32) * mask,
        "attention_mask": mask,
        "word_starts": np.array([[1, 2, 4, 5, 0], [1, 3, 0, 0, 0], [1, 2, 0, 0, 0]], np.int32),
        "word_mask": np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]], bool),
        "head_start": np.array([1, 3, 2], np.int32),
        "tail_start": np.array([4, 1, 1], np.int32),
    }


def at_words(states, batch):
    index = batch["word_starts"].long()[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, index)


def at_markers(states, batch):
    rows = torch.arange(len(states))
    return torch.cat([states[rows, batch["head_start"].long()], states[rows, batch["tail_start"].long()]], -1)


def without_gradient(method, variables, batch, loss):
    """Paths of the parameters that ``loss(outputs)`` does not reach."""
    gradients = jax.jit(
        jax.grad(lambda params: loss(method.apply({**variables, "params": params}, batch, train=False)))
    )(variables["params"])
    flat = jax.tree_util.tree_flatten_with_path(gradients)[0]
    return {"/".join(key.key for key in path) for path, leaf in flat if not np.abs(leaf).max() > 0}
