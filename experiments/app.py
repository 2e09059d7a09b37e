"""A page to try a model on, and the same as a JSON interface.

python experiments/app.py --model=runs/demo/full --examples=runs/demo/data/posts.jsonl
python experiments/app.py --model=runs/mnre --entities=runs/t17 --estimator=runs/mde --port=8000

The page is at http://localhost:7860, the interface under /api, its description at /docs. --model is the folder of a
training run or of export.py. For relations head and tail are selected in the text, or --entities finds them.
--estimator gives pictures their divergence scores. A generated picture is given beside the post's own one: drawing it
takes a diffusion model and minutes (data_prep/back_translate.py).

Nothing of a request is written or logged, nothing is fetched from elsewhere. Needs the extra `app`
(pip install 'tmrjax[app]'). It listens on this machine alone unless --host says otherwise; put a server with TLS and a
password before it where others reach it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command
from experiments.web.answers import Answers, Limits
from tmrjax.divergence.scoring import Scorer
from tmrjax.methods import name_of
from tmrjax.predict import Predictor
from tmrjax.records.schema import NO_RELATION

logger = logging.getLogger(__name__)
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    flags.DEFINE_string("model", None, "Folder of a training run or of export.py, or OWNER/NAME of the hub.")
    flags.DEFINE_string("entities", None, "The same of an MNER model, to find entities between which relations are.")
    flags.DEFINE_string("estimator", None, "Folder of a run of mde.py: scores for pictures that come without.")
    flags.DEFINE_bool("calibrated", False, "Probabilities at the temperature that was fitted on dev.")
    flags.DEFINE_string("examples", None, "JSONL file of posts to choose from; its pictures lie beside it.")
    flags.DEFINE_integer("number_of_examples", 8, "How many of them.", lower_bound=0)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 is every one of this machine.")
    flags.DEFINE_integer("port", 7860, "Port to listen on.", lower_bound=0)
    for field in dataclasses.fields(Limits):
        define = flags.DEFINE_float if isinstance(field.default, float) else flags.DEFINE_integer
        define(f"max_{field.name}", field.default, "A limit of one request; see experiments/README.md.", lower_bound=1)


def main(_) -> None:
    """Flags in, a server that runs until it is stopped."""
    limits = Limits(**{field.name: getattr(FLAGS, f"max_{field.name}") for field in dataclasses.fields(Limits)})
    loading: dict[str, Any] = {"calibrated": FLAGS.calibrated, "devices": 1}
    predictor = Predictor.load(FLAGS.model, **loading)
    entities = Predictor.load(FLAGS.entities, **loading) if FLAGS.entities else None
    scorer = Scorer.load(Path(FLAGS.estimator), 1, devices=1)[0] if FLAGS.estimator else None
    answers = Answers(predictor, entities=entities, scorer=scorer, limits=limits)
    serve(answers, FLAGS.model, FLAGS.examples, FLAGS.number_of_examples, FLAGS.host, FLAGS.port)


def about_model(predictor: Predictor, name: str) -> dict[str, Any]:
    """What the page and /api/health tell of a model."""
    system, data = predictor.system, predictor.meta.get("dataset") or {}
    note = {"ner": "entities", "re": "relations"}[system.task] + f" by {name_of(system.method)}"
    if data.get("synthetic"):
        note += " · trained on SYNTHETIC posts: it knows nothing of real ones"
    labels = [label for label in system.labels if label != NO_RELATION]
    method = name_of(system.method)
    return {"model": Path(name).name, "task": system.task, "method": method, "labels": labels, "note": note}


def serve(answers: Answers, name: str, examples: str | None, number: int, host: str, port: int) -> None:
    """Make the page and run it."""
    with tempfile.TemporaryDirectory(prefix="tmrjax-app-") as empty:
        os.environ["GRADIO_TEMP_DIR"] = (
            empty  # nothing comes to lie in it; if anything did, it would go with the server
        )
        try:
            import uvicorn

            from experiments.web.page import read_examples, with_page
            from experiments.web.service import make_service
        except ImportError as error:
            raise ValueError(f"the page needs {error.name}: pip install 'tmrjax[app]'") from None
        warnings.filterwarnings("ignore", module="gradio")  # of its own dependencies, at every request
        about = about_model(answers.predictor, name)
        shown = read_examples(Path(examples), number, answers.limits.picture_bytes) if examples else []
        app = with_page(make_service(answers, about), answers, about, shown)
        logger.info("compiling for the first post")
        if answers.predictor.system.task == "ner" or answers.entities is not None:
            answers.warm_up(shown[0] if shown else {"text": "Jordan at the harbour"})
        # No access log: addresses and times of visitors are nobody's business.
        config = uvicorn.Config(app, host=host, port=port, access_log=False, log_level="warning", limit_concurrency=256)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn hands it on when it has stopped
        print(f"http://{host}:{port} (Ctrl-C stops it); JSON: /docs", flush=True)
        uvicorn.Server(config).run()
        answers.close()


def cli() -> None:
    """The command."""
    define_flags()
    flags.mark_flags_as_required(["model"])
    command.run(main)


if __name__ == "__main__":
    cli()
