"""Restore an estimator's best checkpoint and report splits of a corpus side by side, on any devices.

python experiments/evaluate_mde.py --workdir=runs/demo/estimator [--data=CORPUS] [--splits=dev --splits=test]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command
from experiments.lib.loop import restore_best
from experiments.lib.pairs import TESTS, corpus_meta, evaluate_split
from tmrjax.divergence.corpus import SPLITS, open_corpus
from tmrjax.divergence.report import format_divergence_report
from tmrjax.divergence.system import Estimator
from tmrjax.training.sharding import make_mesh

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a training run of experiments/mde.py.")
    flags.DEFINE_multi_enum("splits", None, list(SPLITS), "What to evaluate on; the corpus's tests unless given.")
    flags.DEFINE_string("data", None, "Another corpus than the run's own.")
    flags.DEFINE_integer("devices", None, "Number of devices; all unless given.")
    flags.DEFINE_integer("batch_size", None, "Pairs at a time; the run's own unless given.")
    flags.DEFINE_string("output", None, "Write the report as JSON.")
    flags.mark_flags_as_required(["workdir"])


def evaluate(
    workdir: Path,
    splits: Sequence[str] | None = None,
    *,
    data: str | None = None,
    devices: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """{split: report}, with "data" and "devices"; printed as a table too.

    Raises CheckpointError for a checkpoint of another kind, DataError for a split that the corpus does not have.
    """
    mesh = make_mesh(devices)
    variables, meta = restore_best(workdir, mesh)
    estimator, config = Estimator.from_meta(meta), meta["config"]
    corpus = open_corpus(command.data_root(data, config), require_classes=())
    size = batch_size or config["eval_batch_size"]
    size = -(-size // mesh.size) * mesh.size
    step = estimator.score_step(mesh)
    workers = config["data"].get("num_threads", 2), config["data"].get("num_workers", 0)  # a conversion names none
    reports = {
        split: evaluate_split(estimator, step, variables, estimator.batches(corpus[split], size), mesh, *workers)
        for split in splits or [split for split in TESTS if split in corpus]
    }
    title = f"{corpus.info.name}, estimator trained by {config['mode']}, variant {estimator.model.variant}"
    print(format_divergence_report(reports, title, synthetic=corpus.info.synthetic), flush=True)
    return {**reports, "data": corpus_meta(corpus), "devices": mesh.size}


def main(_) -> None:
    """Flags in, table out."""
    report = evaluate(
        Path(FLAGS.workdir), FLAGS.splits, data=FLAGS.data, devices=FLAGS.devices, batch_size=FLAGS.batch_size
    )
    if FLAGS.output:
        command.write_json(Path(FLAGS.output), report)


def cli() -> None:
    """The command."""
    define_flags()
    command.run(main)


if __name__ == "__main__":
    cli()
