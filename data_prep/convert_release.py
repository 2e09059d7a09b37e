"""Turn the authors' released NER weights into a checkpoint that evaluate.py and predict.py take.

python data_prep/convert_release.py --weights=NER.pth --vocabulary=BERT_DIR --out=WORKDIR [--data=DATASET]

The released file has no tokenizer: --vocabulary names the folder of the BERT it was trained from (vocab.txt suffices).
Safetensors are read without torch; a .pth needs the extra `release` and is read with weights_only, never unpickled.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tmrjax import convert
from tmrjax.checkpoints import BEST, CheckpointStore, package_versions
from tmrjax.convert import ner_from_release
from tmrjax.files import sha256
from tmrjax.pipeline import TextSettings
from tmrjax.tagger import PictureSettings, Tagger, load_tokenizer
from tmrjax.tagging import TagSet

# The order of the released tag set (R6).
RELEASE_LABELS = ("MISC", "PER", "ORG", "LOC")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """A state dict from .safetensors, or from .pth by torch with weights_only.

    Raises ImportError, naming the extra, without torch; ValueError where the file is no dict of tensors.
    """
    if path.suffix == ".safetensors" or path.is_dir():
        return convert.read_state_dict(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{path}: reading a .pth needs torch: pip install 'tmrjax[release]'") from error
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"{path}: expected a state dict (name → tensor), found {type(loaded).__name__}")
    return {name.removeprefix("module."): tensor.float().numpy() for name, tensor in loaded.items()}


def convert_release(
    weights: Path,
    vocabulary: Path,
    out: Path,
    *,
    data: str = "",
    max_phrase_pieces: int = 4,
    num_attention_heads: int | None = None,
) -> Tagger:
    """Write the checkpoint; returns the tagger in it. ``data``: the data set that evaluate.py takes by default."""
    model, variables = ner_from_release(read_weights(weights), num_attention_heads=num_attention_heads)
    tokenizer = load_tokenizer(vocabulary)
    if len(tokenizer) > model.bert.vocab_size:
        raise ValueError(
            f"{vocabulary} has {len(tokenizer)} word pieces, but the weights {model.bert.vocab_size}: give the "
            "vocabulary of the BERT that the model was trained from"
        )
    tagger = Tagger(
        model=model,
        labels=TagSet(RELEASE_LABELS),
        tokenizer=tokenizer,
        text=TextSettings(model.release_length, max_phrase_pieces, piece_tags=True),
        pictures=PictureSettings(),
        buckets=(model.release_length,),
        constrained=False,  # exact to the released decoding
    )
    config: dict[str, Any] = {
        "data": {"root": data, "on_error": "raise", "feature_cache": False},
        "eval_batch_size": 16,
    }
    meta = {
        "task": "ner",
        "config": config,
        "dataset": None,
        "versions": package_versions(),
        "source": {"file": weights.name, "sha256": sha256(weights.read_bytes()) if weights.is_file() else None},
        "best": None,
        **tagger.to_meta(),
    }
    store = CheckpointStore(out / BEST)
    store.save(0, {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}, meta)
    store.close()
    return tagger


def main(arguments: list[str] | None = None) -> None:
    """Flags in, checkpoint out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help=".pth or .safetensors of the released NER model")
    parser.add_argument("--vocabulary", type=Path, required=True, help="folder with vocab.txt")
    parser.add_argument("--out", type=Path, required=True, help="workdir to write")
    parser.add_argument("--data", default="", help="prepared data set that evaluate.py takes by default")
    parser.add_argument("--max-phrase-pieces", type=int, default=4)
    parser.add_argument("--num-attention-heads", type=int, help="of BERT; hidden / 64 unless given")
    options = parser.parse_args(arguments)
    tagger = convert_release(
        options.weights,
        options.vocabulary,
        options.out,
        data=options.data,
        max_phrase_pieces=options.max_phrase_pieces,
        num_attention_heads=options.num_attention_heads,
    )
    pictures = "pictures" if tagger.model.resnet else "feature maps only (the file has no ResNet)"
    print(f"written to {options.out}: {tagger.model.release_length} word pieces, {len(tagger.tags)} tags, {pictures}")


if __name__ == "__main__":
    main()
