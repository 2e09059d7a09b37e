"""Features of a system: the cache is of one arithmetic, and the compiled ResNet does not carry its weights."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from PIL import Image

from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.inputs.collate import Batches
from tmrjax.inputs.packing import INDEX
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods.bert_crf import BertCRF
from tmrjax.models import TMRForNER
from tmrjax.records import Record
from tmrjax.tasks.entities import Tagger
from tmrjax.tasks.system import PictureSettings, rows_for
from tmrjax.text.tokenizers import load_tokenizer
from tmrjax.training.sharding import make_mesh

RESNET = ResNetConfig(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1))
RECORD = Record("1", ("hi",), tags=("O",), image="1.png")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\n")
    bert = BertConfig(
        vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    model = TMRForNER(bert=bert, num_tags=3, resnet=RESNET, num_heads=2, use_back_translation=False)
    return Tagger(
        model.method(), ("PER",), load_tokenizer(folder), TextSettings(8, 3), PictureSettings(32, 36), buckets=(8,)
    )


@pytest.fixture(scope="module")
def variables():
    module = ResNetEncoder(RESNET, jnp.float32)
    made = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    return {name: {"picture_encoder": {"resnet": made[name]}} for name in ("params", "batch_stats")}


@pytest.fixture
def root(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    return tmp_path


def features(system, root, variables):
    source = system.features(root, [RECORD], variables, root / "cache", progress=False)
    return source.load(RECORD)["image_features"]


def test_pooled_states_of_regions_are_kept_beside_the_tokens_of_the_picture(system, root, variables):
    """The paper's fusion reads one vector of a region: what the cache holds is what the encoder gives, normalised."""
    record = dataclasses.replace(RECORD, regions=((0.0, 0.0, 0.5, 1.0), (0.25, 0.25, 0.9, 0.9)))
    loaded = system.features(root, [record], variables, root / "cache", progress=False).load(record)
    assert set(loaded) == {"image_features", "region_pooled"} and loaded["region_pooled"].shape == (2, 16)
    pixels = system.prepare(system.pixels(root).load(record))
    resnet = {name: variables[name]["picture_encoder"]["resnet"] for name in variables}
    for key, kept, expected in (("image", "tokens", "image_features"), ("regions", "pooled", "region_pooled")):
        states = ResNetEncoder(RESNET).apply(resnet, np.reshape(pixels[key], (-1, 32, 32, 3)), train=False)
        found = getattr(states, kept) if key == "regions" else getattr(states, kept)[0]
        np.testing.assert_allclose(loaded[expected], found, atol=1e-5)


def with_model(system, **changes):
    return dataclasses.replace(system, method=dataclasses.replace(system.method, **changes), fitted=())


def test_a_model_of_another_type_does_not_read_these_maps(system, root, variables):
    exact = features(system, root, variables)
    coarse = features(with_model(system, dtype=jnp.bfloat16), root, variables)
    assert np.abs(exact - coarse).max() > 1e-4
    np.testing.assert_array_equal(features(system, root, variables), exact)


def test_a_flag_that_changes_no_shape_is_part_of_the_cache(system, root, variables):
    exact = features(system, root, variables)
    other = dataclasses.replace(RESNET, hidden_act="gelu")
    assert np.abs(exact - features(with_model(system, picture=other), root, variables)).max() > 1e-3


