"""Checkpoints that need nothing beside them: arrays and one JSON object with everything else.

A workdir holds two Orbax managers: ``checkpoints/`` with the newest state of a run, optimiser included, to resume
from, and ``best/`` with the variables of the best epoch on dev, to evaluate and predict with. Orbax writes into a
temporary folder and renames it, so an interrupted or failed save leaves the previous checkpoint as it was.

The JSON object holds the SHA-256 of every array and of itself; both are checked whenever a checkpoint is read. Format 1
had no hashes: it is read with a warning.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from tmrjax.training.sharding import replicated

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

logger = logging.getLogger(__name__)

FORMAT = 2
WITHOUT_HASHES = 1
NEWEST, BEST = "checkpoints", "best"
_PACKAGES = ("tmrjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "pillow")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and what to do."""


def package_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def array_hashes(tree: Any) -> dict[str, str]:
    """{path: SHA-256 of shape, dtype and values} of every array of a tree, the names of its path joined by "/"."""

    def name(key) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))

    hashes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
        hashes["/".join(map(name, path))] = digest.hexdigest()
    return hashes


def _json_hash(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _sealed(meta: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """The JSON of a checkpoint with its hashes, which :func:`_opened` checks."""
    meta = json.loads(json.dumps({"format": FORMAT, **meta, "arrays_sha256": array_hashes(state)}))
    return {**meta, "json_sha256": _json_hash(meta)}


def _damaged(directory: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{directory}: this checkpoint is damaged ({' '.join(reason.split())[:300]}). Copy it again from a sound one, "
        "or train again in another workdir; nothing was read from it"
    )


def _opened(meta: Any, directory: Path, state: Any = None) -> dict[str, Any]:
    """The JSON of a checkpoint without its hashes; ``state``: the arrays to check, unless only the JSON was read.

    Raises CheckpointError for another format, or where a hash differs.
    """
    if not isinstance(meta, dict):
        raise _damaged(directory, "its JSON is no object")
    hashes = {name: meta.get(name) for name in ("arrays_sha256", "json_sha256")}
    if meta.get("format") == WITHOUT_HASHES and hashes == dict.fromkeys(hashes):
        logger.warning(
            "%s: a checkpoint of an older version, without hashes: whether it is damaged cannot be known", directory
        )
        return meta
    if isinstance(hashes["json_sha256"], str):
        body = {name: value for name, value in meta.items() if name != "json_sha256"}
        if _json_hash(body) != hashes["json_sha256"]:
            raise _damaged(directory, "its JSON does not have the hash that was written with it")
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory}: checkpoint format {meta.get('format')!r}, but this version reads {WITHOUT_HASHES} and "
            f"{FORMAT}: take the version of tmrjax that wrote it, or train again"
        )
    if None in hashes.values():
        raise _damaged(directory, "its hashes are missing")
    if state is not None:
        found, expected = array_hashes(state), hashes["arrays_sha256"]
        different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        if different:
            raise _damaged(directory, f"{len(different)} arrays are not those that were saved, first {different[0]}")
    return {name: value for name, value in meta.items() if name not in hashes}


def _orbax() -> Any:
    """Orbax, imported where a checkpoint is opened: the library without one, or with an exported folder, starts
    sooner."""
    import orbax.checkpoint

    return orbax.checkpoint


def _manager(directory: Path, *, create: bool) -> ocp.CheckpointManager:
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=create, read_only=not create, enable_async_checkpointing=False
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(Path(directory).resolve(), options=options, item_handlers=handlers)


