"""MKGformer: equations (1) to (6) in float64, released and default; masks; gradients; the converter; text alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import bert_reference as reference
from tmrjax import crf
from tmrjax.convert import method_from_release
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.distilbert import DistilBertConfig
from tmrjax.methods import find_method

WIDTH, HEADS, DEPTH, FUSED, TAGS, PATCH, IMAGE, REGION = 16, 2, 3, 2, 5, 4, 12, 8
PICTURE = "model.encoder.vision_layers"


def make_state(task):
    shapes = reference.embedding_shapes("model.text_embeddings.", 40, WIDTH, 16)
    shapes |= reference.linear_shapes("model.text_pooler.dense", WIDTH, WIDTH)
    tables = {"class_embedding": (WIDTH,), "patch_embedding.weight": (WIDTH, 3, PATCH, PATCH)}
    tables |= {"position_embedding.weight": (1 + (IMAGE // PATCH) ** 2, WIDTH)}
    tables |= {"aux_position_embedding.weight": (12, WIDTH), "rcnn_position_embedding.weight": (3, WIDTH)}
    shapes |= {f"model.vision_embeddings.{name}": shape for name, shape in tables.items()}
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= reference.norm_shapes(f"model.vision_{name}", WIDTH)
    for index in range(DEPTH):
        layer, text = f"{PICTURE}.{index}", f"model.encoder.text_layer.{index}"
        for name in "qkv":
            shapes |= reference.linear_shapes(f"{layer}.self_attn.{name}_proj", WIDTH, WIDTH)
        shapes |= reference.linear_shapes(f"{layer}.self_attn.out_proj", WIDTH, WIDTH)
        shapes |= reference.linear_shapes(f"{layer}.mlp.fc1", 20, WIDTH)
        shapes |= reference.linear_shapes(f"{layer}.mlp.fc2", WIDTH, 20)
        shapes |= reference.norm_shapes(f"{layer}.layer_norm1", WIDTH)
        shapes |= reference.norm_shapes(f"{layer}.layer_norm2", WIDTH) | reference.layer_shapes(text, WIDTH, 24)
        shapes |= reference.linear_shapes(f"{text}.intermediate.fusion_dense", 24, WIDTH)
    if task == "re":
        return reference.random_state(shapes | reference.linear_shapes("classifier", TAGS, 2 * WIDTH))
    shapes |= reference.linear_shapes("fc", TAGS, WIDTH) | {"crf.transitions": (TAGS, TAGS)}
    return reference.random_state(shapes | {"crf.start_transitions": (TAGS,), "crf.end_transitions": (TAGS,)})


def make_batch():
    random = np.random.default_rng(2)

    def pixels(*shape):
        return random.normal(size=(4, *shape, 3)).astype(np.float32)

    return reference.text_batch() | {
        "crops": pixels(3, REGION, REGION),
        "small_crops": pixels(3, REGION // 2, REGION // 2),
        "image": pixels(IMAGE, IMAGE),
        "regions": pixels(3, IMAGE, IMAGE),
        "image_mask": np.array([1, 1, 0, 1], bool),
        "region_mask": np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool),
    }


BATCH = make_batch()
EMPTY = BATCH | {"image_mask": np.zeros(4, bool), "region_mask": np.zeros((4, 3), bool)}


def compiled(method):
    return jax.jit(lambda v, b: method.apply(v, b, train=False))


@pytest.fixture(scope="module", params=["ner", "re"])
def task(request):
    """(task, state dict, methods, variables, compiled apply), the last three by form: literal or not."""
    state = make_state(request.param)
    method, variables = method_from_release(
        "mkgformer", state, task=request.param, num_attention_heads=HEADS, fusion_layers=FUSED
    )
    assert (method.region_size, method.picture.image_size) == (REGION, IMAGE)
    methods = {True: method, False: method.clone(literal=False)}
    default = {name: value for name, value in variables["params"].items() if name != "small_region_positions"}
    forms = {form: compiled(one) for form, one in methods.items()}
    return request.param, state, methods, {True: variables, False: {"params": default}}, forms


def patches(weights, pixels):
    """[H, W, 3] -> [P, D], rows of patches first."""
    kernel = weights["model.vision_embeddings.patch_embedding.weight"]
    side = pixels.shape[0] // PATCH
    parts = [
        pixels[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].transpose(2, 0, 1)
        for y in range(side)
        for x in range(side)
    ]
    return np.stack([(kernel * part).sum((1, 2, 3)) for part in parts])


def vision_layer(weights, layer, v, own):
    """A layer of CLIP's; own: keys and values of the text before it, or None."""
    u = weights.norm(f"{layer}.layer_norm1", v, 1e-5)
    query, key, value = (reference.heads(weights.linear(f"{layer}.self_attn.{one}_proj", u), HEADS) for one in "qkv")
    if own is not None:
        key, value = np.concatenate([own[0], key], 2), np.concatenate([own[1], value], 2)
    attention = reference.softmax(query @ key.swapaxes(2, 3) / np.sqrt(WIDTH // HEADS))
    v = v + weights.linear(f"{layer}.self_attn.out_proj", reference.merged(attention @ value))
    inner = weights.linear(f"{layer}.mlp.fc1", weights.norm(f"{layer}.layer_norm2", v, 1e-5))
    return v + weights.linear(f"{layer}.mlp.fc2", inner / (1 + np.exp(-1.702 * inner)))


def reference_scores(state, batch, name, literal):
    """One post at a time, by the tokens that count alone."""
    weights, rows = reference.Weights(state), []
    embeddings = {
        one: weights[f"model.vision_embeddings.{one}_embedding{'' if one == 'class' else '.weight'}"]
        for one in ("class", "position", "aux_position", "rcnn_position")
    }
    for post in range(4):
        ids, mask = batch["input_ids"][post : post + 1], batch["attention_mask"][post : post + 1]
        if literal:
            crops = np.concatenate([patches(weights, np.float64(one)) for one in batch["crops"][post]])
            small = np.concatenate([patches(weights, np.float64(one)) for one in batch["small_crops"][post]])
            parts = [embeddings["class"][None], crops + embeddings["aux_position"], small + embeddings["rcnn_position"]]
        else:
            whole = np.concatenate([embeddings["class"][None], patches(weights, np.float64(batch["image"][post]))])
            size = (3, REGION, REGION, 3)
            regions = np.float64(jax.image.resize(jnp.asarray(batch["regions"][post]), size, "linear"))
            crops = np.concatenate([patches(weights, one) for one in regions]) + embeddings["aux_position"]
            present = np.repeat(batch["region_mask"][post], 4)
            parts = [(whole + embeddings["position"])[: 10 * batch["image_mask"][post]], crops[present]]
        v = weights.norm("model.vision_pre_layrnorm", np.concatenate(parts), 1e-5)[None]
        x, own = reference.embed(weights, "model.text_embeddings.", ids), None
        for index in range(DEPTH):
            fused = index >= DEPTH - FUSED and v.shape[1] > 0
            layer = f"{PICTURE}.{index}"
            if v.shape[1]:
                kept = own if literal or own is None else [one[:, :, mask[0]] for one in own]
                v = vision_layer(weights, layer, v, kept if fused else None)
            text = f"model.encoder.text_layer.{index}"

            def joining(context, v=v, text=text):
                scale = 1 if literal else 1 / np.sqrt(WIDTH)
                f = reference.softmax(scale * context @ v.swapaxes(1, 2)) @ v
                return weights.linear(f"{text}.intermediate.fusion_dense", f)

            x, *own = reference.layer(weights, text, x, mask, HEADS, add=joining if fused else None)
        rows.append(x[0])
    head = "classifier" if name == "re" else "fc"
    return weights.linear(head, reference.head_inputs(np.stack(rows), batch, name, literal))


@pytest.mark.parametrize("literal", [True, False])
def test_scores_equal_the_equations_in_float64(task, literal):
    name, state, _, variables, forms = task
    found = np.asarray(forms[literal](variables[literal], BATCH).scores)
    expected = reference_scores(state, BATCH, name, literal)
    mask = np.ones(4, bool) if name == "re" else BATCH["attention_mask" if literal else "word_mask"]
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


def test_what_is_masked_has_no_influence(task):
    name, _, _, variables, forms = task
    whole, regions = (BATCH[f"{part}_mask"][..., None, None, None] for part in ("image", "region"))
    spoilt = BATCH | {
        "image": np.where(whole, BATCH["image"], np.nan),
        "regions": np.where(regions, BATCH["regions"], np.nan),
        "input_ids": np.where(BATCH["attention_mask"], BATCH["input_ids"], 9),
    }
    first, second = (np.asarray(forms[False](variables[False], one).scores) for one in (BATCH, spoilt))
    mask = np.ones(4, bool) if name == "re" else BATCH["word_mask"]
    np.testing.assert_array_equal(first[mask], second[mask])
    assert np.isfinite(first).all()
    # In the released form padding takes part in the vision tower.
    first, second = (np.asarray(forms[True](variables[True], one).scores) for one in (BATCH, spoilt))
    mask = np.ones(4, bool) if name == "re" else BATCH["attention_mask"]
    assert np.abs(first[mask] - second[mask]).max() > 1e-4


def test_text_alone_is_a_post_without_pictures(task):
    _, _, methods, variables, forms = task
    alone = methods[False].clone(use_pictures=False)
    assert alone.pictures is None and alone.left_out == "pictures"
    params = {
        name: value
        for name, value in variables[False]["params"].items()
        if name in ("bert", "classifier", "emission", "crf")
    }
    found = compiled(alone)({"params": params}, reference.text_batch()).scores
    np.testing.assert_allclose(found, forms[False](variables[False], EMPTY).scores, atol=1e-6)


def test_gradients_reach_every_parameter(task):
    name, _, methods, variables, _ = task

    def gradient(params, method):
        def loss(params):
            outputs = method.apply({"params": params}, BATCH, train=True, rngs={"dropout": jax.random.key(0)})
            if name == "re":
                return -jax.nn.log_softmax(outputs.scores)[jnp.arange(4), BATCH["relation"]].sum()
            return -crf.log_likelihood(outputs.scores, BATCH["tags"], BATCH["word_mask"], outputs.crf).sum()

        return jax.grad(loss)(params)

    params = variables[False]["params"]
    # With remat the layers are traced in another way; compiling it takes long and tells no more.
    assert jax.eval_shape(lambda p: gradient(p, methods[False].clone(remat=True)), params).keys() == params.keys()
    if name == "ner":  # the towers are the same
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(lambda p: gradient(p, methods[False]))(params)):
        # The tower's last norm has no part in the method.
        floor = -1 if "clip_vision_model']['norm'" in jax.tree_util.keystr(path) else 0
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > floor, path


def test_initial_parameters_have_the_names_of_converted_ones(task):
    _, _, methods, variables, _ = task
    without = {key: value for key, value in BATCH.items() if "crops" not in key}
    for literal in (True, False):
        initial = jax.eval_shape(lambda key, of=methods[literal]: of.init(key, without, train=False), jax.random.key(0))
        assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, variables[literal])


