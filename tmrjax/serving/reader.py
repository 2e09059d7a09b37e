"""An exported folder read and run: posts in, entities or relations out, by its programs alone.

This module and what it imports are copied into every exported folder (:mod:`tmrjax.serving.folder`), where they are
run without the rest of the package: no flax, no methods, no encoders. It needs jax, numpy, pillow, regex, tqdm,
safetensors, flatbuffers and tokenizers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

from tmrjax.files import DataError, parse_json, read_bytes
from tmrjax.inputs.base import Example, Input, Reading, encode_records
from tmrjax.inputs.batching import BatchPlan
from tmrjax.inputs.collate import Collator
from tmrjax.inputs.pictures import Pictures, PixelSource
from tmrjax.inputs.pieces import windows_of
from tmrjax.inputs.settings import TextSettings
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.prediction.posts import Given, Post, PostError, PostOptions, PostPictures, id_of, located, read_post
from tmrjax.records.schema import DatasetInfo
from tmrjax.serving.plain_tokenizer import PlainTokenizer
from tmrjax.text.tags import allow_only, character_spans, scored_tags, spans_from_tags

FORMAT = 1
MANIFEST = "serving.json"
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
SCORES = {"ner": "emissions", "re": "logits"}  # what a model program calls a method's scores
CRF = ("transitions", "start_transitions", "end_transitions")
_SPANS_AT_ONCE = 32  # one static shape for each length


class FolderError(ValueError):
    """An exported folder that is damaged, incomplete, or of another version."""


def check_packages() -> None:
    """Raise ValueError where flatbuffers lacks, which jax.export needs to write and to read a program."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("programs are written and read with flatbuffers: pip install flatbuffers ('tmrjax[serving]')")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, every file that it names checked against its SHA-256.

    Raises :class:`FolderError`: there is none, it is of another version, or a file lacks or is another one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FolderError(f"{folder}: no {MANIFEST}; export.py --format=stablehlo writes such folders, copy it again")
    try:
        manifest = parse_json(read_bytes(path), str(path))
    except DataError as error:
        raise FolderError(f"{path}: damaged ({error.found}); copy the folder again") from error
    found = manifest.get("serving_format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise FolderError(
            f"{path}: serving format {found!r}, but this reader reads {FORMAT}: run the folder's own run.py, or export "
            "the model again"
        )
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise FolderError(f"{folder / name}: missing; copy the folder again")
        with (folder / name).open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != expected:
            raise FolderError(
                f"{folder / name}: its SHA-256 is {actual}, but {MANIFEST} says {expected}; copy the folder again"
            )
    return manifest