class CheckpointStore:
    """One folder of checkpoints of which the newest is kept."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._manager = _manager(self.directory, create=True)

    def latest_step(self) -> int | None:
        """The step of the checkpoint here, None without one; raises CheckpointError for a folder that is none."""
        return _latest_step(self._manager, self.directory)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Write a tree of arrays and its JSON; raises CheckpointError, the previous one intact, where that fails."""
        ocp = _orbax()
        if step in self._manager.all_steps():  # a run that died between this save and the next one comes by again
            self._manager.delete(step)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(_sealed(meta, state))),
                force=True,
            )
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax wraps the system's errors in several classes of its own
            raise CheckpointError(
                f"{self.directory}: the checkpoint of step {step} could not be written ({error}). "
                f"The previous one is intact; free disk space or fix the folder, then run the same command to resume."
            ) from error

    def restore(self, template: Any, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
        """The newest state in the structure of ``template``, on every device of ``mesh``, and its JSON.

        Raises CheckpointError where it is damaged or of another structure.
        """
        ocp = _orbax()
        sharding = replicated(mesh)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template)
        arguments = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        step = self.latest_step()
        restored = _read(self._manager, step, self.directory / str(step), state=arguments, meta=ocp.args.JsonRestore())
        return restored["state"], _opened(restored["meta"], self.directory / str(step), restored["state"])

    def meta(self) -> dict[str, Any] | None:
        """The JSON of the checkpoint here, None without one; raises CheckpointError where it is damaged."""
        step = self.latest_step()
        if step is None:
            return None
        directory = self.directory / str(step)
        return _opened(_read(self._manager, step, directory, meta=_orbax().args.JsonRestore())["meta"], directory)

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


def _latest_step(manager: ocp.CheckpointManager, directory: Path) -> int | None:
    """The newest step that Orbax finds; a step that it passes over, for lack of a file, is an error and no start."""
    found = manager.latest_step()
    there = [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    if there and found != max(there):
        raise _damaged(directory / str(max(there)), "it is not complete")
    return found


def _read(manager: ocp.CheckpointManager, step: int, directory: Path, **items: Any) -> Any:
    """Items of a checkpoint; whatever Orbax, tensorstore or JSON say of damaged files becomes a CheckpointError."""
    try:
        return manager.restore(step, args=_orbax().args.Composite(**items))
    except Exception as error:  # of many classes: JSONDecodeError, KeyError, ValueError of tensorstore, ...
        raise _damaged(directory, f"{type(error).__name__}: {error}") from error


def load_best(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables (numpy arrays) and JSON of the best checkpoint of a workdir, on any machine.

    Raises CheckpointError where there is none, or where it is damaged.
    """
    directory = Path(workdir) / BEST
    if not directory.is_dir():
        newest = Path(workdir) / NEWEST
        hint = "the run has not finished its first epoch" if newest.is_dir() else "is it the workdir of a training run?"
        raise CheckpointError(f"{workdir}: no checkpoint under {BEST}/; {hint}")
    ocp = _orbax()
    try:
        manager = _manager(directory, create=False)
    except Exception as error:
        raise _damaged(directory, f"{type(error).__name__}: {error}") from error
    try:
        step = _latest_step(manager, directory)
        if step is None:
            raise CheckpointError(f"{directory}: there is no finished checkpoint here")
        folder = directory / str(step)
        # The JSON first: it says of what format the arrays are.
        meta = _read(manager, step, folder, meta=ocp.args.JsonRestore())["meta"]
        _opened(meta, folder)
        try:
            structure = manager.item_metadata(step)["state"].tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        except Exception as error:
            raise _damaged(folder, f"{type(error).__name__}: {error}") from error
        state = _read(manager, step, folder, state=ocp.args.PyTreeRestore(restore_args=as_numpy))["state"]
        meta = _opened(meta, folder, state)
    finally:
        manager.close()
    return {name: state.get(name, {}) for name in ("params", "batch_stats")}, meta


def config_difference(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: saved → current`` where two nested configs differ."""
    lines = []
    for key in sorted(set(saved) | set(current)):
        old, new = saved.get(key, "(absent)"), current.get(key, "(absent)")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += config_difference(old, new, f"{prefix}{key}.")
        elif json.dumps(old, default=list) != json.dumps(new, default=list):
            lines.append(f"{prefix}{key}: {old!r} → {new!r}")
    return lines
