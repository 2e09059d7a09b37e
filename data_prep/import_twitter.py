"""Imports Twitter-2015 or Twitter-2017 (paper section 4.1) from TMR's released files and a folder of pictures.

    python data_prep/import_twitter.py --source=TMR-NER/data/twitter2017 --images=DIR --out=DIR [--generated=DIR]

Writes a data set of :mod:`tmrjax.records` with the splits train, dev, test; OTHER becomes MISC. What the release
lacks or has wrong is handled knowingly and counted in the table that is printed and in `dataset.json`:

* --text-only needs the tagged text alone: no pictures, scores, phrases or boxes.
* Pictures are not released: `<id>.jpg`, `.jpeg` or `.png` is looked for in --images (and --generated); none = null.
  With --pictures=require --on-error=skip only tweets that have one are imported.
* Regions of original pictures were released as names of crops, without boxes and without the crops: records have none.
* Boxes on generated pictures are kept where that picture is there. The files of 2017 val and test hold phrases instead.
* Scores are raw: weaken = 1 - weak - strong; see `release_files.alpha`.
* Phrases are one string per tweet; the constant that stands where none was found is dropped. Any word that the tweet
  does not have would mark the set `leaky_phrases`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
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
from tmrjax.files import DataError
from tmrjax.records import Dataset, DatasetInfo, Generated, Record

TOOL = "import_twitter"
WEIGHTS = ("weak", "strong")
SCORES = {  # of original and of generated pictures: how their files are called, by split and weight
    "scores": ("ner_{}_weight_{}.txt",),
    "generated scores": ("ner_diff_{}_weight_{}.txt", "diff_ner_{}_weight_{}.txt"),
}
LABELS = ("PER", "LOC", "ORG", "MISC")
RENAMED_TAGS = {"B-OTHER": "B-MISC", "I-OTHER": "I-MISC"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to import; the fields are the command's flags."""

    source: Path
    out: Path
    images: Path | None = None
    generated: Path | None = None
    phrases: str = "released"  # or "none"
    scores: bool = True
    generated_boxes: str = "released"  # or "none", which needs no torch
    pictures: str = "optional"  # or "require": a tweet without its original picture is an error
    text_only: bool = False  # neither pictures nor scores, phrases, boxes
    on_error: str = "raise"  # or "skip": drop the record, count it, list it
    link: bool = False  # hard links instead of copies
    name: str | None = None  # of the data set; default: of the source folder
    progress: bool = True


def _needed(options: Options) -> Iterator[tuple[tuple[str, ...], Needed]]:
    """The files that are read, by released split and what they hold."""
    for split, released in RELEASED_SPLITS.items():
        names = ("val.txt", "valid.txt", "dev.txt") if split == "dev" else (f"{split}.txt",)
        yield (released, "text"), Needed(names, "tagged text: give the folder twitter2015 or twitter2017")
        for name, patterns in SCORES.items() if options.scores else ():
            for weight in WEIGHTS:
                names = tuple(pattern.format(released, weight) for pattern in patterns)
                yield (released, name, weight), Needed(names, "scores", "--no-scores")
        if options.phrases == "released":
            names = tuple(f"ner{year}_grounding_text_{released}.json" for year in (15, 17))
            yield (released, "phrases"), Needed(names, "phrases", "--phrases=none")
        if options.generated_boxes == "released":
            without = "--generated-boxes=none"
            yield (released, "boxes"), Needed((f"{released}_grounding_cut_dif.pth",), "boxes and crops", without)
            names = tuple(f"twitter{year}_{released}_dict.pth" for year in (2015, 2017))
            yield (released, "crops"), Needed(names, "boxes and crops", without)


