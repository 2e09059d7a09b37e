"""Imports MNRE (paper section 4.1) from the files released with TMR and a folder of pictures.

    python data_prep/import_mnre.py --source=TMR-RE/data --images=DIR --out=DIR [--generated=DIR]

Writes a data set of :mod:`tmrjax.records`, one record per instance (`<split>-<row>`). What the release lacks or has
wrong is handled knowingly and counted in the table that is printed and in `dataset.json`:

* Pictures are not released: `<img_id>` is looked for in --images (and its folders train, val, test); none = null.
* --text-only needs the instances alone: no pictures, scores, phrases or boxes.
* Phrases are noun phrases found in the text (--phrases=text). The released ones tell the label; --phrases=released
  takes them all the same, marks the set `leaky_phrases`, and every report made from it says so.
* Scores are renormalised, so weaken is unknown (stored as 0). They were computed per instance, but are keyed by
  picture: where the instances of a picture have different ones, it cannot be said whose they are. --scores=unambiguous
  leaves these out, --scores=last takes the last line of the picture for all of them, as the released code does.
* Nothing of the released crop and box files is read: a list in them has a third entry for nearly every relation and for
  no ``None``, so how many there are tells the label. --generated-boxes=released takes the boxes on generated pictures
  all the same, where that picture is there, marks the set `leaky_regions`, and every report made from it says so.
  (Regions of original pictures were released as names of crops, without boxes and without the crops.) Find regions
  with data_prep/ground_regions.py, which asks for the same number in every post.
* Side files are keyed by row: their rows must be exactly those of the instances. Lines that stand there twice are
  imported, counted and named.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.importing import release_files
from data_prep.importing.frame import (
    RELEASED_SPLITS,
    Import,
    Needed,
    add_arguments,
    command,
    find_pictures,
    text_only,
)
from data_prep.importing.release_files import Instance
from data_prep.phrases.pattern import choose_phrases, phrase_spans
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
    generated_boxes: str = "none"  # or "released": how many there are leaks the label
    pictures: str = "optional"  # or "require": an instance without its original picture is an error
    text_only: bool = False  # neither pictures nor scores, phrases, boxes
    on_error: str = "raise"  # or "skip": drop the record, count it, list it
    link: bool = False  # hard links instead of copies
    name: str | None = None
    progress: bool = True


WEIGHTS = ("weak", "strong")
SCORES = {"scores": "txt/{}_weight_{}.txt", "generated scores": "txt/dif_{}_weight_{}.txt"}  # by split and weight


def _needed(options: Options) -> Iterator[tuple[tuple[str, ...], Needed]]:
    """The files that are read, by released split and what they hold."""
    text = "instances and relations: give the folder TMR-RE/data"
    yield ("relations",), Needed(("ours_rel2id.json",), text)
    for released in RELEASED_SPLITS.values():
        yield (released, "text"), Needed((f"txt/ours_{released}.txt",), text)
        for name, pattern in SCORES.items() if options.scores != "none" else ():
            for weight in WEIGHTS:
                yield (released, name, weight), Needed((pattern.format(released, weight),), "scores", "--scores=none")
        if options.phrases == "released":
            names = (f"txt/phrase_text_{released}.json",)
            yield (released, "phrases"), Needed(names, "released phrases", "--phrases=text")
        if options.generated_boxes == "released":
            for kind, name in (("boxes", "mre_dif_{}_dict.pth"), ("crops", "mre_{}_dict.pth")):
                names = (f"txt/{name.format(released)}",)
                yield (released, kind), Needed(names, "boxes and crops", "--generated-boxes=none")


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
        self.files = self.locate(dict(_needed(options)))
        self.relations = tuple(release_files.read_relations(self.files["relations",]))
        self.repeated: list[str] = []

    def split(self, split: str, pictures: dict[str, Path], generated: dict[str, Path]) -> list[Record]:
        released, options, counts = RELEASED_SPLITS[split], self.options, self.counts[split]
        text = self.files[released, "text"]
        instances = list(release_files.read_instances(text, self.relations, self.fault(text)))
        self._name_repeated(split, instances, counts)
        scores, generated_scores = (self._scores(released, instances, name, counts) for name in SCORES)
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

    def _name_repeated(self, split: str, instances: list[Instance], counts) -> None:
        """Counts and names instances that stand in the file once more: same text, entities and picture."""
        first: dict[tuple, Instance] = {}
        for one in instances:
            before = first.setdefault((one.tokens, one.head, one.tail, one.image), one)
            if before is not one:
                differs = "" if before.relation == one.relation else ", with another relation"
                self.repeated.append(f"{split}: line {one.line} repeats line {before.line}{differs}")
            counts["instances that stand there before (kept)"] += before is not one

    def _scores(self, released, instances: list[Instance], name: str, counts) -> dict[str, Scores]:
        """Scores by picture: (0, weak, strong), see `release_files.alpha` for what they weigh."""
        if self.options.scores == "none":
            return {}
        option = "Use --scores=none to import without scores."
        paths = [self.files[released, name, weight] for weight in WEIGHTS]
        weak_lists, strong_lists = map(release_files.read_score_lists, paths)
        self.note_swapped(name, released, *(map(sum, lists.values()) for lists in (weak_lists, strong_lists)))
        number = Counter(instance.image for instance in instances)
        whole = len(release_files.instance_lines(self.files[released, "text"])) == len(instances)  # none was skipped
        for image in sorted(weak_lists.keys() | strong_lists.keys()):
            weak, strong = (len(lists.get(image, ())) for lists in (weak_lists, strong_lists))
            if weak != strong or (whole and image in number and weak != number[image]):
                found = f"{weak} scores of {image}, {strong} in {paths[1].name}"
                expected = f"one in both for each of its {number[image]} instances"
                raise DataError(paths[0], found, expected, f"Take all three files from one release. {option}")
        counts[f"{name} of no instance (left out)"] += len(weak_lists.keys() - number.keys())
        result = {}
        for image in sorted(number.keys() & weak_lists.keys()):
            pairs = list(zip(weak_lists[image], strong_lists[image], strict=True))
            ambiguous = len(set(pairs)) > 1
            counts[f"pictures with several {name}"] += ambiguous
            if ambiguous and self.options.scores == "unambiguous":
                continue
            for weak, strong in pairs:  # the last one stays
                if abs(weak + strong - 1) > 1e-3:
                    raise DataError(paths[1], f"weak {weak} + strong {strong} of {image}", "a sum of 1", option)
            result[image] = (0.0, weak / (weak + strong), strong / (weak + strong))
        counts[f"instances whose {name} are unknown among several"] += sum(
            instance.image not in result and instance.image in weak_lists for instance in instances
        )
        return result

    def _phrases(self, released, instances: list[Instance], counts) -> dict[int, tuple[str, ...]]:
        if self.options.phrases == "none":
            return {}
        if self.options.phrases == "text":
            return {one.row: choose_phrases(one.tokens, phrase_spans(one.tokens)) for one in instances}
        strings = release_files.read_phrases(self.files[released, "phrases"])
        self._check_rows(released, "phrases", strings)
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
        read = release_files.read_row_boxes(self.files[released, "boxes"])
        crops = release_files.read_crops(self.files[released, "crops"])
        self._check_rows(released, "boxes", read.boxes)
        self._check_rows(released, "crops", crops)
        rows = {str(instance.row): instance for instance in instances}
        counts["original pictures with crops, of which no box is released"] += sum(map(bool, crops.values()))
        counts["generated boxes that can be used"] += sum(map(len, read.boxes.values()))
        counts["generated boxes under a pixel (dropped)"] += read.too_small
        counts["generated boxes that stood there before (dropped)"] += read.repeated
        counts["generated boxes without their picture (left out)"] += sum(
            len(boxes) for row, boxes in read.boxes.items() if row not in rows or rows[row].image not in generated
        )
        return read.boxes

    def _check_rows(self, released: str, kind: str, rows: Collection[str]) -> None:
        text = self.files[released, "text"]
        release_files.check_rows(self.files[released, kind], rows, text, len(release_files.instance_lines(text)))


def import_mnre(options: Options) -> Dataset:
    """Imports the released MNRE (see the module's docstring) and reads it back. Raises :class:`DataError`."""
    options = text_only(options, scores="none", phrases="none", generated_boxes="none")
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
        leaky_regions=options.generated_boxes == "released",
        renormalised_scores=options.scores != "none",
    )
    if run.repeated:
        more = f" and {len(run.repeated) - 3} more (in dataset.json)" if len(run.repeated) > 3 else ""
        run.notes.append(f"instances that stand there twice: {'; '.join(run.repeated[:3])}{more}")
    return run.finish(TOOL, info, splits, repeated=run.repeated)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    leak = "none; released: HOW MANY THERE ARE LEAKS THE LABEL, every report says so"
    add_arguments(parser, boxes="none", boxes_help=leak)
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
