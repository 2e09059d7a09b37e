"""Turn the authors' released weights into a checkpoint: of NER or RE for evaluate.py and predict.py, of the divergence
estimator for score_divergence.py and evaluate_mde.py.

python data_prep/convert_release.py --weights=NER.pth --vocabulary=BERT_DIR --out=WORKDIR [--data=DATASET]
python data_prep/convert_release.py --weights=RE.pth --relations=ours_rel2id.json --vocabulary=BERT_DIR --out=WORKDIR
python data_prep/convert_release.py --weights=MDE.pth --estimator --vocabulary=BERT_DIR --out=WORKDIR [--data=CORPUS]

The released file has no tokenizer: --vocabulary names the folder of the BERT it was trained from (vocab.txt suffices).
Safetensors are read without torch; a .pth needs the extra `release` and is read with weights_only, never unpickled.

The checkpoint keeps the inputs that the released weights were trained on; evaluation and prediction use them:
phrases (NER: [CLS], 3 pieces, [SEP]; RE: 6 whole words), whole pictures (NER: torchvision's resize and centre crop; RE:
blue, green, red, 0 to 255, squashed by area), regions (torchvision's resize and centre crop of what the box holds).

--missing=zeros puts zeros in the place of missing pictures and regions and, for NER, of every region of a generated
picture, as the authors' code did in training. The default, mask, gives what is missing no influence.

Differences that are left: a post that is too long ends behind a whole word (NER; there in the middle of one) or is read
through a window around both entities (RE; there it is cut), and transparent pictures are laid over white (RE; there
transparency is dropped). Their RE code stops at a missing whole picture, so that zeros stood for regions only.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.convert_weights import load_pickled
from data_prep.importing.release_files import read_relations
from tmrjax import convert
from tmrjax.convert import mde_from_release, ner_from_release, re_from_release
from tmrjax.divergence.pictures import PairPictureSettings
from tmrjax.divergence.pipeline import PairTextSettings
from tmrjax.divergence.system import Estimator
from tmrjax.files import sha256
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods.base import Method
from tmrjax.pictures.preprocessing import MISSING, PictureSettings
from tmrjax.tasks.entities import Tagger
from tmrjax.tasks.relations import RelationClassifier
from tmrjax.tasks.system import System
from tmrjax.text.tokenizers import load_tokenizer
from tmrjax.training.checkpoints import BEST, CheckpointStore, package_versions

logger = logging.getLogger(__name__)

# Entity types in the order of the released tag set (tmrjax/methods/tmr_release.py).
RELEASE_LABELS = ("MISC", "PER", "ORG", "LOC")
RE_PIECES = 128  # as many word pieces as the authors read

# What the authors' scripts train by default.
AUTHORS = {
    "ner": "bert-large-uncased (24 layers of 1024) with ResNet-101",
    "re": "bert-base-uncased (12 layers of 768) with ResNet-50",
}

# Inputs of the released code. NER: encode_plus(max_length=5); RE: six whole words, pictures as cv2.imread gives them.
RELEASED_PHRASES = {"ner": ("release_pieces", 3), "re": ("release_words", 6)}
RELEASED_WHOLE = {"ner": "torchvision", "re": "area_bgr"}


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """A state dict from .safetensors, or from .pth by torch with weights_only.

    Raises ImportError, naming the extra, without torch; ValueError where the file is no dict of tensors.
    """
    if path.suffix == ".safetensors" or path.is_dir():
        return convert.read_state_dict(path)
    loaded = load_pickled(path)
    return {name.removeprefix("module."): tensor.float().numpy() for name, tensor in loaded.items()}


def convert_release(
    weights: Path,
    vocabulary: Path,
    out: Path,
    *,
    relations: Path | None = None,
    data: str = "",
    max_phrase_pieces: int | None = None,
    num_attention_heads: int | None = None,
    missing: str = "mask",
) -> System:
    """Write the checkpoint; returns the system in it.

    With ``relations``, the released file that numbers them, the weights are those of RE. ``data``: the data set that
    evaluate.py takes by default. ``max_phrase_pieces``: 3 pieces for NER, 6 words for RE unless given. ``missing``: one
    of :data:`tmrjax.pictures.preprocessing.MISSING`.
    """
    task = "ner" if relations is None else "re"
    restore = ner_from_release if task == "ner" else re_from_release
    model, variables = restore(read_weights(weights), num_attention_heads=num_attention_heads)
    phrases, length = RELEASED_PHRASES[task]
    text = TextSettings(
        max_pieces=model.release_length if task == "ner" else RE_PIECES,
        max_phrase_pieces=max_phrase_pieces or length,
        piece_tags=task == "ner",
        phrases=phrases,
    )
    pictures = PictureSettings(
        whole=RELEASED_WHOLE[task],
        regions="torchvision",
        missing=missing,
        generated_regions=not (task == "ner" and missing == "zeros"),
    )
    shared = {
        "method": model.method(),
        "tokenizer": _tokenizer(vocabulary, model.bert.vocab_size),
        "text": text,
        "pictures": pictures,
        "buckets": (text.max_pieces,),
    }
    if task == "ner":  # unconstrained: exact to the released decoding
        system: System = Tagger(labels=RELEASE_LABELS, constrained=False, **shared)
    else:
        system = RelationClassifier(labels=tuple(read_relations(relations)), **shared)
    config = {"data": {"root": data, "on_error": "raise", "feature_cache": False}, "eval_batch_size": 16}
    source = {"authors": AUTHORS[task], "encoders": encoders_of(system.method)}
    _save(out, weights, config, system.to_meta(), variables, source)
    return system


def encoders_of(method: Method) -> str:
    """The sizes of a model's encoders in words, to be held against AUTHORS."""
    bert, resnet = method.text, method.picture
    text = f"BERT with {bert.num_hidden_layers} layers of {bert.hidden_size}, {bert.vocab_size:,} word pieces"
    if resnet is None:
        return f"{text}; no ResNet in the file: feature maps only"
    convolutions = (3 if resnet.layer_type == "bottleneck" else 2) * sum(resnet.depths)
    return f"{text}; ResNet-{convolutions + 2}"  # its stem and its classifier count as well


