"""One experiment of either task, read from top to bottom: data, model, step, loop, test once.

What a task is made of comes from its reader (:mod:`tmrjax.tasks.system`); nothing here knows which one it is.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.lib import build, command, workdirs
from experiments.lib.loop import restore_best, train
from experiments.lib.settings import check_settings
from tmrjax.files import DataError
from tmrjax.inputs.collate import Batches, BatchPlan, sample_fraction
from tmrjax.records import Dataset, read_dataset
from tmrjax.tasks.report import ablation_name, format_report, warnings_of
from tmrjax.training.checkpoints import package_versions
from tmrjax.training.sharding import check_batch_size, make_mesh
from tmrjax.training.step import OptimizerSettings, create_state, make_optimizer, make_train_step

logger = logging.getLogger(__name__)
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of a training command."""
    command.define_flags()
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, metrics, report.json.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(_) -> None:
    """Flags in, report out."""
    run(FLAGS.config, Path(FLAGS.workdir))


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train, evaluate and report; resumes what is in ``workdir``. Returns the report."""
    # ---- data, mesh, model
    check_settings(config)
    if not config.data.root:
        raise ValueError("no data set was given: --config.data.root=DIR (CONTRIBUTING.md says how to prepare one)")
    dataset = read_dataset(config.data.root, on_error=config.data.on_error)
    for split in ("train", "dev", "test"):
        if not dataset.splits.get(split):
            needs = "records to learn from, to choose the epoch by, and to report"
            raise DataError(
                dataset.root, f"no record in {split}", needs, "Import with fewer demands, or split by hand."
            )
    identity = config.to_dict() | {"dataset": command.dataset_meta(dataset)}
    if workdirs.on_first_process(lambda: workdirs.check_workdir(workdir, identity)):
        return workdirs.finished_report(workdir, lambda report: show(report, dataset))
    for mark in warnings_of(dataset.info):
        logger.warning("%s", mark)
    mesh = make_mesh(config.devices or None)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    check_batch_size(config.eval_batch_size, mesh)
    reader = build.build_reader(config, dataset)
    model = reader.model
    variables = build.initial_variables(config, dataset, reader)

    # ---- input
    records = sample_fraction(dataset.splits["train"], config.data.fraction, config.seed)
    examples = reader.training_rows(reader.encode(records, say="train"))
    dev = reader.encode(dataset.splits["dev"], say="dev")
    used = [*records, *dataset.splits["dev"], *dataset.splits["test"]]
    pictures = command.picture_source(reader, dataset, used, variables, config.data)
    lengths = [len(example.pieces.input_ids) for example in examples]
    plan = BatchPlan(lengths, reader.buckets, config.batch_size, epochs=config.epochs, seed=config.seed)
    batches = Batches(examples, plan, reader.collator(pictures), jax.process_index(), jax.process_count())

    # ---- step
    settings = OptimizerSettings(
        len(plan), config.lr_encoder, config.lr_fusion, config.weight_decay, config.warmup, config.clip
    )
    optimizer = make_optimizer(settings, variables["params"], model.frozen)
    step = make_train_step(reader.loss(), optimizer, mesh, accumulate=config.accumulate)
    predict = reader.predict_step(mesh)

    def predictions_of(variables, examples, *, probabilities=False) -> list[Any]:
        return command.predict_split(
            reader, predict, variables, examples, pictures, mesh, config.eval_batch_size,
            num_threads=config.data.num_threads, probabilities=probabilities,
        )  # fmt: skip

    def evaluate_dev(variables) -> dict[str, float]:
        scores = reader.report(dev, predictions_of(variables, dev))
        return {name: scores[name] for name in ("precision", "recall", "f1")}

    # ---- loop
    meta = {
        "config": json.loads(json.dumps(config.to_dict())),
        "dataset": command.dataset_meta(dataset),
        "versions": package_versions(),
        **reader.to_meta(),
    }
    with workdirs.claimed_workdir(workdir, identity):
        outcome = train(
            workdir=workdir,
            state=create_state(variables, optimizer, seed=config.seed),
            step_function=step,
            batches=batches,
            evaluate=evaluate_dev,
            meta=meta,
            mesh=mesh,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            num_threads=config.data.num_threads,
            num_workers=config.data.num_workers,
        )

        # ---- test, once, with the best epoch on dev; what is said of it comes from the JSON beside its weights
        variables, kept = restore_best(workdir, mesh)
        best, scores = kept["best"], {}
        for split, encoded in (("dev", dev), ("test", reader.encode(dataset.splits["test"], say="test"))):
            predictions = predictions_of(variables, encoded, probabilities=True)
            scores[split] = reader.report(encoded, predictions)
            if jax.process_index() == 0:
                path = workdir / "predictions" / f"{split}.jsonl"
                about = command.about_predictions(dataset, split, kept)
                command.write_predictions(path, reader, encoded, predictions, about)
        report = {
            "task": config.task,
            "variant": model.variant,
            "ablation": ablation_name(model),
            "dataset": dataset.info.name,
            "data": meta["dataset"],
            "labels_sha256": dict(dataset.info.labels_sha256),
            "label_version": dataset.label_version,
            "leaky_phrases": dataset.info.leaky_phrases,
            "leaky_regions": dataset.info.leaky_regions,
            "seed": config.seed,
            "fraction": config.data.fraction,
            "train_posts": {"used": len(records), "of": len(dataset.splits["train"])},
            "best_epoch": best["epoch"],
            "dev": {name: best[name] for name in ("precision", "recall", "f1")},
            "test": scores["test"],
            "seconds_per_step": outcome["seconds_per_step"],
            "compile_seconds": outcome["compile_seconds"],
            "steps": outcome["steps"],
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
            "devices": mesh.size,
            "platform": jax.default_backend(),
            "versions": meta["versions"],
        }
        if jax.process_index() == 0:
            command.write_json(workdir / workdirs.REPORT, report)
            show(report, dataset)
        return report


def show(report: dict[str, Any], dataset: Dataset) -> None:
    """Print the report."""
    posts = report["train_posts"]
    part = f"{100 * report['fraction']:g} % of train ({posts['used']} of {posts['of']} posts), "
    title = (
        f"{report['dataset']} test, variant {report['variant']}, left out: {report['ablation']}, "
        f"{part if report['fraction'] < 1 else ''}seed {report['seed']} "
        f"(epoch {report['best_epoch']} by dev F1 {100 * report['dev']['f1']:.2f})"
    )
    print(format_report(report["task"], report["test"], title, dataset.info, dataset.label_version), flush=True)
