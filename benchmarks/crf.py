"""The CRF beside pytorch-crf on CPU: forward + backward of the training loss, and decoding.

    python -m benchmarks.crf [--repeats 31] [--platform cuda]

Both programs run in turns in one process, on the same numbers, with as many threads as there are cores; a ratio is the
median over the turns of pytorch-crf's time divided by ours in that turn, so that a busy machine slows both; `best` is
the ratio of the shortest times, which such a machine disturbs least. Results are compared before anything is timed.
Forward + backward is −mean log p and its gradients by emissions and parameters; decoding ends with the tags in a NumPy
array (ours) or a list (pytorch-crf). `log space` is forward + backward on input for which the matrix products are not
exact (a tag reachable only from tags 100 nats below the best), so that the recursion is run again with log-sum-exp.
`in parallel` and `decode, unrolled` are what a program for a GPU holds (tmrjax/crf_parallel.py). On CPU they do more
work than the others; `--platform=cuda` runs all of ours on the GPU, where these two are what is taken and the others
are there to compare with. pytorch-crf stays on CPU.

PyTorch's steps vary up to fivefold under glibc's default allocator, so the program starts itself again with the
MALLOC_* variables below, which help both.
"""

import argparse
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from unittest import mock

import numpy as np

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
}
SIZES = [(32, 80, 13), (256, 128, 13)]


def problem(size: tuple[int, int, int], *, apart: bool) -> tuple[np.ndarray, ...]:
    """Emissions, tags, ragged mask, transitions, start and end transitions."""
    batch, time_steps, num_tags = size
    generator = np.random.default_rng(0)
    emissions = generator.normal(size=size).astype(np.float32)
    tags = generator.integers(0, num_tags, size[:2])
    mask = np.arange(time_steps) < generator.integers(1, time_steps + 1, (batch, 1))
    shapes = (num_tags, num_tags), (num_tags,), (num_tags,)
    transitions, start, end = (generator.uniform(-0.1, 0.1, shape).astype(np.float32) for shape in shapes)
    if apart:
        emissions[..., 1:3] -= 100
        transitions[np.arange(num_tags) > 2, 2] = transitions[0, 2] = -1e4
        tags = np.where(tags == 2, 3, tags)
    return emissions, tags, mask, transitions, start, end


def ours(size: tuple[int, int, int], *, apart: bool, parallel: bool = False) -> tuple[Callable, Callable]:
    """Two functions without arguments: loss with gradients, and tags; ``parallel``: as a GPU's program has them."""
    import jax
    import jax.numpy as jnp

    from tmrjax import crf, crf_fast

    def chosen(on_cpu, elsewhere, *arguments):
        return (elsewhere if parallel else on_cpu)(*arguments)

    emissions, tags, mask, *scores = map(jnp.asarray, problem(size, apart=apart))
    params = crf.CRFParams(*scores)

    def loss_and_gradients(emissions, tags, mask, params):
        return jax.value_and_grad(lambda e, p: -crf.log_likelihood(e, tags, mask, p).mean(), (0, 1))(emissions, params)

    with mock.patch.object(crf_fast, "by_platform", chosen):
        train = jax.jit(loss_and_gradients).lower(emissions, tags, mask, params).compile()
        decode = jax.jit(partial(crf.viterbi_decode)).lower(emissions, mask, params).compile()
    return (
        lambda: jax.block_until_ready(train(emissions, tags, mask, params)),
        lambda: np.asarray(decode(emissions, mask, params)[0]),
    )


def peers(size: tuple[int, int, int], *, apart: bool) -> tuple[Callable, Callable]:
    """The same two of pytorch-crf."""
    import torch
    import torchcrf

    emissions, tags, mask, *scores = map(torch.from_numpy, problem(size, apart=apart))
    emissions.requires_grad_()
    crf = torchcrf.CRF(size[2], batch_first=True)
    parameters = crf.transitions, crf.start_transitions, crf.end_transitions
    for parameter, value in zip(parameters, scores, strict=True):
        parameter.data = value

    def loss_and_gradients():
        for leaf in (emissions, *parameters):
            leaf.grad = None
        loss = -crf(emissions, tags, mask, reduction="mean")
        loss.backward()
        return loss.detach(), (emissions.grad, tuple(parameter.grad for parameter in parameters))

    def decode():
        with torch.no_grad():
            return crf.decode(emissions, mask)

    return loss_and_gradients, decode


def check(size: tuple[int, int, int], *, apart: bool, parallel: bool) -> None:
    """Stop unless both programs compute the same."""
    import jax

    (train, decode), (peer_train, peer_decode) = ours(size, apart=apart, parallel=parallel), peers(size, apart=apart)
    for mine, theirs in zip(jax.tree.leaves(train()), jax.tree.leaves(peer_train()), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=1e-5)
    for row, path in zip(decode(), peer_decode(), strict=True):
        np.testing.assert_array_equal(row[: len(path)], path)


def seconds_per_call(function: Callable, calls: int) -> float:
    """Mean of several calls in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls


def in_turns(mine: Callable, theirs: Callable, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds per call of each, [repeats] and [repeats]; a turn of either lasts about 50 ms or one call."""
    warm = [min(seconds_per_call(function, 1) for _ in range(5)) for function in (mine, theirs)]
    calls = [max(1, round(0.05 / seconds)) for seconds in warm]
    pairs = [(seconds_per_call(mine, calls[0]), seconds_per_call(theirs, calls[1])) for _ in range(repeats)]
    return tuple(np.transpose(pairs))


def main() -> None:
    """Print a line per size and operation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31, help="turns per measurement (default: 31)")
    parser.add_argument("--platform", default="cpu", help="of ours: cpu, or cuda on a machine with a GPU")
    options = parser.parse_args()
    repeats = options.repeats
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.crf", *sys.argv[1:]], {**os.environ, **MALLOC})
    os.environ["JAX_PLATFORMS"] = options.platform

    import torch

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "pytorch-crf", "numpy"))
    print(
        f"{platform.machine()}, {cores} threads each, {repeats} turns; Python {platform.python_version()}, {versions}"
    )
    print(f"{'B,T,K':>11}  {'what':<18}  {'tmrjax ms':>10}  {'pytorch-crf ms':>14}  ratio: median [min, max]  best")
    for size in SIZES:
        for apart, parallel in itertools.product((False, True), repeat=2):
            check(size, apart=apart, parallel=parallel)
        train, decode = ours(size, apart=False)
        parallel_train, parallel_decode = ours(size, apart=False, parallel=True)
        peer_train, peer_decode = peers(size, apart=False)
        for what, mine, theirs in (
            ("forward + backward", train, peer_train),
            ("in parallel", parallel_train, peer_train),
            ("decode", decode, peer_decode),
            ("decode, unrolled", parallel_decode, peer_decode),
            ("log space", ours(size, apart=True)[0], peers(size, apart=True)[0]),
        ):
            own, other = in_turns(mine, theirs, repeats)
            ratio = other / own
            milliseconds = f"{1e3 * np.median(own):10.2f}  {1e3 * np.median(other):14.2f}"
            print(
                f"{','.join(map(str, size)):>11}  {what:<18}  {milliseconds}"
                f"  {np.median(ratio):.1f} [{ratio.min():.1f}, {ratio.max():.1f}]  {other.min() / own.min():.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
