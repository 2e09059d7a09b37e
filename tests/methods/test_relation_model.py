"""TMRForRE: Eq. 10 from its own intermediates in float64, masks, ablations, the text variant, its loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tests.test_models import BERT, FEATURES, PATCHES, layer_norm, softmax, spoil
from tests.test_models import RESNET as PICTURES
from tmrjax.heads.relation_head import RelationHead
from tmrjax.methods.base import method_from_dict, method_to_dict
from tmrjax.models import TMRForRE
from tmrjax.training.sharding import make_mesh, replicate, shard_batch
from tmrjax.training.step import create_state, make_loss, make_predict_step, make_train_step

B, T, P, RELATIONS = 4, 8, 5, 6
HEAD = RelationHead(tuple("abcdef"))


def make_model(**options) -> TMRForRE:
    return TMRForRE(**{"bert": BERT, "num_relations": RELATIONS, **options})


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    batch = {
        "input_ids": generator.integers(0, 40, (B, T)),
        "attention_mask": np.array([[1] * 8, [1] * 5 + [0] * 3, [1] * 4 + [0] * 4, [1] * 8], bool),
        "head_start": np.array([1, 3, 0, 6]),
        "tail_start": np.array([5, 1, 3, 2]),
        "relation": np.array([0, 3, 5, 1]),
        "row_mask": np.array([True, True, True, False]),
        "phrase_ids": generator.integers(0, 40, (B, P)),
        "phrase_mask": np.array([[1] * 5, [1, 1, 1, 0, 0], [0] * 5, [1] * 5], bool),
    }
    for prefix in ("", "generated_"):
        batch[f"{prefix}image_features"] = generator.normal(size=(B, PATCHES, FEATURES)).astype(np.float32)
        batch[f"{prefix}region_features"] = generator.normal(size=(B, 3, PATCHES, FEATURES)).astype(np.float32)
        batch[f"{prefix}image_mask"] = np.array([True, True, prefix == "", True])
        batch[f"{prefix}region_mask"] = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
        batch[f"{prefix}scores"] = generator.dirichlet(np.ones(3), B).astype(np.float32)
    return batch


@pytest.fixture(scope="module")
def variables(batch):
    variables = jax.jit(lambda key: make_model().init(key, batch, train=False))(jax.random.key(0))
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(generator.normal(0, 0.1, x.shape), x.dtype), variables)


def apply(model, variables, batch):
    return jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, batch)


def reference_logits(params, batch, text, phrases, *, literal):
    """Eq. 1 to 10 of one post at a time, in float64, by valid entries alone."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    project, fusion = params["visual_projection"], params["grain_fusion"]
    rows = []
    for b in range(B):
        words = np.asarray(text[b], np.float64)
        valid, phrase = words[batch["attention_mask"][b]], np.asarray(phrases[b], np.float64)[batch["phrase_mask"][b]]
        pictures = np.zeros(16)
        for prefix in ("", "generated_"):
            patches = batch[f"{prefix}image_features"][b][[batch[f"{prefix}image_mask"][b]] * PATCHES]
            regions = batch[f"{prefix}region_features"][b].mean(1)[batch[f"{prefix}region_mask"][b]]
            for grain, states, visual, score in (("fine", valid, patches, 2), ("coarse", phrase, regions, 1)):
                if not len(visual) or not len(states):
                    continue
                visual = visual @ project["kernel"] + project["bias"]  # noqa: PLW2901
                attended = softmax(visual @ fusion[f"{grain}_weight"] @ states.T / 4) @ states
                correlation = (
                    attended.sum(0) if literal else layer_norm((attended + visual).mean(0), fusion[f"{grain}_norm"])
                )
                pictures += batch[f"{prefix}scores"][b, score] * correlation
        pooled = phrase.sum(0) if literal else phrase.sum(0) / max(1, len(phrase))
        joined = [words[batch["head_start"][b]], words[batch["tail_start"][b]], pooled, pictures]
        rows.append(np.concatenate(joined) @ params["classifier"]["kernel"] + params["classifier"]["bias"])
    return np.stack(rows)