class ServedModel:
    """A folder of :func:`tmrjax.serving.folder.write_serving`, ready to read posts.

    Attributes:
        manifest: the folder's JSON. text, inputs: how a post becomes integers.
        temperature: T > 0 that scores are divided by before they become probabilities.
    """

    def __init__(self, folder: Path, *, calibrated: bool = False):
        """Read and check a folder; ``calibrated``: scores at the temperature that was fitted on dev.

        Raises :class:`FolderError`, and ValueError for ``calibrated`` where no temperature was fitted or where
        flatbuffers is not installed.
        """
        check_packages()
        self.folder, self.manifest = Path(folder), read_manifest(Path(folder))
        manifest = self.manifest
        if calibrated and manifest["temperature"] is None:
            raise ValueError(f"{folder}: no temperature was fitted; leave out calibrated")
        self.temperature = manifest["temperature"] if calibrated else 1.0
        self.text = TextSettings(**manifest["text"])
        self.inputs = tuple(_input(described) for described in manifest["inputs"])
        self.settings = PictureSettings(**manifest["pictures"])
        tokenizer = None
        if TOKENIZER in manifest["files"]:
            content = (self.folder / TOKENIZER).read_text(encoding="utf-8")
            tokenizer = PlainTokenizer(content, manifest["special_tokens"])
        self.reading = Reading(tokenizer, self.text)
        self._programs: dict[str, Any] = {}
        self.weights = {name: jax.device_put(value) for name, value in load_file(self.folder / WEIGHTS).items()}

    def program(self, name: str) -> Any:
        """A program of the folder, compiled for each new batch size once."""
        if name not in self._programs:
            content = (self.folder / f"{name}.stablehlo").read_bytes()
            self._programs[name] = jax.jit(export.deserialize(bytearray(content)).call)
        return self._programs[name]

    def outcomes(
        self,
        posts: Iterable[Given],
        *,
        root: Path = Path(),
        batch_size: int = 16,
        chunk: int = 256,
        allow_outside: bool = False,
    ) -> Iterator[tuple[Given, dict[str, Any] | PostError]]:
        """Each post with its result or its error, in order and in constant memory: ``chunk`` posts are read ahead.

        Results are those of :class:`tmrjax.predict.Predictor`. For relations each post names its ``head`` and ``tail``.
        """
        options = PostOptions(root, allow_outside, self.text.word_splitting, self.manifest["joiner"])
        posts, first = iter(posts), 0
        while some := list(itertools.islice(posts, chunk)):
            yield from zip(some, self._chunk(some, first, options, batch_size), strict=True)
            first += len(some)

    def _chunk(
        self, given: Sequence[Given], first: int, options: PostOptions, batch_size: int
    ) -> list[dict[str, Any] | PostError]:
        task, labels = self.manifest["task"], tuple(self.manifest["labels"])
        info = DatasetInfo(name="posts", task=task, labels=labels)
        posts: dict[int, Post] = {}
        examples: dict[int, Example] = {}
        errors: dict[int, DataError] = {}
        for index, one in enumerate(given):
            try:
                if one.error is not None:
                    raise one.error
                post = read_post(one.post, info, where=one.where, options=options)
                if task == "re" and post.pair is None:
                    raise DataError(one.where, "neither 'head' nor 'tail'", "two spans", "Give both.")
                if post.pair:
                    head, tail = post.pair
                    post = post._replace(record=dataclasses.replace(post.record, head=head, tail=tail))
                (examples[index],) = encode_records([post.record], self.inputs, self.reading)
                posts[index] = post
            except DataError as error:
                errors[index] = error
        asked = next((one for one in self.inputs if isinstance(one, Pictures)), None)
        pictures = None
        if asked is not None:
            given_pictures = {post.record.id: post.pictures for post in posts.values()}
            pictures = PostPictures(PixelSource(options.root, asked, self.settings), given_pictures)
        answers = self._run(examples, pictures, batch_size)
        for index, post in posts.items():
            failure = pictures.errors.get(post.record.id) if pictures else None
            if failure is not None:
                errors[index] = failure
        return [
            PostError(first + index, id_of(one.post), errors[index])
            if index in errors
            else self._result(posts[index], examples[index], answers[index])
            for index, one in enumerate(given)
        ]

    def _result(self, post: Post, example: Example, found: Any) -> dict[str, Any]:
        result = {"id": post.id, "text": post.text}
        if self.manifest["task"] == "ner":
            spans = character_spans([span for span, _ in found], post.words)
            result["entities"] = [
                {"start": start, "end": end, "text": post.text[start:end], "label": label, "score": probability}
                for (start, end, label), (_, probability) in zip(spans, found, strict=True)
            ]
        else:
            head, tail = (located(post, span) for span in post.pair)
            relation, probability = found
            result["relations"] = [{"head": head, "tail": tail, "relation": relation, "score": probability}]
        result["masked"] = [name for one in self.inputs for name in one.lacking(post.record)]
        result |= {"unread_words": len(example.pieces.cut), "unknown_words": len(example.pieces.unknown)}
        return result | ({"unread_pairs": 0} if "relations" in result else {}) | post.carried

    # ------------------------------------------------------------------ the programs

    def _run(self, examples: Mapping[int, Example], pictures: Any, batch_size: int) -> dict[int, Any]:
        """What is found in each post: (span, probability) pairs, or one (relation, probability)."""
        ner, rows, found, parts = self.manifest["task"] == "ner", [], {}, {}
        for index, example in examples.items():
            in_windows = ner and self.inputs[0].windows
            windows = windows_of(example, self.text) if in_windows else [example]
            rows += [(index, number, len(windows), window) for number, window in enumerate(windows)]
        if not rows:
            return {}
        collate = Collator(self.inputs, Reading(None, self.text, pictures))
        plan = BatchPlan([len(row[3].pieces.input_ids) for row in rows], self.manifest["buckets"], batch_size)
        for step in range(len(plan)):
            length, numbers = plan[step]
            batch = collate([rows[number][3] if number >= 0 else None for number in numbers], length)
            output = jax.device_get(self.program(f"model_{length}")(self.weights, batch))
            present = {row: rows[number] for row, number in enumerate(numbers) if number >= 0}
            if not ner:
                found |= {index: self._relation(output, row) for row, (index, *_) in present.items()}
                continue
            whole = {row: one for row, one in present.items() if one[2] == 1}
            entities = self._entities(output, {row: window for row, (*_, window) in whole.items()})
            found |= {index: entities[row] for row, (index, *_) in whole.items()}
            for row, (index, number, count, window) in present.items():
                if count == 1:
                    continue
                parts.setdefault(index, {})[number] = output["emissions"][row, : len(window.pieces.words)]
                if len(parts[index]) == count:
                    scores = [part for _, part in sorted(parts.pop(index).items())]
                    found[index] = self._entities(self._joined(output, scores), {0: examples[index]})[0]
        return found

    def _joined(self, output: Mapping[str, Any], scores: Sequence[np.ndarray]) -> dict[str, Any]:
        """The output for one post from the emissions of its windows, padded to a power of two: few shapes."""
        emissions = np.concatenate(scores)
        words = len(emissions)
        length = max(64, 1 << (words - 1).bit_length())
        emissions = np.pad(emissions, ((0, length - words), (0, 0)))[None]
        mask, chain = (np.arange(length) < words)[None], {name: output[name] for name in CRF}
        tags = np.asarray(self.program("decode")(emissions, mask, chain))
        return {**chain, "tags": tags, "emissions": emissions, "mask": mask}

    def _entities(self, output: Mapping[str, Any], rows: Mapping[int, Example]) -> dict[int, list]:
        """(span, probability) of the entities of each row; a probability is exact under the CRF."""
        tags, labels = self.manifest["tags"], self.manifest["labels"]
        found: dict[int, list] = {}
        asked = []
        for row, example in rows.items():
            pieces = example.pieces
            positions = pieces.word_starts if self.text.piece_tags else list(range(len(pieces.words)))
            scored = [tags[output["tags"][row, position]] for position in positions]
            words = scored_tags(scored, pieces.words, len(example.record.tokens), labels)
            found[row] = []
            asked += [(row, span, pieces.words, positions) for span in spans_from_tags(words, strict=True)]
        chain = {name: output[name] / np.float32(self.temperature) for name in CRF}
        for start in range(0, len(asked), _SPANS_AT_ONCE):
            some = asked[start : start + _SPANS_AT_ONCE]
            numbers = np.zeros(_SPANS_AT_ONCE, int)
            numbers[: len(some)] = [row for row, *_ in some]
            allowed = np.ones((_SPANS_AT_ONCE, output["mask"].shape[1], len(tags)), bool)
            for place, (_, span, words, positions) in zip(allowed, some, strict=False):
                allow_only(span, words, positions, tags, place)
            emissions = output["emissions"][numbers] / np.float32(self.temperature)
            values = self.program("probability")(emissions, output["mask"][numbers], allowed, chain)
            for (row, span, *_), value in zip(some, np.asarray(values), strict=False):
                found[row].append((span, float(value)))
        return found

    def _relation(self, output: Mapping[str, Any], row: int) -> tuple[str, float]:
        """The most probable relation and its probability, at the temperature."""
        scores = output["logits"][row] / np.float32(self.temperature)
        weights = np.exp(scores - scores.max())
        best = int(output["probabilities"][row].argmax())
        return self.manifest["labels"][best], float(weights[best] / weights.sum())


def _input(described: Mapping[str, Any]) -> Input:
    """An input of the manifest: its class beside this module, its options, what it learned of the training text."""
    package = __name__.partition(".")[0]
    kind = getattr(importlib.import_module(f"{package}.{described['module']}"), described["class"])
    made = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in described["options"].items()})
    return made if described["fitted"] is None else made.from_meta(described["fitted"])
