"""From a config to a divergence estimator with weights: what mde.py needs before its loop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tmrjax import convert
from tmrjax.divergence import DivergenceEstimator
from tmrjax.divergence.pictures import PairPictureSettings
from tmrjax.divergence.pipeline import PairTextSettings
from tmrjax.divergence.system import Estimator
from tmrjax.encoders.joint.vilt import ViltConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.text.tokenizers import load_tokenizer

logger = logging.getLogger(__name__)


def text_folder(config: ConfigDict, corpus_root: Path) -> Path:
    """The folder of the tokenizer: the ViLT's, else the BERT's of the config, else the one beside the corpus."""
    for setting in (config.encoder, config.text_encoder):
        if setting.weights not in ("pretrained", "random"):
            raise ValueError(f"weights are {setting.weights!r}; expected 'pretrained' or 'random'")
    given = config.encoder.folder or config.text_encoder.folder
    folder = Path(given) if given else corpus_root / "text_encoder"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. Give a Hugging Face ViLT with --config.encoder.folder=DIR, or a BERT, whose "
            "tokenizer will be used, with --config.text_encoder.folder=DIR"
        )
    return folder


def build_estimator(config: ConfigDict, corpus_root: Path) -> Estimator:
    """The untrained model with its tokenizer and sizes."""
    folder = text_folder(config, corpus_root)
    tokenizer = load_tokenizer(folder)
    dropout = {
        "hidden_dropout_prob": config.model.dropout,
        "attention_probs_dropout_prob": 0.0,  # the authors' ViLT drops hidden states, never attention weights
    }
    if config.encoder.folder:
        found = convert.read_config(config.encoder.folder)
        vilt = ViltConfig.from_dict({**found, **dropout})
    else:
        sizes, pretrained = config.sizes, config.text_encoder.weights == "pretrained"
        vilt = ViltConfig(
            vocab_size=convert.read_config(folder)["vocab_size"] if pretrained else len(tokenizer),
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.intermediate,
            max_position_embeddings=config.data.max_pieces,
            image_size=sizes.grid_size,
            patch_size=sizes.patch,
            **dropout,
        )
    data = config.data
    return Estimator(
        model=DivergenceEstimator(
            vilt, config.model.variant, dtype=jnp.dtype(config.model.dtype), remat=config.model.remat
        ),
        tokenizer=tokenizer,
        texts=PairTextSettings(data.max_pieces, tuple(data.length_buckets)),
        pictures=PairPictureSettings(
            data.picture_size, data.picture_longest, divisor=vilt.patch_size, square=data.picture_square
        ),
    )


def initial_variables(config: ConfigDict, corpus_root: Path, estimator: Estimator) -> dict[str, Any]:
    """Parameters before the first step: random by seed, then those of the ViLT's or the BERT's folder."""
    model = estimator.model

    @jax.jit
    def initialise(key):
        return model.init(key, estimator.dummy_batch(), train=False)

    params = jax.tree.map(np.asarray, initialise(jax.random.key(config.seed)))["params"]
    if config.encoder.folder:
        if config.encoder.weights == "pretrained":
            loaded = convert.vilt_params(convert.read_state_dict(config.encoder.folder), model.vilt)
            # A baseline that sees the text only has no patches.
            params["vilt"] = {name: loaded[name] for name in params["vilt"]}
    elif config.text_encoder.weights == "pretrained":
        folder = text_folder(config, corpus_root)
        bert = BertConfig.from_dict(convert.read_config(folder))
        loaded = convert.bert_params(convert.read_state_dict(folder), bert)["embeddings"]
        params["vilt"]["text_embeddings"] = _text_embeddings(loaded, params["vilt"]["text_embeddings"], folder)
    return {"params": params}


def _text_embeddings(loaded: dict[str, Any], ours: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A BERT's text embeddings, its positions cut to the estimator's number; raises ValueError where widths differ."""
    loaded["position"]["embedding"] = loaded["position"]["embedding"][: len(ours["position"]["embedding"])]
    theirs, here = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (loaded, ours))
    different = [
        f"{path} {theirs[path].shape}, here {leaf.shape}"
        for path, leaf in here.items()
        if theirs[path].shape != leaf.shape
    ]
    if different:
        raise ValueError(
            f"{folder}: its text embeddings do not fit the estimator ({'; '.join(different)}); set "
            "--config.sizes.hidden to its width, or --config.text_encoder.weights=random"
        )
    return loaded
