"""A model with all it needs to tag posts: tag set, tokenizer, sizes. What training evaluates and prediction restores.

:meth:`Tagger.to_meta` is the JSON object of a checkpoint, :meth:`Tagger.from_meta` its inverse: evaluation and
prediction read nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tmrjax import crf
from tmrjax.encoders.resnet import ResNetEncoder
from tmrjax.feature_cache import FeatureCache
from tmrjax.models import NUM_REGIONS, TMRForNER, model_from_dict, model_to_dict
from tmrjax.pipeline import (
    RELEASE_TAGS,
    Batches,
    BatchPlan,
    Example,
    FeatureSource,
    PictureSource,
    PixelSource,
    TextSettings,
    encode_records,
    picture_requests,
)
from tmrjax.records import Record
from tmrjax.sharding import shard_batch
from tmrjax.tagging import OUTSIDE, Span, TagSet, restore_tags, spans_from_tags
from tmrjax.train import make_predict_step

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Tags of all words of a post (O where a word was cut or has no piece), its strict spans and their probabilities.

    A probability is exact under the CRF: the share of all tag sequences, by weight, that have this very entity.
    """

    tags: list[str]
    spans: list[Span]
    probabilities: list[float]


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """Pixels of a picture: short side to ``resize``, centre crop to ``size``; regions are cropped, then ``size``²."""

    size: int = 224
    resize: int = 256


