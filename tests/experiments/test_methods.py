"""Every method on the demo world, traced, not compiled: its inputs are there, its loss is a number, it is restored."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.make_demo import make_demo
from experiments.configs import mner, mre
from experiments.lib import build
from experiments.lib.posts import PostExperiment
from tmrjax.methods import find_method, known_methods
from tmrjax.methods.base import options_of
from tmrjax.records import read_dataset
from tmrjax.tasks import system_from_meta
from tmrjax.training.optimizer import parameter_groups

CONFIGS = {"ner": mner, "re": mre}
ALL = [(name, task) for name, tasks in known_methods().items() for task in tasks if name != "tmr_release"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds")
    for task in CONFIGS:
        make_demo(root / task, posts=60, seed=1, task=task)
    return root


def traced(config, root):
    """(system, one batch of training, shapes of the variables, shapes of the loss and its parts)."""
    dataset = read_dataset(root)
    system = build.build_system(config, dataset)
    examples = system.training_rows(system.encode(dataset.splits["train"][:6], say=None))
    batch = dict(system.collator(system.pixels(root))(examples, system.buckets[-1]))
    variables = jax.eval_shape(
        lambda key: system.method.init(key, system.dummy_batch(), train=False), jax.random.key(0)
    )
    statistics = variables.get("batch_stats", {})
    return (
        system,
        batch,
        variables,
        lambda batch: jax.eval_shape(system.loss(), variables["params"], statistics, batch, jax.random.key(0)),
    )


@pytest.mark.parametrize(("method", "task"), ALL)
def test_a_method_reads_the_demo_world_learns_and_is_restored(worlds, method, task):
    config = CONFIGS[task].get_config("demo", method)
    system, batch, variables, loss = traced(config, worlds / task)
    assert {
        key for one in system.fitted for key in one.spec(system.buckets[-1], reading_of(system, worlds / task))
    } <= set(batch)
    total, (count, _, parts) = loss(batch)
    assert (
        total.shape == count.shape == ()
        and total.dtype == jnp.float32
        and all(part.shape == () for part in parts.values())
    )
    assert set(jax.tree.leaves(parameter_groups(variables["params"], system.method.rates, system.method.frozen)))
    again = system_from_meta(json.loads(json.dumps(system.to_meta())))
    assert again.method == system.method and again.fitted == system.fitted and again.head == system.head


@pytest.mark.parametrize(
    ("method", "task"), [(n, t) for n, t in ALL if "use_pictures" in options_of(find_method(n, t))]
)
def test_a_text_only_form_reads_no_picture(worlds, method, task):
    config = CONFIGS[task].get_config("demo", method)
    config.model.use_pictures = False
    system, batch, variables, loss = traced(config, worlds / task)
    assert system.method.pictures is None and system.method.left_out == "pictures"
    assert not [key for key in batch if "image" in key or "region" in key or "object" in key or key == "alignment"]
    assert np.shape(loss(batch)[0]) == () and not [name for name in variables["params"] if "picture_encoder" in name]


def reading_of(system, root):
    """What inputs of this system share, as the collator has it."""
    return system.collator(system.pixels(root)).reading


def test_word_vectors_of_the_data_fill_the_table_and_are_told(worlds):
    config = mner.get_config("demo", "blstm_crf")
    config.data.root = str(worlds / "ner")
    dataset = read_dataset(worlds / "ner")
    system = build.build_system(config, dataset)
    assert system.encoders["words"]["found"] > 50 and system.encoders["words"]["width"] == system.method.word_size
    table = build.initial_variables(config, dataset, system)["params"]["word_embeddings"]["embedding"]
    lines = (worlds / "ner" / "word_vectors" / "vectors.txt").read_text().splitlines()
    vectors = {line.split()[0]: np.array(line.split()[1:], np.float32) for line in lines if len(line.split()) > 2}
    known = system.fitted[0].vocabulary.indices
    shared = [word for word in vectors if word in known]
    assert len(shared) > 50
    np.testing.assert_array_equal(table[[known[word] for word in shared]], [vectors[word] for word in shared])


def test_the_second_stream_of_rpbert_takes_part_in_its_loss(worlds, monkeypatch):
    config = mner.get_config("demo", "rpbert")
    config.data.root = str(worlds / "ner")
    config.data.feature_cache = False
    monkeypatch.setattr(  # traced, not compiled
        build, "initial_variables", lambda config, dataset, system: jax.eval_shape(
            lambda key: system.method.init(key, system.dummy_batch(), train=False), jax.random.key(0)
        ),
    )  # fmt: skip
    experiment = PostExperiment(config)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    variables = experiment.build(mesh)
    _, batch = experiment.batches[0]
    assert set(np.unique(batch["second_picture_adds"])) == {0, 1} and experiment.to_meta()["text_picture"]["posts"] > 10
    batch = dict(batch)
    _, (_, _, parts) = jax.eval_shape(
        experiment.loss(), variables["params"], variables.get("batch_stats", {}), batch, jax.random.key(0)
    )
    assert len(parts) == 2
