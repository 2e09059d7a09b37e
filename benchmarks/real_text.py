"""Twitter text with a pretrained encoder, method `bert_crf`: test F1 over seeds, and the time of a step beside PyTorch.

python -m benchmarks.real_text --data=data/twitter2017 --encoder=BERT_DIR --out=runs/real_text [--seeds 0 1 2]
python -m benchmarks.real_text --data=... --encoder=... --out=... --peer=YOUR_PROGRAM --source=RELEASE/twitter2017

The first trains (5 epochs, batches of 16) and prints strict and lenient F1. The second lets our command and a PyTorch
program (any that takes ENCODER DATA --epochs --max-steps and prints "step_s_median") train 60 steps in turns, as whole
processes, and prints the ratio of their median steps; run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.configs.mner import get_config

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
}
CONFIG = "twitter2017_text"


def command(data: Path, encoder: Path, workdir: Path, **changes) -> list[str]:
    """Our training command."""
    overrides = {"data.root": data, "text_encoder.folder": encoder, **changes}
    config = f"--config=experiments/configs/mner.py:{CONFIG}"
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    return [sys.executable, "experiments/mner.py", config, f"--workdir={workdir}", *flags]


def ours_in_turn(data: Path, encoder: Path, workdir: Path, steps: int, posts: int) -> tuple[float, float]:
    """(median seconds per step, seconds of compilation) of a short run."""
    shutil.rmtree(workdir, ignore_errors=True)
    fraction = steps * get_config(CONFIG).batch_size / posts
    changes = {"epochs": 1, "data.fraction": fraction, "log_every": 1}
    subprocess.run(command(data, encoder, workdir, **changes), check=True, capture_output=True)
    report = json.loads((workdir / "report.json").read_text())
    return report["seconds_per_step"], report["compile_seconds"]


def peer_in_turn(peer: Path, encoder: Path, source: Path, steps: int) -> float:
    """Median seconds per step of the PyTorch program."""
    arguments = [sys.executable, str(peer), str(encoder), str(source), "--epochs", "1", "--max-steps", str(steps)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ | MALLOC)
    return float(re.search(r'"step_s_median": ([\d.]+)', done.stdout)[1])


def main() -> None:
    """Train over seeds, or step in turns with a peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared data set")
    parser.add_argument("--encoder", type=Path, required=True, help="Hugging Face folder of a BERT")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peer", type=Path, help="PyTorch program to step in turns with")
    parser.add_argument("--source", type=Path, help="its data: folder with train.txt, valid.txt or val.txt, test.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    if options.peer:
        posts = sum(1 for _ in (options.data / "train.jsonl").open(encoding="utf-8"))
        ratios = []
        for turn in range(options.rounds):
            theirs = peer_in_turn(options.peer, options.encoder, options.source, options.steps)
            mine, compiling = ours_in_turn(options.data, options.encoder, options.out / "turn", options.steps, posts)
            ratios.append(theirs / mine)
            print(
                f"turn {turn}: PyTorch {theirs:.3f} s a step, ours {mine:.3f} s (and {compiling:.0f} s of compilation "
                f"before), ratio {ratios[-1]:.2f}",
                flush=True,
            )
        print(f"PyTorch's step takes {np.median(ratios):.2f} times ours (min {min(ratios):.2f}, max {max(ratios):.2f})")
        return
    rows = []
    for seed in options.seeds:
        workdir = options.out / f"seed-{seed}"
        subprocess.run(command(options.data, options.encoder, workdir, seed=seed), check=True)
        report = json.loads((workdir / "report.json").read_text())
        rows.append(
            [100 * value for value in (report["dev"]["f1"], report["test"]["f1"], report["test"]["lenient_f1"])]
        )
        print(
            f"seed {seed}: dev {rows[-1][0]:.2f}, test strict {rows[-1][1]:.2f}, lenient {rows[-1][2]:.2f}", flush=True
        )
    mean, deviation = np.mean(rows, 0), np.std(rows, 0)
    for name, value, spread in zip(("dev strict", "test strict", "test lenient"), mean, deviation, strict=True):
        print(f"{name}: {value:.2f} ± {spread:.2f} over seeds {options.seeds}")


if __name__ == "__main__":
    main()
