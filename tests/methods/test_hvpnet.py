"""HVPNeT: equations (1) to (7) in float64, released and default; masks; gradients; the converter; text alone."""

import jax
import numpy as np
import pytest

from tests.methods import bert_reference as reference
from tmrjax import crf
from tmrjax.convert import method_from_release
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder

WIDTH, HEADS, DEPTH, HIDDEN, TAGS = 16, 2, 2, 6, 5
# Of the four stages: places along a side (one odd), channels.
STAGES = ((8, 3), (4, 2), (3, 5), (2, 2))
CHANNELS = sum(channels for _, channels in STAGES)


def make_state(task):
    shapes = reference.bert_shapes("bert.")
    shapes |= reference.linear_shapes("encoder_conv.0", HIDDEN, CHANNELS)
    shapes |= reference.linear_shapes("encoder_conv.2", 8 * WIDTH, HIDDEN)
    for index in range(DEPTH):
        shapes |= reference.linear_shapes(f"gates.{index}", 4, 8 * WIDTH)
    if task == "re":
        return reference.random_state(shapes | reference.linear_shapes("classifier", TAGS, 2 * WIDTH))
    shapes |= reference.linear_shapes("fc", TAGS, WIDTH) | {"crf.transitions": (TAGS, TAGS)}
    return reference.random_state(shapes | {"crf.start_transitions": (TAGS,), "crf.end_transitions": (TAGS,)})


def make_batch():
    random = np.random.default_rng(2)
    return reference.text_batch() | {
        "image_stages": tuple(random.normal(size=(4, s, s, c)).astype(np.float32) for s, c in STAGES),
        "region_stages": tuple(random.normal(size=(4, 3, s, s, c)).astype(np.float32) for s, c in STAGES),
        "image_mask": np.array([1, 1, 0, 1], bool),
        "region_mask": np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool),
    }


BATCH = make_batch()
EVERYTHING = BATCH | {"image_mask": np.ones(4, bool), "region_mask": np.ones((4, 3), bool)}


@pytest.fixture(scope="module", params=["ner", "re"])
def task(request):
    """(task, state dict, variables, compiled apply by form)."""
    state = make_state(request.param)
    method, variables = method_from_release("hvpnet", state, task=request.param, num_attention_heads=HEADS)

    def compiled(method):
        return jax.jit(lambda v, b: method.apply(v, b, train=False))

    forms = {True: compiled(method), False: compiled(method.clone(literal=False))}
    return request.param, state, method, variables, forms


def reference_prefixes(weights, batch, literal):
    """(1) to (4) one picture at a time: keys, values [B, H, 16, D/H] and mask [B, 16] of each layer."""
    posts = []
    for post in range(4):
        chunks = []
        for picture in range(4):
            quarters = np.zeros((CHANNELS, 2, 2))
            for (side, channels), whole, regions, start in zip(
                STAGES, batch["image_stages"], batch["region_stages"], np.cumsum([0, *[c for _, c in STAGES]]),
                strict=False,
            ):  # fmt: skip
                maps = np.asarray(whole[post] if picture == 0 else regions[post, picture - 1], np.float64)
                half = side // 2
                first, second = range(half), range(half, 2 * half)
                if not literal:
                    first, second = range(side - half), range(half, side)
                for y, rows in enumerate((first, second)):
                    for x, columns in enumerate((first, second)):
                        mean = np.mean([maps[r, c] for r in rows for c in columns], 0)
                        quarters[start : start + channels, y, x] = mean
            rows = quarters.reshape(4, CHANNELS) if literal else quarters.transpose(1, 2, 0).reshape(4, CHANNELS)
            mapped = weights.linear("encoder_conv.2", np.tanh(weights.linear("encoder_conv.0", rows)))
            chunks.append(np.split(mapped, 4, -1))
        posts.append(chunks)
    layers = []
    for index in range(DEPTH):
        both = np.zeros((4, 16, 2 * WIDTH))
        for post in range(4):
            for picture, chunks in enumerate(posts[post]):
                logits = weights.linear(f"gates.{index}", (sum(chunks) / 4).reshape(-1))
                gate = reference.softmax(np.where(logits > 0, logits, 0.01 * logits))
                both[post, 4 * picture : 4 * picture + 4] = sum(g * c for g, c in zip(gate, chunks, strict=True))
        keys, values = both[..., :WIDTH], both[..., WIDTH:]
        if literal:
            split = [x.reshape(4, HEADS, 16, WIDTH // HEADS) for x in (keys, values)]
        else:
            split = [reference.heads(x, HEADS) for x in (keys, values)]
        mask = np.repeat(np.concatenate([batch["image_mask"][:, None], batch["region_mask"]], 1), 4, axis=1)
        layers.append((*split, np.ones((4, 16)) if literal else mask))
    return layers


def reference_scores(state, batch, name, literal):
    weights = reference.Weights(state)
    prefixes = reference_prefixes(weights, batch, literal)
    text = reference.read_bert(weights, "bert.", batch["input_ids"], batch["attention_mask"], DEPTH, HEADS, prefixes)
    head = "classifier" if name == "re" else "fc"
    return weights.linear(head, reference.head_inputs(text, batch, name, literal))


@pytest.mark.parametrize("literal", [True, False])
def test_scores_equal_the_equations_in_float64(task, literal):
    name, state, _, variables, forms = task
    batch = EVERYTHING if literal else BATCH
    found = np.asarray(forms[literal](variables, batch).scores)
    expected = reference_scores(state, batch, name, literal)
    mask = np.ones(4, bool) if name == "re" else batch["attention_mask" if literal else "word_mask"]
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
    assert np.abs(expected[mask]).max() > 0.1


def test_a_picture_that_is_not_there_has_no_influence(task):
    _, _, _, variables, forms = task
    spoilt = dict(BATCH)
    for key, mask in (("image_stages", BATCH["image_mask"]), ("region_stages", BATCH["region_mask"])):
        spoilt[key] = tuple(
            np.where(mask.reshape(*mask.shape, *[1] * (maps.ndim - mask.ndim)), maps, np.nan) for maps in BATCH[key]
        )
    np.testing.assert_array_equal(forms[False](variables, spoilt).scores, forms[False](variables, BATCH).scores)
    other = BATCH | {"region_mask": np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 1, 0]], bool)}
    changed = np.abs(np.asarray(forms[False](variables, other).scores - forms[False](variables, BATCH).scores))
    assert changed[1].max() > 1e-4 and changed[[0, 2, 3]].max() == 0


