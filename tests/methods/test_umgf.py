"""UMGF against a PyTorch reference under the released names: both tasks, masks, gradients, the text-only form."""

import functools

import jax
import numpy as np
import pytest
import torch
import torchcrf
import transformers
from torch import nn

from tests.convert.test_convert import TorchvisionResNet
from tests.methods.torch_blocks import (
    HEADS,
    HIDDEN,
    Reference,
    at_markers,
    at_words,
    bert_config,
    tensors,
    text_batch,
    without_gradient,
)
from tmrjax import convert
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.methods.umgf import EntityUMGF, RelationUMGF

FEATURES, SIZE, INNER, GRAPH_HEADS, DEPTH, TAGS = 12, 8, 6, 2, 2, 5
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=(FEATURES,), depths=(1,))


def linears(*sizes):
    return nn.ModuleList([nn.Linear(*sizes) for _ in range(DEPTH)])


class Norm(nn.Module):
    """addnorm without dropout."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(SIZE)

    def forward(self, states, change):
        return self.norm(states + change)


class Attention(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(count)])

    def forward(self, x, mask):
        def heads(states):
            return states.unflatten(-1, (GRAPH_HEADS, -1)).transpose(1, 2)

        query, key = heads(self.linears[0](x)), heads(self.linears[1](x))
        value = heads(self.linears[2](x) if len(self.linears) > 2 else x)
        scores = query @ key.transpose(-1, -2) / (SIZE // GRAPH_HEADS) ** 0.5
        weights = torch.softmax(scores.masked_fill(~mask[:, None, None], -1e9), -1)
        joined = (weights @ value).transpose(1, 2).flatten(2)
        return self.linears[3](joined) if len(self.linears) > 2 else joined


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(SIZE, INNER), nn.Linear(INNER, SIZE)

    def forward(self, x):
        return self.w_2(torch.relu(self.w_1(x)))


class ReleasedUMGF(Reference):
    def __init__(self, resnet=None):
        super().__init__()
        self.bert = transformers.BertModel(bert_config())
        if resnet is not None:
            self.resnet = resnet
            self.resnet.fc = nn.Linear(FEATURES, FEATURES)
        self.trans_txt = nn.Linear(HIDDEN, SIZE)
        drop = nn.Dropout(0.4)
        self.trans_obj = nn.Sequential(
            nn.Linear(FEATURES, SIZE), nn.ReLU(), drop, nn.Linear(SIZE, SIZE), nn.ReLU(), drop
        )
        self.mhatt_x = nn.ModuleList([Attention(4) for _ in range(DEPTH)])
        self.mhatt_o = nn.ModuleList([Attention(2) for _ in range(DEPTH)])
        self.mhatt_x2o, self.mhatt_o2x = linears(2 * SIZE, SIZE), linears(2 * SIZE, SIZE)
        for name in ("res4mes_x", "res4mes_o", "xgate", "ogate", "res4ffn_x", "res4ffn_o"):
            setattr(self, name, nn.ModuleList([Norm() for _ in range(DEPTH)]))
        self.ffn_x, self.ffn_o = (nn.ModuleList([FeedForward() for _ in range(DEPTH)]) for _ in range(2))
        self.hidden2tag = nn.Linear(HIDDEN + SIZE, TAGS)
        self.crf = torchcrf.CRF(TAGS, batch_first=True)

    def fused(self, batch, objects, object_mask):
        """[X; x] for pooled vectors of the objects."""
        text_mask = batch["attention_mask"]
        text = self.bert(batch["input_ids"].long(), attention_mask=text_mask.long()).last_hidden_state
        o, x = self.trans_obj(objects), self.trans_txt(text)
        for i in range(DEPTH):
            x = self.res4mes_x[i](x, self.mhatt_x[i](x, text_mask))
            o = self.res4mes_o[i](o, self.mhatt_o[i](o, object_mask))
            new_x, new_o = torch.zeros_like(x), torch.zeros_like(o)
            for b in range(len(x)):
                for t in range(x.shape[1]):
                    for n in range(o.shape[1]):
                        if text_mask[b, t] and object_mask[b, n]:
                            pair = torch.cat([x[b, t], o[b, n]])
                            new_x[b, t] += torch.sigmoid(self.mhatt_x2o[i](pair)) * o[b, n]
                            new_o[b, n] += torch.sigmoid(self.mhatt_o2x[i](pair)) * x[b, t]
            x, o = self.xgate[i](x, new_x), self.ogate[i](o, new_o)
            x, o = self.res4ffn_x[i](x, self.ffn_x[i](x)), self.res4ffn_o[i](o, self.ffn_o[i](o))
        return torch.cat([text, x], -1)


def make_released(resnet=None):
    torch.manual_seed(0)
    return ReleasedUMGF(resnet).randomise()


@pytest.fixture(scope="module")
def released():
    return make_released()


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    return text_batch(generator) | {
        "image_pooled": generator.normal(size=(3, FEATURES)).astype(np.float32),
        "region_pooled": generator.normal(size=(3, 3, FEATURES)).astype(np.float32),
        "image_mask": np.array([True, True, False]),
        "region_mask": np.array([[True] * 3, [True, False, False], [True, True, False]]),
    }


def to_ours(released):
    state = released.numpy()
    return convert.method_from_release("umgf", state, task="ner", num_attention_heads=HEADS, num_heads=GRAPH_HEADS)


@pytest.fixture(scope="module")
def converted(released):
    return to_ours(released)


@functools.partial(jax.jit, static_argnums=0)
def apply(method, variables, batch):
    return method.apply(variables, batch, train=False)


def default(converted, kind=EntityUMGF, **options):
    sizes = {"size": SIZE, "inner_size": INNER, "num_heads": GRAPH_HEADS, "num_layers": DEPTH, "pooled_layer": False}
    return kind(**{"num_labels": TAGS, "text": converted[0].text, **sizes, **options})


def default_objects(batch):
    batch = tensors(batch)
    objects = torch.cat([batch["image_pooled"][:, None], batch["region_pooled"]], 1)
    return objects, torch.cat([batch["image_mask"][:, None], batch["region_mask"]], 1)


def test_released_arithmetic_on_four_crops_from_pixels(batch):
    released = make_released(TorchvisionResNet(RESNET).double())
    generator = np.random.default_rng(3)
    pixels = generator.normal(size=(3, 4, 32, 32, 3)).astype(np.float32)
    crops = {"regions": pixels, "region_mask": np.ones((3, 4), bool)}
    maps = released.resnet(torch.tensor(pixels).double().flatten(0, 1).movedim(-1, 1))
    objects = released.resnet.fc(maps.mean((2, 3))).unflatten(0, (3, 4))
    expected = released.hidden2tag(released.fused(tensors(batch), objects, torch.ones(3, 4, dtype=torch.bool)))
    text = {name: value for name, value in batch.items() if not name.endswith("_pooled")}
    scores = apply(*to_ours(released), text | crops).scores
    valid = batch["attention_mask"]
    np.testing.assert_allclose(scores[valid], expected.detach()[valid], atol=1e-5)


def test_default_arithmetic_by_words_and_masks(released, converted, batch):
    expected = released.hidden2tag(at_words(released.fused(tensors(batch), *default_objects(batch)), tensors(batch)))
    valid = batch["word_mask"]
    found = apply(default(converted), converted[1], batch).scores
    np.testing.assert_allclose(found[valid], expected.detach()[valid], atol=1e-5)
    spoiled = {name: value.copy() for name, value in batch.items()}
    for part in ("image", "region"):
        spoiled[f"{part}_pooled"][~batch[f"{part}_mask"]] = np.nan
    spoiled["input_ids"][~batch["attention_mask"]] = 7
    np.testing.assert_array_equal(apply(default(converted), converted[1], spoiled).scores[valid], found[valid])


def test_the_text_only_form_is_that_of_missing_pictures(converted, batch):
    method = default(converted, use_pictures=False)
    assert [one.name for one in method.inputs] == ["pieces"] and method.left_out == "pictures"
    text = {name: value for name, value in batch.items() if not name.startswith(("image", "region"))}
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), text, train=False))["params"]
    kept = {name: {part: converted[1]["params"][name][part] for part in shapes[name]} for name in shapes}
    assert not any(name.startswith("object") for name in (*kept, *kept["layer_0"]))
    masked = batch | {"image_mask": np.zeros(3, bool), "region_mask": np.zeros((3, 3), bool)}
    expected = apply(default(converted), converted[1], masked).scores
    np.testing.assert_allclose(apply(method, {"params": kept}, text).scores, expected, atol=1e-6)


def test_relations_read_the_fused_states_at_the_markers(released, converted, batch):
    method = default(converted, RelationUMGF, num_labels=3)
    generator = np.random.default_rng(2)
    head = {"kernel": generator.normal(size=(2 * (HIDDEN + SIZE), 3)), "bias": generator.normal(size=3)}
    params = {name: value for name, value in converted[1]["params"].items() if name not in ("crf", "emission")}
    fused = at_markers(released.fused(tensors(batch), *default_objects(batch)), tensors(batch)).detach().numpy()
    logits = apply(method, {"params": params | {"classifier": head}}, batch).scores
    np.testing.assert_allclose(logits, fused @ head["kernel"] + head["bias"], atol=1e-4)


def test_gradients_reach_every_parameter(converted, batch):
    found = without_gradient(default(converted), converted[1], batch, lambda outputs: (outputs.scores**2).sum())
    # The CRF is read by the head; a key's bias shifts all logits of a query alike.
    assert {name for name in found if not name.endswith("key/bias")} == {
        f"crf/{name}" for name in ("transitions", "start_transitions", "end_transitions")
    }


def test_names_that_are_missing_or_unknown_are_errors(released):
    state = released.numpy()
    state["xgate.0.norms.weight"] = state.pop("xgate.0.norm.weight")
    with pytest.raises(ValueError, match=r"(?s)missing: xgate\.0\.norm\.weight.*extra: xgate\.0\.norms\.weight"):
        convert.method_from_release("umgf", state, task="ner", num_attention_heads=HEADS, num_heads=GRAPH_HEADS)
    with pytest.raises(ValueError, match="do not divide the size"):
        EntityUMGF(num_labels=TAGS, size=6, num_heads=4)
