"""Restore the best checkpoint of a run and report a split: the same figure as the run itself, on any devices.

python experiments/evaluate.py --workdir=runs/demo/full --split=test [--subset=complementary]
python experiments/evaluate.py --workdir=runs/demo/full --pictures=own,none,shuffled,grey,generated-only
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command
from experiments.lib.loop import progress_bar, restore_best
from experiments.lib.measuring import Timer
from experiments.lib.picture_changes import GREY, OWN, PICTURES, require_pictures, with_pictures, write_grey
from experiments.lib.subsets import SUBSETS
from tmrjax.compilation import Compiled
from tmrjax.files import DataError
from tmrjax.methods import name_of
from tmrjax.records import read_dataset
from tmrjax.tasks import system_from_meta
from tmrjax.tasks.comparison import COUNTS, holm, paired_bootstrap
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
    flags.DEFINE_list(
        "pictures", [OWN], f"What the text is read beside, of {', '.join(PICTURES)}; others than own: a paired test."
    )
    flags.DEFINE_integer("seed", 0, "Of --pictures=shuffled and of the paired test.")
    flags.DEFINE_string("data", None, "Another prepared data set than the run's own.")
    flags.DEFINE_integer("devices", None, "Number of devices; all unless given.")
    flags.DEFINE_integer("batch_size", None, "Posts at a time; the run's own unless given.")
    flags.DEFINE_string("output", None, "Write the report as JSON.")
    flags.DEFINE_string("predictions", None, "Write gold and prediction of each post as JSONL.")


def evaluate(
    workdir: Path,
    split: str = "test",
    *,
    subset: str = "all",
    pictures: Sequence[str] = (OWN,),
    seed: int = 0,
    data: str | None = None,
    devices: int | None = None,
    batch_size: int | None = None,
    predictions: Path | None = None,
) -> dict[str, Any]:
    """The report of one split, or of the records of one of SUBSETS; printed as a table too.

    ``pictures``: kinds of :mod:`experiments.lib.picture_changes`. With others than ``own`` the report of ``own`` has
    them under "pictures", each as its own report with "against_own", a paired bootstrap over the posts (one run: its
    seed takes no part), p values corrected for the number of kinds (Holm). ``seed``: of ``shuffled`` and the bootstrap.
    ``predictions``: where to write one line a post (:func:`experiments.lib.command.write_predictions`), for other
    pictures NAME-grey.jsonl and so on.

    Raises CheckpointError where the labels of another data set are not those of the checkpoint, DataError where the
    subset is empty, ValueError where the method does not read what is to be changed.
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
    require_pictures(system.method, pictures, records, dataset.root)
    size = batch_size or config["eval_batch_size"]
    size = -(-size // mesh.size) * mesh.size
    timer = Timer()
    step = Compiled(system.predict_step(mesh), timer)
    part = split if subset == "all" else f"{split}, {subset} ({len(records)} of {len(dataset.splits[split])})"
    kinds = [OWN, *(kind for kind in PICTURES if kind in pictures and kind != OWN)]
    reports, counts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        grey = write_grey(Path(folder))
        for kind in kinds:
            changed = with_pictures(records, kind, grey, seed=seed)
            # The states of a picture that is not of the data are not kept beside those that are.
            cache = {"feature_cache_folder": folder} if kind == GREY else {}
            source = command.picture_source(system, dataset, changed, variables, {**config["data"], **cache})
            examples = system.encode(changed, say=split if kind == OWN else None)
            found = system.predict(
                step, variables, examples, source, mesh, batch_size=size,
                num_threads=config["data"].get("num_threads", 2),  # a converted checkpoint names none
                num_workers=config["data"].get("num_workers", 0),
                probabilities=predictions is not None or len(kinds) > 1, progress=progress_bar,
            )  # fmt: skip
            reports[kind] = system.report(examples, found)
            if len(kinds) > 1:
                counts[kind] = COUNTS[system.task](system.prediction_rows(examples, found))[None]
            if predictions is not None and jax.process_index() == 0:
                about = {**command.about_predictions(dataset, split, meta), "subset": subset}
                about |= {"pictures": kind, "workdir": str(workdir)} | ({"seed": seed} if kind != OWN else {})
                path = predictions if kind == OWN else predictions.with_stem(f"{predictions.stem}-{kind}")
                command.write_predictions(path, system, examples, found, about)
            name = part if kind == OWN else f"{part}, pictures: {kind}"
            title = f"{dataset.info.name} {name}, method {name_of(system.method)}, left out: {system.method.left_out}"
            print(format_report(system.task, reports[kind], title, dataset.info, dataset.label_version), flush=True)
    report = {
        "split": split,
        "subset": subset,
        "data": command.dataset_meta(dataset),
        "labels_sha256": dict(dataset.info.labels_sha256),
        "label_version": dataset.label_version,
        "leaky_phrases": dataset.info.leaky_phrases,
        "leaky_regions": dataset.info.leaky_regions,
        "devices": mesh.size,
        "compile_seconds": timer.compile_seconds,
        **reports[OWN],
    }
    if len(kinds) > 1:
        report["pictures_seed"] = seed
        report["pictures"] = {kind: {**reports[kind], **_against_own(counts, kind, seed)} for kind in kinds}
        _correct(report["pictures"])
        print(picture_table(report["pictures"], f"{dataset.info.name} {part}, {name_of(system.method)}"), flush=True)
    return report


def _against_own(counts: Mapping[str, np.ndarray], kind: str, seed: int) -> dict[str, Any]:
    if kind == OWN:
        return {}
    changed = int((counts[kind][0] != counts[OWN][0]).any(-1).sum())
    compared = paired_bootstrap(counts[kind], counts[OWN], seed=seed)
    return {"against_own": {"posts_scored_otherwise": changed, **dataclasses.asdict(compared)}}


def _correct(reports: Mapping[str, dict[str, Any]]) -> None:
    """Add "p_value_holm", over all kinds that were compared."""
    compared = [report["against_own"] for report in reports.values() if "against_own" in report]
    for one, p_value in zip(compared, holm([one["p_value"] for one in compared]), strict=True):
        one["p_value_holm"] = p_value


def picture_table(reports: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """A row for each kind of pictures: F1, and the paired test against the post's own."""
    head = f"{'pictures':<16}{'F1':>7}{'difference':>12}{'95 % interval':>18}{'p (Holm)':>10}{'posts':>7}"
    lines = [f"Does the picture matter? {title}", head]
    for kind, report in reports.items():
        line = f"{kind:<16}{100 * report['f1']:>7.2f}"
        if found := report.get("against_own"):
            interval = f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
            line += f"{100 * found['difference']:>+12.2f}{interval:>18}{found['p_value_holm']:>10.3f}"
            line += f"{found['posts_scored_otherwise']:>7,}"
        lines.append(line)
    lines.append("posts: those that score otherwise than beside their own pictures. One run; its seed takes no part.")
    return "\n".join(lines)


def main(_) -> None:
    """Flags in, table out."""
    report = evaluate(
        Path(FLAGS.workdir),
        FLAGS.split,
        subset=FLAGS.subset,
        pictures=FLAGS.pictures,
        seed=FLAGS.seed,
        data=FLAGS.data,
        devices=FLAGS.devices,
        batch_size=FLAGS.batch_size,
        predictions=Path(FLAGS.predictions) if FLAGS.predictions else None,
    )
    if FLAGS.output:
        command.write_json(Path(FLAGS.output), report)


def cli() -> None:
    """The command."""
    define_flags()
    flags.mark_flags_as_required(["workdir"])
    command.run(main)


if __name__ == "__main__":
    cli()
