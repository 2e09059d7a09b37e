"""Writes the noun phrases of every post (paper section 3.2), derived from its text alone.

    python data_prep/extract_phrases.py DATASET --parser=pattern
    python data_prep/extract_phrases.py DATASET --parser=stanza --models=DIR

`pattern` is the built-in parser, which needs no download (:mod:`data_prep.phrases.pattern`); `stanza` is Stanford's
constituency parser (:mod:`data_prep.phrases.constituency`). The longest phrases come first, at most --maximum of them;
none holds a word that the post does not have, so phrases that leaked are replaced, and once all are the set is no
longer marked `leaky_phrases`. Resumable; see :mod:`data_prep.stages.frame`.

Both parsers are English. A set of whose letters more than a quarter are of another script than Latin is refused. Where
single posts are mostly in another script, they get no phrases, are counted, and are listed in
`journals/phrases/other_script.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.importing.release_files import words_from_elsewhere
from data_prep.phrases import constituency
from data_prep.phrases import pattern as noun_phrases
from data_prep.stages import command as stage_command
from data_prep.stages import frame as stages
from data_prep.stages.frame import Outcome, Selection, Stage
from tmrjax.files import DataError, jsonl_bytes, write_atomic
from tmrjax.records import Dataset, DatasetInfo, Record, read_dataset
from tmrjax.records.schema import Span

logger = logging.getLogger(__name__)

NAME = "phrases"
PARSERS = ("pattern", "stanza")
OTHER_SCRIPT = "other_script.jsonl"  # in the stage's folder of journals
MAXIMUM_OTHER = 0.25  # of a set's letters; Twitter-2015 and -2017 have at most 4 in 100,000
Parser = Callable[[Sequence[Sequence[str]]], list[list[Span]]]


def load_parser(name: str, models: Path | None = None) -> tuple[Parser, str | None, dict[str, str]]:
    """A parser of posts, what its model is called, and versions. Raises :class:`DataError` where something lacks."""
    if name == "pattern":
        version = importlib.metadata.version("textblob")
        noun_phrases.phrase_spans(["lexicon"])  # read now, not in the time of the first posts
        return lambda posts: [noun_phrases.phrase_spans(tokens) for tokens in posts], None, {"textblob": version}
    if name != "stanza":
        raise ValueError(f"parser is {name!r}; expected one of {PARSERS}")
    if models is None:
        raise DataError("--parser=stanza", "no --models", "a folder of stanza's models", "Name it, or use pattern.")
    loaded = constituency.ConstituencyParser(models)
    model = f"stanza {constituency.LANGUAGE} {stages.folder_digest(models / constituency.LANGUAGE)}"
    return loaded, model, {"stanza": loaded.version}


def phrase_stage(
    parser: str = "pattern", *, models: Path | None = None, maximum: int = noun_phrases.MAXIMUM, batch_size: int = 64
) -> Stage:
    """The stage; arguments as the command's flags."""
    if maximum < 1:
        raise ValueError(f"maximum is {maximum}; expected at least 1")
    parse, model, versions = load_parser(parser, models)

    def work(batch: Sequence[Record]) -> list[Outcome]:
        foreign = [noun_phrases.in_another_script(record.tokens) for record in batch]
        latin = [record.tokens for record, other in zip(batch, foreign, strict=True) if not other]
        spans = iter(parse(latin) if latin else ())
        return [
            Outcome([], _NO_PHRASES) if other else _outcome(record, next(spans), maximum)
            for record, other in zip(batch, foreign, strict=True)
        ]

    return Stage(
        name=NAME,
        tool="data_prep/extract_phrases.py",
        work=work,
        apply=_apply,
        inputs=_inputs,
        options={"parser": parser, "maximum": maximum},
        info=_mark_leaks,
        model=model,
        versions=versions,
        batch_size=batch_size,
    )


_NO_PHRASES = {"noun phrases": 0, "phrases chosen": 0, "posts without a phrase": 1, "posts in another script": 1}


def _inputs(record: Record) -> Any:
    # Posts in another script had whole clauses as phrases once: they, and they alone, are made again.
    if noun_phrases.in_another_script(record.tokens):
        return {"tokens": record.tokens, "script": "other"}
    return record.tokens


def _outcome(record: Record, spans: Sequence[Span], maximum: int) -> Outcome:
    phrases = noun_phrases.choose_phrases(record.tokens, spans, maximum)
    counts = {"noun phrases": len(spans), "phrases chosen": len(phrases), "posts without a phrase": not phrases}
    return Outcome(list(phrases), {name: int(count) for name, count in counts.items()})


def _apply(record: Record, value: Any) -> Record:
    return dataclasses.replace(record, phrases=tuple(value))


def _mark_leaks(info: DatasetInfo, splits: Mapping[str, Sequence[Record]]) -> DatasetInfo:
    leaky = any(
        words_from_elsewhere(phrase, record.tokens)
        for records in splits.values()
        for record in records
        for phrase in record.phrases
    )
    return dataclasses.replace(info, leaky_phrases=leaky)


def extract_phrases(root: Path, selection: Selection | None = None, **options: Any) -> Dataset:
    """Extracts the phrases of a data set; `options` are those of :func:`phrase_stage`. Raises :class:`DataError`."""
    root = Path(root)
    _check_scripts(root, read_dataset(root))
    dataset = stages.run_stage(root, phrase_stage(**options), selection)
    listing = root / stages.JOURNALS / NAME / OTHER_SCRIPT
    foreign = [
        {"split": split, "id": record.id}
        for split, records in dataset.splits.items()
        for record in records
        if noun_phrases.in_another_script(record.tokens)
    ]
    if foreign:
        write_atomic(listing, jsonl_bytes(foreign))
        logger.warning("%d posts are in another script: no phrases; listed in %s", len(foreign), listing)
    else:
        listing.unlink(missing_ok=True)
    return dataset


def _check_scripts(root: Path, dataset: Dataset) -> None:
    """Refuses a set that is not written in Latin letters: both parsers would take whole clauses for phrases."""
    records = [record for split in dataset.splits.values() for record in split]
    letters = [noun_phrases.letters_by_script(record.tokens) for record in records]
    latin, other = sum(pair[0] for pair in letters), sum(pair[1] for pair in letters)
    if other <= MAXIMUM_OTHER * (latin + other):
        return
    foreign = sum(noun_phrases.in_another_script(record.tokens) for record in records)
    raise DataError(
        root,
        f"{other / (latin + other):.0%} of all letters outside of the Latin script ({foreign} of {len(records)} posts "
        "mostly)",
        f"English text, at most {MAXIMUM_OTHER:.0%}: the parsers of noun phrases know no other language",
        "Write phrases from elsewhere into 'phrases' of the records (tmrjax.records.write_dataset), or leave this "
        "stage out (prepare.py --stages=regions): models then read the whole picture alone.",
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    stage_command.add_arguments(parser)
    parser.add_argument("--parser", choices=PARSERS, default="pattern")
    parser.add_argument("--models", type=Path, help="folder of stanza's models")
    parser.add_argument("--maximum", type=int, default=noun_phrases.MAXIMUM, help="phrases of a post")
    parser.add_argument("--batch-size", type=int, default=64, help="posts at a time (default: %(default)s)")
    flags = parser.parse_args()
    options = {name: getattr(flags, name) for name in ("parser", "models", "maximum", "batch_size")}
    stage_command.command(
        "extract_phrases", [NAME], lambda: extract_phrases(flags.dataset, stage_command.selection_of(flags), **options)
    )


if __name__ == "__main__":
    main()
