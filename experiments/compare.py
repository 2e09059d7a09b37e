"""Compare finished runs: mean and deviation over seeds, per label, and each row against one by a paired test.

python experiments/compare.py RUN RUN ... [--reference=tmr] [--out=runs/comparison] [--subset=complementary]

Runs that differ by nothing but their seed are one row. All must have read the same test posts with the same labels.
Prints the table as Markdown; with --out also writes OUT with the endings .md, .tex (booktabs), .csv and .html,
one page with the plots inside. The test is a bootstrap over posts with seeds nested, corrected by Holm's method for the
number of comparisons (tmrjax/tasks/comparison.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.analysis.runs import read_run, rows_of
from experiments.analysis.tables import Table, make_table
from experiments.lib import command
from experiments.lib.subsets import SUBSETS

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    FLAGS.set_default("compile_cache", False)  # nothing is compiled
    flags.DEFINE_string("reference", None, "Row that the others are tested against; the first run's unless given.")
    flags.DEFINE_string("out", None, "Where to write the tables, without the ending.")
    flags.DEFINE_enum("subset", "all", list(SUBSETS), "Which posts of test count.")
    flags.DEFINE_string("title", "Comparison", "Title of the table.")


def compare(
    workdirs: Sequence[str | Path], *, reference: str | None = None, subset: str = "all", title: str = "Comparison"
) -> Table:
    """The table of runs; raises CheckpointError where they cannot be compared, ValueError for an unknown reference."""
    if not workdirs:
        raise ValueError("name the workdirs of finished runs, as in: compare.py runs/a runs/b")
    runs = [read_run(workdir) for workdir in workdirs]
    rows = rows_of(runs)
    if reference is None:
        reference = next(name for name, found in rows.items() if runs[0] in found)
    if reference not in rows:
        raise ValueError(f"--reference is {reference!r}, which is no row; the rows are: {'; '.join(rows)}")
    name = runs[0].report["dataset"] if subset == "all" else f"{runs[0].report['dataset']}, {subset}"
    keep = None if subset == "all" else SUBSETS[subset]
    view = "estimator" if runs[0].task == "mde" else "table"
    return make_table(title, {name: rows}, reference=reference, keep=keep, per_label=True, view=view)


def main(arguments: list[str]) -> None:
    """Workdirs in, tables out."""
    # Markdown needs no plots, so matplotlib is imported only where a page is written.
    from experiments.analysis.writing import markdown, write_tables

    table = compare(arguments[1:], reference=FLAGS.reference, subset=FLAGS.subset, title=FLAGS.title)
    print(markdown([table]), end="")
    if FLAGS.out:
        paths = write_tables([table], Path(FLAGS.out), FLAGS.title)
        print(f"\nwrote {', '.join(map(str, paths))}")


def cli() -> None:
    """The command."""
    define_flags()
    command.run(main, arguments=True)


if __name__ == "__main__":
    cli()
