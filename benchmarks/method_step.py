"""One training step of HVPNeT and of UMT at the size of BERT-base beside PyTorch: batch 8, 80 pieces, cached features.

python -m benchmarks.method_step [--rounds 5] [--programs jax-hvpnet torch-hvpnet jax-umt torch-umt]

Programs take turns as in :mod:`benchmarks.train_step`. The PyTorch programs have the arithmetic of this project's
default form: BERT's layers over ``scaled_dot_product_attention``, the method's own layers, pytorch-crf, clipping at
norm 1, AdamW; dropout 0.1 as in BERT. Features are what a ResNet-50 makes of pictures of 224 x 224; weights are random.
"""

from __future__ import annotations

import argparse
import os

import numpy as np

from benchmarks.train_step import race, work

BATCH, LENGTH, WORDS, TAGS, SPANS = 8, 80, 78, 9, 3
WIDTH, HEADS, DEPTH, INNER, VOCABULARY = 768, 12, 12, 3072, 30522
STAGES = ((56, 256), (28, 512), (14, 1024), (7, 2048))
RATES = {"encoder": 3e-5, "fusion": 3e-5, "crf": 1e-3}


def make_batch(method: str) -> dict:
    """Posts with all of their pictures."""
    generator = np.random.default_rng(0)
    batch = {
        "input_ids": generator.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32),
        "attention_mask": np.ones((BATCH, LENGTH), bool),
        "word_starts": np.tile(np.arange(1, WORDS + 1, dtype=np.int32), (BATCH, 1)),
        "word_mask": np.ones((BATCH, WORDS), bool),
        "tags": generator.integers(0, TAGS, (BATCH, WORDS)).astype(np.int32),
        "row_mask": np.ones(BATCH, bool),
        "image_mask": np.ones(BATCH, bool),
    }
    if method == "umt":
        return batch | {"image_features": generator.normal(size=(BATCH, 49, 2048)).astype(np.float32)}

    def stages(*count):
        return tuple(generator.random((BATCH, *count, side, side, size), np.float32) for side, size in STAGES)

    return batch | {"image_stages": stages(), "region_stages": stages(3), "region_mask": np.ones((BATCH, 3), bool)}


def jax_program(method: str):
    """A function that takes a whole step and waits for it."""
    import jax

    from tmrjax.encoders.text.bert import BertConfig
    from tmrjax.heads.crf_head import CRFHead
    from tmrjax.methods import find_method
    from tmrjax.training.optimizer import OptimizerSettings, make_optimizer, parameter_groups
    from tmrjax.training.sharding import make_mesh, owned, replicate, shard_batch
    from tmrjax.training.step import create_state, make_loss, make_train_step

    bert = BertConfig(VOCABULARY, WIDTH, DEPTH, HEADS, INNER, 512)
    model = find_method(method, "ner")(text=bert, num_labels=TAGS)
    mesh, batch = make_mesh(1), make_batch(method)
    row = jax.tree.map(lambda value: value[:1], batch)
    variables = jax.jit(lambda key: model.init(key, row, train=False))(jax.random.key(0))
    groups = parameter_groups(variables["params"], model.rates, model.frozen)
    optimizer = make_optimizer(OptimizerSettings(1000, RATES), groups)
    state = owned(replicate(jax.device_get(create_state(variables, optimizer, seed=0)), mesh))
    placed = shard_batch(batch, mesh)
    loss = make_loss(model, CRFHead(tuple(map(str, range(TAGS)))))
    compiled = make_train_step(loss, optimizer, mesh).lower(state, placed).compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, placed)
        jax.block_until_ready(metrics)

    return step, {}


