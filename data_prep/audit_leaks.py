"""How much of the labels can be read from side inputs alone: phrases, scores, regions, file names, what is missing.

    python data_prep/audit_leaks.py DATASET        # or the folder of a divergence corpus: data_prep/audit_corpus.py

A side input is to say what a picture shows, not what the annotators wrote. Simple predictors that never see the text
are trained on train and scored on test, on what a model would see: the first NUM_REGIONS regions of a picture. Where
one is far above the majority class, the labels leak. MNRE's released files leak twice (paper section 3.2 has phrases
and regions): the phrase files end in the entities' types wherever there is a relation, and the crop and box files hold
a third entry for nearly every relation and for no ``None``. `dataset.json` has a mark for each, `leaky_phrases` and
`leaky_regions`; the verdict says which of them a set should carry, and warns where it does not.

What the post's own text tells is no leak: words of the phrases, the number of phrases and scores, which an estimator
made from text and picture, are held against the bag of the post's words as well as against the majority class. So are
the places of regions: where a box lies may tell what a picture shows, as words do, but hardly more. The same holds for
the labels of objects and the alignment of words and objects, not for the number of objects. These have rows where the
records have objects, and what leaks there asks for `leaky_regions` too. So does the number of released crops, where a
record has it (data_prep/make_ladder.py).

What is predicted: the relation of a post (RE, none for ``None``) or the set of its entity types (NER), and beside it
whether there is anything at all, a relation or an entity.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.inspection import leak_predictors
from data_prep.inspection.leak_predictors import (
    MARGIN,
    Features,
    Label,
    Lookup,
    NaiveBayes,
    Trial,
    quantile,
    quantile_edges,
)
from tmrjax.divergence.corpus import CORPUS_FILE
from tmrjax.files import DataError
from tmrjax.records import NO_RELATION, Box, Dataset, DatasetInfo, Record, read_dataset
from tmrjax.records.schema import NUM_REGIONS

GRID = 4  # steps per side into which boxes are rounded
REGION_KINDS = ("regions", "generated regions")
NUM_OBJECTS = 10  # of a picture that a model reads
OBJECTS_ROW = f"number of objects (of the first {NUM_OBJECTS})"
CROPS_ROW = "number of released crops"
PHRASES, REGIONS = "leaky_phrases", "leaky_regions"  # the marks of `dataset.json`

PREDICTED = {
    "ner": "the set of entity types in a post. micro-F1 counts types, so 'nothing', which always answers the most"
    " frequent set, can score high; accuracy counts sets that are right as a whole; any: is there an entity?",
    "re": "the relation of a post. micro-F1 leaves None out, so 'nothing', which always answers the most frequent"
    " relation, scores 0 where that is None; accuracy counts None too; any: is there a relation?",
}


@dataclass(frozen=True)
class AuditRow:
    """One predictor: what it reads, its scores on test, and whether they say "leak".

    f1, accuracy: of labels. any: accuracy of "is there anything". mark: of `dataset.json`, for what it reads.
    """

    predictor: str
    reads: str
    f1: float
    accuracy: float
    leak: bool
    any: float = 0.0
    mark: str | None = None


# ------------------------------------------------------------------ what predictors read


def label_of(record: Record) -> Label:
    """The relation of a record, nothing for ``None``, or its entity types (of B- tags)."""
    if record.relation is not None:
        return frozenset() if record.relation == NO_RELATION else frozenset([record.relation])
    return frozenset(tag[2:] for tag in record.tags or () if tag.startswith("B-"))


def text_words(record: Record) -> Features:
    """The post's own words."""
    return tuple(token.lower() for token in record.tokens)


def phrase_words(record: Record) -> Features:
    """All words of the phrases."""
    return tuple(" ".join(record.phrases).lower().split())


def foreign_words(record: Record) -> Features:
    """Words of the phrases that the post does not have, not even inside another word (a hash tag, a handle)."""
    text = " ".join(record.tokens).lower()
    return tuple(word for word in phrase_words(record) if word not in text)


def foreign_suffix(record: Record) -> Features:
    """The words at the end of the phrases, as many in a row as the post does not have; one feature."""
    text, words = " ".join(record.tokens).lower(), list(phrase_words(record))
    suffix: list[str] = []
    while words and words[-1] not in text:
        suffix.insert(0, words.pop())
    return (tuple(suffix),)


def number_of_phrases(record: Record) -> Features:
    """How many phrases there are."""
    return (len(record.phrases),)


def _boxes(record: Record, generated: bool) -> Sequence[Box]:
    regions = (record.generated.regions if record.generated else ()) if generated else record.regions
    return regions[:NUM_REGIONS]


def number_of_regions(generated: bool) -> Callable[[Record], Features]:
    """How many regions a model sees of the post's own picture, or of the generated one; 0 where it is missing."""
    return lambda record: (len(_boxes(record, generated)),)


def places_of_regions(generated: bool) -> Callable[[Record], Features]:
    """Where these regions are, in quarters of the picture; held against their number, which this tells too."""
    return lambda record: tuple(tuple(round(side * GRID) for side in box) for box in _boxes(record, generated))


