"""Batches: every post once an epoch, the same order from any position and by any number of workers, masks for gaps."""

import contextlib
import pickle
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import BertTokenizerFast

from tmrjax.inputs.base import Reading, encode_records
from tmrjax.inputs.batching import BatchPlan
from tmrjax.inputs.collate import Batches, Collator, sample_fraction
from tmrjax.inputs.labels import RELEASE_TAGS, Relation, Tags
from tmrjax.inputs.lost import say_what_is_lost
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.phrases import Phrases, phrase_ids_of
from tmrjax.inputs.pictures import FeatureSource, Pictures, PixelSource, picture_requests
from tmrjax.inputs.pieces import Pieces
from tmrjax.inputs.scores import Scores
from tmrjax.inputs.settings import PHRASES, TextSettings
from tmrjax.pictures.cache import FeatureCache
from tmrjax.pictures.decode import PictureError
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Generated, Record
from tmrjax.text.marking import MARKERS
from tmrjax.text.tags import TagSet

LABELS = TagSet(("PER", "LOC"))
SETTINGS = TextSettings(max_pieces=10, max_phrase_pieces=3, windows=False)
SMALL = PictureSettings(size=8, resize=8)


TEXT = (Pieces(), Tags(LABELS.labels))
BOTH = Pictures("tokens", "tokens", generated=True)
ALL = (Pieces(), Tags(LABELS.labels), Phrases(), BOTH, Scores())


def encode(records, tokenizer, inputs=ALL, settings=SETTINGS):
    return encode_records(records, inputs, Reading(tokenizer, settings))


def collator(pictures, inputs=ALL, settings=SETTINGS):
    return Collator(TEXT if pictures is None else inputs, Reading(None, settings, pictures))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "jordan", "har", "##bour", "at", "the"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return BertTokenizerFast.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("g.png", "green")):
        Image.new("RGB", (20, 12), colour).save(root / name)
    return root


RECORDS = [
    Record(
        id="0", tokens=("Jordan", "at", "the", "harbour"), tags=("B-PER", "O", "O", "B-LOC"), image="a.png",
        regions=((0.0, 0.0, 0.5, 0.5),) * 4, phrases=("jordan", "the harbour"), scores=(0.1, 0.2, 0.7),
        generated=Generated("g.png", ((0.1, 0.1, 0.9, 0.9),)), generated_scores=(0.5, 0.5, 0.0),
    ),
    Record(id="1", tokens=("harbour", "\ufe0f", "at"), tags=("B-LOC", "O", "O"), image="b.png"),
    Record(id="2", tokens=("the",) * 12, tags=("O",) * 11 + ("B-PER",)),
]  # fmt: skip


@st.composite
def plans(draw):
    lengths = draw(st.lists(st.integers(3, 20), min_size=1, max_size=60))
    return lengths, draw(st.integers(1, 7)), draw(st.sampled_from([(20,), (8, 20), (5, 9, 20)]))


@given(plans(), st.sampled_from([None, 0, 1]))
def test_every_post_comes_once_an_epoch_in_a_bucket_that_holds_it(case, seed):
    lengths, batch_size, buckets = case
    plan = BatchPlan(lengths, buckets, batch_size, epochs=2, seed=seed)
    assert len(plan) == 2 * plan.batches_per_epoch
    for epoch in range(2):
        batches = [plan[epoch * plan.batches_per_epoch + i] for i in range(plan.batches_per_epoch)]
        assert all(len(indices) == batch_size for _, indices in batches)
        chosen = [int(i) for _, indices in batches for i in indices if i >= 0]
        assert sorted(chosen) == list(range(len(lengths)))
        assert all(lengths[i] <= length for length, indices in batches for i in indices if i >= 0)
        assert sum((indices < 0).any() for _, indices in batches) <= 1


def test_plans_are_a_function_of_seed_and_step():
    lengths = list(range(3, 20)) * 3

    def plan(seed):
        return BatchPlan(lengths, (8, 20), 4, epochs=3, seed=seed)

    forward = [plan(1)[i][1].tolist() for i in range(len(plan(1)))]
    backward = [plan(1)[i][1].tolist() for i in reversed(range(len(plan(1))))]
    assert forward == backward[::-1]
    size = plan(1).batches_per_epoch
    assert forward[:size] != forward[size : 2 * size]
    assert forward != [plan(2)[i][1].tolist() for i in range(len(plan(2)))]


