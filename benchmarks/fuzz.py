"""Damages inputs in a thousand ways and says what came of it: a clear error, or a result, never a traceback or a hang.

    python -m benchmarks.fuzz --data=DIR --out=DIR --seed=0

``--data`` is a folder with ``tmr-release/`` (posts of it are imported). Each input is a sound one with one to three
damages (:func:`damaged`), read in this process with a time limit. The table that is printed, and ``fuzz.json`` in
``--out``, counts per target: the same result as without damage; another result without an error; records that were
skipped and listed; one clear error; any other exception; no end within the limit. "Other" is no fault where nobody can
know (a changed word is a word). It is one where a hash or a checksum tells: those targets are marked, and a single one
there, a traceback or a hang makes the command fail. Each is kept in ``--out`` with its seed.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_targets import TARGETS, Target

OUTCOMES = ("same", "other", "skipped", "error", "traceback", "hang")
HEADINGS = ("same result", "other, no error", "skipped and listed", "clear error", "traceback", "hang")
LIMIT = 30.0  # seconds; the machine may be busy

HOSTILE = (
    None, True, 0, -1, 1.5, 10**400, 1e308, "", " ", "O", "x", "a\nb", "a\0b", "\ud800", "../../x", "/etc/passwd",
    "<script>", "x" * 20_000, [], {}, [[]], [None], {"a": {}}, [1, 2, 3, 4], float("nan"), float("inf"),
)  # fmt: skip


class Hang(BaseException):
    """No end within the limit; no `except Exception` on the way may take it for an error of its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises :class:`Hang` in the middle of what takes longer."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------ damages


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """One damage: bits, bytes, blocks, lines, or a value of a line that is JSON or a Python literal."""
    return _DAMAGES[int(random.integers(len(_DAMAGES)))](data, random)


def _place(data: bytes, random: np.random.Generator) -> int:
    return int(random.integers(max(len(data), 1)))


def _flip(data: bytes, random: np.random.Generator) -> bytes:
    place = _place(data, random)
    return (
        data[:place]
        + bytes(byte ^ (1 << int(random.integers(8))) for byte in data[place : place + 1])
        + data[place + 1 :]
    )


def _cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: _place(data, random)]


def _zero(data: bytes, random: np.random.Generator) -> bytes:
    place, length = _place(data, random), int(random.choice([1, 32, 512]))
    return data[:place] + b"\0" * len(data[place : place + length]) + data[place + length :]