def file_name_parts(record: Record) -> Features:
    """Runs of letters and of digits in the pictures' names."""
    names = [record.image, record.generated.image if record.generated else None]
    return tuple(part for name in names if name for part in re.findall(r"[^\W\d_]+|\d+", Path(name).name))


def missing_parts(record: Record) -> Features:
    """Which of the pictures and scores are there; regions and phrases are counted in rows of their own."""
    parts = record.image, record.generated, record.scores, record.generated_scores
    return (tuple(value is not None for value in parts),)


def score_features(train: Sequence[Record]) -> Callable[[Record], Features]:
    """Every score as the tenth it falls into, cut at the quantiles of train."""

    def values(record: Record) -> list[tuple[str, float]]:
        pairs = ("scores", record.scores), ("generated scores", record.generated_scores)
        return [(f"{name}[{i}]", value) for name, scores in pairs if scores for i, value in enumerate(scores)]

    seen = defaultdict(list)
    for record in train:
        for name, value in values(record):
            seen[name].append(value)
    edges = {name: quantile_edges(found) for name, found in seen.items()}
    return lambda record: tuple((name, quantile(value, edges.get(name, ()))) for name, value in values(record))


def _objects(record: Record) -> Sequence[str]:
    return record.sides.get("objects", {}).get("labels", [])[:NUM_OBJECTS]


def number_of_objects(record: Record) -> Features:
    """How many objects a model sees of the post's own picture."""
    return (len(_objects(record)),)


def number_of_crops(record: Record) -> Features:
    """How many crops a released list named, where a record says so."""
    return (record.sides.get("crops"),)


def labels_of_objects(record: Record) -> Features:
    """What they are called."""
    return tuple(_objects(record))


def alignment_features(train: Sequence[Record]) -> Callable[[Record], Features]:
    """Of the weights of words and objects the mean, the largest and the share of zeros, in tenths of train."""

    def values(record: Record) -> list[float]:
        weights = [weight for row in record.sides.get("alignment", ()) for weight in row[:NUM_OBJECTS]]
        if not weights:
            return []
        return [sum(weights) / len(weights), max(weights), weights.count(0) / len(weights)]

    seen = [found for record in train if (found := values(record))]
    edges = [quantile_edges([found[part] for found in seen]) for part in range(3)]
    return lambda record: tuple((part, quantile(value, edges[part])) for part, value in enumerate(values(record)))


# ------------------------------------------------------------------ the audit


@dataclass(frozen=True)
class _Probe:
    """A side input: what reads it, what it is held against beside the majority class, the mark that it asks for."""

    reads: str
    kind: type
    features: Callable[[Record], Features]
    against: tuple[str, ...] = ()  # `reads` of other rows
    mark: str | None = None


NOTHING, TEXT = "nothing", "the post's words (no side input: to compare with)"


def number_row(kind: str) -> str:
    """What the row reads that tells labels from how many regions there are; kind: of REGION_KINDS."""
    return f"number of {kind} (of the first {NUM_REGIONS})"


def _probes(train: Sequence[Record]) -> list[_Probe]:
    probes = [
        _Probe("last phrase words that the post lacks", Lookup, foreign_suffix, mark=PHRASES),
        _Probe("phrase words that the post lacks", NaiveBayes, foreign_words, mark=PHRASES),
        _Probe("phrase words", NaiveBayes, phrase_words, against=(TEXT,), mark=PHRASES),
        _Probe("number of phrases", Lookup, number_of_phrases, against=(TEXT,), mark=PHRASES),
        _Probe("scores, in tenths", NaiveBayes, score_features(train), against=(TEXT,)),
    ]
    for generated, what in enumerate(REGION_KINDS):
        number = number_row(what)
        places = _Probe(
            f"places of {what}", NaiveBayes, places_of_regions(bool(generated)), against=(number, TEXT), mark=REGIONS
        )
        probes += [_Probe(number, Lookup, number_of_regions(bool(generated)), mark=REGIONS), places]
    if any("crops" in record.sides for record in train):
        probes.append(_Probe(CROPS_ROW, Lookup, number_of_crops, mark=REGIONS))
    if any("objects" in record.sides for record in train):
        against = (OBJECTS_ROW, TEXT)
        probes += [
            _Probe(OBJECTS_ROW, Lookup, number_of_objects, mark=REGIONS),
            _Probe("labels of objects", NaiveBayes, labels_of_objects, against=against, mark=REGIONS),
        ]
        if any("alignment" in record.sides for record in train):
            read = alignment_features(train)
            probes.append(_Probe("alignment of words and objects", NaiveBayes, read, against=against, mark=REGIONS))
    return [
        *probes,
        _Probe("file names of pictures", NaiveBayes, file_name_parts),
        _Probe("which parts are missing", Lookup, missing_parts),
    ]


