"""Whether the class of a pair of a divergence corpus can be read without comparing text and picture (section 3.4).

    python data_prep/audit_leaks.py CORPUS

The estimator is to learn whether a picture weakens, complements or strengthens its text. That the sources have styles
is so by design, in the paper's corpus too: strengthen comes from captions, complement from posts, and style tells these
two apart within the domain (which is why there is a test out of it). But each source gives weaken pairs as well, made
of the same texts and pictures; so *within a source* nothing but the match of the two may tell the class. Everything is
therefore asked per source, and held against the most frequent class of the source. What counts as a leak:

* the picture's width and height; its format, as a decoder sees it (format, colour mode, progressive, quantisation
  tables, metadata); the size of its file;
* the name of the pair: the part of its id before "|". (What stands behind it names the picture of a weaken pair, which
  tells the class by construction; no model reads ids.) It begins with the source of the text: a corpus whose weaken
  pairs take pictures from other sources (--weaken-from=domain) is told of here;
* the place of the pair in its split; parts that are missing (no text, no picture);
* the length of the text alone, in characters.

The words of the text are shown to compare with, and so is the source alone: neither is called a leak.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_prep.inspection import leak_predictors
from data_prep.inspection.leak_predictors import MARGIN, Features, Lookup, NaiveBayes, Trial, quantile, quantile_edges
from tmrjax.divergence.corpus import CLASSES, Corpus, CorpusSplit, Pair, open_corpus

LIMIT = 20_000  # pairs of a split that are read, at equal distances
FEW = 20  # pairs of a source, to learn from or to score on, below which it says nothing and is left out
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


@dataclass(frozen=True)
class CorpusAuditRow:
    """One predictor: what it reads, how many pairs it was scored on, its accuracy over the classes, "leak" or not."""

    reads: str
    scored: int
    accuracy: float
    leak: bool


@dataclass(frozen=True)
class _Seen:
    """A pair and its place in the split, from 0 to 1."""

    pair: Pair
    place: float

    @property
    def label(self) -> frozenset[str]:
        return frozenset([CLASSES[self.pair.label]])


# ------------------------------------------------------------------ what predictors read


def picture_size(seen: _Seen) -> Features:
    """Height and width."""
    return (seen.pair.height, seen.pair.width)


def picture_format(seen: _Seen) -> Features:
    """What the header of the file says; nothing is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(seen.pair.image), formats=FORMATS)
    except OSError:
        return ("no picture that can be opened",)
    tables = getattr(picture, "quantization", None) or {}
    quantisation = tuple(tuple(table) for _, table in sorted(tables.items()))
    return (picture.format, picture.mode, tuple(sorted(map(str, picture.info))), quantisation)


def name_parts(seen: _Seen) -> Features:
    """Runs of letters and of digits in the id, without what stands behind "|"."""
    return tuple(re.findall(r"[^\W\d_]+|\d+", seen.pair.id.partition("|")[0]))


def missing_parts(seen: _Seen) -> Features:
    """Whether text and picture are there."""
    return (bool(seen.pair.text.strip()), bool(seen.pair.image))


def words(seen: _Seen) -> Features:
    """The words of the text."""
    return tuple(seen.pair.text.lower().split())


def tenths(value: Callable[[_Seen], float]) -> Callable[[Sequence[_Seen]], Callable[[_Seen], Features]]:
    """A number, as the tenth it falls into among the pairs learned from."""

    def fit(train: Sequence[_Seen]) -> Callable[[_Seen], Features]:
        edges = quantile_edges([value(seen) for seen in train])
        return lambda seen: (quantile(value(seen), edges),)

    return fit


def _fixed(read: Callable[[_Seen], Features]) -> Callable[[Sequence[_Seen]], Callable[[_Seen], Features]]:
    return lambda train: read


Reader = Callable[[Sequence[_Seen]], Callable[[_Seen], Features]]
PROBES: Mapping[str, tuple[type, Reader]] = {
    "width and height of the picture": (Lookup, _fixed(picture_size)),
    "format of the picture": (Lookup, _fixed(picture_format)),
    "bytes of the picture's file, in tenths": (Lookup, tenths(lambda seen: len(seen.pair.image))),
    "name of the pair": (NaiveBayes, _fixed(name_parts)),
    "place in the split, in tenths": (Lookup, tenths(lambda seen: seen.place)),
    "which parts are missing": (Lookup, _fixed(missing_parts)),
    "length of the text, in tenths": (Lookup, tenths(lambda seen: len(seen.pair.text))),
}
SOURCE, TEXT = "the source alone (its style: by design)", "words of the text, per source (to compare with)"


