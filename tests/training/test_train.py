"""The step: one device and eight, parts and whole, padding, groups, schedule, decoding under IOB2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tmrjax import crf
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.heads.crf_head import CRFHead, constrain
from tmrjax.models import TMRForNER
from tmrjax.text.tags import TagSet, spans_from_tags
from tmrjax.training.optimizer import OptimizerSettings, is_kernel, make_optimizer, parameter_groups, schedule
from tmrjax.training.sharding import check_batch_size, make_mesh, owned, replicate, shard_batch
from tmrjax.training.step import create_state, make_loss, make_predict_step, make_train_step

TAGS = TagSet(("PER", "LOC")).tags
BERT = BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
RESNET = ResNetConfig(embedding_size=4, hidden_sizes=(6,), depths=(1,), layer_type="basic")
B, T, W = 16, 6, 4
SETTINGS = OptimizerSettings(steps=10, rates={"encoder": 1e-2, "fusion": 3e-2, "crf": 3e-2})
HEAD = CRFHead(TAGS)


def make_batch(rows=B, seed=0, pixels=False):
    generator = np.random.default_rng(seed)
    batch = {
        "input_ids": generator.integers(0, 30, (rows, T)).astype(np.int32),
        "attention_mask": np.arange(T) < generator.integers(3, T + 1, (rows, 1)),
        "word_starts": np.tile(np.arange(1, W + 1, dtype=np.int32), (rows, 1)),
        "tags": generator.integers(0, 5, (rows, W)).astype(np.int32),
        "phrase_ids": generator.integers(0, 30, (rows, 3)).astype(np.int32),
        "phrase_mask": np.ones((rows, 3), bool),
        "row_mask": np.ones(rows, bool),
    }
    batch["word_mask"] = batch["attention_mask"][:, 2:]
    for prefix in ("", "generated_"):
        # Maps instead of pixels: the ResNet is tested elsewhere and would double each compilation here.
        image, regions = ("image", "regions") if pixels else ("image_features", "region_features")
        shape = (8, 8, 3) if pixels else (2, 6)
        batch[f"{prefix}{image}"] = generator.normal(size=(rows, *shape)).astype(np.float32)
        batch[f"{prefix}{regions}"] = generator.normal(size=(rows, 3, *shape)).astype(np.float32)
        batch[f"{prefix}image_mask"] = generator.random(rows) < 0.8
        batch[f"{prefix}region_mask"] = generator.random((rows, 3)) < 0.6
        batch[f"{prefix}scores"] = generator.dirichlet(np.ones(3), rows).astype(np.float32)
    return batch


def make_model(**options):
    return TMRForNER(**{"bert": BERT, "num_tags": 5, "num_heads": 2, "dropout": 0.0, **options})


def groups(model, params):
    return parameter_groups(params, model.method().rates, model.method().frozen)


@functools.cache
def initial(model):
    batch = make_batch(1, pixels=model.resnet is not None)
    return jax.tree.map(np.asarray, jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0)))


def run(model, batches, *, devices=1, accumulate=1, settings=None, first=None):
    """Plain gradient descent unless settings are given: Adam would blow rounding up where a gradient is zero.

    ``first``: a list that gets the state after the first step.
    """
    mesh = make_mesh(devices)
    variables = initial(model)
    optimizer = optax.sgd(0.1) if settings is None else make_optimizer(settings, groups(model, variables["params"]))
    step = make_train_step(make_loss(model.method(), HEAD), optimizer, mesh, accumulate=accumulate)
    state = replicate(create_state(variables, optimizer, seed=0), mesh)
    losses = []
    for batch in batches:
        placed = shard_batch(batch, mesh)
        with jax.transfer_guard("disallow"):  # a step moves nothing between host and devices
            state, metrics = step(state, placed)
        losses.append(float(metrics["loss"]))
        if first is not None and len(losses) == 1:
            first.append(jax.tree.map(np.asarray, state))
    return jax.tree.map(np.asarray, state), losses


def assert_close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first.variables, second.variables)


@pytest.fixture(scope="module")
def one_device():
    return run(make_model(), [make_batch(seed=s) for s in range(3)])


def test_eight_devices_give_the_parameters_of_one(one_device):
    state, losses = run(make_model(), [make_batch(seed=s) for s in range(3)], devices=8)
    np.testing.assert_allclose(losses, one_device[1], rtol=1e-5)
    assert_close(state, one_device[0], atol=1e-6)


def test_dropout_is_the_same_on_eight_devices(one_device):
    model = make_model(dropout=0.5)
    (_, first), (_, second) = (run(model, [make_batch()], devices=devices) for devices in (1, 8))
    np.testing.assert_allclose(first, second, rtol=1e-5)
    assert abs(first[0] - one_device[1][0]) > 1e-3  # dropout was on


def test_dropout_reaches_both_places_of_the_model_and_no_third_one():
    """What Eq. 7 adds to the text, seen in Ḡ; the last layer's input, seen in emissions without pictures."""
    model, batch = make_model(dropout=0.5), make_batch()
    variables = initial(model)
    for prefix in ("", "generated_"):
        batch[f"{prefix}image_mask"][:2], batch[f"{prefix}region_mask"][:2] = False, False
        batch[f"{prefix}image_mask"][2:] = True
    keys = [jax.random.key(seed) for seed in range(2)]

    @functools.partial(jax.jit, static_argnums=0)
    def run_model(train, key):
        emissions, states = model.apply(variables, batch, train=train, rngs={"dropout": key})
        return emissions, states["fused"], states["text_states"]

    (emissions, fused, text), (other_emissions, other_fused, other_text) = (run_model(True, key) for key in keys)
    plain_emissions, plain_fused, plain_text = run_model(False, keys[0])
    np.testing.assert_array_equal(text, other_text)  # BERT's own dropout is 0 here
    np.testing.assert_allclose(text, plain_text, atol=1e-6)
    there = np.asarray(batch["attention_mask"][2:])
    for first, second in ((fused, other_fused), (fused, plain_fused)):
        assert (np.abs(first - second)[2:].max(-1)[there] > 1e-4).all()
        np.testing.assert_allclose(first[:2], second[:2], atol=1e-6)
    assert (np.abs(emissions - other_emissions)[:2].max(-1) > 1e-4).all()
    assert (np.abs(emissions - plain_emissions)[:2].max(-1) > 1e-4).all()