def _insert(data: bytes, random: np.random.Generator) -> bytes:
    place = _place(data, random)
    noise = [b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\t", b"\0", b"[" * 5_000, b"9" * 5_000, b'"', b"}", b"\\u"]
    return data[:place] + noise[int(random.integers(len(noise)))] + data[place:]


def _lines(data: bytes, random: np.random.Generator) -> bytes:
    lines = data.split(b"\n")
    first, second = (int(random.integers(len(lines))) for _ in range(2))
    kind = int(random.integers(4))
    if kind == 0:
        del lines[first]
    elif kind == 1:
        lines.insert(second, lines[first])
    elif kind == 2:
        lines[first], lines[second] = lines[second], lines[first]
    else:
        lines[first] = b""
    return b"\n".join(lines)


def _value(data: bytes, random: np.random.Generator) -> bytes:
    """Another value, or none, at some place of the object that a line, or the whole file, is."""
    lines = data.split(b"\n")
    number = int(random.integers(len(lines)))
    for text, put in (
        (lines[number], lambda new: b"\n".join([*lines[:number], new, *lines[number + 1 :]])),
        (data, lambda new: new),
    ):
        for read, write in ((json.loads, json.dumps), (lambda text: ast.literal_eval(text.decode()), repr)):
            try:
                value = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, dict | list) and value:
                return put(write(_changed(value, random)).encode("utf-8", errors="replace"))
    return _flip(data, random)


def _changed(value: Any, random: np.random.Generator) -> Any:
    if not (isinstance(value, dict | list) and value) or random.random() < 0.15:
        return HOSTILE[int(random.integers(len(HOSTILE)))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, chance = keys[int(random.integers(len(keys)))], random.random()
    if chance < 0.1:
        del value[key]
    elif chance < 0.2 and isinstance(value, dict):
        value[f"{key}x"] = value.pop(key)
    else:
        value[key] = _changed(value[key], random)
    return value


_DAMAGES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    _flip, _flip, _cut, _zero, _insert, _lines, _lines, _value, _value, _value,
)  # fmt: skip


# ------------------------------------------------------------------ runs


@dataclass(frozen=True)
class Case:
    """What one damaged input came to."""

    outcome: str
    detail: str
    seconds: float


def run_case(target: Target, sound: Path, expected: Any, seed: list[int], place: Path, limit: float = LIMIT) -> Case:
    """Damages a copy of the sound input and reads it."""
    random = np.random.default_rng(seed)
    folder = place / "input"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder, symlinks=True)
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and target.is_damaged(path.relative_to(folder))
    ]
    for _ in range(int(random.integers(1, 4))):
        path = files[int(random.integers(len(files)))]
        path.write_bytes(damaged(path.read_bytes(), random))
    began = time.perf_counter()
    try:
        target.after_damage(folder)
        with time_limit(limit):
            result, skipped = target.read(folder, bool(random.integers(2)))
        outcome = "skipped" if skipped else "same" if result == expected else "other"
        detail = ""
    except Hang:
        outcome, detail = "hang", ""
    except target.errors as error:
        outcome, detail = "error", str(error)[:300]
    except Exception:
        outcome, detail = "traceback", traceback.format_exc()
    return Case(outcome, detail, time.perf_counter() - began)


def table(counts: dict[str, Counter[str]]) -> str:
    """Lines of a Markdown table; a star marks targets where damage can be recognised."""
    lines = ["| target | inputs | " + " | ".join(HEADINGS) + " |", "|---" * (len(HEADINGS) + 2) + "|"]
    marked = {target.name for target in TARGETS if target.is_recognisable}
    rows = [*counts.items(), ("all", sum(counts.values(), Counter()))]
    for name, count in rows:
        cells = [f"{name}{' *' if name in marked else ''}", str(count.total()), *(str(count[key]) for key in OUTCOMES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with tmr-release/")
    parser.add_argument("--out", type=Path, required=True, help="folder for fuzz.json and what failed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs, as 0.1 for a quick look")
    parser.add_argument("--only", action="append", help="these targets only; may be repeated")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Counter[str]] = {}
    failures = []
    with tempfile.TemporaryDirectory(prefix="tmrjax-fuzz") as place:
        for order, target in enumerate(TARGETS):
            if options.only and target.name not in options.only:
                continue
            sound = Path(place) / f"sound-{order}"
            sound.mkdir()
            target.make(sound, options.data)
            expected = target.read(_copy(sound, Path(place) / "input"), False)[0]
            counts[target.name], began = Counter(), time.perf_counter()
            for number in range(max(1, round(target.inputs * options.share))):
                seed = [options.seed, order, number]
                case = run_case(target, sound, expected, seed, Path(place))
                counts[target.name][case.outcome] += 1
                if case.outcome in ("traceback", "hang") or (case.outcome == "other" and target.is_recognisable):
                    failures.append(
                        {"target": target.name, "seed": seed, "outcome": case.outcome, "detail": case.detail}
                    )
                    kept = options.out / "-".join(map(str, [target.name.replace(" ", "_"), *seed]))
                    shutil.copytree(Path(place) / "input", kept, dirs_exist_ok=True)
            seconds = time.perf_counter() - began
            print(f"{target.name}: {dict(counts[target.name])}, {seconds:.0f} s", flush=True)
    print(table(counts))
    result = {"seed": options.seed, "counts": counts, "failures": failures}
    (options.out / "fuzz.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if failures:
        sys.exit(f"{len(failures)} inputs ended wrongly; they lie in {options.out}")


def _copy(sound: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder, symlinks=True)
    return folder


if __name__ == "__main__":
    main()
