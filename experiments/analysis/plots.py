"""Plots of tables as SVG texts: means with their deviation, curves over the share of training data, calibration."""

from __future__ import annotations

import io
import logging
import re

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.tables import Column, Table
from tmrjax.tasks.calibration import reliability, risk_coverage

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell lines apart in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a05195")
MARKERS = "osD^vPX*"
STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "tmrjax",
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Grey that can be read on a light and on a dark page.
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#808080"),
}


def plot_of(table: Table) -> list[str]:
    """The plots of a table, each an <svg> element; none where there is nothing to draw."""
    if table.view == "curve":
        svg = _curve(table)
        return [svg] if svg else []
    drawn = [(_points(column, table.reference), _calibration(column)) for column in table.columns]
    return [svg for plots in drawn for svg in plots if svg]


def _figure(height: float, columns: int = 1) -> tuple[Figure, Axes]:
    """A figure of one plot, or of several beside each other, height in inches. Not pyplot's, which would keep it."""
    figure = Figure(figsize=(6.4 if columns == 1 else 8.4, height))
    return figure, figure.subplots(1, columns)


def _svg(figure: Figure, label: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    return re.sub("<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1)


def _points(column: Column, reference: str) -> str:
    """A line a row: each seed as a dot, mean and deviation as a bar, the published figure as a ring."""
    rows = {row: cell for row, cell in column.cells.items() if cell.runs}
    if len(rows) < 2:
        return ""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(0.6 + 0.26 * len(rows))
        for place, (row, cell) in enumerate(rows.items()):
            values = cell.scores["f1"]
            colour = COLOURS[1] if row == reference else COLOURS[0]
            axes.errorbar(values.mean(), place, xerr=values.std(), fmt="o", color=colour, capsize=2.5, markersize=5)
            axes.plot(values, np.full(len(values), place), "|", color=colour, alpha=0.5, markersize=7)
            if "f1_out" in cell.scores:
                out = cell.scores["f1_out"]
                axes.errorbar(out.mean(), place, xerr=out.std(), fmt="s", color=COLOURS[2], capsize=2.5, markersize=4)
            if cell.published is not None:
                axes.plot(cell.published, place, "o", markerfacecolor="none", color="#777", markersize=7)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.25)
        said = ["mean ± std over seeds, each seed a stroke"]
        said += ["ring: published"] if any(cell.published is not None for cell in rows.values()) else []
        said += ["square: out of domain"] if any("f1_out" in cell.scores for cell in rows.values()) else []
        axes.set_xlabel(f"F1, {column.name} ({'; '.join(said)})")
        return _svg(figure, f"F1 of each row on {column.name}")


def _calibration(column: Column) -> str:
    """Left the accuracy of answers by their probability, right the risk by the coverage; seeds of a row together."""
    found = {row: cell.outcomes for row, cell in column.cells.items() if cell.outcomes is not None}
    rows = {row: answers for row, answers in found.items() if len(answers[0])}
    if not rows:
        return ""
    with mpl.rc_context(STYLE):
        figure, (left, right) = _figure(3.4, columns=2)
        left.plot((0, 1), (0, 1), ":", color="#7f7f7f", linewidth=1)
        for number, (row, (probabilities, correct)) in enumerate(rows.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            bins = reliability(probabilities, correct)
            x, y = [one["probability"] for one in bins], [one["accuracy"] for one in bins]
            left.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1, label=row)
            coverage, risk, _ = risk_coverage(probabilities, correct)
            right.step(100 * coverage, 100 * risk, where="post", color=colour, linewidth=1)
        left.set_xlabel("probability of answers (mean of a bin)")
        left.set_ylabel("share that is right")
        right.set_xlabel("answers kept, the surest first, per cent")
        right.set_ylabel("wrong ones among them, per cent")
        for axes in (left, right):
            axes.grid(alpha=0.25)
        left.legend(frameon=False, labelcolor="linecolor", fontsize=8)
        figure.suptitle(f"Calibration, {column.name}", fontsize=9, color="#808080")
        return _svg(figure, f"Calibration of each row on {column.name}")


def _curve(table: Table) -> str:
    """F1 over the share of the training data, a band of one deviation over seeds."""
    shares = [float(column.name.removesuffix(" %")) for column in table.columns]
    with mpl.rc_context(STYLE):
        figure, axes = _figure(3.6)
        drawn = 0
        for number, row in enumerate(table.rows):
            points = [
                (share, column.cells[row].scores["f1"])
                for share, column in zip(shares, table.columns, strict=True)
                if row in column.cells and column.cells[row].runs
            ]
            if not points:
                continue
            drawn += 1
            x = np.array([share for share, _ in points])
            mean, deviation = (np.array([part(values) for _, values in points]) for part in (np.mean, np.std))
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.plot(x, mean, color=colour, marker=marker, markersize=5, label=row)
            axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
        if not drawn:
            return ""
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.set_xlabel("training data, per cent")
        axes.set_ylabel("test F1, mean and one std over seeds")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, labelcolor="linecolor")
        return _svg(figure, f"{table.title}: F1 over the share of training data")
