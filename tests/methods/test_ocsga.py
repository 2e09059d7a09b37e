"""OCSGA against a PyTorch reference with the released names: equations, CRF with borders, masks, converter."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.methods.test_recurrent import noisy
from tmrjax import crf
from tmrjax.convert import method_from_release
from tmrjax.methods import find_method
from tmrjax.methods.parts import guided_attention

B, W, C, SLOTS, TAGS, H, HEADS = 3, 5, 4, 3, 5, 8, 2
LENGTHS, OBJECTS = np.array([5, 2, 4]), np.array([2, 3, 0])


def make_batch():
    generator = np.random.default_rng(0)
    mask = np.arange(W) < LENGTHS[:, None]
    lengths = np.where(mask, generator.integers(1, C + 1, (B, W)), 0)
    found = np.arange(SLOTS) < OBJECTS[:, None]
    return {
        "input_ids": np.where(mask, generator.integers(1, 20, (B, W)), 0).astype(np.int32),
        "attention_mask": mask,
        "word_mask": mask,
        "character_ids": np.where(np.arange(C) < lengths[..., None], generator.integers(1, 14, (B, W, C)), 0).astype(
            np.int32
        ),
        "object_ids": np.where(found, generator.integers(1, 6, (B, SLOTS)), 0).astype(np.int32),
        "object_mask": found,
        "tags": np.where(mask, generator.integers(1, TAGS - 2, (B, W)), 0),
    }


BATCH = make_batch()


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a_2, self.b_2 = (torch.nn.Parameter(torch.randn(H)) for _ in range(2))

    def forward(self, x):
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, unbiased=True, keepdim=True) + 1e-6) + self.b_2


class Heads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("v", "k", "q", "merge"):
            setattr(self, f"linear_{name}", torch.nn.Linear(H, H))

    def forward(self, queries, keys, hidden):
        parts = []
        projected = self.linear_q(queries), self.linear_k(keys), self.linear_v(keys)
        for q, k, v in zip(*(x.split(H // HEADS, -1) for x in projected), strict=True):
            scores = (q @ k.transpose(1, 2) / math.sqrt(H // HEADS)).masked_fill(hidden[:, None], -1e9)
            parts.append(scores.softmax(-1) @ v)
        return self.linear_merge(torch.cat(parts, -1))


class Layer(torch.nn.Module):
    """The numbered steps 8 to 10: of "text", "objects", or the "last" one."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        for name in ("mhatt",) if kind == "text" else ("mhatt1", "mhatt2"):
            setattr(self, name, Heads())
        for number in range(1, 3 if kind == "text" else 4):
            setattr(self, f"norm{number}", Norm())
        self.ffn = torch.nn.Module()
        self.ffn.mlp = torch.nn.Module()
        self.ffn.mlp.fc = torch.nn.Module()
        self.ffn.mlp.fc.linear, self.ffn.mlp.linear = torch.nn.Linear(H, 4 * H), torch.nn.Linear(4 * H, H)

    def feed(self, x):
        return self.ffn.mlp.linear(self.ffn.mlp.fc.linear(x).relu())

    def forward(self, x, hidden, guide=None, guide_hidden=None):
        if self.kind == "text":
            x = self.norm1(x + self.mhatt(x, x, hidden))
            return self.norm2(x + self.feed(x))
        x = self.norm1(x + self.mhatt1(x, x, hidden))
        if self.kind == "last":
            return self.norm3(self.feed(self.norm2(self.mhatt2(guide, x, hidden))))
        x = self.norm2(x + self.mhatt2(x, guide, guide_hidden))
        return self.norm3(x + self.feed(x))


