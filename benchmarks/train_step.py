"""One training step at real size beside PyTorch: BERT-base, ResNet-50, batch 4, 32 pictures of 224 x 224, 80 pieces.

python -m benchmarks.train_step [--rounds 3] [--programs jax-pixels torch-pixels jax-features torch-features]

Every program is a process of its own; the parent lets them step in turns, so that a noisy machine is noisy for all, and
reads each one's peak memory at the end. The PyTorch programs are transformers' BertModel and ResNetModel with the same
two grains of attention, pytorch-crf and AdamW. ResNet statistics are frozen in all; weights are random. The children
get the MALLOC_* variables without which PyTorch's steps vary up to fivefold on CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

BATCH, LENGTH, WORDS, PHRASE, TAGS = 4, 80, 78, 6, 9
PREFIXES = ("", "generated_")
RATES = {"encoder": 3e-5, "fusion": 1e-3, "crf": 1e-3}
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
}


def make_batch(pixels: bool) -> dict[str, np.ndarray]:
    """Four posts with all of their pictures."""
    generator = np.random.default_rng(0)
    batch = {
        "input_ids": generator.integers(0, 30522, (BATCH, LENGTH)).astype(np.int32),
        "attention_mask": np.ones((BATCH, LENGTH), bool),
        "word_starts": np.tile(np.arange(1, WORDS + 1, dtype=np.int32), (BATCH, 1)),
        "word_mask": np.ones((BATCH, WORDS), bool),
        "tags": generator.integers(0, TAGS, (BATCH, WORDS)).astype(np.int32),
        "phrase_ids": generator.integers(0, 30522, (BATCH, PHRASE)).astype(np.int32),
        "phrase_mask": np.ones((BATCH, PHRASE), bool),
        "row_mask": np.ones(BATCH, bool),
    }
    names, shape = (
        (("image", "regions"), (224, 224, 3)) if pixels else (("image_features", "region_features"), (49, 2048))
    )
    for prefix in PREFIXES:
        batch[prefix + names[0]] = generator.normal(size=(BATCH, *shape)).astype(np.float32)
        batch[prefix + names[1]] = generator.normal(size=(BATCH, 3, *shape)).astype(np.float32)
        batch[f"{prefix}image_mask"] = np.ones(BATCH, bool)
        batch[f"{prefix}region_mask"] = np.ones((BATCH, 3), bool)
        batch[f"{prefix}scores"] = np.full((BATCH, 3), 1 / 3, np.float32)
    return batch


def jax_program(pixels: bool):
    """(step, parts): functions that run one whole step, or forward and backward of one encoder, and wait for it."""
    import jax
    import jax.numpy as jnp

    from tmrjax.compilation import return_memory
    from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
    from tmrjax.encoders.text.bert import BertConfig, BertEncoder
    from tmrjax.heads.crf_head import CRFHead
    from tmrjax.methods.tmr import EntityTMR
    from tmrjax.training.optimizer import OptimizerSettings, make_optimizer, parameter_groups
    from tmrjax.training.sharding import make_mesh, owned, replicate, shard_batch
    from tmrjax.training.step import create_state, make_loss, make_train_step

    bert = BertConfig(30522, 768, 12, 12, 3072, 512)
    model = EntityTMR(text=bert, num_labels=TAGS, picture=ResNetConfig.resnet50() if pixels else None)
    mesh, batch = make_mesh(1), make_batch(pixels)
    row = {name: value[:1] for name, value in batch.items()}
    variables = jax.jit(lambda key: model.init(key, row, train=False))(jax.random.key(0))
    groups = parameter_groups(variables["params"], model.rates, model.frozen)
    optimizer = make_optimizer(OptimizerSettings(1000, RATES), groups)
    state = owned(replicate(jax.device_get(create_state(variables, optimizer, seed=0)), mesh))
    placed = shard_batch(batch, mesh)
    loss = make_loss(model, CRFHead(tuple(map(str, range(TAGS)))))
    compiled = make_train_step(loss, optimizer, mesh).lower(state, placed).compile()
    return_memory()

    def step():
        nonlocal state
        state, metrics = compiled(state, placed)
        jax.block_until_ready(metrics)

    encoder = BertEncoder(bert)

    def states(params, ids, mask):
        key = jax.random.key(0, impl="rbg")
        return encoder.apply({"params": params}, batch[ids], batch[mask], train=True, rngs={"dropout": key})[0].sum()

    def both(params):
        return states(params, "input_ids", "attention_mask") + states(params, "phrase_ids", "phrase_mask")

    text = jax.jit(jax.grad(both))
    parts = {"BERT": lambda: jax.block_until_ready(text(state.params["bert"]))}
    if pixels:
        resnet = ResNetEncoder(ResNetConfig.resnet50())
        stacked = jnp.concatenate(
            [placed[p + "image"] for p in PREFIXES] + [placed[p + "regions"].reshape(-1, 224, 224, 3) for p in PREFIXES]
        )

        @jax.jit
        def pictures(params, statistics):
            return jax.grad(
                lambda p: resnet.apply({"params": p, "batch_stats": statistics}, stacked, train=True).tokens.sum()
            )(params)

        parts["ResNet"] = lambda: jax.block_until_ready(
            pictures(state.params["picture_encoder"]["resnet"], state.statistics["picture_encoder"]["resnet"])
        )
    return step, parts


def torch_program(pixels: bool):
    """The same in PyTorch."""
    import torch
    import transformers
    from torchcrf import CRF

    torch.set_num_threads(os.cpu_count())

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = transformers.BertModel(
                transformers.BertConfig(attn_implementation="sdpa"), add_pooling_layer=False
            )
            self.resnet = transformers.ResNetModel(transformers.ResNetConfig()).eval() if pixels else None
            self.visual = torch.nn.Linear(2048, 768)
            self.grains = torch.nn.ModuleDict({g: torch.nn.Linear(768, 768, bias=False) for g in ("fine", "coarse")})
            self.norms = torch.nn.ModuleDict({g: torch.nn.LayerNorm(768) for g in ("fine", "coarse", "text")})
            self.attention = torch.nn.MultiheadAttention(768, 8, batch_first=True)
            self.emission, self.crf = torch.nn.Linear(768, TAGS), CRF(TAGS, batch_first=True)

        def encode(self, pictures):
            flat = pictures.flatten(0, -4).movedim(-1, 1)
            return self.resnet(flat).last_hidden_state.flatten(2).movedim(1, 2).reshape(*pictures.shape[:-3], 49, 2048)

        def grain(self, name, visual, text):
            weights = torch.softmax(self.grains[name](visual) @ text.transpose(1, 2) / 768**0.5, -1)
            return self.norms[name]((weights @ text + visual).mean(1))

        def forward(self, batch):
            text = self.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
            phrases = self.bert(batch["phrase_ids"], batch["phrase_mask"]).last_hidden_state
            keys = []
            for prefix in PREFIXES:
                if pixels:
                    pictures = torch.cat([batch[f"{prefix}image"][:, None], batch[f"{prefix}regions"]], 1)
                    maps = self.encode(pictures)
                    image, regions = maps[:, 0], maps[:, 1:]
                else:
                    image, regions = batch[f"{prefix}image_features"], batch[f"{prefix}region_features"]
                fine = self.grain("fine", self.visual(image), text)
                coarse = self.grain("coarse", self.visual(regions.mean(2)), phrases)
                scores = batch[f"{prefix}scores"]
                keys.append(scores[:, 2:] * fine + scores[:, 1:2] * coarse)
            keys = torch.stack(keys, 1)
            states = self.norms["text"](text + self.attention(text, keys, keys)[0])
            words = states.gather(1, batch["word_starts"][..., None].expand(-1, -1, 768))
            return -self.crf(self.emission(words), batch["tags"], mask=batch["word_mask"], reduction="mean")

    model = Model()
    model.bert.train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-5)
    batch = {name: torch.tensor(value) for name, value in make_batch(pixels).items()}
    batch = {name: value.long() if value.dtype == torch.int32 else value for name, value in batch.items()}

    def step():
        optimizer.zero_grad()
        model(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, {}


PROGRAMS = {
    "jax-pixels": lambda: jax_program(True),
    "torch-pixels": lambda: torch_program(True),
    "jax-features": lambda: jax_program(False),
    "torch-features": lambda: torch_program(False),
}


def work(build: Callable[[], tuple[Callable, dict]]) -> None:
    """A child: build, then a step for every line of input, seconds out; at the end parts and peak memory."""
    start = time.perf_counter()
    step, parts = build()
    step()
    print(json.dumps({"ready": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        start = time.perf_counter()
        step()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    # Parts keep gradients of their own: the peak is read before them.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = {}
    for part, run in parts.items():
        run()
        start = time.perf_counter()
        run()
        seconds[part] = time.perf_counter() - start
    print(json.dumps({"peak_gib": peak, "parts": seconds}), flush=True)


def race(module: str, programs: Sequence[str], rounds: int, title: str) -> None:
    """Start ``python -m module --worker=PROGRAM`` for each, let them step in turns, print the table."""
    children, seconds = {}, {name: [] for name in programs}

    def read(name):
        line = children[name].stdout.readline()
        if not line:
            raise RuntimeError(f"{name} ended early with code {children[name].wait()}")
        return json.loads(line)

    for name in programs:
        arguments = [sys.executable, "-m", module, f"--worker={name}"]
        children[name] = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC
        )
        print(f"{name}: ready after {read(name)['ready']:.0f} s (compilation and a first step)", flush=True)
    for _ in range(rounds):
        for name in programs:
            children[name].stdin.write("step\n")
            children[name].stdin.flush()
            seconds[name].append(read(name)["seconds"])
    print(f"\n{os.cpu_count()} cores, {title}")
    print(f"{'program':16} {'seconds a step':>15} {'min':>7} {'max':>7} {'peak GiB':>9}  forward + backward alone")
    for name in programs:
        children[name].stdin.write("end\n")
        children[name].stdin.flush()
        last = read(name)
        parts = ", ".join(f"{part} {value:.2f} s" for part, value in last["parts"].items())
        median, low, high = np.median(seconds[name]), min(seconds[name]), max(seconds[name])
        print(f"{name:16} {median:15.2f} {low:7.2f} {high:7.2f} {last['peak_gib']:9.1f}  {parts}", flush=True)
        children[name].wait()


def main() -> None:
    """Read the flags; a child works, the parent lets the children race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--worker", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(PROGRAMS[options.worker])
        return
    title = f"batch {BATCH}, {BATCH * 8} pictures, {LENGTH} word pieces, float32"
    race("benchmarks.train_step", options.programs, options.rounds, title)


if __name__ == "__main__":
    main()
