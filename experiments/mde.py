"""Train the divergence estimator, choose by dev macro F1, report both tests once: in the domain and out of it.

python experiments/mde.py --config=experiments/configs/mde.py:demo --workdir=runs/demo/estimator
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command, workdirs
from experiments.lib.build_estimator import build_estimator, initial_variables
from experiments.lib.loop import progress_bar, restore_best, train
from experiments.lib.settings import check_settings
from tmrjax.divergence.corpus import Corpus, open_corpus
from tmrjax.divergence.loss import make_loss
from tmrjax.divergence.pipeline import PairBatches, TextLengths
from tmrjax.divergence.report import divergence_report, format_divergence_report
from tmrjax.divergence.system import Estimator
from tmrjax.training.checkpoints import package_versions
from tmrjax.training.sharding import check_batch_size, make_mesh
from tmrjax.training.step import OptimizerSettings, create_state, make_optimizer, make_train_step

FLAGS = flags.FLAGS
TESTS = ("test", "test_out_of_domain")
DEV_SCORES = ("macro_f1", "micro_f1", "ece", "log_loss")


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, metrics, report.json.")
    flags.mark_flags_as_required(["config", "workdir"])


def corpus_meta(corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint and a report say of their corpus."""
    info = corpus.info
    return {
        "name": info.name,
        "files": {name: [shard["sha256"] for shard in split.shards] for name, split in info.splits.items()},
        "pairs": {name: split.class_counts() for name, split in info.splits.items()},
        "sources": {name: sorted(split.counts) for name, split in info.splits.items()},
        "synthetic": info.synthetic,
        "seed": info.seed,
    }


def evaluate_split(
    estimator: Estimator,
    step: Any,
    variables: Any,
    planned: tuple[PairBatches, TextLengths],
    mesh: Mesh,
    num_threads: int = 2,
) -> dict[str, Any]:
    """The report of all pairs of one split, with how many of its texts were cut.

    ``planned``: of :meth:`tmrjax.divergence.system.Estimator.batches`, which reads every text of the split.
    """
    batches, lengths = planned
    scores = estimator.scores(step, variables, batches, mesh, num_threads=num_threads, progress=progress_bar)
    report = divergence_report(batches.split.index["label"], scores)
    return {**report, "texts_cut": lengths.cut, "texts_without_pieces": lengths.empty}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train, evaluate and report; resumes what is in ``workdir``. Returns the report."""
    # ---- corpus, mesh, model
    check_settings(config)
    if config.choose_by not in DEV_SCORES:
        raise ValueError(f"--config.choose_by is {config.choose_by!r}; expected one of {', '.join(DEV_SCORES)}")
    if not config.data.root:
        raise ValueError("no corpus was given: --config.data.root=DIR (data_prep/build_divergence_corpus.py makes one)")
    corpus = open_corpus(config.data.root, require_classes=("train", "dev"))
    meta = {"config": json.loads(json.dumps(config.to_dict())), "dataset": corpus_meta(corpus)}
    identity = meta["config"] | {"dataset": meta["dataset"]}
    if workdirs.on_first_process(lambda: workdirs.check_workdir(workdir, identity)):
        return workdirs.finished_report(workdir, show)
    mesh = make_mesh(config.devices or None)
    check_batch_size(config.batch_size, mesh)
    check_batch_size(config.eval_batch_size, mesh)
    estimator = build_estimator(config, corpus.root)
    variables = initial_variables(config, corpus.root, estimator)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    # ---- input
    epochs = -(-config.steps * config.batch_size // len(corpus["train"]))
    batches, lengths = estimator.batches(corpus["train"], config.batch_size, epochs=epochs, seed=config.seed)

    # ---- step
    settings = OptimizerSettings(config.steps, config.lr, config.lr, config.weight_decay, config.warmup, config.clip)
    optimizer = make_optimizer(settings, variables["params"])
    loss = make_loss(estimator.model, config.mode, temperature=config.temperature, negatives=config.negatives)
    step = make_train_step(loss, optimizer, mesh)
    score = estimator.score_step(mesh)

    def evaluate(variables, planned) -> dict[str, Any]:
        return evaluate_split(estimator, score, variables, planned, mesh, config.data.num_threads)

    dev = estimator.batches(corpus["dev"], config.eval_batch_size)

    def evaluate_dev(variables) -> dict[str, float]:
        scores = evaluate(variables, dev)
        return {name: scores[name] for name in DEV_SCORES}

    # ---- loop
    meta |= {"versions": package_versions(), **estimator.to_meta()}
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
            steps=config.steps,
            evaluate_every=config.evaluate_every,
            choose_by=config.choose_by,
        )

        # ---- both tests, once, with the best step on dev; what is said of it comes from the JSON beside its weights
        variables, kept = restore_best(workdir, mesh)
        best = kept["best"]
        tests = {name: estimator.batches(corpus[name], config.eval_batch_size) for name in TESTS if name in corpus}
        seconds = outcome["seconds_per_step"]
        report = {
            "task": config.task,
            "variant": config.model.variant,
            "mode": config.mode,
            "dataset": corpus.info.name,
            "data": meta["dataset"],
            "leaky_phrases": False,
            "leaky_regions": False,
            "seed": config.seed,
            "best_step": best["step"],
            "dev": {name: best[name] for name in DEV_SCORES},
            **{name: evaluate(variables, planned) for name, planned in tests.items()},
            "train_texts": {"cut": lengths.cut, "without_pieces": lengths.empty},
            "seconds_per_step": seconds,
            "pictures_per_second": config.batch_size / seconds if seconds else None,
            "compile_seconds": outcome["compile_seconds"],
            "steps": outcome["steps"],
            "parameters": parameters,
            "devices": mesh.size,
            "platform": jax.default_backend(),
            "versions": meta["versions"],
        }
        if jax.process_index() == 0:
            command.write_json(workdir / workdirs.REPORT, report)
            show(report)
        return report


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    title = (
        f"{report['dataset']}, {report['mode']}, variant {report['variant']}, seed {report['seed']} (step "
        f"{report['best_step']} by dev macro F1 {100 * report['dev']['macro_f1']:.2f})"
    )
    tests = {name: report[name] for name in TESTS if name in report}
    print(format_divergence_report(tests, title, synthetic=report["data"]["synthetic"]), flush=True)


def main(_) -> None:
    """Flags in, report out."""
    run(FLAGS.config, Path(FLAGS.workdir))


if __name__ == "__main__":
    define_flags()
    command.run(main)