@pytest.mark.parametrize(("accumulate", "devices"), [pytest.param(4, 1, marks=pytest.mark.slow), (2, 8)])
def test_accumulated_parts_give_the_whole_batchs_update(one_device, accumulate, devices):
    batches = [make_batch(seed=s) for s in range(3)]
    state, losses = run(make_model(), batches, accumulate=accumulate, devices=devices)
    np.testing.assert_allclose(losses, one_device[1], rtol=1e-5)
    assert_close(state, one_device[0], atol=1e-6)


def test_rows_of_padding_change_nothing():
    batch = make_batch(8)
    padded = {name: np.concatenate([rows, np.zeros_like(rows)]) for name, rows in batch.items()}
    (first, loss), (second, padded_loss) = run(make_model(), [batch]), run(make_model(), [padded])
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)
    assert_close(first, second, atol=1e-6)


def test_the_loss_is_the_mean_negative_log_likelihood():
    model, batch = make_model(), make_batch()
    (emissions, states) = jax.jit(lambda v: model.apply(v, batch, train=False))(initial(model))
    expected = -crf.log_likelihood(emissions, batch["tags"], batch["word_mask"], states["crf"]).mean()
    assert run(model, [batch])[1][0] == pytest.approx(float(expected), rel=1e-5)


def test_groups_learn_at_their_own_rates_and_frozen_ones_not_at_all():
    model = make_model(freeze_pictures=True, resnet=RESNET)
    settings = OptimizerSettings(steps=10, rates={"encoder": 0.0, "fusion": 1e-2, "crf": 1e-2}, warmup=0.0)
    before, (after, _) = initial(model)["params"], run(model, [make_batch(pixels=True)] * 2, settings=settings)
    moved = {
        name: max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (tree, after.params[name])), strict=True))
        for name, tree in before.items()
    }
    assert moved["bert"] == moved["picture_encoder"] == 0
    assert min(moved[name] for name in ("crf", "emission", "grain_fusion", "text_fusion", "visual_projection")) > 0
    sizes = sum(leaf.size for leaf in jax.tree.leaves(before["picture_encoder"]))
    trained = make_model(resnet=RESNET)
    full, frozen = (make_optimizer(SETTINGS, groups(one, before)).init(before) for one in (trained, model))
    count = [sum(leaf.size for leaf in jax.tree.leaves(state)) for state in (full, frozen)]
    assert count[0] - count[1] == 2 * sizes  # no moments for what is frozen


def test_only_kernels_decay():
    marks = is_kernel(initial(make_model(resnet=RESNET))["params"])
    assert marks["bert"]["layer_0"]["attention"]["query"]["kernel"] and marks["grain_fusion"]["fine_weight"]
    assert marks["picture_encoder"]["resnet"]["stem"]["kernel"] and marks["emission"]["kernel"]
    assert not marks["bert"]["embeddings"]["word"]["embedding"] and not marks["crf"]["transitions"]
    assert not marks["bert"]["layer_0"]["attention"]["query"]["bias"] and not marks["text_fusion"]["norm"]["scale"]


