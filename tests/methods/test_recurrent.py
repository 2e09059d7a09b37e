"""LSTM against PyTorch's with packed sequences; words from characters against PyTorch, word by word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tmrjax.methods.parts.characters import CharacterConvolution, CharacterLSTM
from tmrjax.methods.parts.recurrent import LSTM

B, T, D, H = 4, 7, 5, 3
LENGTHS = np.array([7, 1, 4, 0])
MASK = np.arange(T) < LENGTHS[:, None]


def torch_lstm(params, inputs, hidden, *, bidirectional=True):
    """PyTorch's LSTM in float64 with our weights."""
    layers = len(params)
    module = torch.nn.LSTM(inputs, hidden, layers, batch_first=True, bidirectional=bidirectional).double()
    with torch.no_grad():
        for layer in range(layers):
            for name, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + bidirectional]:
                ours = params[f"layer_{layer}"][name]
                for theirs, own in (("weight_ih", "input_kernel"), ("weight_hh", "recurrent_kernel"),
                                    ("bias_ih", "input_bias"), ("bias_hh", "recurrent_bias")):  # fmt: skip
                    getattr(module, f"{theirs}_l{layer}{suffix}").copy_(torch.tensor(np.asarray(ours[own]).T))
    return module


def noisy(variables, seed=1):
    """Away from initial values: biases of zero would hide what is left out."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(generator.normal(0, 0.3, x.shape), x.dtype), variables)


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, True), (2, True), (1, False)])
def test_states_and_gradients_are_those_of_packed_sequences(layers, bidirectional):
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(B, T, D)).astype(np.float32)
    weight = generator.normal(size=(B, T, H * (1 + bidirectional))).astype(np.float32)
    module = LSTM(H, bidirectional, layers)
    variables = noisy(module.init(jax.random.key(0), inputs, MASK, train=False))

    @jax.jit
    def run(variables, inputs):
        def loss(variables, inputs):
            states, last = module.apply(variables, inputs, MASK, train=False)
            return jnp.sum(states * weight) + jnp.sum(last**2), (states, last)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, inputs)

    (gradients, input_gradient), (states, last) = run(variables, inputs)
    reference = torch_lstm(variables["params"], D, H, bidirectional=bidirectional)
    rows = [0, 1, 2]  # PyTorch packs no empty sequence
    x = torch.tensor(inputs[rows].astype(np.float64), requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS[rows], batch_first=True, enforce_sorted=False)
    output, (hidden, _) = reference(packed)
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=T)
    final = torch.cat(list(hidden[-(1 + bidirectional) :]), -1)
    ((output * torch.tensor(weight[rows])).sum() + (final**2).sum()).backward()
    np.testing.assert_allclose(states[np.array(rows)], output.detach(), atol=1e-6)
    np.testing.assert_allclose(last[np.array(rows)], final.detach(), atol=1e-6)
    np.testing.assert_allclose(input_gradient[np.array(rows)], x.grad, atol=1e-5)
    assert not np.asarray(states[3]).any() and not np.asarray(last[3]).any()
    for layer in range(layers):
        for name, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + bidirectional]:
            ours = gradients["params"][f"layer_{layer}"][name]
            for theirs, own in (("weight_ih", "input_kernel"), ("weight_hh", "recurrent_kernel"),
                                ("bias_ih", "input_bias"), ("bias_hh", "recurrent_bias")):  # fmt: skip
                expected = getattr(reference, f"{theirs}_l{layer}{suffix}").grad.numpy().T
                np.testing.assert_allclose(ours[own], expected, atol=1e-5, err_msg=f"{layer} {name} {own}")


def test_masked_positions_have_no_influence_even_as_nan():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(B, T, D)).astype(np.float32)
    holes = MASK.copy()
    holes[0, [0, 3]] = False  # no prefix: as if these positions were cut out
    module = LSTM(H)
    variables = module.init(jax.random.key(0), inputs, holes, train=False)
    run = jax.jit(jax.grad(lambda v, x: jnp.sum(module.apply(v, x, holes, train=False)[0] ** 2), argnums=(0, 1)))
    plain, spoiled = run(variables, inputs), run(variables, np.where(holes[..., None], inputs, np.nan))
    jax.tree.map(np.testing.assert_array_equal, plain[0], spoiled[0])
    assert np.isfinite(spoiled[1]).all()
    kept = [1, 2, 4, 5, 6]
    states, last = module.apply(variables, inputs, holes, train=False)
    alone, alone_last = module.apply(variables, inputs[:1, kept], np.ones((1, 5), bool), train=False)
    np.testing.assert_allclose(states[:1, kept], alone, atol=1e-6)
    np.testing.assert_allclose(last[:1], alone_last, atol=1e-6)


@pytest.fixture(scope="module")
def words():
    """[B, W, C] characters: lengths 6 (all of C), 1, 3 and 0, a word of padding."""
    generator = np.random.default_rng(0)
    ids = generator.integers(1, 12, (2, 2, 6)).astype(np.int32)
    lengths = np.array([[6, 1], [3, 0]])
    return np.where(np.arange(6) < lengths[..., None], ids, 0), lengths


def reference_convolution(params, word, window):
    """Over the characters of one word alone, in float64."""
    kernel = torch.tensor(np.asarray(params[f"convolution_{window}"]["kernel"], np.float64).transpose(2, 1, 0).copy())
    bias = torch.tensor(np.asarray(params[f"convolution_{window}"]["bias"], np.float64))
    embedded = torch.tensor(np.asarray(params["embedding"], np.float64)[word]).T[None]
    return torch.tanh(torch.nn.functional.conv1d(embedded, kernel, bias, padding=window // 2))[0]


def test_character_convolution_is_the_maximum_over_a_words_own_characters(words):
    ids, lengths = words
    module = CharacterConvolution(12, 5, 4, windows=(2, 3, 4))
    variables = noisy(jax.jit(lambda: module.init(jax.random.key(0), ids, train=False))())
    found = jax.jit(lambda ids: module.apply(variables, ids, train=False))(ids)
    for b, w in np.ndindex(2, 2):
        word = ids[b, w, : lengths[b, w]]
        expected = np.zeros((4, 3))
        for place, window in enumerate((2, 3, 4) if len(word) else ()):
            expected[:, place] = reference_convolution(variables["params"], word, window).max(1).values
        np.testing.assert_allclose(found[b, w], expected.reshape(-1), atol=1e-6, err_msg=str((b, w)))
    wider = np.concatenate([ids, np.zeros_like(ids)], -1)
    np.testing.assert_allclose(module.apply(variables, wider, train=False), found, atol=1e-6)


def test_released_character_convolution_reads_the_first_window_with_its_padding(words):
    ids, _ = words
    module = CharacterConvolution(12, 5, 4, windows=(2, 3, 4), literal=True)
    variables = noisy(jax.jit(lambda: module.init(jax.random.key(0), ids, train=False))())
    found = module.apply(variables, ids, train=False)
    for b, w in np.ndindex(2, 2):
        expected = np.zeros((4, 3))
        for place, window in enumerate((2, 3, 4)):
            outputs = reference_convolution(variables["params"], ids[b, w], window)[None]
            size = ids.shape[-1] - window + 1
            expected[:, place] = torch.nn.functional.max_pool1d(outputs, size)[0, :, 0]
        np.testing.assert_allclose(found[b, w], expected.reshape(-1), atol=1e-6, err_msg=str((b, w)))


def test_character_lstm_ends_at_a_words_last_character(words):
    ids, lengths = words
    module = CharacterLSTM(12, 5, 3)
    variables = noisy(jax.jit(lambda: module.init(jax.random.key(0), ids, train=False))())
    found = jax.jit(lambda ids: module.apply(variables, ids, train=False))(ids)
    reference = torch_lstm(variables["params"]["lstm"], 5, 3)
    table = np.asarray(variables["params"]["embedding"], np.float64)
    for b, w in np.ndindex(2, 2):
        expected = np.zeros(6)
        if lengths[b, w]:
            _, (hidden, _) = reference(torch.tensor(table[ids[b, w, : lengths[b, w]]])[None])
            expected = torch.cat(list(hidden), -1)[0].detach().numpy()
        np.testing.assert_allclose(found[b, w], expected, atol=1e-6)