def test_text_alone_is_a_post_without_pictures(task):
    _, _, method, variables, forms = task
    alone = method.clone(literal=False, use_pictures=False)
    assert alone.pictures is None and alone.left_out == "pictures"
    empty = BATCH | {"image_mask": np.zeros(4, bool), "region_mask": np.zeros((4, 3), bool)}
    params = {name: value for name, value in variables["params"].items() if name != "visual_prefix"}
    found = jax.jit(lambda v, b: alone.apply(v, b, train=False))({"params": params}, reference.text_batch())
    np.testing.assert_allclose(found.scores, forms[False](variables, empty).scores, atol=1e-6)


def test_gradients_reach_every_parameter(task):
    name, _, method, variables, _ = task
    method = method.clone(literal=False)
    if name == "re":  # its one layer of its own is checked above
        return

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs = method.apply({"params": params}, BATCH, train=True, rngs={"dropout": jax.random.key(0)})
            return -crf.log_likelihood(outputs.scores, BATCH["tags"], BATCH["word_mask"], outputs.crf).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_names_that_do_not_fit_are_listed(task):
    name, state, *_ = task
    state = {one: value for one, value in state.items() if one != "gates.1.bias"} | {"prompt.weight": np.zeros(2)}
    with pytest.raises(ValueError, match=r"hvpnet: 2 of its names(.|\n)*missing: gates.1.bias(.|\n)*extra: prompt"):
        method_from_release("hvpnet", state, task=name, num_attention_heads=HEADS)


def test_a_resnet_of_the_state_dict_reads_pixels():
    from tmrjax.convert import resnet_shapes, resnet_table
    from tmrjax.convert.tables import source_shape

    config = ResNetConfig(embedding_size=4, hidden_sizes=(4, 8), depths=(1, 1))
    sizes = resnet_shapes(config)
    random = np.random.default_rng(3)
    inner = {
        entry.theirs: random.uniform(0.1, 0.4, source_shape(sizes[entry.ours], entry.axes)).astype(np.float32)
        for entry in resnet_table(config, names="torchvision")
    }
    state = make_state("re") | {f"image_model.resnet.{one}": value for one, value in inner.items()}
    state["encoder_conv.0.weight"] = state["encoder_conv.0.weight"][:, :12]
    method, variables = method_from_release("hvpnet", state, task="re", num_attention_heads=HEADS)
    assert method.picture == config
    random = np.random.default_rng(4)
    pixels = {
        "image": random.normal(size=(4, 32, 32, 3)).astype(np.float32),
        "regions": random.normal(size=(4, 3, 32, 32, 3)).astype(np.float32),
    }
    without = {one: value for one, value in EVERYTHING.items() if not one.endswith("_stages")}
    found = jax.jit(lambda v, b: method.apply(v, b, train=False))(variables, without | pixels).scores
    resnet = {collection: variables[collection]["picture_encoder"]["resnet"] for collection in variables}
    encoder = jax.jit(lambda v, x: ResNetEncoder(config).apply(v, x, train=False).stages)
    maps = encoder(resnet, np.concatenate([pixels["image"][:, None], pixels["regions"]], 1).reshape(16, 32, 32, 3))
    maps = [one.reshape(4, 4, *one.shape[1:]) for one in maps]
    batch = EVERYTHING | {"image_stages": [m[:, 0] for m in maps], "region_stages": [m[:, 1:] for m in maps]}
    batch = {k: tuple(v) if isinstance(v, list) else v for k, v in batch.items()}
    heads_only, rest = method.clone(picture=None), {"params": variables["params"]}
    expected = jax.jit(lambda v, b: heads_only.apply(v, b, train=False))(rest, batch).scores
    np.testing.assert_allclose(found, expected, atol=1e-5)
