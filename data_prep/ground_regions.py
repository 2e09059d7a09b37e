"""Finds up to three regions in every picture for the phrases of its post (paper section 3.2, visual grounding).

    python data_prep/ground_regions.py DATASET --method=saliency
    python data_prep/ground_regions.py DATASET --method=owlvit --model=DIR        # or groundingdino
    python data_prep/ground_regions.py DATASET --method=import --boxes=FILE --units=pixels --pictures=original

Original and generated pictures are two stages, `regions` and `generated_regions`; --pictures chooses one. Every region
keeps the phrase that it answers and its score. Methods:

* `saliency`: what stands out, whatever the phrases say (:mod:`data_prep.regions.saliency`). No download; no grounding
  either.
* `owlvit`, `groundingdino`: zero-shot detectors of transformers (:mod:`data_prep.regions.detectors`), a local folder
  each. The best box of each phrase comes first, then the surest others; one that covers a chosen one is left out.
* `import`: boxes or crops made elsewhere (:mod:`data_prep.regions.files`), --boxes=[SPLIT=]FILE as often as needed.

What saliency and the detectors find in an original picture are its objects too, up to 36 of them: `sides["objects"]` of
the record, with the phrase that a box answers as its label (saliency answers none: its boxes have the post's phrases in
turn, or "object") and the detector's features. They lie in `journals/regions/` as .npz files, and are imported as those
of any detector are (:mod:`data_prep.import_objects`); a set that has imported others keeps them, and --no-objects
leaves them out.

The same number of regions is asked for in every post (--maximum), whatever it holds; the manifest says what the number
that comes out depends on: the picture (saliency), the picture and the phrases (detectors), the file (import). Boxes
thinner than a pixel are dropped and counted; fewer than three are normal.

The crop and box files that were released for MNRE were made with the labels, and how many entries they have tells them.
They are known by their hash and by their keys, which are rows; importing them marks the set `leaky_regions`, and so
does any file whose number of boxes tells labels (:mod:`data_prep.audit_leaks`). The mark stays until the set is
imported anew. Resumable; see :mod:`data_prep.stages.frame`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image

from data_prep.audit_leaks import REGION_KINDS, audit, number_row
from data_prep.import_objects import TOOL as IMPORTED
from data_prep.import_objects import import_objects
from data_prep.importing.hashes import is_leaky_region_file
from data_prep.objects.detections import MAXIMUM as MOST_OBJECTS
from data_prep.objects.detections import write_detection
from data_prep.regions import files as region_files
from data_prep.regions.detectors import MODEL_TYPES, Detector, Found
from data_prep.regions.saliency import salient_boxes
from data_prep.stages import command as stage_command
from data_prep.stages import frame as stages
from data_prep.stages.frame import Outcome, Selection, Stage, file_digest
from tmrjax.files import DataError, read_bytes, sha256
from tmrjax.pictures.decode import load_picture
from tmrjax.records import Dataset, DatasetInfo, Grounding, Record
from tmrjax.records.schema import NUM_REGIONS, Box

logger = logging.getLogger(__name__)

METHODS = ("saliency", *MODEL_TYPES, "import")
PICTURES = {"original": "regions", "generated": "generated_regions"}  # what is grounded -> the stage's name
MAXIMUM = NUM_REGIONS
NUMBER_DEPENDS_ON = {"saliency": "the picture", **dict.fromkeys(MODEL_TYPES, "the picture and the phrases"),
                     "import": "the imported file"}  # fmt: skip
COVERS = 0.7  # intersection over union from which on two boxes show the same
UNITS = ("fractions", "pixels")

Finder = Callable[[Record, Image.Image, Counter], list[Found]]


@dataclasses.dataclass(frozen=True)
class Options:
    """How regions are found; the fields are the command's flags."""

    method: str = "saliency"
    maximum: int = MAXIMUM
    model: Path | None = None
    threshold: float | None = None  # of a detector's score; None: the method's usual one
    device: str | None = None
    boxes: tuple[str, ...] = ()  # [SPLIT=]FILE
    units: str = "fractions"
    crops: Path | None = None
    objects: bool = True  # what is found are the picture's objects too

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; expected one of {METHODS}")
        if self.maximum < 1:
            raise ValueError(f"maximum is {self.maximum}; expected at least 1")
        if self.units not in UNITS and not self.units.isdigit():
            raise ValueError(f"units is {self.units!r}; expected fractions, pixels, or the side of a square as 768")
        if self.method in MODEL_TYPES and self.model is None:
            raise DataError(
                f"--method={self.method}", "no --model", "a folder of its model", "Name it, or use saliency."
            )
        if self.method == "import" and not self.boxes:
            raise DataError("--method=import", "no --boxes", "a file of boxes or crops", "Name it with --boxes=FILE.")


