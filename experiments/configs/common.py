"""What MNER and MRE have in common: every key that can be set, and the demo world's values of them.

The learning rates were chosen on dev of Twitter-2017, method `bert_crf`. The paper has one rate for the encoders and
all
above them: 3e-5 for MNER (appendix B.1), 1e-2 for MRE (B.2).
"""

import sys

from ml_collections import ConfigDict

from tmrjax.methods import find_method
from tmrjax.methods.base import options_of

METHOD_FLAG = "--config.method"


def chosen_method(default: str) -> str:
    """The method that the command line names with --config.method, else ``default``.

    A config file is read before the flags that override it, but which options there are depends on the method.
    """
    arguments = sys.argv[1:]
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{METHOD_FLAG}="):
            return argument.partition("=")[2]
        if argument == METHOD_FLAG and index + 1 < len(arguments):
            return arguments[index + 1]
    return default


def base_config(task: str, name: str, method: str) -> ConfigDict:
    """The config of a real experiment, as far as the tasks share it.

    ``method``: a module of tmrjax.methods, or module:Class. Its options, with their defaults, are the keys of
    ``model``.
    """
    return ConfigDict(
        {
            "task": task,
            "name": name,
            "method": method,
            "seed": 0,
            "data": {
                "root": "",
                "fraction": 1.0,  # of the training split, without replacement (§4.4)
                "on_error": "raise",
                "max_pieces": 80,  # n and m of the paper
                "max_phrase_pieces": 4,
                "buckets": (),  # lengths that batches are padded to, below max_pieces; empty: settings.LADDER
                "windows": True,  # NER reads posts beyond max_pieces in overlapping windows instead of cutting them
                "window_overlap": 24,  # word pieces that two neighbouring windows share
                "word_splitting": "auto",  # of raw text: as the training data are, or one of word_splitting.SPLITTINGS
                "picture_size": 0,  # 0: as the encoder's preprocessor_config.json says, 224 and 256 without one
                "picture_resize": 0,
                "picture_reducing_gap": 2.0,  # 0: exact; pictures.preprocessing says what a large one is spared
                "text_picture": "",  # posts of RpBERT's second task (JSONL); empty: the data set's own, if it has some
                "feature_cache": False,  # maps of the frozen ResNet, computed once; needs model.freeze_pictures
                "feature_cache_folder": "",  # empty: features/ inside the data set
                "feature_cache_dtype": "float32",
                "pixel_cache": False,  # decoded pixels, kept in the same folder: 1.2 MB for two pictures with regions
                "num_threads": 2,  # that prepare batches and decode their pictures, in training and evaluation
                "num_workers": 0,  # processes that prepare batches, each with num_threads; 0: threads of this one
            },
            # folder: in Hugging Face's layout, or a hub's name; empty: the data set's own. revision: of a hub's name.
            # weights: "pretrained" or "random".
            "text_encoder": {"folder": "", "revision": "", "weights": "pretrained"},
            "picture_encoder": {"folder": "", "revision": "", "weights": "pretrained"},
            # For methods that look words up. file: a text file of GloVe, word2vec or fastText; empty: the data set's
            # own word_vectors/vectors.txt, else the word table begins at random. most_frequent: words at the beginning
            # of the file that the vocabulary gets besides those of the data, for posts to come.
            "word_vectors": {"file": "", "most_frequent": 20_000},
            "model": options_of(find_method(method, task)),
            "batch_size": 16,
            "eval_batch_size": 32,
            "accumulate": 1,
            "epochs": 10,
            "lr_encoder": 5e-5,  # of the encoders
            "lr_fusion": 1e-2,  # of all above them, CRF included: 1e-3 moves a transition by 1 nat at most in a run
            "lr_crf": 0.0,  # of the CRF; 0: as lr_fusion
            "rates": (),  # (pattern, rate) pairs before the method's own, such as (("emission/.*", 1e-3),)
            "optimizer": "adamw",  # or "sgd", with the momentum
            "momentum": 0.0,
            "decay": "linear",  # of the rates after the warm-up: to zero; or "inverse", "constant"
            "weight_decay": 0.01,
            "warmup": 0.1,
            "clip": 1.0,
            "devices": 0,  # 0: all
            "log_every": 10,
            "checkpoint_every": 0,  # steps between checkpoints inside an epoch; 0: at its end only
        }
    )


# The generated world: tiny encoders from random weights, small pictures, a frozen ResNet.
DEMO = {
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
    "model": {"freeze_pictures": True},
    "batch_size": 32,
    "eval_batch_size": 64,
    "epochs": 12,
    "lr_encoder": 1e-3,
    "lr_fusion": 3e-3,
}
