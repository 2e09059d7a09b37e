"""Parts of a split that are scored on their own."""

from __future__ import annotations

from collections.abc import Callable

from tmrjax.records import Record

SUBSETS: dict[str, Callable[[Record], bool]] = {
    "all": lambda record: True,
    "complementary": lambda record: record.scores is not None and record.scores[1] > 0.5,
}
