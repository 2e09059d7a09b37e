"""A raw post, as a user hands it over, checked and split into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tmrjax.record_schema import DatasetInfo, Generated, Record, RecordChecker, Span
from tmrjax.word_splitting import Word, join_words, split_words

POST_KEYS = (
    "id", "text", "tokens", "image", "regions", "phrases", "scores",
    "generated_image", "generated_regions", "generated_scores",
)  # fmt: skip
PAIR_KEYS = ("head", "tail")


class Post(NamedTuple):
    """A checked post: its record without labels, its text, its words with their characters, and a given pair.

    ``pair``: (head, tail) as half-open ranges of words, None where the post names none.
    """

    record: Record
    text: str
    words: list[Word]
    pair: tuple[Span, Span] | None


def read_post(post: Mapping[str, Any], info: DatasetInfo, *, where: str) -> Post:
    """Check one post and split it into words.

    A post has ``text`` or ``tokens``, and of the other POST_KEYS what there is; for relations also ``head`` and
    ``tail``: [start, end) in characters of ``text``, or in ``tokens``. Raises :class:`tmrjax.records.DataError`
    whose message begins with ``where``.
    """
    check = RecordChecker(where)
    check.keys(post, (), (*POST_KEYS, *PAIR_KEYS) if info.task == "re" else POST_KEYS, "post")
    if ("text" in post) == ("tokens" in post):
        check.fail("both 'text' and 'tokens'" if "text" in post else "neither", "one of the two", "Give one of them.")
    if "text" in post:
        text = check.text(post["text"], "text")
        words = split_words(text)
        if not words:
            check.fail(f"no word in {text!r}", "a post with at least one visible character", "Leave the post out.")
    else:
        tokens = check.texts(post["tokens"], "tokens")
        if not tokens:
            check.fail("no token", "at least one", "Leave the post out.")
        text, words = join_words(tokens)
    generated = None
    if post.get("generated_image") is not None:
        generated = Generated(
            check.text(post["generated_image"], "generated_image"),
            check.boxes(post.get("generated_regions", []), "generated_regions"),
        )
    image = post.get("image")
    record = Record(
        id=str(post.get("id", where)),
        tokens=tuple(word.word for word in words),
        image=None if image is None else check.text(image, "image"),
        regions=check.boxes(post.get("regions", []), "regions"),
        phrases=check.texts(post.get("phrases", []), "phrases"),
        generated=generated,
        scores=check.scores(post.get("scores"), "scores", info),
        generated_scores=check.scores(post.get("generated_scores"), "generated_scores", info),
    )
    return Post(record, text, words, _pair(post, check, text, words))


def _pair(post: Mapping[str, Any], check: RecordChecker, text: str, words: Sequence[Word]) -> tuple[Span, Span] | None:
    given = [key for key in PAIR_KEYS if post.get(key) is not None]
    if not given:
        return None
    if len(given) == 1:
        check.fail(f"{given[0]!r} alone", "both 'head' and 'tail', or neither", "Give the other one too.")
    spans = []
    for key in PAIR_KEYS:
        if "tokens" in post:
            spans.append(check.span(post[key], key, len(words)))
            continue
        start, end = check.span(post[key], key, len(text))
        span = words_of_characters(words, start, end)
        if span is None:
            check.fail(f"no word in {key!r} {[start, end]}", "characters of at least one word", "Correct the range.")
        spans.append(span)
    check.pair(*spans)
    return spans[0], spans[1]


def words_of_characters(words: Sequence[Word], start: int, end: int) -> Span | None:
    """The half-open range of words that share a character with [start, end); None where none does."""
    touched = [index for index, word in enumerate(words) if word.start < end and word.end > start]
    return (touched[0], touched[-1] + 1) if touched else None
