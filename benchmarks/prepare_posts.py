"""The preparation of real posts, end to end, with a kill -9 in the middle of each stage.

    python -m benchmarks.prepare_posts --data=DIR --out=DIR [--diffusion=DIR] [--steps=4] [--estimator=WORKDIR]

DIR of --data holds `tmr-release/` and `images/` (default: TMRJAX_DATA). Posts of Twitter-2015, Twitter-2017 and MNRE
that have a picture there are imported; then each stage runs as its own command, is killed once its journal has results,
and runs again. Checked: every result that was journaled is still there, none was made twice, every record has one, and
a third run changes no byte. Printed: the time per post as the stages' manifests have it, and where the contact sheets
lie. Without --diffusion a tiny model with random weights is made: its pictures are noise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from data_prep.import_mnre import Options as MnreOptions
from data_prep.import_mnre import import_mnre
from data_prep.import_twitter import Options as TwitterOptions
from data_prep.import_twitter import import_twitter
from data_prep.inspect_dataset import inspect_dataset
from tmrjax.records import completeness_table, read_dataset

ROOT = Path(__file__).resolve().parent.parent


def import_posts(data: Path, out: Path) -> list[Path]:
    """The three sets, only posts with a picture."""
    shared = {"pictures": "require", "on_error": "skip", "progress": False, "generated_boxes": "none"}
    for name in ("twitter2015", "twitter2017"):
        source = data / "tmr-release/TMR-NER/data" / name
        import_twitter(TwitterOptions(source, out / name, images=data / "images" / name, phrases="none", **shared))
    images = data / "images/mnre"
    import_mnre(MnreOptions(data / "tmr-release/TMR-RE/data", out / "mnre", images=images, phrases="none", **shared))
    return [out / name for name in ("twitter2015", "twitter2017", "mnre")]


def journal_lines(root: Path, stage: str) -> list[str]:
    """The whole lines of a stage's journal, without its header."""
    path = root / "journals" / stage / "shard-1-of-1.jsonl"
    return path.read_text().split("\n")[1:-1] if path.exists() else []


def run(command: list[str], root: Path, stage: str, *, kill: bool) -> tuple[int, float]:
    """Runs a stage; with `kill` until its journal grows. Returns its exit status and the seconds it took."""
    began = time.perf_counter()
    with open(root / f"{stage}.log", "ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            if kill and journal_lines(root, stage):
                process.send_signal(signal.SIGKILL)
            time.sleep(0.001)
    return process.returncode, time.perf_counter() - began


def check(stage: str, command: list[str], root: Path) -> str:
    """Kills a stage, resumes it and repeats it; returns a line about it."""
    killed, _ = run(command, root, stage, kill=True)
    before = journal_lines(root, stage)
    read_dataset(root)  # whatever the moment, the set is whole
    status, _ = run(command, root, stage, kill=False)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{(root / f'{stage}.log').read_text()[-2000:]}")
    after = journal_lines(root, stage)
    identifiers = [json.loads(line)["id"] for line in after]
    manifest = read_dataset(root).info.stages[stage]
    done = sum(counts["done"] for counts in manifest["records"].values())
    assert after[: len(before)] == before, "a result was lost"
    assert len(set(identifiers)) == len(identifiers) == done, "a result was made twice"
    assert not any(counts["not done"] + counts["failed"] for counts in manifest["records"].values())
    bytes_before = {path: path.read_bytes() for path in root.glob("*.json*")}
    run(command, root, stage, kill=False)
    assert bytes_before == {path: path.read_bytes() for path in root.glob("*.json*")}, "a repeat changed the set"
    how = "killed" if killed == -signal.SIGKILL else "ended before it could be killed"
    seconds = manifest["seconds"] / done if done else 0.0
    return f"{root.name:14s}{stage:20s}{how} with {len(before):3d} of {done:3d} results{seconds:10.4f} s a post"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("TMRJAX_DATA"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the sets, which are made anew")
    parser.add_argument("--diffusion", type=Path, help="Stable Diffusion folder (default: a tiny random one)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--estimator", type=Path, help="workdir of a divergence estimator; without it no scores")
    flags = parser.parse_args()
    if flags.data is None:
        sys.exit("benchmarks.prepare_posts: name the data with --data or TMRJAX_DATA")
    model = flags.diffusion
    flags.out.mkdir(parents=True, exist_ok=True)
    if model is None:
        from data_prep.make_tiny_diffusion import make_tiny_diffusion

        model = flags.out / "tiny-diffusion"
        shutil.rmtree(model, ignore_errors=True)
        make_tiny_diffusion(model)
    for name in ("twitter2015", "twitter2017", "mnre"):
        shutil.rmtree(flags.out / name, ignore_errors=True)
    draw = ["back_translate.py", f"--model={model}", f"--steps={flags.steps}"]
    commands = {
        "phrases": ["extract_phrases.py", "--batch-size=4"],
        "back_translate": draw,
        "regions": ["ground_regions.py", "--pictures=original"],
        "generated_regions": ["ground_regions.py", "--pictures=generated"],
    }
    if flags.estimator is not None:
        commands["scores"] = ["score_divergence.py", f"--checkpoint={flags.estimator}"]
    for root in import_posts(flags.data, flags.out):
        for stage, (script, *options) in commands.items():
            command = [sys.executable, f"data_prep/{script}", str(root), *options]
            print(check(stage, command, root), flush=True)
        print(completeness_table(read_dataset(root)))
        sheet = flags.out / f"{root.name}.html"
        print(f"{len(inspect_dataset(root, sheet, limit=100))} posts on {sheet}\n", flush=True)


if __name__ == "__main__":
    main()
