"""What divergence scores are worth on the demo world: MNER with learned scores, with the drawn ones, with none.

    python -m benchmarks.demo_scores [runs/demo] [--seeds 0 1 2]

Reads what `make demo-full` left: the reports of three runs of the same model on the same posts, and how well the
learned scores tell pictures that fit their post from those that do not, by the world's own truth (world.jsonl). Other
seeds than its 0 are trained beside, with the scores of the one estimator.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tmrjax.records import read_dataset
from tmrjax.records.schema import SCORE_CLASSES

# Of each run its folder, its data and what it changes of the demo's config, as the Makefile has it.
RUNS = {
    "learned scores": ("learned", "scored", {}),
    "drawn scores": ("full", "data", {}),
    "no scores": ("unscored", "data", {"model.use_scores": False}),
}
FIELDS = {"scores": "relation", "generated_scores": "generated_relation"}


def agreement(root: Path) -> dict[str, dict[str, tuple[float, int]]]:
    """{field: {kind of post: (share of pictures judged rightly, their number)}} on test.

    Right is: weaken below one half where the picture fits its post in truth, above where it does not. Posts by what
    their text says of its name: a context word that MNER's training split shows, one that it does not, or nothing.
    """
    truths = {}
    for line in (root / "world.jsonl").read_text(encoding="utf-8").splitlines():
        truth = json.loads(line)
        truths[truth["id"]] = truth
    judged: dict[str, dict[str, list[bool]]] = {field: {} for field in FIELDS}
    weaken = SCORE_CLASSES.index("weaken")
    for record in read_dataset(root, splits=("test",)).splits["test"]:
        truth = truths[record.id]
        word = "seen word" if truth["hint_seen"] else "unseen word"
        kind = "no context word" if truth["hint"] is None else word + (", misspelt" if truth["misspelt"] else "")
        for field, key in FIELDS.items():
            scores = getattr(record, field)
            if scores is not None:
                fits = truth[key] != "weaken"
                judged[field].setdefault(kind, []).append((scores[weaken] < 0.5) == fits)
    return {
        field: {kind: (float(np.mean(right)), len(right)) for kind, right in sorted(kinds.items())}
        for field, kinds in judged.items()
    }


def run_one(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """The report of one run of MNER; trained now unless it is there."""
    run, data, changes = RUNS[name]
    workdir = folder / (run if seed == 0 else f"{run}-{seed}")
    if not (workdir / "report.json").exists():
        from experiments.configs.mner import get_config
        from experiments.lib import experiment

        config = get_config("demo")
        config.update_from_flattened_dict({"data.root": str(folder / data), "seed": seed, **changes})
        return experiment.run(config, workdir)
    return json.loads((workdir / "report.json").read_text(encoding="utf-8"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/demo"), help="of make demo-full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    folder = options.folder
    print("\nmisleading or not, by weaken < 1/2 (test; share right, pictures)")
    tables = {name: agreement(folder / data) for name, data in (("learned", "scored"), ("drawn", "data"))}
    print(f"  {'':44s}{'learned':>9s}{'drawn':>9s}{'number':>9s}")
    for field, kinds in tables["learned"].items():
        for kind, (right, number) in kinds.items():
            drawn, _ = tables["drawn"][field][kind]
            name = ("original" if field == "scores" else "generated") + " picture, " + kind
            print(f"  {name:44s}{right:9.3f}{drawn:9.3f}{number:9d}")
    print("\nMNER, demo test, strict micro F1 (SYNTHETIC DATA: no figure here says anything about real posts)")
    for name in RUNS:
        reports = [run_one(folder, name, seed) for seed in options.seeds]
        found = {split: [100 * report[split]["f1"] for report in reports] for split in ("test", "dev")}
        parts = [f"{split} {np.mean(values):6.2f} ± {np.std(values):4.2f}" for split, values in found.items()]
        print(f"  {name:20s} {'   '.join(parts)}   (seeds {', '.join(map(str, options.seeds))})")


if __name__ == "__main__":
    main()
