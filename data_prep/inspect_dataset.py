"""Makes the contact sheet of a data set: one HTML page to look at before training.

    python data_prep/inspect_dataset.py DATASET --out=sheet.html [--split=train] [--limit=50] [--sample=SEED]

Without --sample the first posts of each split are shown, with it a random choice that the same seed repeats. The
summary is of the whole set in any case. See :mod:`data_prep.inspection.contact_sheet`.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.audit_leaks import audit
from data_prep.inspection.contact_sheet import sheet_html
from tmrjax.files import DataError, write_atomic
from tmrjax.records import SPLITS, Record, read_dataset

LIMIT = 50


def inspect_dataset(
    root: Path,
    out: Path,
    *,
    limit: int = LIMIT,
    splits: Sequence[str] | None = None,
    sample: int | None = None,
    on_error: str = "raise",
) -> list[tuple[str, Record]]:
    """Writes the page and returns the posts on it, with their splits. Raises :class:`DataError`.

    limit: posts on the page, shared out among the splits by their sizes, at least one each. sample: a seed; None for
    the first ones.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; expected at least 1")
    dataset = read_dataset(root, on_error=on_error)
    wanted = list(dataset.splits) if splits is None else list(splits)
    unknown = [split for split in wanted if split not in dataset.splits]
    if unknown:
        raise DataError(dataset.root, f"no split {unknown[0]!r}", f"one of {', '.join(dataset.splits)}", "Correct it.")
    total = sum(len(dataset.splits[split]) for split in wanted)
    posts = []
    for split in wanted:
        records = dataset.splits[split]
        count = min(len(records), max(1, round(limit * len(records) / max(total, 1))))
        if sample is not None:
            places = sorted(random.Random(f"{sample}-{split}").sample(range(len(records)), count))
            records = [records[place] for place in places]
        posts.extend((split, record) for record in records[:count])
    posts = posts[:limit]
    chosen = "" if len(posts) == total else (", the first ones" if sample is None else f", sampled with seed {sample}")
    page = sheet_html(dataset, posts, audit(dataset), chosen=chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode("utf-8"))
    return posts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a prepared data set")
    parser.add_argument("--out", type=Path, required=True, help="the page, as sheet.html")
    parser.add_argument("--limit", type=int, default=LIMIT, help="posts on the page (default: %(default)s)")
    parser.add_argument("--split", action="append", choices=SPLITS, help="only this one; may be repeated")
    parser.add_argument("--sample", type=int, metavar="SEED", help="a random choice of posts")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip leaves bad records out")
    flags = parser.parse_args()
    options = {"limit": flags.limit, "splits": flags.split, "sample": flags.sample, "on_error": flags.on_error}
    try:
        posts = inspect_dataset(flags.dataset, flags.out, **options)
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"inspect_dataset: {error}")
    print(f"{len(posts)} posts, {flags.out.stat().st_size / 1e6:.1f} MB: {flags.out}")


if __name__ == "__main__":
    main()