def test_one_update_is_clipped_adamw_by_hand():
    """Against the textbook: g clipped, m and v from zero, bias-corrected, decay on kernels, rate of the group."""
    model, batch = make_model(), make_batch()
    settings = OptimizerSettings(
        4, {"encoder": 1e-2, "fusion": 3e-2, "crf": 3e-2}, weight_decay=0.1, warmup=0.25, clip=0.01
    )
    params = initial(model)["params"]
    kept: list = []
    second, _ = run(model, [batch] * 2, settings=settings, first=kept)
    [first] = kept
    # The first step's rate is 0, so the second sees the same gradient again: m / (1 - b1^2) = g, v likewise g².
    jax.tree.map(np.testing.assert_array_equal, first.params, params)

    def loss(p):
        emissions, states = model.apply({"params": p, "batch_stats": {}}, batch, train=True)
        return -crf.log_likelihood(emissions, batch["tags"], batch["word_mask"], states["crf"]).mean()

    gradient = jax.jit(jax.grad(loss))(params)
    scale = min(1.0, 0.01 / float(optax.tree.norm(gradient)))
    for name, rate in (("bert", 1e-2), ("text_fusion", 3e-2)):
        trees = gradient[name], params[name], second.params[name], is_kernel(params)[name]
        for g, old, new, decayed in zip(*map(jax.tree.leaves, trees), strict=True):
            clipped = np.asarray(g, np.float64) * scale
            update = clipped / (np.abs(clipped) + 1e-8) + (0.1 * old if decayed else 0)
            # Where |g| is about Adam's epsilon, float32 decides; elsewhere the update is ± the rate.
            clear = np.abs(clipped) > 1e-6
            np.testing.assert_allclose(new[clear], (old - rate * update)[clear], atol=rate * 2e-3)


def test_schedule_rises_then_falls():
    rate = schedule(2.0, 100, 0.1)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 55, 100)], [0, 1, 2, 1, 0], atol=1e-6)


def test_decoding_never_begins_an_entity_with_inside():
    generator = np.random.default_rng(0)
    params = crf.CRFParams(*(jnp.asarray(generator.normal(0, 3, s), jnp.float32) for s in ((5, 5), (5,), (5,))))
    emissions, mask = jnp.asarray(generator.normal(0, 3, (64, 9, 5)), jnp.float32), jnp.ones((64, 9), bool)
    for params_, broken_allowed in ((params, True), (constrain(params, TAGS), False)):
        paths = np.asarray(crf.viterbi_decode(emissions, mask, params_)[0])
        tags = [[TAGS[i] for i in path] for path in paths]
        broken = sum(spans_from_tags(t, strict=True) != spans_from_tags(t, strict=False) for t in tags)
        assert (broken > 0) == broken_allowed
    assert constrain(params, None) is params


def test_predictions_do_not_depend_on_the_number_of_devices():
    model, batch = make_model(), make_batch()
    results = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        predict = make_predict_step(model.method(), HEAD, mesh)
        results.append(np.asarray(predict(replicate(initial(model), mesh), shard_batch(batch, mesh))["tags"]))
    np.testing.assert_array_equal(*results)


def test_meshes_and_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="9 devices were asked for, but this machine has 8"):
        make_mesh(9)
    with pytest.raises(ValueError, match="a batch of 12 does not divide into 8 devices times 1"):
        check_batch_size(12, make_mesh(8))


def test_training_in_bfloat16_learns_with_float32_parameters():
    """The mode of a GPU: gradients finite, the loss falls, and nothing that is kept is bfloat16."""
    model, mesh, batch = make_model(dtype=jnp.bfloat16), make_mesh(1), make_batch()
    variables = initial(model)
    optimizer = make_optimizer(SETTINGS, groups(model, variables["params"]))
    step = make_train_step(make_loss(model.method(), HEAD), optimizer, mesh)
    state, values = replicate(create_state(variables, optimizer, seed=0), mesh), []
    for _ in range(8):
        state, found = step(state, shard_batch(batch, mesh))
        values.append((float(found["loss"]), float(found["gradient_norm"])))
    losses, norms = np.array(values).T
    assert np.isfinite(losses).all() and np.isfinite(norms).all() and (norms > 0).all()
    assert losses[-1] < 0.8 * losses[0]
    kept = jax.tree.leaves((state.params, state.opt_state))
    assert {str(leaf.dtype) for leaf in kept} <= {"float32", "int32"}
    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    outputs = jax.eval_shape(apply, {"params": state.params}, batch)[1]
    assert any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(outputs))  # the mode was on


@pytest.mark.parametrize("devices", [1, 8])
def test_owned_arrays_are_written_over(devices):
    """The result of a donating program lies where its argument lay, and the host array is as it was."""
    mesh, memory = make_mesh(devices), np.zeros((1 << 16) + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4  # at such an address XLA takes an array as it lies
    host = memory[start : start + (1 << 16)]

    def addresses(array):
        return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]

    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = owned(replicate({"a": host}, mesh))["a"]
    before = addresses(array)
    after = add(array)
    assert addresses(after) == before and array.is_deleted()
    np.testing.assert_array_equal(after, 1)
    assert not host.any()
