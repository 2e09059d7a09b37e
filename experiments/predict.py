"""Entities or relations of raw posts with a trained checkpoint of either task.

python experiments/predict.py --workdir=runs/demo/full --input=posts.jsonl --output=entities.jsonl
python experiments/predict.py --workdir=runs/demo/relations --entities=runs/demo/full --input=... --output=...

Each line of the input is a post: {"text": ...} or {"tokens": [...]}, with "image" and "generated_image" (paths relative
to --root, by default the input's folder), "regions", "phrases", "scores" where there are some. For relations also
"head" and "tail", [start, end) in characters of the text or in tokens; without them --entities finds the entities, and
every pair of them is asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments import running
from experiments.loop import progress_bar
from tmrjax.files import DataError, jsonl_bytes, parse_json, read_bytes, write_atomic
from tmrjax.predict import Predictor

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    running.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_string("entities", None, "Folder of an MNER run, to find the entities between which relations are.")
    flags.DEFINE_string("input", None, "JSONL file of posts.")
    flags.DEFINE_string("output", None, "JSONL file to write.")
    flags.DEFINE_string("root", None, "Folder that pictures' paths are relative to.")
    flags.DEFINE_integer("batch_size", 32, "Posts at a time.")


def main(_) -> None:
    """Flags in, JSONL out."""
    source = Path(FLAGS.input)
    lines = read_bytes(source).split(b"\n")
    posts = [parse_json(line, f"{source}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not posts:
        raise DataError(source, "no post", "one JSON object per line", "Give it at least one.")
    predictor = Predictor.load(FLAGS.workdir)
    options = {"root": FLAGS.root or source.parent, "batch_size": FLAGS.batch_size, "progress": progress_bar}
    if predictor.reader.task == "re":
        entities = Predictor.load(FLAGS.entities) if FLAGS.entities else None
        results, kind = predictor.relations(posts, entities=entities, **options), "relations"
    else:
        results, kind = predictor.entities(posts, **options), "entities"
    write_atomic(FLAGS.output, jsonl_bytes(results))
    print(f"{sum(len(result[kind]) for result in results)} {kind} in {len(results)} posts written to {FLAGS.output}")


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["workdir", "input", "output"])
    running.command(main)