def test_plans_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="21 word pieces, but the longest bucket 20"):
        BatchPlan([21], (20,), 2)
    with pytest.raises(ValueError, match="no example"):
        BatchPlan([], (20,), 2)


def test_cut_and_invisible_words_are_reported(tokenizer, caplog):
    examples = encode(RECORDS, tokenizer)
    say_what_is_lost(examples, SETTINGS, "train")
    assert "train: 4 words of 1 posts lie outside of the limit of 10 word pieces" in caplog.text
    assert examples[2].pieces.cut == [8, 9, 10, 11]
    assert examples[1].pieces.empty == [1]
    batch = collator(None)(examples, 10)
    assert batch["word_mask"].sum(1).tolist() == [4, 2, 8]
    assert batch["tags"][1].tolist() == [*LABELS.encode(["B-LOC", "O"]), *[0] * 6]


def test_released_tags_stand_on_every_piece(tokenizer):
    settings = TextSettings(10, 3, piece_tags=True)
    examples = encode(RECORDS[:1], tokenizer, TEXT, settings)
    tags = [RELEASE_TAGS[i] for i in collator(None, settings=settings)(examples, 7)["tags"][0]]
    assert tags == ["[CLS]", "B-PER", "O", "O", "B-LOC", "X", "[SEP]"]


def test_phrases_of_the_released_code_are_its_own(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "jordan", "Jordan", "har", "##bour", "at", "the"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))

    def pieces(phrases, kind, limit):
        settings = TextSettings(max_phrase_pieces=limit, phrases=kind)
        ids, cut = phrase_ids_of(tokenizer, phrases, settings)
        assert len(ids) <= settings.phrase_length
        return " ".join(tokenizer.convert_ids_to_tokens(ids)), cut

    phrases = ("Jordan", "the harbour at")
    assert pieces(phrases, "pieces", 4) == ("[CLS] jordan the har ##bour [SEP]", 1)
    assert pieces(phrases, "release_pieces", 3) == ("[CLS] jordan the har [SEP]", 2)
    # Whole words, case and all; what is behind the sixth is cut, what is missing is padding that counts.
    assert pieces(phrases, "release_words", 6) == ("Jordan the [UNK] at [PAD] [PAD]", 0)
    assert pieces(("the at", "the at the at the"), "release_words", 6) == ("the at the at the at", 1)
    without = [pieces((), kind, 3) for kind in PHRASES]
    assert without == [("", 0), ("[CLS] [SEP]", 0), ("[UNK] [PAD] [PAD]", 0)]
    with pytest.raises(ValueError, match=r"text\.phrases is 'words'"):
        TextSettings(phrases="words")


def brightest(pixels):
    """The colour of a picture of one primary colour, by the pixels that a ResNet reads."""
    means = SMALL.normalise(pixels).mean((0, 1))
    assert np.sort(means)[-1] > 0 and np.sort(means)[-2] < -1.5  # Pillow's green is half as bright
    return ("red", "green", "blue")[means.argmax()]


