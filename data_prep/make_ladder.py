"""Makes the data sets that measure what the released files of MNRE tell of its labels. No picture is read.

    python data_prep/make_ladder.py --source=TMR-RE/data --out=DIR

The text, labels and splits of all sets are those of data_prep/import_mnre.py. Beside them each set, a folder of DIR,
holds one more thing and nothing else:

mnre-text                   noun phrases found in the text: the clean set
mnre-crop-count             and how many crops the released list names, `sides` {"crops": 2}; leaky_regions
mnre-released-phrases       the released phrases instead; leaky_phrases
mnre-phrases-and-count      the released phrases and the number of crops; both marks
mnre-grey-crops             phrases of the text, and one constant picture with the released crops; leaky_regions
mnre-grey-clean             phrases of the text, and that picture with three regions in every post

The constant picture is the same file for every post. It is light grey, with a strip at its lower edge in the colour
that ImageNet's normalisation turns to zero. The released code of HVPNeT and TMR reads the first three crops of a post
and takes zeros, behind the normalisation, for those that lack. Methods of this project mask what lacks. In
`mnre-grey-crops` a region of the grey stands for each of the first three crops, and a region of the strip for each
that lacks, so that all three regions count, as they do there. In `mnre-grey-clean` all three are grey. Thus the pixels
of both sets tell nothing of a post but which of its crops are named.

The sets with pictures get `picture_encoder/`, the config of a small ResNet to be trained from, or frozen at, random
weights. The crop lists are read with torch (weights_only): pip install 'tmrjax[release]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.audit_leaks import audit, audit_table
from data_prep.import_mnre import Options, import_mnre
from data_prep.importing import release_files
from data_prep.importing.frame import RELEASED_SPLITS
from data_prep.make_demo import PICTURE_ENCODER_CONFIG
from tmrjax import __version__
from tmrjax.files import DataError, read_bytes, sha256, write_atomic
from tmrjax.pictures.preprocessing import IMAGE_MEAN
from tmrjax.records import Dataset, Record, read_dataset, write_dataset
from tmrjax.records.schema import NUM_REGIONS, Box

TOOL = "make_ladder"
PICTURE = "images/constant.png"
SIZE, STRIP = 64, 16  # pixels: of a side of the picture, and of the strip's height
GREY = (200, 200, 200)
ZERO = tuple(round(255 * mean) for mean in IMAGE_MEAN)  # zero behind the normalisation, up to half a step of a byte
GREY_BOX: Box = (0.0, 0.0, 1.0, 1 - STRIP / SIZE)
ZERO_BOX: Box = (0.0, 1 - STRIP / SIZE, 1.0, 1.0)

Change = Callable[[Record, int], Record]


def constant_picture() -> bytes:
    """The picture of the module's docstring as PNG."""
    pixels = np.full((SIZE, SIZE, 3), GREY, np.uint8)
    pixels[-STRIP:] = ZERO
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def with_count(record: Record, crops: int) -> Record:
    """The number of crops as a side."""
    return dataclasses.replace(record, sides={**record.sides, "crops": crops})


def with_crops(record: Record, crops: int) -> Record:
    """The constant picture; a grey region for each of the first three crops, the strip for each that lacks."""
    there = min(crops, NUM_REGIONS)
    regions = (GREY_BOX,) * there + (ZERO_BOX,) * (NUM_REGIONS - there)
    return dataclasses.replace(record, image=PICTURE, regions=regions)


def with_constant_regions(record: Record, crops: int) -> Record:
    """The constant picture with three grey regions, whatever was released."""
    del crops
    return with_crops(record, NUM_REGIONS)


@dataclasses.dataclass(frozen=True)
class Made:
    """One set that is derived. phrases: "text" or "released". change: of each record. marked: whether regions leak."""

    phrases: str
    change: Change
    marked: bool
    pictures: bool = False


TEXT, PHRASES = "mnre-text", "mnre-released-phrases"
MADE: Mapping[str, Made] = {
    "mnre-crop-count": Made("text", with_count, marked=True),
    "mnre-phrases-and-count": Made("released", with_count, marked=True),
    "mnre-grey-crops": Made("text", with_crops, marked=True, pictures=True),
    "mnre-grey-clean": Made("text", with_constant_regions, marked=False, pictures=True),
}


def make_ladder(source: Path, out: Path, *, progress: bool = True) -> dict[str, Dataset]:
    """Writes all sets below ``out`` and returns them as read back, by folder.

    Raises:
        DataError: a file of the release that lacks, is damaged, or whose rows are not those of the instances.
    """
    source, out = Path(source), Path(out)
    crops, hashes = read_crop_counts(source)
    options = Options(source, out / TEXT, scores="none", name=TEXT, progress=progress)
    sets = {TEXT: import_mnre(options)}
    sets[PHRASES] = import_mnre(dataclasses.replace(options, out=out / PHRASES, phrases="released", name=PHRASES))
    bases = {"text": sets[TEXT], "released": sets[PHRASES]}
    for name, made in MADE.items():
        base, folder = bases[made.phrases], out / name
        splits = {
            split: [
                made.change(record, number) for record, number in zip(base.splits[split], crops[split], strict=True)
            ]
            for split in RELEASED_SPLITS
        }
        (folder / "images" if made.pictures else folder).mkdir(parents=True, exist_ok=True)
        if made.pictures:
            (folder / "picture_encoder").mkdir(exist_ok=True)
            write_atomic(folder / PICTURE, constant_picture())
            config = json.dumps(PICTURE_ENCODER_CONFIG, indent=2) + "\n"
            write_atomic(folder / "picture_encoder" / "config.json", config.encode())
        stage = {
            "tool": f"data_prep/{TOOL}.py",
            "version": __version__,
            "made": made.change.__name__,
            "sources": hashes,
            "notes": ["every post has the same constant picture; no picture of MNRE was read"] * made.pictures,
        }
        stages = {**base.info.stages, TOOL: stage}
        info = dataclasses.replace(base.info, name=name, leaky_regions=made.marked, stages=stages)
        write_dataset(folder, info, splits)
        sets[name] = read_dataset(folder)
    return sets


def read_crop_counts(source: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """How many crops the released lists name, by split in the order of the instances; SHA-256 of the files."""
    counts, hashes = {}, {}
    for split, released in RELEASED_SPLITS.items():
        path, text = source / f"txt/mre_{released}_dict.pth", source / f"txt/ours_{released}.txt"
        for file in (path, text):
            if not file.is_file():
                raise DataError(file, "no such file", "a file of the folder TMR-RE/data", "Correct --source.")
        crops = release_files.read_crops(path)
        number = len(release_files.instance_lines(text))
        release_files.check_rows(path, crops, text, number)
        counts[split] = [len(crops[str(row)]) for row in range(number)]
        hashes[path.name] = sha256(read_bytes(path))
    return counts, hashes


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the release, TMR-RE/data")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets a folder for each set")
    options = parser.parse_args()
    try:
        sets = make_ladder(options.source, options.out)
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"{TOOL}: {error}")
    for name, dataset in sets.items():
        print(f"{name}  labels: {dataset.label_version}")
        print(f"{audit_table(audit(dataset), dataset.info)}\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