def convert_estimator(
    weights: Path, vocabulary: Path, out: Path, *, data: str = "", num_attention_heads: int | None = None
) -> Estimator:
    """Write the checkpoint of the released divergence estimator; returns it. ``data``: the corpus to evaluate on."""
    model, variables = mde_from_release(read_weights(weights), num_attention_heads=num_attention_heads)
    vilt = model.vilt
    estimator = Estimator(
        model=model,
        tokenizer=_tokenizer(vocabulary, vilt.vocab_size),
        texts=PairTextSettings(vilt.max_position_embeddings),
        # As ViLT's own processor: the long side is 1333 / 800 of the short one at most.
        pictures=PairPictureSettings(vilt.image_size, int(1333 / 800 * vilt.image_size), divisor=vilt.patch_size),
    )
    config = {"data": {"root": data}, "eval_batch_size": 16, "mode": "the authors"}
    _save(out, weights, config, estimator.to_meta(), variables)
    return estimator


def _inputs(system: System) -> str:
    """The inputs that the checkpoint keeps, in one line."""
    text, pictures = system.text, system.pictures
    unit = "whole words" if text.phrases == "release_words" else "word pieces between [CLS] and [SEP]"
    missing = "have no influence" if pictures.missing == "mask" else "are zeros, as in the authors' training"
    if not pictures.generated_regions:
        missing += ", and so are all regions of generated pictures"
    return (
        f"phrases as {text.max_phrase_pieces} {unit}, whole pictures {pictures.whole}, regions {pictures.regions}; "
        f"missing pictures and regions {missing}"
    )


