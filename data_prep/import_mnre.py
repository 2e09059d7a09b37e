"""Imports MNRE (paper section 4.1) from the files released with TMR and a folder of pictures.

    python data_prep/import_mnre.py --source=TMR-RE/data --images=DIR --out=DIR [--generated=DIR]

Writes a data set of :mod:`tmrjax.records`, one record per instance (`<split>-<row>`). What the release lacks or has
wrong is handled knowingly and counted in the table that is printed and in `dataset.json`:

* Pictures are not released: `<img_id>` is looked for in --images (and its folders train, val, test); none = null.
* Phrases are noun phrases found in the text (--phrases=text). The released ones tell the label; --phrases=released
  takes them all the same, marks the set `leaky_phrases`, and every report made from it says so.
* Scores are renormalised, so weaken is unknown (stored as 0). They were computed per instance, but are keyed by
  picture: where the instances of a picture have different ones, it cannot be said whose they are. --scores=unambiguous
  leaves these out, --scores=last takes the last line of the picture for all of them, as the released code does.
* Regions of original pictures were released as names of crops, without boxes and without the crops: records have none.
  Boxes on generated pictures are kept where that picture is there.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep import release_files
from data_prep.importing import RELEASED_SPLITS, Import, add_arguments, command, find_pictures
from data_prep.noun_phrases import choose_phrases, phrase_spans
from data_prep.release_files import Instance
from tmrjax.files import DataError
from tmrjax.records import Dataset, DatasetInfo, Generated, Record

TOOL = "import_mnre"
Scores = tuple[float, float, float]


@dataclass(frozen=True)
class Options:
    """What to import; the fields are the command's flags."""

    source: Path
    out: Path
    images: Path | None = None
    generated: Path | None = None
    phrases: str = "text"  # "released": they leak the label; "none"
    scores: str = "unambiguous"  # or "last", "none"
    generated_boxes: str = "released"  # or "none", which needs no torch
    pictures: str = "optional"  # or "require": an instance without its original picture is an error
    on_error: str = "raise"  # or "skip": drop the record, count it, list it
    link: bool = False  # hard links instead of copies
    name: str | None = None
    progress: bool = True


