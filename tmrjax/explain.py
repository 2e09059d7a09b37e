"""What a picture did to the answer of a post: the answer without it, and where Eq. 1 looked (§3.2).

>>> from tmrjax.explain import Explainer                                      # doctest: +SKIP
>>> explain = Explainer(Predictor.load("runs/demo/full"))                     # doctest: +SKIP
>>> explain({"text": "Jordan at the harbour", "image": "a.jpg"}).without_pictures["entities"]   # doctest: +SKIP
[{'start': 0, 'end': 6, 'text': 'Jordan', 'label': 'PER', 'score': 0.61}]

The weights are those that the method itself computes, not a copy of its arithmetic: A = softmax((V W) Tᵀ / √D + log M),
one row for each patch (or region), which sums to 1 over the word pieces of the text (or of the phrases), [CLS] and
[SEP] among them. They say what was matched with what; they are no measure of how much a picture counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tmrjax.inputs.base import Example
from tmrjax.inputs.pictures import slots
from tmrjax.predict import Predictor
from tmrjax.prediction.posts import Post, PostOptions, PostPictures, read_post, with_pair, without_pair
from tmrjax.records.schema import NO_RELATION, Box, DatasetInfo

PICTURE_KEYS = (
    "image", "regions", "scores", "generated_image", "generated_regions", "generated_scores", "sides",
)  # fmt: skip
"""What a post has of its pictures: sides are what a detector saw in them."""


class Attention(NamedTuple):
    """A of Eq. 1 for one picture of a post.

    seen: the part of the picture that the patches cover, in fractions of width and height.
    patches: [rows, columns, W], what a patch gives to each of the W words of the post: the sum over the word's pieces,
        0 for a word that is not read. What is lacking to 1 goes to special pieces. A post that is read in windows has
        each word's weights from the window that owns it.
    regions: the boxes that were read. phrase_pieces: P word pieces of the phrases, special ones among them.
    region_weights: [R, P], what a region gives to each of these pieces.
    """

    seen: Box
    patches: np.ndarray
    regions: tuple[Box, ...]
    phrase_pieces: tuple[str, ...]
    region_weights: np.ndarray


class Explanation(NamedTuple):
    """What came out of a post, and what its pictures did to it.

    result: as of :meth:`tmrjax.predict.Predictor.entities` or ``relations``. without_pictures: the same for the post
    without PICTURE_KEYS; None where it has no picture and no sides. words: of the post, [start, end) in characters of
    its text. attention: by "image" and "generated_image"; empty for a method without Eq. 1. pair: for relations the
    head and the tail that stood marked in the text while it looked, those of the most probable answer; None where there
    is none.
    """

    result: dict[str, Any]
    without_pictures: dict[str, Any] | None
    words: tuple[tuple[int, int], ...]
    attention: dict[str, Attention]
    pair: tuple[dict[str, Any], dict[str, Any]] | None


class Explainer:
    """Explains the answers of a predictor; ``entities`` finds the entities of posts without ``head`` and ``tail``."""

    def __init__(self, predictor: Predictor, *, entities: Predictor | None = None):
        self.predictor, self.entities = predictor, entities
        system = predictor.system

        def attention(variables: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
            states = system.method.apply(variables, system.prepare(batch), train=False).states
            return {name: weights for name, weights in states.items() if name.endswith("_attention")}

        self._attention = jax.jit(attention)

    def read(self, post: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The result alone, by the method of the predictor's task; ``options``: ``root``, ``allow_outside``."""
        if self.predictor.system.task == "ner":
            return self.predictor.entities(post, **options)
        return self.predictor.relations(post, entities=self.entities, keep_none=True, **options)

    def __call__(
        self, post: str | Mapping[str, Any], *, root: str | Path = ".", allow_outside: bool = False
    ) -> Explanation:
        """Explain one post, as :meth:`tmrjax.predict.Predictor.entities` takes it.

        A pair that was found is listed where its relation is one, with or without the pictures.

        Raises:
            tmrjax.files.DataError: the post is not as described, or a picture cannot be read.
        """
        system = self.predictor.system
        given = {"text": post} if isinstance(post, str) else dict(post)
        where = {"root": root, "allow_outside": allow_outside}
        result, without = self.read(given, **where), None
        if any(given.get(key) is not None for key in ("image", "generated_image", "sides")):
            without = self.read({key: value for key, value in given.items() if key not in PICTURE_KEYS}, **where)
        info = DatasetInfo(name="posts", task=system.task, labels=system.labels)
        options = PostOptions(Path(root), allow_outside, system.text.word_splitting, self.predictor.joiner)
        checked = read_post(given if system.task == "re" else without_pair(given), info, where="post", options=options)
        words, pair = tuple((word.start, word.end) for word in checked.words), None
        if system.task == "re":
            if checked.pair is None:
                _drop_none_of_both(result, without)
            if not result["relations"]:
                return Explanation(result, without, words, {}, None)
            best = max(result["relations"], key=lambda one: (one["relation"] != NO_RELATION, one["score"]))
            pair = (best["head"], best["tail"])
            checked = checked._replace(record=with_pair(checked, pair))
        return Explanation(result, without, words, self._look(checked, options.root), pair)

    def _look(self, post: Post, root: Path) -> dict[str, Attention]:
        """A of every picture that the method reads of a post."""
        system = self.predictor.system
        source = system.pixels(root)
        if source is None or not any(slots(post.record, root, source.pictures.prefixes, system.pictures)):
            return {}
        source = PostPictures(source, {post.record.id: post.pictures})
        (example,) = system.encode([post.record], say=None)
        rows = system.rows(example)
        found = [self._weights(source, row) for row in rows]
        if source.errors:
            raise next(iter(source.errors.values()))
        if not found[0]:
            return {}
        looked = {}
        for prefix, path, boxes in slots(post.record, root, source.pictures.prefixes, system.pictures):
            picture = source.open(post.record, prefix, path, None)
            fine = _by_word([weights[f"{prefix}fine_attention"] for weights in found], rows, len(post.words))
            side = math.isqrt(len(fine))
            grid = (side, side) if side * side == len(fine) else (1, len(fine))
            ids = example.values["phrase_ids"]
            coarse = found[0][f"{prefix}coarse_attention"][: len(boxes), : len(ids)]
            looked[f"{prefix}image"] = Attention(
                system.pictures.seen(*picture.size), fine.reshape(*grid, -1), boxes,
                tuple(system.tokenizer.convert_ids_to_tokens(list(ids))), coarse,
            )  # fmt: skip
        return looked

    def _weights(self, source: PostPictures, row: Example) -> dict[str, np.ndarray]:
        """The attention of one row by name, without the axis of the batch."""
        system = self.predictor.system
        bucket = min(size for size in system.buckets if size >= len(row.pieces.input_ids))
        batch = system.collator(source)([row], bucket)
        states = self._attention(self.predictor.variables, batch)
        return {name: np.asarray(weights, np.float32)[0] for name, weights in states.items()}


def _drop_none_of_both(result: dict[str, Any], without: dict[str, Any] | None) -> None:
    """Leave out the pairs that have no relation, neither with pictures nor without."""
    results = [one for one in (result, without) if one is not None]
    told = {_spans(one) for found in results for one in found["relations"] if one["relation"] != NO_RELATION}
    for found in results:
        found["relations"] = [one for one in found["relations"] if _spans(one) in told]


def _spans(relation: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(relation[role][end] for role in ("head", "tail") for end in ("start", "end"))


def _by_word(rows: list[np.ndarray], examples: list[Example], words: int) -> np.ndarray:
    """Weights of word pieces [P, T] of each row -> of words [P, W], each from the row that owns it."""
    found = np.zeros((len(rows[0]), words), np.float32)
    for weights, example in zip(rows, examples, strict=True):
        own = set(getattr(example.pieces, "words", example.pieces.piece_words))
        for place, word in enumerate(example.pieces.piece_words):
            if word >= 0 and word in own:
                found[:, word] += weights[:, place]
    return found
