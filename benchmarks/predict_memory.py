"""Memory of a prediction against the number of posts: it must not grow. Text posts, a tiny tagger of random weights.

python -m benchmarks.predict_memory --posts=1000,10000,100000

Each number of posts is a process of its own that runs experiments/predict.py; its resident memory is looked at every
half second. Printed: seconds, posts per second, memory at the end of the first tenth and the largest one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from tmrjax.encoders.text.bert import BertConfig
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods.bert_crf import BertCRF
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.tasks.entities import Tagger
from tmrjax.text.tokenizers import load_tokenizer
from tmrjax.training.checkpoints import BEST, CheckpointStore

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["jordan", "paris", "harbour", "at", "the", "so", "tired", "today", "!", "#", "@", "rt", "see", "you"]


def make_workdir(folder: Path) -> None:
    """A checkpoint of a tagger that nobody trained."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    bert = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    labels = ("PER", "LOC", "ORG", "MISC")
    model = BertCRF(text=bert, num_labels=9)
    settings = TextSettings(40, 4)
    tagger = Tagger(model, labels, load_tokenizer(folder), settings, PictureSettings(), buckets=(16, 24, 40))
    variables = jax.jit(lambda key: model.init(key, tagger.dummy_batch(), train=False))(jax.random.key(0))
    store = CheckpointStore(folder / BEST)
    store.save(1, jax.tree.map(np.asarray, variables), tagger.to_meta())
    store.close()


def write_posts(path: Path, count: int) -> None:
    """Posts of 3 to 60 words, so that all lengths and windows occur all the time."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = generator.choice(WORDS, generator.integers(3, 16) if number % 50 else 60)
            file.write(json.dumps({"id": number, "text": " ".join(words)}) + "\n")


def resident_mib(pid: int) -> float:
    """The resident memory of a process; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) / 1024 if found else 0.0


def measure(folder: Path, count: int) -> dict[str, float]:
    """Seconds and memory of one run of the command."""
    posts, output = folder / f"{count}.jsonl", folder / f"{count}.out.jsonl"
    write_posts(posts, count)
    journal, samples = Path(f"{output}.partial.journal"), []
    begun = time.monotonic()
    command = ["experiments/predict.py", f"--workdir={folder}", f"--input={posts}", f"--output={output}"]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.5)
        lines = journal.read_bytes().splitlines() if journal.exists() else []
        samples.append((json.loads(lines[-1]).get("line", 0) if len(lines) > 1 else 0, resident_mib(process.pid)))
    seconds = time.monotonic() - begun
    if process.returncode:
        raise SystemExit(f"the command failed with {process.returncode}")
    with output.open("rb") as file:
        written = sum(1 for _ in file)
    if written != count:
        raise SystemExit(f"{written} results for {count} posts")
    early = [memory for line, memory in samples if 0 < line <= count / 10]
    return {"posts": count, "seconds": seconds, "early": max(early, default=0), "most": max(m for _, m in samples)}


def main() -> None:
    """Flags in, a table out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", default="1000,10000,100000", help="numbers of posts, with commas between")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_workdir(folder)
        print(f"{'posts':>8} {'seconds':>8} {'posts/s':>8} {'MiB at 10 %':>12} {'MiB at most':>12}", flush=True)
        for count in map(int, arguments.posts.split(",")):
            row = measure(folder, count)
            early = f"{row['early']:12.0f}" if row["early"] else f"{'-':>12}"
            speed = count / row["seconds"]
            print(f"{count:8d} {row['seconds']:8.0f} {speed:8.0f} {early} {row['most']:12.0f}", flush=True)


if __name__ == "__main__":
    main()
