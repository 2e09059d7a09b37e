"""RpBERT against a PyTorch reference under the released names: both passes, its second stream, masks, gradients."""

import functools

import jax
import numpy as np
import pytest
import torch
import torchcrf
import transformers
from torch import nn

from tests.methods.torch_blocks import (
    HEADS,
    HIDDEN,
    Reference,
    at_words,
    bert_config,
    tensors,
    text_batch,
    without_gradient,
)
from tmrjax import convert
from tmrjax.encoders.open import text_config
from tmrjax.methods.rpbert import RpBERT

FEATURES, PATCHES, VECTORS, RECURRENT, TAGS = 6, 4, 5, 3, 5


class Released(Reference):
    def __init__(self):
        super().__init__()
        self.bert = transformers.BertModel(bert_config())
        self.proj, self.aux_head = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 2)
        self.rnn = nn.LSTM(HIDDEN + VECTORS, RECURRENT, 2, batch_first=True, bidirectional=True)
        self.head, self.crf = nn.Linear(2 * RECURRENT, TAGS), torchcrf.CRF(TAGS, batch_first=True)

    def one_pass(self, batch, gate, literal):
        """States of the text, one post at a time where the order of text and picture is the post's own."""
        ids, mask = batch["input_ids"].long(), batch["attention_mask"]
        visual = gate[:, None, None] * self.proj(batch["image_features"])
        rows = []
        for b in range(len(ids)):
            length = ids.shape[1] if literal else int(mask[b].sum())
            there = bool(literal or batch["image_mask"][b])
            text = self.bert.embeddings.word_embeddings(ids[b, :length])
            joined = torch.cat([text, visual[b]] if there else [text])[None]
            types = torch.tensor([[0] * length + [1] * PATCHES * there])
            valid = torch.cat([mask[b, :length], torch.ones(PATCHES * there)])[None]
            states = self.bert(inputs_embeds=joined, token_type_ids=types, attention_mask=valid).last_hidden_state
            rows.append(nn.functional.pad(states[0, :length], (0, 0, 0, ids.shape[1] - length)))
        return torch.stack(rows)

    def relation(self, batch, literal):
        return self.aux_head(self.one_pass(batch, torch.ones(len(batch["input_ids"])), literal)[:, 0])

    def words(self, text, batch, literal):
        if not literal:
            return at_words(text, batch)
        starts, words = batch["word_starts"], torch.zeros(*batch["word_starts"].shape, HIDDEN).double()
        for b, count in enumerate(batch["word_mask"].sum(1)):
            ends = [*starts[b, 1:count].tolist(), int(batch["attention_mask"][b].sum()) - 1]
            for j, end in enumerate(ends):
                words[b, j] = text[b, starts[b, j] : end].mean(0)
        return words

    def forward(self, batch, literal):
        """(emissions, r, states of the text)."""
        relation = self.relation(batch, literal)
        text = self.one_pass(batch, torch.softmax(relation, -1)[:, 1], literal)
        words = torch.cat([self.words(text, batch, literal), batch["word_vectors"]], -1)
        lengths = batch["word_mask"].sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        tagged, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=5)
        return self.head(tagged), relation, text


@pytest.fixture(scope="module")
def released():
    torch.manual_seed(0)
    return Released().randomise()


def pictures(generator, prefix=""):
    return {
        f"{prefix}image_features": generator.normal(size=(3, PATCHES, FEATURES)).astype(np.float32),
        f"{prefix}image_mask": np.array([True, True, False]),
    }


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(3, 5, VECTORS)).astype(np.float32)
    return text_batch(generator) | pictures(generator) | {"word_vectors": vectors}


@pytest.fixture(scope="module")
def second():
    """The second stream has other posts of another length."""
    generator = np.random.default_rng(1)
    text = text_batch(generator)
    found = {name: np.pad(text[name], ((0, 0), (0, 2))) for name in ("input_ids", "attention_mask")}
    found = {f"second_{name}": value for name, value in found.items()} | pictures(generator, "second_")
    return found | {"second_picture_adds": np.array([1, 0, 1]), "second_row_mask": np.array([True, True, True])}


@pytest.fixture(scope="module")
def converted(released):
    return convert.method_from_release("rpbert", released.numpy(), task="ner", num_attention_heads=HEADS)


@functools.partial(jax.jit, static_argnums=0)
def apply(method, variables, batch):
    return method.apply(variables, batch, train=False)


def default(converted, **options):
    sizes = {"num_labels": TAGS, "text": converted[0].text, "word_size": VECTORS, "recurrent_size": RECURRENT}
    return RpBERT(**sizes | options)


def test_released_arithmetic(released, converted, batch):
    whole = batch | {"image_mask": np.ones(3, bool)}
    emissions, relation, _ = released(tensors(whole), literal=True)
    found, valid = apply(*converted, whole), batch["word_mask"]
    np.testing.assert_allclose(found.scores[valid], emissions.detach()[valid], atol=1e-5)
    np.testing.assert_allclose(found.states["relation"], relation.detach(), atol=1e-5)
    assert converted[0].literal and converted[0].word_size == VECTORS and not converted[0].piece_tags


