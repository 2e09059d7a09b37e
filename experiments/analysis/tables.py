"""Tables of finished runs: mean and deviation over seeds, strict and lenient, per label, and each row against one.

A table has columns (data sets) and rows (methods); a cell has the runs of some seeds. Nothing is rounded here;
:mod:`experiments.analysis.writing` writes tables down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.analysis.runs import Run, require_comparable
from experiments.lib.pairs import TESTS
from tmrjax.files import DataError
from tmrjax.records import Record, read_dataset
from tmrjax.records.schema import NO_RELATION
from tmrjax.tasks.calibration import area_under_risk_coverage, expected_calibration_error, outcomes
from tmrjax.tasks.comparison import COUNTS, Comparison, holm, micro_f1, paired_bootstrap
from tmrjax.tasks.report import marks_of

Chooser = Callable[[Record], bool]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What the runs of one row found on one data set, in per cent.

    scores: name -> one figure a seed. per_label: label -> F1 of each seed. comparison: with the reference row;
    corrected: its p value by Holm over all comparisons of the table. published: F1 of a paper. outcomes: probability of
    each answer of all runs, and whether it is right (:func:`tmrjax.tasks.calibration.outcomes`).
    """

    runs: tuple[Run, ...] = ()
    scores: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    per_label: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    support: Mapping[str, int] = dataclasses.field(default_factory=dict)
    comparison: Comparison | None = None
    corrected: float | None = None
    published: float | None = None
    outcomes: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [run.report["seed"] for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Column:
    """A data set. about: which data, labels and hashes; marks: warnings that every figure from it carries."""

    name: str
    cells: Mapping[str, Cell]
    about: str = ""
    marks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """title: what it shows. reference: row that the others are compared with, or "". view: of Study.

    per_label: whether the tables of labels are written. missing: trainings that have no figures yet. notes: sentences
    below.
    """

    title: str
    columns: tuple[Column, ...]
    reference: str = ""
    view: str = "table"
    per_label: bool = False
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[str]:
        """All rows in their order."""
        return list(dict.fromkeys(row for column in self.columns for row in column.cells))


def make_table(
    title: str,
    columns: Mapping[str, Mapping[str, Sequence[Run]]],
    *,
    reference: str = "",
    published: Mapping[tuple[str, str], float] | None = None,
    keep: Chooser | None = None,
    **fields,
) -> Table:
    """The table of runs, column -> row -> runs.

    Args:
        title: of the table.
        columns: runs by column and row; a row without runs has only its published figure.
        reference: a row; others are compared with it in every column where it has runs.
        published: (row, column) -> F1 in per cent.
        keep: which posts of test count; all unless given.
        fields: the other fields of Table.

    Raises:
        CheckpointError: runs of a column differ in task, labels or test set.
        DataError: no post is kept.
    """
    published = published or {}
    made, comparisons = [], []
    for name, rows in columns.items():
        runs = [run for found in rows.values() for run in found]
        if not runs:
            made.append((name, {row: Cell(published=published.get((row, name))) for row in rows}, runs))
            continue
        require_comparable(runs)
        kept = None if keep is None else kept_posts(runs[0], keep)
        cells, counts = {}, {}
        for row, found in rows.items():
            cell = dataclasses.replace(_cell(found, kept), published=published.get((row, name)))
            cells[row] = cell
            if found and found[0].task in COUNTS:
                counts[row] = np.stack([run.counts() if kept is None else run.counts()[kept] for run in found])
        for row, of_row in counts.items():
            if reference in counts and row != reference:
                compared = paired_bootstrap(of_row, counts[reference])
                cells[row] = dataclasses.replace(cells[row], comparison=compared)
                comparisons.append((cells, row))
        made.append((name, cells, runs))
    for (cells, row), value in zip(
        comparisons, holm([cells[row].comparison.p_value for cells, row in comparisons]), strict=True
    ):
        cells[row] = dataclasses.replace(cells[row], corrected=value)
    finished = tuple(Column(name, cells, _about(name, runs), _marks(cells)) for name, cells, runs in made)
    return Table(title, finished, reference, **fields)


def kept_posts(run: Run, keep: Chooser) -> np.ndarray:
    """Whether each post of test counts [N]; raises DataError where none does, or where the data are other ones now."""
    dataset = read_dataset(run.data_root, on_error=run.config["data"]["on_error"])
    records = dataset.splits["test"]
    if dataset.info.files["test.jsonl"] != run.report["data"]["files"]["test.jsonl"]:
        raise DataError(
            dataset.root,
            "another test.jsonl than the run read",
            "the same",
            f"Train {run.workdir} again, or restore it.",
        )
    kept = np.array([keep(record) for record in records])
    if not kept.any():
        raise DataError(dataset.root, "no post of test in the subset", "some", "Score the set, or take another one.")
    return kept


def _kept(rows: list[dict], kept: np.ndarray | None) -> list[dict]:
    return rows if kept is None else [row for row, wanted in zip(rows, kept, strict=True) if wanted]


def _cell(runs: Sequence[Run], kept: np.ndarray | None) -> Cell:
    if not runs:
        return Cell()
    if runs[0].task not in COUNTS:
        return _estimator_cell(runs)
    scores: dict[str, list[float]] = {"f1": [], "precision": [], "recall": []}
    rows = [_kept(run.predictions(), kept) for run in runs]
    of_labels = [label_counts(found) for found in rows]
    labels = sorted(set().union(*of_labels))
    answers = [outcomes(found, runs[0].task) for found in rows]
    scores["ece"] = [expected_calibration_error(*found) for found in answers]
    scores["aurc"] = [area_under_risk_coverage(*found) for found in answers]
    for run, found in zip(runs, rows, strict=True):
        correct, predicted, gold = COUNTS[run.task](found).sum(0)
        scores["f1"].append(float(micro_f1(np.array([correct, predicted, gold]))))
        scores["precision"].append(correct / predicted if predicted else 0.0)
        scores["recall"].append(correct / gold if gold else 0.0)
        if kept is None and "lenient_f1" in run.report["test"]:
            scores.setdefault("lenient_f1", []).append(run.report["test"]["lenient_f1"])
    nothing = np.zeros(3)
    return Cell(
        tuple(runs),
        {name: 100 * np.array(values) for name, values in scores.items()},
        {name: 100 * micro_f1(np.stack([found.get(name, nothing) for found in of_labels])) for name in labels},
        {name: int(max(found.get(name, nothing)[2] for found in of_labels)) for name in labels},
        outcomes=tuple(np.concatenate(part) for part in zip(*answers, strict=True)),
    )


def _estimator_cell(runs: Sequence[Run]) -> Cell:
    """Macro-F1 in the domain and out of it; pairs keep no predictions, so there is no paired test."""
    names = {"test": "f1", "test_out_of_domain": "f1_out"}
    tests = [name for name in TESTS if all(name in run.report for run in runs)]
    scores = {names[name]: 100 * np.array([run.report[name]["macro_f1"] for run in runs]) for name in tests}
    per_label, support = {}, {}
    for name in tests:
        for label, score in runs[0].report[name]["per_label"].items():
            key = label if name == "test" else f"{label}, out of domain"
            per_label[key] = 100 * np.array([run.report[name]["per_label"][label]["f1"] for run in runs])
            support[key] = score["support"]
    return Cell(tuple(runs), scores, per_label, support)


def label_counts(rows: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """(correct, predicted, gold) of each label in rows of predictions."""
    found: dict[str, np.ndarray] = {}

    def add(label: str, place: int) -> None:
        found.setdefault(label, np.zeros(3))[place] += 1

    for row in rows:
        answers = [_answers(row["gold"]), _answers(row["predicted"])]
        for place, some in ((0, answers[0] & answers[1]), (1, answers[1]), (2, answers[0])):
            for answer in some:
                add(answer[-1], place)
    return dict(sorted(found.items()))


def _answers(value) -> set[tuple]:
    if isinstance(value, str):
        return set() if value == NO_RELATION else {(value,)}
    return {(span["start"], span["end"], span["label"]) for span in value}


def _about(name: str, runs: Sequence[Run]) -> str:
    """Data, labels and hashes of a column; of the first run, for all read the same test set."""
    if not runs:
        return "no run"
    report = runs[0].report
    parts = [] if report["dataset"] == name else [f"data set {report['dataset']}"]
    if "label_version" in report:
        parts.append(f"labels of test: {report['label_version']}, SHA-256 {report['labels_sha256']['test'][:12]}…")
    hashes = sorted({run.report["data"].get("files", {}).get("test.jsonl", "")[:12] for run in runs} - {""})
    if hashes:
        parts.append(f"test.jsonl {', '.join(f'{value}…' for value in hashes)}")
    seeds = sorted({run.report["seed"] for run in runs})
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    return "; ".join(parts)


def _marks(cells: Mapping[str, Cell]) -> tuple[str, ...]:
    """The marks of the runs; of those that some rows lack, with the rows that have them."""
    rows: dict[str, list[str]] = {}
    finished = {row: cell.runs for row, cell in cells.items() if cell.runs}
    for row, runs in finished.items():
        for mark in dict.fromkeys(mark for run in runs for mark in marks_of(run.report["data"])):
            rows.setdefault(mark, []).append(row)
    return tuple(
        mark if len(found) == len(finished) else f"{mark} (rows: {'; '.join(found)})" for mark, found in rows.items()
    )
