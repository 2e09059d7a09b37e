"""Every method that reads pictures, end to end on the real posts with real pictures: 37 for entities, 39 for relations.

    python -m benchmarks.real_pictures --data=DIR --text-encoder=BERT --out=DIR [--methods hvpnet umt]

DIR of --data holds `tmr-release/` and `images/` (default: TMRJAX_DATA). The posts are imported, Twitter-2015 and -2017
as one set; phrases, regions, objects, their alignment with words and generated pictures come from the stages as a user
runs them (objects have the pixels of their box, scaled to 8 × 8, as a stand-in for a detector's features; generated
pictures are drawn by a tiny diffusion model from random weights and are noise). Then each method is trained, evaluated
from its checkpoint and run on raw posts by the three commands. So few posts say nothing about quality: printed are the
mean loss of the first and of the last epoch (did it learn?), F1 on the posts that were trained on, of the epoch that
six dev posts chose (the first one, where their F1 stays 0), seconds, and what predict.py answered.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.prepare_posts import import_posts
from data_prep.make_demo import make_demo
from data_prep.make_tiny_diffusion import make_tiny_diffusion
from tmrjax.methods import find_method, known_methods
from tmrjax.methods.base import options_of
from tmrjax.records import Record, read_dataset, write_dataset

ROOT = Path(__file__).resolve().parent.parent
# Posts for dev and test of what was released without; the others are trained on.
HELD_OUT = 6


def joined(roots: list[Path], out: Path, task: str) -> Path:
    """One set of all posts of some sets, with the pictures copied."""
    sets = [read_dataset(root) for root in roots]
    records = [record for one in sets for split in ("train", "dev", "test") for record in one.splits.get(split, ())]
    shutil.rmtree(out, ignore_errors=True)
    (out / "images").mkdir(parents=True)
    kept: list[Record] = []
    for one in sets:
        for path in {record.image for split in one.splits.values() for record in split}:
            shutil.copy(one.path(path), out / path)
    seen: set[str] = set()
    for record in records:
        if record.id not in seen:
            kept.append(record)
            seen.add(record.id)
    parts = {"dev": kept[:HELD_OUT], "test": kept[HELD_OUT : 2 * HELD_OUT], "train": kept[2 * HELD_OUT :]}
    write_dataset(out, sets[0].info, {split: parts[split] for split in ("train", "dev", "test")})
    print(f"{task}: {len({record.image for record in kept})} pictures, {len(kept)} posts", flush=True)
    return out


def write_objects(root: Path, path: Path) -> None:
    """The regions of every picture as a detector's output, with the pixels of each box as features."""
    lines = {}
    for records in read_dataset(root).splits.values():
        for record in records:
            with Image.open(root / record.image) as picture:
                rgb = picture.convert("RGB")
            found = []
            for number, box in enumerate(record.regions):
                corners = [round(part * side) for part, side in zip(box, rgb.size * 2, strict=True)]
                crop = rgb.crop((*corners[:2], max(corners[2], corners[0] + 1), max(corners[3], corners[1] + 1)))
                pixels = np.asarray(crop.resize((8, 8)), float).reshape(-1) / 255
                found.append(
                    {"label": "region", "score": 1 - number / 10, "box": list(box), "feature": pixels.round(3).tolist()}
                )
            lines[record.image] = {"image": record.image, "objects": found}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))


