"""Table 3 of the paper on the generated corpus: how the estimator is trained × seeds, in the domain and out of it.

python -m benchmarks.divergence_table --out=runs/divergence_table [--corpus=DIR] [--seeds 0 1 2] [--set steps=3000]

Synthetic data unless --corpus names another one: the table shows what the modes do, nothing about real pairs. Finished
runs are kept, so the command can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus.mixture import WEAKEN_FROM

# Rows of the table: overrides of the config.
ROWS = {
    "cross-entropy": {"mode": "cross_entropy"},
    "negative sampling": {"mode": "negative_sampling"},
    "supervised contrast": {"mode": "supervised_contrastive"},
    "text only (cross-entropy)": {"mode": "cross_entropy", "model.variant": "text"},
    "picture only (cross-entropy)": {"mode": "cross_entropy", "model.variant": "picture"},
}
SPLITS = ("test", "test_out_of_domain")


def run_one(
    out: Path, corpus: Path, row: str, seed: int, changes: Mapping[str, Any], config_name: str = "demo"
) -> dict[str, Any]:
    """The report of one run of a config with ``changes``."""
    from experiments.configs.mde import get_config
    from experiments.lib import experiment

    config = get_config(config_name)
    config.update_from_flattened_dict({"data.root": str(corpus), "seed": seed, **changes, **ROWS[row]})
    return experiment.run(config, out / f"{row.partition(' (')[0].replace(' ', '-')}-{seed}")


def table(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Mean ± standard deviation over seeds as Markdown."""
    columns = [(split, key) for split in SPLITS for key in ("macro_f1", "micro_f1", "ece")]
    lines = [
        "| | "
        + " | ".join(f"{'in' if split == 'test' else 'out'}: {key.replace('_', ' ')}" for split, key in columns)
        + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row, found in reports.items():
        values = [[100 * report[split][key] for report in found] for split, key in columns]
        lines.append(f"| {row} | " + " | ".join(f"{np.mean(v):.1f} ± {np.std(v):.1f}" for v in values) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/divergence_table"))
    parser.add_argument("--corpus", type=Path, help="a corpus with both tests; the generated one unless given")
    parser.add_argument("--pairs", type=int, default=8000, help="size of the generated one")
    parser.add_argument("--weaken-from", choices=WEAKEN_FROM, default=WEAKEN_FROM[0], help="of the generated one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS)[:3])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config")
    options = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((options.out / "compiled").resolve()))
    logging.basicConfig(level=logging.ERROR)
    from data_prep.make_divergence_demo import make_divergence_demo
    from experiments.lib.command import keep_memory

    keep_memory()
    corpus = options.corpus or options.out / "corpus"
    if options.corpus is None and not (corpus / "corpus.json").exists():
        make_divergence_demo(corpus, pairs=options.pairs, seed=0, weaken_from=options.weaken_from)
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in options.set)}
    reports: dict[str, list] = {row: [] for row in options.rows}
    for seed in options.seeds:
        for row in options.rows:
            reports[row].append(run_one(options.out, corpus, row, seed, changes))
    synthetic = next(iter(reports.values()))[0]["data"]["synthetic"]
    print(f"\n{'SYNTHETIC DATA' if synthetic else corpus}, mean ± std over seeds {options.seeds}\n\n{table(reports)}")


if __name__ == "__main__":
    main()
