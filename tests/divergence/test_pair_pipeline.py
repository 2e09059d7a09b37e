"""The estimator's batches: every pair once an epoch, in a shape that holds it, the same from any step and worker."""

import pickle

import numpy as np
import pytest
from PIL import Image
from transformers import BertTokenizerFast

from data_prep.demo.drawer import encode
from tmrjax.divergence.corpus import Pair, open_corpus, write_corpus
from tmrjax.divergence.pictures import PairPictureSettings, estimator_pixels, resized_size
from tmrjax.divergence.pipeline import (
    PairBatches,
    PairTextSettings,
    collate_pairs,
    encode_text,
    pair_buckets,
    plan_pairs,
    text_lengths,
)
from tmrjax.inputs.batching import BatchPlan
from tmrjax.pictures.decode import PictureError

TEXTS = PairTextSettings(max_pieces=10, buckets=(6, 10))
PICTURES = PairPictureSettings(size=32, longest=64)
SIZES = ((32, 32), (32, 70), (80, 40), (64, 33))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "on", "the", "har", "##bour"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return BertTokenizerFast.from_pretrained(str(folder))


def make_pair(number):
    height, width = SIZES[number % 4]
    picture = Image.new("RGB", (width, height), (number * 7 % 256, 30, 200))
    text = " ".join(["a dog on the harbour"] * (1 + number % 3))
    return Pair(str(number), text, number % 3, ("one", "two")[number % 2], "in", encode(picture), height, width)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    pairs = (make_pair(i) for i in range(37))
    write_corpus(root, {"train": pairs}, name="tiny", source_names=("one", "two"), shard_records=10)
    return open_corpus(root)["train"]


def batches(split, tokenizer, size=4, **options):
    plan, _ = plan_pairs(split, tokenizer, TEXTS, PICTURES, size, epochs=2, seed=5)
    return PairBatches(split, plan, tokenizer, TEXTS, PICTURES, **options)


def test_every_pair_once_an_epoch_in_a_shape_that_holds_it(split, tokenizer):
    stream = batches(split, tokenizer)
    per_epoch = stream.plan.batches_per_epoch
    assert per_epoch == 10 and len(stream) == 20
    orders = []
    for epoch in range(2):
        seen = []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            indices, batch = stream[step]
            shape = (batch["input_ids"].shape[1], *batch["pixel_values"].shape[1:3])
            assert shape in pair_buckets(TEXTS, PICTURES)
            for row, number in enumerate(indices):
                assert batch["row_mask"][row] == (number >= 0)
                if number < 0:
                    assert not batch["attention_mask"][row].any() and not batch["pixel_mask"][row].any()
                    assert batch["sources"][row] == -1
                    continue
                seen.append(int(number))
                pair, ids = split[number], encode_text(tokenizer, split[number].text, TEXTS)
                assert batch["input_ids"][row, batch["attention_mask"][row]].tolist() == ids
                assert batch["labels"][row] == pair.label and batch["sources"][row] == ("one", "two").index(pair.source)
                height, width = resized_size(pair.height, pair.width, PICTURES)
                assert batch["pixel_mask"][row].sum() == height * width and batch["pixel_mask"][row, height - 1, 0]
                red = batch["pixel_values"][row, 0, 0, 0]
                assert abs(red - ((number * 7 % 256) / 127.5 - 1)) < 0.05
        assert sorted(seen) == list(range(37))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_processes_share_a_batch_and_streams_start_anywhere(split, tokenizer):
    whole = batches(split, tokenizer)
    halves = [batches(split, tokenizer, process_index=i, process_count=2) for i in range(2)]
    for step in (0, 13, 19):
        parts = [half[step][1] for half in halves]
        for name, value in whole[step][1].items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), value), name
    from_13 = list(whole.iterate(13, num_threads=2))
    assert len(from_13) == 7
    assert np.array_equal(from_13[2][1]["pixel_values"], whole[15][1]["pixel_values"])
    again = pickle.loads(pickle.dumps(whole))
    assert np.array_equal(again[3][1]["input_ids"], whole[3][1]["input_ids"])


def test_texts_over_the_limit_are_counted_and_end_in_sep(tokenizer, caplog):
    texts = ["a dog", "a dog on the harbour a dog on the harbour", "", "\u200d"]
    found = text_lengths(texts, tokenizer, TEXTS)
    assert found.pieces.tolist() == [4, 10, 2, 2] and (found.cut, found.empty) == (1, 2)
    assert "1 of 4 texts have more than 10 word pieces" in caplog.text and "2 of 4 texts have no" in caplog.text
    ids = encode_text(tokenizer, texts[1], TEXTS)
    assert len(ids) == 10 and ids[-1] == tokenizer.sep_token_id and ids[0] == tokenizer.cls_token_id
    assert encode_text(tokenizer, texts[0], TEXTS) == tokenizer(texts[0])["input_ids"]


def test_a_broken_picture_names_its_pair(tokenizer):
    broken = make_pair(3)._replace(image=b"\xff\xd8 no picture")
    with pytest.raises(PictureError, match="picture of the pair 3"):
        collate_pairs([broken], (10, 64, 64), tokenizer, TEXTS, PICTURES)


def test_pixels_of_a_batch_are_those_of_the_pictures(split, tokenizer):
    from tmrjax.pictures.decode import decode_picture

    pairs = [split[1], None, split[2]]
    batch = collate_pairs(pairs, (10, 64, 64), tokenizer, TEXTS, PICTURES)
    for row in (0, 2):
        pixels = estimator_pixels(decode_picture(pairs[row].image, "x"), PICTURES)
        assert np.array_equal(batch["pixel_values"][row, : pixels.shape[0], : pixels.shape[1]], pixels)
        assert batch["sources"][row] == -1  # no names were given


def test_plan_moves_leftovers_to_a_shape_that_holds_them():
    sizes = np.array([(5, 32, 64)] * 5 + [(5, 64, 32)] * 5 + [(9, 32, 32)] * 5)
    buckets = [(10, 64, 64), (5, 32, 64), (5, 64, 32), (10, 32, 32)]
    plan = BatchPlan(sizes, buckets, 4, seed=1)
    made = [plan[i] for i in range(len(plan))]
    assert sorted(int(i) for _, chosen in made for i in chosen if i >= 0) == list(range(15))
    for bucket, chosen in made:
        assert all((sizes[i] <= bucket).all() for i in chosen if i >= 0)
    assert sum(bucket == (10, 64, 64) for bucket, _ in made) == 1  # the leftovers alone
    with pytest.raises(ValueError, match="does not hold all"):
        BatchPlan(sizes, buckets[1:], 4)
    with pytest.raises(ValueError, match="as large as"):
        BatchPlan(sizes, [(8, 64, 64)], 4)
