"""Tables as Markdown, LaTeX (booktabs), CSV and one HTML page with the plots inside."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tabulate import tabulate

from experiments.analysis.plots import plot_of
from experiments.analysis.tables import Cell, Table
from tmrjax import __version__
from tmrjax.files import write_atomic
from tmrjax.tasks.report import marks_of

SIGNIFICANT = 0.05
METRICS = {
    "f1": "F1", "f1_out": "F1 out of domain", "precision": "precision", "recall": "recall", "lenient_f1": "lenient F1",
    "ece": "calibration error", "aurc": "area under risk-coverage",
}  # fmt: skip
FORMATS = ("md", "tex", "csv", "html")


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as texts: a heading, a line a row, a caption below."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    caption: tuple[str, ...] = ()


def spread(values: np.ndarray | Sequence[float]) -> str:
    """``mean ± std`` over seeds (the deviation of the seeds themselves, divided by their number); one seed has none."""
    values = np.asarray(values)
    return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def grids_of(table: Table) -> list[Grid]:
    """The overview of all columns, then for each column its details, and its labels where they are wanted."""
    grids = [_overview(table)]
    for column in table.columns:
        if any(cell.runs for cell in column.cells.values()):
            grids.append(_details(table, column))
            if table.per_label:
                grids.append(_labels(table, column))
    return grids


def _overview(table: Table) -> Grid:
    published = {column.name for column in table.columns if any(c.published is not None for c in column.cells.values())}
    estimator = table.view == "estimator"
    header = ["row"]
    for column in table.columns:
        header += [f"{column.name}, in domain", f"{column.name}, out"] if estimator else [column.name]
        header += [f"{column.name}, paper"] if column.name in published else []
    lines = []
    for row in table.rows:
        line = [row]
        for column in table.columns:
            cell = column.cells.get(row, Cell())
            line.append(f"{spread(cell.scores['f1'])}{_star(cell)}" if cell.runs else "")
            if estimator:
                line.append(spread(cell.scores["f1_out"]) if "f1_out" in cell.scores else "")
            if column.name in published:
                line.append("" if cell.published is None else f"{cell.published:.2f}")
        lines.append(tuple(line))
    return Grid(table.title, tuple(header), tuple(lines), tuple(_caption(table)))


def _star(cell: Cell) -> str:
    return " *" if cell.corrected is not None and cell.corrected < SIGNIFICANT else ""


def _caption(table: Table) -> list[str]:
    lines = []
    if table.view == "estimator":
        lines.append("Macro-F1 in per cent, mean ± standard deviation over seeds.")
    else:
        kinds = {run.task for column in table.columns for cell in column.cells.values() for run in cell.runs}
        what = {"ner": "entities: strict IOB2 micro-F1", "re": "relations: micro-F1 without None"}
        said = "; ".join(text for kind, text in what.items() if kind in kinds)
        lines.append(f"Test F1 in per cent ({said}), mean ± standard deviation over seeds; the epoch is chosen on dev.")
    if any(cell.comparison for column in table.columns for cell in column.cells.values()):
        lines.append(
            f"* differs from {table.reference}: paired bootstrap over posts with seeds nested, p < {SIGNIFICANT} after "
            "Holm's correction over the comparisons of this table."
        )
    said: dict[str, list[str]] = {}  # what is the same of several columns is said once
    for column in table.columns:
        for text in (f"{column.about}.", *(f"! {mark}" for mark in column.marks)):
            said.setdefault(text, []).append(column.name)
    lines += [f"{', '.join(names)}: {text}" for text, names in said.items()]
    if table.missing:
        lines.append(f"Not finished, so not counted: {', '.join(table.missing)}.")
    return [*lines, *table.notes]


def _details(table: Table, column) -> Grid:
    found = [cell for cell in column.cells.values() if cell.runs]
    metrics = [name for name in METRICS if any(name in cell.scores for cell in found)]
    compared = any(cell.comparison for cell in found)
    header = ["row", "seeds", *(METRICS[name] for name in metrics)]
    header += [f"against {table.reference}", "95 % interval", "p", "p, Holm"] if compared else []
    header += ["parameters", "s a step"]
    lines = []
    for row, cell in column.cells.items():
        if not cell.runs:
            continue
        line = [row, ", ".join(map(str, cell.seeds))]
        line += [spread(cell.scores[name]) if name in cell.scores else "" for name in metrics]
        if compared:
            one = cell.comparison
            line += ["", "", "", ""] if one is None else [
                f"{100 * one.difference:+.1f}", f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
                _p(one.p_value), _p(cell.corrected),
            ]  # fmt: skip
        report = cell.runs[0].report
        steps = [run.report["seconds_per_step"] for run in cell.runs if run.report["seconds_per_step"]]
        line += [f"{report['parameters']:,}", f"{np.median(steps):.3g}" if steps else ""]
        lines.append(tuple(line))
    return Grid(f"{table.title}: {column.name}", tuple(header), tuple(lines), tuple(f"! {m}" for m in column.marks))


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _labels(table: Table, column) -> Grid:
    found = {row: cell for row, cell in column.cells.items() if cell.runs}
    labels = sorted({label for cell in found.values() for label in cell.per_label})
    support = {label: max(cell.support.get(label, 0) for cell in found.values()) for label in labels}
    labels.sort(key=lambda label: (-support[label], label))
    lines = [
        (
            label,
            f"{support[label]:,}",
            *(spread(c.per_label[label]) if label in c.per_label else "" for c in found.values()),
        )
        for label in labels
    ]
    title = f"{table.title}: {column.name}, F1 by label"
    return Grid(title, ("label", "gold", *found), tuple(lines), tuple(f"! {mark}" for mark in column.marks))


# ------------------------------------------------------------------ formats


def markdown(tables: Sequence[Table]) -> str:
    """All tables as Markdown."""
    return "\n\n".join(markdown_grid(grid) for table in tables for grid in grids_of(table)) + "\n"


def markdown_grid(grid: Grid) -> str:
    """One of them, title and caption included."""
    header, *rows = [[cell.replace("|", "\\|") for cell in line] for line in (grid.header, *grid.lines)]
    body = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    return "\n".join([f"## {grid.title}", "", body, "", *(f"{line}  " for line in grid.caption)]).rstrip()


_LATEX = {"±": "$\\pm$", "–": "--", "…": "\\ldots{}", "²": "$^2$"}


def _latex_text(text: str) -> str:
    """Text with LaTeX's characters escaped."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", "\\textbackslash{}"))
    text = text.replace("\\textbackslash\\{\\}", "\\textbackslash{}").replace("~", "\\textasciitilde{}")
    text = text.replace("^", "\\textasciicircum{}").replace("<", "$<$").replace(">", "$>$")
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return text


