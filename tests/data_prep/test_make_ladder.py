"""The sets of the MNRE ladder: each differs from the clean one by what its name says, and the audit finds just that."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.audit_leaks import CROPS_ROW, audit
from data_prep.make_ladder import MADE, PHRASES, PICTURE, TEXT, main, make_ladder, read_crop_counts
from tests.ladder_release import CROPS, write_release
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.tasks.report import warnings_of


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def sets(source, tmp_path_factory):
    return make_ladder(source, tmp_path_factory.mktemp("ladder"), progress=False)


def test_sets_differ_from_the_clean_text_by_what_they_are_named_for(sets):
    assert list(sets) == [TEXT, PHRASES, *MADE]
    for split in ("train", "dev", "test"):
        for row, clean in enumerate(sets[TEXT].splits[split]):
            number = CROPS[row % len(CROPS)]
            found = {name: dataset.splits[split][row] for name, dataset in sets.items()}
            assert clean.image is None and not clean.sides and not clean.regions and clean.scores is None
            assert found["mnre-crop-count"] == dataclasses.replace(clean, sides={"crops": number})
            released = found[PHRASES]
            assert released == dataclasses.replace(clean, phrases=released.phrases) and released.phrases[0]
            assert found["mnre-phrases-and-count"] == dataclasses.replace(released, sides={"crops": number})
            for name, grey in (("mnre-grey-crops", min(number, 3)), ("mnre-grey-clean", 3)):
                record = found[name]
                assert dataclasses.replace(record, image=None, regions=()) == clean and len(record.regions) == 3
                assert [box[3] < 1 for box in record.regions] == [True] * grey + [False] * (3 - grey)
    hashes = {json.dumps(dataset.info.labels_sha256) for dataset in sets.values()}
    assert len(hashes) == 1 and {name: dataset.info.name for name, dataset in sets.items()} == {n: n for n in sets}


def test_marks_are_those_that_are_due_and_the_audit_finds_the_same(sets):
    due = {
        TEXT: [], PHRASES: ["LEAKY PHRASES"], "mnre-crop-count": ["LEAKY REGIONS"],
        "mnre-phrases-and-count": ["LEAKY PHRASES", "LEAKY REGIONS"],
        "mnre-grey-crops": ["LEAKY REGIONS"], "mnre-grey-clean": [],
    }  # fmt: skip
    for name, dataset in sets.items():
        assert [mark.partition(":")[0] for mark in warnings_of(dataset.info)] == due[name]
        leaks = [row for row in audit(dataset) if row.leak]
        marks = {row.mark for row in leaks}
        assert marks == {mark.lower().replace(" ", "_") for mark in due[name]}, name
        told = {"mnre-crop-count": CROPS_ROW, "mnre-grey-crops": "places of regions"}.get(name)
        assert told is None or [row.reads for row in leaks] == [told]


def test_a_grey_region_and_a_lacking_one_are_what_they_stand_for(sets):
    dataset = sets["mnre-grey-crops"]
    picture, settings = load_picture(dataset.root / PICTURE), PictureSettings(size=32, resize=32)
    record = next(one for one in dataset.splits["train"] if {box[3] for box in one.regions} == {0.75, 1.0})
    pixels = np.stack([settings.region_pixels(picture, box) for box in record.regions])
    # Every region is of one colour: nothing of the other runs into it.
    assert (pixels == pixels[:, :1, :1]).all()
    floats = settings.normalise(pixels, whole=False)
    assert np.abs(floats[-1]).max() < 0.5 / 255 / 0.22 and np.abs(floats[0]).min() > 1
    files = {path.read_bytes() for one in ("mnre-grey-crops", "mnre-grey-clean") for path in
             (sets[one].root / "images").iterdir()}  # fmt: skip
    assert len(files) == 1 and Image.open(dataset.root / PICTURE).size == (64, 64)


def test_a_lost_row_of_a_crop_list_or_a_lost_file_is_an_error(tmp_path, monkeypatch):
    other = write_release(tmp_path / "release")
    path = other / "txt" / "mre_val_dict.pth"
    crops = torch.load(path, weights_only=True)
    torch.save({row: names for row, names in crops.items() if row != 1}, path)
    with pytest.raises(DataError, match=r"mre_val_dict.pth.*no row 1 "):
        read_crop_counts(other)
    path.unlink()
    monkeypatch.setattr(sys, "argv", ["make_ladder.py", f"--source={other}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit, match=r"^make_ladder: \S*mre_val_dict.pth: .*no such file.*Correct --source"):
        main()
    assert not (tmp_path / "out").exists()
