"""Absent pictures are not encoded, and nothing else changes: places by enumeration, steps with and without an index."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.test_train import RESNET, B, make_batch
from tmrjax.inputs.base import Example
from tmrjax.inputs.packing import INDEX, Packing
from tmrjax.inputs.pictures import Pictures
from tmrjax.methods.parts.pictures import PictureReader, _packed, _unpacked
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Generated, Record
from tmrjax.training.sharding import make_mesh, replicate, replicated, shard_batch, split_rows
from tmrjax.training.step import create_state, make_train_step

BOXES = ((0.0, 0.0, 0.5, 0.5), (0.1, 0.1, 0.6, 0.9), (0.3, 0.2, 0.9, 1.0), (0.0, 0.0, 1.0, 1.0))
BOTH = Pictures("tokens", "tokens", generated=True)
# (own picture, its regions, generated picture, its regions) of 16 posts; the last row is padding.
KINDS = [(1, 2, 0, 0), (0, 0, 0, 0), (1, 0, 1, 1), (1, 1, 0, 0)] * 4


def record(kind):
    own, regions, generated, others = kind
    return Record(
        "1", ("a",), image="a.png" if own else None, regions=BOXES[:regions],
        generated=Generated("g.png", BOXES[:others]) if generated else None,
    )  # fmt: skip


EXAMPLES = [*(Example(record(kind), None, {}) for kind in KINDS[:-1]), None]


def masks():
    there = np.zeros((B, 8), bool)
    for row, (own, regions, generated, others) in enumerate(KINDS[:-1]):
        there[row] = [own, *(n < regions for n in range(3)), generated, *(n < others for n in range(3))]
    return there


def packing(devices=1, accumulate=1, pictures=BOTH, **settings):
    return Packing(pictures, PictureSettings(**settings), devices, accumulate)


def with_masks(batch):
    there = masks()
    batch |= {"image_mask": there[:, 0], "region_mask": there[:, 1:4], "generated_image_mask": there[:, 4]}
    return batch | {"generated_region_mask": there[:, 5:]}


def packed(batch, devices=1, accumulate=1):
    index = packing(devices, accumulate).index(EXAMPLES, 0, 1)
    return batch | {INDEX: index}


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (2, 1), (1, 2), (4, 2), (8, 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_index_has_every_picture_that_is_there_once(devices, accumulate, processes):
    if devices < processes:
        pytest.skip("a process has a device at least")
    parts = [packing(devices, accumulate).index(EXAMPLES, number, processes) for number in range(processes)]
    index, there = np.concatenate(parts), masks()
    room = B // devices // accumulate * 8
    assert index.dtype == np.int32 and index.shape[0] == devices * accumulate and index.shape[1] < room
    for device in range(devices):
        for part in range(accumulate):
            # Rows as a step has them: of the device's the rows that the part takes (tmrjax/training/step.py).
            rows = [r for r in range(B) if r * devices // B == device and r % accumulate == part]
            expected = [p * 8 + slot for p, r in enumerate(rows) for slot in range(8) if there[r, slot]]
            found = index[device * accumulate + part]
            assert found[: len(expected)].tolist() == expected
            assert (found[len(expected) :] == room).all()


def test_sizes_are_few_and_a_full_batch_has_no_index():
    full = Example(record((1, 4, 1, 4)), None, {})
    nothing = Example(record((0, 0, 0, 0)), None, {})

    def size(*examples, **options):
        index = packing(**options).index(examples, 0, 1)
        return None if index is None else index.shape[1]

    assert [size(*[full] * n, *[nothing] * (8 - n)) for n in range(9)] == [16, 16, 16, 32, 32, 48, 48, None, None]
    assert size(full, full, nothing, nothing, devices=2) is None  # the fullest group decides for all
    assert size(full, nothing, nothing, full, devices=2) == 8
    one = Example(record((1, 1, 1, 3)), None, {})
    assert size(one, one, generated_regions=False) == 8  # 2 + 1 of 8 rooms for each; 2 + 4 without
    assert size(one, one) == 12
    assert size(one, pictures=Pictures("tokens", None, generated=False)) is None
    assert size(nothing, one, pictures=Pictures("tokens", None, generated=False)) == 1
    assert pickle.loads(pickle.dumps(packing())) == packing()


@pytest.fixture(scope="module")
def batch():
    return with_masks(make_batch(pixels=True))


def reader_program(devices, batch_norm="frozen"):
    """The compiled picture reader in training, its variables: states, statistics, and the gradient of some sum."""
    mesh = make_mesh(devices)
    reader = PictureReader(RESNET, batch_norm=batch_norm)

    def total(params, statistics, batch):
        variables = {"params": params, "batch_stats": statistics}
        states, updated = reader.apply(variables, batch, BOTH, train=True, mutable=["batch_stats"])
        # Weights that differ from place to place: a sum over all of them would not notice an exchange.
        weights = {name: jnp.cos(jnp.arange(state.size)).reshape(state.shape) for name, state in states.items()}
        return sum((state * weights[name]).sum() for name, state in states.items()), (states, updated)

    everywhere = replicated(mesh)
    return jax.jit(jax.value_and_grad(total, has_aux=True), in_shardings=(everywhere, everywhere, split_rows(mesh)))


@pytest.fixture(scope="module")
def variables(batch):
    reader = PictureReader(RESNET)
    return jax.jit(lambda key: reader.init(key, batch, BOTH, train=False))(jax.random.key(0))


def test_states_gradients_and_statistics_are_the_same_on_eight_devices(batch, variables):
    """BatchNorm's statistics are over the batch; pictures that are not there are NaN."""
    absent, spoilt = ~masks(), packed(batch, 8)
    for start, prefix in ((0, ""), (4, "generated_")):
        image, region = absent[:, start], absent[:, start + 1 : start + 4]
        spoilt[f"{prefix}image"] = np.where(image[:, None, None, None], np.nan, batch[f"{prefix}image"])
        spoilt[f"{prefix}regions"] = np.where(region[..., None, None, None], np.nan, batch[f"{prefix}regions"])
    given = variables["params"], variables["batch_stats"]
    found = reader_program(8, "train")(*given, spoilt)
    expected = reader_program(1, "train")(*given, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), found, expected)
    assert np.abs(expected[0][1][0]["region"]).max() > 0.1


