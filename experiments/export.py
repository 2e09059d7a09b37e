"""A run as one folder to hand over, or to push to the Hugging Face hub.

python experiments/export.py --workdir=runs/t17 --out=models/t17 [--dtype=bfloat16] [--language=en] [--licence=mit]
python experiments/export.py --workdir=runs/t17 --out=models/t17 --push=owner/name [--private]

Predictor.load("models/t17"), Predictor.load("owner/name") and predict.py --workdir=models/t17 read it; nothing of the
run is needed. tmrjax/prediction/folder.py says what lies in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command, workdirs
from tmrjax.predict import Predictor
from tmrjax.prediction.folder import DTYPES, WEIGHTS

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    FLAGS.set_default("compile_cache", False)  # nothing is compiled
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_enum(
        "dtype", "float32", list(DTYPES), "Of matrices; predictions are equal to the last bit in float32."
    )
    flags.DEFINE_list("language", [], "Codes of the languages of the posts, for the card.")
    flags.DEFINE_string("licence", "other", "Of the model, for the card; one of the hub's names.")
    flags.DEFINE_string("push", None, "OWNER/NAME of the hub: upload the folder. Needs `hf auth login` or HF_TOKEN.")
    flags.DEFINE_bool("private", False, "With --push: a private repository.")


def main(_) -> None:
    """Flags in, folder out."""
    workdir, out = Path(FLAGS.workdir), Path(FLAGS.out)
    path = workdir / workdirs.REPORT
    report = (
        workdirs.read_json(path, "train again, or remove it: the card has dev's figures then")
        if path.exists()
        else None
    )
    predictor = Predictor.load(workdir, devices=1)
    about = {"report": report, "languages": FLAGS.language, "licence": FLAGS.licence, "dtype": FLAGS.dtype}
    predictor.save(out, name=FLAGS.push or out.name, **about)
    print(f"wrote {out}: {(out / WEIGHTS).stat().st_size / 1e6:.1f} MB of weights, {FLAGS.dtype}")
    if FLAGS.push:
        print(f"pushed to {predictor.push(FLAGS.push, private=FLAGS.private, folder=out)}")


def cli() -> None:
    """The command."""
    define_flags()
    flags.mark_flags_as_required(["workdir", "out"])
    command.run(main)


if __name__ == "__main__":
    cli()
