"""MEGA: equations (1) to (7) in float64, released and default; masks; gradients; the converter; text alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import bert_reference as reference
from tmrjax import crf
from tmrjax.convert import method_from_release
from tmrjax.methods import find_method

WIDTH, HEADS, DEPTH, LABELS, OBJECTS, FEATURES = 16, 2, 1, 5, 10, 7
BOTH = 2 * WIDTH


def make_state():
    prefix = "sentence_encoder."
    shapes = reference.bert_shapes(f"{prefix}bert.", depth=DEPTH) | reference.linear_shapes("fc", LABELS, BOTH)
    inner = {"hidden": WIDTH, "pic": FEATURES, "final1": 2 * BOTH, "final": 2 * BOTH}
    inner |= dict.fromkeys(("q", "k", "v", "merge"), BOTH)
    for name, width in inner.items():
        shapes |= reference.linear_shapes(f"{prefix}linear_{name}", BOTH, width)
    return reference.random_state(shapes | reference.linear_shapes(f"{prefix}linear", BOTH, BOTH))


def make_batch():
    random = np.random.default_rng(2)
    counts = np.array([10, 3, 0, 1])
    mask = np.arange(OBJECTS) < counts[:, None]
    batch = reference.text_batch()
    weights = random.uniform(size=(4, 8, OBJECTS)) * batch["attention_mask"][..., None] * mask[:, None]
    features = random.normal(size=(4, OBJECTS, FEATURES)) * mask[..., None]
    return batch | {
        "object_features": features.astype(np.float32),
        "object_mask": mask,
        "alignment": weights.astype(np.float32),
    }


BATCH, STATE = make_batch(), make_state()


def compiled(method):
    return jax.jit(lambda v, b: method.apply(v, b, train=False))


@pytest.fixture(scope="module")
def released():
    """(variables of the state dict, the compiled method by (task, literal), the methods)."""
    method, variables = method_from_release("mega", STATE, task="re", num_attention_heads=HEADS)
    assert method.literal and method.dropout == 0.5
    fields = {"num_labels": LABELS, "text": method.text}
    methods = {
        ("re", True): method,
        ("re", False): method.clone(literal=False),
        ("ner", False): find_method("mega", "ner")(**fields),
        ("ner", True): find_method("mega", "ner")(**fields, literal=True),
    }
    params = dict(variables["params"])
    random = np.random.default_rng(5)
    sizes = {"transitions": (LABELS, LABELS), "start_transitions": LABELS, "end_transitions": LABELS}
    tags = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    params["emission"], params["crf"] = params["classifier"], tags
    others = {"re": ("crf", "emission"), "ner": ("classifier",)}
    own = {
        (task, literal): {"params": {name: value for name, value in params.items() if name not in others[task]}}
        for task, literal in methods
    }
    return methods, own, {key: compiled(one) for key, one in methods.items()}


def reference_scores(batch, task, literal):
    """(1) to (7) one post at a time."""
    weights = reference.Weights(STATE)
    text = reference.read_bert(
        weights, "sentence_encoder.bert.", batch["input_ids"], batch["attention_mask"], DEPTH, HEADS
    )

    def linear(name, x):
        return weights.linear(f"sentence_encoder.linear_{name}", x)

    rows = []
    for post in range(4):
        words, features = linear("hidden", text[post]), np.asarray(batch["object_features"][post], np.float64)
        alignment = np.asarray(batch["alignment"][post], np.float64)
        if literal:
            count, keys, matrix = OBJECTS, np.ones(8, bool), alignment.reshape(OBJECTS, 8)
        else:
            count, keys, matrix = batch["object_mask"][post].sum(), batch["attention_mask"][post], alignment.T
        total = np.zeros(BOTH)
        for index in range(count):
            query = linear("q", linear("pic", features[index]))
            attention = reference.softmax(linear("k", words[keys]) @ query / np.sqrt(BOTH))
            semantic = 1 / (1 + np.exp(-(attention @ linear("v", words[keys]))))
            structural = sum(matrix[index, t] * words[t] for t in range(8))
            total += linear("final1", np.concatenate([semantic, structural]))
        if task == "re":
            first = np.concatenate([text[post, batch["head_start"][post]], text[post, batch["tail_start"][post]]])
            found = linear("final", np.concatenate([first, total]))
        else:
            first = words[batch["word_starts"][post]]
            found = linear("final", np.concatenate([first, np.tile(total, (len(first), 1))], -1))
        rows.append(weights.linear("fc", found))
    return np.stack(rows)


@pytest.mark.parametrize("literal", [True, False])
@pytest.mark.parametrize("task", ["re", "ner"])
def test_scores_equal_the_equations_in_float64(released, task, literal):
    _, own, forms = released
    found = np.asarray(forms[task, literal](own[task, literal], BATCH).scores)
    expected = reference_scores(BATCH, task, literal)
    mask = np.ones(4, bool) if task == "re" else BATCH["word_mask"]
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5, rtol=1e-5)


def test_what_is_masked_has_no_influence(released):
    _, own, forms = released
    present, valid = BATCH["object_mask"], BATCH["attention_mask"]
    spoilt = BATCH | {
        "object_features": np.where(present[..., None], BATCH["object_features"], np.nan),
        "alignment": np.where(valid[..., None] & present[:, None], BATCH["alignment"], np.nan),
        "input_ids": np.where(valid, BATCH["input_ids"], 7),
    }
    for task in ("ner", "re"):
        first, second = (forms[task, False](own[task, False], one).scores for one in (BATCH, spoilt))
        mask = BATCH["word_mask"] if task == "ner" else np.ones(4, bool)
        np.testing.assert_array_equal(np.asarray(first)[mask], np.asarray(second)[mask])


def test_a_post_is_the_same_in_a_longer_batch_and_in_the_released_form_it_is_not(released):
    _, own, forms = released
    longer = dict(BATCH)
    for key in ("input_ids", "attention_mask", "alignment"):
        longer[key] = np.pad(BATCH[key], [(0, 0), (0, 4)] + [(0, 0)] * (BATCH[key].ndim - 2))
    for literal in (False, True):
        one = forms["re", literal]
        difference = np.abs(one(own["re", literal], longer).scores - one(own["re", literal], BATCH).scores).max()
        assert (difference > 1e-3) == literal, difference


@pytest.mark.parametrize("task", ["re", "ner"])
def test_text_alone_is_a_post_without_objects(released, task):
    methods, own, forms = released
    alone = methods[task, False].clone(use_pictures=False)
    assert len(alone.inputs) == 1 and alone.left_out == "pictures"
    found = jax.jit(lambda v, b: alone.apply(v, b, train=False))(own[task, False], reference.text_batch()).scores
    empty = BATCH | {"object_mask": np.zeros((4, OBJECTS), bool)}
    np.testing.assert_allclose(found, forms[task, False](own[task, False], empty).scores, atol=1e-6)


@pytest.mark.parametrize("task", ["re", pytest.param("ner", marks=pytest.mark.slow)])
def test_gradients_reach_every_parameter(released, task):
    methods, own, _ = released
    method = methods[task, False]

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs = method.apply({"params": params}, BATCH, train=True, rngs={"dropout": jax.random.key(0)})
            if task == "re":
                return -jax.nn.log_softmax(outputs.scores)[jnp.arange(4), BATCH["relation"]].sum()
            return -crf.log_likelihood(outputs.scores, BATCH["tags"], BATCH["word_mask"], outputs.crf).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(own[task, False]["params"])):
        name = jax.tree_util.keystr(path)
        # A constant added to all keys is lost in the softmax: what arrives there is rounding.
        floor = -1 if name == "['key']['bias']" else 0
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > floor, name


def test_names_that_do_not_fit_are_listed_and_entities_were_not_released():
    state = {one: value for one, value in STATE.items() if one != "sentence_encoder.linear_q.bias"}
    with pytest.raises(ValueError, match=r"mega: 2 of its names(.|\n)*missing: \S*linear_q.bias(.|\n)*extra: rel"):
        method_from_release("mega", state | {"rel.weight": np.zeros(2)}, task="re", num_attention_heads=HEADS)
    with pytest.raises(ValueError, match="relations alone"):
        method_from_release("mega", STATE, task="ner")
