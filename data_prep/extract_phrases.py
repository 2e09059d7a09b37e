"""Writes the noun phrases of every post (paper section 3.2), derived from its text alone.

    python data_prep/extract_phrases.py DATASET --parser=pattern
    python data_prep/extract_phrases.py DATASET --parser=stanza --models=DIR

`pattern` is the built-in parser, which needs no download (:mod:`data_prep.noun_phrases`); `stanza` is Stanford's
constituency parser (:mod:`data_prep.constituency`). The longest phrases come first, at most --maximum of them; none
holds a word that the post does not have, so phrases that leaked are replaced, and once all are the set is no longer
marked `leaky_phrases`. Resumable; see :mod:`data_prep.stages`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep import constituency, noun_phrases, stage_command, stages
from data_prep.release_files import words_from_elsewhere
from data_prep.stages import Outcome, Selection, Stage
from tmrjax.files import DataError
from tmrjax.record_schema import Span
from tmrjax.records import Dataset, DatasetInfo, Record

NAME = "phrases"
PARSERS = ("pattern", "stanza")
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
        spans = parse([record.tokens for record in batch])
        return [_outcome(record, found, maximum) for record, found in zip(batch, spans, strict=True)]

    return Stage(
        name=NAME,
        tool="data_prep/extract_phrases.py",
        work=work,
        apply=_apply,
        inputs=lambda record: record.tokens,
        options={"parser": parser, "maximum": maximum},
        info=_mark_leaks,
        model=model,
        versions=versions,
        batch_size=batch_size,
    )


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
    return stages.run_stage(root, phrase_stage(**options), selection)


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
