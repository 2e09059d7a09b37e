"""A folder of programs: run where this package cannot be imported, equal to the predictor, every damage noticed."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.export import RUN_SERVED
from tests.crf_oracle import Enumeration, random_batch, random_params
from tests.prediction.test_predict import (  # noqa: F401 - fixtures
    random_variables,
    relations,
    root,
    text_reader,
    tokenizer,
    with_pictures,
)
from tmrjax.predict import Predictor
from tmrjax.prediction.posts import Given, PostError
from tmrjax.serving.folder import COPIED, copied_modules, write_serving
from tmrjax.serving.programs import decode, probability
from tmrjax.serving.reader import MANIFEST, FolderError, ServedModel

LONG = " ".join(["Jordan at the harbour"] * 9)
POSTS = [
    {"id": 1, "text": "Jordan at the harbour", "image": "a.png", "lang": "en"},
    {"id": 2, "text": ""},
    {"id": 3, "text": LONG},
    {"id": 4, "tokens": ["the", "harbour", "\u200d", "Jordan"], "image": "a.png", "regions": [[0, 0, 0.5, 1]]},
    {"id": 5, "text": "at the Jordan", "image": "damaged.png"},
    {"id": 6, "text": "[SEP] harbour [UNK]", "phrases": ["the harbour"]},
]
PAIRS = [{"text": "Jordan at the harbour", "head": [0, 6], "tail": [14, 21]}, {"text": "Jordan at the harbour"}]
# Python that cannot import this package, wherever it may lie.
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tmrjax", "experiments", "flax", "transformers", "optax", "grain", "orbax"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Block())
import runpy
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])  # as `python run.py` has it
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command() -> str:
    return RUN_SERVED.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def predictor(with_pictures):  # noqa: F811
    system = with_pictures.system
    return Predictor(system, random_variables(system), system.to_meta() | {"temperature": 2.0}, devices=1)


@pytest.fixture(scope="module")
def served(predictor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "small"
    sizes = write_serving(folder, predictor, command())
    assert sizes == {str(path.relative_to(folder)): path.stat().st_size for path in files_of(folder)}
    return folder


@pytest.fixture
def copy(served, tmp_path):
    return shutil.copytree(served, tmp_path / "copy")


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def rounded(results, kind="entities"):
    """Results with scores that are compared to four digits: the predictor's differ by that much from float64 where the
    scores of a post are large, as here; those of the programs do not."""
    return [
        result | {kind: [answer | {"score": pytest.approx(answer["score"], abs=1e-4)} for answer in result[kind]]}
        if kind in result
        else result
        for result in results
    ]


def read(model, posts, folder, **options):
    given = [Given(post, f"post {index}") for index, post in enumerate(posts)]
    outcomes = [outcome for _, outcome in model.outcomes(given, root=folder, **options)]
    return [outcome.to_json() if isinstance(outcome, PostError) else outcome for outcome in outcomes]


def test_the_folder_runs_without_this_package_and_finds_what_the_predictor_finds(
    predictor,
    served,
    root,  # noqa: F811
    tmp_path,
):
    lines = "".join(json.dumps(post) + "\n" for post in POSTS)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [sys.executable, "-c", BLOCKED, str(served / "run.py"), f"--root={root}", "--on-error=skip"]
    found = subprocess.run(
        arguments, input=lines, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240, check=False
    )
    assert found.returncode == 0, found.stderr
    expected = predictor.entities(POSTS, root=root, on_error="return")
    assert sum(len(result.get("entities", ())) for result in expected) > 10
    results = [json.loads(line) for line in found.stdout.splitlines()]
    errors = [result.pop("error") for result in results if "error" in result]
    assert [re.sub("^stdin:2", "post 1", errors[0]), errors[1].startswith("stdin:5")] == [
        expected[1].pop("error"),
        expected[4].pop("error").startswith("post 4"),
    ]
    assert rounded(results) == expected


def test_scores_at_the_temperature_and_other_batches(predictor, served, root):  # noqa: F811
    cool = Predictor(
        dataclasses.replace(predictor.system, temperature=2.0), predictor.variables, predictor.meta, devices=1
    )
    posts = [POSTS[0], POSTS[2], POSTS[3]]
    found = read(ServedModel(served, calibrated=True), posts, root, batch_size=2, chunk=2)
    assert rounded(found) == cool.entities(posts, root=root)
    assert found != read(ServedModel(served), posts, root)


def test_a_relation(relations, tmp_path):  # noqa: F811
    predictor = Predictor(relations.system, relations.variables, {}, devices=1)
    write_serving(tmp_path / "served", predictor, command())
    model = ServedModel(tmp_path / "served")
    found = read(model, PAIRS, tmp_path)
    assert rounded(found[:1], "relations") == [predictor.relations(PAIRS[0])]
    assert "neither 'head' nor 'tail'" in found[1]["error"]
    with pytest.raises(ValueError, match="no temperature was fitted"):
        ServedModel(tmp_path / "served", calibrated=True)


def test_the_manifest_names_what_the_programs_read(served, predictor):
    manifest = json.loads((served / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["files"].keys() == {str(path.relative_to(served)) for path in files_of(served)} - {MANIFEST}
    program = manifest["programs"]["model_12"]
    assert program["batch"]["input_ids"] == {"shape": ["b", 12], "dtype": "int32"}
    assert program["batch"]["image"] == {"shape": ["b", 8, 8, 3], "dtype": "uint8"}
    assert program["outputs"]["emissions"] == {"shape": ["b", 10, 5], "dtype": "float32"}
    assert manifest["programs"]["decode"]["outputs"]["result"] == {"shape": ["n", "w"], "dtype": "int32"}
    assert (manifest["platforms"], manifest["labels"]) == (["cpu", "cuda"], ["PER", "LOC"])
    weights = (served / "model.safetensors").stat().st_size
    program = (served / "model_12.stablehlo").stat().st_size
    large = predictor.variables["params"]["bert"]  # no weight is a constant of the program
    assert weights > 4 * sum(leaf.size for leaf in jax.tree.leaves(large)) and program < 200_000


def test_no_part_of_the_model_is_copied(served):
    names = {str(path.relative_to(served / COPIED)) for path in files_of(served / COPIED)}
    assert "serving/reader.py" in names and "inputs/pieces.py" in names
    assert not [name for name in names if name.split("/")[0] in ("methods", "encoders", "heads", "tasks", "crf.py")]
    assert not [path for path in files_of(served) if path.suffix == ".py" and "import tmrjax" in path.read_text()]
    with pytest.raises(ValueError, match="is a part of the model"):
        copied_modules(["tmrjax.heads.crf_head"])


def change(folder, **values):
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(manifest | values), encoding="utf-8")


DAMAGES = {
    "a file is missing": (lambda folder: (folder / "model_12.stablehlo").unlink(), "model_12.stablehlo: missing; copy"),
    "another file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
        r"model.safetensors: its SHA-256 is \w+, but serving.json says \w+; copy the folder again",
    ),
    "the preprocessing was changed": (
        lambda folder: (folder / COPIED / "text" / "tags.py").write_text("", encoding="utf-8"),
        "text/tags.py: its SHA-256 is",
    ),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "no serving.json; export.py --format=stablehlo"),
    "half a manifest": (lambda folder: (folder / MANIFEST).write_text('{"a":'), "serving.json: damaged"),
    "an older version": (lambda folder: change(folder, serving_format=0), "serving format 0, but this reader reads 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_message(copy, damage):
    act, message = DAMAGES[damage]
    act(copy)
    with pytest.raises(FolderError, match=message):
        ServedModel(copy)


def test_a_folder_with_other_files_is_left_alone(predictor, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds other files"):
        write_serving(tmp_path, predictor, command())


@pytest.mark.parametrize("seed", range(3))
def test_the_programs_probability_and_tags_are_those_of_enumerated_paths(seed):
    """In float64, at scores of a post whose sums are large."""
    emissions, _, mask, params = random_batch(seed)
    emissions = emissions * 20
    allowed = np.random.default_rng(seed).random(emissions.shape) < 0.7
    allowed[..., 0] = True  # some path is left
    chain = params._asdict()
    found = np.asarray(probability(emissions, mask, allowed, chain))
    tags = np.asarray(decode(emissions, mask, chain))
    for row in range(len(emissions)):
        if not mask[row].any():
            continue
        every = Enumeration(emissions[row], mask[row], params)
        some = Enumeration(emissions[row], mask[row], params, allowed[row])
        assert found[row] == pytest.approx(np.exp(some.log_normalizer - every.log_normalizer), abs=1e-5)
        np.testing.assert_array_equal(tags[row], every.best)


def test_a_probability_in_a_long_post_is_as_in_float64():
    """The forward algorithm in NumPy: two sums of thousands, whose difference is asked for."""
    generator = np.random.default_rng(5)
    emissions = generator.normal(0, 9, (1, 300, 5)).astype(np.float32) + 30
    params = random_params(generator, 5)
    allowed = np.ones((1, 300, 5), bool)
    place = int(np.abs(np.sort(emissions[0])[:, -1] - np.sort(emissions[0])[:, -2]).argmin())  # the least sure word
    allowed[0, place] = np.arange(5) == emissions[0, place].argmax()

    def log_normalizer(scores):
        transitions, start, end = (np.float64(part) for part in params)
        alpha = start + scores[0]
        for score in scores[1:]:
            alpha = np.logaddexp.reduce(alpha[:, None] + transitions, axis=0) + score
        return np.logaddexp.reduce(alpha + end)

    wide = np.float64(emissions[0])
    expected = np.exp(log_normalizer(np.where(allowed[0], wide, -np.inf)) - log_normalizer(wide))
    found = probability(emissions, np.ones((1, 300), bool), allowed, params._asdict())
    assert 0.05 < expected < 0.95 and float(found[0]) == pytest.approx(expected, abs=2e-5)


def test_without_flatbuffers_it_is_said_what_to_install(served, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install flatbuffers"):
        ServedModel(served)
