"""Raw posts to entities with a trained checkpoint: the functional API of the project.

>>> from tmrjax.predict import Predictor                                      # doctest: +SKIP
>>> predictor = Predictor.load("runs/demo/full")                              # doctest: +SKIP
>>> predictor.entities({"text": "Jordan at the harbour", "image": "a.jpg"})   # doctest: +SKIP
{'text': 'Jordan at the harbour', 'entities': [{'start': 0, 'end': 6, 'text': 'Jordan', 'label': 'LOC', ...}], ...}
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tmrjax.checkpoints import load_best
from tmrjax.record_schema import DatasetInfo, Generated, Record, RecordChecker
from tmrjax.sharding import make_mesh, replicate
from tmrjax.tagger import Prediction, Tagger
from tmrjax.tagging import Word, character_spans, join_words, split_words

logger = logging.getLogger(__name__)

POST_KEYS = (
    "id", "text", "tokens", "image", "regions", "phrases", "scores",
    "generated_image", "generated_regions", "generated_scores",
)  # fmt: skip


def read_post(post: Mapping[str, Any], info: DatasetInfo, *, where: str) -> tuple[Record, str, list[Word]]:
    """Check one post and split it into words: (record, text, words with their characters).

    A post has ``text`` or ``tokens``, and of the other POST_KEYS what there is. Raises
    :class:`tmrjax.records.DataError` whose message begins with ``where``.
    """
    check = RecordChecker(where)
    check.keys(post, (), POST_KEYS, "post")
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
    return (
        Record(
            id=str(post.get("id", where)),
            tokens=tuple(word.word for word in words),
            image=None if image is None else check.text(image, "image"),
            regions=check.boxes(post.get("regions", []), "regions"),
            phrases=check.texts(post.get("phrases", []), "phrases"),
            generated=generated,
            scores=check.scores(post.get("scores"), "scores", info),
            generated_scores=check.scores(post.get("generated_scores"), "generated_scores", info),
        ),
        text,
        words,
    )


class Predictor:
    """A restored checkpoint that reads raw posts."""

    def __init__(self, tagger: Tagger, variables: Mapping[str, Any], meta: Mapping[str, Any], *, devices: int | None):
        self.tagger, self.meta = tagger, meta
        self.mesh = make_mesh(devices)
        self.variables = replicate(variables, self.mesh)
        self._step = tagger.predict_step(self.mesh)

    @classmethod
    def load(cls, workdir: str | Path, *, devices: int | None = None) -> Predictor:
        """The best checkpoint of a workdir; nothing else is read. Raises CheckpointError where there is none."""
        variables, meta = load_best(Path(workdir))
        return cls(Tagger.from_meta(meta), variables, meta, devices=devices)

    def entities(
        self,
        posts: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        root: str | Path = ".",
        batch_size: int = 16,
        progress: Callable[[Iterator, int], Iterator] = lambda batches, _: batches,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Entities of one post or of many.

        Args:
            posts: dicts with ``text`` or ``tokens``, and what there is of ``image``, ``regions``, ``phrases``,
                ``scores``, ``generated_image``, ``generated_regions``, ``generated_scores``, ``id``.
            root: folder that paths of pictures are relative to.
            batch_size: posts at a time, rounded up to a multiple of the devices.
            progress: wraps the iterator of batches, given their number.

        Returns:
            per post {"id", "text", "entities", "masked", "unread_words"}: entities with "start", "end" (characters;
            ``text[start:end]`` is the entity), "text", "label" and "score" (the exact probability, under the CRF, of
            this entity); masked names the inputs that the model was trained with and this post lacks; unread_words
            counts the words behind the length limit.

        Raises:
            tmrjax.records.DataError: a post that is not as described, or a picture that cannot be read.
        """
        single = isinstance(posts, Mapping)
        posts = [posts] if single else list(posts)
        info = DatasetInfo(name="posts", task="ner", labels=self.tagger.labels.labels)
        read = [read_post(post, info, where=f"post {i}") for i, post in enumerate(posts)]
        masked = [self._masked(record) for record, _, _ in read]
        for name in dict.fromkeys(name for names in masked for name in names):
            count = sum(name in names for names in masked)
            logger.warning("%d of %d posts come without %s: that input is masked", count, len(posts), name)
        examples = self.tagger.encode([record for record, _, _ in read])
        devices = self.mesh.size
        predictions = self.tagger.predict(
            self._step,
            self.variables,
            examples,
            self.tagger.pixels(Path(root)),
            self.mesh,
            batch_size=-(-min(batch_size, max(len(posts), 1)) // devices) * devices,
            probabilities=True,
            progress=progress,
        )
        results = [
            {
                "id": post.get("id"),
                "text": text,
                "entities": _entities(text, words, prediction),
                "masked": names,
                "unread_words": len(example.pieces.cut),
            }
            for post, (_, text, words), prediction, names, example in zip(
                posts, read, predictions, masked, examples, strict=True
            )
        ]
        return results[0] if single else results

    def _masked(self, record: Record) -> list[str]:
        names = []
        if "" in self.tagger.model.prefixes and record.image is None:
            names.append("picture")
        if "generated_" in self.tagger.model.prefixes and record.generated is None:
            names.append("generated picture")
        return names


def _entities(text: str, words: Sequence[Word], prediction: Prediction) -> list[dict[str, Any]]:
    located = character_spans(prediction.spans, words)
    return [
        {"start": start, "end": end, "text": text[start:end], "label": label, "score": probability}
        for (start, end, label), probability in zip(located, prediction.probabilities, strict=True)
    ]
