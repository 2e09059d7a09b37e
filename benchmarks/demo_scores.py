"""What divergence scores are worth on the demo world: MNER with learned scores, with the drawn ones, with none.

    python -m benchmarks.demo_scores [runs/demo]

Reads what `make demo-full` left: the reports of three runs of the same model on the same posts, and how well the
learned scores tell pictures that fit their post from those that do not, by the world's own truth (world.jsonl).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from tmrjax.record_schema import SCORE_CLASSES
from tmrjax.records import read_dataset

RUNS = {"learned scores": "learned", "drawn scores": "full", "no scores": "unscored"}
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/demo"), help="of make demo-full")
    folder = parser.parse_args().folder
    print("\nmisleading or not, by weaken < 1/2 (test; share right, pictures)")
    tables = {name: agreement(folder / data) for name, data in (("learned", "scored"), ("drawn", "data"))}
    print(f"  {'':44s}{'learned':>9s}{'drawn':>9s}{'number':>9s}")
    for field, kinds in tables["learned"].items():
        for kind, (right, number) in kinds.items():
            drawn, _ = tables["drawn"][field][kind]
            name = ("original" if field == "scores" else "generated") + " picture, " + kind
            print(f"  {name:44s}{right:9.3f}{drawn:9.3f}{number:9d}")
    print("\nMNER, demo test, strict micro F1 (SYNTHETIC DATA: no figure here says anything about real posts)")
    for name, run in RUNS.items():
        report = json.loads((folder / run / "report.json").read_text(encoding="utf-8"))
        print(f"  {name:20s} test {100 * report['test']['f1']:6.2f}   dev {100 * report['dev']['f1']:6.2f}")


if __name__ == "__main__":
    main()
