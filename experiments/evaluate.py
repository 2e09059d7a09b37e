"""Restore the best checkpoint of a run and report a split: the same figure as the run itself, on any devices.

python experiments/evaluate.py --workdir=runs/demo/full --split=test
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments import running
from experiments.loop import restore_best
from tmrjax.checkpoints import CheckpointError
from tmrjax.records import read_dataset
from tmrjax.report import ablation_name, format_entity_report
from tmrjax.sharding import make_mesh
from tmrjax.tagger import Tagger

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    running.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_enum("split", "test", ["train", "dev", "test"], "What to evaluate on.")
    flags.DEFINE_string("data", None, "Another prepared data set than the run's own.")
    flags.DEFINE_integer("devices", None, "Number of devices; all unless given.")
    flags.DEFINE_integer("batch_size", None, "Posts at a time; the run's own unless given.")
    flags.DEFINE_string("output", None, "Write the report as JSON.")


def evaluate(
    workdir: Path,
    split: str = "test",
    *,
    data: str | None = None,
    devices: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """The report of one split; printed as a table too.

    Raises CheckpointError where the tag set of another data set is not that of the checkpoint.
    """
    mesh = make_mesh(devices)
    variables, meta = restore_best(workdir, mesh)
    tagger = Tagger.from_meta(meta)
    config = meta["config"]
    dataset = read_dataset(data or config["data"]["root"], on_error=config["data"]["on_error"])
    if dataset.info.task != meta["task"] or set(dataset.info.labels) != set(tagger.labels.labels):
        raise CheckpointError(
            f"{workdir} was trained for {meta['task']!r} with {list(tagger.labels.labels)}, but {dataset.root} is "
            f"{dataset.info.task!r} with {list(dataset.info.labels)}: evaluate on data with the same labels"
        )
    examples = tagger.encode(dataset.splits[split])
    pictures = running.picture_source(tagger, dataset, dataset.splits[split], variables, config["data"])
    size = batch_size or config["eval_batch_size"]
    size = -(-size // mesh.size) * mesh.size
    report = running.evaluate_split(tagger, tagger.predict_step(mesh), variables, examples, pictures, mesh, size)
    title = f"{dataset.info.name} {split}, variant {tagger.model.variant}, left out: {ablation_name(tagger.model)}"
    print(format_entity_report(report, title, dataset.info), flush=True)
    return {"split": split, "data": running.dataset_meta(dataset), "devices": mesh.size, **report}


def main(_) -> None:
    """Flags in, table out."""
    running.start()
    report = evaluate(
        Path(FLAGS.workdir), FLAGS.split, data=FLAGS.data, devices=FLAGS.devices, batch_size=FLAGS.batch_size
    )
    if FLAGS.output:
        running.write_json(Path(FLAGS.output), report)


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
