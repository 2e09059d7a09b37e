"""The tables of a study from the runs in its workdir; trainings without figures yet are named, not counted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experiments.analysis.runs import Run, read_run
from experiments.analysis.tables import Table, make_table
from experiments.lib.study import Study, Training
from experiments.lib.subsets import SUBSETS
from experiments.lib.workdirs import REPORT


def tables_of(study: Study, workdir: Path) -> list[Table]:
    """One table; of curves, one for each data set.

    Raises CheckpointError where a finished run is damaged or was made with other settings than the study's.
    """
    if study.view == "curve":
        names = dict.fromkeys(one.column.rpartition(", ")[0] for one in study.trainings)
        return [
            _table(study, workdir, [one for one in study.trainings if one.column.rpartition(", ")[0] == name], name)
            for name in names
        ]
    return [_table(study, workdir, study.trainings)]


def _table(study: Study, workdir: Path, trainings: Iterable[Training], curve: str = "") -> Table:
    columns: dict[str, dict[str, list[Run]]] = {}
    missing: dict[tuple[str, str], list[int]] = {}
    for training in trainings:
        name = training.column.rpartition(", ")[2] if curve else training.column
        rows = columns.setdefault(name, {})
        runs = rows.setdefault(training.row, [])
        folder = workdir / training.name
        if (folder / REPORT).exists():
            runs.append(read_run(folder))
        else:
            missing.setdefault((training.column, training.row), []).append(training.seed)
    return make_table(
        f"{study.title}: {curve}" if curve else study.title,
        columns,
        reference=study.reference,
        published=study.published,
        keep=None if study.subset == "all" else SUBSETS[study.subset],
        view=study.view,
        per_label=study.per_label,
        missing=tuple(f"{row} on {name}, seeds {seeds}" for (name, row), seeds in missing.items()),
        notes=study.notes,
    )
