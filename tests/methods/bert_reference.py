"""BERT in float64 NumPy under the names of a state dict, with room for what methods add inside of a layer."""

import numpy as np
from scipy.special import erf


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


class Weights:
    """A state dict of arrays, read in float64."""

    def __init__(self, state):
        self.state = state

    def __getitem__(self, name):
        return np.asarray(self.state[name], np.float64)

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name, x, epsilon=1e-12):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * self[f"{name}.weight"] + self[f"{name}.bias"]


def random_state(shapes, seed=0):
    """Arrays of N(0, 0.3²); scales of norms around 1."""
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(1 if "norm" in name.lower() and name.endswith("weight") else 0, 0.3, shape)).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def linear_shapes(name, out, inner):
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def embedding_shapes(prefix, vocabulary, width, positions):
    tables = (("word", vocabulary), ("position", positions), ("token_type", 2))
    shapes = {f"{prefix}{name}_embeddings.weight": (rows, width) for name, rows in tables}
    return shapes | norm_shapes(f"{prefix}LayerNorm", width)


def layer_shapes(name, width, inner):
    shapes = {}
    for one in ("self.query", "self.key", "self.value", "output.dense"):
        shapes |= linear_shapes(f"{name}.attention.{one}", width, width)
    shapes |= norm_shapes(f"{name}.attention.output.LayerNorm", width) | norm_shapes(f"{name}.output.LayerNorm", width)
    shapes |= linear_shapes(f"{name}.intermediate.dense", inner, width)
    return shapes | linear_shapes(f"{name}.output.dense", width, inner)


def bert_shapes(prefix, *, vocabulary=40, width=16, depth=2, inner=24, positions=16):
    shapes = embedding_shapes(f"{prefix}embeddings.", vocabulary, width, positions)
    for index in range(depth):
        shapes |= layer_shapes(f"{prefix}encoder.layer.{index}", width, inner)
    return shapes | linear_shapes(f"{prefix}pooler.dense", width, width)


def embed(weights, prefix, ids):
    """[B, T] -> [B, T, D]."""
    total = weights[f"{prefix}word_embeddings.weight"][ids]
    total = total + weights[f"{prefix}position_embeddings.weight"][: ids.shape[1]]
    return weights.norm(f"{prefix}LayerNorm", total + weights[f"{prefix}token_type_embeddings.weight"][0])


def heads(x, count):
    """[B, S, D] -> [B, H, S, D/H]."""
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def merged(x):
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def layer(weights, name, x, mask, num_heads, *, prefix=None, add=None):
    """(states, keys, values); prefix: keys, values [B, H, P, D/H] and mask [B, P]; add: context -> [B, T, inner]."""
    query, key, value = (
        heads(weights.linear(f"{name}.attention.self.{one}", x), num_heads) for one in ("query", "key", "value")
    )
    all_keys, all_values, valid = key, value, mask
    if prefix is not None:
        all_keys, all_values = np.concatenate([prefix[0], key], 2), np.concatenate([prefix[1], value], 2)
        valid = np.concatenate([prefix[2], mask], 1)
    scores = query @ all_keys.swapaxes(2, 3) / np.sqrt(query.shape[-1]) + (1 - valid[:, None, None]) * -1e9
    context = merged(softmax(scores) @ all_values)
    attended = weights.linear(f"{name}.attention.output.dense", context)
    x = weights.norm(f"{name}.attention.output.LayerNorm", attended + x)
    inner = weights.linear(f"{name}.intermediate.dense", x)
    inner = inner if add is None else inner + add(context)
    x = weights.norm(f"{name}.output.LayerNorm", weights.linear(f"{name}.output.dense", gelu(inner)) + x)
    return x, key, value


def read_bert(weights, prefix, ids, mask, depth, num_heads, prefixes=None):
    """Last states [B, T, D]."""
    x = embed(weights, f"{prefix}embeddings.", ids)
    for index in range(depth):
        inside = None if prefixes is None else prefixes[index]
        x, _, _ = layer(weights, f"{prefix}encoder.layer.{index}", x, mask, num_heads, prefix=inside)
    return x


def text_batch():
    """Four posts of one to eight pieces, the keys of both tasks."""
    random = np.random.default_rng(1)
    lengths = np.array([8, 5, 3, 8])
    mask = np.arange(8) < lengths[:, None]
    return {
        "input_ids": np.where(mask, random.integers(1, 40, (4, 8)), 0).astype(np.int32),
        "attention_mask": mask,
        "word_starts": np.array([[1, 2, 4, 6], [1, 3, 0, 0], [1, 0, 0, 0], [1, 4, 5, 6]], np.int32),
        "word_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool),
        "head_start": np.array([1, 3, 0, 6], np.int32),
        "tail_start": np.array([5, 1, 2, 2], np.int32),
        "tags": np.array([[0, 1, 2, 3], [1, 1, 0, 0], [2, 0, 0, 0], [0, 0, 4, 1]], np.int32),
        "relation": np.array([0, 1, 2, 3], np.int32),
    }


def head_inputs(text, batch, task, literal):
    """What the last layer reads of [B, T, D]."""
    rows = np.arange(len(text))
    if task == "re":
        return np.concatenate([text[rows, batch["head_start"]], text[rows, batch["tail_start"]]], -1)
    return text if literal else np.take_along_axis(text, batch["word_starts"][..., None], 1)