def latex(tables: Sequence[Table]) -> str:
    """All tables as LaTeX with booktabs; ``\\usepackage{booktabs}`` is all that they need."""
    parts = []
    for number, (kind, grid) in enumerate(((t.view, g) for t in tables for g in grids_of(t)), 1):
        body = tabulate(grid.lines, grid.header, tablefmt="latex_booktabs", disable_numparse=True)
        for character, command in _LATEX.items():
            body = body.replace(character, command)
        caption = " ".join(_latex_text(line) for line in (f"{grid.title}.", *grid.caption))
        parts += [
            "\\begin{table}", "  \\centering", "\n".join(f"  {line}" for line in body.splitlines()),
            f"  \\caption{{{caption}}}", f"  \\label{{tab:{kind}-{number}}}", "\\end{table}", "",
        ]  # fmt: skip
    return "\n".join(parts)


def as_csv(tables: Sequence[Table]) -> str:
    """One line for each table, column, row and seed, with what was compared; figures unrounded, in per cent."""
    stream = io.StringIO()
    names = [
        "table", "column", "row", "seed", *METRICS, "difference", "low", "high", "p", "p_holm", "reference",
        "published", "parameters", "seconds_per_step", "labels_sha256", "label_version", "marks", "workdir",
    ]  # fmt: skip
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for column in table.columns:
            for row, cell in column.cells.items():
                about: dict[str, Any] = {
                    "table": table.title, "column": column.name, "row": row, "published": cell.published,
                    "reference": table.reference,
                }  # fmt: skip
                if cell.comparison:
                    one = cell.comparison
                    about |= {"difference": 100 * one.difference, "low": 100 * one.low, "high": 100 * one.high}
                    about |= {"p": one.p_value, "p_holm": cell.corrected}
                if not cell.runs:
                    writer.writerow(about)
                for index, run in enumerate(cell.runs):
                    report = run.report
                    writer.writerow(
                        about
                        | {name: float(values[index]) for name, values in cell.scores.items()}
                        | {
                            "seed": report["seed"], "parameters": report["parameters"],
                            "seconds_per_step": report["seconds_per_step"], "workdir": str(run.workdir),
                            "labels_sha256": report.get("labels_sha256", {}).get("test"),
                            "label_version": report.get("label_version"),
                            "marks": "; ".join(mark.partition(":")[0] for mark in marks_of(report["data"])),
                        }
                    )  # fmt: skip
    return stream.getvalue()


def html(tables: Sequence[Table], title: str) -> str:
    """One page that asks for nothing else: every table, with its plot."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sections = [{"table": table, "plots": plot_of(table), "grids": grids_of(table)} for table in tables]
    page = environment.get_template("report.html")
    return page.render(title=title, sections=sections, marks=_marks(tables), version=__version__)


def _marks(tables: Sequence[Table]) -> list[str]:
    """Each mark once, with the columns that have it."""
    found: dict[str, dict[str, None]] = {}
    for column in (column for table in tables for column in table.columns):
        for mark in column.marks:
            found.setdefault(mark, {})[column.name] = None
    return [f"{mark} ({', '.join(names)})" for mark, names in found.items()]


def write_tables(tables: Sequence[Table], out: Path, title: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write OUT with the endings .md, .tex, .csv and .html; returns the paths."""
    makers: Mapping[str, Any] = {
        "md": lambda: f"# {title}\n\n{markdown(tables)}",
        "tex": lambda: latex(tables),
        "csv": lambda: as_csv(tables),
        "html": lambda: html(tables, title),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out.with_name(f"{out.name}.{name}") for name in formats]
    for path, name in zip(paths, formats, strict=True):
        write_atomic(path, makers[name]().encode())
    return paths