class Reference(torch.nn.Module):
    """Steps 1 to 12, written from the formulas, with the names of the released class."""

    def __init__(self, layers):
        super().__init__()
        self.word_embeddings = torch.nn.Embedding(20, 7)
        self.char_embeddings = torch.nn.Embedding(14, 5)
        self.object_embeddings = torch.nn.Embedding(6, 6)
        self.char_lstm = torch.nn.LSTM(5, 3, batch_first=True, bidirectional=True)
        self.word_lstm = torch.nn.LSTM(7 + 6, H // 2, batch_first=True, bidirectional=True)
        self.obj_feat_linear = torch.nn.Linear(6, H)
        self.mca = torch.nn.Module()
        self.mca.enc_list = torch.nn.ModuleList(Layer("text") for _ in range(layers))
        self.mca.dec_list = torch.nn.ModuleList(Layer("objects") for _ in range(layers - 1))
        self.mca.dec_last = Layer("last")
        self.cat_bn = torch.nn.BatchNorm1d(H)
        self.hidden2tag = torch.nn.Linear(H, TAGS)
        self.crf = torch.nn.Module()
        self.crf.transitions = torch.nn.Parameter(torch.randn(TAGS, TAGS))

    def text(self, words, characters):
        """One post of its own length at a time."""
        rows = torch.zeros(len(words), W, H, dtype=self.crf.transitions.dtype)
        for row, (padded, spelled) in enumerate(zip(words, characters, strict=True)):
            ids = padded[padded > 0]
            found = [
                torch.cat(
                    [self.word_embeddings(one), self.char_lstm(self.char_embeddings(c[c > 0])[None])[1][0].flatten()]
                )
                for one, c in zip(ids, spelled, strict=False)
            ]
            rows[row, : len(ids)] = self.word_lstm(torch.stack(found)[None])[0][0]
        return rows

    def forward(self, batch):
        words, objects = (torch.tensor(batch[name]).long() for name in ("input_ids", "object_ids"))
        text = self.text(words, torch.tensor(batch["character_ids"]).long())
        o, asking = self.obj_feat_linear(self.object_embeddings(objects)), text
        for layer in self.mca.enc_list:
            asking = layer(asking, words == 0)
        for layer in self.mca.dec_list:
            o = layer(o, objects == 0, asking, words == 0)
        guided = self.mca.dec_last(o, objects == 0, asking)
        joined = self.cat_bn((text + guided).transpose(1, 2)).transpose(1, 2)
        return self.hidden2tag(joined), text, guided


@pytest.fixture(scope="module", params=[1, 2])
def release(request):
    torch.manual_seed(request.param)
    reference = Reference(request.param)
    reference.cat_bn.running_mean.normal_()
    reference.cat_bn.running_var.uniform_(0.5, 2)
    for linear in reference.modules():
        if isinstance(linear, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(linear.weight)
    state_dict = {name: array.numpy().copy() for name, array in reference.state_dict().items()}
    with torch.no_grad():
        expected = [array.numpy() for array in reference.double().eval()(BATCH)]
    return state_dict, expected


def apply(method, variables, batch):
    return jax.jit(lambda v, b: method.apply(v, b, train=False))(variables, batch)


def test_a_released_checkpoint_gives_its_emissions_and_its_loss(release):
    state_dict, (emissions, text, guided) = release
    method, variables = method_from_release("ocsga", state_dict, task="ner")
    outputs = apply(method, variables, {name: BATCH[name] for name in BATCH if name != "object_mask"})
    np.testing.assert_allclose(outputs.states["text_states"], text, atol=1e-6)
    np.testing.assert_allclose(outputs.states["guided"], guided, atol=1e-5)
    np.testing.assert_allclose(outputs.scores, emissions, atol=1e-5)
    losses = -crf.log_likelihood(outputs.scores, BATCH["tags"], BATCH["word_mask"], outputs.crf)
    transitions = state_dict["crf.transitions"].astype(np.float64)
    start, stop = TAGS - 2, TAGS - 1

    def score(row, path):
        tags = [start, *path, stop]
        steps = sum(transitions[a, b] for a, b in itertools.pairwise(tags))
        return steps + sum(emissions[row, place, tag] for place, tag in enumerate(path))

    for row, length in enumerate(LENGTHS):
        paths = np.array([score(row, path) for path in itertools.product(range(TAGS), repeat=length)])
        expected = np.logaddexp.reduce(paths) - score(row, BATCH["tags"][row, :length])
        assert float(losses[row]) == pytest.approx(expected, abs=2e-5)


def test_by_default_a_post_without_objects_keeps_its_text(release):
    state_dict, (emissions, text, _) = release
    method, variables = method_from_release("ocsga", state_dict, task="ner")
    sound = method.clone(literal=False)
    outputs = apply(sound, variables, BATCH)
    some = np.flatnonzero(OBJECTS)
    np.testing.assert_allclose(outputs.scores[some], emissions[some], atol=1e-5)
    scale, bias, mean, var = (
        state_dict[f"cat_bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    alone = (text[2] - mean) / np.sqrt(var + 1e-5) * scale + bias
    alone = alone @ state_dict["hidden2tag.weight"].T + state_dict["hidden2tag.bias"]
    np.testing.assert_allclose(outputs.scores[2], alone, atol=1e-5)
    assert np.abs(outputs.scores[2] - emissions[2]).max() > 1e-2
    # What stands at masked objects has no influence, and without any the text alone is left.
    other = BATCH | {"object_ids": np.where(BATCH["object_mask"], BATCH["object_ids"], 3)}
    np.testing.assert_array_equal(apply(sound, variables, other).scores, outputs.scores)
    without = apply(sound, variables, BATCH | {"object_mask": np.zeros((B, SLOTS), bool)})
    text_only = sound.clone(use_pictures=False)
    kept = ("word_embeddings", "characters_lstm", "lstm", "batch_norm", "emission", "crf")
    own = variables | {"params": {name: variables["params"][name] for name in kept}}
    np.testing.assert_allclose(apply(text_only, own, BATCH).scores, without.scores, atol=1e-6)
    assert text_only.left_out == "pictures" and len(text_only.inputs) == 2
    fresh = jax.eval_shape(lambda key: text_only.init(key, BATCH, train=False), jax.random.key(0))
    assert set(fresh["params"]) == set(kept)


def test_every_name_is_accounted_for(release):
    state_dict, _ = release
    broken = dict(state_dict)
    del broken["mca.dec_last.mhatt2.linear_q.bias"], broken["char_lstm.bias_hh_l0_reverse"]
    broken["char_cnn.weight"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        method_from_release("ocsga", broken, task="ner")
    for line in (
        "missing: mca.dec_last.mhatt2.linear_q.bias (8,)",
        "missing: char_lstm.bias_hh_l0_reverse (12,)",
        "extra: char_cnn.weight (3,)",
    ):
        assert line in str(error.value)
    with pytest.raises(ValueError, match="'ner', not for 're'"):
        method_from_release("ocsga", state_dict, task="re")
    del broken["hidden2tag.weight"]
    with pytest.raises(ValueError, match=r"hidden2tag\.weight is missing"):
        method_from_release("ocsga", broken, task="ner")


def make_method(**options):
    sizes = {"num_labels": TAGS, "num_words": 20, "num_characters": 14, "num_objects": 6, "word_size": 7}
    sizes |= {"character_size": 5, "character_features": 3, "hidden_size": H, "max_objects": SLOTS, "num_layers": 2}
    return find_method("ocsga", "ner")(**(sizes | options))


def test_gradients_reach_every_parameter_and_padding_is_no_part_of_the_statistics():
    method = make_method(dropout=0.0, attention_dropout=0.0, word_dropout=0.0)
    variables = noisy(jax.jit(lambda key: method.init(key, BATCH, train=False))(jax.random.key(0)))

    @jax.jit
    def run(params):
        def loss(params):
            own = variables | {"params": params}
            outputs, updated = method.apply(own, BATCH, train=True, mutable=["batch_stats"])
            nll = -crf.log_likelihood(outputs.scores, BATCH["tags"], BATCH["word_mask"], outputs.crf)
            return nll.sum(), (outputs, updated)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (outputs, updated) = run(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        # A bias of keys moves all scores of a query alike, which a softmax does not see.
        without = "key" in jax.tree_util.keystr(path) and "bias" in jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all() and (without or np.abs(leaf).max() > 1e-7), path
    joined = np.asarray(outputs.states["text_states"] + outputs.states["guided"], np.float64)
    valid = joined[BATCH["attention_mask"]]
    before = variables["batch_stats"]["batch_norm"]
    np.testing.assert_allclose(
        updated["batch_stats"]["batch_norm"]["mean"], 0.9 * before["mean"] + 0.1 * valid.mean(0), atol=1e-6
    )
    own = variables["params"]["batch_norm"]
    normal = (joined - valid.mean(0)) / np.sqrt(valid.var(0) + 1e-5) * own["scale"] + own["bias"]
    head = variables["params"]["emission"]
    np.testing.assert_allclose(
        outputs.scores[BATCH["attention_mask"]], (normal @ head["kernel"] + head["bias"])[BATCH["attention_mask"]],
        atol=1e-4,
    )  # fmt: skip


def test_a_crf_with_borders_begins_as_ncrf_does():
    method = make_method(bordered=True, num_layers=1)
    params = jax.jit(lambda key: method.init(key, BATCH, train=False))(jax.random.key(0))["params"]["crf"]
    expected = np.zeros((TAGS, TAGS), np.float32)
    expected[:, TAGS - 2] = expected[TAGS - 1] = -10000
    np.testing.assert_array_equal(params["transitions"], expected)
    assert make_method(freeze_objects=True).frozen == ("object_embeddings/.*",)
    assert jnp.float32 == method.dtype


def test_a_row_of_equal_entries_has_no_slope_and_others_have_that_of_the_formula():
    # Attention to one object whose weight was dropped gives such rows: a slope of 1/ε = 10⁶ would end training there.
    norm = guided_attention.DeviationNorm()
    rows = jnp.asarray([[2.0, 2.0, 2.0, 2.0], [0.5, -1.0, 2.0, 0.25]])
    weights = np.asarray([0.3, -1.0, 0.7, 2.0])
    variables = norm.init(jax.random.key(0), rows)
    value, slope = jax.value_and_grad(lambda rows: jnp.sum(norm.apply(variables, rows) @ jnp.asarray(weights)))(rows)

    def formula(row):
        return float(weights @ ((row - row.mean()) / (row.std(ddof=1) + 1e-6)))

    row, step = np.asarray(rows[1], np.float64), 1e-5
    assert float(value) == pytest.approx(formula(row), abs=1e-5)
    expected = [(formula(row + step * one) - formula(row - step * one)) / (2 * step) for one in np.eye(4)]
    np.testing.assert_allclose(slope[1], expected, atol=1e-4)
    np.testing.assert_array_equal(slope[0], 0)
