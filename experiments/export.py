"""A run as one folder to hand over, or to push to the Hugging Face hub.

python experiments/export.py --workdir=runs/t17 --out=models/t17 [--dtype=bfloat16] [--language=en] [--licence=mit]
python experiments/export.py --workdir=runs/t17 --out=models/t17 --push=owner/name [--private]
python experiments/export.py --workdir=runs/t17 --out=served/t17 --format=stablehlo
python experiments/export.py --workdir=runs/t17 --out=served/t17.onnx --format=onnx [--onnx_batch=1]

Predictor.load("models/t17"), Predictor.load("owner/name") and predict.py --workdir=models/t17 read it; nothing of the
run is needed. tmrjax/prediction/folder.py says what lies in it.

A folder of --format=stablehlo runs without this package, by the run.py in it (tmrjax/serving/folder.py; writing and
running need flatbuffers, the extra `serving`). --format=onnx writes the scores
of the longest bucket as one ONNX file for a batch of fixed size (tmrjax/serving/onnx_file.py; the extra `onnx`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command, workdirs
from tmrjax.predict import Predictor
from tmrjax.prediction.folder import DTYPES, WEIGHTS
from tmrjax.serving.folder import write_serving

FLAGS = flags.FLAGS
RUN_SERVED = Path(__file__).resolve().parent / "lib" / "run.py"


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
    flags.DEFINE_enum("format", "folder", ["folder", "stablehlo", "onnx"], "What to write; see above.")
    flags.DEFINE_integer("onnx_batch", 1, "Posts at a time that an ONNX file reads.", lower_bound=1)
    flags.DEFINE_bool("private", False, "With --push: a private repository.")


def main(_) -> None:
    """Flags in, folder or file out."""
    if FLAGS.format != "folder":
        write_for_serving()
        return
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


def write_for_serving() -> None:
    """Programs that run without this package."""
    unfit = [name for name in ("push", "private", "language") if getattr(FLAGS, name)]
    unfit += ["dtype"] if FLAGS.dtype != "float32" else []
    if unfit:
        raise ValueError(f"--{unfit[0]} belongs to --format=folder, and not to {FLAGS.format}: leave it out")
    predictor, out = Predictor.load(Path(FLAGS.workdir), devices=1), Path(FLAGS.out)
    if FLAGS.format == "onnx":
        from tmrjax.serving.onnx_file import write_onnx

        size = write_onnx(out, predictor.system, predictor.variables, rows=FLAGS.onnx_batch)
        print(f"wrote {out}: {size / 1e6:.1f} MB, batches of {FLAGS.onnx_batch}")
        return
    sizes = write_serving(out, predictor, RUN_SERVED.read_text(encoding="utf-8"))
    programs = sum(size for name, size in sizes.items() if name.endswith(".stablehlo"))
    print(
        f"wrote {out}: {sum(sizes.values()) / 1e6:.1f} MB, of them {sizes[WEIGHTS] / 1e6:.1f} MB of weights and "
        f"{programs / 1e6:.1f} MB of programs; {out / 'run.py'} reads posts with them"
    )


def cli() -> None:
    """The command."""
    define_flags()
    flags.mark_flags_as_required(["workdir", "out"])
    command.run(main)


if __name__ == "__main__":
    cli()
