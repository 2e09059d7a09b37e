"""A raw post, as a user hands it over, checked and split into words; and the pictures that came with it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tmrjax.files import DataError
from tmrjax.inputs.pictures import PixelSource
from tmrjax.pictures.decode import Decoded, PictureError, Shrinking, decode_decoded, load_decoded, upright_rgb, whole
from tmrjax.records.schema import DatasetInfo, Generated, Record, RecordChecker, Span
from tmrjax.text.splitting import Word, join_words, split_words

POST_KEYS = (
    "id", "text", "tokens", "image", "regions", "phrases", "scores",
    "generated_image", "generated_regions", "generated_scores", "sides",
)  # fmt: skip
PAIR_KEYS = ("head", "tail")
RESULT_KEYS = ("entities", "relations", "masked", "unread_words", "unknown_words", "unread_pairs")


class Given(NamedTuple):
    """A post as it is handed to :meth:`tmrjax.predict.Predictor.outcomes`.

    where: what errors call it. error: why it could not be parsed, if so. position: the caller's own.
    """

    post: Any
    where: str
    error: DataError | None = None
    position: Any = None


class PostError(NamedTuple):
    """A post without a result: its number from 0, its id where that could be read, and the error."""

    index: int
    id: str | int | float | None
    error: DataError

    def to_json(self) -> dict[str, Any]:
        """What stands in a list of results in the place of this post."""
        return {"id": self.id, "error": str(self.error)}


class UnreadPostsError(DataError):
    """Some of many posts could not be read; the others are done.

    results: one per post, None where there is an error. errors: one :class:`PostError` per post without a result.
    """

    def __init__(self, results: list[dict[str, Any] | None], errors: list[PostError]):
        self.results, self.errors = results, errors
        first = errors[0].error
        super().__init__(
            "posts",
            f"{len(errors)} of {len(results)} that could not be read, the first: {first.where}: found {first.found}",
            first.expected,
            f"{first.advice} The other results are in .results of this error; on_error='return' returns both.",
        )

    def __reduce__(self):
        return type(self), (self.results, self.errors)


@dataclasses.dataclass(frozen=True)
class PostOptions:
    """How posts are read.

    Attributes:
        root: folder that paths of pictures are relative to.
        allow_outside: whether a path given as a string may lead out of ``root``.
        splitting, joiner: how ``text`` becomes words and ``tokens`` a text (:mod:`tmrjax.text.splitting`).
        carry: keys that are handed through to the result although they look like a misspelt key of a post.
    """

    root: Path = Path()
    allow_outside: bool = False
    splitting: str = "spaces"
    joiner: str = " "
    carry: tuple[str, ...] = ()


class Post(NamedTuple):
    """A checked post.

    record: without labels; its id is where the post stood. text, words: with the words' characters. pair: (head, tail)
    as half-open ranges of words, None where the post names none. id: as given. carried: keys that are none of a post.
    pictures: those that came as objects, by prefix. is_raw: whether ``text`` was given and split here.
    """

    record: Record
    text: str
    words: list[Word]
    pair: tuple[Span, Span] | None
    id: str | int | float | None
    carried: dict[str, Any]
    pictures: dict[str, Any]
    is_raw: bool


def read_post(
    post: str | Mapping[str, Any], info: DatasetInfo, *, where: str, options: PostOptions = PostOptions()
) -> Post:
    """Check one post and split it into words.

    A post is its text, or has ``text`` or ``tokens`` and of the other POST_KEYS what there is; for relations also
    ``head`` and ``tail``: [start, end) in characters of ``text``, or in ``tokens``. A picture is a path, or a PIL
    picture, an array uint8 [H, W, 3] or the bytes of a file. Raises :class:`tmrjax.files.DataError` whose message
    begins with ``where``.
    """
    check = RecordChecker(where)
    post = {"text": post} if isinstance(post, str) else post
    carried = _carried(post, check, (*POST_KEYS, *PAIR_KEYS) if info.task == "re" else POST_KEYS, options.carry)
    if ("text" in post) == ("tokens" in post):
        check.fail("both 'text' and 'tokens'" if "text" in post else "neither", "one of the two", "Give one of them.")
    if "text" in post:
        text = check.text(post["text"], "text")
        words = split_words(text, options.splitting)
        if not words:
            check.fail(f"no word in {text!r}", "a post with at least one visible character", "Leave the post out.")
    else:
        tokens = check.texts(post["tokens"], "tokens")
        if not tokens:
            check.fail("no token", "at least one", "Leave the post out.")
        text, words = join_words(tokens, options.joiner)
    pictures: dict[str, Any] = {}
    image, generated_image = (_picture(post, f"{p}image", p, check, options, pictures) for p in ("", "generated_"))
    generated = None
    if generated_image is not None:
        generated = Generated(generated_image, check.boxes(post.get("generated_regions", []), "generated_regions"))
    record = Record(
        id=where,
        tokens=tuple(word.word for word in words),
        image=image,
        regions=check.boxes(post.get("regions", []), "regions"),
        phrases=check.texts(post.get("phrases", []), "phrases"),
        generated=generated,
        scores=check.scores(post.get("scores"), "scores", info),
        generated_scores=check.scores(post.get("generated_scores"), "generated_scores", info),
        sides=check.sides(post.get("sides", {}), None),
    )
    pair = _pair(post, check, text, words) if info.task == "re" else None
    return Post(record, text, words, pair, _id(post.get("id"), check), carried, pictures, "text" in post)


def _carried(post: Any, check: RecordChecker, known: Sequence[str], carry: Sequence[str]) -> dict[str, Any]:
    """The keys that are none of a post; raises for one that looks like a misspelt key, or is a key of the result."""
    if not isinstance(post, Mapping):
        check.fail(f"{type(post).__name__} as the post", "a text or an object", 'Give {"text": ...}.')
    carried = {}
    for key, value in post.items():
        if key in known:
            continue
        if key in RESULT_KEYS:
            check.fail(f"the key {key!r}", "none of the result's own keys", "Rename it: the result has it too.")
        meant = _meant(key, [name for name in known if name not in post]) if key not in carry else None
        if meant:
            check.fail(
                f"the unknown key {key!r}",
                f"the keys {', '.join(known)}, and others that look like none of these",
                f"Did you mean {meant!r}? If not, name it in carry (--carry={key} on the command line).",
            )
        carried[key] = value
    return carried


def _meant(key: Any, known: Sequence[str]) -> str | None:
    """The key that ``key`` is a misspelling of: "created_at" and "full_text" are none, "txet" and "img" are."""
    if not isinstance(key, str):
        return None
    near = [name for name in known if abs(len(name) - len(key)) <= 2]
    return next(iter(difflib.get_close_matches(key.lower(), near, n=1, cutoff=0.74)), None)


def _id(value: Any, check: RecordChecker) -> str | int | float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (value is None or isinstance(value, str) or number) or (number and not math.isfinite(value)):
        check.fail(f"{str(value)[:80]!r} in 'id'", "a string, a finite number or null", "Give the post another id.")
    return check.text(value, "id") if isinstance(value, str) and value else value


def _picture(
    post: Mapping[str, Any], key: str, prefix: str, check: RecordChecker, options: PostOptions, pictures: dict[str, Any]
) -> str | None:
    """The path of a picture, as a record has it; one that is no path goes into ``pictures``."""
    value = post.get(key)
    if value is None:
        return None
    if isinstance(value, Image.Image | np.ndarray | bytes):
        pictures[prefix] = value
        return f"{check.where}, {key!r}"
    if isinstance(value, os.PathLike):  # a path that the program made, not the text of a foreign post
        return os.fspath(value)
    if not isinstance(value, str):
        expected = "a path, a PIL picture, an array uint8 [H, W, 3], the bytes of a file, or null"
        check.fail(f"{type(value).__name__} in {key!r}", expected, "Give one of these.")
    path = check.text(value, key)
    scheme = path.partition(":")[0].lower()
    if scheme in ("http", "https", "ftp", "data") and ":" in path:
        check.fail(f"the URL {path[:80]!r} in {key!r}", "a path: URLs are not fetched", "Download it, give its path.")
    if "\0" in path:
        check.fail(f"a NUL character in {key!r}", "a path", "Correct it.")
    if not options.allow_outside:
        real, base = os.path.realpath(options.root / path), os.path.realpath(options.root)
        if os.path.commonpath([real, base]) != base:
            check.fail(
                f"{path[:80]!r} in {key!r}, which leads out of the folder of the pictures",
                "a file below it",
                "Give another root (--root), or allow_outside=True (--allow-outside) if you trust the posts.",
            )
    return path


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


def id_of(post: Any) -> str | int | float | None:
    """The id of a post that could not be read, where it is one."""
    found = post.get("id") if isinstance(post, Mapping) else None
    return found if isinstance(found, str | int | float) and not isinstance(found, bool) else None


def without_pair(post: Any) -> Any:
    """A post without ``head`` and ``tail``."""
    return {key: value for key, value in post.items() if key not in PAIR_KEYS} if isinstance(post, Mapping) else post


def located(post: Post, span: tuple[int, int]) -> dict[str, Any]:
    """A range of words as a result has it: characters and text."""
    start, end = post.words[span[0]].start, post.words[span[1] - 1].end
    return {"start": start, "end": end, "text": post.text[start:end]}


def with_pair(post: Post, pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Record:
    """The record of a post with a pair of entities, given in characters."""
    head, tail = (words_of_characters(post.words, entity["start"], entity["end"]) for entity in pair)
    return dataclasses.replace(post.record, head=head, tail=tail)


class PostPictures(PixelSource):
    """Pictures of posts as pixels, from files and from memory.

    A picture that cannot be read does not end the batch: its error is kept in ``errors`` under the record's id, the
    row is computed without its pixels, and its prediction is to be thrown away.
    """

    def __init__(self, source: PixelSource, given: Mapping[str, Mapping[str, Any]]):
        super().__init__(source.root, source.pictures, source.settings, source.num_threads)
        self.given = given
        self.errors: dict[str, DataError] = {}

    def open(self, record: Record, prefix: str, path: Path, shrinking: Shrinking | None) -> Decoded:
        """The picture of a record as RGB, upright."""
        picture, name = self.given.get(record.id, {}).get(prefix), f"{record.id}, '{prefix}image'"
        if isinstance(picture, Image.Image):
            return whole(upright_rgb(picture, name))
        if isinstance(picture, bytes):
            return decode_decoded(picture, name, shrinking)
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
                found = f"an array {picture.dtype} {list(picture.shape)}"
                raise PictureError(name, found, "uint8 [height, width, 3]", "Convert it.")
            return whole(upright_rgb(Image.fromarray(picture), name))
        return load_decoded(path, shrinking)

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays of one record; none where a picture cannot be read."""
        try:
            return super().load(record)
        except DataError as error:
            where, found = f"{record.id}: {error.where}", error.found
            where = error.where if error.where.startswith(record.id) else where
            self.errors[record.id] = DataError(where, found, error.expected, error.advice)
            return {}
