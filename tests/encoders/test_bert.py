"""The BERT encoder beside transformers' torch BertModel: states, gradients, masks, dropout, sharding."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tmrjax.convert import bert_params
from tmrjax.encoders.text.bert import BertConfig, BertEncoder

TINY = BertConfig(
    vocab_size=37,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
)
SHALLOW = dataclasses.replace(TINY, num_hidden_layers=1)
BASE = BertConfig(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
)


def torch_bert(config: BertConfig, seed: int = 0, implementation: str = "eager") -> transformers.BertModel:
    """A torch BERT with weights far enough from their initialisation that every term matters."""
    torch.manual_seed(seed)
    model = transformers.BertModel(
        transformers.BertConfig(**config.to_dict(), attn_implementation=implementation), add_pooling_layer=False
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif config.hidden_size < 100:
                parameter.mul_(5.0)
    return model.eval()


def numpy_state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def inputs(config: BertConfig, batch: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, a ragged mask (the first row full, the last of one piece) and token types."""
    random = np.random.default_rng(seed)
    # Not the padding's id 0, for whose row torch's Embedding(padding_idx=0) drops the gradient wherever it stands.
    ids = random.integers(1, config.vocab_size, (batch, length))
    lengths = random.integers(1, length + 1, batch)
    lengths[0], lengths[-1] = length, 1
    mask = np.arange(length) < lengths[:, None]
    return ids, mask, random.integers(0, config.type_vocab_size, (batch, length))


def compare_with_torch(config: BertConfig, batch: int, length: int, seed: int, tolerance: float) -> None:
    model = torch_bert(config, seed)
    ids, mask, types = inputs(config, batch, length, seed)
    weights = np.random.default_rng(seed).normal(size=(batch, length, config.hidden_size)).astype(np.float32)
    weights *= mask[..., None]

    expected = model(
        torch.tensor(ids), attention_mask=torch.tensor(mask).long(), token_type_ids=torch.tensor(types)
    ).last_hidden_state
    (expected * torch.tensor(weights)).sum().backward()
    expected_gradient = bert_params({name: p.grad.numpy() for name, p in model.named_parameters()}, config)
    params = bert_params(numpy_state(model), config)

    @jax.jit
    def loss(params):
        states, _ = BertEncoder(config).apply({"params": params}, ids, mask, train=False, token_type_ids=types)
        return jnp.sum(states * weights), states

    gradient, states = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(states[mask], expected.detach().numpy()[mask], atol=tolerance, rtol=0)
    flat, expected_flat = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (gradient, expected_gradient))
    assert flat.keys() == expected_flat.keys()
    for name, value in expected_flat.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(flat[name] / scale, value / scale, atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "seed"),
    [
        ({}, 0),
        ({"hidden_act": "gelu_new", "num_attention_heads": 8}, 1),
        ({"hidden_act": "relu", "hidden_size": 10, "num_attention_heads": 1, "type_vocab_size": 5}, 2),
        ({"hidden_act": "silu", "layer_norm_eps": 1e-2, "intermediate_size": 7, "vocab_size": 5}, 3),
    ],
)
def test_states_and_gradients_equal_torch(changes, seed):
    config = dataclasses.replace(SHALLOW if changes else TINY, **changes)
    compare_with_torch(config, batch=3, length=9, seed=seed, tolerance=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [12])
def test_states_and_gradients_equal_torch_at_the_size_of_bert_base(layers):
    compare_with_torch(dataclasses.replace(BASE, num_hidden_layers=layers), batch=2, length=24, seed=0, tolerance=1e-4)


@pytest.mark.slow
def test_states_and_gradients_equal_torch_at_the_width_of_bert_large():
    large = dataclasses.replace(
        BASE, hidden_size=1024, num_attention_heads=16, intermediate_size=4096, num_hidden_layers=4
    )
    compare_with_torch(large, batch=2, length=16, seed=1, tolerance=1e-4)