@pytest.mark.parametrize(("devices", "accumulate"), [(2, 2), (1, 4)])
def test_parts_of_a_batch_get_the_places_of_their_own_rows(devices, accumulate):
    """By the real step with a loss that is the sum over pictures of a number of each, times a parameter."""
    numbers = np.random.default_rng(0).normal(size=(B, 8)).astype(np.float32)

    def loss(params, statistics, batch, key):
        taken, filled = _packed(batch["numbers"].reshape(-1), batch[INDEX])
        back = _unpacked(jnp.exp(taken), batch["there"].reshape(-1), batch[INDEX])
        parts = jnp.where(batch["there"].reshape(-1), back, 0).sum(), jnp.where(filled, taken, 0).sum()
        return params["w"] @ jnp.stack(parts), (len(batch["numbers"]), statistics, {})

    mesh = make_mesh(devices)
    given = {"numbers": numbers, "there": masks(), INDEX: packing(devices, accumulate).index(EXAMPLES, 0, 1)}
    state = replicate(create_state({"params": {"w": np.zeros(2, np.float32)}}, optax.sgd(1.0), seed=0), mesh)
    state, _ = make_train_step(loss, optax.sgd(1.0), mesh, accumulate=accumulate)(state, shard_batch(given, mesh))
    expected = np.array([np.exp(numbers[masks()]).sum(), numbers[masks()].sum()]) / B
    np.testing.assert_allclose(-state.params["w"], expected, rtol=1e-5)


def first_convolution(lowered):
    return next(line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line)


def test_only_the_pictures_of_the_index_are_encoded_each_on_its_device(batch, variables):
    mesh, reader, split = make_mesh(8), PictureReader(RESNET), split_rows(make_mesh(8))
    program = jax.jit(
        lambda variables, batch: reader.apply(variables, batch, BOTH, train=False),
        in_shardings=(replicated(mesh), split), out_shardings=split,
    )  # fmt: skip
    lowered = program.lower(variables, packed(batch, 8))
    count = 8 * packed(batch, 8)[INDEX].shape[1]
    assert count == 8 * 8 < B * 8 and f"tensor<{count}x8x8x3x" in first_convolution(lowered)
    assert f"tensor<{B * 8}x8x8x3x" in first_convolution(program.lower(variables, batch))
    text = lowered.compile().as_text()
    assert not [kind for kind in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if kind in text]


def test_features_beside_pixels_take_no_index(batch, variables):
    """The index counts the places of all parts; a part that comes as features would shift the others'."""
    mixed = {name: value for name, value in packed(batch).items() if not name.endswith("image")}
    for prefix in ("", "generated_"):
        mixed[f"{prefix}image_features"] = np.ones((B, 2, 6), np.float32)
    lowered = reader_program(1).lower(variables["params"], variables["batch_stats"], mixed)
    assert f"tensor<{B * 6}x8x8x3x" in first_convolution(lowered)
