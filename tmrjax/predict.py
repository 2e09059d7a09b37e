"""Raw posts to entities and relations with a trained checkpoint: the functional API of the project.

>>> from tmrjax.predict import Predictor                                      # doctest: +SKIP
>>> predictor = Predictor.load("runs/demo/full")                              # doctest: +SKIP
>>> predictor.entities({"text": "Jordan at the harbour", "image": "a.jpg"})   # doctest: +SKIP
{'text': 'Jordan at the harbour', 'entities': [{'start': 0, 'end': 6, 'text': 'Jordan', 'label': 'LOC', ...}], ...}
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tmrjax.checkpoints import CheckpointError, load_best
from tmrjax.files import DataError
from tmrjax.posts import PAIR_KEYS, Post, read_post, words_of_characters
from tmrjax.reader import Reader
from tmrjax.record_schema import NO_RELATION, DatasetInfo, Record
from tmrjax.relation_classifier import RelationClassifier
from tmrjax.sharding import make_mesh, replicate
from tmrjax.tagger import Prediction, Tagger
from tmrjax.tagging import character_spans
from tmrjax.word_splitting import Word

logger = logging.getLogger(__name__)

READERS: dict[str, type[Reader]] = {"ner": Tagger, "re": RelationClassifier}

Posts = Mapping[str, Any] | Sequence[Mapping[str, Any]]
Progress = Callable[[Iterator, int], Iterator]


def reader_from_meta(meta: Mapping[str, Any]) -> Reader:
    """The reader of a checkpoint's JSON, of whichever task; raises CheckpointError for any other checkpoint."""
    task = meta.get("task")
    if task not in READERS:
        raise CheckpointError(f"a checkpoint for the task {task!r}; expected one of {', '.join(READERS)}")
    return READERS[task].from_meta(meta)


