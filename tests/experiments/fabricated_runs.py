"""Workdirs as finished runs leave them, without a training: reports, configs and predictions that a test chooses."""

import json
from pathlib import Path

from tmrjax.files import jsonl_bytes, sha256

LABELS = ("LOC", "PER")


def entity_rows(found: list[int], gold: int = 2) -> list[dict]:
    """Posts with ``gold`` entities each, the first ``found[i]`` of them found; the first is LOC, others PER."""
    rows = []
    for index, count in enumerate(found):
        spans = [{"start": n, "end": n + 1, "label": LABELS[n > 0]} for n in range(gold)]
        predicted = [{**span, "probability": 0.9} for span in spans[:count]]
        rows.append({"id": f"p{index}", "tokens": ["w"] * gold, "gold": spans, "predicted": predicted})
    return rows


def write_run(
    workdir: Path, rows: list[dict], *, method="tmr", seed=0, task="ner", changes=None, synthetic=True, ablation="none",
    labels="aa" * 32, version="unknown version", root="data",
) -> Path:  # fmt: skip
    """A run of ``method`` whose test predictions are ``rows``. ``changes``: of the config."""
    content = jsonl_bytes(rows)
    (workdir / "predictions").mkdir(parents=True)
    (workdir / "predictions" / "test.jsonl").write_bytes(content)
    about = {"split": "test", "sha256": sha256(content)}
    (workdir / "predictions" / "test.jsonl.about.json").write_text(json.dumps(about))
    data = {"root": str(root), "on_error": "raise"}
    config = {"task": task, "method": method, "seed": seed, "data": data, "dataset": {}, **(changes or {})}
    (workdir / "config.json").write_text(json.dumps(config))
    report = {
        "task": task, "method": method, "ablation": ablation, "seed": seed, "dataset": "small",
        "data": {"name": "small", "files": {"test.jsonl": "bb" * 32}, "synthetic": synthetic, "leaky_phrases": False,
                 "leaky_regions": not synthetic},
        "labels_sha256": {"test": labels}, "label_version": version, "parameters": 1234, "seconds_per_step": 0.25,
        "test": {"f1": 0.5, "lenient_f1": 0.5} if task == "ner" else {"f1": 0.5}, "dev": {"f1": 0.5},
    }  # fmt: skip
    (workdir / "report.json").write_text(json.dumps(report))
    return workdir
