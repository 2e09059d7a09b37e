"""Peak memory of building a divergence corpus, and of reading it at random, from a thousand pairs to a million.

    python -m benchmarks.corpus_memory [--pairs 1000 10000 100000 1000000] [--folder DIR]

The pictures are 32 × 32 noise, generated on the fly, so that a million of them fit on a disk (about 10 GB meanwhile)
and the time is that of the machinery, not of decoding. Each size is built, then read, in processes of their own; what
is printed is the most resident memory that each ever had.
"""

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.build_divergence_corpus import build_corpus
from data_prep.corpus.mixture import Counts
from data_prep.corpus.options import Options
from data_prep.corpus.sources import Item
from data_prep.demo.drawer import encode


@dataclass(frozen=True)
class NoiseSource:
    """Pairs without end: noise, and a text of its own for each."""

    name: str
    shuffled: bool = True

    def describe(self) -> dict:
        """What the manifest says."""
        return {"kind": "noise"}

    def items(self, start: int = 0) -> Iterator[Item]:
        """Item i depends on the name and i alone."""
        number = start
        while True:
            generator = np.random.default_rng([*self.name.encode(), number])
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            image = encode(Image.fromarray(pixels))
            yield Item(str(number), f"{self.name}/{number}", (f"{self.name} shows the picture number {number}",), image)
            number += 1


def build(folder: Path, pairs: int) -> None:
    """A corpus of `pairs` pairs over train, dev and test."""
    quarter = round(pairs / 4 / 1.07)
    counts = Counts(2 * quarter, quarter, quarter)
    sources = {"strengthen": (NoiseSource("captions"),), "complement": (NoiseSource("posts"),)}
    build_corpus(Options(out=folder, counts=counts, workers=1, progress=False, **sources))


def read(folder: Path, pairs: int) -> None:
    """Open the corpus, plan its batches by size, read 2,000 pairs at random."""
    from tmrjax.divergence.corpus import open_corpus
    from tmrjax.divergence.pictures import PairPictureSettings
    from tmrjax.divergence.pipeline import PairTextSettings, pair_buckets, pair_sizes
    from tmrjax.inputs.batching import BatchPlan

    del pairs
    split = open_corpus(folder)["train"]
    texts, pictures = PairTextSettings(), PairPictureSettings(size=32, longest=32)
    plan = BatchPlan(pair_sizes(split, None, texts, pictures), pair_buckets(texts, pictures), 32, seed=0)
    chosen = np.concatenate([plan[step % len(plan)][1] for step in range(63)])
    assert all(split[int(i)].text for i in chosen if i >= 0)


def measured(function, folder: Path, pairs: int, queue) -> None:
    """Run in a process of its own: (seconds, peak MiB)."""
    start = time.perf_counter()
    function(folder, pairs)
    queue.put((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to build (default: the temporary directory)")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    print(f"{'pairs':>10s} {'build s':>9s} {'peak MiB':>9s} {'read s':>9s} {'peak MiB':>9s} {'corpus MB':>10s}")
    for pairs in options.pairs:
        folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="corpus_memory"))
        figures = []
        for function in (build, read):
            queue = spawn.Queue()
            process = spawn.Process(target=measured, args=(function, folder / "corpus", pairs, queue))
            process.start()
            figures += queue.get()
            process.join()
        size = sum(path.stat().st_size for path in (folder / "corpus").iterdir()) / 1e6
        row = "".join(f" {figure:9.1f}" for figure in figures)
        print(f"{pairs:10d}{row} {size:10.1f}", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
