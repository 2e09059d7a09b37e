"""Text encoders beside transformers' torch models: states, gradients, masks, prefixes, layers, remat."""

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from benchmarks import encoder_parity
from tmrjax import convert
from tmrjax.convert import tables
from tmrjax.convert.text import FAMILIES as CONVERTED
from tmrjax.encoders.base import Prefix
from tmrjax.encoders.open import TEXT_CONFIGS, grow_vocabulary, text_config, text_encoder
from tmrjax.encoders.text.deberta import DebertaConfig, distance_rows


# The benchmark measures all; these have all of their arithmetic.
@pytest.mark.parametrize(
    "name", [n for n in encoder_parity.TEXT_MODELS if n not in ("xlm-roberta", "electra, one width")]
)
def test_states_and_gradients_equal_torch(name):
    errors = encoder_parity.CASES[name]()
    assert errors.states < 1e-5 and errors.gradients < 1e-5


@functools.cache
def tiny(name: str):
    """Config, parameters, ids [3,13] and their mask with a hole."""
    model = encoder_parity.torch_text_model(name)
    config = text_config(model.config.to_dict())
    params = convert.text_params(encoder_parity.state_dict_of(model), config)
    return config, jax.tree.map(jnp.asarray, params), *encoder_parity.text_inputs(model)


# The others have BERT's layers.
@pytest.mark.parametrize("name", ["bert", pytest.param("deberta-v2, convolution", marks=pytest.mark.slow)])
def test_one_layer_at_a_time_and_remat_equal_the_whole(name):
    """Dropout is on: the bits of a layer are the same, kept or computed again."""
    config, params, ids, mask = tiny(name)
    key = jax.random.key(1)

    @jax.jit
    def compute(params):
        def loss(params, *, remat, train):
            encoder = text_encoder(config, remat=remat)
            states, _ = encoder.apply({"params": params}, ids, mask, train=train, rngs={"dropout": key})
            return jnp.sum(jnp.sin(states) * mask[..., None])

        def by_hand(encoder):
            hidden = encoder.embed(ids, mask, train=True)
            for index in range(config.num_hidden_layers):
                hidden = encoder.layer(index, hidden, mask, train=True)
            return jnp.sum(jnp.sin(hidden) * mask[..., None])

        kept = jax.value_and_grad(functools.partial(loss, remat=False, train=True))(params)
        again = jax.value_and_grad(functools.partial(loss, remat=True, train=True))(params)
        single = text_encoder(config).apply({"params": params}, rngs={"dropout": key}, method=by_hand)
        return kept, again, single, loss(params, remat=False, train=False)

    kept, again, single, still = compute(params)
    np.testing.assert_allclose(single, kept[0], rtol=1e-6)
    assert abs(still - kept[0]) > 0.1
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(ValueError, match="layer 2 of 2"):
        text_encoder(config).apply({"params": params}, 2, jnp.ones((1, 2, 24)), mask, train=False, method="layer")


@pytest.mark.parametrize("name", ["bert", "deberta-v2, own projections"])
def test_outside_of_training_all_layers_are_one_function_of_the_program(name):
    """With the same states as layers that are written out, which is how they are where something is kept of them."""
    config, params, ids, mask = tiny(name)
    encoder = text_encoder(config, remat=True)

    def read(params, *, mutable):
        found = encoder.apply({"params": params}, ids, mask, train=False, mutable=mutable)
        return found[0] if mutable is False else found[0][0]

    compute = jax.jit(functools.partial(read, mutable=False))
    program = compute.lower(params).as_text()
    assert config.num_hidden_layers > 1
    assert program.count("func.func private @_without_dropout") == 1
    assert program.count("call @_without_dropout") == config.num_hidden_layers
    written_out = jax.jit(functools.partial(read, mutable=["intermediates"]))(params)
    np.testing.assert_array_equal(compute(params), written_out)


