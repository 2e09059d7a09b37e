"""Every method on the generated worlds, and what each part of TMR is worth there: rows × seeds, test micro F1.

python -m benchmarks.demo_table [--task=re] [--seeds 0 1 2] [--jobs=2]                 all methods beside TMR
python -m benchmarks.demo_table --rows parts --misalignment 0.3 0.6 0.8 [--task=re]    TMR's ablations
python -m benchmarks.demo_table --rows hvpnet "hvpnet, text only" umt                  some rows

Synthetic data: the table shows that methods train and that parts do what they are for, nothing about real posts. About
a minute a run on 2 cores once its programs are compiled; finished runs are kept, so the command can be stopped and
repeated. Each row has its difference to TMR with the p value of a paired bootstrap over posts, seeds nested
(:mod:`tmrjax.tasks.comparison`), the median time of a step and the number of parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from experiments.configs import mner, mre
from experiments.lib.launchers.local import ONE_CORE
from tmrjax.methods import find_method, known_methods
from tmrjax.methods.base import options_of
from tmrjax.tasks.comparison import COUNTS, paired_bootstrap

REFERENCE = "tmr"
TEXT_ONLY = "text only"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a method and what is changed of the demo's config."""

    method: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


PARTS = {
    "tmr w/o back-translation": Row("tmr", {"model.use_back_translation": False}),
    "tmr w/o divergence scores": Row("tmr", {"model.use_scores": False}),
    "tmr w/o both": Row("tmr", {"model.use_back_translation": False, "model.use_scores": False}),
    "tmr fine only": Row("tmr", {"model.grains": ("fine",)}),
    "tmr coarse only": Row("tmr", {"model.grains": ("coarse",)}),
    "tmr literal sums": Row("tmr", {"model.literal": True}),
}
# Forms of one file that the paper's table has as methods of their own.
FORMS = {"blstm_crf": {"CNN-BLSTM-CRF": {"model.characters": "cnn"}, "HBiLSTM-CRF": {"model.characters": "lstm"}}}


def rows_of(task: str) -> dict[str, Row]:
    """All rows of a task by name: methods, their forms, their text-only forms, the parts of TMR."""
    rows = {}
    for name, tasks in known_methods().items():
        if task not in tasks or name == "tmr_release":
            continue
        for form, changes in FORMS.get(name, {name: {}}).items():
            rows[form] = Row(name, changes)
        if "use_pictures" in options_of(find_method(name, task)):
            rows[f"{name}, {TEXT_ONLY}"] = Row(name, {"model.use_pictures": False})
    return rows | PARTS


def folder_of(out: Path, name: str, misalignment: float, seed: int) -> Path:
    """The workdir of a run."""
    return out / f"{name.replace(',', '').replace(' ', '-').replace('/', '')}-{misalignment}-{seed}"


def run_one(out: Path, task: str, name: str, misalignment: float, seed: int, posts: int) -> None:
    """Train one row; data are generated per misalignment, models differ by seed."""
    from experiments.lib import experiment

    row = rows_of(task)[name]
    config = {"ner": mner, "re": mre}[task].get_config("demo", row.method)
    data = make_data(out, task, misalignment, posts)
    config.update_from_flattened_dict({"data.root": str(data), "seed": seed, **row.changes})
    experiment.run(config, folder_of(out, name, misalignment, seed))


def make_data(out: Path, task: str, misalignment: float, posts: int) -> Path:
    """The world of a misalignment, made once."""
    from data_prep.make_demo import make_demo

    data = out / f"data-{misalignment}"
    if not (data / "dataset.json").exists():
        make_demo(data, posts=posts, misalignment=misalignment, seed=0, task=task)
    return data


