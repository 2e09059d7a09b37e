"""A study: trainings that belong together, as a grid of rows, columns and seeds, and how their figures are shown.

A study is a plain Python file with ``get_study(places) -> Study``; those that ship lie in experiments/studies/.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Places:
    """What the command line says of data, weights and seeds.

    data: folder of prepared data sets, each in a folder by its name (twitter2015, twitter2017, mnre; demo,
    demo-relations, demo-pairs of the generated worlds). Encoders: folders or names of a hub, estimator_encoder of a
    ViLT; empty for the demo.
    seeds: of every row. settings: keys for every training, set after those of the study (``--set=epochs=2``).
    """

    data: Path
    text_encoder: str = ""
    picture_encoder: str = ""
    clip_encoder: str = ""
    estimator_encoder: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether a data set of this name is there."""
        return (self.data / name / "dataset.json").exists()


@dataclasses.dataclass(frozen=True)
class Training:
    """One training.

    row, column: where its figures stand in the table. config: file and name below experiments/configs, as
    ``mner.py:twitter2017``. settings: keys of that config, flattened, as {"method": "hvpnet", "data.root": ...}.
    """

    row: str
    column: str
    config: str
    settings: Mapping[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """Of its workdir below that of the study."""
        plain = [re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in (self.column, self.row)]
        return f"{plain[0]}/{plain[1]}/seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """Trainings and how they are shown.

    title: above the table. reference: the row that the others are tested against. view: "table"; "curve", columns are
    then shares of the training data in per cent; "estimator", of runs of mde.py. subset: posts of test that count, of
    experiments.lib.subsets. per_label: a table of labels beside it. published: (row, column) -> F1 in per cent of the
    papers. notes: sentences below the table.
    """

    title: str
    trainings: tuple[Training, ...]
    reference: str = ""
    view: str = "table"
    subset: str = "all"
    per_label: bool = False
    published: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
