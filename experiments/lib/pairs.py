"""Experiments on pairs of picture and text: the divergence estimator (§3.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.lib.build_estimator import build_estimator, initial_variables
from experiments.lib.loop import progress_bar
from tmrjax.divergence.corpus import Corpus, open_corpus
from tmrjax.divergence.loss import make_loss
from tmrjax.divergence.pipeline import PairBatches, TextLengths
from tmrjax.divergence.report import divergence_report, format_divergence_report
from tmrjax.divergence.system import Estimator
from tmrjax.training.optimizer import parameter_groups
from tmrjax.training.step import Loss

TESTS = ("test", "test_out_of_domain")
DEV_SCORES = ("macro_f1", "micro_f1", "ece", "log_loss")


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
    num_workers: int = 0,
) -> dict[str, Any]:
    """The report of all pairs of one split, with how many of its texts were cut.

    ``planned``: of :meth:`tmrjax.divergence.system.Estimator.batches`, which reads every text of the split.
    """
    batches, lengths = planned
    scores = estimator.scores(
        step, variables, batches, mesh, num_threads=num_threads, num_workers=num_workers, progress=progress_bar
    )
    report = divergence_report(batches.split.index["label"], scores)
    return {**report, "texts_cut": lengths.cut, "texts_without_pieces": lengths.empty}


class PairExperiment:
    """See :class:`experiments.lib.experiment.Experiment`."""

    def __init__(self, config: ConfigDict):
        if config.choose_by not in DEV_SCORES:
            raise ValueError(f"--config.choose_by is {config.choose_by!r}; expected one of {', '.join(DEV_SCORES)}")
        if not config.data.root:
            raise ValueError(
                "no corpus was given: --config.data.root=DIR (data_prep/build_divergence_corpus.py makes one)"
            )
        self.config, self.steps = config, config.steps
        self.corpus = open_corpus(config.data.root, require_classes=("train", "dev"))
        self.data_meta = corpus_meta(self.corpus)
        self.loop = {
            "steps": config.steps,
            "evaluate_every": config.evaluate_every,
            "choose_by": config.choose_by,
        }

    def build(self, mesh: Mesh) -> dict[str, Any]:
        """Estimator, variables, batches."""
        config, corpus = self.config, self.corpus
        self.mesh, self.estimator = mesh, build_estimator(config, corpus.root)
        variables = initial_variables(config, corpus.root, self.estimator)
        epochs = -(-config.steps * config.batch_size // len(corpus["train"]))
        self.batches, self.lengths = self.estimator.batches(
            corpus["train"], config.batch_size, epochs=epochs, seed=config.seed
        )
        self.dev = self.estimator.batches(corpus["dev"], config.eval_batch_size)
        self.step = self.estimator.score_step(mesh)
        return variables

    def loss(self) -> Loss:
        """Of the config's mode."""
        config = self.config
        return make_loss(self.estimator.model, config.mode, temperature=config.temperature, negatives=config.negatives)

    def groups(self, params: Any) -> Any:
        """One for all."""
        return parameter_groups(params, [(".*", "all")])

    def rates(self) -> dict[str, float]:
        """One for all."""
        return {"all": self.config.lr}

    def to_meta(self) -> dict[str, Any]:
        """The estimator."""
        return self.estimator.to_meta()

    def evaluate_dev(self, variables: Any) -> dict[str, float]:
        """DEV_SCORES."""
        scores = self._evaluate(variables, self.dev)
        return {name: scores[name] for name in DEV_SCORES}

    def _evaluate(self, variables: Any, planned: tuple[PairBatches, TextLengths]) -> dict[str, Any]:
        data = self.config.data
        return evaluate_split(
            self.estimator, self.step, variables, planned, self.mesh, data.num_threads, data.num_workers
        )

    def results(self, variables: Any, kept: dict[str, Any], workdir: Path) -> dict[str, Any]:
        """Both tests: in the domain and out of it."""
        config, corpus, best = self.config, self.corpus, kept["best"]
        tests = {name: self.estimator.batches(corpus[name], config.eval_batch_size) for name in TESTS if name in corpus}
        return {
            "variant": config.model.variant,
            "mode": config.mode,
            "dataset": corpus.info.name,
            "leaky_phrases": False,
            "leaky_regions": False,
            "best_step": best["step"],
            "dev": {name: best[name] for name in DEV_SCORES},
            **{name: self._evaluate(variables, planned) for name, planned in tests.items()},
            "train_texts": {"cut": self.lengths.cut, "without_pieces": self.lengths.empty},
        }

    def show(self, report: dict[str, Any]) -> None:
        """A table of both tests."""
        title = (
            f"{report['dataset']}, {report['mode']}, variant {report['variant']}, seed {report['seed']} (step "
            f"{report['best_step']} by dev macro F1 {100 * report['dev']['macro_f1']:.2f})"
        )
        tests = {name: report[name] for name in TESTS if name in report}
        print(format_divergence_report(tests, title, synthetic=report["data"]["synthetic"]), flush=True)
