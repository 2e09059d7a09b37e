"""One training step of the divergence estimator at base size: pictures a second, beside transformers' torch ViLT.

python -m benchmarks.mde_step [--batch 4] [--repeats 3]                       # CPU, float32, torch in turns
python -m benchmarks.mde_step --batch 32 256 --dtype bfloat16 --no-torch      # a GPU, with its share of peak

ViLT-B/32 (12 layers of 768, 111 million parameters), texts of 40 pieces, pictures of 384 x 640 pixels (240 patches, all
of them kept), cross-entropy over three classes, clipping at norm 1, AdamW. On the other side ``ViltModel`` of
transformers with the same head, ``clip_grad_norm_`` and ``torch.optim.AdamW``. Both programs step in turns in one
process, so that a noisy machine is noisy for both; steps during which other programs took more than a tenth of the
cores are told. The share of peak counts 6 operations per parameter of the blocks and token, and 12 S² D per layer for
attention, and needs --peak-tflops (989 for an H100 in bfloat16).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

import numpy as np

from benchmarks.bert_step import MALLOC, timed

LENGTH, HEIGHT, WIDTH = 40, 384, 640


def make_batch(rows: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Pairs with full texts and full pictures."""
    return {
        "input_ids": generator.integers(1000, 20000, (rows, LENGTH)).astype(np.int32),
        "attention_mask": np.ones((rows, LENGTH), bool),
        "pixel_values": generator.uniform(-1, 1, (rows, HEIGHT, WIDTH, 3)).astype(np.float32),
        "pixel_mask": np.ones((rows, HEIGHT, WIDTH), bool),
        "labels": generator.integers(0, 3, rows).astype(np.int32),
        "sources": np.zeros(rows, np.int32),
        "row_mask": np.ones(rows, bool),
    }


def jax_step(batch: dict[str, np.ndarray], mode: str, dtype: str, remat: bool):
    """(a function that takes one step and returns its loss, parameters of the blocks)."""
    import jax
    import jax.numpy as jnp

    from tmrjax.divergence import DivergenceEstimator
    from tmrjax.divergence.loss import make_loss
    from tmrjax.encoders.joint.vilt import ViltConfig
    from tmrjax.training.optimizer import OptimizerSettings, make_optimizer, parameter_groups
    from tmrjax.training.sharding import make_mesh, owned, replicate, shard_batch
    from tmrjax.training.step import create_state, make_train_step

    model = DivergenceEstimator(ViltConfig(30522, 768, 12, 12, 3072, LENGTH), dtype=jnp.dtype(dtype), remat=remat)
    mesh = make_mesh(1)
    row = {name: value[:1] for name, value in batch.items()}
    # Drawn by numpy: to compile the initialisation takes longer than the step does.
    shapes = jax.eval_shape(lambda key: model.init(key, row, train=False), jax.random.key(0))["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.02, leaf.shape).astype(np.float32), shapes)
    optimizer = make_optimizer(OptimizerSettings(1000, {"all": 1e-4}), parameter_groups(params, [(".*", "all")]))
    state = owned(replicate(jax.device_get(create_state({"params": params}, optimizer, seed=0)), mesh))
    placed = shard_batch(batch, mesh)
    compiled = make_train_step(make_loss(model, mode), optimizer, mesh).lower(state, placed).compile()
    blocks = sum(
        leaf.size for name in params["vilt"] if "layer_" in name for leaf in jax.tree.leaves(params["vilt"][name])
    )

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, placed)
        return float(metrics["loss"])

    return step, blocks


def torch_step(batch: dict[str, np.ndarray]):
    """The same in PyTorch."""
    import torch
    import transformers

    torch.manual_seed(0)
    vilt = transformers.ViltModel(transformers.ViltConfig(max_image_length=-1))
    head = torch.nn.Sequential(
        torch.nn.Linear(768, 1536), torch.nn.LayerNorm(1536), torch.nn.GELU(), torch.nn.Linear(1536, 3)
    )
    model = torch.nn.ModuleDict({"vilt": vilt, "head": head}).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01)
    inputs = {
        "input_ids": torch.tensor(batch["input_ids"]).long(),
        "attention_mask": torch.tensor(batch["attention_mask"]).long(),
        "pixel_values": torch.tensor(batch["pixel_values"]).movedim(-1, 1).contiguous(),
        "pixel_mask": torch.tensor(batch["pixel_mask"]).long(),
    }
    labels = torch.tensor(batch["labels"]).long()

    def step() -> float:
        loss = torch.nn.functional.cross_entropy(head(vilt(**inputs).pooler_output), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def operations(blocks: int, rows: int) -> float:
    """Of one step: forward and backward through the blocks and their attention."""
    tokens = LENGTH + 1 + HEIGHT * WIDTH // 32**2
    return rows * (6 * blocks * tokens + 12 * 12 * tokens**2 * 768)


def main() -> None:
    """Steps in turns, a line per batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mode", default="cross_entropy", help="of the training; torch's is cross-entropy always")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device in this precision")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        module = [sys.executable, "-m", "benchmarks.mde_step", *sys.argv[1:]]
        os.execve(sys.executable, module, {**os.environ, **MALLOC})
    for rows in options.batch:
        batch = make_batch(rows, np.random.default_rng(0))
        step, blocks = jax_step(batch, options.mode, options.dtype, options.remat)
        steps = {"tmrjax": step}
        if not options.no_torch:
            import torch

            torch.set_num_threads(options.threads)
            steps["torch"] = torch_step(batch)
        for one in steps.values():
            one()
        turns = [{name: timed(one) for name, one in steps.items()} for _ in range(options.repeats)]
        parts = []
        for name in steps:
            seconds = statistics.median(turn[name].seconds for turn in turns)
            parts.append(f"{name} {seconds:.2f} s a step, {rows / seconds:.2f} pictures/s")
        seconds = statistics.median(turn["tmrjax"].seconds for turn in turns)
        parts.append(f"{operations(blocks, rows) / seconds / 1e12:.3f} Tflop/s")
        if options.peak_tflops:
            parts.append(f"{100 * operations(blocks, rows) / seconds / 1e12 / options.peak_tflops:.1f} % of peak")
        if "torch" in steps:
            ratio = statistics.median(turn["torch"].seconds / turn["tmrjax"].seconds for turn in turns)
            parts.append(f"torch's step takes {ratio:.2f} times ours")
        disturbed = sum(max(one.others for one in turn.values()) > 0.1 for turn in turns)
        print(
            f"batch {rows}, {options.dtype}: {'; '.join(parts)}; {disturbed} of {options.repeats} turns disturbed",
            flush=True,
        )


if __name__ == "__main__":
    main()