def test_each_region_goes_to_its_own_place_and_each_picture_to_its_own(tokenizer, root, tmp_path):
    """Three bands of the post's picture, two of the generated one's, in an order of their own."""
    for name, colours in (("bands.png", ("red", "green", "blue")), ("generated.png", ("blue", "red", "green"))):
        bands = Image.new("RGB", (30, 12))
        for i, colour in enumerate(colours):
            bands.paste(colour, (10 * i, 0, 10 * i + 10, 12))
        bands.save(tmp_path / name)
    left, middle, right = ((i / 3, 0.0, (i + 1) / 3, 1.0) for i in range(3))
    record = Record(
        "0", ("at",), ("O",), image="bands.png", regions=(right, left, middle),
        generated=Generated("generated.png", (right, left)),
    )  # fmt: skip
    examples = encode([record], tokenizer)
    requests = picture_requests([record], tmp_path, BOTH, SMALL, "tokens")
    cache = FeatureCache.build(
        tmp_path / "cache", requests, lambda pixels: {"tokens": SMALL.normalise(pixels).reshape(len(pixels), -1, 3)},
        encoder_identity={}, settings=SMALL, progress=False,
    )  # fmt: skip
    pixels = collator(PixelSource(tmp_path, BOTH, SMALL))(examples, 10)
    features = collator(FeatureSource(tmp_path, BOTH, SMALL, {"tokens": cache}))(examples, 10)
    for prefix, colours in (("", ["blue", "red", "green"]), ("generated_", ["green", "blue"])):
        for batch in (pixels, features):
            assert batch[f"{prefix}region_mask"][0].tolist() == [i < len(colours) for i in range(3)]
        stored = features[f"{prefix}region_features"][0].reshape(3, 8, 8, 3)
        for i, colour in enumerate(colours):
            assert brightest(pixels[f"{prefix}regions"][0, i]) == brightest(stored[i]) == colour
        assert not pixels[f"{prefix}regions"][0, len(colours) :].any()


