"""Noun phrases from Stanford's constituency parser, through stanza (paper section 3.2: the parser that the paper uses).

The post's tokens go in as they are (stanza's pretokenized input), so that phrases map back to them. Stanza and torch
come with the extra `phrases`; the models are a folder, fetched once by whoever has a network and used offline:

    python -c "import stanza; stanza.download('en', model_dir='DIR', processors='tokenize,pos,constituency')"
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.phrases.pattern import SENTENCE_END, special
from tmrjax.files import DataError
from tmrjax.records.schema import Span

LANGUAGE = "en"  # the tags below are the Penn Treebank's
PROCESSORS = "tokenize,pos,constituency"
_LEFT_OUT = ("DT", "PDT", "PRP", "PRP$", "WDT", "WP", "WP$", "EX", "CC")  # at the edges of a phrase
_NOUN = ("NN", "CD", "JJ", "VBG", "VBN", "FW", "ADD", "$")  # begins of tags, one of which a phrase must have


def open_pipeline(folder: Path, processors: str, use_gpu: bool | None = None) -> tuple[Any, str]:
    """Stanza's pipeline for posts in tokens, and stanza's version; nothing is fetched.

    folder: the models, as `stanza.download(..., model_dir=folder)` leaves them. Raises :class:`DataError` where stanza
    or the models are missing.
    """
    fetch = f"stanza.download({LANGUAGE!r}, model_dir='DIR', processors={processors!r})"
    advice = f'On a machine with a network: python -c "import stanza; {fetch}"; then bring the folder here.'
    try:
        import stanza
    except ImportError:
        install = "pip install 'tmrjax[phrases]'"
        raise DataError(folder, "no stanza to read it with", "the extra 'phrases'", install) from None
    if not (folder / "resources.json").is_file():
        raise DataError(folder, "no resources.json", "a folder of stanza's models", advice)
    try:
        pipeline = stanza.Pipeline(
            LANGUAGE,
            dir=str(folder),
            processors=processors,
            tokenize_pretokenized=True,
            download_method=None,
            use_gpu=use_gpu,
            verbose=False,
        )
    except FileNotFoundError as error:  # of stanza's own kinds
        raise DataError(folder, f"no whole set of models ({error})", f"those of {processors}", advice) from error
    return pipeline, stanza.__version__


class ConstituencyParser:
    """A loaded pipeline of stanza; see :func:`open_pipeline` for the folder and what is raised."""

    def __init__(self, folder: Path, *, use_gpu: bool | None = None):
        self.pipeline, self.version = open_pipeline(folder, PROCESSORS, use_gpu)

    def __call__(self, posts: Sequence[Sequence[str]]) -> list[list[Span]]:
        """The noun phrases of posts as half-open token ranges, in order; each sentence of a post is read alone."""
        spans_read = [(number, start, end) for number, tokens in enumerate(posts) for start, end in sentences(tokens)]
        document = self.pipeline([list(posts[number][start:end]) for number, start, end in spans_read])
        spans: list[list[Span]] = [[] for _ in posts]
        for (number, start, end), sentence in zip(spans_read, document.sentences, strict=True):
            found = tree_spans(posts[number][start:end], sentence.constituency)
            spans[number].extend((start + first, start + last) for first, last in found)
        return spans


def sentences(tokens: Sequence[str]) -> list[Span]:
    """The sentences of a post as half-open token ranges: each ends with a token that ends one."""
    ends = [index + 1 for index, token in enumerate(tokens) if SENTENCE_END.fullmatch(token)]
    bounds = [0, *ends, len(tokens)]
    return [(start, end) for start, end in itertools.pairwise(bounds) if start < end]


def tree_spans(tokens: Sequence[str], tree: Any) -> list[Span]:
    """Base noun phrases of a tree (stanza's, or any with `label` and `children`), none overlapping another.

    A noun phrase that holds no other one but a possessor (Bill 's dog) is one; so is `X of Y` where both are names.
    At its edges determiners, pronouns and conjunctions are left out, and what :func:`special` says ends it; a phrase
    of nothing but pronouns is none. Raises ValueError where the leaves of the tree are not the tokens in number.
    """
    tags: list[str] = []
    phrases: list[Span] = []
    _walk(tree, tags, phrases)
    if len(tags) != len(tokens):
        raise ValueError(f"the parser made {len(tags)} words out of {len(tokens)} tokens: {' '.join(tokens)!r}")
    letters = special(tokens)
    spans = {(index, index + 1) for index, letter in enumerate(letters) if letter == "S"}
    for start, end in phrases:
        begin = start
        for index in range(start, end + 1):
            if index == end or letters[index] != " ":
                spans.add(_trimmed(begin, index, tags))
                begin = index + 1
    return sorted(span for span in spans if span[0] < span[1])


def _trimmed(start: int, end: int, tags: Sequence[str]) -> Span:
    def edge(tag: str) -> bool:
        return tag in _LEFT_OUT or not tag[0].isalpha()

    while start < end and edge(tags[start]):
        start += 1
    while start < end and (edge(tags[end - 1]) or tags[end - 1] == "POS"):
        end -= 1
    return (start, end) if any(tag.startswith(_NOUN) for tag in tags[start:end]) else (start, start)


def _walk(tree: Any, tags: list[str], phrases: list[Span]) -> None:
    """Collects the tags of the leaves and the spans of base noun phrases, from left to right."""
    start = len(tags)
    if len(tree.children) == 1 and not tree.children[0].children:
        tags.append(tree.label)
        return
    before = len(phrases)
    for child in tree.children:
        _walk(child, tags, phrases)
    if not _label(tree).startswith("NP"):
        return
    inner = phrases[before:]
    possessor = inner and tags[inner[0][1] - 1] == "POS" and inner[0][0] == start
    if not inner or (possessor and len(inner) == 1) or _is_name_of_name(tree, tags, inner):
        phrases[before:] = [(start, len(tags))]


def _is_name_of_name(tree: Any, tags: Sequence[str], inner: Sequence[Span]) -> bool:
    parts = [_label(child) for child in tree.children]
    if parts != ["NP", "PP"] or len(inner) != 2:
        return False
    preposition = tree.children[1].children[0]
    of = preposition.children[0].label.lower() == "of" if preposition.children else False
    return of and tags[inner[0][1] - 1].startswith("NNP") and tags[inner[1][1] - 1].startswith("NNP")


def _label(tree: Any) -> str:
    return tree.label.split("-")[0]
