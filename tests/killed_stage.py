"""Kills a stage at every point where it touches the disk, for tests/data_prep/test_stages.py: `killed_stage.py SET
COPIES`.

Each run is a fork of this process that kills itself with SIGKILL before the k-th event (a batch of work, an fsync, a
rename), in a copy of the data set; then this process goes on with it. One JSON line per k says how it died and what
the copy has in the end. The last k is the first that no run lived to see.
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from data_prep.stages.frame import Outcome, Selection, Stage, run_stage
from tmrjax.files import DataError
from tmrjax.records import read_dataset


def shout(root, *, batch_size=2, mark="!", fails=(), event=lambda: None):
    """A stage that writes the tokens in capitals as the one phrase, and the ids that it worked on into `worked`."""

    def work(batch):
        event()
        with open(Path(root) / "worked", "a") as worked:
            worked.writelines(f"{record.id}\n" for record in batch)
        return [
            DataError(record.id, "a dislike", "none", "Like it.")
            if record.id in fails
            else Outcome([" ".join(record.tokens).upper() + mark], {"words": len(record.tokens)})
            for record in batch
        ]

    return Stage(
        name="shout",
        tool="tests/killed_stage.py",
        work=work,
        apply=lambda record, value: dataclasses.replace(record, phrases=tuple(value)),
        inputs=lambda record: record.tokens,
        options={"mark": mark},
        batch_size=batch_size,
    )


def die_at(number):
    """A counter that kills this process before its `number`-th event, hung before all that is durable."""
    count = iter(range(1, number + 1))

    def event(*_):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync, replace = os.fsync, os.replace
    os.fsync = lambda *what: (event(), fsync(*what))[1]
    os.replace = lambda *what: (event(), replace(*what))[1]
    return event


def main():
    """Counts up the event of death until a run outlives it."""
    source, copies = map(Path, sys.argv[1:])
    for number in range(1, 100):
        root = copies / str(number)
        shutil.copytree(source, root)
        child = os.fork()
        if child == 0:
            run_stage(root, shout(root, event=die_at(number)), Selection(progress=False))
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        worked = (root / "worked").read_text().split() if (root / "worked").exists() else []
        dataset = read_dataset(root)  # whatever the moment, the set is whole
        folded = sum(len(record.phrases) for records in dataset.splits.values() for record in records)
        run_stage(root, shout(root), Selection(progress=False))
        again = (root / "worked").read_text().split()[len(worked) :]
        texts = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
        files = {name: text for name, text in texts.items() if name.endswith(".jsonl") and "journals" not in name}
        found = {
            "died": died,
            "before": worked,
            "again": again,
            "folded": folded,
            "files": files,
            "names": sorted(texts),
        }
        print(json.dumps(found))
        if died == 0:
            break


if __name__ == "__main__":
    main()