def prefix_of(config, params, states, mask):
    """Keys and values that layer 0 makes of ``states`` [B,P,D], in float64."""
    layer = params["layer_0"]["attention"]
    shape = (*states.shape[:2], config.num_attention_heads, -1)
    keys, values = (
        (states.astype(np.float64) @ np.asarray(layer[n]["kernel"], np.float64) + layer[n]["bias"]).reshape(shape)
        for n in ("key", "value")
    )
    return Prefix(jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32), mask)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "deberta-v2, own projections"])
def test_prefixes_are_keys_and_values_before_those_of_the_text(name):
    """The states of pieces whose neighbours on the left come as a prefix equal those beside the neighbours.

    DeBERTa's prefix has no positions: with P and its biases at zero the text has none either.
    """
    config, params, _, mask = tiny(name)
    if name.startswith("deberta"):
        params = jax.tree.map(lambda x: x, params)
        for tree in (
            params["relative_positions"],
            *(params["layer_0"]["attention"][f"position_{n}"] for n in ("key", "query")),
        ):
            tree |= {n: jnp.zeros_like(x) for n, x in tree.items()}
    states = np.random.default_rng(0).normal(size=(3, 13, 24)).astype(np.float32)
    mask = mask.copy()
    mask[1, :2] = False  # a hole in the prefix too
    prefix = prefix_of(config, params, states[:, :4], jnp.asarray(mask[:, :4]))
    encoder = text_encoder(config)

    @jax.jit
    def layer(states, mask, prefix):
        return encoder.apply({"params": params}, 0, states, mask, train=False, prefix=prefix, method="layer")

    whole, behind = layer(states, mask, None), layer(states[:, 4:], mask[:, 4:], prefix)
    valid = mask[:, 4:]
    np.testing.assert_allclose(np.asarray(behind)[valid], np.asarray(whole)[:, 4:][valid], atol=2e-6)
    assert np.abs(np.asarray(layer(states[:, 4:], mask[:, 4:], None)) - behind)[valid].max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "deberta-v3"])
def test_a_masked_prefix_has_no_influence_and_a_misshaped_one_is_named(name):
    config, params, ids, mask = tiny(name)
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.normal(size=(3, 4, 3, 8)), jnp.float32).at[1].set(jnp.nan) for _ in range(2)]
    hidden = Prefix(*arrays, jnp.zeros((3, 4), bool))

    shown = Prefix(*(array.at[1].set(0) for array in arrays))

    def run(*prefixes):
        apply = functools.partial(text_encoder(config).apply, {"params": params}, ids, mask, train=False)
        return apply(prefixes=prefixes or None)[0]

    plain, masked, seen = map(np.asarray, jax.jit(lambda: (run(), run(hidden, hidden), run(None, shown)))())
    np.testing.assert_allclose(masked[mask], plain[mask], atol=1e-6)
    assert np.isfinite(seen).all() and np.abs(seen - plain)[mask].max() > 1e-3
    with pytest.raises(ValueError, match="1 prefixes for 2 layers"):
        run(hidden)
    with pytest.raises(ValueError, match=r"prefix keys \(3, 4, 3, 7\).*\[3, P, 3, 8\] twice"):
        run(Prefix(arrays[0][..., :7], arrays[1]), None)


@pytest.mark.parametrize("name", ["roberta", "deberta-v2, convolution"])
def test_what_stands_at_padding_has_no_influence(name):
    config, params, ids, mask = tiny(name)
    run = jax.jit(lambda ids: text_encoder(config).apply({"params": params}, ids, mask, train=False)[0])
    np.testing.assert_array_equal(run(ids)[mask], run(np.where(mask, ids, 9))[mask])
    assert np.isfinite(run(np.full_like(ids, 5))).all()


def test_every_distance_has_the_bucket_that_torch_gives_it():
    for buckets, largest in ((256, 512), (32, 128), (48, 600), (8, 40)):
        config = DebertaConfig(9, 8, 1, 2, 8, largest, relative_attention=True, position_buckets=buckets)
        distances = np.arange(-largest + 1, largest)
        theirs = make_log_bucket_position(torch.tensor(distances), buckets, largest).long().numpy()
        np.testing.assert_array_equal(distance_rows(distances, config), theirs + buckets)


