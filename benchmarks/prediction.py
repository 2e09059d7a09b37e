"""Seconds of a prediction from the start of the process to the file: experiments/predict.py beside another program.

python -m benchmarks.prediction --workdir=RUN --posts=posts.jsonl --peer="PYTHON PROGRAM ENCODER {posts}"
python -m benchmarks.prediction --workdir=RUN --posts=posts.jsonl --one-post
python -m benchmarks.prediction --workdir=RUN --posts=posts.jsonl --sizes=1000,10000,100000

Whole processes, in turns: each round runs ours and the peer's; ``{posts}`` in ``--peer`` stands for the file. Compiled
programs are kept in a folder of this benchmark's, empty at first: the first round is the cold one, which compiles, and
is told apart; later rounds find what it left, as a second process on a machine does. ``--one-post``: a fresh process
that imports :class:`tmrjax.predict.Predictor`, loads the run and gives the entities of one post. ``--sizes``: seconds a
post against the number of posts, the file's over and over; they should be flat.

RUN is a training's folder, or one that export.py wrote. Every line has the minimum, median and maximum; ratios are of
neighbouring runs, above 1 where ours is faster. malloc is tuned for the peer as predict.py does it for itself.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bert_step import MALLOC

ROOT = Path(__file__).resolve().parent.parent
ONE_POST = """import sys
from tmrjax.predict import Predictor
print(Predictor.load(sys.argv[1]).entities("Jordan at the harbour")["entities"])
"""


def seconds_of(command: Sequence[str], cache: Path, **environment: str) -> float:
    """Seconds of a process; SystemExit where it fails."""
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **environment}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    begun = time.perf_counter()
    done = subprocess.run(command, check=False, cwd=ROOT, env=variables, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return seconds


def predict(workdir: Path, posts: Path, count: int, cache: Path) -> float:
    """Seconds of experiments/predict.py; all posts must have a result."""
    output = cache / "results.jsonl"
    flags = [f"--workdir={workdir}", f"--input={posts}", f"--output={output}"]
    seconds = seconds_of([sys.executable, "experiments/predict.py", *flags], cache)
    with output.open("rb") as stream:
        written = sum(1 for _ in stream)
    output.unlink()
    if written != count:
        raise SystemExit(f"{written} results for {count} posts")
    return seconds


def told(name: str, values: Sequence[float], unit: str = "s") -> None:
    """One line: minimum, median, maximum."""
    if values:
        middle = statistics.median(values)
        print(f"{name:32} {min(values):8.2f} {middle:8.2f} {max(values):8.2f} {unit} ({len(values)})", flush=True)


def race(workdir: Path, posts: Path, count: int, peer: str | None, rounds: int, cache: Path) -> None:
    """Ours and the peer's in turns; the first round is ours cold."""
    theirs = shlex.split(peer.replace("{posts}", shlex.quote(str(posts)))) if peer else None
    ours, others = [], []
    for _ in range(rounds + 1):
        ours.append(predict(workdir, posts, count, cache))
        if theirs:
            others.append(seconds_of(theirs, cache, **MALLOC))
    told("ours, cold", ours[:1])
    told("ours, second process", ours[1:])
    told("peer", others)
    told("ours, second process, posts/s", [count / seconds for seconds in ours[1:]], "")
    told("speed of the peer's, cold", [other / one for one, other in zip(ours[:1], others, strict=False)], "times")
    ratios = [other / one for one, other in zip(ours[1:], others[1:], strict=True)] if theirs else []
    told("speed of the peer's, second", ratios, "times")


def one_post(workdir: Path, rounds: int, cache: Path) -> None:
    """From the start of Python to the entities of one post."""
    command = [sys.executable, "-c", ONE_POST, str(workdir)]
    seconds = [seconds_of(command, cache) for _ in range(rounds + 1)]
    told("one post, cold", seconds[:1])
    told("one post, second process", seconds[1:])


def sizes(workdir: Path, posts: Path, counts: Sequence[int], cache: Path) -> None:
    """Milliseconds a post against the number of posts; the first run, which compiles, is not told of."""
    lines = [line for line in posts.read_text(encoding="utf-8").splitlines() if line.strip()]
    several = cache / "posts.jsonl"
    for number, count in enumerate([min(counts), *counts]):
        several.write_text("".join(f"{line}\n" for line in itertools.islice(itertools.cycle(lines), count)))
        seconds = predict(workdir, several, count, cache)
        if number:
            print(f"{count:8d} posts {seconds:8.1f} s {1e3 * seconds / count:8.2f} ms a post", flush=True)


def main() -> None:
    """Flags in, lines out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a run with entities")
    parser.add_argument("--posts", type=Path, required=True, help="JSONL of posts")
    parser.add_argument("--peer", help="the other program's command, with {posts}")
    parser.add_argument("--rounds", type=int, default=5, help="behind the cold one")
    parser.add_argument("--one-post", action="store_true")
    parser.add_argument("--sizes", help="numbers of posts, with commas between")
    arguments = parser.parse_args()
    workdir, posts = arguments.workdir.resolve(), arguments.posts.resolve()
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        if arguments.one_post:
            one_post(workdir, arguments.rounds, cache)
        elif arguments.sizes:
            sizes(workdir, posts, [int(count) for count in arguments.sizes.split(",")], cache)
        else:
            with posts.open("rb") as stream:
                count = sum(1 for line in stream if line.strip())
            race(workdir, posts, count, arguments.peer, arguments.rounds, cache)


if __name__ == "__main__":
    main()
