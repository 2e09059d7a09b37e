"""Aligns words and objects by the places they take in the structure of text and picture (MEGA, MM 2021).

    python data_prep/align_objects.py DATASET                                # a chain of words
    python data_prep/align_objects.py DATASET --parser=stanza --models=DIR   # a dependency parse, as the paper has it

Every record with objects gets `sides["alignment"]`, one row a word with a weight for each of its first --objects
objects: the arithmetic is in :mod:`data_prep.objects.structure`, the graphs are in :mod:`data_prep.objects.graphs`.
Pictures are graphs of boxes that overlap or lie near each other, as no scene graph is there. Needs objects
(data_prep/import_objects.py or data_prep/ground_regions.py); where they are imported anew, run it once more. Resumable;
see :mod:`data_prep.stages.frame`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.objects import graphs, structure
from data_prep.phrases.constituency import LANGUAGE
from data_prep.stages import command as stage_command
from data_prep.stages import frame as stages
from data_prep.stages.frame import Outcome, Selection, Stage
from tmrjax.files import DataError
from tmrjax.records import Dataset, Record, read_dataset

NAME = "alignment"
PARSERS = ("chain", "stanza")
MAXIMUM = 10  # objects of a picture, as MEGA reads
DIGITS = 6

Parser = Callable[[Sequence[Sequence[str]]], list[list[structure.Edge]]]


def load_parser(name: str, models: Path | None = None) -> tuple[Parser, str | None, dict[str, str]]:
    """A parser of posts, what its model is called, and versions. Raises :class:`DataError` where something lacks."""
    if name == "chain":
        return lambda posts: [graphs.chain_edges(len(tokens)) for tokens in posts], None, {}
    if name != "stanza":
        raise ValueError(f"parser is {name!r}; expected one of {PARSERS}")
    if models is None:
        raise DataError("--parser=stanza", "no --models", "a folder of stanza's models", "Name it, or use chain.")
    loaded = graphs.DependencyParser(models)
    return loaded, f"stanza {LANGUAGE} {stages.folder_digest(models / LANGUAGE)}", {"stanza": loaded.version}


def alignment_stage(
    parser: str = "chain", *, models: Path | None = None, objects: int = MAXIMUM, near: float = graphs.NEAR,
    batch_size: int = 64,
) -> Stage:  # fmt: skip
    """The stage; arguments as the command's flags."""
    if objects < 1 or not near >= 0:
        raise ValueError(f"objects={objects}, near={near}: expected objects >= 1 and near >= 0")
    parse, model, versions = load_parser(parser, models)

    def boxes(record: Record) -> Any:
        return record.sides["objects"].get("boxes", [])[:objects]

    def work(batch: Sequence[Record]) -> list[Outcome | DataError]:
        edges = parse([record.tokens for record in batch])
        return [one(record, found) for record, found in zip(batch, edges, strict=True)]

    def one(record: Record, text_edges: Sequence[structure.Edge]) -> Outcome | DataError:
        found, number = boxes(record), len(record.sides["objects"]["labels"][:objects])
        if len(found) != number or any(not isinstance(box, list) or len(box) != 4 for box in found):
            found = f"{len(found)} boxes of {number} objects"
            return DataError(f"record {record.id}", found, "a box of each", "Import the objects again.")
        picture_edges = graphs.box_edges(found, near)
        weights = structure.align(len(record.tokens), text_edges, number, picture_edges)
        counts = {"edges of texts": len(text_edges), "edges of pictures": len(picture_edges), "objects": number}
        return Outcome(weights.round(DIGITS).tolist(), counts)

    return Stage(
        name=NAME,
        tool="data_prep/align_objects.py",
        work=work,
        apply=lambda record, value: dataclasses.replace(record, sides={**record.sides, NAME: value}),
        inputs=lambda record: {"tokens": record.tokens, "boxes": boxes(record)},
        options={"parser": parser, "objects": objects, "near": near},
        concerns=lambda record: bool(record.sides.get("objects", {}).get("labels")),
        model=model,
        versions=versions,
        notes={"edges of a picture": "boxes that overlap or lie near each other: no scene graph"},
        batch_size=batch_size,
    )


def align_objects(root: Path, selection: Selection | None = None, **options: Any) -> Dataset:
    """Aligns a data set; `options` are those of :func:`alignment_stage`. Raises :class:`DataError`."""
    stage = alignment_stage(**options)
    dataset = read_dataset(root)
    if not any(stage.concerns(record) for records in dataset.splits.values() for record in records):
        advice = "Run data_prep/import_objects.py or data_prep/ground_regions.py before."
        raise DataError(root, "no record with objects", "objects in 'sides'", advice)
    return stages.run_stage(root, stage, selection)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    stage_command.add_arguments(parser)
    parser.add_argument("--parser", choices=PARSERS, default="chain", help="of the text (default: %(default)s)")
    parser.add_argument("--models", type=Path, help="folder of stanza's models")
    parser.add_argument("--objects", type=int, default=MAXIMUM, help="of a picture (default: %(default)s)")
    parser.add_argument("--near", type=float, default=graphs.NEAR, help="gap of near boxes (default: %(default)s)")
    flags = parser.parse_args()
    options = {name: getattr(flags, name) for name in ("parser", "models", "objects", "near")}
    stage_command.command(
        "align_objects", [NAME], lambda: align_objects(flags.dataset, stage_command.selection_of(flags), **options)
    )


if __name__ == "__main__":
    main()