@dataclasses.dataclass(frozen=True)
class Tagger:
    """See the module. ``buckets``: lengths in word pieces that batches are padded to; each is compiled once.

    ``constrained``: decode under IOB2 (ours; the released code does not).
    """

    model: TMRForNER
    labels: TagSet
    tokenizer: Any
    text: TextSettings
    pictures: PictureSettings
    buckets: tuple[int, ...]
    constrained: bool = True

    def __post_init__(self):
        if max(self.buckets) < self.text.max_pieces:
            raise ValueError(f"the longest bucket {max(self.buckets)} is below max_pieces {self.text.max_pieces}")
        if self.model.num_tags != len(self.tags):
            raise ValueError(f"the model has {self.model.num_tags} tags, but its tag set {len(self.tags)}: {self.tags}")

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that the CRF runs over."""
        return RELEASE_TAGS if self.text.piece_tags else self.labels.tags

    # ------------------------------------------------------------------ checkpoints

    def to_meta(self) -> dict[str, Any]:
        """As JSON, the tokenizer included."""
        return {
            "model": model_to_dict(self.model),
            "labels": list(self.labels.labels),
            "tokenizer": tokenizer_to_json(self.tokenizer),
            "text": dataclasses.asdict(self.text),
            "pictures": dataclasses.asdict(self.pictures),
            "buckets": list(self.buckets),
            "constrained": self.constrained,
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Tagger:
        """The tagger of a checkpoint's JSON."""
        return cls(
            model=model_from_dict(meta["model"]),
            labels=TagSet(tuple(meta["labels"])),
            tokenizer=tokenizer_from_json(meta["tokenizer"]),
            text=TextSettings(**meta["text"]),
            pictures=PictureSettings(**meta["pictures"]),
            buckets=tuple(meta["buckets"]),
            constrained=meta["constrained"],
        )

    # ------------------------------------------------------------------ data

    def encode(self, records: Sequence[Record]) -> list[Example]:
        """Word pieces and tags of records."""
        return encode_records(records, self.tokenizer, self.labels, self.text)

    def pixels(self, root: Path) -> PictureSource | None:
        """Pictures below ``root`` as pixels; None for a model that reads text only."""
        if not self.model.prefixes:
            return None
        if self.model.resnet is None:
            raise ValueError(
                "this model has no ResNet, so it cannot read pictures: hand it feature maps through model.apply, or "
                "convert a state dict that holds one"
            )
        return PixelSource(root, self.model.prefixes, size=self.pictures.size, resize=self.pictures.resize)

    def features(
        self,
        root: Path,
        records: Sequence[Record],
        variables: Mapping[str, Any],
        directory: Path,
        *,
        dtype: str = "float32",
        progress: bool = True,
    ) -> PictureSource | None:
        """Pictures below ``root`` as maps of the frozen ResNet, computed once and kept in ``directory``."""
        if not self.model.prefixes:
            return None
        resnet = {name: variables[name]["picture_encoder"]["resnet"] for name in ("params", "batch_stats")}
        module = ResNetEncoder(self.model.resnet, self.model.dtype)

        @jax.jit
        def encode(pixels):
            maps, _ = module.apply(resnet, pixels, train=False)
            return maps.reshape(len(maps), -1, maps.shape[-1]).astype(jnp.float32)

        cache = FeatureCache.build(
            directory,
            picture_requests(records, root, self.model.prefixes),
            lambda pixels: np.asarray(encode(pixels)),
            weights_hash=tree_hash(resnet),
            size=self.pictures.size,
            resize=self.pictures.resize,
            dtype=dtype,
            progress=progress,
        )
        return FeatureSource(root, self.model.prefixes, cache)

    def dummy_batch(self) -> dict[str, np.ndarray]:
        """One row with every key in its right shape, pictures as pixels: to initialise or trace the model with."""
        length = min(self.buckets)
        batch = {
            "input_ids": np.zeros((1, length), np.int32),
            "attention_mask": np.ones((1, length), bool),
            "word_starts": np.zeros((1, length - 2), np.int32),
            "word_mask": np.ones((1, length - 2), bool),
            "phrase_ids": np.zeros((1, self.text.max_phrase_pieces + 2), np.int32),
            "phrase_mask": np.ones((1, self.text.max_phrase_pieces + 2), bool),
        }
        source = self.pixels(Path())
        if source is None:
            return batch
        batch |= {name: array[None] for name, array in source.empty().items()}
        for prefix in self.model.prefixes:
            batch[f"{prefix}image_mask"] = np.ones(1, bool)
            batch[f"{prefix}region_mask"] = np.ones((1, NUM_REGIONS), bool)
            batch[f"{prefix}scores"] = np.full((1, 3), 1 / 3, np.float32)
        return batch

    # ------------------------------------------------------------------ tagging

    def predict_step(self, mesh: Mesh) -> Callable[[Any, Mapping[str, Any]], dict[str, jax.Array]]:
        """The compiled step for :meth:`predict`; make it once and reuse it."""
        return make_predict_step(self.model, mesh, tags=self.tags if self.constrained else None)

    def predict(
        self,
        step: Callable,
        variables: Mapping[str, Any],
        examples: Sequence[Example],
        pictures: PictureSource | None,
        mesh: Mesh,
        *,
        batch_size: int,
        probabilities: bool = False,
        progress: Callable[[Iterator, int], Iterator] = lambda batches, _: batches,
    ) -> list[Prediction]:
        """Tag posts in the order of ``examples``; no post is dropped, whatever the batch size is.

        ``progress`` wraps the iterator of batches, given their number.
        """
        if not examples:
            return []
        plan = BatchPlan([len(example.pieces.input_ids) for example in examples], self.buckets, batch_size)
        batches = Batches(examples, plan, self.text, pictures, jax.process_index(), jax.process_count())
        results: list[Prediction | None] = [None] * len(examples)
        for indices, batch in progress(batches.iterate(), len(batches)):
            output = step(variables, shard_batch(batch, mesh))
            tags = np.asarray(output["tags"])
            chosen = [(row, index) for row, index in enumerate(indices) if index >= 0]
            spans = {}
            for row, index in chosen:
                example = examples[index]
                words = self._word_tags(tags[row], example)
                results[index] = Prediction(words, spans_from_tags(words, strict=True), [])
                spans[row] = [(example, span) for span in results[index].spans]
            if probabilities:
                found = self._span_probabilities(output, spans)
                for row, index in chosen:
                    results[index] = results[index]._replace(probabilities=found[row])
        return results

    def _positions(self, example: Example) -> list[int]:
        """Where the CRF scores the kept words: the words themselves, or their first pieces (R6)."""
        return example.pieces.word_starts if self.text.piece_tags else list(range(len(example.pieces.words)))

    def _word_tags(self, row: np.ndarray, example: Example) -> list[str]:
        known = set(self.labels.tags)
        tags = [self.tags[row[position]] for position in self._positions(example)]
        # PAD, X, [CLS] and [SEP] of the released tag set are no entities: the released code lets them become some.
        tags = [tag if tag in known else OUTSIDE for tag in tags]
        return restore_tags(tags, example.pieces.words, len(example.record.tokens))

    def _span_probabilities(self, output, spans: Mapping[int, list]) -> dict[int, list[float]]:
        """p(span) = Z(sequences with this span) / Z, all spans of a batch at once."""
        flat = [(row, example, span) for row, found in spans.items() for example, span in found]
        probabilities: dict[int, list[float]] = {row: [] for row in spans}
        if not flat:
            return probabilities
        length = output["mask"].shape[1]
        size = -(-len(flat) // 32) * 32  # a few static shapes
        rows = np.zeros(size, int)
        allowed = np.ones((size, length, len(self.tags)), bool)
        for i, (row, example, span) in enumerate(flat):
            rows[i] = row
            position = dict(zip(example.pieces.words, self._positions(example), strict=True))
            begin, inside = self.tags.index(f"B-{span.label}"), self.tags.index(f"I-{span.label}")
            for word in range(span.start, span.end):
                if word in position:
                    allowed[i, position[word]] = False
                    allowed[i, position[word], begin if word == span.start else inside] = True
            following = [place for word, place in position.items() if word >= span.end]
            if following:
                allowed[i, following[0], inside] = False
        emissions, mask, params = (jax.device_get(output[name]) for name in ("emissions", "mask", "crf"))
        for (row, _, _), value in zip(flat, _probability(emissions[rows], mask[rows], allowed, params), strict=False):
            probabilities[row].append(float(value))
        return probabilities


@jax.jit
def _probability(emissions, mask, allowed, params):
    constrained = crf.constrained_log_normalizer(emissions, mask, allowed, params)
    return jnp.minimum(jnp.exp(constrained - crf.log_normalizer(emissions, mask, params)), 1)


def tree_hash(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and values of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------- tokenizers

_SPECIAL_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(folder: Path):
    """The fast WordPiece tokenizer of a Hugging Face folder; its vocab.txt suffices."""
    from transformers import BertTokenizerFast

    folder = Path(folder)
    if not (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder}: no vocab.txt and no tokenizer.json; is it a Hugging Face BERT folder?")
    return BertTokenizerFast.from_pretrained(str(folder))


def tokenizer_to_json(tokenizer) -> dict[str, Any]:
    """A fast tokenizer as JSON."""
    special = {name: getattr(tokenizer, name) for name in _SPECIAL_TOKENS}
    return {"tokenizer": tokenizer.backend_tokenizer.to_str(), "special_tokens": special}


def tokenizer_from_json(saved: Mapping[str, Any]):
    """The tokenizer of :func:`tokenizer_to_json`, without any folder."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(saved["tokenizer"]), **saved["special_tokens"])