# ------------------------------------------------------------------ the methods


def _saliency(options: Options) -> tuple[Finder, dict[str, Any]]:
    def find(record: Record, picture: Image.Image, counts: Counter) -> list[Found]:
        return [Found(box, None, score) for box, score in salient_boxes(picture, options.maximum)]

    return find, {"options": {}}


def _detector(options: Options) -> tuple[Finder, dict[str, Any]]:
    detector = Detector(options.model, options.method, threshold=options.threshold, device=options.device)

    def find(record: Record, picture: Image.Image, counts: Counter) -> list[Found]:
        counts["pictures without a phrase to look for"] += not record.phrases
        found, cut = detector(picture, record.phrases)
        counts["phrases too long for the model (cut)"] += cut
        return _best_of_each(found)

    return find, {
        "options": {"threshold": detector.threshold},
        "model": f"{options.model.resolve().name} {stages.folder_digest(options.model)}",
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch")},
    }


def _best_of_each(found: Sequence[Found]) -> list[Found]:
    """The best box of every phrase, then the others; both by score."""
    first: dict[str | None, Found] = {}
    for item in found:
        first.setdefault(item.phrase, item)
    chosen = list(first.values())
    return chosen + [item for item in found if item not in chosen]


def _imported(options: Options) -> tuple[Finder, dict[str, Any]]:
    entries: dict[str, region_files.Entry] = {}
    sources: dict[str, Any] = {}
    for text in options.boxes:
        split, _, name = text.rpartition("=")
        path = Path(name)
        read, met = region_files.read_regions(path, split or None)
        digest = sha256(read_bytes(path))
        if is_leaky_region_file(digest) or region_files.is_keyed_by_rows(path):
            met = {**met, "made with the labels": True}
        repeated = next((identifier for identifier in read if identifier in entries), None)
        if repeated is not None:
            raise DataError(path, f"regions of {repeated!r} again", "every id in one file", "Leave one of them out.")
        entries.update(read)
        sources[path.name] = {"sha256": digest, "entries": len(read), **met}

    def find(record: Record, picture: Image.Image, counts: Counter) -> list[Found]:
        entry = entries.get(record.id)
        counts["pictures that no file names"] += entry is None
        if entry is None:
            return []
        found, lost = region_files.place(entry, picture, options.units, options.crops)
        counts["crops that fit nowhere in their picture"] += lost
        return list(dict.fromkeys(found))

    files = {name: source["sha256"] for name, source in sources.items()}
    return find, {"options": {"units": options.units, "files": files}, "sources": sources, "entries": entries}


# ------------------------------------------------------------------ the choice


