"""Imports objects that a detector found in the posts' pictures: labels, scores, boxes and, where asked for, features.

    python data_prep/import_objects.py DATASET --objects=FILE [--units=pixels] [--features] [--min-score=0.2]

--objects is a JSONL file, a .npz file, or a folder of .npz files, as often as needed; their forms are in
:mod:`data_prep.objects.detections`. Every record with a picture that a file names gets `sides["objects"]`, at most
--maximum objects, the surest first; with --features their features are rows of `arrays/object_features.npy`, which is
written anew. Labels and features are what OCSGA, VisualBERT and MEGA read of a picture. Objects are of the posts' own
pictures; generated ones have none.

A detector that was given the same number to look for in every post tells nothing of labels; where the number of objects
tells labels all the same (:mod:`data_prep.audit_leaks`), the set is marked `leaky_regions`. Resumable; see
:mod:`data_prep.stages.frame`. The table is moved into place after the records were written: where a kill hits in
between, the same command ends it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.audit_leaks import OBJECTS_ROW, audit
from data_prep.objects.detections import MAXIMUM, Choice, Detection, Detections
from data_prep.regions.files import OUTSIDE
from data_prep.stages import command as stage_command
from data_prep.stages import frame as stages
from data_prep.stages.frame import Outcome, Selection, Stage, file_digest
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.records import Dataset, DatasetInfo, Record
from tmrjax.records.arrays import table_path
from tmrjax.records.dataset import read_info

logger = logging.getLogger(__name__)

NAME, SIDE = "objects", "objects"
UNITS = ("fractions", "pixels")
TOOL = "data_prep/import_objects.py"


def object_stage(
    root: Path, detections: Detections, units: str, tool: str = TOOL, notes: Mapping[str, Any] = {}, *,
    by_id: bool = False,
) -> Stage:  # fmt: skip
    """The stage; `detections` were read already. tool, notes: for the manifest."""
    if units not in UNITS:
        raise ValueError(f"units is {units!r}; expected one of {UNITS}")

    def inputs(record: Record) -> Any:
        # The file decides: with other files the stage is another one.
        return {"image": record.image, "picture": file_digest(root / record.image)}

    def work_one(record: Record) -> Outcome | DataError:
        detection = _detection_of(record, detections, by_id)
        if detection is None:
            return Outcome(None, {"pictures that no file names": 1})
        try:
            size = load_picture(root / record.image).size if units == "pixels" else (1, 1)
            boxes = [_fractions(box, size, detection, units) for box in detection.boxes]
        except DataError as error:
            return error
        value = {
            "labels": list(detection.labels),
            "scores": [round(score, 6) for score in detection.scores],
            "boxes": boxes,
            "rows": None if detection.rows is None else list(detection.rows),
        }
        return Outcome(value, {"objects": len(boxes), "pictures without an object": int(not boxes)})

    def finish(info: DatasetInfo, splits: Mapping[str, Sequence[Record]]) -> DatasetInfo:
        _check_rows(root, detections, splits, by_id)
        return _mark_leaks(root, info, splits)

    choice = detections.choice
    return Stage(
        name=NAME,
        tool=tool,
        work=lambda batch: [work_one(record) for record in batch],
        apply=_apply,
        inputs=inputs,
        options={
            "maximum": choice.maximum, "min_score": choice.least_score, "features": choice.features, "units": units,
            "files": detections.sources,
        },
        concerns=lambda record: record.image is not None,
        info=finish,
        sources={name: {"sha256": digest} for name, digest in detections.sources.items()},
        notes={**notes, **{key: count for key, count in detections.counts.items() if count}},
        batch_size=32,
    )  # fmt: skip


def _apply(record: Record, value: Any) -> Record:
    if record.sides.get(SIDE) == value:
        return record
    # An alignment is one of words with the objects that were there before.
    others = {name: side for name, side in record.sides.items() if name not in (SIDE, "alignment")}
    return dataclasses.replace(record, sides=others if value is None else {**others, SIDE: value})


def _fractions(box: Sequence[float], size: tuple[int, int], detection: Detection, units: str) -> list[float]:
    """A box as fractions of the picture, what reaches over the edge cut off; raises for one that lies elsewhere."""
    fractions = [side / size[number % 2] for number, side in enumerate(box)]
    if not (all(map(math.isfinite, fractions)) and -OUTSIDE <= min(fractions) <= max(fractions) <= 1 + OUTSIDE):
        found = f"the box {[round(side, 4) for side in box]} of {detection.image!r}, outside of the picture"
        raise DataError(detection.where, found, f"boxes in {units}", "Are --units wrong? (fractions or pixels)")
    x1, y1, x2, y2 = cut = [round(min(max(side, 0.0), 1.0), 6) for side in fractions]
    if not (x1 < x2 and y1 < y2):
        found = f"the box {[round(side, 4) for side in box]} of {detection.image!r}, which has no area"
        raise DataError(detection.where, found, "x1 < x2 and y1 < y2", "Are they x, y, width, height? Write corners.")
    return cut


def _detection_of(record: Record, detections: Detections, by_id: bool) -> Detection | None:
    if record.image is None:
        return None
    return detections.of(record.id if by_id else record.image)


def _check_rows(root: Path, detections: Detections, splits: Mapping[str, Sequence[Record]], by_id: bool) -> None:
    """No record may name rows of a table that is about to be replaced."""
    for records in splits.values() if detections.choice.features else ():
        for record in records:
            rows = record.sides.get(SIDE, {}).get("rows")
            detection = _detection_of(record, detections, by_id)
            if rows is not None and (detection is None or detection.rows is None or list(rows) != [*detection.rows]):
                found = f"the rows {list(rows)} of record {record.id}, which are those of an older import"
                advice = "Run without --split, --limit and --on-error=skip: the table of features is written anew."
                raise DataError(table_path(root, SIDE), found, "all records imported at once", advice)


def _mark_leaks(root: Path, info: DatasetInfo, splits: Mapping[str, Sequence[Record]]) -> DatasetInfo:
    """Marks a set whose number of objects tells labels."""
    rows = audit(Dataset(root, info, dict(splits)))
    if not any(row.leak and row.reads == OBJECTS_ROW for row in rows):
        return info
    logger.warning("LEAKY OBJECTS: their number tells labels; dataset.json and every report made from it say so")
    return dataclasses.replace(info, leaky_regions=True)


def import_objects(
    root: Path, selection: Selection | None = None, *, objects: Sequence[Path], units: str = "fractions",
    maximum: int = MAXIMUM, min_score: float = 0.0, features: bool = False, tool: str = TOOL,
    notes: Mapping[str, Any] = {}, renew: bool = False, by_id: bool = False,
) -> Dataset:  # fmt: skip
    """Imports objects into a data set; see the command. Raises :class:`DataError`.

    renew: begins anew, without a question, where the last import was of other files or options. by_id: the files name
    records instead of pictures, where what is found depends on the post too.
    """
    root, choice = Path(root), Choice(maximum, min_score, features)
    table = table_path(root, SIDE)
    if features:
        table.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".objects.") as folder:  # on the disk of the set
        new = Path(folder) / table.name if features else None
        detections = Detections([Path(path) for path in objects], choice, new)
        stage = object_stage(root, detections, units, tool, notes, by_id=by_id)
        if renew and read_info(root).stages.get(NAME, {}).get("options") != stage.options:
            selection = dataclasses.replace(selection or Selection(), restart=True)
        dataset = stages.run_stage(root, stage, selection)
        if new is not None and dataset.info.stages.get(NAME, {}).get("options") == stage.options:
            os.replace(new, table)
    records = [record for split in dataset.splits.values() for record in split]
    used = {found.image for record in records if (found := _detection_of(record, detections, by_id)) is not None}
    if len(used) < len(detections):
        foreign = sorted(detection.image for detection in detections if detection.image not in used)
        logger.warning("%d pictures are of no record, as %s", len(foreign), ", ".join(foreign[:3]))
    return dataset


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    stage_command.add_arguments(parser)
    parser.add_argument("--objects", type=Path, action="append", required=True, help="JSONL, .npz, or a folder of .npz")
    parser.add_argument("--units", choices=UNITS, default="fractions", help="of boxes (default: %(default)s)")
    parser.add_argument("--maximum", type=int, default=MAXIMUM, help="objects of a picture (default: %(default)s)")
    parser.add_argument("--min-score", type=float, default=0.0, help="least score of an object (default: %(default)s)")
    parser.add_argument("--features", action="store_true", help="keep the features, in arrays/object_features.npy")
    flags = parser.parse_args()
    options = {name: getattr(flags, name) for name in ("objects", "units", "maximum", "min_score", "features")}
    stage_command.command(
        "import_objects", [NAME],
        lambda: import_objects(flags.dataset, stage_command.selection_of(flags), **options),
    )  # fmt: skip


if __name__ == "__main__":
    main()
