"""Every method exported: StableHLO and ONNX beside the method itself, on posts of the demo world, with random weights.

python -m benchmarks.export_parity [--methods bert_crf tmr ...] [--tasks ner re] [--no-onnx] [--posts 12]

For each method and task: the largest difference of emissions (NER) or logits (RE) from the predictor's own step, their
largest size, whether what is predicted is equal, the size of the folder of programs without its weights, and the same
difference for onnxruntime on CPU where jax2onnx converts the method. Sizes are tiny (the config "demo"); it is
arithmetic that is compared. Needs flatbuffers, and the extra "onnx" unless --no-onnx.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np

from data_prep.make_demo import make_demo
from experiments.configs import mner, mre
from experiments.export import RUN_SERVED
from experiments.lib.build import build_system
from tmrjax.methods import known_methods
from tmrjax.predict import Predictor
from tmrjax.prediction.posts import Given
from tmrjax.records import Dataset, read_dataset, record_to_json
from tmrjax.serving.folder import write_serving
from tmrjax.serving.onnx_file import onnx_bytes
from tmrjax.serving.programs import batch_of, model_function
from tmrjax.serving.reader import SCORES, WEIGHTS, ServedModel
from tmrjax.tasks.system import System

CONFIGS = {"ner": mner, "re": mre}
ALLOWED = 1e-4  # of emissions, for ONNX


def random_variables(system: System) -> dict:
    """Weights of a size at which scores are neither all alike nor beyond what float32 can compare."""
    shapes = jax.eval_shape(lambda: system.method.init(jax.random.key(0), system.dummy_batch(), train=False))
    generator = np.random.default_rng(3)

    def draw(leaf):
        deviation = leaf.shape[0] ** -0.5 if len(leaf.shape) > 1 else 0.5
        return generator.normal(0, deviation, leaf.shape).astype(np.float32)

    variables = jax.tree.map(draw, shapes)
    if "batch_stats" in variables:  # variances
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return variables


def posts_of(dataset: Dataset, count: int) -> list[dict]:
    """Records of the test split as posts."""
    keys = ("tokens", "image", "regions", "phrases", "scores", "generated_scores", "sides", "head", "tail")
    posts = []
    for record in dataset.splits["test"][:count]:
        value = record_to_json(record, dataset.info.task)
        post = {key: value[key] for key in keys if value.get(key) is not None}
        if value["generated"]:
            post |= {"generated_image": value["generated"]["image"], "generated_regions": value["generated"]["regions"]}
        posts.append(post)
    return posts


def compared(name: str, task: str, root: Path, folder: Path, posts: int, onnx: bool) -> list[str]:
    """A row of the table."""
    dataset = read_dataset(root)
    system = build_system(CONFIGS[task].get_config("demo", name), dataset)
    predictor = Predictor(system, random_variables(system), {}, devices=1)
    records = dataset.splits["test"][:posts]
    rows = [row for example in system.encode(records, say=None) for row in system.rows(example)][:posts]
    length = system.buckets[-1]
    keys = batch_of(system, length).keys()
    batch = {key: rows for key, rows in system.collator(system.pixels(root))(rows, length).items() if key in keys}
    weights = {}
    try:
        sizes = write_serving(folder, predictor, RUN_SERVED.read_text(encoding="utf-8"))
        model = ServedModel(folder)
        weights = model.weights
        wanted = np.asarray(jax.jit(model_function(system, length))(weights, batch)[SCORES[task]])
        got = np.asarray(model.program(f"model_{length}")(weights, batch)[SCORES[task]])
        difference, largest = np.abs(got - wanted).max(), np.abs(wanted).max()
        asked = posts_of(dataset, posts)
        ask = predictor.entities if task == "ner" else predictor.relations
        expected = ask(asked, root=root)
        given = [Given(post, f"post {index}") for index, post in enumerate(asked)]
        found = [outcome for _, outcome in model.outcomes(given, root=root)]
        same = without_scores(found) == without_scores(expected)
        served = [f"{difference:.1e}", f"{largest:.1f}", "yes" if same else "NO",
                  f"{(sum(sizes.values()) - sizes[WEIGHTS]) / 1e6:.2f}"]  # fmt: skip
    except ValueError as error:
        served = [f"not exported: {error}", "", "", ""]
    if not onnx:
        return [name, task, *served]
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(
            onnx_bytes(system, predictor.variables, batch), providers=["CPUExecutionProvider"]
        )
        asked = {one.name: batch[one.name] for one in session.get_inputs()}
        (scores,) = session.run(None, asked)
        wanted = np.asarray(jax.jit(model_function(system, length))(weights, batch)[SCORES[task]])
        error = np.abs(scores - wanted).max()
        return [name, task, *served, f"{error:.1e}" if error <= ALLOWED else f"{error:.1e}, MORE THAN {ALLOWED:.0e}"]
    except Exception as error:  # onnxruntime's errors are of many kinds
        return [name, task, *served, f"no: {' '.join(str(error).split())[:160]}"]


def without_scores(results: list[dict]) -> list:
    """What was found, without the probabilities, which differ in rounding."""
    return [
        [{key: value for key, value in answer.items() if key != "score"} for kind in ("entities", "relations")
         for answer in result.get(kind, [])]
        for result in results
    ]  # fmt: skip


def main() -> None:
    """Flags in, table out, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", help="all but tmr_release unless given")
    parser.add_argument("--tasks", nargs="*", default=list(CONFIGS))
    parser.add_argument("--no-onnx", dest="onnx", action="store_false")
    parser.add_argument("--posts", type=int, default=12)
    given = parser.parse_args()
    print("| method | task | scores differ by | largest | predictions equal | MB without weights |"
          + (" ONNX differs by |" if given.onnx else ""))  # fmt: skip
    print("|---" * (7 if given.onnx else 6) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for task in given.tasks:
            make_demo(Path(temporary) / task, posts=60, seed=1, task=task)
        for name, tasks in known_methods().items():
            if name == "tmr_release" or (given.methods and name not in given.methods):  # its sizes are the authors'
                continue
            for task in tasks:
                if task in given.tasks:
                    folder = Path(temporary) / "served" / name / task
                    row = compared(name, task, Path(temporary) / task, folder, given.posts, given.onnx)
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