@pytest.fixture(scope="module")
def tiny():
    """A jitted ``run(params, ids, mask, key=None) -> states``, training where a key is given, and its parameters."""
    params = bert_params(numpy_state(torch_bert(TINY)), TINY)

    @jax.jit
    def run(params, ids, mask, key=None):
        rngs = {} if key is None else {"dropout": key}
        return BertEncoder(TINY).apply({"params": params}, ids, mask, train=key is not None, rngs=rngs)[0]

    return run, params


def test_intermediates_are_torchs_hidden_states(tiny):
    _, params = tiny
    ids, mask, _ = inputs(TINY, 2, 7)
    with torch.no_grad():
        expected = torch_bert(TINY)(
            torch.tensor(ids), attention_mask=torch.tensor(mask).long(), output_hidden_states=True
        ).hidden_states
    _, intermediates = BertEncoder(TINY).apply({"params": params}, ids, mask, train=False)
    assert list(intermediates) == ["embeddings", "layer_0", "layer_1"]
    for ours, theirs in zip(intermediates.values(), expected, strict=True):
        np.testing.assert_allclose(ours[mask], theirs.numpy()[mask], atol=1e-5)


def test_masked_pieces_have_no_influence(tiny):
    run, params = tiny
    ids, mask, _ = inputs(TINY, 4, 9)
    other = np.where(mask, ids, (ids + 11) % TINY.vocab_size)
    states, changed = run(params, ids, mask), run(params, other, mask)
    assert (states[~mask] != changed[~mask]).any()
    np.testing.assert_array_equal(states[mask], changed[mask])


def test_masked_pieces_receive_no_gradient(tiny):
    run, params = tiny
    ids = np.array([[3, 5, 7, 9, 9]])
    mask = np.array([[True, True, True, False, False]])

    def loss(params):
        return jnp.sum(jnp.sin(run(params, ids, mask)) * mask[..., None])

    gradient = jax.jit(jax.grad(loss))(params)["embeddings"]
    np.testing.assert_array_equal(gradient["word"]["embedding"][9], 0)
    np.testing.assert_array_equal(gradient["position"]["embedding"][3:], 0)
    assert np.abs(gradient["word"]["embedding"][7]).max() > 0


def test_padding_to_a_longer_bucket_changes_nothing(tiny):
    run, params = tiny
    ids, mask, _ = inputs(TINY, 3, 9)
    longer = [np.pad(array, ((0, 0), (0, 5))) for array in (ids, mask)]
    np.testing.assert_allclose(run(params, *longer)[:, :9][mask], run(params, ids, mask)[mask], atol=1e-5)