# ------------------------------------------------------------------ the audit


def audit_corpus(corpus: Corpus | str | Path, *, margin: float = MARGIN, limit: int = LIMIT) -> list[CorpusAuditRow]:
    """One row per predictor, trained on train and scored on test (dev where there is none), per source.

    Sources that train does not have (those out of the domain) are learned from one half of their pairs and scored on
    the other. A row "leaks" where its accuracy is more than ``margin`` and more than chance above that of the most
    frequent class of each source. Raises :class:`DataError` for a corpus that cannot be read.
    """
    corpus = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, require_classes=())
    groups = _groups(corpus, limit)
    if not groups:
        return []

    def score(kind: type, reader: Reader) -> Trial:
        """One trial over all sources, each with a predictor of its own."""
        right: list[bool] = []
        for train, held_out in groups.values():
            read = reader(train)
            found = leak_predictors.trial(
                kind, [read(seen) for seen in train], [seen.label for seen in train],
                [read(seen) for seen in held_out], [seen.label for seen in held_out],
            )  # fmt: skip
            right.extend(found.right)
        return Trial(sum(right) / len(right), tuple(right))

    baseline, text = score(Lookup, _fixed(lambda seen: ())), score(NaiveBayes, _fixed(words))
    scored = len(baseline.right)
    rows = [
        CorpusAuditRow(SOURCE, scored, baseline.accuracy, False),
        CorpusAuditRow(TEXT, scored, text.accuracy, False),
    ]
    for reads, (kind, reader) in PROBES.items():
        found = score(kind, reader)
        leak = leak_predictors.more_accurate(found, baseline, margin)
        rows.append(CorpusAuditRow(reads, scored, found.accuracy, leak))
    return rows


def _groups(corpus: Corpus, limit: int) -> dict[str, tuple[list[_Seen], list[_Seen]]]:
    """By source: pairs to learn from, pairs to score on; sources with too few of either are left out."""
    known = _by_source(corpus["train"], limit) if "train" in corpus else {}
    tested = next((_by_source(corpus[name], limit) for name in ("test", "dev") if name in corpus), {})
    groups = {source: (known[source], pairs) for source, pairs in tested.items() if source in known}
    if "test_out_of_domain" in corpus:
        for source, pairs in _by_source(corpus["test_out_of_domain"], limit).items():
            if source not in groups:
                groups[source] = (pairs[::2], pairs[1::2])
    return {source: group for source, group in sorted(groups.items()) if min(map(len, group)) >= FEW}


def _by_source(split: CorpusSplit, limit: int) -> dict[str, list[_Seen]]:
    """Pairs by the source of their picture."""
    step = max(1, -(-len(split) // limit))
    groups: dict[str, list[_Seen]] = defaultdict(list)
    for number in range(0, len(split), step):
        pair = split[number]
        groups[pair.source].append(_Seen(pair, number / len(split)))
    return dict(groups)


def corpus_audit_table(rows: Sequence[CorpusAuditRow]) -> str:
    """The rows as text, and a last line that says whether classes leak."""
    if not rows:
        return f"leak audit: needs sources with at least {FEW} pairs in train and in test (or dev)"
    lines = [f"{'leak audit of the corpus: class read from, per source':56s}  accuracy"]
    lines += [f"  {row.reads:54s}  {100 * row.accuracy:8.2f}{'  LEAK' if row.leak else ''}" for row in rows]
    lines.append(f"  predicted: {', '.join(CLASSES)}; scored on {rows[0].scored} pairs")
    leaks = [row.reads for row in rows if row.leak]
    lines.append(
        f"  WARNING: classes can be read from: {'; '.join(leaks)}. Build the corpus again without that difference"
        if leaks
        else "  nothing but the match of text and picture tells classes within a source"
    )
    return "\n".join(lines)
