"""What the released files of MNRE allow without a picture: from the text alone up to what they tell of the labels.

    python data_prep/make_ladder.py --source=TMR-RE/data --out=DIR

makes the data; --text-encoder is any BERT. Without --picture-encoder the rows with a picture take a small ResNet from
random weights. It is frozen, and its features are kept: there are three of them, of the constant picture and of its
two kinds of regions.
"""

from __future__ import annotations

from typing import Any

from experiments.lib.study import Places, Study, Training

COLUMN = "MNRE"
TOLD = "experiments.studies.ladder_methods:ToldMTB"
REFERENCE = "text only"
_PHRASES, _CROPS = {"model.use_phrases": True}, {"model.use_crops": True}
_HVPNET = {"method": "hvpnet"}
_TMR = {"method": "tmr", "model.use_back_translation": False, "model.use_scores": False}
# Row -> folder of data_prep/make_ladder.py, name of a config of mre.py, settings.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    REFERENCE: ("mnre-text", "mnre_text", {"method": "mtb"}),
    "text, is there a third crop": ("mnre-crop-count", "mnre_leaky", {"method": TOLD, **_CROPS}),
    "text, released phrases": ("mnre-released-phrases", "mnre_leaky", {"method": TOLD, **_PHRASES}),
    "text, released phrases, third crop": (
        "mnre-phrases-and-count", "mnre_leaky", {"method": TOLD, **_PHRASES, **_CROPS},
    ),
    "HVPNeT, grey pictures, released crops": ("mnre-grey-crops", "mnre_leaky", _HVPNET),
    "TMR, grey pictures, released crops": ("mnre-grey-crops", "mnre_leaky", _TMR),
    "HVPNeT, grey pictures, clean": ("mnre-grey-clean", "mnre_text", _HVPNET),
    "TMR, grey pictures, clean": ("mnre-grey-clean", "mnre_text", _TMR),
}  # fmt: skip
PUBLISHED_NOTE = (
    "Published test F1 on MNRE with real pictures, whose regions are these crops: HVPNeT 81.85, MKGformer 81.95; with "
    "the released phrases besides, TMR 89.05. Before the crop files: MTB 60.86, MEGA 66.41. They were measured with "
    "larger encoders and more epochs and are not repeated here."
)
NOTES = (
    "No row reads a picture of MNRE. All have the same text, labels, splits, text encoder and number of epochs.",
    "Third crop: one number a post, whether the released list of crops has a third entry. Grey pictures: one constant "
    "picture for all posts. Released crops: a grey region for each crop that the list names, up to three, and zeros "
    "for those that lack, as the released code fills them. Clean: three grey regions in every post.",
    "The table shows what the files allow a model to read. It does not show what a published model did read.",
    PUBLISHED_NOTE,
)


def get_study(places: Places) -> Study:
    """Every row and seed.

    Raises:
        ValueError: a data set of data_prep/make_ladder.py lacks.
    """
    folders = dict.fromkeys(folder for folder, _, _ in ROWS.values())
    lacking = [folder for folder in folders if not places.has(folder)]
    if lacking:
        raise ValueError(
            f"--data={places.data}: no prepared {', '.join(lacking)}; make all sets of this study there with "
            f"python data_prep/make_ladder.py --source=TMR-RE/data --out={places.data}"
        )
    trainings = tuple(_training(places, row, seed) for seed in places.seeds for row in ROWS)
    return Study("MNRE without its pictures", trainings, reference=REFERENCE, notes=NOTES)


def _training(places: Places, row: str, seed: int) -> Training:
    folder, config, own = ROWS[row]
    settings: dict[str, Any] = {"data.root": str(places.data / folder), "epochs": 3, **own}
    if places.text_encoder:
        settings["text_encoder.folder"] = places.text_encoder
    if own in (_HVPNET, _TMR):
        settings |= {"model.freeze_pictures": True, "data.feature_cache": True}
        if places.picture_encoder:
            settings |= {"picture_encoder.folder": places.picture_encoder, "picture_encoder.weights": "pretrained"}
        else:  # the folder beside the data
            settings |= {"picture_encoder.weights": "random", "data.picture_size": 64, "data.picture_resize": 64}
    return Training(row, COLUMN, f"mre.py:{config}", settings, seed)