class _Import(Import):
    options: Options

    def __init__(self, options: Options):
        allowed = {
            "phrases": ("text", "released", "none"),
            "scores": ("unambiguous", "last", "none"),
            "generated_boxes": ("released", "none"),
            "pictures": ("optional", "require"),
            "on_error": ("raise", "skip"),
        }
        super().__init__(options, allowed)
        self.relations = tuple(
            release_files.read_relations(self.source(("ours_rel2id.json",), "It numbers relations."))
        )

    def split(self, split: str, pictures: dict[str, Path], generated: dict[str, Path]) -> list[Record]:
        released, options, counts = RELEASED_SPLITS[split], self.options, self.counts[split]
        text = self.source((f"txt/ours_{released}.txt",), "Give the folder TMR-RE/data as --source.")
        instances = list(release_files.read_instances(text, self.relations, self.fault(text)))
        scores = self._scores(("txt/{}_weight_{}.txt",), released, instances, "scores", counts)
        generated_scores = self._scores(("txt/dif_{}_weight_{}.txt",), released, instances, "generated scores", counts)
        phrases = self._phrases(released, instances, counts)
        boxes = self._boxes(released, instances, generated, counts)
        records = []
        bar = tqdm(instances, desc=f"{split} pictures", unit="post", disable=None if options.progress else True)
        for instance in bar:
            where = f"{text}:{instance.line}"
            identifier = f"{split}-{instance.row:05d}"
            try:
                if options.pictures == "require" and instance.image not in pictures:
                    expected = f"one in {options.images}"
                    raise DataError(
                        where, f"no picture {instance.image}.jpg", expected, "Add it, or use --pictures=optional."
                    )
                image = self.place(pictures.get(instance.image), "images", where)
                drawn = self.place(generated.get(instance.image), "generated", where)
            except DataError as error:
                self.fault(text)(error, instance.line, identifier)
                continue
            counts["words that vanish in BERT's cleaning"] += sum(map(release_files.is_invisible, instance.tokens))
            records.append(
                Record(
                    id=identifier,
                    tokens=instance.tokens,
                    head=instance.head,
                    tail=instance.tail,
                    relation=instance.relation,
                    image=image,
                    phrases=phrases.get(instance.row, ()),
                    generated=None if drawn is None else Generated(drawn, boxes.get(str(instance.row), ())),
                    scores=scores.get(instance.image),
                    generated_scores=generated_scores.get(instance.image),
                )
            )
        return records

    def _scores(self, patterns, released, instances: list[Instance], name: str, counts) -> dict[str, Scores]:
        """Scores by picture: (0, weak, strong), see `release_files.alpha` for what they weigh."""
        if self.options.scores == "none":
            return {}
        option = "Use --scores=none to import without scores."
        lists = {}
        for weight in ("weak", "strong"):
            path = self.source(tuple(pattern.format(released, weight) for pattern in patterns), option)
            lists[weight] = release_files.read_score_lists(path)
        wanted = {instance.image for instance in instances}
        counts[f"{name} of no instance (left out)"] += len((lists["weak"].keys() | lists["strong"].keys()) - wanted)
        result = {}
        for image in sorted(wanted & lists["weak"].keys() & lists["strong"].keys()):
            pairs = list(zip(lists["weak"][image], lists["strong"][image], strict=False))
            ambiguous = len(set(pairs)) > 1
            counts[f"pictures with several {name}"] += ambiguous
            if ambiguous and self.options.scores == "unambiguous":
                continue
            weak, strong = pairs[-1]
            if abs(weak + strong - 1) > 1e-3:
                raise DataError(path, f"weak {weak} + strong {strong} of {image}", "a sum of 1", option)
            result[image] = (0.0, weak / (weak + strong), strong / (weak + strong))
        counts[f"instances whose {name} are unknown among several"] += sum(
            instance.image not in result and instance.image in lists["weak"] for instance in instances
        )
        return result

    def _phrases(self, released, instances: list[Instance], counts) -> dict[int, tuple[str, ...]]:
        if self.options.phrases == "none":
            return {}
        if self.options.phrases == "text":
            return {one.row: choose_phrases(one.tokens, phrase_spans(one.tokens)) for one in instances}
        path = self.source((f"txt/phrase_text_{released}.json",), "Use --phrases=text or --phrases=none.")
        strings = release_files.read_phrases(path)
        result = {}
        for instance in instances:
            phrase = strings.get(str(instance.row))
            if phrase is not None:
                foreign = release_files.words_from_elsewhere(phrase, instance.tokens)
                counts["instances whose phrase has words that the text lacks"] += bool(foreign)
                result[instance.row] = (phrase,)
        return result

    def _boxes(self, released, instances, generated, counts) -> dict[str, tuple[release_files.Box, ...]]:
        if self.options.generated_boxes == "none":
            return {}
        option = "Use --generated-boxes=none to import without them."
        read = release_files.read_row_boxes(self.source((f"txt/mre_dif_{released}_dict.pth",), option))
        crops = release_files.read_crops(self.source((f"txt/mre_{released}_dict.pth",), option))
        rows = {str(instance.row): instance for instance in instances}
        counts["original pictures with crops, of which no box is released"] += sum(map(bool, crops.values()))
        counts["generated boxes that can be used"] += sum(map(len, read.boxes.values()))
        counts["generated boxes under a pixel (dropped)"] += read.too_small
        counts["generated boxes that stood there before (dropped)"] += read.repeated
        counts["generated boxes without their picture (left out)"] += sum(
            len(boxes) for row, boxes in read.boxes.items() if row not in rows or rows[row].image not in generated
        )
        return read.boxes


def import_mnre(options: Options) -> Dataset:
    """Imports the released MNRE (see the module's docstring) and reads it back. Raises :class:`DataError`."""
    run = _Import(options)
    below = tuple(RELEASED_SPLITS.values())
    pictures = find_pictures(options.images, "--images", below)
    generated = find_pictures(options.generated, "--generated", below)
    splits = {split: run.split(split, pictures, generated) for split in RELEASED_SPLITS}
    info = DatasetInfo(
        options.name or "mnre",
        "re",
        run.relations,
        leaky_phrases=options.phrases == "released",
        renormalised_scores=options.scores != "none",
    )
    return run.finish(TOOL, info, splits)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_arguments(parser)
    parser.add_argument(
        "--phrases",
        choices=("text", "released", "none"),
        default="text",
        help="text: found in the text; released: THEY LEAK THE LABEL, every report says so",
    )
    parser.add_argument("--scores", choices=("unambiguous", "last", "none"), default="unambiguous")
    options = Options(**vars(parser.parse_args()))
    command(TOOL, lambda: import_mnre(options))


if __name__ == "__main__":
    main()
