"""Checkpoints that need nothing beside them: arrays and one JSON object with everything else.

A workdir holds two Orbax managers: ``checkpoints/`` with the newest state of a run, optimiser included, to resume
from, and ``best/`` with the variables of the best epoch on dev, to evaluate and predict with. Orbax writes into a
temporary folder and renames it, so an interrupted or failed save leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from tmrjax.sharding import replicated

FORMAT = 1
NEWEST, BEST = "checkpoints", "best"
_PACKAGES = ("tmrjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "pillow")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says which and what to do."""


def package_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _manager(directory: Path, *, create: bool) -> ocp.CheckpointManager:
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
        """The step of the checkpoint here, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Write a tree of arrays and its JSON; raises CheckpointError, the previous one intact, where that fails."""
        if step in self._manager.all_steps():  # a run that died between this save and the next one comes by again
            self._manager.delete(step)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave({"format": FORMAT, **meta})
                ),
                force=True,
            )
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax wraps the system's errors in several classes of its own
            raise CheckpointError(
                f"{self.directory}: the checkpoint of step {step} could not be written ({error}). "
                f"The previous one is intact; free disk space or fix the folder, then run the same command to resume."
            ) from error

    def restore(self, template: Any, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
        """The newest state in the structure of ``template``, on every device of ``mesh``, and its JSON."""
        sharding = replicated(mesh)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), template)
        arguments = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        restored = self._manager.restore(
            self.latest_step(), args=ocp.args.Composite(state=arguments, meta=ocp.args.JsonRestore())
        )
        return restored["state"], _checked(restored["meta"], self.directory)

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


def _checked(meta: dict[str, Any], directory: Path) -> dict[str, Any]:
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{directory}: checkpoint format {meta.get('format')!r}, but this version reads {FORMAT}")
    return meta


def load_best(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables (numpy arrays) and JSON of the best checkpoint of a workdir, on any machine.

    Raises CheckpointError where there is none.
    """
    directory = Path(workdir) / BEST
    if not directory.is_dir():
        newest = Path(workdir) / NEWEST
        hint = "the run has not finished its first epoch" if newest.is_dir() else "is it the workdir of a training run?"
        raise CheckpointError(f"{workdir}: no checkpoint under {BEST}/; {hint}")
    manager = _manager(directory, create=False)
    try:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{directory}: there is no finished checkpoint here")
        structure = manager.item_metadata(step)["state"].tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        restored = manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=as_numpy), meta=ocp.args.JsonRestore()),
        )
    finally:
        manager.close()
    variables = {name: restored["state"].get(name, {}) for name in ("params", "batch_stats")}
    return variables, _checked(restored["meta"], directory)


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