@pytest.mark.parametrize(("dtype", "train"), [(jnp.float32, False), (jnp.bfloat16, True)])
def test_a_row_without_pieces_is_finite_with_finite_gradients(tiny, dtype, train):
    _, params = tiny
    ids, mask, _ = inputs(TINY, 3, 5)
    mask[1] = False

    def loss(params):
        states, _ = BertEncoder(SHALLOW, dtype).apply(
            {"params": params}, ids, mask, train=train, rngs={"dropout": jax.random.key(0)}
        )
        return jnp.sum(jnp.sin(states.astype(jnp.float32)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_integer_float_and_boolean_masks_are_one(tiny):
    run, params = tiny
    ids, mask, _ = inputs(TINY, 2, 5)
    for kind in (int, np.float32):
        np.testing.assert_array_equal(run(params, ids, mask.astype(kind)), run(params, ids, mask))


def test_bfloat16_keeps_float32_parameters_and_comes_close(tiny):
    run, params = tiny
    ids, mask, _ = inputs(TINY, 3, 9)
    half = BertEncoder(TINY, jnp.bfloat16)
    made = jax.eval_shape(lambda: half.init(jax.random.key(0), ids, mask, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    states, _ = jax.jit(half.apply, static_argnames="train")({"params": params}, ids, mask, train=False)
    exact = run(params, ids, mask)
    assert states.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(states, np.float32) - exact)[mask]
    assert 0 < difference.mean() < 0.03


def test_dropout_needs_train_and_follows_its_key(tiny):
    run, params = tiny
    ids, mask, _ = inputs(TINY, 2, 5)
    first, again, second = (run(params, ids, mask, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.1
    still = dataclasses.replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    without, _ = BertEncoder(still).apply({"params": params}, ids, mask, train=True)
    np.testing.assert_allclose(without, run(params, ids, mask), atol=1e-5)


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_of_the_config_is_applied_with_the_right_expectation(rate):
    """At a small rate the layer norms are nearly linear, and the mean over keys is the state without dropout."""
    config = dataclasses.replace(
        TINY, num_hidden_layers=1, **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, rate: 0.05}
    )
    params = bert_params(numpy_state(torch_bert(config)), config)
    ids, mask, _ = inputs(config, 2, 5)

    @jax.jit
    def run(key):
        return BertEncoder(config).apply({"params": params}, ids, mask, train=True, rngs={"dropout": key})[0]

    states = jax.vmap(run)(jax.random.split(jax.random.key(0), 1000))
    still, _ = BertEncoder(config).apply({"params": params}, ids, mask, train=False)
    assert states.std(axis=0).max() > 0.05
    np.testing.assert_allclose(states.mean(axis=0), still, atol=0.15)


def test_training_is_the_same_on_one_and_on_eight_devices(tiny):
    _, params = tiny
    ids, mask, _ = inputs(TINY, 8, 6)

    @jax.jit
    def loss_and_gradient(params, ids, mask, key):
        def loss(params):
            states, _ = BertEncoder(SHALLOW).apply({"params": params}, ids, mask, train=True, rngs={"dropout": key})
            return jnp.sum(jnp.sin(states) * mask[..., None]) / mask.sum(), states

        (value, states), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, states, gradient

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.random.key(3)
    one = loss_and_gradient(params, ids, mask, key)
    eight = loss_and_gradient(
        jax.device_put(params, everywhere), *jax.device_put((ids, mask), rows), jax.device_put(key, everywhere)
    )
    assert len(eight[1].sharding.device_set) == 8
    for ours, theirs in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_wrong_shapes_are_named(tiny):
    _, params = tiny
    ids = np.zeros((2, 5), int)

    def apply(ids, mask, **keywords):
        return BertEncoder(TINY).apply({"params": params}, ids, mask, train=False, **keywords)

    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 4\), but input_ids has \(2, 5\)"):
        apply(ids, np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"token_type_ids has shape \(5,\), but input_ids has \(2, 5\)"):
        apply(ids, np.ones((2, 5)), token_type_ids=np.zeros(5, int))
    with pytest.raises(ValueError, match=r"\[B,T\], got shape \(5,\)"):
        apply(ids[0], np.ones(5))
    with pytest.raises(ValueError, match="17 word pieces exceed this encoder's 16"):
        apply(np.zeros((1, 17), int), np.ones((1, 17)))


def test_config_reads_hugging_faces_and_returns_to_it():
    hugging_face = transformers.BertConfig(**TINY.to_dict(), id2label={0: "a"}, classifier_dropout=0.3)
    assert BertConfig.from_dict(hugging_face.to_dict()) == TINY
    assert BertConfig.from_dict(TINY.to_dict()) == TINY
    assert hash(TINY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported; known are gelu"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not divisible by num_attention_heads 5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, got 'many'"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob must be a number in \[0, 1\), got 1.5"),
    ],
)
def test_config_names_what_it_does_not_support(changes, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_dict({**TINY.to_dict(), **changes})


def test_config_names_everything_missing():
    mapping = TINY.to_dict()
    del mapping["vocab_size"], mapping["hidden_size"]
    with pytest.raises(ValueError, match="missing vocab_size, hidden_size"):
        BertConfig.from_dict(mapping)