def test_each_process_writes_a_shard_of_its_own(system, root, variables, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    features(system, root, variables)
    assert [path.name for path in (root / "cache").glob("*/*.maps")] == ["shard-00003.maps"]


def test_the_weights_are_an_argument_of_the_program(system, variables):
    resnet = {name: variables[name]["picture_encoder"]["resnet"] for name in variables}
    pixels = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    encode = system.picture_states(("tokens",))
    assert not _has_weights(encode.lower(resnet, pixels), resnet)
    assert _has_weights(jax.jit(lambda pixels: encode(resnet, pixels)).lower(pixels), resnet)  # what it was once


def test_no_predicting_program_has_weights(system):
    """Neither the encoder's, nor those that it hands to the program of its layers."""
    mesh, batch = make_mesh(1), system.collator(system.pixels(Path()))([None], 8)
    weights = jax.eval_shape(lambda: system.method.init(jax.random.key(0), system.dummy_batch(), train=False))
    assert not _has_weights(system.predict_step(mesh).lower(weights, batch), weights)
    generator = np.random.default_rng(0)
    held = jax.tree.map(lambda leaf: generator.random(leaf.shape, np.float32), weights)
    step = system.predict_step(mesh)
    assert _has_weights(jax.jit(lambda batch: step(held, batch)).lower(batch), weights)  # so the test can fail


def test_text_is_padded_to_close_lengths_and_pixels_to_two(system):
    text = dataclasses.replace(TextSettings(8, 3), max_pieces=90)
    one = dataclasses.replace(system, text=text, buckets=(90,))
    several = dataclasses.replace(system, text=text, buckets=(24, 40, 56, 90))
    assert one.reading_lengths == (90,)  # as the released code: what it reads hangs on the length
    assert several.reading_lengths == (56, 90)
    alone = dataclasses.replace(several, method=BertCRF(text=system.method.text, num_labels=3), fitted=())
    assert alone.reading_lengths == (16, 24, 32, 40, 56, 80, 90)


def test_as_many_rows_as_posts_nearly():
    assert [rows_for(posts, 1) for posts in (1, 2, 4, 5, 17, 65)] == [1, 4, 4, 16, 64, 256]
    assert [rows_for(posts, 3) for posts in (1, 4, 13)] == [3, 12, 48]


def _has_weights(lowered, resnet):
    """Whether a constant of the program is as long as the largest kernel, written as four bytes a number."""
    largest = max(leaf.size for leaf in jax.tree.leaves(resnet))
    return any("constant" in line and len(line) > 8 * largest for line in lowered.as_text().splitlines())


def test_cached_pixels_are_those_of_the_files_and_nothing_is_decoded_again(system, root, monkeypatch):
    record = dataclasses.replace(RECORD, regions=((0.0, 0.0, 0.5, 1.0), (0.25, 0.25, 0.9, 0.9)))
    expected = system.pixels(root).load(record)
    source = system.cached_pixels(root, [record], root / "cache", progress=False)
    monkeypatch.setattr(PIL.Image, "open", lambda *_, **__: pytest.fail("it was decoded"))
    again = system.cached_pixels(root, [record], root / "cache", progress=False)
    assert source.spec() == system.pixels(root).spec() and source.pool is None
    for found in (source.load(record), again.load(record)):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_batches_are_packed_where_pixels_are_encoded_and_nowhere_else(system, root, variables):
    mesh, pixels = make_mesh(8), system.pixels(root)
    packing = system.packing(pixels, mesh, accumulate=2)
    assert (packing.devices, packing.accumulate, packing.pictures) == (8, 2, system.method.pictures)
    assert system.packing(system.cached_pixels(root, [RECORD], root / "cache", progress=False), mesh) is not None
    states = system.features(root, [RECORD], variables, root / "cache", progress=False)
    zeros = dataclasses.replace(system, pictures=PictureSettings(32, 36, missing="zeros"))
    assert system.packing(states, mesh) is None is zeros.packing(zeros.pixels(root), mesh)


def test_prediction_reads_one_batch_ahead_in_the_threads_and_processes_asked_for(system, root, monkeypatch):
    """A batch is decoded when the next one is on its way, the last one at the end; each lies on the devices."""
    records = [dataclasses.replace(RECORD, id=str(number)) for number in range(6)] + [Record("6", ("hi",), tags=("O",))]
    examples, happened, asked = system.encode(records), [], {}
    iterate = Batches.iterate

    def spied(self, *, num_workers, **options):  # a command starts the processes, once flags are parsed
        asked.update(options, num_workers=num_workers)
        return iterate(self, **options)

    def decode(self, output, rows, **_):
        happened.append(output)
        return dict.fromkeys(rows, 7)

    monkeypatch.setattr(Batches, "iterate", spied)
    monkeypatch.setattr(Tagger, "_decode", decode)

    def step(_, batch):
        assert isinstance(batch["image"], jax.Array)
        happened.append((len(happened), batch.get(INDEX) is not None))
        return ("decoded", happened[-1][0])

    found = system.predict(
        step, {}, examples, system.pixels(root), make_mesh(1), batch_size=2, num_threads=3, num_workers=2
    )
    assert found == [7] * 7 and (asked["num_threads"], asked["num_workers"]) == (3, 2)
    steps = [number for number, one in enumerate(happened) if one[0] != "decoded"]
    assert steps == [0, 1, 3, 5] and happened[2] == ("decoded", 0) and happened[-1] == ("decoded", 5)
    assert [happened[number][1] for number in steps] == [True] * 4