def torch_program(method: str):
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional
    from torchcrf import CRF

    torch.set_num_threads(os.cpu_count())

    class Layer(nn.Module):
        """BERT's layer with queries from x, keys and values from y behind those of a prefix."""

        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.first, self.second = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, 1e-12) for _ in range(2))
            self.drop = nn.Dropout(0.1)

        def forward(self, x, y, prefix=()):
            def heads(states):
                return states.unflatten(-1, (HEADS, -1)).transpose(1, 2)

            parts = [heads(layer(y)) for layer in (self.key, self.value)]
            if len(prefix):
                parts = [torch.cat([heads(own), part], 2) for own, part in zip(prefix, parts, strict=True)]
            attended = functional.scaled_dot_product_attention(heads(self.query(x)), *parts, dropout_p=0.1)
            x = self.norms[0](x + self.drop(self.out(attended.transpose(1, 2).flatten(2))))
            return self.norms[1](x + self.drop(self.second(functional.gelu(self.first(x)))))

    class Tagger(nn.Module):
        """BERT, and a CRF over words."""

        def __init__(self):
            super().__init__()
            self.word, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(512, WIDTH)
            self.kind, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, 1e-12)
            self.layers, self.drop = nn.ModuleList(Layer() for _ in range(DEPTH)), nn.Dropout(0.1)
            self.crf = CRF(TAGS, batch_first=True)

        def read(self, batch, prefixes=((),) * DEPTH):
            x = self.word(batch["input_ids"]) + self.position.weight[:LENGTH] + self.kind.weight[0]
            x = self.drop(self.norm(x))
            for layer, prefix in zip(self.layers, prefixes, strict=True):
                x = layer(x, x, prefix)
            return x

        def at_words(self, states, batch):
            return states.gather(1, batch["word_starts"][..., None].expand(-1, -1, states.shape[-1]))

    class HVPNeT(Tagger):
        """A prefix of four rows a picture from the four quarters of all stages."""

        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(sum(size for _, size in STAGES), 800)
            self.output = nn.Linear(800, 8 * WIDTH)
            self.gates = nn.ModuleList(nn.Linear(8 * WIDTH, 4) for _ in range(DEPTH))
            self.emission = nn.Linear(WIDTH, TAGS)

        def forward(self, batch):
            quarters = []
            for whole, regions in zip(batch["image_stages"], batch["region_stages"], strict=True):
                maps = torch.cat([whole[:, None], regions], 1)
                half = maps.shape[2] // 2
                halves = slice(maps.shape[2] - half), slice(half, None)
                means = [maps[:, :, y, x].mean((2, 3)) for y in halves for x in halves]
                quarters.append(torch.stack(means, 2))
            mapped = self.output(torch.tanh(self.hidden(torch.cat(quarters, -1)))).unflatten(-1, (4, 2 * WIDTH))
            mean, prefixes = mapped.mean(3).flatten(2), []
            for gate in self.gates:
                weights = torch.softmax(functional.leaky_relu(gate(mean), 0.01), -1)
                both = torch.einsum("bnc,bnpcd->bnpd", weights, mapped).flatten(1, 2)
                prefixes.append(both.chunk(2, -1))
            words = self.at_words(self.drop(self.read(batch, prefixes)), batch)
            return -self.crf(self.emission(words), batch["tags"], mask=batch["word_mask"], reduction="mean")

    class UMT(Tagger):
        """Attention between words and patches, and span tags."""

        def __init__(self):
            super().__init__()
            self.own, self.span, self.see, self.back, self.again = (Layer() for _ in range(5))
            self.maps = nn.ModuleList(nn.Linear(2048, WIDTH) for _ in range(2))
            self.gate, self.emission = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, TAGS)
            self.span_emission, self.span_crf = nn.Linear(WIDTH, SPANS), CRF(SPANS, batch_first=True)
            spans = torch.tensor([0] + [1, 2] * ((TAGS - 1) // 2))
            spread = functional.one_hot(spans, SPANS).T.float()
            self.register_buffer("spans", spans)
            self.register_buffer("spread", spread / spread.sum(1, keepdim=True))

        def forward(self, batch):
            text = self.drop(self.read(batch))
            own, spans = self.own(text, text), self.at_words(self.span(text, text), batch)
            first, second = (layer(batch["image_features"]) for layer in self.maps)
            seen = self.see(own, first)
            aware = self.again(own, self.back(second, own))
            fused = torch.cat([aware, torch.sigmoid(self.gate(torch.cat([aware, seen], -1))) * seen], -1)
            scores = self.span_emission(spans)
            emissions = 0.5 * self.emission(self.at_words(fused, batch)) + 0.5 * scores @ self.spread
            mask, tags = batch["word_mask"], batch["tags"]
            loss = self.crf(emissions, tags, mask=mask, reduction="mean")
            return -loss - 0.5 * self.span_crf(scores, self.spans[tags], mask=mask, reduction="mean")

    model = {"hvpnet": HVPNeT, "umt": UMT}[method]().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-5)

    def tensor(value):
        if isinstance(value, tuple):
            return tuple(map(torch.tensor, value))
        return torch.tensor(value.astype(np.int64) if value.dtype == np.int32 else value)

    batch = {name: tensor(value) for name, value in make_batch(method).items()}

    def step():
        optimizer.zero_grad()
        model(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, {}


PROGRAMS = {
    f"{kind}-{method}": (lambda program=program, method=method: program(method))
    for method in ("hvpnet", "umt")
    for kind, program in (("jax", jax_program), ("torch", torch_program))
}


def main() -> None:
    """Read the flags; a child works, the parent lets the children race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--worker", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(PROGRAMS[options.worker])
        return
    race("benchmarks.method_step", options.programs, options.rounds, f"batch {BATCH}, {LENGTH} word pieces, float32")


if __name__ == "__main__":
    main()
