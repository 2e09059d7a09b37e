"""Experiments on posts: entities and relations."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.lib import build, command
from experiments.lib.loop import progress_bar
from tmrjax.files import DataError, parse_json, read_bytes, sha256
from tmrjax.inputs.batching import BatchPlan
from tmrjax.inputs.collate import Batches, sample_fraction
from tmrjax.inputs.picture_adds import SIDE as PICTURE_ADDS
from tmrjax.methods import name_of
from tmrjax.prediction.posts import read_post
from tmrjax.records import Record, read_dataset
from tmrjax.tasks.calibration import calibration_report, outcomes
from tmrjax.tasks.report import format_report, warnings_of
from tmrjax.training.optimizer import parameter_groups
from tmrjax.training.step import Loss

logger = logging.getLogger(__name__)
TEXT_PICTURE = "text_picture.jsonl"  # in the folder of a data set


class PostExperiment:
    """See :class:`experiments.lib.experiment.Experiment`."""

    def __init__(self, config: ConfigDict):
        if not config.data.root:
            raise ValueError("no data set was given: --config.data.root=DIR (CONTRIBUTING.md says how to prepare one)")
        self.config, self.loop, self.second = config, {}, {}
        self.dataset = read_dataset(config.data.root, on_error=config.data.on_error)
        for split in ("train", "dev", "test"):
            if not self.dataset.splits.get(split):
                needs = "records to learn from, to choose the epoch by, and to report"
                raise DataError(
                    self.dataset.root, f"no record in {split}", needs, "Import with fewer demands, or split by hand."
                )
        self.data_meta = command.dataset_meta(self.dataset)

    def build(self, mesh: Mesh) -> dict[str, Any]:
        """System, variables, batches."""
        for mark in warnings_of(self.dataset.info):
            logger.warning("%s", mark)
        config, splits = self.config, self.dataset.splits
        self.mesh, self.system = mesh, build.build_system(config, self.dataset)
        variables = build.initial_variables(config, self.dataset, self.system)
        self.records = sample_fraction(splits["train"], config.data.fraction, config.seed)
        examples = self.system.training_rows(self.system.encode(self.records, say="train"))
        self.dev = self.system.encode(splits["dev"], say="dev")
        second = self._second_records() if self.system.method.second else []
        used = [*self.records, *splits["dev"], *splits["test"], *second]
        self.pictures = command.picture_source(self.system, self.dataset, used, variables, config.data)
        lengths = [len(example.pieces.input_ids) for example in examples]
        plan = BatchPlan(lengths, self.system.buckets, config.batch_size, epochs=config.epochs, seed=config.seed)
        further = None
        if second:
            further = self.system.second_batches(
                second, self.pictures, batch_size=config.batch_size, epochs=config.epochs, seed=config.seed
            )
        collator = self.system.collator(self.pictures)
        packing = self.system.packing(self.pictures, mesh, config.accumulate)
        self.batches = Batches(examples, plan, collator, jax.process_index(), jax.process_count(), further, packing)
        self.steps, self.step = len(plan), self.system.predict_step(mesh)
        return variables

    def _second_records(self) -> list[Record]:
        """The posts of the method's second stream: the config's file, or the data set's own; none is said."""
        given = self.config.data.text_picture
        path = Path(given or self.dataset.root / TEXT_PICTURE)
        if not given and not path.is_file():
            logger.warning(
                "no posts for the second task of %s (--config.data.text_picture=FILE, made by "
                "data_prep/import_text_picture.py): it is left out", name_of(self.system.method),
            )  # fmt: skip
            return []
        records = []
        content = read_bytes(path)
        for number, line in enumerate(content.splitlines(), start=1):
            where = f"{path}:{number}"
            post = read_post(parse_json(line, where), self.dataset.info, where=where)
            image = post.record.image and str((path.parent / post.record.image).resolve())
            side = {PICTURE_ADDS: post.carried.get(PICTURE_ADDS)}
            records.append(dataclasses.replace(post.record, image=image, sides=side))
        self.second = {"text_picture": {"posts": len(records), "sha256": sha256(content)}}
        return records

    def loss(self) -> Loss:
        """The head's loss and the method's own."""
        return self.system.loss()

    def groups(self, params: Any) -> Any:
        """By the config's patterns, then by the method's."""
        given = [(pattern, f"config.rates {pattern}") for pattern, _ in self.config.rates]
        method = self.system.method
        return parameter_groups(params, [*given, *method.rates], method.frozen)

    def rates(self) -> dict[str, float]:
        """Of the method's groups, and of the config's patterns."""
        config = self.config
        named = {"encoder": config.lr_encoder, "fusion": config.lr_fusion, "crf": config.lr_crf or config.lr_fusion}
        return named | {f"config.rates {pattern}": rate for pattern, rate in config.rates}

    def to_meta(self) -> dict[str, Any]:
        """The system, and what its second stream was."""
        return self.system.to_meta() | self.second

    def evaluate_dev(self, variables: Any) -> dict[str, float]:
        """Precision, recall, F1."""
        predictions = self.system.predict(
            self.step, variables, self.dev, self.pictures, self.mesh, **self._reading, progress=progress_bar
        )
        scores = self.system.report(self.dev, predictions)
        return {name: scores[name] for name in ("precision", "recall", "f1")}

    @property
    def _reading(self) -> dict[str, int]:
        data = self.config.data
        workers = {"num_threads": data.num_threads, "num_workers": data.num_workers}
        return {"batch_size": self.config.eval_batch_size, **workers}

    def results(self, variables: Any, kept: dict[str, Any], workdir: Path) -> dict[str, Any]:
        """Writes the predictions of dev and test, and reports them."""
        dataset, best, system, scores = self.dataset, kept["best"], self.system, {}
        test = system.encode(dataset.splits["test"], say="test")
        reading = {**self._reading, "progress": progress_bar}
        temperature, on_dev = system.fit_temperature(
            self.step, variables, self.dev, self.pictures, self.mesh, **reading
        )
        views = (system, dataclasses.replace(system, temperature=temperature))
        on_test = system.predict_as(
            views, self.step, variables, test, self.pictures, self.mesh, probabilities=True, **reading
        )
        calibration: dict[str, Any] = {"temperature": temperature}
        for split, encoded, predictions, calibrated in (
            ("dev", self.dev, on_dev[1.0], on_dev[temperature]), ("test", test, *on_test),
        ):  # fmt: skip
            scores[split] = system.report(encoded, predictions)
            for name, found in ((split, predictions), (f"{split}_at_temperature", calibrated)):
                calibration[name] = calibration_report(*outcomes(system.prediction_rows(encoded, found), system.task))
            if jax.process_index() == 0:
                path = workdir / "predictions" / f"{split}.jsonl"
                about = command.about_predictions(dataset, split, kept)
                command.write_predictions(path, system, encoded, predictions, about)
        return {
            "method": name_of(self.system.method),
            "ablation": self.system.method.left_out,
            "dataset": dataset.info.name,
            "labels_sha256": dict(dataset.info.labels_sha256),
            "label_version": dataset.label_version,
            "leaky_phrases": dataset.info.leaky_phrases,
            "leaky_regions": dataset.info.leaky_regions,
            "fraction": self.config.data.fraction,
            "train_posts": {"used": len(self.records), "of": len(dataset.splits["train"])},
            "best_epoch": best["epoch"],
            "encoders": dict(self.system.encoders),
            **self.second,
            "dev": {name: best[name] for name in ("precision", "recall", "f1")},
            "test": scores["test"],
            "calibration": calibration,
        }

    def show(self, report: dict[str, Any]) -> None:
        """A table under the method's name, what was left out, the seed and the epoch."""
        posts = report["train_posts"]
        part = f"{100 * report['fraction']:g} % of train ({posts['used']} of {posts['of']} posts), "
        title = (
            f"{report['dataset']} test, method {report['method']}, left out: {report['ablation']}, "
            f"{part if report['fraction'] < 1 else ''}seed {report['seed']} "
            f"(epoch {report['best_epoch']} by dev F1 {100 * report['dev']['f1']:.2f})"
        )
        info, version = self.dataset.info, self.dataset.label_version
        print(format_report(report["task"], report["test"], title, info, version), flush=True)
