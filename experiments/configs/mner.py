"""MNER: entities of posts with pictures (TMR, §4.1 to §4.3).

python experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=runs/demo/full

:demo         generated world, tiny encoders from scratch, frozen ResNet: about a minute on 2 cores, see README.md.
:twitter2015  real posts; give the prepared data and the encoders' folders:
:twitter2017      --config.data.root=DIR --config.text_encoder.folder=DIR --config.picture_encoder.folder=DIR
              the paper reports 76.36 and 88.64 test F1 with BERT-base and ResNet-50 on its own pictures.

One override: --config.lr_encoder=1e-5. The text alone: --config.model.variant=text. Ablations of Table 4:
--config.model.use_back_translation=False, --config.model.use_scores=False, --config.model.grains="('fine',)".
"""

from ml_collections import ConfigDict

NAMES = ("demo", "twitter2015", "twitter2017")


def get_config(name: str = "demo") -> ConfigDict:
    """The config of one experiment; every key that can be set is here."""
    if name not in NAMES:
        raise ValueError(f"there is no MNER config {name!r}; choose one of {', '.join(NAMES)}")
    config = ConfigDict(
        {
            "task": "ner",
            "name": name,
            "seed": 0,
            "data": {
                "root": "",
                "fraction": 1.0,  # of the training split, without replacement (§4.4)
                "on_error": "raise",
                "max_pieces": 80,
                "max_phrase_pieces": 4,
                "buckets": (24, 32, 40, 56, 80),
                "picture_size": 224,
                "picture_resize": 256,
                "feature_cache": False,  # maps of the frozen ResNet, computed once; needs model.freeze_pictures
                "feature_cache_folder": "",  # empty: features/ inside the data set
                "feature_cache_dtype": "float32",
                "num_threads": 2,
                "num_workers": 0,
            },
            # folder: Hugging Face layout; empty: the data set's own. weights: "pretrained" or "random".
            "text_encoder": {"folder": "", "weights": "pretrained"},
            "picture_encoder": {"folder": "", "weights": "pretrained"},
            "model": {
                "variant": "paper",
                "use_back_translation": True,
                "use_scores": True,
                "grains": ("fine", "coarse"),
                "literal": False,
                "num_heads": 8,
                "dropout": 0.1,
                "dtype": "float32",
                "batch_norm": "frozen",
                "freeze_text": False,
                "freeze_pictures": False,
            },
            "constrained_decoding": True,
            "batch_size": 16,
            "eval_batch_size": 32,
            "accumulate": 1,
            "epochs": 10,
            "lr_encoder": 3e-5,
            "lr_fusion": 1e-3,
            "weight_decay": 0.01,
            "warmup": 0.1,
            "clip": 1.0,
            "devices": 0,  # 0: all
            "log_every": 10,
            "checkpoint_every": 0,  # steps between checkpoints inside an epoch; 0: at its end only
        }
    )
    if name == "demo":
        config.update(
            {
                "data": {
                    "root": "runs/demo/data",
                    "max_pieces": 48,
                    "max_phrase_pieces": 8,
                    "buckets": (16, 24, 48),
                    "picture_size": 64,
                    "picture_resize": 64,
                    "feature_cache": True,
                },
                "text_encoder": {"weights": "random"},
                "picture_encoder": {"weights": "random"},
                "model": {"freeze_pictures": True, "num_heads": 4},
                "batch_size": 32,
                "eval_batch_size": 64,
                "epochs": 12,
                "lr_encoder": 1e-3,
                "lr_fusion": 3e-3,
            }
        )
    return config.lock()
