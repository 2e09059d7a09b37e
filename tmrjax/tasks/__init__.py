"""Tasks: entities and relations, with their metrics and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tmrjax.tasks.entities import Tagger
from tmrjax.tasks.relations import RelationClassifier
from tmrjax.tasks.system import System
from tmrjax.training.checkpoints import CheckpointError

SYSTEMS: dict[str, type[System]] = {"ner": Tagger, "re": RelationClassifier}


def system_from_meta(meta: Mapping[str, Any]) -> System:
    """The system of a checkpoint's JSON, of whichever task; raises CheckpointError for any other checkpoint."""
    task = meta.get("task")
    if task not in SYSTEMS:
        raise CheckpointError(f"a checkpoint for the task {task!r}; expected one of {', '.join(SYSTEMS)}")
    return SYSTEMS[task].from_meta(meta)
