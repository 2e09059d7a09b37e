"""From a config to a method with weights: what an experiment on posts needs before its loop."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.lib.settings import buckets_of
from tmrjax import convert
from tmrjax.encoders.folders import Folder, resolve
from tmrjax.encoders.open import grow_vocabulary, parameter_name, picture_config, text_config
from tmrjax.files import parse_json
from tmrjax.inputs.base import Input
from tmrjax.inputs.labels import RELEASE_TAGS
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods import find_method, name_of
from tmrjax.methods.base import SIZES, Method, method_from_dict
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Dataset
from tmrjax.tasks import SYSTEMS
from tmrjax.tasks.system import System
from tmrjax.text.marking import add_markers
from tmrjax.text.splitting import splitting_of_tokens
from tmrjax.text.tags import TagSet
from tmrjax.text.tokenizers import load_tokenizer
from tmrjax.text.vectors import WordVectors, read_word_vectors

logger = logging.getLogger(__name__)


def encoder_folder(setting: ConfigDict, dataset: Dataset, default: str, revision: str | None = None) -> Folder:
    """The folder of an encoder: the config's folder or hub name, or the folder that came with the data set.

    ``revision``: of a hub name that was resolved before; the config's unless given.
    """
    own = dataset.root / default
    if not setting.folder and not own.is_dir():
        raise FileNotFoundError(
            f"no encoder was given and {own} does not exist: use --config.{default}.folder=DIR, or a name of the "
            "Hugging Face hub"
        )
    folder = resolve(setting.folder or own, revision=revision or setting.revision or None)
    if not (folder.path / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder.path}: no config.json. Give a Hugging Face folder with --config.{default}.folder=DIR"
        )
    return folder


def _origin(folder: Folder) -> dict[str, Any]:
    """What a checkpoint keeps of where an encoder came from."""
    return {"name": folder.name, "revision": folder.revision}


def build_system(config: ConfigDict, dataset: Dataset) -> System:
    """The untrained method with its labels, tokenizer, vocabularies and sizes.

    Raises:
        ValueError: settings that do not go together, or an unknown method.
        DataError: the method asks for an input that no training record has.
    """
    if dataset.info.task != config.task:
        raise ValueError(
            f"{dataset.root}: a data set for {dataset.info.task!r}, but this experiment is {config.task!r}"
        )
    kind = find_method(config.method, config.task)
    labels = dataset.info.labels
    sizes: dict[str, Any] = {"num_labels": len(labels), "max_pieces": config.data.max_pieces}
    method = _method(kind, config, sizes)
    if config.task == "ner":
        sizes["num_labels"] = len(RELEASE_TAGS if method.piece_tags else TagSet(labels))
    tokenizer, encoders, pictures = None, {}, PictureSettings()
    if method.inputs[0].specials:
        folder = encoder_folder(config.text_encoder, dataset, "text_encoder")
        text = text_config(convert.read_config(folder.path))
        _check_lengths(config, text.max_length, folder.path)
        tokenizer, added = load_tokenizer(folder.path), 0
        if config.task == "re":
            tokenizer, added = add_markers(tokenizer)
        sizes["text"] = dataclasses.replace(text, vocab_size=max(text.vocab_size, len(tokenizer)))
        encoders["text"] = {**_origin(folder), "added_tokens": added}
    if method.pictures is not None:
        if config.data.feature_cache and not config.model.freeze_pictures:
            raise ValueError(
                "data.feature_cache keeps the maps of a frozen ResNet: set --config.model.freeze_pictures=True"
            )
        folder = encoder_folder(config.picture_encoder, dataset, kind.picture_folder)
        sizes["picture"] = picture_config(convert.read_config(folder.path))
        pictures, encoders["picture"] = picture_settings(config, folder.path), _origin(folder)
    fitted = tuple(one.fit(dataset.splits["train"]) for one in method.inputs)
    vectors = word_vectors(config, dataset, fitted)
    if vectors is not None:
        fitted = tuple(vectors.extend(one) for one in fitted)
        sizes["word_size"], encoders["words"] = vectors.width, vectors.origin(fitted)
    elif any(hasattr(one, "table") for one in fitted):
        encoders["words"] = None
        logger.warning("no word vectors were given (--config.word_vectors.file=FILE): the word table begins at random")
    for one in fitted:
        sizes |= one.sizes()
    # E(u) of the released tagger belongs to absolute positions of word pieces, and tags stand on pieces.
    pieces = method.piece_tags
    system = SYSTEMS[config.task](
        method=_method(kind, config, sizes),
        labels=labels,
        tokenizer=tokenizer,
        text=TextSettings(
            config.data.max_pieces,
            config.data.max_phrase_pieces,
            piece_tags=pieces,
            windows=config.data.windows and not pieces,
            window_overlap=config.data.window_overlap,
            word_splitting=word_splitting(config, dataset),
        ),
        pictures=pictures,
        buckets=(config.data.max_pieces,) if pieces else buckets_of(config.data),
        fitted=fitted,
        encoders=encoders,
        **({"constrained": config.constrained_decoding and not pieces} if config.task == "ner" else {}),
    )
    system.check(dataset.splits["train"], dataset.root)
    return system


def _method(kind: type[Method], config: ConfigDict, sizes: dict[str, Any]) -> Method:
    """The method with the config's options and those of the sizes that it has."""
    fields = {field.name for field in dataclasses.fields(kind)}
    options = config.model.to_dict()
    unknown = sorted(set(options) - fields | set(options) & set(SIZES))
    if unknown:
        raise ValueError(
            f"config.model has {', '.join(unknown)}, which the method {name_of(kind)} does not have: make the config "
            f"for it, get_config(NAME, method={config.method!r})"
        )
    return method_from_dict(kind, options | {name: size for name, size in sizes.items() if name in fields})


