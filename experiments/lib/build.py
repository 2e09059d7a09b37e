"""From a config to a model with weights: what an experiment needs before its loop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.lib.settings import buckets_of
from tmrjax import convert
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.inputs.examples import RELEASE_TAGS, TextSettings
from tmrjax.models import model_from_dict
from tmrjax.predict import READERS
from tmrjax.records import Dataset
from tmrjax.tasks.system import PictureSettings, Reader
from tmrjax.text.splitting import splitting_of_tokens
from tmrjax.text.tags import TagSet
from tmrjax.text.tokenizers import load_tokenizer

logger = logging.getLogger(__name__)


def encoder_folder(setting: ConfigDict, dataset: Dataset, default: str) -> Path:
    """The folder of an encoder: the config's, or the one that came with the data set."""
    folder = Path(setting.folder) if setting.folder else dataset.root / default
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no config.json. Give a Hugging Face folder with --config.{default}.folder=DIR"
            if setting.folder
            else f"no encoder was given and {folder} does not exist: use --config.{default}.folder=DIR"
        )
    return folder


def build_reader(config: ConfigDict, dataset: Dataset) -> Reader:
    """The untrained model with its labels, tokenizer and sizes."""
    if dataset.info.task != config.task:
        raise ValueError(
            f"{dataset.root}: a data set for {dataset.info.task!r}, but this experiment is {config.task!r}"
        )
    text_folder = encoder_folder(config.text_encoder, dataset, "text_encoder")
    resnet = None
    if config.model.variant != "text":
        folder = encoder_folder(config.picture_encoder, dataset, "picture_encoder")
        resnet = ResNetConfig.from_dict(convert.read_config(folder))
    if config.data.feature_cache and resnet is not None and not config.model.freeze_pictures:
        raise ValueError(
            "data.feature_cache keeps the maps of a frozen ResNet: set --config.model.freeze_pictures=True"
        )
    # E(u) of the released tagger belongs to absolute positions of word pieces, and tags stand on pieces.
    pieces = config.task == "ner" and config.model.variant == "release"
    bert = BertConfig.from_dict(convert.read_config(text_folder))
    for key, length in (("max_pieces", 0), ("max_phrase_pieces", 2)):  # a phrase gets [CLS] and [SEP] besides
        if config.data[key] + length > bert.max_position_embeddings:
            raise ValueError(
                f"--config.data.{key} is {config.data[key]}, but {text_folder} reads at most "
                f"{bert.max_position_embeddings - length} word pieces (max_position_embeddings of its config.json)"
            )
    sizes = {"bert": bert, "resnet": resnet}
    options: dict[str, Any] = {}
    if config.task == "ner":
        sizes["num_tags"] = len(RELEASE_TAGS if pieces else TagSet(dataset.info.labels))
        sizes["release_length"] = config.data.max_pieces if pieces else None
        options["constrained"] = config.constrained_decoding and not pieces
    else:
        sizes["num_relations"] = len(dataset.info.labels)
    return READERS[config.task](
        model=model_from_dict(config.task, config.model.to_dict() | sizes),
        labels=dataset.info.labels,
        tokenizer=load_tokenizer(text_folder),
        text=TextSettings(
            config.data.max_pieces,
            config.data.max_phrase_pieces,
            piece_tags=pieces,
            windows=config.data.windows and not pieces,
            window_overlap=config.data.window_overlap,
            word_splitting=word_splitting(config, dataset),
        ),
        pictures=PictureSettings(config.data.picture_size, config.data.picture_resize),
        buckets=(config.data.max_pieces,) if pieces else buckets_of(config.data),
        **options,
    )


def word_splitting(config: ConfigDict, dataset: Dataset) -> str:
    """How raw text will be split: as the training data are, or as the config says."""
    if config.data.word_splitting != "auto":
        return config.data.word_splitting
    return splitting_of_tokens(record.tokens for record in dataset.splits["train"])


def initial_variables(config: ConfigDict, dataset: Dataset, reader: Reader) -> dict[str, Any]:
    """Parameters and BatchNorm statistics before the first step: random by seed, encoders from their folders."""
    model = reader.model

    @jax.jit
    def initialise(key):
        return model.init(key, reader.dummy_batch(), train=False)

    variables = jax.tree.map(np.asarray, initialise(jax.random.key(config.seed)))
    params, statistics = variables["params"], variables.get("batch_stats", {})
    if config.text_encoder.weights == "pretrained":
        folder = encoder_folder(config.text_encoder, dataset, "text_encoder")
        params["bert"] = convert.bert_params(convert.read_state_dict(folder), model.bert)
    if model.resnet is not None and config.picture_encoder.weights == "pretrained":
        folder = encoder_folder(config.picture_encoder, dataset, "picture_encoder")
        loaded = convert.resnet_params(convert.read_state_dict(folder), model.resnet)
        params["picture_encoder"]["resnet"] = loaded["params"]
        statistics["picture_encoder"]["resnet"] = loaded["batch_stats"]
    return {"params": params, "batch_stats": statistics}