def _tokenizer(vocabulary: Path, pieces: int) -> Any:
    tokenizer = load_tokenizer(vocabulary)
    if len(tokenizer) > pieces:
        raise ValueError(
            f"{vocabulary} has {len(tokenizer)} word pieces, but the weights {pieces}: give the vocabulary of the "
            "BERT that the model was trained from"
        )
    if len(tokenizer) < pieces:
        logger.warning(
            "%s has %d word pieces, the weights %d: the BERT that a model was trained from has as many as its weights. "
            "With another vocabulary the model reads other words",
            vocabulary, len(tokenizer), pieces,
        )  # fmt: skip
    if not getattr(tokenizer, "do_lower_case", True):
        logger.warning("%s keeps upper case, but the authors' models were trained from uncased BERTs", vocabulary)
    return tokenizer


def _save(
    out: Path,
    weights: Path,
    config: dict[str, Any],
    described: dict[str, Any],
    variables: Any,
    source: dict[str, Any] | None = None,
) -> None:
    """A workdir with one checkpoint, whose source is the released file."""
    meta = {
        "config": config,
        "dataset": None,
        "versions": package_versions(),
        "source": {
            "file": weights.name,
            "sha256": sha256(weights.read_bytes()) if weights.is_file() else None,
            **(source or {}),
        },
        "best": None,
        **described,
    }
    store = CheckpointStore(out / BEST)
    store.save(0, {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}, meta)
    store.close()


def main(arguments: list[str] | None = None) -> None:
    """Flags in, checkpoint out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help=".pth or .safetensors of a released model")
    parser.add_argument("--vocabulary", type=Path, required=True, help="folder with vocab.txt")
    parser.add_argument("--out", type=Path, required=True, help="workdir to write")
    parser.add_argument("--data", default="", help="prepared data set, or corpus, to evaluate on by default")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--relations", type=Path, help="ours_rel2id.json of the release, for weights of RE")
    kind.add_argument("--estimator", action="store_true", help="the weights are the divergence estimator's")
    parser.add_argument("--max-phrase-pieces", type=int, help="3 word pieces for NER, 6 words for RE unless given")
    parser.add_argument(
        "--missing",
        choices=MISSING,
        default="mask",
        help="what stands for a missing picture or region: nothing (mask), or zeros as in the authors' training",
    )
    parser.add_argument("--num-attention-heads", type=int, help="of BERT; hidden / 64 unless given")
    options = parser.parse_args(arguments)
    if options.estimator and (options.missing != "mask" or options.max_phrase_pieces is not None):
        parser.error("--missing and --max-phrase-pieces are for weights of NER or RE, not for the estimator's")
    if options.max_phrase_pieces is not None and options.max_phrase_pieces < 1:
        parser.error(f"--max-phrase-pieces must be at least 1, found {options.max_phrase_pieces}")
    files = options.weights, options.vocabulary, options.out
    shared = {"data": options.data, "num_attention_heads": options.num_attention_heads}
    if options.estimator:
        estimator = convert_estimator(*files, **shared)
        size = estimator.pictures.size
        print(f"written to {options.out}: {estimator.texts.max_pieces} word pieces, pictures of {size} pixels")
        return
    system = convert_release(
        *files,
        relations=options.relations,
        max_phrase_pieces=options.max_phrase_pieces,
        missing=options.missing,
        **shared,
    )
    pictures = "pictures" if system.method.picture else "feature maps only (the file has no ResNet)"
    labels = f"labels {', '.join(system.labels)}"
    print(f"written to {options.out}: {system.text.max_pieces} word pieces, {labels}; {pictures}")
    print(f"this checkpoint: {encoders_of(system.method)}; the authors' scripts train {AUTHORS[system.task]}")
    print(f"inputs of the released code: {_inputs(system)}")


if __name__ == "__main__":
    main()