class _Import(Import):
    def __init__(self, options: Options):
        choices = ("released", "none")
        allowed = {"phrases": choices, "generated_boxes": choices, "pictures": ("optional", "require")}
        super().__init__(options, allowed | {"on_error": ("raise", "skip")})
        self.seen: dict[str, str] = {}
        self.files = self.locate(dict(_needed(options)))
        self.info = DatasetInfo("", "ner", LABELS)

    def split(self, split: str, pictures: dict[str, Path], generated: dict[str, Path]) -> list[Record]:
        released, options, counts = RELEASED_SPLITS[split], self.options, self.counts[split]
        text = self.files[released, "text"]
        tweets = list(release_files.read_tweets(text, self.info.tag_set, RENAMED_TAGS, self.fault(text)))
        scores, generated_scores = (self._scores(released, tweets, counts, name) for name in SCORES)
        phrases = self._phrases(released, tweets, counts)
        boxes = self._boxes(released, tweets, generated, counts)
        records = []
        bar = tqdm(tweets, desc=f"{split} pictures", unit="tweet", disable=None if options.progress else True)
        for tweet in bar:
            if tweet.id in self.dropped:  # a line of another file that belongs to it is faulty, and listed
                continue
            where = f"{text}:{tweet.line}"
            try:
                if tweet.id in self.seen:
                    again = f"the tweet {tweet.id} again, first at {self.seen[tweet.id]}"
                    raise DataError(where, again, "an id once over all splits", "Drop one of them.")
                if options.pictures == "require" and tweet.id not in pictures:
                    raise DataError(
                        where,
                        f"no picture {tweet.id}.jpg",
                        f"one in {options.images}",
                        "Add it, or use --pictures=optional.",
                    )
                image = self.place(pictures.get(tweet.id), "images", where)
                drawn = self.place(generated.get(tweet.id), "generated", where)
            except DataError as error:
                self.fault(text)(error, tweet.line, tweet.id)
                continue
            self.seen[tweet.id] = where
            counts["words that vanish in BERT's cleaning"] += sum(map(release_files.is_invisible, tweet.tokens))
            records.append(
                Record(
                    id=tweet.id,
                    tokens=tweet.tokens,
                    tags=tweet.tags,
                    image=image,
                    phrases=phrases.get(tweet.id, ()),
                    generated=None if drawn is None else Generated(drawn, boxes.get(tweet.id, ())),
                    scores=scores.get(tweet.id),
                    generated_scores=generated_scores.get(tweet.id),
                )
            )
        return records

    def _scores(self, released, tweets, counts, name) -> dict[str, tuple[float, float, float]]:
        if not self.options.scores:
            return {}
        where = {weight: self.files[released, name, weight] for weight in WEIGHTS}
        numbers = {weight: release_files.read_scores(path, self.fault(path)) for weight, path in where.items()}
        for weight, other in (WEIGHTS, reversed(WEIGHTS)):
            for identifier in sorted(numbers[weight].keys() - numbers[other].keys() - self.dropped):
                found = f"a score of {identifier}.jpg, but none in {where[other].name}"
                error = DataError(where[weight], found, "both of a tweet, or neither", "Take both from one release.")
                self.fault(where[weight])(error, 0, identifier)
        self.note_swapped(name, released, *(list(numbers[weight].values()) for weight in WEIGHTS))
        known = {tweet.id for tweet in tweets}
        counts[f"{name} of no tweet (left out)"] += len(numbers["weak"].keys() - known)
        result = {}
        for tweet in tweets:
            if tweet.id in numbers["weak"] and tweet.id in numbers["strong"]:
                try:
                    weak, strong = numbers["weak"][tweet.id], numbers["strong"][tweet.id]
                    result[tweet.id] = release_files.alpha(weak, strong, f"{where['weak']}: {tweet.id}")
                except DataError as error:
                    self.fault(where["weak"])(error, 0, tweet.id)
        return result

    def _phrases(self, released, tweets, counts) -> dict[str, tuple[str, ...]]:
        if self.options.phrases == "none":
            return {}
        strings = release_files.read_phrases(self.files[released, "phrases"])
        result = {}
        for tweet in tweets:
            phrase = strings.get(tweet.id)
            if phrase == release_files.NO_PHRASE:
                counts["phrases that only say that none was found (dropped)"] += 1
            elif phrase is not None:
                foreign = release_files.words_from_elsewhere(phrase, tweet.tokens)
                counts["phrase words that the tweet does not have"] += len(foreign)
                result[tweet.id] = (phrase,)
        counts["phrase words that the tweet does not have"] += 0
        return result

    def _boxes(self, released, tweets, generated, counts) -> dict[str, tuple[release_files.Box, ...]]:
        if self.options.generated_boxes == "none":
            return {}
        read = release_files.read_boxes(self.files[released, "boxes"])
        crops = release_files.read_crops(self.files[released, "crops"])
        counts["original pictures with crops, of which no box is released"] += sum(
            bool(crops.get(t.id)) for t in tweets
        )
        counts["tweets that the crops' file does not name"] += sum(tweet.id not in crops for tweet in tweets)
        counts["generated boxes that can be used"] += sum(map(len, read.boxes.values()))
        counts["generated boxes under a pixel (dropped)"] += read.too_small
        counts["lists of boxes that stood three times (read once)"] += len(read.boxes) if read.tripled else 0
        counts["lists of phrases where boxes should be (no boxes)"] += len(tweets) if read.phrases_instead else 0
        counts["generated boxes without their picture (left out)"] += sum(
            len(boxes) for identifier, boxes in read.boxes.items() if identifier not in generated
        )
        return read.boxes

    def leak(self) -> bool:
        return any(counts["phrase words that the tweet does not have"] for counts in self.counts.values())


def import_twitter(options: Options) -> Dataset:
    """Imports one released data set (see the module's docstring) and reads it back. Raises :class:`DataError`."""
    options = text_only(options, scores=False, phrases="none", generated_boxes="none")
    run = _Import(options)
    pictures, generated = find_pictures(options.images, "--images"), find_pictures(options.generated, "--generated")
    splits = {split: run.split(split, pictures, generated) for split in RELEASED_SPLITS}
    known = {record.id for records in splits.values() for record in records}
    for name, found in (("pictures", pictures), ("generated pictures", generated)):
        run.counts["train"][f"{name} of no tweet of any split (left out)"] = len(found.keys() - known)
    name = options.name or options.source.resolve().name
    info = dataclasses.replace(run.info, name=name, leaky_phrases=run.leak())
    return run.finish(TOOL, info, splits)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_arguments(parser, boxes="released", boxes_help="none needs no torch")
    parser.add_argument("--phrases", choices=("released", "none"), default="released")
    parser.add_argument(
        "--scores", action=argparse.BooleanOptionalAction, default=True, help="import divergence scores"
    )
    options = Options(**vars(parser.parse_args()))
    command(TOOL, lambda: import_twitter(options))


if __name__ == "__main__":
    main()
