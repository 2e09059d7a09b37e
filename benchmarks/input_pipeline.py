"""From picture files to batches on their way to the device: what decoding costs, what threads and processes bring.

    python -m benchmarks.input_pipeline [--data=DIR] [--size 1200 675] [--threads 1 2] [--workers 0 2] [--rate=POSTS]
    python -m benchmarks.input_pipeline --present [--picture-side 64]

A post has two pictures, each read whole and in three regions. Without --data pictures are drawn: slow waves of all
lengths, coarse colours, grain; saved as JPEG of quality 85. With it all pictures below DIR are taken.

Decoding: milliseconds of processor time a post on one core, exactly (``reducing_gap`` 0, as every version before had
it) and with the other gaps in turns, and the share of values within one level of the exact ones. Regions of the usual
size keep a picture of 1200 x 675 from being decoded smaller; the column "whole" has posts without regions.
Batches: posts per second of :meth:`tmrjax.inputs.batching.PlannedBatches.iterate` by the clock, beside --rate, what a
step takes. Bytes that a post takes to the device, as they are and as float32 would be.

--present: seconds of a step of a ResNet-50 over the pictures of four posts against how many of them are there, with
and without ``picture_index``. --picture-side 224 is the real size.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.inputs.base import Example, Reading
from tmrjax.inputs.batching import BatchPlan
from tmrjax.inputs.collate import Batches, Collator
from tmrjax.inputs.packing import INDEX, Packing
from tmrjax.inputs.pictures import Pictures, PixelSource
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods.parts.pictures import PictureReader
from tmrjax.pictures.decode import load_picture
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Generated, Record

BOXES = ((0.1, 0.1, 0.6, 0.7), (0.3, 0.2, 0.9, 0.9), (0.05, 0.4, 0.45, 0.95))
READ = Pictures("tokens", "pooled", generated=True)
BATCH = 4  # of --present


def drawn(width: int, height: int, seed: int, grain: float = 4.0) -> Image.Image:
    """A picture with the spectrum of a photograph: amplitudes as wavelengths, colours coarser than lightness."""
    generator = np.random.default_rng(seed)

    def field(lengths: Sequence[int]) -> np.ndarray:
        total = np.zeros((height, width))
        for length in lengths:
            noise = generator.normal(size=(height // length + 3, width // length + 3)).astype(np.float32)
            total += length * np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
        return total / total.std()

    lightness = 50 * field([2**n for n in range(9)]) + 120 + generator.normal(size=(height, width)) * grain
    blue, red = (15 * field([2**n for n in range(4, 9)]) for _ in range(2))
    channels = [lightness + 1.4 * red, lightness - 0.34 * blue - 0.71 * red, lightness + 1.77 * blue]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def records(folder: Path, paths: Sequence[Path], posts: int) -> list[Record]:
    """Posts with two pictures and their regions each."""
    names = [str(path.relative_to(folder)) for path in paths]
    return [
        Record(
            str(n), ("a",), image=names[2 * n % len(names)], regions=BOXES,
            generated=Generated(names[(2 * n + 1) % len(names)], BOXES),
        )
        for n in range(posts)
    ]  # fmt: skip


def decoding(folder: Path, posts: Sequence[Record], gaps: Sequence[float], rounds: int) -> None:
    """The first table."""
    sources = {}
    for name, read in (("all", READ), ("whole", Pictures("tokens", None, generated=True))):
        sources |= {(name, gap): PixelSource(folder, read, PictureSettings(reducing_gap=gap)) for gap in gaps}
    seconds: dict[tuple[str, float], list[float]] = {key: [] for key in sources}
    found = {key: [source.load(post) for post in posts] for key, source in sources.items()}
    for _ in range(rounds):
        for key, source in sources.items():
            start = time.thread_time()
            for post in posts:
                source.load(post)
            seconds[key].append((time.thread_time() - start) / len(posts))
    print(f"{'reducing_gap':>12} {'ms a post':>10} {'within 1':>9} {'whole: ms':>10} {'within 1':>9}")
    for gap in gaps:
        line = f"{gap:12g}"
        for name in ("all", "whole"):
            apart = np.concatenate([
                np.abs(one[key].astype(int) - other[key]).ravel()
                for one, other in zip(found[name, gap], found[name, gaps[0]], strict=True)
                for key in one
            ])  # fmt: skip
            line += f" {1000 * np.median(seconds[name, gap]):10.1f} {np.mean(apart <= 1):9.2%}"
        print(line, flush=True)


def batches_of(folder: Path, posts: Sequence[Record], gap: float, threads: int, batch_size: int) -> Batches:
    """Batches of pictures alone."""
    source = PixelSource(folder, READ, PictureSettings(reducing_gap=gap), threads)
    collator = Collator((READ,), Reading(None, TextSettings(8, 3), source))
    examples = [Example(post, None, {}) for post in posts]
    return Batches(examples, BatchPlan([1] * len(posts), [1], batch_size), collator)


def streaming(folder: Path, posts: Sequence[Record], options: argparse.Namespace) -> None:
    """The second table, and bytes."""
    print(
        f"\n{'threads':>8} {'processes':>10} {'posts/s':>8} {'first batch':>12}"
        + " of the step's rate" * bool(options.rate)
    )
    for workers in options.workers:
        for threads in options.threads:
            batches = batches_of(folder, posts, options.gaps[-1], threads, options.batch_size)
            start, ends = time.perf_counter(), []
            with contextlib.closing(batches.iterate(num_threads=threads, num_workers=workers)) as stream:
                ends = [time.perf_counter() - start for _ in stream]
            # Processes take seconds to start: the rate is that between the first batch and the last one.
            rate = options.batch_size * (len(ends) - 1) / (ends[-1] - ends[0])
            share = f"{rate / options.rate:19.0%}" if options.rate else ""
            print(f"{threads:8} {workers:10} {rate:8.1f} {ends[0]:10.2f} s{share}", flush=True)
    _, batch = batches_of(folder, posts, 0.0, 1, options.batch_size)[0]
    size = sum(array.nbytes for array in batch.values()) / options.batch_size
    floats = sum(array.size * 4 for array in batch.values() if array.dtype == np.uint8) / options.batch_size
    print(f"\nbytes a post to the device: {size:,.0f}; its pictures as float32: {floats:,.0f}")


def present(side: int, rounds: int) -> None:
    """The table of --present."""
    reader = PictureReader(ResNetConfig.resnet50())
    packing = Packing(READ, PictureSettings(side, side), 1)
    shape, generator = (side, side, 3), np.random.default_rng(0)
    pixels = {
        name: jnp.asarray(generator.normal(size=(BATCH, *((3,) if name.endswith("s") else ()), *shape)), jnp.float32)
        for name in ("image", "regions", "generated_image", "generated_regions")
    }

    def batch_of(post: Record, packed: bool) -> dict:
        there = np.tile(packing.present(post), (BATCH, 1))
        masks = {"image_mask": there[:, 0], "region_mask": there[:, 1:4]}
        masks |= {f"generated_{name}": value for name, value in zip(masks, (there[:, 4], there[:, 5:]), strict=True)}
        index = packing.index([Example(post, None, {})] * BATCH, 0, 1) if packed else None
        return pixels | masks | ({} if index is None else {INDEX: index})

    posts = {
        "2 of 8": Record("", ("a",), image="a", generated=Generated("b")),
        "4 of 8, no generated one": Record("", ("a",), image="a", regions=BOXES),
        "6 of 8": Record("", ("a",), image="a", regions=BOXES, generated=Generated("b", BOXES[:1])),
        "8 of 8": Record("", ("a",), image="a", regions=BOXES, generated=Generated("b", BOXES)),
    }
    variables = jax.jit(lambda key: reader.init(key, batch_of(posts["8 of 8"], False), READ, train=False))(
        jax.random.key(0)
    )

    @jax.jit
    def step(params, batch):
        def total(params):
            states = reader.apply({**variables, "params": params}, batch, READ, train=False)
            return sum(jnp.square(state).sum() for state in states.values())

        return jax.grad(total)(params)

    print(f"{'pictures a post':26} {'all encoded':>12} {'packed':>8}   seconds of forward and backward, {BATCH} posts")
    for name, post in posts.items():
        cases = [batch_of(post, packed) for packed in (False, True)]
        seconds: list[list[float]] = [[], []]
        for number in range(rounds + 1):
            for batch, taken in zip(cases, seconds, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(step(variables["params"], batch))
                if number:  # the first compiles
                    taken.append(time.perf_counter() - start)
        print(f"{name:26} {np.median(seconds[0]):12.3f} {np.median(seconds[1]):8.3f}", flush=True)


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with pictures; drawn ones unless given")
    parser.add_argument("--size", type=int, nargs=2, default=(1200, 675), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--grain", type=float, default=4.0, help="of drawn pictures, in levels")
    parser.add_argument("--pictures", type=int, default=8, help="how many are drawn")
    parser.add_argument("--posts", type=int, default=128, help="of the stream; 16 batches at least")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--gaps", type=float, nargs="+", default=[0.0, 1.0, 2.0], help="the first is what is right")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=0.0, help="posts a second of the step that is to be fed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--present", action="store_true", help="time a step against pictures present instead")
    parser.add_argument("--picture-side", type=int, default=64)
    options = parser.parse_args()
    if options.posts < 16 * options.batch_size:
        parser.error(f"--posts={options.posts}: fewer than 16 batches of {options.batch_size} show no rate")
    flags.FLAGS.mark_as_parsed()  # grain's processes want absl's
    if options.present:
        present(options.picture_side, options.rounds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        if options.data is None:
            for number in range(options.pictures):
                drawn(*options.size, number, options.grain).save(folder / f"{number}.jpg", quality=85)
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        sizes = [load_picture(path).size for path in paths]
        mean = [round(float(np.mean(side))) for side in zip(*sizes, strict=True)]
        kilobytes = np.mean([path.stat().st_size for path in paths]) / 1000
        print(f"{len(paths)} pictures, {mean[0]} x {mean[1]} and {kilobytes:.0f} kB on average")
        decoding(folder, records(folder, paths, max(2, len(paths) // 2)), options.gaps, options.rounds)
        streaming(folder, records(folder, paths, options.posts), options)


if __name__ == "__main__":
    main()