def test_default_arithmetic_of_both_streams(released, converted, batch, second):
    emissions, relation, text = released(tensors(batch), literal=False)
    found, valid = apply(default(converted), converted[1], batch | second), batch["word_mask"]
    np.testing.assert_allclose(found.scores[valid], emissions.detach()[valid], atol=1e-5)
    np.testing.assert_allclose(found.states["relation"], relation.detach(), atol=1e-5)
    pieces = batch["attention_mask"]
    np.testing.assert_allclose(found.states["text_states"][pieces], text.detach()[pieces], atol=1e-5)

    others = tensors({name.removeprefix("second_"): value for name, value in second.items()})
    logits = released.relation(others, literal=False)
    expected = 0.05 * nn.functional.cross_entropy(logits, others["picture_adds"], reduction="none").detach().numpy()
    expected[2] = 0  # without a picture there is nothing to tell
    np.testing.assert_allclose(found.losses["picture_adds"], expected, atol=1e-6)

    spoiled = {name: value.copy() for name, value in (batch | second).items()}
    spoiled["image_features"][2] = spoiled["second_image_features"][2] = np.nan
    spoiled["input_ids"][~batch["attention_mask"]] = 7
    again = apply(default(converted), converted[1], spoiled)
    np.testing.assert_array_equal(again.scores[valid], found.scores[valid])
    np.testing.assert_array_equal(again.losses["picture_adds"], found.losses["picture_adds"])


def test_a_post_does_not_depend_on_its_batch(converted, batch):
    wide = {name: batch[name] for name in batch}
    for name in ("input_ids", "attention_mask"):
        wide[name] = np.pad(batch[name], ((0, 0), (0, 4)))
    valid = batch["word_mask"]
    scores = [apply(default(converted), converted[1], one).scores[valid] for one in (batch, wide)]
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_the_text_only_form_is_that_of_missing_pictures(converted, batch, second):
    method = default(converted, use_pictures=False)
    assert [one.name for one in method.inputs] == ["pieces", "word_ids"] and method.second == ()
    assert method.left_out == "pictures" and default(converted, use_gate=False).left_out == "gate"
    assert [one.name for one in default(converted).second] == ["pieces", "pictures", "picture_adds"]
    params = {n: p for n, p in converted[1]["params"].items() if n not in ("visual_projection", "relation_classifier")}
    text = {name: value for name, value in batch.items() if not name.startswith("image")}
    valid, missing = batch["word_mask"], batch | {"image_mask": np.zeros(3, bool)}
    found = apply(method, {"params": params}, text).scores[valid]
    np.testing.assert_allclose(found, apply(default(converted), converted[1], missing).scores[valid], atol=1e-6)


def test_gradients_reach_every_parameter_and_words_come_from_a_table(converted, batch, second):
    method = default(converted, num_words=9, freeze_words=False)
    assert default(converted).frozen == ("word_embeddings/.*",) and method.frozen == ()
    table = {"embedding": np.random.default_rng(4).normal(size=(9, VECTORS)).astype(np.float32)}
    ids = np.arange(15).reshape(3, 5) % 9
    looked_up = {name: value for name, value in batch.items() if name != "word_vectors"} | {"word_ids": ids}
    variables = {"params": converted[1]["params"] | {"word_embeddings": table}}
    expected = apply(default(converted), converted[1], batch | {"word_vectors": table["embedding"][ids]}).scores
    np.testing.assert_allclose(apply(method, variables, looked_up).scores, expected, atol=1e-6)

    def loss(outputs):
        return (outputs.scores**2).sum() + outputs.losses["picture_adds"].sum()

    unreached = without_gradient(method, variables, looked_up | second, loss)
    # The CRF is read by the head; a key's bias shifts all logits of a query alike.
    assert {name for name in unreached if not name.endswith("key/bias")} == {
        f"crf/{name}" for name in ("transitions", "start_transitions", "end_transitions")
    }


def test_what_does_not_fit_is_an_error(released, converted, batch):
    state = released.numpy()
    state["aux.bias"] = state.pop("aux_head.bias")
    with pytest.raises(ValueError, match=r"(?s)missing: aux_head\.bias.*extra: aux\.bias"):
        convert.method_from_release("rpbert", state, task="ner", num_attention_heads=HEADS)
    roberta = text_config({**converted[0].text.to_dict(), "model_type": "roberta", "type_vocab_size": 1})
    with pytest.raises(ValueError, match="second token type"):
        RpBERT(num_labels=TAGS, text=roberta)
    many = batch | {"image_features": np.zeros((3, 26, FEATURES), np.float32)}
    with pytest.raises(ValueError, match="7 word pieces and 26 patches exceed"):
        apply(default(converted), converted[1], many)