def test_encoders_that_cannot_be_fused_are_refused(task):
    name, _, methods, variables, _ = task
    kind, text, clip = find_method("mkgformer", name), methods[True].text, methods[True].picture
    distil = DistilBertConfig.from_dict(
        {"vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 16}
    )
    deeper = clip.__class__(**{**clip.__dict__, "num_hidden_layers": 4})
    for encoders, message in (
        ((text, ResNetConfig()), "CLIP vision tower or a ViT, not with ResNetConfig"),
        ((text, deeper), r"the text encoder has \(3, 16, 2\), the picture encoder \(4, 16, 2\)"),
        ((distil, clip), None),
    ):
        method = kind(num_labels=TAGS, text=encoders[0], picture=encoders[1], region_size=REGION)
        if message is None:  # its layers are BERT's
            jax.eval_shape(lambda key: method.init(key, BATCH, train=False), jax.random.key(0))  # noqa: B023
        else:
            with pytest.raises(ValueError, match=message):
                method.apply(variables[False], BATCH, train=False)


def test_names_that_do_not_fit_are_listed(task):
    name, state, *_ = task
    gone = "model.encoder.text_layer.2.intermediate.fusion_dense.bias"
    state = {one: value for one, value in state.items() if one != gone} | {"model.gate": np.zeros(2)}
    with pytest.raises(ValueError, match=r"mkgformer: 2 of its names(.|\n)*missing: \S*dense.bias(.|\n)*extra: mod"):
        method_from_release("mkgformer", state, task=name, num_attention_heads=HEADS, fusion_layers=FUSED)
