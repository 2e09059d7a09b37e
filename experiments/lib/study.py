"""A study: trainings that belong together, as a grid of rows, columns and seeds, and how their figures are shown.

A study is a plain Python file with ``get_study(places) -> Study``; those that ship lie in experiments/studies/.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.lib.command import one_line
from experiments.lib.settings import check_settings
from experiments.lib.workdirs import read_json
from tmrjax.training.checkpoints import config_difference

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"ner": "mner.py", "re": "mre.py", "mde": "mde.py"}


@dataclasses.dataclass(frozen=True)
class Places:
    """What the command line says of data, weights and seeds.

    data: folder of prepared data sets, each in a folder by its name (twitter2015, twitter2017, mnre; demo,
    demo-relations, demo-pairs of the generated worlds). Encoders: folders or names of a hub, estimator_encoder of a
    ViLT; empty for the demo. seeds: of every row.
    """

    data: Path
    text_encoder: str = ""
    picture_encoder: str = ""
    clip_encoder: str = ""
    estimator_encoder: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)

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


def load_study(path: Path, places: Places, settings: Mapping[str, Any] | None = None) -> Study:
    """The study of a Python file, checked: every config can be built, no training is there twice.

    ``settings``: keys that replace those of the study in every training whose config has them (``--set=epochs=2``).

    A study is code, as a config is: run only files that you trust. Raises ValueError that names the file and, of a
    wrong setting, row, column and key.
    """
    if not path.is_file():
        raise ValueError(f"--study={path}: no such file; expected a Python file with get_study(places)")
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if not callable(getattr(module, "get_study", None)):
        raise ValueError(f"{path}: has no function get_study(places) that returns an experiments.lib.study.Study")
    study = module.get_study(places)
    if not isinstance(study, Study) or not study.trainings:
        raise ValueError(f"{path}: get_study returned {study!r:.80}; expected a Study with at least one training")
    names = collections.Counter(training.name for training in study.trainings)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {twice[0]} is there {names[twice[0]]} times; a row has each column and seed once")
    trainings = []
    for training in study.trainings:
        try:
            config = config_of(training)
            known = {key: value for key, value in (settings or {}).items() if has_key(config, key)}
            changed = dataclasses.replace(training, settings={**training.settings, **known})
            check_settings(config_of(changed) if known else config)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: row {training.row!r}, column {training.column!r}: {one_line(error)}") from error
        trainings.append(changed)
    return dataclasses.replace(study, trainings=tuple(trainings))


def has_key(config: ConfigDict, key: str) -> bool:
    """Whether a config has a flattened key."""
    for name in key.split("."):
        if not isinstance(config, ConfigDict) or name not in config:
            return False
        config = config[name]
    return True


def config_of(training: Training) -> ConfigDict:
    """The config of a training, as its command builds it.

    Raises ValueError for a config that is not there, KeyError for a key that it does not have, TypeError for a value of
    another kind.
    """
    file, _, name = training.config.partition(":")
    path = ROOT / "experiments" / "configs" / file
    if not file.endswith(".py") or not path.is_file():
        raise ValueError(f"the config {training.config!r}: no file {file!r} in experiments/configs")
    module = importlib.import_module(f"experiments.configs.{path.stem}")
    given = {"method": training.settings["method"]} if "method" in training.settings else {}
    config = module.get_config(*([name] if name else []), **given)
    config.update_from_flattened_dict({**training.settings, "seed": training.seed})
    return config


def command_of(training: Training, workdir: Path) -> list[str]:
    """The command that trains: the one that a user would write."""
    command = COMMANDS[config_of(training).task]
    settings = {**training.settings, "seed": training.seed}
    return [
        sys.executable,
        str(ROOT / "experiments" / command),
        f"--config={ROOT / 'experiments' / 'configs' / training.config}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def require_own(study: Study, workdir: Path) -> None:
    """Raise ValueError with what differs where a training's workdir was begun with other settings than the study's."""
    for training in study.trainings:
        path = workdir / training.name / "config.json"
        if not path.exists():
            continue
        begun = {key: value for key, value in read_json(path, "remove its workdir").items() if key != "dataset"}
        difference = config_difference(begun, json.loads(json.dumps(config_of(training).to_dict())))
        if difference:
            raise ValueError(
                f"{path.parent} was begun with other settings; take another --workdir, or remove it. They differ in:"
                "\n  " + "\n  ".join(difference)
            )
