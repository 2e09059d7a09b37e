"""The audit of a divergence corpus: the demo's passes; one that betrays its classes by form fails, in every way."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.audit_corpus import audit_corpus, corpus_audit_table
from data_prep.make_divergence_demo import make_divergence_demo
from tmrjax.divergence.corpus import Pair, open_corpus, write_corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "corpus"
    make_divergence_demo(root, pairs=120, progress=False)
    return root


def test_the_demo_corpus_passes(demo):
    rows = audit_corpus(demo)
    assert len(rows) > 5 and not any(row.leak for row in rows)
    inside, outside = (len(open_corpus(demo)[name]) for name in ("test", "test_out_of_domain"))
    assert rows[0].scored == inside + outside // 2  # of the sources out of the domain one half was learned from
    run = [sys.executable, "data_prep/audit_leaks.py", str(demo)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip() == corpus_audit_table(rows) and "WARNING" not in done.stdout


def encoded(size=(24, 24), **options):
    buffer = io.BytesIO()
    generator = np.random.default_rng(len(options) + size[0])
    Image.fromarray(generator.integers(0, 255, (*size, 3), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


PLAIN, LARGER, PROGRESSIVE = encoded(), encoded((24, 40)), encoded(progressive=True, quality=40)
DOCTORED = {  # what betrays weaken
    "width and height of the picture": lambda pair: pair._replace(width=40, image=LARGER),
    "format of the picture": lambda pair: pair._replace(image=PROGRESSIVE),
    "bytes of the picture's file, in tenths": lambda pair: pair._replace(image=pair.image + bytes(500)),
    "name of the pair": lambda pair: pair._replace(id=f"swapped-{pair.id}"),
    "which parts are missing": lambda pair: pair._replace(text=" "),
    "length of the text, in tenths": lambda pair: pair._replace(text=f"{pair.text} and more of it"),
}


def corpus(root, doctor):
    """Two sources, each with weaken and one class of its own; `doctor` changes weaken pairs."""

    def pairs(split):
        generator = np.random.default_rng(len(split))
        for number in range(160):
            source = ("captions", "posts")[number % 2]
            weaken = generator.random() < 0.5
            label = 0 if weaken else (2, 1)[number % 2]
            pair = Pair(f"{split}:{number}", f"word {number:04d}", label, source, "in", PLAIN, 24, 24)
            yield doctor(pair) if weaken else pair

    splits = {split: pairs(split) for split in ("train", "test")}
    write_corpus(root, splits, name="doctored", source_names=("captions", "posts"))
    return root


@pytest.mark.parametrize("reads", DOCTORED)
def test_a_class_that_can_be_read_is_found(tmp_path, reads):
    rows = {row.reads: row for row in audit_corpus(corpus(tmp_path, DOCTORED[reads]))}
    assert rows[reads].leak is True and rows[reads].accuracy > 0.7
    assert reads in corpus_audit_table(list(rows.values())).partition("WARNING: classes can be read from: ")[2]


def test_an_order_by_class_is_found_and_style_is_not_called_a_leak(tmp_path, demo):
    sound = corpus(tmp_path / "sound", lambda pair: pair)
    rows = audit_corpus(sound)
    assert not any(row.leak for row in rows) and rows[0].accuracy < 0.7  # the source alone tells one class from another
    split = list(open_corpus(sound)["train"]), list(open_corpus(sound)["test"])
    ordered = {name: sorted(pairs, key=lambda p: p.label) for name, pairs in zip(("train", "test"), split, strict=True)}
    write_corpus(tmp_path / "ordered", ordered, name="ordered", source_names=("captions", "posts"))
    leaks = [row.reads for row in audit_corpus(tmp_path / "ordered") if row.leak]
    assert leaks == ["place in the split, in tenths"]


def test_sources_with_too_few_pairs_say_nothing(tmp_path):
    whole = open_corpus(corpus(tmp_path / "whole", lambda pair: pair))
    few = {name: list(whole[name])[:30] for name in ("train", "test")}
    write_corpus(tmp_path / "few", few, name="few", source_names=("captions", "posts"))
    assert audit_corpus(tmp_path / "few") == []
    assert "at least 20 pairs" in corpus_audit_table([])
    assert audit_corpus(whole)[0].scored == 160 and audit_corpus(whole, limit=60)[0].scored == 54  # every third
