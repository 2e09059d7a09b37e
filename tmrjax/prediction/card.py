"""The model card of an exported folder: what the model is, what it was trained on, what its figures are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmrjax import __version__
from tmrjax.tasks.report import marks_of

TASKS = {"ner": ("token-classification", "named entities"), "re": ("text-classification", "relations between entities")}
CITATION = """@inproceedings{zheng2023rethinking,
  title = {Rethinking Multimodal Entity and Relation Extraction from a Translation Point of View},
  author = {Zheng, Changmeng and Feng, Junhao and Cai, Yi and Wei, Xiaoyong and Li, Qing},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics},
  year = {2023}
}"""


def model_card(
    meta: Mapping[str, Any],
    parameters: int,
    *,
    report: Mapping[str, Any] | None = None,
    reads_pictures: bool = True,
    name: str = "OWNER/NAME",
    languages: Sequence[str] = (),
    licence: str = "other",
) -> str:
    """Markdown with the hub's metadata on top.

    Args:
        meta: a checkpoint's JSON, without paths of a machine. parameters: how many numbers.
        report: the run's report.json; without it the card has dev's figures only.
        reads_pictures: whether the method does. name: what the model is loaded by.
        languages: codes as ``en``. licence: of the hub's list.
    """
    from huggingface_hub import ModelCardData  # half a second that only who writes a card should wait for

    task, what = TASKS[meta["task"]]
    method = meta["method"]["name"]
    data = meta.get("dataset") or {}
    encoders = {kind: one for kind, one in (meta.get("encoders") or {}).items() if one}
    metadata = ModelCardData(
        language=list(languages) or None,
        license=licence,
        library_name="tmrjax",
        pipeline_tag=task,
        tags=["tmrjax", *(["multimodal"] if reads_pictures else []), method],
    )
    picture = ', "image": "photo.jpg"' if reads_pictures else ""
    call = {
        "ner": f'predictor.entities({{"text": "Jordan at the harbour"{picture}}})',
        "re": f'predictor.relations({{"text": "Ada joins the Club", "head": [0, 3], "tail": [14, 18]{picture}}})',
    }[meta["task"]]
    lines = [
        "---", metadata.to_yaml(), "---", "", f"# {method} for {what}", "",
        f"Reads posts{' with pictures' if reads_pictures else ', their text alone,'} and finds {what}: "
        f"{', '.join(meta['labels'])}.", "",
        "```python", "from tmrjax.predict import Predictor", "", f'predictor = Predictor.load("{name}")',
        call,
        "```", "", "## What it is", "", "| | |", "|---|---|",
        f"| method | `{method}` of tmrjax {__version__} |", f"| parameters | {parameters:,} |",
    ]  # fmt: skip
    for kind, encoder in encoders.items():
        revision = f", revision {encoder['revision']}" if encoder.get("revision") else ""
        lines.append(f"| {kind} encoder | {encoder.get('name') or 'from random weights'}{revision} |")
    lines += [f"| data | {data.get('name', 'not recorded')} |", ""]
    lines += _figures(meta, report)
    lines += _training(meta, data, report)
    lines += [
        "## Licence", "",
        f"`{licence}`: fill in those of the model, of its encoders and of its data; those of others stay theirs.", "",
        "## To cite", "", "```bibtex", CITATION, "```", "",
        "and the method's own paper, which its file in `tmrjax/methods/` names.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _figures(meta: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    lines = ["## Figures", ""]
    for mark in marks_of(meta.get("dataset") or {}):
        lines += [f"**{mark}.**", ""]
    if report is None:
        best = meta.get("best") or {}
        if "f1" in best:
            return [
                *lines,
                f"F1 on dev {100 * best['f1']:.2f} (epoch {best['epoch']}, chosen by it). Test was not reported.",
                "",
            ]
        return [*lines, "None were recorded.", ""]
    test = report["test"]
    what = "strict IOB2 micro" if report["task"] == "ner" else "micro, without None"
    lines += [
        f"Test, once, of one run (seed {report['seed']}, epoch {report['best_epoch']} chosen on dev, F1 there "
        f"{100 * report['dev']['f1']:.2f}); labels: {report['label_version']}.", "",
        f"| {what} | precision | recall | F1 | support |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for label, row in [("**all**", test), *test["per_label"].items()]:
        cells = [f"{100 * row[key]:.2f}" for key in ("precision", "recall", "f1")]
        lines.append(f"| {label} | {' | '.join(cells)} | {row['support']} |")
    found = report.get("calibration", {}).get("test")
    if found:
        lines += [
            "", f"Scores: of {found['answers']} answers {100 * found['accuracy']:.1f} % are right at a mean score of "
            f"{100 * found['mean_probability']:.1f} %; expected calibration error {100 * found['ece']:.1f} %.",
        ]  # fmt: skip
    return [*lines, ""]


def _training(meta: Mapping[str, Any], data: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    lines = ["## Training", ""]
    hashes = [f"`{name}` {value}" for name, value in (data.get("files") or {}).items()]
    if hashes:
        lines += ["SHA-256 of the data: " + ", ".join(hashes) + ".", ""]
    labels = [f"{name} {value}" for name, value in (data.get("labels_sha256") or {}).items()]
    if labels:
        lines += ["SHA-256 of the labels: " + ", ".join(labels) + ".", ""]
    leaks = [name for name in ("leaky_phrases", "leaky_regions") if data.get(name)]
    if data:
        said = f"the set is marked {', '.join(leaks)}" if leaks else "the set carries no mark of a leak"
        lines += [f"Do side inputs tell the labels? {said[0].upper()}{said[1:]} (`data_prep/audit_leaks.py`).", ""]
    seed = (meta.get("config") or {}).get("seed")
    if seed is not None:
        steps = f", {report['steps']:,} steps" if report else ""
        lines += [
            f"Seed {seed}{steps}. All settings stand in `config.json` under `config`, versions under `versions`.",
            "",
        ]
    return lines
