"""Restore the best checkpoint of a run and report a split: the same figure as the run itself, on any devices.

python experiments/evaluate.py --workdir=runs/demo/full --split=test [--subset=complementary]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command
from experiments.lib.loop import restore_best
from experiments.lib.subsets import SUBSETS
from tmrjax.files import DataError
from tmrjax.methods import name_of
from tmrjax.records import read_dataset
from tmrjax.tasks import system_from_meta
from tmrjax.tasks.report import format_report
from tmrjax.training.checkpoints import CheckpointError
from tmrjax.training.sharding import make_mesh

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_enum("split", "test", ["train", "dev", "test"], "What to evaluate on.")
    flags.DEFINE_enum("subset", "all", list(SUBSETS), "complementary: complement score > 0.5 (Table 2 of the paper).")
    flags.DEFINE_string("data", None, "Another prepared data set than the run's own.")
    flags.DEFINE_integer("devices", None, "Number of devices; all unless given.")
    flags.DEFINE_integer("batch_size", None, "Posts at a time; the run's own unless given.")
    flags.DEFINE_string("output", None, "Write the report as JSON.")
    flags.DEFINE_string("predictions", None, "Write gold and prediction of each post as JSONL, see README.md.")


def evaluate(
    workdir: Path,
    split: str = "test",
    *,
    subset: str = "all",
    data: str | None = None,
    devices: int | None = None,
    batch_size: int | None = None,
    predictions: Path | None = None,
) -> dict[str, Any]:
    """The report of one split, or of the records of one of SUBSETS; printed as a table too.

    ``predictions``: where to write one line a post (:func:`experiments.lib.command.write_predictions`).

    Raises CheckpointError where the labels of another data set are not those of the checkpoint, DataError where the
    subset is empty.
    """
    mesh = make_mesh(devices)
    variables, meta = restore_best(workdir, mesh)
    system = system_from_meta(meta)
    config = meta["config"]
    dataset = read_dataset(command.data_root(data, config), on_error=config["data"]["on_error"])
    if dataset.info.task != meta["task"] or set(dataset.info.labels) != set(system.labels):
        raise CheckpointError(
            f"{workdir} was trained for {meta['task']!r} with {list(system.labels)}, but {dataset.root} is "
            f"{dataset.info.task!r} with {list(dataset.info.labels)}: evaluate on data with the same labels"
        )
    records = [record for record in dataset.splits[split] if SUBSETS[subset](record)]
    if not records:
        raise DataError(
            dataset.root,
            f"no record of {split} in the subset {subset!r}",
            "some",
            "Score the set, or take another one.",
        )
    pictures = command.picture_source(system, dataset, records, variables, config["data"])
    size = batch_size or config["eval_batch_size"]
    size = -(-size // mesh.size) * mesh.size
    step = system.predict_step(mesh)
    examples = system.encode(records, say=split)
    found = command.predict_split(
        system, step, variables, examples, pictures, mesh, size,
        num_threads=config["data"].get("num_threads", 2),  # a converted checkpoint names none
        probabilities=predictions is not None,
    )  # fmt: skip
    report = system.report(examples, found)
    if predictions is not None and jax.process_index() == 0:
        about = {**command.about_predictions(dataset, split, meta), "subset": subset}
        command.write_predictions(predictions, system, examples, found, about)
    name = split if subset == "all" else f"{split}, {subset} ({len(records)} of {len(dataset.splits[split])})"
    title = f"{dataset.info.name} {name}, method {name_of(system.method)}, left out: {system.method.left_out}"
    print(format_report(system.task, report, title, dataset.info, dataset.label_version), flush=True)
    return {
        "split": split,
        "subset": subset,
        "data": command.dataset_meta(dataset),
        "labels_sha256": dict(dataset.info.labels_sha256),
        "label_version": dataset.label_version,
        "leaky_phrases": dataset.info.leaky_phrases,
        "leaky_regions": dataset.info.leaky_regions,
        "devices": mesh.size,
        **report,
    }


def main(_) -> None:
    """Flags in, table out."""
    report = evaluate(
        Path(FLAGS.workdir),
        FLAGS.split,
        subset=FLAGS.subset,
        data=FLAGS.data,
        devices=FLAGS.devices,
        batch_size=FLAGS.batch_size,
        predictions=Path(FLAGS.predictions) if FLAGS.predictions else None,
    )
    if FLAGS.output:
        command.write_json(Path(FLAGS.output), report)


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["workdir"])
    command.run(main)
