"""Writes the three divergence scores of every post of a prepared MNER or MRE set, for both of its pictures (§3.4).

    python data_prep/score_divergence.py runs/demo/data --checkpoint=runs/demo/estimator

`scores` are (weaken, complement, strengthen) for text and picture, `generated_scores` for text and generated picture:
the softmax of an estimator that experiments/mde.py trained. A picture that is not there gets null, counted.
--normalise=release divides complement and strengthen by their sum, as the released code does: weaken is unknown
then, stored as 0, and dataset.json says `renormalised_scores`.

Own and released scores look alike to training; `dataset.json["stages"]["score_divergence"]` says which estimator the
scores are from. Resumable, and divisible over machines by --shard, as every stage (data_prep/stages/frame.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.stages import command as stage_command
from data_prep.stages.frame import Outcome, Selection, Stage, file_digest, run_stage
from tmrjax.divergence import normalise_as_released
from tmrjax.divergence.pictures import estimator_pixels
from tmrjax.divergence.pipeline import encode_texts
from tmrjax.divergence.scoring import Scorer
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.records import Dataset, Record, read_dataset
from tmrjax.training.checkpoints import package_versions

NAME = "score_divergence"
NORMALISATIONS = ("none", "release")
DIGITS = 6


def score_divergence(
    root: Path, checkpoint: Path, *, normalise: str = "none", batch_size: int = 64, selection: Selection | None = None
) -> Dataset:
    """Score a prepared data set, or go on with it; returns the set as it is now. Raises :class:`DataError`."""
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise is {normalise!r}; expected one of {', '.join(NORMALISATIONS)}")
    selection = selection or Selection()
    _check_whole(root, normalise, selection)
    scorer, said = Scorer.load(checkpoint, batch_size)
    root = Path(root)
    with ThreadPoolExecutor(2) as executor:
        stage = Stage(
            name=NAME,
            tool="data_prep/score_divergence.py",
            work=lambda records: _score(records, root, scorer, normalise, executor.map),
            apply=_apply,
            inputs=lambda record: _inputs(record, root),
            options={"normalise": normalise, **said},
            info=lambda info, _: dataclasses.replace(info, renormalised_scores=normalise == "release"),
            model=f"{checkpoint.name}, " + (f"step {said['step']}" if "step" in said else said["source"]),
            versions=package_versions(),
            batch_size=batch_size,
        )
        return run_stage(root, stage, selection)


def _check_whole(root: Path, normalise: str, selection: Selection) -> None:
    """A part of a set can't get scores of another kind than the rest has."""
    if selection.splits is None and selection.limit is None:
        return
    info = read_dataset(root).info
    if info.renormalised_scores != (normalise == "release"):
        kinds = {True: "renormalised (weaken unknown)", False: "not renormalised"}
        raise DataError(
            root, f"scores that are {kinds[info.renormalised_scores]}", "one kind in a whole set",
            "Leave out --split and --limit, or use the same --normalise.",
        )  # fmt: skip


def _slots(record: Record) -> dict[str, str | None]:
    """The pictures of a record by the field that their scores go into."""
    return {"scores": record.image, "generated_scores": record.generated and record.generated.image}


def _inputs(record: Record, root: Path) -> Any:
    paths = _slots(record).values()
    return [list(record.tokens), *(None if path is None else file_digest(root / path) for path in paths)]


def _score(
    records: Sequence[Record], root: Path, scorer: Scorer, normalise: str, parallel: Callable
) -> list[Outcome | DataError]:
    """The outcomes of some records; pictures are decoded by several threads, all pairs are scored together."""
    settings = scorer.estimator

    def load(path: str) -> np.ndarray | DataError:
        try:
            return estimator_pixels(load_picture(root / path), settings.pictures)
        except DataError as error:
            return error

    wanted = [
        (row, field, path) for row, record in enumerate(records) for field, path in _slots(record).items() if path
    ]
    loaded = list(parallel(load, (path for *_, path in wanted)))
    pairs = [
        (row, field, pixels)
        for (row, field, _), pixels in zip(wanted, loaded, strict=True)
        if not isinstance(pixels, DataError)
    ]
    faults = {row: fault for (row, *_), fault in zip(wanted, loaded, strict=True) if isinstance(fault, DataError)}
    texts = [" ".join(record.tokens) for record in records]
    pieces = encode_texts(settings.tokenizer, texts, settings.texts)
    lengths = settings.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    scores = scorer([pieces[row] for row, *_ in pairs], [pixels for *_, pixels in pairs])
    if normalise == "release":
        scores = normalise_as_released(scores)
    values: list[dict[str, Any]] = [dict.fromkeys(_slots(record)) for record in records]
    for (row, field, _), found in zip(pairs, scores, strict=True):
        values[row][field] = [round(float(score), DIGITS) for score in found]
    outcomes: list[Outcome | DataError] = []
    for row, value in enumerate(values):
        counts = {
            "without a picture": int(value["scores"] is None),
            "without a generated picture": int(value["generated_scores"] is None),
            "texts that are cut": int(len(lengths[row]) > len(pieces[row])),
        }
        outcomes.append(faults.get(row) or Outcome(value, counts))
    return outcomes


def _apply(record: Record, value: Mapping[str, Any]) -> Record:
    scores = {field: None if found is None else tuple(found) for field, found in value.items()}
    return dataclasses.replace(record, **scores)


def mean_scores(dataset: Dataset) -> str:
    """The mean of the scores in each split, as lines."""
    lines = [f"  {'mean scores':28s}{'weaken':>12s}{'complement':>12s}{'strengthen':>12s}"]
    for split, records in dataset.splits.items():
        for field in ("scores", "generated_scores"):
            found = [getattr(record, field) for record in records if getattr(record, field) is not None]
            if found:
                mean = "".join(f"{value:12.3f}" for value in np.mean(found, 0))
                lines.append(f"  {split + ', ' + field.replace('_', ' '):28s}{mean}")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    stage_command.add_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="workdir of experiments/mde.py")
    parser.add_argument("--normalise", choices=NORMALISATIONS, default="none", help="release: weaken unknown")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs over all devices (default: %(default)s)")
    flags = parser.parse_args()

    done: list[Dataset] = []

    def run() -> Dataset:
        selection = stage_command.selection_of(flags)
        options = {"normalise": flags.normalise, "batch_size": flags.batch_size, "selection": selection}
        done.append(score_divergence(flags.dataset, flags.checkpoint, **options))
        return done[0]

    stage_command.command(NAME, [NAME], run)
    print(mean_scores(done[0]))


if __name__ == "__main__":
    main()
