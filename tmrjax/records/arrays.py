"""Rows of tables beside a data set: what is too large for JSON, such as the features of detected objects.

A table is a file ``arrays/NAME.npy`` of the data set's folder, [N, F]; a side of a record names its rows, ``"rows":
[start, end]``. Rows are read from the disk when they are asked for: the file is mapped into memory, once a process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "arrays"
# Side -> its table; the others' tables have the side's name.
TABLES = {"objects": "object_features"}


def table_path(root: str | Path, side: str) -> Path:
    """Where the table of a side lies."""
    return Path(root) / FOLDER / f"{TABLES.get(side, side)}.npy"


class ArrayRows(list):
    """[start, end] of a table, as the record has it, that knows the table's file."""

    def __init__(self, path: Path, start: int, end: int):
        super().__init__((start, end))
        self.path = path

    def __reduce__(self):
        return ArrayRows, (self.path, *self)

    def load(self) -> Any:
        """The rows, float32 [end − start, F]; raises ValueError where the table is not there or too short."""
        import numpy as np

        table = _open_table(self.path)
        start, end = self
        if end > len(table):
            raise ValueError(f"{self.path} has {len(table)} rows, but a record names the rows {start} to {end}")
        return np.asarray(table[start:end], np.float32)


@functools.lru_cache(maxsize=8)
def _open_table(path: Path) -> Any:
    import numpy as np

    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no table of numbers ({error}); run the stage again that makes it") from None
    if table.ndim != 2 or not np.issubdtype(table.dtype, np.floating):
        raise ValueError(f"{path}: {table.dtype} {table.shape}; expected floats [rows, width]")
    return table


def with_rows(name: str, side: Any, root: Path | None, fail: Callable[[str, str, str], None]) -> Any:
    """A side as the record's JSON has it, its "rows" as :class:`ArrayRows`; ``fail`` raises the record's error."""
    if not isinstance(side, dict) or side.get("rows") is None:
        return side
    rows = side["rows"]
    whole = isinstance(rows, list) and len(rows) == 2 and all(type(part) is int for part in rows)
    if not whole or not 0 <= rows[0] <= rows[1]:
        fail(f"{str(rows)[:80]!r} in 'sides.{name}.rows'", "[start, end) as two integers", "Run its stage again.")
    if root is None:
        return side
    return side | {"rows": ArrayRows(table_path(root, name), *rows)}
