"""Write pickled PyTorch weights as safetensors, once, so that an encoder's folder is read without torch.

python data_prep/convert_weights.py FOLDER                    writes FOLDER/model.safetensors
python data_prep/convert_weights.py vinai/bertweet-base --out=FOLDER [--revision=COMMIT]

Reads pytorch_model.bin, or pytorch_model.bin.index.json and its shards, by torch with weights_only (the extra
`release`); nothing is unpickled. With --out the configuration and the tokenizer's files are copied too, so that the new
folder is whole; a model of the hub needs it, for the hub's cache is not written to.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tmrjax.convert.state_dicts import INDEX, WEIGHTS, read_shards
from tmrjax.encoders import folders
from tmrjax.files import write_atomic

logger = logging.getLogger(__name__)

PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
FETCHED = (*folders.CONFIGS, *folders.TOKENIZERS, PICKLED, "pytorch_model-*-of-*.bin", PICKLED_INDEX)


def convert_weights(name: str, out: Path | None = None, *, revision: str | None = None) -> Path:
    """Writes model.safetensors of a folder or a hub's model, beside its pickled weights or into ``out``; returns it.

    Raises FileNotFoundError where no pickled weights are there, FileExistsError where safetensors are already, and
    ValueError for what is no state dict or for a hub's model without ``out``.
    """
    folder = folders.resolve(name, revision=revision, files=FETCHED)
    if out is None and folder.revision is not None:
        raise ValueError(f"{name} is a model of the hub: say with --out=FOLDER where its files shall go")
    target = folder.path if out is None else out
    for file in (target / WEIGHTS, target / INDEX):
        if file.exists():
            raise FileExistsError(f"{file}: there already; nothing to convert")
    state_dict = read_pickled(folder.path)
    if target != folder.path:
        target.mkdir(parents=True, exist_ok=True)
        for file in (folder.path / known for known in (*folders.CONFIGS, *folders.TOKENIZERS)):
            if file.is_file():
                write_atomic(target / file.name, file.read_bytes())
    return _write(target / WEIGHTS, state_dict)


def read_pickled(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of pytorch_model.bin, whole or in shards.

    Raises FileNotFoundError, naming what is missing and listing what is there; ValueError for what is no state dict.
    """
    if (folder / PICKLED).is_file():
        return load_pickled(folder / PICKLED)
    index = folder / PICKLED_INDEX
    if not index.is_file():
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise FileNotFoundError(f"{folder}: neither {PICKLED} nor {PICKLED_INDEX}; the folder holds {present}")
    return read_shards(index, load_pickled)


def load_pickled(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file of torch.save, read with weights_only; those under "state_dict" where it has that key.

    Raises ImportError, naming the extra, without torch; ValueError where the file is no dict of tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{file}: reading it needs torch: pip install 'tmrjax[release]'") from error
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file}: damaged, or it holds more than tensors ({error})") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"{file}: expected a state dict (name → tensor), found {type(loaded).__name__}")
    return loaded


def _write(file: Path, state_dict: dict[str, torch.Tensor]) -> Path:
    from safetensors.torch import save

    # Tied weights are one tensor under two names, which safetensors refuses: each name gets its own.
    write_atomic(file, save({name: tensor.clone().contiguous() for name, tensor in state_dict.items()}))
    logger.info("%s: %d tensors", file, len(state_dict))
    return file


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder with pytorch_model.bin, or a model of the hub (owner/name)")
    parser.add_argument("--out", type=Path, help="the folder to write (default: the folder itself)")
    parser.add_argument("--revision", help="commit, branch or tag of the hub's model")
    arguments = parser.parse_args()
    try:
        convert_weights(arguments.folder, arguments.out, revision=arguments.revision)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