def test_embeddings_or_ids_and_shapes_are_checked():
    config, params, ids, mask = tiny("electra")
    apply = functools.partial(text_encoder(config).apply, {"params": params}, train=False)
    with pytest.raises(ValueError, match="either input_ids or word_embeddings"):
        apply(ids, mask, word_embeddings=jnp.ones((3, 13, 12)))
    with pytest.raises(ValueError, match="either input_ids or word_embeddings"):
        apply(None, mask)
    with pytest.raises(ValueError, match=r"word_embeddings must be \[B,T,12\], got shape \(3, 13, 24\)"):
        apply(None, mask, word_embeddings=jnp.ones((3, 13, 24)))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 13\), but word_embeddings has \(3, 12, 12\)"):
        apply(None, mask, word_embeddings=jnp.ones((3, 12, 12)))
    config, params, ids, mask = tiny("distilbert")
    with pytest.raises(ValueError, match="this DistilBERT has no token types"):
        text_encoder(config).apply({"params": params}, ids, mask, train=False, token_type_ids=ids)
    config, params, *_ = tiny("roberta")
    with pytest.raises(ValueError, match="39 word pieces exceed this encoder's 38 positions"):
        text_encoder(config).apply({"params": params}, jnp.ones((1, 39), int), jnp.ones((1, 39)), train=False)


# --- configs ---------------------------------------------------------------------------------------------------------

