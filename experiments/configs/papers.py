"""The settings of each method's paper or released code, by method and data set; TMR, BERT-CRF, MTB have common.py's.

`--config=experiments/configs/mner.py:twitter2017 --config.method=hvpnet` takes HVPNeT's. What a paper has that this
project does not do is said in a comment: one schedule decays linearly where theirs has steps, gradients are clipped by
their global norm, and every layer is trained. UNCLIPPED is a limit that no gradient reaches. Rows marked "ours" have no
published settings.
"""

from typing import Any

UNCLIPPED = 1e9
# Released HVPNeT and MKGformer: tagger and CRF have a rate of their own.
TAGGER_RATES = (("(crf|emission)/.*", 5e-2),)

_HVPNET = {
    "epochs": 30, "batch_size": 8, "lr_encoder": 3e-5, "lr_fusion": 3e-5, "rates": TAGGER_RATES,  # run_twitter15.sh, 17
    "warmup": 0.01, "weight_decay": 0.01, "clip": UNCLIPPED, "data.max_pieces": 80,
}  # fmt: skip
_MKGFORMER = {
    "epochs": 30, "batch_size": 16, "lr_encoder": 3e-5, "lr_fusion": 3e-5, "rates": TAGGER_RATES,  # MNER/run_2017.sh
    "warmup": 0.01, "weight_decay": 0.01, "clip": UNCLIPPED, "data.max_pieces": 128,
}  # fmt: skip
_UMT = {
    "epochs": 24, "batch_size": 32, "lr_encoder": 5e-5, "lr_fusion": 5e-5, "warmup": 0.1, "weight_decay": 0.01,
    "clip": 1.0,  # theirs clips each tensor on its own
    "data.max_pieces": 128,
}  # fmt: skip
_UMGF = {
    "epochs": 30, "batch_size": 16, "lr_encoder": 1e-4, "lr_fusion": 1e-4, "weight_decay": 0.0, "warmup": 0.0,
    "clip": UNCLIPPED, "data.max_pieces": 128,  # theirs multiplies the rate by 0.8 every two epochs
}  # fmt: skip
_MEGA = {
    "epochs": 10, "batch_size": 32, "lr_encoder": 2e-5, "lr_fusion": 2e-5, "weight_decay": 0.01,
    "warmup": 0.08, "clip": UNCLIPPED, "data.max_pieces": 128,  # README of thecharm/Mega; 300 of 3,820 steps
}  # fmt: skip
_VISUALBERT = {"epochs": 20, "batch_size": 16, "lr_encoder": 3e-5, "lr_fusion": 3e-5, "warmup": 0.1}  # ours

# Method -> data set, or "" for all -> keys of the config. A data set's own come after those for all.
PAPERS: dict[str, dict[str, dict[str, Any]]] = {
    "adapcoatt": {
        # BERT version, as UMT's paper has its baselines (ACL 2020); no code was released.
        "": {"batch_size": 16, "lr_encoder": 5e-5, "lr_fusion": 5e-5, "warmup": 0.1, "data.max_pieces": 128},
    },
    "blstm_crf": {
        # Ma and Hovy 2016, section 3: SGD with momentum, lr 0.015 / (1 + 0.05 t), batch 10, clip 5, 50 epochs.
        "": {
            "optimizer": "sgd",
            "momentum": 0.9,
            "decay": "inverse",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "lr_fusion": 0.015,
            "batch_size": 10,
            "clip": 5.0,
            "epochs": 50,
        },
    },
    "hvpnet": {
        "": _HVPNET,
        "twitter2017": {"data.max_pieces": 128},
        # run_re.sh; the released classifier is in no group of its optimiser, here it has the rate of all.
        "mnre": {"epochs": 15, "batch_size": 16, "warmup": 0.06, "rates": ()},
    },
    "mega": {"": _MEGA},
    "mkgformer": {
        "": _MKGFORMER,  # Twitter-2015 has no released settings: those of 2017
        "mnre": {
            "epochs": 12,
            "batch_size": 32,
            "lr_encoder": 1e-5,
            "lr_fusion": 1e-5,
            "warmup": 0.06,
            "rates": (),
            "data.max_pieces": 80,
        },
    },
    "ocsga": {
        # sample.train.config: SGD, lr 0.005 on a loss that is summed over 10 posts, ours is their mean; 200 epochs.
        "": {
            "optimizer": "sgd",
            "decay": "inverse",
            "warmup": 0.0,
            "weight_decay": 1e-8,
            "lr_fusion": 0.05,
            "batch_size": 10,
            "clip": UNCLIPPED,
            "epochs": 200,
        },
    },
    "pcnn": {
        # OpenNRE's supervised CNN script: SGD, lr 0.1, decay 1e-5, batch 160, 100 epochs; warm-up 300 of 7,700 steps.
        "": {
            "optimizer": "sgd",
            "warmup": 0.04,
            "weight_decay": 1e-5,
            "lr_fusion": 0.1,
            "batch_size": 160,
            "clip": UNCLIPPED,
            "epochs": 100,
            "data.max_pieces": 128,
        },
    },
    "rpbert": {
        # Multimodal-NER/RpBERT 14318f5: Adam without schedule, 1e-5 for BERT and ResNet, 100 times that for the rest.
        "": {
            "epochs": 10,
            "batch_size": 16,
            "lr_encoder": 1e-5,
            "lr_fusion": 1e-3,
            "decay": "constant",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "clip": UNCLIPPED,
        },
    },
    "umgf": {"": _UMGF},  # README of TransformersWsz/UMGF; relations: ours
    "umt": {"": _UMT, "twitter2017": {"epochs": 22}},  # jefferyYu/UMT; relations: ours
    "visualbert": {"": _VISUALBERT, "mnre": {"lr_encoder": 2e-5, "lr_fusion": 2e-5}},
}

# What a method needs in the demo world beside common.DEMO.
DEMOS: dict[str, dict[str, Any]] = {
    # Fusion inside of both towers: nothing of the pictures can be kept, and a tower from random weights has to learn.
    "mkgformer": {"data.feature_cache": False, "model.freeze_pictures": False},
}


def settings_of(method: str, name: str) -> dict[str, Any]:
    """The keys of a method for a data set of the papers, "twitter2015", "twitter2017" or "mnre"; may be empty."""
    own = PAPERS.get(method, {})
    return own.get("", {}) | own.get(name, {})