class Predictor:
    """A restored checkpoint that reads raw posts."""

    def __init__(self, reader: Reader, variables: Mapping[str, Any], meta: Mapping[str, Any], *, devices: int | None):
        self.reader, self.meta = reader, meta
        self.mesh = make_mesh(devices)
        self.variables = replicate(variables, self.mesh)
        self._step = reader.predict_step(self.mesh)

    @classmethod
    def load(cls, workdir: str | Path, *, devices: int | None = None) -> Predictor:
        """The best checkpoint of a workdir; nothing else is read. Raises CheckpointError where there is none."""
        variables, meta = load_best(Path(workdir))
        return cls(reader_from_meta(meta), variables, meta, devices=devices)

    def entities(
        self,
        posts: Posts,
        *,
        root: str | Path = ".",
        batch_size: int = 16,
        progress: Progress = lambda batches, _: batches,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Entities of one post or of many; for a checkpoint of MNER.

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
            CheckpointError: the checkpoint is not one of MNER.
        """
        self._expect("ner", "entities", "relations")
        single, given, read = self._read(posts)
        self._warn([post.record for post in read])
        examples, predictions = self._predict([post.record for post in read], root, batch_size, progress)
        results = [
            {
                **_head_of_result(given_post, post),
                "entities": _entities(post.text, post.words, prediction),
                "masked": self._masked(post.record),
                "unread_words": len(example.pieces.cut),
            }
            for given_post, post, prediction, example in zip(given, read, predictions, examples, strict=True)
        ]
        return results[0] if single else results

    def relations(
        self,
        posts: Posts,
        *,
        entities: Predictor | None = None,
        keep_none: bool = False,
        root: str | Path = ".",
        batch_size: int = 16,
        progress: Progress = lambda batches, _: batches,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Relations in one post or in many; for a checkpoint of MRE.

        Args:
            posts: as for :meth:`entities`, with ``head`` and ``tail``: [start, end) in characters of ``text``, or in
                words where the post has ``tokens``. A post without them is searched: every ordered pair of the
                entities that ``entities`` finds is asked for.
            entities: a checkpoint of MNER, for posts without ``head`` and ``tail``.
            keep_none: whether pairs that were found, not given, and have the relation ``None`` are listed too.
            root, batch_size, progress: as for :meth:`entities`.

        Returns:
            per post {"id", "text", "relations", "masked", "unread_words"}: relations with "head" and "tail" (each
            {"start", "end", "text"} in characters, from :meth:`entities` also "label" and "score"), "relation" and
            "score" (its probability); unread_words counts words outside of the window around the pair, the largest
            number of any pair.

        Raises:
            tmrjax.records.DataError: a post that is not as described, head and tail equal, a pair too far apart, a
                picture that cannot be read, or no pair and no ``entities``.
            CheckpointError: the checkpoint is not one of MRE, or ``entities`` not one of MNER.
        """
        self._expect("re", "relations", "entities")
        single, given, read = self._read(posts)
        self._warn([post.record for post in read])
        pairs = [[tuple(_located(post, span) for span in post.pair)] if post.pair else [] for post in read]
        without = [index for index, post in enumerate(read) if post.pair is None]
        if without:
            if entities is None:
                raise DataError(
                    f"post {without[0]}",
                    "neither 'head' nor 'tail'",
                    "two spans, or a checkpoint of MNER to find entities with",
                    "Give both spans, or entities=Predictor.load(MNER_WORKDIR) (--entities on the command line).",
                )
            plain = [{key: value for key, value in given[i].items() if key not in PAIR_KEYS} for i in without]
            found = entities.entities(plain, root=root, batch_size=batch_size, progress=progress)
            for index, result in zip(without, found, strict=True):
                pairs[index] = list(itertools.permutations(result["entities"], 2))
        asked = [(index, pair) for index, found in enumerate(pairs) for pair in found]
        records = [_with_pair(read[index], pair) for index, pair in asked]
        examples, predictions = self._predict(records, root, batch_size, progress)
        results = [
            {**_head_of_result(one, post), "relations": [], "masked": self._masked(post.record), "unread_words": 0}
            for one, post in zip(given, read, strict=True)
        ]
        for (index, (head, tail)), example, prediction in zip(asked, examples, predictions, strict=True):
            result = results[index]
            result["unread_words"] = max(result["unread_words"], len(example.pieces.cut))
            if prediction.relation != NO_RELATION or keep_none or read[index].pair:
                result["relations"].append(
                    {"head": head, "tail": tail, "relation": prediction.relation, "score": prediction.probability}
                )
        return results[0] if single else results

    def _expect(self, task: str, called: str, instead: str) -> None:
        if self.reader.task != task:
            raise CheckpointError(
                f"this checkpoint is one for {self.reader.task!r}: it has .{instead}(), not .{called}()"
            )

    def _read(self, posts: Posts) -> tuple[bool, list[Mapping[str, Any]], list[Post]]:
        single = isinstance(posts, Mapping)
        given = [posts] if single else list(posts)
        info = DatasetInfo(name="posts", task=self.reader.task, labels=self.reader.labels)
        return single, given, [read_post(post, info, where=f"post {i}") for i, post in enumerate(given)]

    def _predict(self, records: Sequence[Record], root: str | Path, batch_size: int, progress: Progress):
        examples = self.reader.encode(records)
        devices = self.mesh.size
        predictions = self.reader.predict(
            self._step,
            self.variables,
            examples,
            self.reader.pixels(Path(root)),
            self.mesh,
            batch_size=-(-min(batch_size, max(len(records), 1)) // devices) * devices,
            probabilities=True,
            progress=progress,
        )
        return examples, predictions

    def _masked(self, record: Record) -> list[str]:
        names = []
        if "" in self.reader.model.prefixes and record.image is None:
            names.append("picture")
        if "generated_" in self.reader.model.prefixes and record.generated is None:
            names.append("generated picture")
        return names

    def _warn(self, records: Sequence[Record]) -> None:
        masked = [self._masked(record) for record in records]
        for name in dict.fromkeys(name for names in masked for name in names):
            count = sum(name in names for names in masked)
            logger.warning("%d of %d posts come without %s: that input is masked", count, len(records), name)


def _head_of_result(given: Mapping[str, Any], post: Post) -> dict[str, Any]:
    return {"id": given.get("id"), "text": post.text}


def _entities(text: str, words: Sequence[Word], prediction: Prediction) -> list[dict[str, Any]]:
    located = character_spans(prediction.spans, words)
    return [
        {"start": start, "end": end, "text": text[start:end], "label": label, "score": probability}
        for (start, end, label), probability in zip(located, prediction.probabilities, strict=True)
    ]


def _located(post: Post, span: tuple[int, int]) -> dict[str, Any]:
    start, end = post.words[span[0]].start, post.words[span[1] - 1].end
    return {"start": start, "end": end, "text": post.text[start:end]}


def _with_pair(post: Post, pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Record:
    head, tail = (words_of_characters(post.words, entity["start"], entity["end"]) for entity in pair)
    return dataclasses.replace(post.record, head=head, tail=tail)
