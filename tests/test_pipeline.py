"""Batches: every post once an epoch, the same order from any position and by any number of workers, masks for gaps."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import BertTokenizerFast

from tmrjax.examples import RELEASE_TAGS, TaggingExample, TextSettings, encode_tagging
from tmrjax.feature_cache import FeatureCache
from tmrjax.pipeline import (
    Batches,
    BatchPlan,
    Collator,
    FeatureSource,
    PixelSource,
    picture_requests,
    sample_fraction,
)
from tmrjax.records import Generated, Record
from tmrjax.tagging import TagSet

LABELS = TagSet(("PER", "LOC"))
SETTINGS = TextSettings(max_pieces=10, max_phrase_pieces=3)


def collator(pictures):
    return Collator(TaggingExample, SETTINGS, pictures)


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
    examples = encode_tagging(RECORDS, tokenizer, LABELS, SETTINGS)
    assert "4 words of 1 posts lie outside of the limit of 10 word pieces" in caplog.text
    assert examples[2].pieces.cut == [8, 9, 10, 11] and len(examples[2].tags) == 8
    assert examples[1].pieces.empty == [1] and examples[1].tags == LABELS.encode(["B-LOC", "O"])


def test_released_tags_stand_on_every_piece(tokenizer):
    [example] = encode_tagging(RECORDS[:1], tokenizer, LABELS, TextSettings(10, 3, piece_tags=True))
    tags = [RELEASE_TAGS[i] for i in example.tags]
    assert tags == ["[CLS]", "B-PER", "O", "O", "B-LOC", "X", "[SEP]"]


def test_collate_fills_masks_and_neutral_scores(tokenizer, root):
    examples = encode_tagging(RECORDS, tokenizer, LABELS, SETTINGS)
    source = PixelSource(root, ("", "generated_"), size=8, resize=8)
    batch = collator(source)([*examples[:2], None], 10)
    assert batch["row_mask"].tolist() == [True, True, False]
    assert batch["attention_mask"].sum(1).tolist() == [7, 5, 0]
    assert batch["word_starts"][0, :4].tolist() == [1, 2, 3, 4] and batch["word_mask"].sum(1).tolist() == [4, 2, 0]
    assert batch["image_mask"].tolist() == [True, True, False]
    assert batch["generated_image_mask"].tolist() == [True, False, False]
    assert batch["region_mask"].tolist() == [[True] * 3, [False] * 3, [False] * 3]  # the fourth box is left out
    assert batch["generated_region_mask"][0].tolist() == [True, False, False]
    np.testing.assert_allclose(batch["scores"], [[0.1, 0.2, 0.7], [0, 1, 1], [0, 1, 1]], rtol=1e-6)
    assert batch["phrase_mask"].sum(1).tolist() == [5, 0, 0]
    assert batch["image"].shape == (3, 8, 8, 3) and batch["generated_regions"].shape == (3, 3, 8, 8, 3)
    assert not batch["image"][2].any() and batch["image"][0, 0, 0, 0] > 2  # red
    assert set(collator(None)(examples[:1], 10)) == {
        "input_ids", "attention_mask", "word_starts", "word_mask", "tags", "row_mask",
    }  # fmt: skip


def fake_resnet(pixels):
    """Two patches of four channels that depend on the pixels."""
    means = pixels.reshape(len(pixels), 2, -1).mean(-1)
    return np.stack([means, means**2, means + 1, -means], -1)


def test_cached_features_are_those_of_the_pixels(tokenizer, root, tmp_path):
    prefixes = ("", "generated_")
    requests = picture_requests(RECORDS, root, prefixes)
    assert len(requests) == 2 + 1 + 3 + 1
    cache = FeatureCache.build(
        tmp_path, requests, fake_resnet, encoder_identity={}, size=8, resize=8, progress=False, batch_size=4
    )
    examples = encode_tagging(RECORDS, tokenizer, LABELS, SETTINGS)
    pixels = collator(PixelSource(root, prefixes, size=8, resize=8))(examples, 10)
    features = collator(FeatureSource(root, prefixes, cache))(examples, 10)
    for prefix in prefixes:
        np.testing.assert_allclose(features[f"{prefix}image_features"][0], fake_resnet(pixels[f"{prefix}image"])[0])
        for row, slot in zip(*np.nonzero(pixels[f"{prefix}region_mask"]), strict=True):
            expected = fake_resnet(pixels[f"{prefix}regions"][row])[slot]
            np.testing.assert_allclose(features[f"{prefix}region_features"][row, slot], expected)


@pytest.fixture(scope="module")
def batches(tokenizer, root):
    records = [RECORDS[i % 3] for i in range(11)]
    examples = encode_tagging(records, tokenizer, LABELS, SETTINGS)
    plan = BatchPlan([len(e.pieces.input_ids) for e in examples], (8, 10), 4, epochs=3, seed=5)
    return Batches(examples, plan, collator(PixelSource(root, ("",), size=8, resize=8)))


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