def call(out: Path, *command: str) -> str:
    """Run one of our commands; its standard output."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    with open(out / "commands.log", "a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def prepare(root: Path, out: Path, diffusion: Path) -> None:
    """All stages, as a user runs them."""
    call(out, "data_prep/extract_phrases.py", str(root))
    call(out, "data_prep/back_translate.py", str(root), f"--model={diffusion}", "--steps=2")
    call(out, "data_prep/ground_regions.py", str(root), "--no-objects")
    objects = out / f"{root.name}-objects.jsonl"
    write_objects(root, objects)
    call(out, "data_prep/import_objects.py", str(root), f"--objects={objects}", "--features")
    call(out, "data_prep/align_objects.py", str(root), "--parser=chain")


def raw_posts(root: Path, path: Path) -> None:
    """Test posts as a user hands them over: raw text and a picture."""
    lines = []
    for record in read_dataset(root).splits["test"]:
        post = {"id": record.id, "tokens": list(record.tokens), "image": record.image, "regions": record.regions}
        if record.head is not None:
            post |= {"head": record.head, "tail": record.tail}
        lines.append(json.dumps(post) + "\n")
    path.write_text("".join(lines))


def run_method(method: str, task: str, root: Path, out: Path, encoders: dict[str, Path], epochs: int) -> str:
    """Train, evaluate, predict; a row of the table."""
    workdir, command = out / f"{method}-{task}", {"ner": "mner", "re": "mre"}[task]
    shutil.rmtree(workdir, ignore_errors=True)
    kind = find_method(method, task)
    pictures = encoders["clip" if kind.picture_folder == "clip_encoder" else "picture"]
    text = encoders["small_text" if method == "mkgformer" else "text"]  # both towers must be of one size
    train = [
        f"experiments/{command}.py", f"--config=experiments/configs/{command}.py:own", f"--config.method={method}",
        f"--workdir={workdir}", f"--config.data.root={root}", f"--config.epochs={epochs}", "--config.batch_size=8",
        "--config.eval_batch_size=8", "--config.log_every=1", f"--config.text_encoder.folder={text}",
        f"--config.picture_encoder.folder={pictures}", "--config.picture_encoder.weights=random",
        "--config.data.max_pieces=96", "--config.data.picture_size=64", "--config.data.picture_resize=64",
        "--config.lr_fusion=3e-3",
    ]  # fmt: skip
    if method == "mkgformer":
        train += ["--config.text_encoder.weights=random", "--config.lr_encoder=1e-3"]
    if "use_scores" in options_of(kind):
        train.append("--config.model.use_scores=False")
    call(out, *train)
    report = json.loads((workdir / "report.json").read_text())
    learned = call(out, "experiments/evaluate.py", f"--workdir={workdir}", "--split=train").splitlines()
    micro = next(line.split() for line in learned if line.split()[:1] == ["micro"])
    again = call(out, "experiments/evaluate.py", f"--workdir={workdir}", "--split=test").splitlines()
    same = next(line.split() for line in again if line.split()[:1] == ["micro"])[3]
    posts, answers = out / f"{task}-posts.jsonl", out / f"{method}-{task}.jsonl"
    raw_posts(root, posts)
    answers.unlink(missing_ok=True)
    call(out, "experiments/predict.py", f"--workdir={workdir}", f"--input={posts}", f"--output={answers}",
         f"--root={root}")  # fmt: skip
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    found = sum(len(line.get("entities", line.get("relations", ()))) for line in lines)
    losses = [
        json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert f"{100 * report['test']['f1']:.2f}" == same, f"{method}: report {report['test']['f1']}, evaluate.py {same}"
    steps = len(losses) // epochs
    first, last = (sum(part) / steps for part in (losses[:steps], losses[-steps:]))
    return (
        f"| {method} | {task} | {first:.2f} | {last:.2f} | {micro[3]} | {report['seconds_per_step']:.2f} | "
        f"{found} in {len(lines)} posts |"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TMRJAX_DATA"))
    parser.add_argument("--text-encoder", type=Path, required=True, help="Hugging Face folder of a BERT")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", help="default: all that read pictures")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the data with --data or TMRJAX_DATA")
    options.data, options.text_encoder = options.data.resolve(), options.text_encoder.resolve()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sets = {"ner": out / "entities", "re": out / "relations"}
    if not (sets["re"] / "arrays").exists():
        # Encoders of the demo world: a small ResNet, a small CLIP, a small BERT, from random weights.
        make_demo(out / "demo", posts=60)
        shutil.rmtree(out / "diffusion", ignore_errors=True)
        make_tiny_diffusion(out / "diffusion")
        for name in ("twitter2015", "twitter2017", "mnre"):
            shutil.rmtree(out / name, ignore_errors=True)
        *twitter, mnre = import_posts(options.data, out)
        for task, roots in (("ner", twitter), ("re", [mnre])):
            prepare(joined(roots, sets[task], task), out, out / "diffusion")
    encoders = {
        "text": options.text_encoder, "small_text": out / "demo" / "text_encoder",
        "picture": out / "demo" / "picture_encoder", "clip": out / "demo" / "clip_encoder",
    }  # fmt: skip
    print("\n| method | task | loss, first epoch | last | F1 on its training posts | s a step | predict.py |")
    print("|---|---|---|---|---|---|---|")
    for name, tasks in known_methods().items():
        for task in tasks:
            wanted = options.methods is None or name in options.methods
            reads = "use_pictures" in options_of(find_method(name, task)) or name == "tmr"
            if wanted and reads:
                print(run_method(name, task, sets[task], out, encoders, options.epochs), flush=True)


if __name__ == "__main__":
    main()
