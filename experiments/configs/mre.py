"""MRE: the relation of two entities in a post with a picture (TMR, §4.1, appendix B.2).

python experiments/mre.py --config=experiments/configs/mre.py:demo --workdir=runs/demo/relations

:demo  generated world (data_prep/make_demo.py --task=re), tiny encoders from scratch, frozen ResNet: about a minute.
:mnre  real posts; give the prepared data and the encoders' folders:
           --config.data.root=DIR --config.text_encoder.folder=DIR --config.picture_encoder.folder=DIR
       Table 1 of the paper reports 89.05 test F1; its phrases leak the labels, ours do not, so the
       two figures cannot be compared (README.md).

One override: --config.lr_encoder=1e-5. Entity markers alone: --config.model.variant=text. Ablations as in MNER.
"""

from ml_collections import ConfigDict

from experiments.configs.common import DEMO, base_config

NAMES = ("demo", "mnre")


def get_config(name: str = "demo") -> ConfigDict:
    """The config of one experiment; every key that can be set is here or in common.py."""
    if name not in NAMES:
        raise ValueError(f"there is no MRE config {name!r}; choose one of {', '.join(NAMES)}")
    config = base_config("re", name)
    config.data.max_pieces, config.data.max_phrase_pieces = 128, 6
    config.lr_encoder, config.epochs = 5e-5, 5
    if name == "demo":
        config.update(DEMO)
        config.data.root = "runs/demo/relations-data"
        config.data.max_pieces, config.data.buckets = 64, (24, 32, 64)
    return config.lock()