def choose_regions(
    found: Sequence[Found], size: tuple[int, int], maximum: int, counts: Counter, covers: float = COVERS
) -> list[Found]:
    """The first `maximum` boxes, cut off at the picture's edges, that are a pixel wide and cover no chosen one.

    size: width and height in pixels. What is dropped is added to `counts`.
    """
    chosen: list[Found] = []
    for item in found:
        box = tuple(min(max(side, 0.0), 1.0) for side in item.box)
        wide = [(box[axis + 2] - box[axis]) * size[axis] >= 1 for axis in (0, 1)]
        if not (all(map(math.isfinite, item.box)) and all(wide)):
            counts["boxes thinner than a pixel (dropped)"] += 1
        elif len(chosen) == maximum:
            counts["boxes beyond the maximum (left out)"] += 1
        elif any(overlap(box, other.box) > covers for other in chosen):
            counts["boxes that cover another (left out)"] += 1
        else:
            chosen.append(dataclasses.replace(item, box=box))
    return chosen


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes with an area."""
    sides = [min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]) for axis in (0, 1)]
    if min(sides) <= 0:
        return 0.0
    both = sides[0] * sides[1]
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both)


# ------------------------------------------------------------------ the stages


def region_stage(root: Path, pictures: str, options: Options, finder: tuple[Finder, dict[str, Any]]) -> Stage:
    """The stage of "original" or "generated" pictures; `finder` as :func:`load_finder` gives it."""
    find, about = finder
    reads_phrases, imported = options.method in MODEL_TYPES, options.method == "import"
    keeps_objects = options.objects and pictures == "original" and not imported
    made_with = {"method": options.method, "maximum": options.maximum, **about["options"]}

    def picture_of(record: Record) -> str | None:
        if pictures == "original":
            return record.image
        return None if record.generated is None else record.generated.image

    def inputs(record: Record) -> dict[str, Any]:
        phrases = {"phrases": record.phrases} if reads_phrases else {}
        return {"picture": file_digest(root / picture_of(record)), **phrases}

    def work_one(record: Record) -> Outcome | DataError:
        counts: Counter[str] = Counter()
        try:
            picture = load_picture(root / picture_of(record))
            found = find(record, picture, counts)
        except DataError as error:
            return error
        # Imported boxes were chosen elsewhere: only equal ones are left out, which `find` has done.
        covers = 1.0 if imported else COVERS
        chosen = choose_regions(found, picture.size, options.maximum, counts, covers)
        if keeps_objects:
            # By record: several posts may have the same picture, and other phrases.
            name = f"{sha256(record.id.encode())[:20]}.npz"
            path = detections_folder(root, made_with, about.get("model")) / name
            write_detection(path, record.id, _objects(record, found, picture.size))
        counts["regions"] += len(chosen)
        counts["pictures without a region"] += not chosen
        known = any(item.phrase is not None or item.score is not None for item in chosen)
        value = {
            "regions": [[round(side, 6) for side in item.box] for item in chosen],
            "grounding": [_grounding(item) for item in chosen] if known else [],
        }
        return Outcome(value, {name: count for name, count in counts.items() if count})

    def apply(record: Record, value: Any) -> Record:
        regions = {
            "regions": tuple(tuple(box) for box in value["regions"]),
            "grounding": tuple(Grounding(**item) for item in value["grounding"]),
        }
        if pictures == "original":
            return dataclasses.replace(record, **regions)
        return dataclasses.replace(record, generated=dataclasses.replace(record.generated, **regions))

    return Stage(
        name=PICTURES[pictures],
        tool="data_prep/ground_regions.py",
        work=lambda batch: [work_one(record) for record in batch],
        apply=apply,
        inputs=inputs,
        options=made_with,
        concerns=lambda record: picture_of(record) is not None,
        model=about.get("model"),
        info=(lambda info, splits: _mark_leaks(root, info, splits, pictures, about)) if imported else _as_it_is,
        versions=about.get("versions", {}),
        sources=about.get("sources", {}),
        notes={"asked for in every post": options.maximum, "number depends on": NUMBER_DEPENDS_ON[options.method]},
    )


def detections_folder(root: Path, options: Mapping[str, Any], model: str | None) -> Path:
    """Where what was found in original pictures lies, by the options and the model it was found with."""
    digest = sha256(json.dumps([options, model], sort_keys=True).encode())[:8]
    return root / stages.JOURNALS / PICTURES["original"] / f"detections-{digest}"


def _objects(record: Record, found: Sequence[Found], size: tuple[int, int]) -> dict[str, Any]:
    """The surest boxes of a picture that cover no other, as a detector's output."""
    surest = sorted(found, key=lambda item: -(item.score or 0))
    chosen = choose_regions(surest, size, MOST_OBJECTS, Counter())
    names = [*record.phrases, *["object"] * len(chosen)]
    return {
        "labels": [item.phrase or name for item, name in zip(chosen, names, strict=False)],
        "scores": [item.score or 0.0 for item in chosen],
        "boxes": [item.box for item in chosen],
        "features": [item.feature for item in chosen] if chosen and chosen[0].feature is not None else None,
    }


def _import_objects(root: Path, dataset: Dataset, stage: Stage, selection: Selection | None, detector: bool) -> Dataset:
    """Gives the records what was found in their pictures, once all of them have been looked at."""
    before = dataset.info.stages.get("objects")
    if before is not None and before["tool"] == IMPORTED:
        logger.warning("the set has objects of %s: they stay", ", ".join(before["options"]["files"]))
        return dataset
    folder = detections_folder(root, stage.options, stage.model)
    if dataset.info.stages.get(stage.name, {}).get("options") != json.loads(json.dumps(stage.options)):
        return dataset  # other shards are not ready
    if not any(folder.rglob("*.npz")):
        logger.warning("no objects: the pictures were looked at by an older version; --restart looks again")
        return dataset
    labels = "the phrases that the boxes answer" if detector else "phrases of the post in turn: the boxes answer none"
    return import_objects(
        root, Selection(progress=selection is None or selection.progress), objects=[folder], features=detector,
        tool=stage.tool, notes={"labels": labels}, renew=True, by_id=True,
    )  # fmt: skip


