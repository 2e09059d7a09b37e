"""Real pairs from scratch: what is learned of the match of text and picture, and what is the shortcut of style.

python -m benchmarks.divergence_pairs --pairs=PAIRS --vocabulary=BERT --out=runs/divergence_pairs [--set steps=2000]

PAIRS holds flickr8k/ (strengthen), mvsa_single/ (complement), coco/ and mediaeval2016/ (out of the domain), each with
images/, pairs.jsonl and index.tsv, and flickr8k/expert_scores.jsonl. Their style tells the sources apart; against that
every picture goes straight to a square, whatever its aspect (many of Flickr8k's exist squashed only), and, unless
--keep-style is given, @names, #, RT, URLs, final full stops and capitals are taken off all texts. weaken is a text with
another picture of its own source (of another event in mediaeval2016). Flickr8k's 600 expert-scored pictures are never
trained on: its test split, and the correlation of the strengthen score with the mean of three experts.

Beside the three modes of Table 3 stand estimators that see the text or the picture alone: what those reach is no match.
Without pretrained weights the figures are low.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.divergence_table import ROWS, run_one, table
from tmrjax.divergence.corpus import CLASSES, Pair, write_corpus
from tmrjax.pictures.decode import decode_picture

WEAKEN, COMPLEMENT, STRENGTHEN = range(3)
INSIDE = {"flickr8k": STRENGTHEN, "mvsa_single": COMPLEMENT}
OUTSIDE = {"coco": STRENGTHEN, "mediaeval2016": COMPLEMENT}


def without_style(text: str) -> str:
    """The text without what only tweets or only captions have."""
    text = re.sub(r"https?:?\S*|htt\S*$|\bRT\b|@\w+:?", " ", text).replace("#", " ")
    return re.sub(r"[\s.…]+$", "", " ".join(text.split())).lower()


def read_source(folder: Path, keep_style: bool) -> list[dict[str, Any]]:
    """[{"image", "captions", **columns of index.tsv}]; captions that are empty without their style are left out."""
    with (folder / "index.tsv").open(encoding="utf-8", newline="") as file:
        columns = {row["image"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    rows = []
    for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        texts = [text if keep_style else without_style(text) for text in pair["captions"]]
        texts = [text for text in texts if text]
        if texts:
            rows.append({**columns[Path(pair["image"]).name], "path": folder / pair["image"], "captions": texts})
    return rows


def make_pairs(source: str, label: int, rows: list[dict[str, Any]], random, texts: int, domain: str) -> Iterator[Pair]:
    """Of each row up to ``texts`` captions, each with its own picture and once with another (weaken)."""
    for number, row in enumerate(rows):
        for place, text in enumerate(row["captions"][:texts]):
            while True:
                other = rows[random.integers(len(rows))]
                if other is not row and (row.get("event") is None or other["event"] != row["event"]):
                    break
            for kind, shown in ((label, row), (WEAKEN, other)):
                image = shown["path"].read_bytes()
                width, height = decode_picture(image, str(shown["path"])).size
                yield Pair(f"{source}-{number}-{place}-{kind}", text, kind, source, domain, image, height, width)


def build(root: Path, pairs: Path, vocabulary: Path, *, keep_style: bool, captions: int = 1, seed: int = 0) -> None:
    """Write the corpus and a tokenizer beside it; ``captions`` of each picture of train."""
    random = np.random.default_rng(seed)
    splits: dict[str, list[Pair]] = {name: [] for name in ("train", "dev", "test", "test_out_of_domain")}
    for source, label in INSIDE.items():
        rows = read_source(pairs / source, keep_style)
        random.shuffle(rows)
        if source == "flickr8k":
            parts = {name: [row for row in rows if row["flickr8k_split"] == name] for name in ("train", "dev", "test")}
        else:
            parts = {"dev": rows[:250], "test": rows[250:850], "train": rows[850:]}
        for split, part in parts.items():
            # To evaluate on, one caption per picture, as a tweet has one text.
            splits[split] += make_pairs(source, label, part, random, captions if split == "train" else 1, "in")
    for source, label in OUTSIDE.items():
        rows = read_source(pairs / source, keep_style)
        splits["test_out_of_domain"] += make_pairs(source, label, rows, random, 1, "out")
    for content in splits.values():
        random.shuffle(content)
    write_corpus(root, splits, name="real pairs", source_names=(*INSIDE, *OUTSIDE), seed=seed)
    (root / "text_encoder").mkdir(exist_ok=True)
    shutil.copy(vocabulary / "vocab.txt", root / "text_encoder")


def expert_correlation(workdir: Path, pairs: Path, keep_style: bool) -> tuple[float, float, int]:
    """Spearman's ρ of the strengthen score and of 1 − weaken with the experts' mean, and the number of pairs."""
    from scipy.stats import spearmanr

    from tmrjax.divergence import score
    from tmrjax.divergence.pipeline import pair_buckets
    from tmrjax.divergence.system import Estimator

    estimator, variables, _ = Estimator.load(workdir)
    rated = []
    for line in (pairs / "flickr8k" / "expert_scores.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row["caption"] if keep_style else without_style(row["caption"])
        image = (pairs / "flickr8k" / row["image"]).read_bytes()
        rated.append((Pair("", text, 0, "", "in", image, 0, 0), float(np.mean(row["scores"]))))
    bucket, size, found = pair_buckets(estimator.texts, estimator.pictures)[-1], 64, []
    for start in range(0, len(rated), size):
        chunk = [pair for pair, _ in rated[start : start + size]]
        batch = estimator.collate([*chunk, *[None] * (size - len(chunk))], bucket)
        found.append(np.asarray(score(estimator.model, variables, batch))[: len(chunk)])
    scores, means = np.concatenate(found), [mean for _, mean in rated]
    strengthen = spearmanr(scores[:, STRENGTHEN], means).statistic
    matching = spearmanr(1 - scores[:, WEAKEN], means).statistic
    return float(strengthen), float(matching), len(rated)


def match_accuracy(report: Mapping[str, Any]) -> float:
    """Is it weaken or not: the share that is right, the classes weighed alike (chance 50)."""
    confusion = report["confusion"]
    weaken = confusion[CLASSES[WEAKEN]]
    positive = [confusion[name] for name in CLASSES[1:]]
    found = sum(sum(row.values()) - row[CLASSES[WEAKEN]] for row in positive)
    total = sum(sum(row.values()) for row in positive)
    return (weaken[CLASSES[WEAKEN]] / max(1, sum(weaken.values())) + found / max(1, total)) / 2


def main() -> None:
    """Build the corpus, run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--vocabulary", type=Path, required=True, help="folder with a BERT's vocab.txt")
    parser.add_argument("--out", type=Path, default=Path("runs/divergence_pairs"))
    parser.add_argument("--keep-style", action="store_true", help="leave @names, URLs, full stops and capitals in")
    parser.add_argument("--captions", type=int, default=1, help="of each picture to train on; Flickr8k has 5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config")
    options = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((options.out / "compiled").resolve()))
    logging.basicConfig(level=logging.ERROR)
    from experiments.lib.command import keep_memory

    keep_memory()
    kind = ("with" if options.keep_style else "without") + "-style-" + str(options.captions)
    corpus, runs = options.out / f"corpus-{kind}", options.out / kind
    if not (corpus / "corpus.json").exists():
        build(corpus, options.pairs, options.vocabulary, keep_style=options.keep_style, captions=options.captions)
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in options.set)}
    reports: dict[str, list] = {row: [] for row in options.rows}
    lines = ["| | in: match | out: match | experts: strengthen | experts: 1 - weaken |", "|---|---|---|---|---|"]
    for row in options.rows:
        for seed in options.seeds:
            report = run_one(runs, corpus, row, seed, changes, "pairs")
            reports[row].append(report)
            workdir = runs / f"{row.partition(' (')[0].replace(' ', '-')}-{seed}"
            strengthen, matching, rated = expert_correlation(workdir, options.pairs, options.keep_style)
            matches = [100 * match_accuracy(report[split]) for split in ("test", "test_out_of_domain")]
            name = row if len(options.seeds) == 1 else f"{row}, seed {seed}"
            lines.append(f"| {name} | {matches[0]:.1f} | {matches[1]:.1f} | {strengthen:.3f} | {matching:.3f} |")
    print(f"\nreal pairs, mean ± std over seeds {options.seeds}\n\n{table(reports)}\n\n" + "\n".join(lines))
    print(f"\nmatch: weaken or not, mean of both shares, chance 50; experts: Spearman's rho over {rated} rated pairs")


if __name__ == "__main__":
    main()