def _check_lengths(config: ConfigDict, longest: int, folder: Path) -> None:
    for key, length in (("max_pieces", 0), ("max_phrase_pieces", 2)):  # a phrase gets [CLS] and [SEP] besides
        if config.data[key] + length > longest:
            raise ValueError(
                f"--config.data.{key} is {config.data[key]}, but {folder} reads at most {longest - length} word "
                "pieces (max_position_embeddings of its config.json)"
            )


def picture_settings(config: ConfigDict, folder: Path) -> PictureSettings:
    """The preprocessing that the encoder's preprocessor_config.json describes, with what the config says besides."""
    file = folder / "preprocessor_config.json"
    described = parse_json(file.read_bytes(), str(file)) if file.is_file() else None
    sizes = {"size": config.data.picture_size, "resize": config.data.picture_resize}
    return dataclasses.replace(
        PictureSettings.from_processor(described, reducing_gap=config.data.picture_reducing_gap),
        **{name: size for name, size in sizes.items() if size},
    )


def word_vectors(config: ConfigDict, dataset: Dataset, fitted: Sequence[Input]) -> WordVectors | None:
    """The vectors for the words of the data set: the config's file, or the one that came with the data set.

    None where no input of the method looks words up, or there is no file.
    """
    tables = [one for one in fitted if hasattr(one, "table")]
    own = dataset.root / "word_vectors" / "vectors.txt"
    if not tables or not (config.word_vectors.file or own.is_file()):
        return None
    # Of words those of the data: the same before and after the vocabulary has grown, so the file is read once.
    wanted = {entry for one in tables if not hasattr(one, "entry") for entry in one.vocabulary.entries}
    lookup = next((one for one in tables if hasattr(one, "entry")), None)
    if lookup is not None:
        wanted |= {lookup.entry(token) for records in dataset.splits.values() for r in records for token in r.tokens}
    return read_word_vectors(config.word_vectors.file or own, wanted, config.word_vectors.most_frequent)


def word_splitting(config: ConfigDict, dataset: Dataset) -> str:
    """How raw text will be split: as the training data are, or as the config says."""
    if config.data.word_splitting != "auto":
        return config.data.word_splitting
    return splitting_of_tokens(record.tokens for record in dataset.splits["train"])


def initial_variables(config: ConfigDict, dataset: Dataset, system: System) -> dict[str, Any]:
    """Parameters and BatchNorm statistics before the first step: random by seed, encoders from their folders."""
    method = system.method

    @jax.jit
    def initialise(key):
        return method.init(key, system.dummy_batch(), train=False)

    variables = jax.tree.map(np.asarray, initialise(jax.random.key(config.seed)))
    params, statistics = variables["params"], variables.get("batch_stats", {})
    if method.text is not None and config.text_encoder.weights == "pretrained":
        # The commit whose config the method was built from, though the hub's main branch may have moved on since.
        revision = system.encoders["text"]["revision"]
        folder = encoder_folder(config.text_encoder, dataset, "text_encoder", revision).path
        own = text_config(convert.read_config(folder))
        loaded = convert.text_params(convert.read_state_dict(folder), own)
        # Special tokens that the vocabulary did not have are new rows of the word table.
        params[method.text_name], _ = grow_vocabulary(loaded, own, method.text.vocab_size, config.seed)
    if method.picture is not None and config.picture_encoder.weights == "pretrained":
        revision = system.encoders["picture"]["revision"]
        folder = encoder_folder(config.picture_encoder, dataset, method.picture_folder, revision).path
        loaded = convert.picture_variables(convert.read_state_dict(folder), method.picture)
        if method.picture_name != "picture_encoder":
            params[method.picture_name] = loaded["params"]
        else:
            name = parameter_name(method.picture)
            params["picture_encoder"][name] = loaded["params"]
            if loaded.get("batch_stats"):
                statistics["picture_encoder"][name] = loaded["batch_stats"]
    vectors = word_vectors(config, dataset, system.fitted)
    for one in system.fitted if vectors is not None else ():
        if getattr(one, "table", None) in params:
            params[one.table]["embedding"] = vectors.fill(one.vocabulary, params[one.table]["embedding"])
    return {"params": params, "batch_stats": statistics}
