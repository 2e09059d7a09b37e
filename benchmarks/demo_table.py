"""What each part of TMR is worth on the generated worlds: variants × seeds × misalignment, test micro-F1.

python -m benchmarks.demo_table --out=runs/demo_table --misalignment 0.3 0.6 0.8 --seeds 0 1 2 [--task=re]

Synthetic data: the table shows that the parts do what they are for, nothing about real posts. About 40 seconds a run on
2 cores once its programs are compiled; finished runs are kept, so the command can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path

import numpy as np

TEXT_ONLY = "text only"  # the method bert_crf for entities, mtb for relations
VARIANTS = {
    TEXT_ONLY: {},
    "w/o back-translation": {"model.use_back_translation": False},
    "w/o divergence scores": {"model.use_scores": False},
    "fine only": {"model.grains": ("fine",)},
    "coarse only": {"model.grains": ("coarse",)},
    "literal sums": {"model.literal": True},
    "full": {},
}
DEFAULT = ("text only", "w/o back-translation", "w/o divergence scores", "full")


def run_one(out: Path, kind: str, variant: str, misalignment: float, seed: int, posts: int) -> dict:
    """The report of one run; data are generated per misalignment, models differ by seed."""
    from data_prep.make_demo import make_demo
    from experiments.configs import mner, mre
    from experiments.lib import experiment

    data = out / f"data-{misalignment}"
    if not (data / "dataset.json").exists():
        make_demo(data, posts=posts, misalignment=misalignment, seed=0, task=kind)
    method = {"ner": "bert_crf", "re": "mtb"}[kind] if variant == TEXT_ONLY else "tmr"
    config = {"ner": mner, "re": mre}[kind].get_config("demo", method)
    config.update_from_flattened_dict({"data.root": str(data), "seed": seed, **VARIANTS[variant]})
    name = variant.replace(" ", "-").replace("/", "")
    return experiment.run(config, out / f"{name}-{misalignment}-{seed}")


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_table"), help="one folder per task")
    parser.add_argument("--task", choices=("ner", "re"), default="ner")
    parser.add_argument("--misalignment", type=float, nargs="+", default=[0.3, 0.6, 0.8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(DEFAULT))
    parser.add_argument("--posts", type=int, default=2400)
    options = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((options.out / "compiled").resolve()))
    logging.basicConfig(level=logging.WARNING)

    table: dict[str, list[str]] = {variant: [] for variant in options.variants}
    scores: dict[str, list[list[float]]] = {variant: [] for variant in options.variants}
    for misalignment in options.misalignment:
        for variant in options.variants:
            reports = [
                run_one(options.out, options.task, variant, misalignment, seed, options.posts) for seed in options.seeds
            ]
            found = [100 * report["test"]["f1"] for report in reports]
            scores[variant].append(found)
            table[variant].append(f"{np.mean(found):.1f} ± {np.std(found):.1f}")
    print(
        f"\nSYNTHETIC DATA, {options.task}, test micro-F1 (entities: strict), mean ± std over seeds {options.seeds}\n"
    )
    print("| | " + " | ".join(f"misalignment {value}" for value in options.misalignment) + " |")
    print("|---" * (len(options.misalignment) + 1) + "|")
    for variant, cells in table.items():
        print(f"| {variant} | " + " | ".join(cells) + " |")
    (options.out / "table.json").write_text(json.dumps({"misalignment": options.misalignment, "f1": scores}, indent=2))


if __name__ == "__main__":
    main()
