"""How a stage is run from the command line: the flags that all stages share, and what is printed at the end."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.stages.frame import STATES, Selection
from tmrjax.files import DataError
from tmrjax.records import SPLITS, Dataset, completeness_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`DATASET` and the flags of :class:`Selection`."""
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a prepared data set")
    parser.add_argument("--split", action="append", choices=SPLITS, help="only this one; may be repeated")
    parser.add_argument("--limit", type=int, help="at most so many posts")
    parser.add_argument("--shard", type=_parse_shard, default=(1, 1), metavar="I/N", help="the I-th part of N, from 1")
    parser.add_argument("--restart", action="store_true", help="begin anew: drop results of this shard and of others")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip lists what failed")


def _parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}; expected I/N, as 1/4")
    return int(index), int(count)


def selection_of(arguments: argparse.Namespace) -> Selection:
    """The :class:`Selection` of parsed flags; raises ValueError for values out of range."""
    splits = tuple(arguments.split) if arguments.split else None
    return Selection(splits, arguments.limit, arguments.shard, arguments.restart, arguments.on_error)


def command(name: str, names: Sequence[str], run: Callable[[], Dataset]) -> None:
    """Runs the stages `names` as the command `name`.

    One line for an error, what to do when interrupted, and at the end the tables of the set and of the stages.
    """
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(message)s")
    try:
        dataset = run()
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; what is done is kept, the same command goes on")
    print(completeness_table(dataset))
    for stage in names:
        print(stage_table(dataset, stage))


def stage_table(dataset: Dataset, name: str) -> str:
    """What a stage's manifest says, as lines under its name."""
    manifest = dataset.info.stages.get(name)
    if manifest is None:
        return f"{name}: not folded yet"
    records = manifest["records"]
    lines = [f"{name} ({manifest['tool']}, {manifest['model'] or 'no model'}):"]
    for row in STATES:
        lines.append(f"  {row:28s}" + "".join(f"{counts[row]:9d}" for counts in records.values()))
    lines.extend(f"  {key:28s}{value:9d}" for key, value in manifest["counts"].items())
    lines.extend(f"  {key}: {value}" for key, value in manifest.get("notes", {}).items())
    number = sum(counts["done"] for counts in records.values())
    if number:
        lines.append(f"  {manifest['seconds'] / number:.4f} s a post")
    if manifest["failed"]:
        lines.append(f"  what failed is listed in {dataset.root / manifest['failed']}")
    return "\n".join(lines)
