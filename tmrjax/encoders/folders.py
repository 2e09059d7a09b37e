"""From what a user names, a folder of this machine or a model of the Hugging Face hub, to a folder with its files.

    resolve("encoders/minilm")                    Folder(path=encoders/minilm, name="encoders/minilm", revision=None)
    resolve("vinai/bertweet-base")                Folder(path=<cache>/.../<commit>, name=..., revision="<commit>")
    resolve("vinai/bertweet-base", revision=...)  the same files again, though the hub's main branch has moved on

A folder wins over a hub name that is spelled alike. The hub's files go through huggingface_hub: its cache (HF_HOME,
HF_HUB_CACHE), its tokens (HF_TOKEN), and HF_HUB_OFFLINE=1, which takes them from the cache alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

CONFIGS = ("config.json", "preprocessor_config.json")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
FILES = (*CONFIGS, *TOKENIZERS, *WEIGHTS)
"""What is fetched of a hub's model; pickled weights are not."""


class Folder(NamedTuple):
    """A folder of an encoder's files, and how it was found."""

    path: Path
    name: str
    """As the user wrote it."""
    revision: str | None
    """The commit of the hub's repository; None for a folder of this machine."""


def resolve(name: str | os.PathLike[str], *, revision: str | None = None, files: Sequence[str] = FILES) -> Folder:
    """The folder that a name stands for, fetched from the hub where it is no folder of this machine.

    Args:
        name: a folder, or a model of the hub, "owner/name" (or "name", of the hub's oldest models).
        revision: a commit, branch or tag of the hub's repository; its main branch without one.
        files: patterns of the files to fetch. None of ours matches what lies in a folder of the repository (onnx/ ...).

    Raises:
        FileNotFoundError: neither a folder nor a model of the hub; a model or revision that the hub does not have; a
            model that is not in the cache while the hub can't be asked.
        NotADirectoryError: the name of a file.
        PermissionError: a model whose owner grants access on request.
        ValueError: a revision of a folder of this machine, which has none; an empty name.
        ConnectionError: the hub answered with another error.
    """
    name = os.fspath(name)
    if not name:
        raise ValueError("an empty name: expected a folder, or a model of the Hugging Face hub (owner/name)")
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"{name} is a folder of this machine, which has no revision {revision!r}. Leave the revision out, or "
                "rename the folder if the hub's model of this name is meant"
            )
        return Folder(path, name, None)
    if path.exists():
        raise NotADirectoryError(f"{name}: a file; expected the folder with it, or a model of the hub (owner/name)")
    if name.startswith((".", "~", os.sep)) or not _is_hub_name(name):
        raise FileNotFoundError(
            f"{name}: no such folder (seen from {Path.cwd()}), and not the name of a model of the hub (owner/name)"
        )
    return _fetch(name, revision, files)


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _fetch(name: str, revision: str | None, files: Sequence[str]) -> Folder:
    from huggingface_hub import constants, errors, snapshot_download

    asked = f"{name} (revision {revision})" if revision else name
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{asked}: access is granted on request. Ask for it on the model's page of the hub, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{asked}: the hub has this model, but no such commit, branch or tag") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{asked}: neither a folder (seen from {Path.cwd()}) nor a model of the hub. A private model needs "
            "`hf auth login` or HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        why = (
            "HF_HUB_OFFLINE forbids to ask the hub"
            if constants.HF_HUB_OFFLINE
            else f"the hub can't be reached ({error.__cause__ or error})"
        )
        raise FileNotFoundError(
            f"{asked}: no folder of this machine (seen from {Path.cwd()}), not in the cache {constants.HF_HUB_CACHE}, "
            f"and {why}. Fetch it once where there is a network, with `hf download {name}`, or give its folder"
        ) from error
    except (errors.HfHubHTTPError, ConnectionError) as error:
        raise ConnectionError(
            f"{asked}: the hub did not give its files ({error}). Try again, or give a folder"
        ) from error
    logger.info("%s: revision %s, in %s", name, path.name, path)
    return Folder(path, name, path.name)