_V3 = {
    "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 256, "share_att_key": True,
    "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0, "vocab_size": 128100,
}  # fmt: skip
_BASE = {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 4096}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
# The config.json of published models, as far as it gives sizes; two layers are as good as 24, and faster.
PUBLISHED = {
    "bert-large": ("Bert", {**_LARGE, "num_hidden_layers": 24}),
    "roberta-base": ("Roberta", {**_ROBERTA, **_BASE}),
    "bertweet-large": ("Roberta", {**_ROBERTA, **_LARGE}),
    "bertweet-base": ("Roberta", {**_ROBERTA, **_BASE, "vocab_size": 64001, "max_position_embeddings": 130}),
    "xlm-roberta-large": ("XLMRoberta", {**_ROBERTA, **_LARGE, "vocab_size": 250002}),
    "electra-small": (
        "Electra",
        {**_BASE, "embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    "electra-large": ("Electra", {**_LARGE, "embedding_size": 1024}),
    "distilbert-base": ("DistilBert", {}),
    "deberta-v3-base": ("DebertaV2", {**_V3, **_BASE}),
    "deberta-v3-large": ("DebertaV2", {**_V3, **_LARGE}),
    "deberta-v2-xlarge": (
        "DebertaV2",
        {
            **_V3, **_LARGE, "hidden_size": 1536, "num_attention_heads": 24, "intermediate_size": 6144,
            "attention_head_size": 64, "conv_kernel_size": 3, "conv_act": "gelu",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_every_name_and_shape_of_torch(name):
    family, sizes = PUBLISHED[name]
    theirs = getattr(transformers, f"{family}Config")(**sizes)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}Model")(theirs)
    config = text_config(theirs.to_dict())
    expected = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith("pooler")}
    shapes = convert.text_shapes(config)
    table = CONVERTED[type(config)].table(config)
    assert {entry.theirs: tables.source_shape(shapes[entry.ours], entry.axes) for entry in table} == expected
    assert len(table) == len(shapes)
    assert config.max_length == (128 if name == "bertweet-base" else 512)
    # What is written is read back, here and by transformers.
    assert text_config(config.to_dict()) == config
    again = type(theirs)(**config.to_dict())
    assert text_config(again.to_dict()) == config


def test_an_unknown_type_is_told_those_that_there_are():
    with pytest.raises(
        ValueError, match="model_type 'gpt2' is no text encoder built here; supported are bert, roberta, x"
    ):
        text_config({"model_type": "gpt2"})
    with pytest.raises(ValueError, match=r"'deberta' is no text encoder.*deberta-v2"):
        text_config({"model_type": "deberta"})
    for kind in TEXT_CONFIGS:
        with pytest.raises(ValueError, match="missing vocab_size, "):
            text_config({"model_type": kind})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("roberta", {"is_decoder": True}, "RoBERTa config: is_decoder True"),
        ("roberta", {"max_position_embeddings": 2}, "leaves no position after pad_token_id 1"),
        ("electra", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("electra", {"embedding_size": 0}, "embedding_size must be a positive integer, got 0"),
        ("distilbert", {"n_heads": 5}, "not divisible by num_attention_heads 5"),
        ("deberta-v3", {"relative_attention": False}, "relative_attention False is not supported, only True is"),
        ("deberta-v3", {"pos_att_type": "p2p"}, r"pos_att_type \('p2p',\) is not supported, only c2p and p2c"),
        ("deberta-v3", {"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd 'batch_norm'"),
        ("deberta-v3", {"attention_head_size": 4}, "attention_head_size 4"),
        ("deberta-v3", {"conv_kernel_size": 4}, "conv_kernel_size 4 is not supported, only an odd number"),
        ("deberta-v3", {"type_vocab_size": -1}, "type_vocab_size must be an integer of at least 0, got -1"),
    ],
)
def test_settings_that_are_not_built_are_named(name, changes, message):
    family, settings = encoder_parity.TEXT_MODELS[name]
    mapping = {**settings, "model_type": getattr(transformers, f"{family}Config").model_type}
    with pytest.raises(ValueError, match=message):
        text_config({**mapping, **changes})


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefix", "unused"),
    [
        ("roberta", "roberta.", ["lm_head.dense.weight", "lm_head.bias", "roberta.embeddings.position_ids"]),
        ("electra", "electra.", ["discriminator_predictions.dense.weight"]),
        ("distilbert", "distilbert.", ["vocab_transform.weight", "vocab_projector.bias"]),
        (
            "deberta-v3",
            "deberta.",
            [
                "mask_predictions.classifier.weight",
                "lm_predictions.lm_head.bias",
                "deberta.embeddings.position_embeddings.weight",
            ],
        ),
    ],
)
def test_heads_and_prefixes_are_known_and_all_else_is_listed(name, prefix, unused):
    model = encoder_parity.torch_text_model(name)
    config = text_config(model.config.to_dict())
    state = {prefix + n: array for n, array in encoder_parity.state_dict_of(model).items()}
    state |= {n: np.zeros(3, np.float32) for n in unused}
    params = flax.traverse_util.flatten_dict(convert.text_params(state, config), sep="/")
    expected = flax.traverse_util.flatten_dict(tiny(name)[1], sep="/")
    assert params.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(params[path], array)
    layer = next(n for n in state if "layer.1" in n and n.endswith("weight"))
    del state[layer]
    state["classifier.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match="2 of its names do not fit") as error:
        convert.text_params(state, config)
    assert f"missing: {layer.removeprefix(prefix)}" in str(error.value)
    assert "extra: classifier.weight (2, 2)" in str(error.value)


def test_a_vocabulary_grows_and_old_rows_stay():
    config, params, ids, mask = tiny("electra")
    grown, larger = grow_vocabulary(params, config, 41, seed=3)
    assert larger == dataclasses.replace(config, vocab_size=41)
    table, old = grown["embeddings"]["word"]["embedding"], params["embeddings"]["word"]["embedding"]
    np.testing.assert_array_equal(table[:37], old)
    assert table.shape == (41, 12) and 0.01 < table[37:].std() < 0.03
    np.testing.assert_array_equal(
        grow_vocabulary(params, config, 41, seed=3)[0]["embeddings"]["word"]["embedding"], table
    )
    assert (grow_vocabulary(params, config, 41, seed=4)[0]["embeddings"]["word"]["embedding"] != table).any()
    run = jax.jit(functools.partial(text_encoder(larger).apply, train=False))
    states = run({"params": grown}, ids, mask)[0]
    before = jax.jit(functools.partial(text_encoder(config).apply, train=False))({"params": params}, ids, mask)[0]
    np.testing.assert_array_equal(states, before)
    assert np.isfinite(run({"params": grown}, np.full_like(ids, 40), mask)[0]).all()
    for rows in (37, 20):
        assert grow_vocabulary(params, config, rows, seed=3)[1] is config
