"""What to build a corpus from: the flags of build_divergence_corpus.py, their checks, and the manifest they make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.corpus.mixture import IN_DOMAIN, LABELLED, OUT_OF_DOMAIN, WEAKEN_FROM, Counts
from data_prep.corpus.pool import JPEG_QUALITY, MAX_ASPECT, NEAR_BITS, Rules
from data_prep.corpus.sources import Source, open_source
from data_prep.corpus.texts import CLEANERS
from tmrjax.divergence.corpus import CLASSES, SHARD_RECORDS
from tmrjax.files import DataError

MAX_PIECES = 40  # ViLT's limit, with [CLS] and [SEP]
DEFAULT_COUNTS = Counts(weaken=200_000, complement=100_000, strengthen=100_000)


@dataclass(frozen=True)
class Options:
    """What to build; the fields are the command's flags.

    strengthen ... labelled: sources as ``NAME=PATH``, or as a :class:`data_prep.corpus.sources.Source`. counts: most
    pairs of train; dev, test, out_of_domain: shares of it. exclude, only: ``NAME:COLUMN=VALUE``; apart:
    ``NAME:COLUMN``; weaken_from: one of WEAKEN_FROM. limit: items read of each source. tokenizer: a folder with
    vocab.txt, to count texts over MAX_PIECES.
    """

    out: Path
    strengthen: tuple[str | Source, ...] = ()
    complement: tuple[str | Source, ...] = ()
    out_of_domain_strengthen: tuple[str | Source, ...] = ()
    out_of_domain_complement: tuple[str | Source, ...] = ()
    out_of_domain_labelled: tuple[str | Source, ...] = ()
    counts: Counts = DEFAULT_COUNTS
    dev: float = 0.02
    test: float = 0.05
    out_of_domain: float = 0.05
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    weaken_from: str = WEAKEN_FROM[0]
    clean: tuple[str, ...] = ()
    smallest: int = 32
    store_size: int = 384
    limit: int | None = None
    seed: int = 0
    shard_records: int = SHARD_RECORDS
    tokenizer: Path | None = None
    name: str | None = None
    synthetic: bool = False
    on_error: str = "raise"
    workers: int = 2
    restart: bool = False
    keep_pool: bool = False
    progress: bool = True


@dataclass(frozen=True)
class Part:
    """One source in its role; number: its place among those that may have the same pictures."""

    number: int
    source: Source
    role: str
    domain: str
    rules: Rules = field(default_factory=Rules)


def resolve(options: Options) -> list[Part]:
    """The sources, in the order in which they own what two of them have."""
    roles = (
        ("strengthen", IN_DOMAIN, options.strengthen),
        ("complement", IN_DOMAIN, options.complement),
        ("strengthen", OUT_OF_DOMAIN, options.out_of_domain_strengthen),
        ("complement", OUT_OF_DOMAIN, options.out_of_domain_complement),
        (LABELLED, OUT_OF_DOMAIN, options.out_of_domain_labelled),
    )
    listed = [
        (role, domain, open_source(source, seed=options.seed) if isinstance(source, str) else source)
        for role, domain, sources in roles
        for source in sources
    ]
    names = [source.name for *_, source in listed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(options.out, f"two sources named {twice[0]!r}", "a name once", "Write NAME=PATH.")
    ruled = {"--exclude": options.exclude, "--only": options.only, "--apart": options.apart}
    for flag, rules in ruled.items():
        for rule in rules:
            if rule.partition(":")[0] not in names or (("=" in rule) != (flag != "--apart")):
                form = "NAME:COLUMN" + ("" if flag == "--apart" else "=VALUE")
                raise DataError(flag, repr(rule), f"{form} with a name out of {', '.join(names)}", "Correct it.")
    return [
        Part(number, source, role, domain, _rules(options, source.name))
        for number, (role, domain, source) in enumerate(listed)
    ]


def _rules(options: Options, name: str) -> Rules:
    def values(rules: Sequence[str]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for rule in rules:
            source, _, condition = rule.partition(":")
            if source == name:
                column, _, value = condition.partition("=")
                found[column] = (*found.get(column, ()), value)
        return found

    apart = [rule.partition(":")[2] for rule in options.apart if rule.partition(":")[0] == name]
    return Rules(
        smallest=options.smallest,
        store_size=options.store_size,
        clean=tuple(cleaner for cleaner in CLEANERS if cleaner in options.clean),
        exclude=values(options.exclude),
        only=values(options.only),
        apart=apart[-1] if apart else None,
    )


def manifest_of(options: Options, parts: Sequence[Part]) -> dict[str, Any]:
    """All that the bytes of a corpus depend on."""
    return {
        "name": options.name or options.out.name,
        "sources": {
            part.source.name: {"role": part.role, "domain": part.domain, **part.source.describe()} for part in parts
        },
        "counts": {split: dict(zip(CLASSES, counts, strict=True)) for split, counts in split_counts(options).items()},
        "exclude": list(options.exclude),
        "only": list(options.only),
        "apart": list(options.apart),
        "weaken_from": options.weaken_from,
        "clean": [cleaner for cleaner in CLEANERS if cleaner in options.clean],
        "smallest": options.smallest,
        "largest_aspect": MAX_ASPECT,
        "store_size": options.store_size,
        "jpeg_quality": JPEG_QUALITY,
        "near_bits": NEAR_BITS,
        "limit": options.limit,
        "seed": options.seed,
        "shard_records": options.shard_records,
        "counted_pieces": options.tokenizer is not None,
    }


def split_counts(options: Options) -> dict[str, Counts]:
    """The most pairs of each class that each split gets."""
    shares = {"test": options.test, "dev": options.dev, "train": 1.0, "test_out_of_domain": options.out_of_domain}
    return {split: options.counts.scaled(share) for split, share in shares.items() if share}


def _parse_counts(text: str) -> Counts:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}; expected strengthen,complement,weaken, as 100000,100000,200000")
    strengthen, complement, weaken = (int(part) for part in parts)
    return Counts(weaken, complement, strengthen)


def _parse_clean(text: str) -> tuple[str, ...]:
    names = CLEANERS if text == "all" else tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in CLEANERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}; expected all, or a list of {', '.join(CLEANERS)}")
    return names


def parse_options(description: str) -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", required=True, type=Path, help="folder of the corpus; an unfinished one is resumed")
    for flag, text in (
        ("--strengthen", "captions that say what their picture shows (COCO)"),
        ("--complement", "texts that go with their picture (LAION-400M)"),
        ("--out-of-domain-strengthen", "as above, for the test out of domain"),
        ("--out-of-domain-complement", "as above, for the test out of domain (SBU)"),
        ("--out-of-domain-labelled", 'JSONL whose lines have a "label"'),
    ):
        parser.add_argument(flag, action="append", default=[], metavar="NAME=PATH", help=f"{text}; may be repeated")
    parser.add_argument(
        "--counts", type=_parse_counts, default=DEFAULT_COUNTS, metavar="S,C,W",
        help="most pairs of train: strengthen,complement,weaken (default: 100000,100000,200000)",
    )  # fmt: skip
    for flag, share in (("--dev", Options.dev), ("--test", Options.test), ("--out-of-domain", Options.out_of_domain)):
        parser.add_argument(flag, type=float, default=share, help="size as a share of --counts (default: %(default)s)")
    for flag, text in (("--exclude", "leave out"), ("--only", "take nothing but")):
        parser.add_argument(
            flag, action="append", default=[], metavar="NAME:COLUMN=VALUE", help=f"{text} items with this value"
        )
    parser.add_argument(
        "--apart", action="append", default=[], metavar="NAME:COLUMN", help="weaken takes a picture of another value"
    )
    parser.add_argument(
        "--weaken-from", choices=WEAKEN_FROM, default=WEAKEN_FROM[0],
        help="weaken takes a picture of the text's own source, or of any of its domain (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--clean", type=_parse_clean, default=(), metavar="LIST",
        help=f"take out of the texts: all, or a list of {','.join(CLEANERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--smallest", type=int, default=Options.smallest, help="short side, pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--store-size", type=int, default=Options.store_size, help="short side kept (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="read at most so many items of each source")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, help=f"folder with vocab.txt: counts texts over {MAX_PIECES} pieces")
    parser.add_argument("--name", help="of the corpus (default: of its folder)")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip lists unreadable items")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever lies in --out")
    parser.add_argument("--keep-pool", action="store_true", help="leave pool.sqlite")
    return Options(**{key: tuple(v) if isinstance(v, list) else v for key, v in vars(parser.parse_args()).items()})
