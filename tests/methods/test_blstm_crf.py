"""BiLSTM-CRF, both forms: equations (1) to (5) in float64, masks, gradients, what is frozen, what is dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.methods.test_recurrent import noisy, reference_convolution, torch_lstm
from tmrjax import crf
from tmrjax.methods import find_method
from tmrjax.methods.base import method_from_dict, method_to_dict

LENGTHS = np.array([5, 1, 3])
B, W, C, TAGS = 3, 5, 6, 5


def make_batch():
    generator = np.random.default_rng(0)
    mask = np.arange(W) < LENGTHS[:, None]
    lengths = np.where(mask, generator.integers(1, C + 1, (B, W)), 0)
    characters = generator.integers(1, 14, (B, W, C))
    return {
        "input_ids": np.where(mask, generator.integers(1, 20, (B, W)), 0).astype(np.int32),
        "attention_mask": mask,
        "word_mask": mask,
        "character_ids": np.where(np.arange(C) < lengths[..., None], characters, 0).astype(np.int32),
        "tags": np.where(mask, generator.integers(0, TAGS, (B, W)), 0),
    }


BATCH = make_batch()


def make_method(characters, **options):
    sizes = {"num_labels": TAGS, "num_words": 20, "num_characters": 14, "word_size": 7, "hidden_size": 4}
    sizes |= {"character_size": 5, "character_features": 3, "characters": characters}
    return find_method("blstm_crf", "ner")(**(sizes | options))


@pytest.fixture(scope="module", params=["cnn", "lstm"])
def form(request):
    method = make_method(request.param)
    variables = jax.jit(lambda key: method.init(key, BATCH, train=False))(jax.random.key(0))
    return method, noisy(variables), jax.jit(lambda v, b: method.apply(v, b, train=False))


def reference_emissions(params, batch, characters):
    """Equations (1) to (5), one post and one word at a time, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    lstm = torch_lstm(params["lstm"], 7 + (3 if characters == "cnn" else 6), 4)
    posts = []
    for ids, words, length in zip(batch["input_ids"], batch["character_ids"], LENGTHS, strict=True):
        joined = []
        for index, word in zip(ids[:length], words[:length], strict=True):
            own = word[word > 0]
            if characters == "cnn":
                read = reference_convolution(params["characters_cnn"], own, 3).max(1).values
            else:
                inner = params["characters_lstm"]
                _, (last, _) = torch_lstm(inner["lstm"], 5, 3)(torch.tensor(inner["embedding"][own])[None])
                read = torch.cat(list(last), -1)[0]
            joined.append(torch.cat([torch.tensor(params["word_embeddings"]["embedding"][index]), read]))
        text = lstm(torch.stack(joined)[None])[0][0].detach().numpy()
        if characters == "lstm":
            text = np.tanh(text @ params["tanh_layer"]["kernel"] + params["tanh_layer"]["bias"])
        posts.append(text @ params["emission"]["kernel"] + params["emission"]["bias"])
    return posts


def test_emissions_equal_the_equations_in_float64(form):
    method, variables, apply = form
    outputs = apply(variables, BATCH)
    for row, expected in enumerate(reference_emissions(variables["params"], BATCH, method.characters)):
        np.testing.assert_allclose(outputs.scores[row, : len(expected)], expected, atol=2e-6)
    assert outputs.scores.dtype == jnp.float32 and outputs.crf.transitions.shape == (TAGS, TAGS)


def test_padding_has_no_influence(form):
    _, variables, apply = form
    outputs = apply(variables, BATCH)
    mask, generator = BATCH["attention_mask"], np.random.default_rng(1)
    other = BATCH | {
        "input_ids": np.where(mask, BATCH["input_ids"], generator.integers(0, 20, (B, W))),
        "character_ids": np.where(mask[..., None], BATCH["character_ids"], generator.integers(0, 14, (B, W, C))),
    }
    np.testing.assert_array_equal(outputs.scores[mask], apply(variables, other).scores[mask])


def test_gradients_reach_every_parameter_that_the_batch_uses(form):
    method, variables, _ = form

    @jax.jit
    def gradient(variables):
        def loss(variables):
            outputs = method.apply(variables, BATCH, train=True, rngs={"dropout": jax.random.key(3)})
            return -crf.log_likelihood(outputs.scores, BATCH["tags"], BATCH["word_mask"], outputs.crf).sum()

        return jax.grad(loss)(variables)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_a_share_of_the_training_words_is_read_as_unknown():
    method = make_method("lstm", word_dropout=0.5, dropout=0.0)
    variables = noisy(jax.jit(lambda key: method.init(key, BATCH, train=False))(jax.random.key(0)))
    table = variables["params"]["word_embeddings"]["embedding"]
    ids = np.full((B, W), 5, np.int32) * BATCH["attention_mask"]

    @jax.jit
    def used(key):
        def loss(table):
            own = {"params": variables["params"] | {"word_embeddings": {"embedding": table}}}
            outputs = method.apply(own, BATCH | {"input_ids": ids}, train=True, rngs={"dropout": key})
            return jnp.sum(outputs.scores * BATCH["attention_mask"][..., None])

        return jnp.abs(jax.grad(loss)(table)).sum(-1)

    rows = np.mean([np.asarray(used(jax.random.key(seed)) > 0) for seed in range(3)], 0)
    assert set(np.flatnonzero(rows)) == {1, 5}


def test_the_table_can_stay_as_it_is_and_sizes_are_those_of_the_papers():
    frozen = make_method("cnn", freeze_words=True)
    assert frozen.frozen == ("word_embeddings/.*",) and make_method("cnn").frozen == ()
    variables = jax.eval_shape(
        lambda key: make_method("lstm", character_size=0, character_features=0, hidden_size=0).init(
            key, BATCH, train=False
        ),
        jax.random.key(0),
    )
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
    assert shapes["characters_lstm"]["lstm"]["layer_0"]["forward"]["input_kernel"] == (25, 100)
    assert shapes["lstm"]["layer_0"]["forward"]["input_kernel"] == (7 + 50, 400)
    assert shapes["tanh_layer"]["kernel"] == (200, 100)
    assert method_from_dict(type(frozen), method_to_dict(frozen)) == frozen
    with pytest.raises(ValueError, match="characters is 'gru'; expected one of cnn, lstm"):
        make_method("gru")
