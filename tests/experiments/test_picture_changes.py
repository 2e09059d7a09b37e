"""evaluate.py --pictures: what each kind hands the model, and that everything else stays as it is."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.make_demo import make_demo
from experiments import evaluate
from experiments.configs import mner
from experiments.lib import build
from experiments.lib.picture_changes import GREY_VALUE, PICTURES, donors_of, require_pictures, with_pictures, write_grey
from tmrjax.files import DataError
from tmrjax.records import Generated, Record, read_dataset

SMALL = {"data.max_pieces": 40, "data.buckets": (40,)}
TEXT = ("input_ids", "attention_mask", "phrase_ids", "phrase_mask", "tags")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures") / "data"
    make_demo(root, posts=60, seed=1)
    found = read_dataset(root)
    records = list(found.splits["train"])
    bare = {"image": None, "regions": (), "grounding": (), "generated": None, "sides": {}}
    records[0] = dataclasses.replace(records[0], **bare)
    return dataclasses.replace(found, splits={**found.splits, "train": records})


@pytest.fixture(scope="module")
def systems(dataset):
    found = {}
    for method in ("tmr", "mega", "bert_crf"):
        config = mner.get_config("demo", method)
        config.update_from_flattened_dict({"data.root": str(dataset.root), **SMALL})
        found[method] = build.build_system(config, dataset)
    return found


@pytest.fixture(scope="module")
def batches(dataset, systems, tmp_path_factory):
    """(method, kind) -> all train posts in one batch, as pixels."""
    grey = write_grey(tmp_path_factory.mktemp("grey"))

    def batch(method, kind, seed=0):
        system, records = systems[method], with_pictures(dataset.splits["train"], kind, grey, seed=seed)
        return system.collator(system.pixels(dataset.root))(system.encode(records, say=None), 40)

    return {(method, kind): batch(method, kind) for method in ("tmr", "mega") for kind in PICTURES}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("method", ["tmr", "mega"])
def test_the_text_and_the_labels_stay(batches, method, kind):
    own, changed = batches[method, "own"], batches[method, kind]
    assert set(own) == set(changed) and own["input_ids"].any()
    for key in own.keys() & set(TEXT):
        np.testing.assert_array_equal(own[key], changed[key])


def test_none_masks_all_that_comes_from_pictures(batches):
    own, none = batches["tmr", "own"], batches["tmr", "none"]
    for key in ("image_mask", "region_mask", "generated_image_mask", "generated_region_mask"):
        assert own[key].any() and not none[key].any(), key
    assert not any(none[key].any() for key in ("image", "regions", "generated_image", "generated_regions"))
    assert (none["scores"] == none["scores"][0]).all() and (none["generated_scores"] == none["scores"][0]).all()
    assert batches["mega", "own"]["object_mask"].any() and batches["mega", "own"]["alignment"].any()
    assert not batches["mega", "none"]["object_mask"].any() and not batches["mega", "none"]["alignment"].any()


def test_generated_only_keeps_the_generated_picture_and_its_score(batches):
    own, changed = batches["tmr", "own"], batches["tmr", "generated-only"]
    assert not changed["image_mask"].any() and not changed["region_mask"].any() and not changed["image"].any()
    for key in own:
        if key.startswith("generated_"):
            np.testing.assert_array_equal(own[key], changed[key])
    assert (changed["scores"] == changed["scores"][0]).all() and (own["scores"] != own["scores"][0]).any()


def test_grey_is_one_picture_wherever_there_is_one(batches):
    own, grey = batches["tmr", "own"], batches["tmr", "grey"]
    for key in own:
        if key.endswith("mask") or "scores" in key:
            np.testing.assert_array_equal(own[key], grey[key])
    for prefix in ("", "generated_"):
        assert (grey[f"{prefix}image"][grey[f"{prefix}image_mask"]] == GREY_VALUE).all()
        assert (grey[f"{prefix}regions"][grey[f"{prefix}region_mask"]] == GREY_VALUE).all()
        assert not grey[f"{prefix}image"][~grey[f"{prefix}image_mask"]].any()
        assert (own[f"{prefix}image"][1] != GREY_VALUE).any()
    assert not batches["mega", "grey"]["object_mask"].any()


def test_shuffled_gives_every_post_all_pictures_of_one_other(dataset, batches):
    records = dataset.splits["train"]
    donors = donors_of(records, 0)
    assert donors[0] == 0 and sorted(donors) == list(range(len(records)))  # the first has no picture
    own, shuffled = batches["tmr", "own"], batches["tmr", "shuffled"]
    for key in own:
        if "image" in key or "region" in key:
            np.testing.assert_array_equal(shuffled[key], own[key][donors])
    for key in ("scores", "generated_scores"):
        np.testing.assert_array_equal(shuffled[key], own[key])
    moved = np.arange(len(records)) != donors
    assert moved.sum() > 35 and all((own["image"][i] != shuffled["image"][i]).any() for i in np.flatnonzero(moved))
    objects = batches["mega", "own"], batches["mega", "shuffled"]
    np.testing.assert_array_equal(objects[1]["object_mask"], objects[0]["object_mask"][donors])
    assert not objects[1]["alignment"][moved].any()
    assert donors_of(records, 0) == donors != donors_of(records, 1)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=30), st.integers(0, 5))
def test_no_post_gets_a_picture_of_its_own(posts, seed):
    """By the definition, save in a group of which more than half share a picture: it stays as it is."""
    records = [
        Record(
            str(i), ("a",), image=f"{n}.png" if own else None, generated=Generated(f"g{n}.png") if generated else None
        )
        for i, (n, own, generated) in enumerate(posts)
    ]
    shares = {}
    for n, own, generated in posts:
        if own or generated:
            shares.setdefault((own, generated), []).append(n)
    stay = {key for key, group in shares.items() if max(map(group.count, group)) > len(group) / 2}
    donors = donors_of(records, seed)
    assert sorted(donors) == list(range(len(records)))
    for i, (n, own, generated) in enumerate(posts):
        if (own, generated) in stay or not (own or generated):
            assert donors[i] == i
        else:
            assert posts[donors[i]][0] != n and posts[donors[i]][1:] == (own, generated)


def test_posts_that_keep_their_pictures_are_counted(tmp_path, caplog):
    records = [Record(str(n), ("a",), image=f"{n}.png") for n in range(3)]
    alone = Record("alone", ("a",), generated=Generated("g.png"))
    with_pictures(records, "shuffled", tmp_path / "grey.png")
    assert not caplog.text
    changed = with_pictures([*records, alone], "shuffled", tmp_path / "grey.png")
    assert changed[3] == alone and "1 of 4 posts keep their own pictures" in caplog.text
    with pytest.raises(ValueError, match="none of the 1 posts with a picture has another"):
        with_pictures([alone], "shuffled", tmp_path / "grey.png")


def test_what_would_change_nothing_is_refused(dataset, systems):
    records = dataset.splits["train"]
    where = Path("data")
    for method in ("tmr", "mega"):
        require_pictures(systems[method].method, ["own", "none", "shuffled", "grey"], records, where)
    with pytest.raises(ValueError, match=r"--pictures=grey: the method bert_crf reads no pictures"):
        require_pictures(systems["bert_crf"].method, ["own", "grey"], records, where)
    require_pictures(systems["bert_crf"].method, ["own"], records, where)
    with pytest.raises(ValueError, match="mega reads no generated pictures"):
        require_pictures(systems["mega"].method, ["generated-only"], records, where)
    with pytest.raises(ValueError, match=r"--pictures=gray: expected some of own, none, "):
        require_pictures(systems["tmr"].method, ["gray"], records, where)
    bare = [dataclasses.replace(record, image=None, generated=None) for record in records]
    with pytest.raises(DataError, match=r"no picture in \d+ posts, for --pictures=none"):
        require_pictures(systems["tmr"].method, ["none"], bare, where)
    with pytest.raises(DataError, match="no generated picture in"):
        own = [dataclasses.replace(record, generated=None) for record in records]
        require_pictures(systems["tmr"].method, ["generated-only"], own, where)


def test_the_table_says_each_kind_and_its_test():
    found = {"posts_scored_otherwise": 12, "difference": -0.125, "low": -0.2, "high": -0.05, "p_value": 0.01}
    reports = {"own": {"f1": 0.5}, "grey": {"f1": 0.375, "against_own": {**found, "p_value_holm": 0.02}}}
    lines = evaluate.picture_table(reports, "small test, tmr").splitlines()
    assert lines[0].endswith("small test, tmr") and lines[2].split() == ["own", "50.00"]
    assert lines[3].split() == ["grey", "37.50", "-12.50", "-20.00", "to", "-5.00", "0.020", "12"]