@pytest.mark.parametrize("literal", [False, True])
def test_logits_equal_the_formulas_in_float64(batch, variables, literal):
    logits, states = apply(make_model(literal=literal), variables, batch)
    expected = reference_logits(
        variables["params"], batch, states["text_states"], states["phrase_states"], literal=literal
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert states["representation"].shape == (B, 4 * 16)


def test_text_variant_reads_the_markers_alone(batch, variables):
    text = {name: batch[name] for name in ("input_ids", "attention_mask", "head_start", "tail_start")}
    model = make_model(variant="text")
    own = model.init(jax.random.key(0), text, train=False)
    assert set(own["params"]) == {"bert", "classifier"}
    logits, states = apply(model, own, text)
    rows = np.arange(B)
    joined = [np.asarray(states["text_states"])[rows, batch[name]] for name in ("head_start", "tail_start")]
    head = own["params"]["classifier"]
    np.testing.assert_allclose(logits, np.concatenate(joined, -1) @ head["kernel"] + head["bias"], atol=1e-5)
    swapped = text | {"head_start": text["tail_start"], "tail_start": text["head_start"]}
    assert np.abs(apply(model, own, swapped)[0] - logits).min() > 1e-4  # direction matters


@pytest.mark.slow  # as of entities, whose test in tests/test_models.py has the gradient too
def test_masked_content_has_no_influence(batch, variables):
    pixels = {name: value for name, value in batch.items() if not name.endswith("_features")}
    generator = np.random.default_rng(2)
    for prefix in ("", "generated_"):
        pixels[f"{prefix}image"] = generator.normal(size=(B, 16, 16, 3)).astype(np.float32)
        pixels[f"{prefix}regions"] = generator.normal(size=(B, 3, 16, 16, 3)).astype(np.float32)
    model = make_model(resnet=PICTURES)
    own = jax.jit(lambda key: model.init(key, pixels, train=False))(jax.random.key(0))
    run = jax.jit(lambda b: model.apply(own, b, train=False)[0])
    np.testing.assert_array_equal(run(pixels), run(spoil(pixels)))


def test_ablations_change_what_they_name(batch, variables):
    full = apply(make_model(), variables, batch)[0]
    for options in ({"use_scores": False}, {"grains": ("fine",)}, {"grains": ("coarse",)}, {"literal": True}):
        assert np.abs(apply(make_model(**options), variables, batch)[0] - full)[0].max() > 1e-3, options
    without = {name: value for name, value in batch.items() if not name.startswith("generated_")}
    masked = batch | {"generated_image_mask": np.zeros(B, bool), "generated_region_mask": np.zeros((B, 3), bool)}
    np.testing.assert_allclose(
        apply(make_model(use_back_translation=False), variables, without)[0],
        apply(make_model(), variables, masked)[0],
        atol=1e-6,
    )


def test_the_loss_is_torchs_cross_entropy_over_posts_on_any_devices(batch, variables):
    model = make_model(dropout=0.0, bert=BERT.__class__.from_dict({**BERT.to_dict(), "hidden_dropout_prob": 0.0,
                       "attention_probs_dropout_prob": 0.0}))  # fmt: skip
    logits = torch.tensor(np.asarray(apply(model, variables, batch)[0]))
    expected = torch.nn.functional.cross_entropy(logits[:3], torch.tensor(batch["relation"][:3]))
    optimizer = optax.sgd(0.1)
    results = []
    for devices in (1, 4):
        mesh = make_mesh(devices)
        step = make_train_step(make_loss(model.method(), HEAD), optimizer, mesh)
        state = replicate(create_state(jax.tree.map(np.asarray, variables), optimizer, seed=0), mesh)
        state, values = step(state, shard_batch(batch, mesh))
        assert float(values["loss"]) == pytest.approx(float(expected), rel=1e-5)
        predict = make_predict_step(model.method(), HEAD, mesh)
        results.append((state.params, predict(replicate(variables, mesh), shard_batch(batch, mesh))["probabilities"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *results)
    np.testing.assert_allclose(results[0][1], torch.softmax(logits, -1), atol=1e-6)


def test_a_model_survives_json():
    model = make_model(dtype=jnp.bfloat16, resnet=PICTURES)
    assert (
        method_from_dict(type(model.method()), json.loads(json.dumps(method_to_dict(model.method())))) == model.method()
    )
