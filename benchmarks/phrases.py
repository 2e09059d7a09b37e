"""Noun phrases of the released posts: share of gold entity tokens that they cover, and posts per second.

    python -m benchmarks.phrases --data=DIR [--stanza=DIR]

DIR holds `tmr-release/` (default: TMRJAX_DATA). Gold entities are those of Twitter-2017 (tags but O) and MNRE (heads
and tails), all splits. "all": of all phrases that the parser finds; "chosen": of the three longest, which training
sees; "none": posts without a phrase. Each parser is loaded before its time is taken; posts per second depend on the
machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.extract_phrases import load_parser
from data_prep.import_twitter import RENAMED_TAGS
from data_prep.importing import release_files
from data_prep.phrases.pattern import MAXIMUM, choose_phrases
from tmrjax.files import DataError
from tmrjax.records import DatasetInfo, Span

BATCH = 64


@dataclass(frozen=True)
class Post:
    """A post's tokens and the places of those that belong to a gold entity."""

    tokens: tuple[str, ...]
    gold: frozenset[int]


def twitter_posts(folder: Path) -> list[Post]:
    """All tweets of a released Twitter set."""
    tags = DatasetInfo("", "ner", ("PER", "LOC", "ORG", "MISC")).tag_set
    posts = []
    for name in ("train.txt", "valid.txt", "test.txt"):
        for tweet in release_files.read_tweets(folder / name, tags, RENAMED_TAGS, _stop):
            gold = frozenset(place for place, tag in enumerate(tweet.tags) if tag != "O")
            posts.append(Post(tweet.tokens, gold))
    return posts


def mnre_posts(folder: Path) -> list[Post]:
    """All sentences of MNRE, each once, with the heads and tails of all its instances."""
    relations = tuple(release_files.read_relations(folder / "ours_rel2id.json"))
    gold: dict[tuple[str, ...], set[int]] = {}
    for split in ("train", "val", "test"):
        for one in release_files.read_instances(folder / f"txt/ours_{split}.txt", relations, _stop):
            gold.setdefault(one.tokens, set()).update(range(*one.head), range(*one.tail))
    return [Post(tokens, frozenset(places)) for tokens, places in gold.items()]


def _stop(error: DataError, line: int, identifier: str | None) -> None:
    raise error


def coverage(posts: Sequence[Post], spans: Sequence[Sequence[Span]]) -> float:
    """Share of gold entity tokens inside a span."""
    gold = sum(len(post.gold) for post in posts)
    covered = sum(
        len(post.gold & {place for start, end in found for place in range(start, end)})
        for post, found in zip(posts, spans, strict=True)
    )
    return covered / gold


def chosen_spans(post: Post, spans: Sequence[Span]) -> list[Span]:
    """The spans whose text is among the phrases chosen from them."""
    chosen = choose_phrases(post.tokens, spans, MAXIMUM)
    return [span for span in spans if " ".join(post.tokens[slice(*span)]) in chosen]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("TMRJAX_DATA"), help="folder with tmr-release/")
    parser.add_argument("--stanza", type=Path, help="folder of stanza's models")
    parser.add_argument("--limit", type=int, help="only so many posts of each set")
    flags = parser.parse_args()
    if flags.data is None:
        sys.exit("benchmarks.phrases: name the released data with --data or TMRJAX_DATA")
    release = Path(flags.data) / "tmr-release"
    sets = {
        "Twitter-2017": twitter_posts(release / "TMR-NER/data/twitter2017")[: flags.limit],
        "MNRE": mnre_posts(release / "TMR-RE/data")[: flags.limit],
    }
    print(f"{'parser':10s}{'set':14s}{'posts':>7s}{'phrases':>9s}{'all':>8s}{'chosen':>8s}{'none':>7s}{'posts/s':>9s}")
    for name in ("pattern", "stanza"):
        try:
            parse, _, _ = load_parser(name, flags.stanza)
        except DataError as error:
            print(f"{name:10s}not run: {error}")
            continue
        for title, posts in sets.items():
            began, spans = time.perf_counter(), []
            for start in range(0, len(posts), BATCH):
                spans += parse([post.tokens for post in posts[start : start + BATCH]])
            rate = len(posts) / (time.perf_counter() - began)
            chosen = [chosen_spans(post, found) for post, found in zip(posts, spans, strict=True)]
            mean, without = sum(map(len, spans)) / len(posts), sum(not found for found in spans)
            shares = "".join(f"{100 * coverage(posts, found):8.1f}" for found in (spans, chosen))
            print(f"{name:10s}{title:14s}{len(posts):7d}{mean:9.2f}{shares}{without:7d}{rate:9.0f}")


if __name__ == "__main__":
    main()
