"""From a foreign post to an answer: what the page and the JSON interface share, with every bound.

A post is JSON; its pictures are base64 (a data URL, or its part behind the comma), decoded in memory. No path, no URL
and no key that is not in KEYS is read. One thread answers, one request after the other; a few may wait.
"""

from __future__ import annotations

import base64
import binascii
import concurrent.futures
import dataclasses
import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tmrjax.divergence import scoring
from tmrjax.divergence.pictures import estimator_pixels
from tmrjax.divergence.pipeline import encode_texts
from tmrjax.explain import Attention, Explainer, Explanation
from tmrjax.files import DataError
from tmrjax.pictures.decode import PictureError, decode_picture
from tmrjax.predict import Predictor

logger = logging.getLogger(__name__)

PICTURES = ("image", "generated_image")
KEYS = (
    "id", "text", "tokens", "phrases", "regions", "scores", "generated_regions", "generated_scores", *PICTURES,
    "head", "tail",
)  # fmt: skip
SCORES = {"image": "scores", "generated_image": "generated_scores"}
BATCH = 8  # posts of a batch that are read at a time


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        characters: of a post's text, tokens and phrases together.
        picture_bytes: of a picture's file.
        request_bytes: of a request as it is sent.
        posts: of a batch.
        pairs: of entities that are found in a post, between which relations are asked for.
        waiting: requests that wait for their turn.
        seconds: until an answer, waiting included.
    """

    characters: int = 10_000
    picture_bytes: int = 10_000_000
    request_bytes: int = 32_000_000
    posts: int = 32
    pairs: int = 240
    waiting: int = 16
    seconds: float = 60.0


class RefusedError(Exception):
    """A request without an answer: an HTTP status, and one sentence for whoever asked."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Explained(NamedTuple):
    """An explanation, the pictures that it is about, and the scores of each: those given, or the estimator's."""

    explanation: Explanation
    pictures: dict[str, Image.Image]
    scores: dict[str, Sequence[float]]

    def to_json(self) -> dict[str, Any]:
        """The result with "explanation"; numbers of the attention have four digits."""
        found = self.explanation
        return found.result | {
            "explanation": {
                "without_pictures": found.without_pictures,
                "scores": {name: list(scores) for name, scores in self.scores.items()},
                "words": [list(word) for word in found.words],
                "pair": found.pair and list(found.pair),
                "attention": {name: _attention_json(one) for name, one in found.attention.items()},
            }
        }


def _attention_json(attention: Attention) -> dict[str, Any]:
    arrays = {name: np.round(value.astype(float), 4).tolist() for name, value in attention._asdict().items()
              if isinstance(value, np.ndarray)}  # fmt: skip
    return attention._asdict() | arrays


