"""One experiment of any task, read from top to bottom: data, system, step, loop, test once.

What a task is made of comes from its :class:`Experiment` (posts.py, pairs.py); nothing here knows which one it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from experiments.lib import command, workdirs
from experiments.lib.loop import restore_best, train
from experiments.lib.measuring import peak_memory
from experiments.lib.pairs import PairExperiment
from experiments.lib.posts import PostExperiment
from experiments.lib.settings import check_settings
from tmrjax.training.checkpoints import package_versions
from tmrjax.training.optimizer import OptimizerSettings, make_optimizer, schedules_of
from tmrjax.training.sharding import check_batch_size, make_mesh
from tmrjax.training.step import Loss, create_state, make_train_step

FLAGS = flags.FLAGS


class Experiment(Protocol):
    """What the driver asks of a kind of experiment. ``__init__`` opens and checks the data that the config names.

    data_meta: what a checkpoint and a report say of the data. batches: of training, once ``build`` was called. steps:
    of the whole run. loop: further arguments of :func:`experiments.lib.loop.train`.
    """

    data_meta: dict[str, Any]
    batches: Any
    steps: int
    loop: dict[str, Any]

    def __init__(self, config: ConfigDict): ...

    def build(self, mesh: Mesh) -> dict[str, Any]:
        """Make the system and the batches; returns the variables before the first step."""

    def loss(self) -> Loss:
        """What training minimises."""

    def groups(self, params: Any) -> Any:
        """The group of learning rates of each parameter."""

    def rates(self) -> dict[str, float]:
        """The peak learning rate of each group."""

    def to_meta(self) -> dict[str, Any]:
        """The system as JSON, for checkpoints."""

    def evaluate_dev(self, variables: Any) -> dict[str, float]:
        """Scores on dev, by which the best step is chosen."""

    def results(self, variables: Any, kept: dict[str, Any], workdir: Path) -> dict[str, Any]:
        """The report's part of this task: what the best variables give on dev and, once, on test."""

    def show(self, report: dict[str, Any]) -> None:
        """Print a report."""


KINDS: dict[str, type[Experiment]] = {"ner": PostExperiment, "re": PostExperiment, "mde": PairExperiment}


def define_flags() -> None:
    """Flags of a training command."""
    command.define_flags()
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, metrics, report.json.")
    flags.DEFINE_integer("profile", 0, "Trace this many steps into WORKDIR/profile.", lower_bound=0)
    flags.mark_flags_as_required(["config", "workdir"])


def main(_) -> None:
    """Flags in, report out."""
    run(FLAGS.config, Path(FLAGS.workdir), profile=FLAGS.profile)


def run(config: ConfigDict, workdir: Path, *, profile: int = 0) -> dict[str, Any]:
    """Train, evaluate and report; resumes what is in ``workdir``. Returns the report. ``profile``: steps to trace."""
    # ---- data, mesh, system
    check_settings(config)
    experiment = KINDS[config.task](config)
    meta = {"config": json.loads(json.dumps(config.to_dict())), "dataset": experiment.data_meta}
    identity = meta["config"] | {"dataset": experiment.data_meta}
    if workdirs.on_first_process(lambda: workdirs.check_workdir(workdir, identity)):
        return workdirs.finished_report(workdir, experiment.show)
    mesh = make_mesh(config.devices or None)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    check_batch_size(config.eval_batch_size, mesh)
    variables = experiment.build(mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    # ---- step
    settings = OptimizerSettings(
        experiment.steps, experiment.rates(), config.weight_decay, config.warmup, config.clip,
        kind=config.get("optimizer", "adamw"), momentum=config.get("momentum", 0.0),
        decay=config.get("decay", "linear"), epochs=config.get("epochs", 1),
    )  # fmt: skip
    groups = experiment.groups(variables["params"])
    optimizer = make_optimizer(settings, groups)
    step = make_train_step(experiment.loss(), optimizer, mesh, accumulate=config.accumulate)

    # ---- loop
    meta |= {"versions": package_versions(), **experiment.to_meta()}
    with workdirs.claimed_workdir(workdir, identity):
        outcome = train(
            workdir=workdir,
            state=create_state(variables, optimizer, seed=config.seed),
            step_function=step,
            batches=experiment.batches,
            evaluate=experiment.evaluate_dev,
            meta=meta,
            mesh=mesh,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            num_threads=config.data.num_threads,
            num_workers=config.data.num_workers,
            rates=schedules_of(settings, groups),
            profile=profile,
            **experiment.loop,
        )

        # ---- test, once, with the best step on dev; what is said of it comes from the JSON beside its weights
        variables, kept = restore_best(workdir, mesh)
        seconds = outcome["seconds_per_step"]
        report = {
            "task": config.task,
            "data": experiment.data_meta,
            "seed": config.seed,
            **experiment.results(variables, kept, workdir),
            "seconds_per_step": seconds,
            "examples_per_second": config.batch_size / seconds if seconds else None,
            "waiting_share": outcome["waiting_share"],
            "compile_seconds": outcome["compile_seconds"],
            "peak_memory": peak_memory(mesh),
            "steps": outcome["steps"],
            "parameters": parameters,
            "devices": mesh.size,
            "platform": jax.default_backend(),
            "versions": meta["versions"],
        }
        if jax.process_index() == 0:
            command.write_json(workdir / workdirs.REPORT, report)
            experiment.show(report)
            print(speed_line(report), flush=True)
        return report


def speed_line(report: dict[str, Any]) -> str:
    """Seconds of a step, what share of them it waited for posts, memory at most; for the terminal."""
    if not report["seconds_per_step"]:
        return "no step was timed"
    peaks = {"in memory": report["peak_memory"]["host"], "on a device": report["peak_memory"]["device"]}
    memory = "".join(f"; at most {peak / 2**30:.1f} GiB {where}" for where, peak in peaks.items() if peak)
    return (
        f"{report['seconds_per_step']:.3g} s a step, {100 * report['waiting_share']:.0f} % of it waiting for the next "
        f"batch; {report['compile_seconds']:.0f} s to compile{memory}"
    )