def train_missing(options: argparse.Namespace, names: list[str]) -> None:
    """Run what has no report yet, ``jobs`` at a time in processes of their own; the first seed of all rows first."""
    wanted = [
        (name, misalignment, seed)
        for seed in options.seeds for misalignment in options.misalignment for name in names
        if not (folder_of(options.out, name, misalignment, seed) / "report.json").exists()
    ]  # fmt: skip
    for misalignment in options.misalignment:
        make_data(options.out, options.task, misalignment, options.posts)

    def train(job: tuple[str, float, int]) -> None:
        name, misalignment, seed = job
        arguments = [
            f"--out={options.out}", f"--task={options.task}", f"--posts={options.posts}", "--one", name,
            "--misalignment", str(misalignment), "--seeds", str(seed),
        ]  # fmt: skip
        flags = f"{os.environ.get('XLA_FLAGS', '')} {ONE_CORE if options.jobs > 1 else ''}".strip()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.demo_table", *arguments], check=False,
            env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True,
        )  # fmt: skip
        said = "done" if done.returncode == 0 else f"FAILED\n{done.stderr[-2000:]}"
        print(f"{name}, misalignment {misalignment}, seed {seed}: {said}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(train, wanted))


def table_of(options: argparse.Namespace, names: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The table as lines of Markdown, and its figures as JSON; rows without a finished run are left out and named."""

    def read(name: str, misalignment: float) -> tuple[list[dict], np.ndarray | None]:
        folders = [folder_of(options.out, name, misalignment, seed) for seed in options.seeds]
        folders = [folder for folder in folders if (folder / "report.json").exists()]
        lines = [(folder / "predictions" / "test.jsonl").read_text(encoding="utf-8").splitlines() for folder in folders]
        counts = [COUNTS[options.task](map(json.loads, content)) for content in lines]
        reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
        return reports, np.stack(counts) if counts else None

    lines, figures = [], {}
    for misalignment in options.misalignment:
        _, reference = read(REFERENCE, misalignment)
        lines += [
            "", f"misalignment {misalignment}", "",
            "| method | test F1 | against TMR | p | ms a step | parameters |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name in names:
            reports, counts = read(name, misalignment)
            if not reports:
                lines.append(f"| {name} | not run | | | | |")
                continue
            found = [100 * report["test"]["f1"] for report in reports]
            few = "" if len(reports) == len(options.seeds) else f" ({len(reports)} seeds)"
            difference = p_value = ""
            if reference is not None and name != REFERENCE:
                compared = paired_bootstrap(counts, reference)
                difference, p_value = f"{100 * compared.difference:+.1f}", f"{compared.p_value:.3f}"
            step = 1000 * np.median([report["seconds_per_step"] for report in reports])
            lines.append(
                f"| {name} | {np.mean(found):.1f} ± {np.std(found):.1f}{few} | {difference} | {p_value} | {step:.0f} | "
                f"{reports[0]['parameters']:,} |"
            )
            figures[f"{name} {misalignment}"] = {"f1": found, "difference": difference, "p": p_value, "ms": step}
    return lines, figures


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="runs/demo_table for entities, runs/demo_table_re for relations")
    parser.add_argument("--task", choices=("ner", "re"), default="ner")
    parser.add_argument("--misalignment", type=float, nargs="+", default=[0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=["methods"], help="names, or: methods, parts, all")
    parser.add_argument("--posts", type=int, default=2400)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out or Path("runs/demo_table" + ("_re" if options.task == "re" else ""))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((options.out / "compiled").resolve()))
    logging.basicConfig(level=logging.WARNING)
    if options.one:
        run_one(options.out, options.task, options.one, options.misalignment[0], options.seeds[0], options.posts)
        return
    known = rows_of(options.task)
    groups = {
        "methods": [name for name in known if name not in PARTS],
        "parts": [{"ner": "bert_crf", "re": "mtb"}[options.task], *PARTS, REFERENCE],
        "all": list(known),
    }
    names = list(dict.fromkeys(name for given in options.rows for name in groups.get(given, [given])))
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no rows {', '.join(unknown)}; those that there are: {', '.join(known)}, or {', '.join(groups)}")
    train_missing(options, names)
    lines, figures = table_of(options, names)
    print(f"\nSYNTHETIC DATA, {options.task}, test micro F1 (entities: strict), mean ± std over seeds {options.seeds}")
    print("\n".join(lines))
    (options.out / "table.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
