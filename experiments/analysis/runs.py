"""Finished runs as they lie in their workdirs, and whether they may be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lib import workdirs
from tmrjax.files import parse_json, read_bytes, sha256
from tmrjax.tasks.comparison import COUNTS
from tmrjax.training.checkpoints import CheckpointError


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    report, config: of its report.json and config.json (the config without the data's hashes). file: predictions of
    evaluate.py that are read in the place of the run's own.
    """

    workdir: Path
    report: Mapping[str, Any]
    config: Mapping[str, Any]
    file: Path | None = None

    @property
    def task(self) -> str:
        """ner, re or mde."""
        return self.report["task"]

    @property
    def data_root(self) -> Path:
        """The prepared data set that it read."""
        return Path(self.config["data"]["root"])

    def predictions(self, split: str = "test") -> list[dict[str, Any]]:
        """Gold and prediction of each post (:meth:`tmrjax.tasks.system.System.prediction_rows`).

        Raises CheckpointError where the file is missing, or is not the one that the run wrote.
        """
        path = self.file or self.workdir / "predictions" / f"{split}.jsonl"
        if not path.exists() or not _about(path).exists():
            raise CheckpointError(
                f"{path}: missing; experiments/evaluate.py --workdir={self.workdir} --split={split} "
                f"--predictions={path} writes it again"
            )
        content = read_bytes(path)
        about = _read_about(path)
        if about.get("split", split) != split:
            raise CheckpointError(f"{path}: predictions of {about['split']}, expected those of {split}; see --split")
        if sha256(content) != about.get("sha256"):
            raise CheckpointError(
                f"{path}: its SHA-256 is {sha256(content)}, but {_about(path).name} says {about.get('sha256')}; it was "
                "changed after the run. Write it again with experiments/evaluate.py --predictions"
            )
        return [parse_json(line, f"{path}:{number}") for number, line in enumerate(content.splitlines(), 1)]

    def counts(self, split: str = "test") -> np.ndarray:
        """(correct, predicted, gold) of each post [N, 3], strict."""
        return COUNTS[self.task](self.predictions(split))


def read_predictions(file: str | Path) -> Run:
    """A run with the predictions of a file that ``evaluate.py --predictions`` wrote.

    Its name tells of other pictures and of a subset. Raises CheckpointError where the file does not say of what run it
    is, or where that is gone.
    """
    file = Path(file)
    if not _about(file).exists():
        raise CheckpointError(f"{file}: no {_about(file).name} beside it; evaluate.py --predictions writes both")
    about = _read_about(file)
    if "workdir" not in about:
        raise CheckpointError(f"{_about(file)}: does not say of what run; name the workdir, or run evaluate.py again")
    run = read_run(about["workdir"])
    kept = {"pictures": "own", "subset": "all"}
    changes = {key: about.get(key, usual) for key, usual in kept.items() if about.get(key, usual) != usual}
    return dataclasses.replace(run, config={**run.config, **changes}, file=file)


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.about.json")


def _read_about(path: Path) -> dict[str, Any]:
    return workdirs.read_json(_about(path), "write the predictions again with experiments/evaluate.py")


def read_run(workdir: str | Path) -> Run:
    """The finished run in a workdir; raises CheckpointError where there is none, or where it has not finished."""
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise CheckpointError(f"{workdir}: no run (no config.json); name the --workdir of a training command")
    if not (workdir / workdirs.REPORT).exists():
        raise CheckpointError(
            f"{workdir}: not finished (no {workdirs.REPORT}); the command that began it goes on with it"
        )
    report = workdirs.read_json(workdir / workdirs.REPORT, "delete it, and the command that trained makes it again")
    config = workdirs.read_json(workdir / "config.json", "train again in another workdir")
    return Run(workdir, report, {key: value for key, value in config.items() if key != "dataset"})


def require_comparable(runs: Sequence[Run], split: str = "test") -> None:
    """Raise CheckpointError with both workdirs where two runs differ in task, version of the labels, or test set.

    ``split``: the one that is compared.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, mine, theirs in (
            ("task", first.task, run.task),
            (f"labels of {split}", _labels(first, split), _labels(run, split)),
            (f"{split} set", _posts(first, split), _posts(run, split)),
        ):
            if mine != theirs:
                raise CheckpointError(
                    f"{first.workdir} and {run.workdir} cannot be compared: they differ in their {what} "
                    f"({_said(first, mine)} and {_said(run, theirs)}); compare runs of the same data"
                )


def _labels(run: Run, split: str) -> str | None:
    return run.report.get("labels_sha256", {}).get(split)


def _posts(run: Run, split: str) -> str | None:
    """SHA-256 over the posts of a split and gold answers. Side inputs and pictures may differ, as in an ablation."""
    if run.task not in COUNTS:
        return json.dumps(run.report["data"], sort_keys=True)
    keys = ("id", "tokens", "head", "tail", "gold")
    rows = [{key: row[key] for key in keys if key in row} for row in run.predictions(split)]
    return sha256(json.dumps(rows, sort_keys=True).encode())


def _said(run: Run, value: str | None) -> str:
    version = run.report.get("label_version")
    short = value if value is None or len(value) < 20 else f"{value[:12]}…"
    return f"{short}, {version}" if version else f"{short}"


def rows_of(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that differ by nothing but their seed, under a name that tells the rows apart.

    A name is the method and what is left out of it; where that is the same for two rows, also the settings by which
    they differ. Raises CheckpointError where two runs of a row have the same seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_without_seed(run.config), sort_keys=True), []).append(run)
    settings = {key: _flat(_without_seed(group[0].config)) for key, group in groups.items()}
    plain = {key: _plain_name(group[0]) for key, group in groups.items()}
    found = {}
    for key, group in groups.items():
        alike = [other for other in groups if plain[other] == plain[key]]
        names = sorted({name for other in alike for name in settings[other]})
        differing = [name for name in names if len({repr(settings[other].get(name)) for other in alike}) > 1]
        own = settings[key]
        name = ", ".join([plain[key], *(f"{name}={own[name]}" for name in differing if name in own)])
        seeds = [run.report["seed"] for run in group]
        if len(set(seeds)) < len(seeds):
            same = [str(run.workdir) for run in group if seeds.count(run.report["seed"]) > 1]
            raise CheckpointError(f"{' and '.join(same)} are the same run, seed included; name each run once")
        found[name] = sorted(group, key=lambda run: run.report["seed"])
    return found


def _plain_name(run: Run) -> str:
    report = run.report
    left_out = report.get("ablation", "none")
    method = report.get("method") or f"{report['mode']}, {report['variant']}"
    return method if left_out == "none" else f"{method} without {left_out}"


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "seed"}


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found = {}
    for key, value in config.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found