def test_head_and_tail_stand_at_their_own_markers(tmp_path):
    words = ["[PAD]", *MARKERS, "[UNK]", "[CLS]", "[SEP]", "[MASK]", "jordan", "at", "the", "har", "##bour"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tokens = ("Jordan", "at", "the", "harbour")
    # The head first, and the tail first.
    pairs = [Record("a", tokens, head=(0, 1), tail=(3, 4), relation="x"),
             Record("b", tokens, head=(3, 4), tail=(0, 1), relation="x")]  # fmt: skip
    settings, inputs = TextSettings(12), (Marked(), Relation(("None", "x")))
    batch = Collator(inputs, Reading(None, settings))(encode(pairs, tokenizer, inputs, settings), 12)
    rows = np.arange(2)
    for name, marker, following in (
        ("head_start", MARKERS[0], ["jordan", "har"]),
        ("tail_start", MARKERS[2], ["har", "jordan"]),
    ):
        at, after = (batch["input_ids"][rows, batch[name] + offset] for offset in (0, 1))
        assert tokenizer.convert_ids_to_tokens(at.tolist()) == [marker] * 2
        assert tokenizer.convert_ids_to_tokens(after.tolist()) == following
    assert batch["relation"].tolist() == [1, 1]


def test_collate_fills_masks_and_neutral_scores(tokenizer, root):
    examples = encode(RECORDS, tokenizer)
    source = PixelSource(root, BOTH, SMALL)
    batch = collator(source)([*examples[:2], None], 10)
    assert batch["row_mask"].tolist() == [True, True, False]
    assert batch["attention_mask"].sum(1).tolist() == [7, 5, 0]
    assert batch["word_starts"][0, :4].tolist() == [1, 2, 3, 4] and batch["word_mask"].sum(1).tolist() == [4, 2, 0]
    assert batch["image_mask"].tolist() == [True, True, False]
    assert batch["generated_image_mask"].tolist() == [True, False, False]
    assert batch["region_mask"].tolist() == [[True] * 3, [False] * 3, [False] * 3]  # the fourth box is left out
    assert batch["generated_region_mask"][0].tolist() == [True, False, False]
    np.testing.assert_allclose(batch["scores"], [[0.1, 0.2, 0.7], [0, 1, 1], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(batch["generated_scores"], [[0.5, 0.5, 0.0], [0, 1, 1], [0, 0, 0]], rtol=1e-6)
    assert batch["phrase_mask"].sum(1).tolist() == [5, 0, 0]
    assert batch["image"].shape == (3, 8, 8, 3) and batch["generated_regions"].shape == (3, 3, 8, 8, 3)
    assert not batch["image"][2].any()
    assert [brightest(batch[name][0]) for name in ("image", "generated_image")] == ["red", "green"]
    assert set(collator(None)(examples[:1], 10)) == {
        "input_ids", "attention_mask", "word_starts", "word_mask", "tags", "row_mask",
    }  # fmt: skip


def fake_resnet(pixels):
    """Two patches of four channels that depend on the pixels."""
    means = pixels.reshape(len(pixels), 2, -1).mean(-1)
    return np.stack([means, means**2, means + 1, -means], -1)


def test_cached_features_are_those_of_the_pixels(tokenizer, root, tmp_path):
    requests = picture_requests(RECORDS, root, BOTH, SMALL, "tokens")
    assert len(requests) == 2 + 1 + 3 + 1
    cache = FeatureCache.build(
        tmp_path,
        requests,
        lambda pixels: {"tokens": fake_resnet(pixels)},
        encoder_identity={},
        settings=SMALL,
        progress=False,
        batch_size=4,
    )
    examples = encode(RECORDS, tokenizer)
    pixels = collator(PixelSource(root, BOTH, SMALL))(examples, 10)
    features = collator(FeatureSource(root, BOTH, SMALL, {"tokens": cache}))(examples, 10)
    for prefix in BOTH.prefixes:
        np.testing.assert_allclose(
            features[f"{prefix}image_features"][0], fake_resnet(pixels[f"{prefix}image"])[0], rtol=1e-6
        )
        for row, slot in zip(*np.nonzero(pixels[f"{prefix}region_mask"]), strict=True):
            expected = fake_resnet(pixels[f"{prefix}regions"][row])[slot]
            np.testing.assert_allclose(features[f"{prefix}region_features"][row, slot], expected, rtol=1e-6)


def test_pooled_states_and_stages_have_keys_of_their_own(tokenizer, root, tmp_path):
    """One vector for a whole picture, maps of two sizes for a region; what is not there is zero in both."""
    pictures = Pictures("pooled", "stages")

    def encoder(pixels):
        tokens = fake_resnet(pixels)
        return {"pooled": tokens.mean(1), "stages": (tokens[:, None], tokens[:, :1, None] + 1)}

    caches = {
        kept: FeatureCache.build(
            tmp_path, picture_requests(RECORDS, root, pictures, SMALL, kept), encoder, encoder_identity={},
            settings=SMALL, keep=(kept,), progress=False, batch_size=4,
        )
        for kept in ("pooled", "stages")
    }  # fmt: skip
    assert [len(cache) for cache in caches.values()] == [3, 2]  # four boxes of the first record are one
    inputs = (*TEXT, pictures)
    examples = encode(RECORDS, tokenizer, inputs)
    features = collator(FeatureSource(root, pictures, SMALL, caches), inputs)([*examples, None], 10)
    pixels = collator(PixelSource(root, pictures, SMALL), inputs)([*examples, None], 10)
    for prefix in pictures.prefixes:
        assert f"{prefix}image_features" not in features and f"{prefix}region_pooled" not in features
        present = pixels[f"{prefix}image_mask"]
        expected = fake_resnet(pixels[f"{prefix}image"]).mean(1) * present[:, None]
        np.testing.assert_allclose(features[f"{prefix}image_pooled"], expected, rtol=1e-5)
        fine, coarse = features[f"{prefix}region_stages"]
        assert fine.shape == (4, 3, 1, 2, 4) and coarse.shape == (4, 3, 1, 1, 4)
        present = pixels[f"{prefix}region_mask"][..., None, None, None]
        tokens = fake_resnet(pixels[f"{prefix}regions"].reshape(12, 8, 8, 3)).reshape(4, 3, 1, 2, 4)
        np.testing.assert_allclose(fine, tokens * present, rtol=1e-5)
        np.testing.assert_allclose(coarse, (tokens[..., :1, :] + 1) * present, rtol=1e-5)


@pytest.fixture(scope="module")
def batches(tokenizer, root):
    records = [RECORDS[i % 3] for i in range(11)]
    own = Pictures("tokens", "tokens", generated=False)
    inputs = (*TEXT, Phrases(), own, Scores(generated=False))
    examples = encode(records, tokenizer, inputs)
    plan = BatchPlan([len(e.pieces.input_ids) for e in examples], (8, 10), 4, epochs=3, seed=5)
    return Batches(examples, plan, collator(PixelSource(root, own, SMALL), inputs))


def equal(first, second):
    assert first[0].tolist() == second[0].tolist()
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


def test_iteration_resumes_at_any_step(batches):
    whole = list(batches.iterate())
    assert len(whole) == len(batches) == 9
    for start in (0, 4, 8):
        for first, second in zip(whole[start:], batches.iterate(start, num_threads=1, prefetch=1), strict=True):
            equal(first, second)
    assert list(batches.iterate(9)) == []


def test_pictures_of_one_batch_are_decoded_side_by_side(tokenizer, root):
    """By four threads that wait for each other; the batch is that of one thread."""
    own = Pictures("tokens", "tokens", generated=False)
    examples = encode([RECORDS[i % 2] for i in range(4)], tokenizer, (*TEXT, own))

    class Together(PixelSource):
        meeting = threading.Barrier(4)

        def open(self, *given):
            self.meeting.wait(timeout=20)
            return super().open(*given)

    found = collator(Together(root, own, SMALL, num_threads=4), (*TEXT, own))(examples, 10)
    source = PixelSource(root, own, SMALL)
    assert source.pool is None
    expected = collator(source, (*TEXT, own))(examples, 10)
    assert all(np.array_equal(found[name], expected[name]) for name in expected) and expected["regions"].any()


def test_a_source_with_threads_travels_to_worker_processes(root):
    source = PixelSource(root, BOTH, SMALL, num_threads=3)
    assert list(source.pool.map(abs, [-1])) == [1]
    again = pickle.loads(pickle.dumps(source))
    assert list(again.pool.map(abs, [-1])) == [1] and again.pool is not source.pool


def test_the_next_batch_is_placed_before_it_is_asked_for(batches):
    """By a thread of its own, which is two batches ahead at most; an error of it reaches whoever asks."""
    placed, second, names = [], threading.Event(), set()

    def place(batch):
        placed.append(batch["row_mask"].sum())
        names.add(threading.current_thread().name)
        if len(placed) == 2:
            second.set()
        return batch | {"placed": len(placed)}

    stream = batches.iterate(place=place)
    _, first = next(stream)
    assert first["placed"] == 1 and second.wait(timeout=60)
    time.sleep(0.1)
    assert len(placed) <= 3
    rest = [batch["placed"] for _, batch in stream]
    assert rest == list(range(2, len(batches) + 1)) and threading.current_thread().name not in names

    def fail(batch):
        raise PictureError("a.jpg", "x", "y", "Do z.")

    with pytest.raises(PictureError):
        next(batches.iterate(place=fail))


def test_a_stream_that_is_left_ends_its_thread(batches):
    with contextlib.closing(batches.iterate(place=dict)) as stream:
        next(stream)
        assert any(thread.name.startswith("grain-thread-prefetch") for thread in threading.enumerate())
    assert not any(thread.name.startswith("grain-thread-prefetch") for thread in threading.enumerate())


def test_processes_share_a_batch_out(batches):
    parts = [
        Batches(batches.examples, batches.plan, batches.collate, process_index=i, process_count=2) for i in range(2)
    ]
    for whole, first, second in zip(batches.iterate(), *(part.iterate() for part in parts), strict=True):
        for name in whole[1]:
            np.testing.assert_array_equal(whole[1][name], np.concatenate([first[1][name], second[1][name]]))
    with pytest.raises(ValueError, match="a batch of 4 does not divide into 3 processes"):
        Batches(batches.examples, batches.plan, batches.collate, process_count=3)


def test_batches_travel_to_worker_processes(batches):
    equal(pickle.loads(pickle.dumps(batches))[3], batches[3])


def test_fractions_are_drawn_without_replacement_by_seed():
    records = [Record(id=str(i), tokens=("a",)) for i in range(50)]
    some = sample_fraction(records, 0.1, seed=0)
    assert len(some) == 5 and len({record.id for record in some}) == 5
    assert some == sample_fraction(records, 0.1, seed=0) != sample_fraction(records, 0.1, seed=1)
    assert sample_fraction(records, 1.0, seed=3) == records
    with pytest.raises(ValueError, match=r"\(0, 1\], found 0"):
        sample_fraction(records, 0, seed=0)