def audit(dataset: Dataset, *, margin: float = MARGIN) -> list[AuditRow]:
    """Trains every predictor on train and scores it on test (dev where there is no test); empty where one is missing.

    A predictor "leaks" where it is above the majority class, and above what it is held against, by more than ``margin``
    and by more than chance (:func:`data_prep.inspection.leak_predictors.above`): in micro-F1 and accuracy of labels, or
    in the accuracy of "is there any relation (entity)". Held against something else are what the text tells as well
    (words and
    number of phrases, scores: the bag of the post's words) and the places of regions (it, and their number).
    """
    train = dataset.splits.get("train", ())
    held_out = dataset.splits.get("test") or dataset.splits.get("dev") or ()
    if not train or not held_out:
        return []
    labels, gold = [label_of(record) for record in train], [label_of(record) for record in held_out]
    anything = [[frozenset(["any"]) if label else frozenset() for label in side] for side in (labels, gold)]

    def trials(kind: type, read: Callable[[Record], Features]) -> tuple[Trial, Trial]:
        """Of the label, and of whether there is one."""
        seen, asked = [read(record) for record in train], [read(record) for record in held_out]
        of_label = leak_predictors.trial(kind, seen, labels, asked, gold)
        return of_label, leak_predictors.trial(kind, seen, anything[0], asked, anything[1])

    baselines = {NOTHING: trials(Lookup, lambda record: ()), TEXT: trials(NaiveBayes, text_words)}
    names = {NOTHING: "majority class", TEXT: NaiveBayes.name}
    rows = [
        AuditRow(names[reads], reads, label.f1, label.accuracy, False, any.accuracy)
        for reads, (label, any) in baselines.items()
    ]
    for probe in _probes(train):
        label, any = baselines[probe.reads] = trials(probe.kind, probe.features)
        against = [baselines[reads] for reads in (NOTHING, *probe.against)]
        leak = all(leak_predictors.above(label, other, margin) for other, _ in against) or all(
            leak_predictors.more_accurate(any, other, margin) for _, other in against
        )
        row = AuditRow(probe.kind.name, probe.reads, label.f1, label.accuracy, leak, any.accuracy, probe.mark)
        rows.append(row)
    return rows


def verdict(rows: Sequence[AuditRow], info: DatasetInfo | None = None) -> list[str]:
    """What the rows say, as lines: from what labels can be read, and whether `dataset.json` carries the mark for it."""
    leaks = [row for row in rows if row.leak]
    if not leaks:
        carried = [mark for mark in (PHRASES, REGIONS) if info is not None and getattr(info, mark)]
        lines = ["no side input tells labels"]
        if carried:
            lines.append(
                f"dataset.json carries {' and '.join(carried)} all the same, as what it holds is known to leak"
            )
        return lines
    lines = [f"labels can be read from: {'; '.join(row.reads for row in leaks)}"]
    for mark in dict.fromkeys(row.mark for row in leaks if row.mark is not None):
        if info is None:
            lines.append(f"the mark for this is {mark}")
        elif getattr(info, mark):
            lines.append(f"the set carries the mark for this, {mark}, and so does every report made from it")
        else:
            lines.append(
                f"WARNING: NO REPORT WILL SAY SO: dataset.json has {mark} false. Import without what leaks, or set "
                f"{mark} to true there"
            )
    if any(row.mark is None for row in leaks):
        lines.append("WARNING: no mark of dataset.json says so for all of these: repair the set before training on it")
    return lines


def audit_table(rows: Sequence[AuditRow], info: DatasetInfo | None = None) -> str:
    """The rows as text, what is predicted, and last lines that say whether labels leak (see :func:`verdict`)."""
    if not rows:
        return "leak audit: needs records in train and in test (or dev)"
    lines = [f"{'leak audit: trained on train, read from':52s}  {'by':14s}  micro-F1  accuracy     any"]
    lines += [
        f"  {row.reads:50s}  {row.predictor:14s}  {100 * row.f1:8.2f}  {100 * row.accuracy:8.2f}  {100 * row.any:6.2f}"
        + ("  LEAK" if row.leak else "")
        for row in rows
    ]
    if info is not None:
        lines.append(f"  predicted: {PREDICTED[info.task]}")
    return "\n".join([*lines, *(f"  {line}" for line in verdict(rows, info))])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset", type=Path, help="folder of a prepared data set or of a divergence corpus")
    parser.add_argument("--margin", type=float, default=MARGIN, help="above the baseline (default: %(default)s)")
    options = parser.parse_args()
    try:
        if (options.dataset / CORPUS_FILE).is_file():
            from data_prep import audit_corpus

            print(audit_corpus.corpus_audit_table(audit_corpus.audit_corpus(options.dataset, margin=options.margin)))
            return
        dataset = read_dataset(options.dataset)
    except DataError as error:
        sys.exit(f"audit_leaks: {error}")
    print(f"{dataset.info.name} ({dataset.info.task})  labels: {dataset.label_version}")
    print(audit_table(audit(dataset, margin=options.margin), dataset.info))


if __name__ == "__main__":
    main()
