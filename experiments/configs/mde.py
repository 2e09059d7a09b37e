"""MDE: does a picture weaken, complement or strengthen its text? (TMR, §3.4 and appendix B.3).

python experiments/mde.py --config=experiments/configs/mde.py:demo --workdir=runs/demo/estimator

:demo   generated corpus of two visual styles, a small ViLT from scratch: minutes on 2 cores, see README.md.
:base   the paper's: ViLT-B/32, 100,000 steps of 32 pairs; give the corpus and the weights to begin with:
            --config.data.root=DIR --config.encoder.folder=DIR (a Hugging Face ViLT, dandelin/vilt-b32-mlm's layout)

:pairs  real pairs (Flickr8k, MVSA), 2 layers from scratch, 800 steps: python -m benchmarks.divergence_pairs builds the
        corpus and trains each mode with it. Macro-F1 45.1 in the domain with mode=cross_entropy, and nothing of the
        match is learned (RESULTS.md).

Table 3's rows: --config.mode=cross_entropy, negative_sampling, supervised_contrastive. Baselines that see one side:
--config.model.variant=text, picture. Less memory: --config.model.remat=True, --config.model.dtype=bfloat16.
"""

from ml_collections import ConfigDict

NAMES = ("demo", "base", "pairs")


def get_config(name: str = "demo") -> ConfigDict:
    """The config of one experiment; every key that can be set is here."""
    if name not in NAMES:
        raise ValueError(f"there is no MDE config {name!r}; choose one of {', '.join(NAMES)}")
    config = ConfigDict(
        {
            "task": "mde",
            "name": name,
            "seed": 0,
            "mode": "supervised_contrastive",  # or cross_entropy, negative_sampling
            "temperature": 0.07,  # of Eq. 6
            "negatives": 0.25,  # rows that negative_sampling adds, as a share of the batch
            "data": {
                "root": "",
                "max_pieces": 40,
                "length_buckets": (),  # empty: max_pieces alone
                "picture_size": 384,  # the short side; the long one is below picture_longest
                "picture_longest": 639,
                "picture_square": False,  # straight to a square: a stretched picture gives no source away
                "num_threads": 2,
                "num_workers": 0,
            },
            # Hugging Face folder of a ViLT: sizes, tokenizer, weights ("pretrained" or "random"). Empty: as below.
            "encoder": {"folder": "", "weights": "pretrained"},
            # Of a BERT: tokenizer and, where "pretrained", the text embeddings. Empty: the corpus's own text_encoder/.
            "text_encoder": {"folder": "", "weights": "random"},
            # Of a model from scratch; grid_size: side of the square that its positions are for.
            "sizes": {"hidden": 768, "layers": 12, "heads": 12, "intermediate": 3072, "patch": 32, "grid_size": 384},
            "model": {"variant": "both", "dropout": 0.1, "dtype": "bfloat16", "remat": False},
            "batch_size": 32,  # over all devices; the paper's 32 on 8 GPUs (B.3) may be a GPU's share
            "eval_batch_size": 64,
            "accumulate": 1,
            "steps": 100_000,
            "evaluate_every": 2_000,
            "lr": 1e-4,
            "weight_decay": 0.01,
            "warmup": 0.1,
            "clip": 1.0,
            "choose_by": "macro_f1",  # on dev
            "devices": 0,  # 0: all
            "log_every": 50,
            "checkpoint_every": 0,  # steps between checkpoints besides those after each evaluation
        }
    )
    if name in ("demo", "pairs"):
        config.update(
            {
                "data": {
                    "root": "runs/demo/corpus", "max_pieces": 24, "length_buckets": (16, 24), "picture_size": 64,
                    "picture_longest": 96,
                },
                "sizes": {
                    "hidden": 128, "layers": 2, "heads": 4, "intermediate": 256, "patch": 16, "grid_size": 64,
                },
                "model": {"dtype": "float32", "dropout": 0.0},
                "mode": "cross_entropy",
                "batch_size": 64,
                "steps": 3_000,
                "evaluate_every": 500,
                "lr": 1e-3,
            }
        )  # fmt: skip
    if name == "pairs":  # square pictures in 9 patches; chosen for minutes on 2 cores, not for the figures
        config.update(
            {
                "data": {
                    "root": "", "max_pieces": 32, "length_buckets": (), "picture_size": 96, "picture_longest": 96,
                    "picture_square": True,
                },
                "sizes": {"patch": 32, "grid_size": 96},
                "steps": 800,
                "evaluate_every": 100,
            }
        )  # fmt: skip
    return config.lock()