def _as_it_is(info: DatasetInfo, splits: Mapping[str, Sequence[Record]]) -> DatasetInfo:
    return info


def _mark_leaks(
    root: Path, info: DatasetInfo, splits: Mapping[str, Sequence[Record]], pictures: str, about: Mapping[str, Any]
) -> DatasetInfo:
    """Marks a set whose imported regions were made with the labels: by where they come from, or as the audit finds."""
    leaky = [name for name, source in about["sources"].items() if source.get("made with the labels")]
    if not leaky:
        what = REGION_KINDS[pictures == "generated"]
        rows = audit(Dataset(root, info, dict(splits)))
        leaky = [row.reads for row in rows if row.leak and row.reads == number_row(what)]
    if not leaky:
        return info
    logger.warning("LEAKY REGIONS: %s tells labels; dataset.json and every report made from it say so", leaky[0])
    return dataclasses.replace(info, leaky_regions=True)


def _grounding(item: Found) -> dict[str, Any]:
    return {"phrase": item.phrase, "score": None if item.score is None else round(item.score, 6)}


def load_finder(options: Options) -> tuple[Finder, dict[str, Any]]:
    """What finds regions, and what the manifest says of it. Raises :class:`DataError` where something lacks."""
    if options.method == "saliency":
        return _saliency(options)
    return _imported(options) if options.method == "import" else _detector(options)


def ground_regions(
    root: Path, selection: Selection | None = None, *, pictures: Sequence[str] = tuple(PICTURES), **options: Any
) -> Dataset:
    """Grounds the pictures of a data set; `options` are those of :class:`Options`. Raises :class:`DataError`."""
    chosen = Options(**options)
    finder = load_finder(chosen)
    dataset = None
    root = Path(root)
    for kind in pictures:
        stage = region_stage(root, kind, chosen, finder)
        dataset = stages.run_stage(root, stage, selection)
        if kind == "original" and chosen.objects and chosen.method != "import":
            dataset = _import_objects(root, dataset, stage, selection, chosen.method in MODEL_TYPES)
    foreign = sorted(
        finder[1].get("entries", {}).keys() - {one.id for split in dataset.splits.values() for one in split}
    )
    if foreign:
        logger.warning("%d entries are of no record, as %s", len(foreign), ", ".join(foreign[:3]))
    return dataset


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    stage_command.add_arguments(parser)
    parser.add_argument("--method", choices=METHODS, default="saliency")
    parser.add_argument("--pictures", choices=(*PICTURES, "both"), default="both")
    parser.add_argument("--maximum", type=int, default=MAXIMUM, help="regions of a picture")
    parser.add_argument("--model", type=Path, help="folder of the detector, as save_pretrained writes it")
    parser.add_argument("--threshold", type=float, help="least score of a detector's box (default: the method's)")
    parser.add_argument("--device", help="of the detector, as cuda:1 (default: cuda where there is one)")
    parser.add_argument(
        "--boxes", action="append", default=[], metavar="[SPLIT=]FILE", help="JSONL, or a released .pth"
    )
    parser.add_argument("--units", default="fractions", help="of --boxes: fractions, pixels, or a square's side (768)")
    parser.add_argument("--crops", type=Path, help="folder of the crops that --boxes names")
    parser.add_argument("--no-objects", dest="objects", action="store_false", help="write regions only")
    flags = parser.parse_args()
    kinds = tuple(PICTURES) if flags.pictures == "both" else (flags.pictures,)

    def run() -> Dataset:
        options = {item.name: getattr(flags, item.name) for item in dataclasses.fields(Options)}
        options["boxes"] = tuple(flags.boxes)
        return ground_regions(flags.dataset, stage_command.selection_of(flags), pictures=kinds, **options)

    stage_command.command("ground_regions", [PICTURES[kind] for kind in kinds], run)


if __name__ == "__main__":
    main()
