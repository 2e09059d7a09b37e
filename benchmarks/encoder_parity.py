"""How far our encoders are from PyTorch's: the largest error of states and gradients, one line each.

    python -m benchmarks.encoder_parity [NAME ...]

Models are tiny and random; their weights are large enough for every term to matter. States are those of every layer at
valid places, gradients those of a weighted sum of the last states, divided by the largest element of each tensor where
that is above 1. tests/encoders hold the same numbers below 2e-5.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks.picture_parity import PICTURE_MODELS, Errors, picture_errors, state_dict_of, tree_error
from tmrjax import convert
from tmrjax.encoders.open import text_config, text_encoder

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
_DISTILBERT = {
    "vocab_size": 37,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
    "max_position_embeddings": 40,
}
_RELATIVE = {**SIZES, "relative_attention": True, "pos_att_type": "p2c|c2p"}
_V3 = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
# Name → prefix of the classes of transformers, and settings.
TEXT_MODELS = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", {**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRoberta", {**SIZES, "type_vocab_size": 1, "hidden_act": "gelu_new"}),
    "electra": ("Electra", {**SIZES, "embedding_size": 12}),
    "electra, one width": ("Electra", {**SIZES, "embedding_size": 24}),
    "distilbert": ("DistilBert", _DISTILBERT),
    "deberta-v3": ("DebertaV2", {**_RELATIVE, **_V3}),
    "deberta-v2, convolution": ("DebertaV2", {**_RELATIVE, **_V3, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v2, own projections": ("DebertaV2", {**_RELATIVE, "type_vocab_size": 2, "embedding_size": 16}),
    "deberta-v2, c2p": ("DebertaV2", {**_RELATIVE, "pos_att_type": "c2p", "max_relative_positions": 5}),
}


def torch_text_model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random one of TEXT_MODELS, its weights far from their initial values."""
    family, settings = TEXT_MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**settings)
    # DeBERTa has its own attention alone.
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}Model")(config)
    model.pooler = None
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name.lower() or parameter_name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model.eval()


def text_inputs(model: transformers.PreTrainedModel, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids [3,13] and a mask: whole, with a hole and an end, of one piece. Padding has the id of padding."""
    random = np.random.default_rng(seed)
    pad = model.config.pad_token_id
    # Valid pieces are never the padding's id, for whose row torch's Embedding drops the gradient.
    ids = random.integers(2, model.config.vocab_size, (3, 13))
    mask = np.ones(ids.shape, bool)
    mask[1, [4, 5, 11, 12]], mask[2, 1:] = False, False
    return np.where(mask, ids, pad), mask


def position_ids(model: transformers.PreTrainedModel, mask: np.ndarray) -> dict[str, torch.Tensor]:
    """RoBERTa's positions, which torch cannot count where embeddings are given instead of ids."""
    if "Roberta" not in type(model).__name__:
        return {}
    positions, pad = np.zeros(mask.shape, int), model.config.pad_token_id
    for row, valid in enumerate(mask):
        count = 0
        for column, is_valid in enumerate(valid):
            count += bool(is_valid)
            positions[row, column] = pad + count if is_valid else pad
    return {"position_ids": torch.tensor(positions)}


def text_errors(name: str) -> Errors:
    """Ids in, states of every layer compared; embeddings in, gradients of them and of all parameters compared."""
    model = torch_text_model(name)
    ids, mask = text_inputs(model)
    config = text_config(model.config.to_dict())
    encoder, params = text_encoder(config), convert.text_params(state_dict_of(model), config)
    random = np.random.default_rng(1)
    weights = random.normal(size=(*ids.shape, config.hidden_size)).astype(np.float32) * mask[..., None]
    change = random.normal(size=(*ids.shape, config.embedding_width)).astype(np.float32) * 0.1
    types = {}
    if config.type_vocab_size:
        types = {"token_type_ids": random.integers(0, config.type_vocab_size, ids.shape)}

    attention = {"attention_mask": torch.tensor(mask).long()}
    attention |= {kind: torch.tensor(value) for kind, value in types.items()}
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids), output_hidden_states=True, **attention).hidden_states
    added = torch.tensor(change, requires_grad=True)
    embedded = model.get_input_embeddings()(torch.tensor(ids)) + added
    last = model(inputs_embeds=embedded, **attention, **position_ids(model, mask)).last_hidden_state
    (last * torch.tensor(weights)).sum().backward()

    # What stands at padding must not matter: ours reads other ids there.
    ours_ids = np.where(mask, ids, 3)

    @jax.jit
    def compute(params, added):
        def loss(params, added):
            embedded = params["embeddings"]["word"]["embedding"][ids] + added
            states, _ = encoder.apply({"params": params}, None, mask, train=False, word_embeddings=embedded, **types)
            return jnp.sum(states * weights)

        states = encoder.apply({"params": params}, ours_ids, mask, train=False, **types)[1]
        return list(states.values()), jax.grad(loss, (0, 1))(params, added)

    states, (gradient, of_added) = compute(params, change)
    state_error = max(np.abs(ours - other.numpy())[mask].max() for ours, other in zip(states, theirs, strict=True))
    expected = convert.text_params({n: p.grad.numpy() for n, p in model.named_parameters()}, config)
    return Errors(
        float(state_error), tree_error({**gradient, "added": of_added}, {**expected, "added": added.grad.numpy()})
    )


# Name → what measures it.
CASES: dict[str, Callable[[], Errors]] = {}
for _name in TEXT_MODELS:
    CASES[_name] = lambda name=_name: text_errors(name)
for _name in PICTURE_MODELS:
    CASES[_name] = lambda name=_name: picture_errors(name)


def main(names: list[str]) -> None:
    """Prints a line for each of ``names``, or for all."""
    print(f"{'encoder':34} {'states':>9} {'gradients':>9}")
    for name in names or CASES:
        errors = CASES[name]()
        print(f"{name:34} {errors.states:9.1e} {errors.gradients:9.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
