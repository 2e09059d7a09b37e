"""Entities or relations of posts by the programs of this folder: run.py of what export.py --format=stablehlo writes.

python run.py --input=posts.jsonl [--output=results.jsonl] [--batch-size=16] [--calibrated] [--on-error=skip]

Each line of the input is a post: {"text": ...} or {"tokens": [...]}, with "image" and what else the model reads; paths
are relative to --root, by default the input's folder. "-" is stdin or stdout. Needs jax, numpy, pillow, regex, tqdm,
safetensors, flatbuffers and tokenizers; the package that trained the model is not needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tmrjax.files import DataError, parse_json
from tmrjax.prediction.posts import Given, PostError
from tmrjax.serving.reader import ServedModel


def read_posts(stream: BinaryIO, name: str) -> Iterator[Given]:
    """The posts of a JSONL stream; blank lines are passed over."""
    for number, line in enumerate(stream, 1):
        if line.strip():
            where = f"{name}:{number}"
            try:
                yield Given(parse_json(line.removeprefix(b"\xef\xbb\xbf"), where), where)
            except DataError as error:
                yield Given(None, where, error)


def main() -> int:
    """Flags in, JSONL out; 1 for an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent, help="the exported folder")
    parser.add_argument("--input", default="-", help="JSONL of posts")
    parser.add_argument("--output", default="-", help="JSONL to write")
    parser.add_argument("--root", type=Path, help="the folder that paths of pictures are relative to")
    parser.add_argument("--batch-size", type=int, default=16, help="posts at a time")
    parser.add_argument("--calibrated", action="store_true", help="scores at the temperature that was fitted on dev")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="for a post that cannot be read")
    given = parser.parse_args()
    root = given.root or (Path() if given.input == "-" else Path(given.input).parent)
    with contextlib.ExitStack() as stack:
        try:
            model = ServedModel(given.folder, calibrated=given.calibrated)
            source = sys.stdin.buffer if given.input == "-" else stack.enter_context(Path(given.input).open("rb"))
            output = (
                sys.stdout
                if given.output == "-"
                else stack.enter_context(Path(given.output).open("w", encoding="utf-8"))
            )
            posts = read_posts(source, "stdin" if given.input == "-" else given.input)
            for _, outcome in model.outcomes(posts, root=root, batch_size=given.batch_size):
                if isinstance(outcome, PostError):
                    if given.on_error == "raise":
                        raise outcome.error
                    outcome = outcome.to_json()  # noqa: PLW2901
                print(json.dumps(outcome, ensure_ascii=False), file=output)
        except (OSError, ValueError) as error:
            print(f"run.py: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
