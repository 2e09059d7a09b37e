"""Small sources of pairs for the tests of the corpus: pictures that no hash confuses, with texts of their own."""

import io
import json

import numpy as np
from PIL import Image

from data_prep.build_divergence_corpus import Options
from data_prep.corpus.mixture import Counts


def picture(seed, height=48, width=64):
    """Coarse coloured noise, which survives JPEG and scaling."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_pairs(root, name, count, *, captions=2, first=0, labels=None, columns=None):
    """A folder with pairs.jsonl; picture i of a source is noise of the seed (name, i)."""
    folder = root / name
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(first, first + count):
        seed = [*name.encode(), i]
        (folder / "images" / f"{i}.jpg").write_bytes(encoded(picture(seed, 48 + 16 * (i % 3))))
        line = {"image": f"images/{i}.jpg", "captions": [f"{name} says {i} in words {j}" for j in range(captions)]}
        if labels:
            line["label"] = labels[i % len(labels)]
        lines.append(line | (columns(i) if columns else {}))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def options(out, strengthen, complement, **others):
    defaults = {"counts": Counts(24, 12, 12), "dev": 0.25, "test": 0.25, "shard_records": 10, "progress": False}
    return Options(out=out, strengthen=(str(strengthen),), complement=(str(complement),), **{**defaults, **others})
