"""What the studies of the paper share: its data sets, its methods by their names, its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.lib.study import Places, Training
from tmrjax.methods import find_method, known_methods


@dataclasses.dataclass(frozen=True)
class DataSet:
    """folder: below --data. column: its name in a table. config: file and name below experiments/configs."""

    folder: str
    column: str
    config: str

    @property
    def task(self) -> str:
        """ner or re."""
        return {"mner.py": "ner", "mre.py": "re"}[self.config.partition(":")[0]]


DATA_SETS = (
    DataSet("twitter2015", "Twitter-2015", "mner.py:twitter2015"),
    DataSet("twitter2017", "Twitter-2017", "mner.py:twitter2017"),
    DataSet("mnre", "MNRE", "mre.py:mnre"),
    DataSet("demo", "demo entities", "mner.py:demo"),
    DataSet("demo-relations", "demo relations", "mre.py:demo"),
)
TMR = "TMR"
# Rows of Table 1 in its order: the settings beside the data's.
METHODS: dict[str, dict[str, Any]] = {
    "CNN-BLSTM-CRF": {"method": "blstm_crf", "model.characters": "cnn"},
    "HBiLSTM-CRF": {"method": "blstm_crf", "model.characters": "lstm"},
    "BERT-CRF": {"method": "bert_crf"},
    "PCNN": {"method": "pcnn"},
    "MTB": {"method": "mtb"},
    "AdapCoAtt": {"method": "adapcoatt"},
    "OCSGA": {"method": "ocsga"},
    "VisualBERT": {"method": "visualbert"},
    "RpBERT": {"method": "rpbert"},
    "UMT": {"method": "umt"},
    "UMGF": {"method": "umgf"},
    "MEGA": {"method": "mega"},
    "HVPNeT": {"method": "hvpnet"},
    "MKGformer": {"method": "mkgformer"},
    "TMR w/o back-translation": {"method": "tmr", "model.use_back_translation": False},
    "TMR w/o divergence scores": {"method": "tmr", "model.use_scores": False},
    TMR: {"method": "tmr"},
}
# Test F1 of Table 1; what it leaves open is not here.
PUBLISHED = {
    (row, column): figure
    for row, figures in {
        "CNN-BLSTM-CRF": {"Twitter-2015": 67.15, "Twitter-2017": 79.37},
        "HBiLSTM-CRF": {"Twitter-2015": 69.17, "Twitter-2017": 80.37},
        "BERT-CRF": {"Twitter-2015": 71.81},
        "PCNN": {"MNRE": 55.49},
        "MTB": {"MNRE": 60.86},
        "AdapCoAtt": {"Twitter-2015": 72.15, "Twitter-2017": 84.10},
        "OCSGA": {"Twitter-2015": 72.92},
        "VisualBERT": {"Twitter-2015": 70.09, "Twitter-2017": 84.72, "MNRE": 58.30},
        "RpBERT": {"Twitter-2015": 72.69},
        "UMT": {"Twitter-2015": 73.41, "Twitter-2017": 85.31, "MNRE": 63.46},
        "UMGF": {"Twitter-2015": 74.85, "Twitter-2017": 85.51, "MNRE": 65.29},
        "MEGA": {"Twitter-2015": 72.35, "Twitter-2017": 84.39, "MNRE": 66.41},
        "HVPNeT": {"Twitter-2015": 75.32, "Twitter-2017": 86.87, "MNRE": 81.85},
        "MKGformer": {"Twitter-2017": 87.49, "MNRE": 81.95},
        TMR: {"Twitter-2015": 75.87, "Twitter-2017": 88.25, "MNRE": 89.05},
    }.items()
    for column, figure in figures.items()
}
PUBLISHED_MNRE = (
    "The papers' figures on MNRE from HVPNeT on were made with released files that tell the label (crops, phrases); "
    "they cannot be compared with runs without these files."
)


def data_sets(places: Places, *, tasks: Iterable[str] = ("ner", "re")) -> list[DataSet]:
    """Those that lie below --data; raises ValueError where there is none."""
    tasks = tuple(tasks)
    known = [one for one in DATA_SETS if one.task in tasks]
    found = [one for one in known if places.has(one.folder)]
    if not found:
        raise ValueError(
            f"--data={places.data}: no prepared data set in it; expected one of the folders "
            f"{', '.join(one.folder for one in known)}, each with its dataset.json"
        )
    return found


def training(places: Places, data: DataSet, row: str, seed: int, column: str = "", **changes: Any) -> Training:
    """One training of a row of METHODS. ``changes``: further keys, with ``__`` for the dot."""
    settings: dict[str, Any] = {"data.root": str(places.data / data.folder), **METHODS[row]}
    method = find_method(settings["method"], data.task)
    clip = method.picture_folder == "clip_encoder"
    for key, folder in (
        ("text_encoder.folder", places.text_encoder),
        ("picture_encoder.folder", places.clip_encoder if clip else places.picture_encoder),
    ):
        if folder:
            settings[key] = folder
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return Training(row, column or data.column, data.config, settings, seed)


def has_task(row: str, task: str) -> bool:
    """Whether a row of METHODS does a task."""
    return task in known_methods()[METHODS[row]["method"]]


def notes_of(sets: Iterable[DataSet], published: Mapping[tuple[str, str], float]) -> tuple[str, ...]:
    """What has to be said of published figures beside ours."""
    columns = {one.column for one in sets} & {column for _, column in published}
    return (PUBLISHED_MNRE,) if "MNRE" in columns else ()
