"""One page of the posts of a split with gold and the predictions of each run: where they err, and where they differ.

python experiments/inspect_runs.py RUN [RUN ...] --out=page.html [--split=test] [--data=DIR]

A RUN is the workdir of a finished run, or a file that evaluate.py --predictions wrote, as with other pictures. All must
have read the same posts with the same labels. The page needs no network; ? on it tells its keys.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import flags
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.analysis.errors import KINDS
from experiments.analysis.posts_page import Page, page_of
from experiments.analysis.runs import read_predictions, read_run, require_comparable, rows_of
from experiments.lib import command
from tmrjax.files import write_atomic
from tmrjax.records import read_dataset

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    FLAGS.set_default("compile_cache", False)  # nothing is compiled
    flags.DEFINE_string("out", None, "Where to write the page.")
    flags.DEFINE_enum("split", "test", ["dev", "test"], "Which posts.")
    flags.DEFINE_string("data", None, "The prepared data set, where it is not where the first run read it.")
    flags.DEFINE_integer("thumbnail", 160, "Pixels of the longer side of a picture.", lower_bound=16)
    flags.DEFINE_integer("limit", None, "Only this many posts, the first ones.", lower_bound=1)
    flags.DEFINE_string("title", "Posts", "Title of the page.")


def inspect_runs(
    names: Sequence[str | Path], out: Path, *, split: str = "test", data: str | None = None, thumbnail: int = 160,
    limit: int | None = None, title: str = "Posts",
) -> Page:  # fmt: skip
    """Writes the page; raises CheckpointError where runs cannot be compared, ValueError for runs without posts."""
    if not names:
        raise ValueError("name the workdirs of finished runs, as in: inspect_runs.py runs/a runs/b --out=page.html")
    runs = [read_run(name) if Path(name).is_dir() else read_predictions(name) for name in names]
    for run in runs:
        if run.task not in KINDS:
            raise ValueError(f"{run.workdir}: a run of task {run.task!r}; expected one of {', '.join(KINDS)}")
    require_comparable(runs, split)
    dataset = read_dataset(command.data_root(data, runs[0].config), on_error=runs[0].config["data"]["on_error"])
    progress = partial(tqdm, desc="pictures", unit="picture", disable=None)
    page = page_of(rows_of(runs), dataset, split, title=title, thumbnail=thumbnail, limit=limit, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.html.encode())
    return page


def main(arguments: list[str]) -> None:
    """Runs in, page out."""
    page = inspect_runs(
        arguments[1:], Path(FLAGS.out), split=FLAGS.split, data=FLAGS.data, thumbnail=FLAGS.thumbnail,
        limit=FLAGS.limit, title=FLAGS.title,
    )  # fmt: skip
    size = Path(FLAGS.out).stat().st_size / 1e6
    print(f"wrote {FLAGS.out}: {page.posts:,} posts, {page.pictures:,} pictures, {size:.1f} MB")
    if page.unreadable:
        print(f"{len(page.unreadable)} pictures cannot be read, {page.unreadable[0]} first; the page says so of each")


def cli() -> None:
    """The command."""
    define_flags()
    flags.mark_flags_as_required(["out"])
    command.run(main, arguments=True)


if __name__ == "__main__":
    cli()