class Answers:
    """Answers requests with a predictor.

    Args:
        predictor: of either task.
        entities: of MNER, to find the entities of posts without ``head`` and ``tail``.
        scorer: gives pictures that come without scores theirs.
        limits: of a request.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        entities: Predictor | None = None,
        scorer: scoring.Scorer | None = None,
        limits: Limits = Limits(),
    ):
        self.predictor, self.entities, self.scorer, self.limits = predictor, entities, scorer, limits
        self._explainer = Explainer(predictor, entities=entities)
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "answers")
        self._places = threading.BoundedSemaphore(1 + limits.waiting)

    def predict_one(self, post: Any) -> dict[str, Any]:
        """The result of one post. Raises RefusedError."""
        return self._in_turn(lambda: self._results(self._checked(post, "the post"), "raise"))

    def predict(self, posts: Sequence[Any]) -> list[dict[str, Any]]:
        """Results in the order of the posts, {"id", "error"} in the place of one that cannot be read.

        Raises RefusedError for too many of them, and where no answer comes in time.
        """
        if len(posts) > self.limits.posts:
            raise RefusedError(413, f"{len(posts)} posts; at most {self.limits.posts} in a request: send more requests")
        return self._in_turn(lambda: self._predict(posts))

    def explain(self, post: Any) -> Explained:
        """One post with all that is known of it. Raises RefusedError."""
        return self._in_turn(lambda: self._explain(post))

    def warm_up(self, post: Mapping[str, Any]) -> None:
        """Compile what a first request would wait for; however long it takes."""
        self._worker.submit(self._explain, post).result()

    def close(self) -> None:
        """Answer no more."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _in_turn(self, work: Callable[[], Any]) -> Any:
        """The result of some work in the one thread; whatever goes wrong is a RefusedError without the post's text."""
        if not self._places.acquire(blocking=False):
            raise RefusedError(503, f"busy: {self.limits.waiting} requests are waiting already; try again in a moment")
        future = self._worker.submit(work)
        future.add_done_callback(lambda _: self._places.release())
        try:
            return future.result(timeout=self.limits.seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise RefusedError(503, f"no answer within {self.limits.seconds:g} seconds; try again, or less") from None
        except RefusedError:
            raise
        except DataError as error:
            raise RefusedError(422, str(error)) from None
        except Exception as error:
            # The message of a fault may hold what was sent, so the log gets its kind and its place alone.
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s in %s:%s", type(error).__name__, place.filename, place.lineno)
            raise RefusedError(500, "the program failed on this post; the log of the server says where") from None

    def _predict(self, posts: Sequence[Any]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = [{}] * len(posts)
        for start in range(0, len(posts), BATCH):  # so many pictures are in memory at a time
            checked = {}
            for index, post in enumerate(posts[start : start + BATCH], start):
                try:
                    checked[index] = self._checked(post, f"post {index}")
                except (RefusedError, DataError) as error:
                    given = post.get("id") if isinstance(post, Mapping) else None
                    results[index] = {"id": given, "error": str(error)}
            for index, result in zip(checked, self._results(list(checked.values()), "return"), strict=True):
                results[index] = result
        return results

    def _results(self, posts: Any, on_error: str) -> Any:
        """Of a checked post or of some, by the method of the predictor's task."""
        options = {"on_error": on_error, "batch_size": BATCH}
        if self.predictor.system.task == "ner":
            return self.predictor.entities(posts, **options)
        return self.predictor.relations(posts, entities=self.entities, **options)

    def _explain(self, post: Any) -> Explained:
        checked = self._checked(post, "the post")
        pictures = {name: checked[name] for name in PICTURES if name in checked}
        scores = {name: checked[SCORES[name]] for name in pictures if checked.get(SCORES[name]) is not None}
        return Explained(self._explainer(checked), pictures, scores)

    def _checked(self, post: Any, where: str) -> dict[str, Any]:
        """The post with its pictures decoded, within the limits, with scores where there is a scorer."""
        if not isinstance(post, Mapping):
            raise RefusedError(422, f"{where}: found {type(post).__name__}, expected an object with 'text' or 'tokens'")
        unknown = [str(key)[:40] for key in post if key not in KEYS]
        if unknown:
            raise RefusedError(422, f"{where}: unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
        found = {key: value for key, value in post.items() if value is not None}
        texts = [found.get("text"), found.get("tokens"), found.get("phrases")]
        characters = sum(len(part) for one in texts for part in ([one] if isinstance(one, str) else one or [])
                         if isinstance(part, str))  # fmt: skip
        if characters > self.limits.characters:
            raise RefusedError(
                413, f"{where}: {characters:,} characters of text; at most {self.limits.characters:,}: shorten it"
            )
        for name in PICTURES:
            if name in found:
                found[name] = self._picture(found[name], f"{where}, {name!r}")
        if self.scorer is not None:
            self._add_scores(found)
        if self.entities is not None and "head" not in found and "tail" not in found:
            entities = len(self.entities.entities(found)["entities"])
            if entities * (entities - 1) > self.limits.pairs:
                many = f"{entities} entities, which are more than {self.limits.pairs} pairs"
                raise RefusedError(413, f"{where}: {many}: give 'head' and 'tail', or a shorter text")
        return found

    def _picture(self, value: Any, where: str) -> Image.Image:
        """The picture of a data URL or of base64."""
        if not isinstance(value, str):
            raise RefusedError(422, f"{where}: found {type(value).__name__}, expected a picture's file as base64")
        content = value.partition(",")[2] if value[:5].lower() == "data:" else value
        if len(content) * 3 // 4 > self.limits.picture_bytes + 2:
            megabytes = self.limits.picture_bytes / 1e6
            raise RefusedError(
                413, f"{where}: {len(content) * 3 / 4e6:.1f} MB; at most {megabytes:g} MB: scale it down"
            )
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise RefusedError(
                422, f"{where}: no base64; expected a picture's file as base64, no path and no URL"
            ) from None
        try:
            return decode_picture(data, where)
        except PictureError as error:
            raise RefusedError(422, str(error)) from None

    def _add_scores(self, post: dict[str, Any]) -> None:
        """The estimator's scores for pictures that have none."""
        wanted = [name for name in PICTURES if name in post and SCORES[name] not in post]
        text = post.get("text")
        if not wanted or not isinstance(text, str):
            return
        estimator = self.scorer.estimator
        (pieces,) = encode_texts(estimator.tokenizer, [text], estimator.texts)
        pixels = [estimator_pixels(post[name], estimator.pictures) for name in wanted]
        for name, found in zip(wanted, self.scorer([pieces] * len(wanted), pixels), strict=True):
            # As numbers that JSON has; they sum to 1 up to rounding.
            post[SCORES[name]] = [float(score) for score in found]
