"""Regions: saliency, boxes and crops from elsewhere, the choice, two stages; detectors in test_detectors.py."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.ground_regions import METHODS, NUMBER_DEPENDS_ON, choose_regions, ground_regions, overlap
from data_prep.import_objects import import_objects
from data_prep.regions.detectors import Found
from data_prep.regions.files import locate, read_regions
from data_prep.regions.saliency import salient_boxes
from data_prep.stages.command import stage_table
from data_prep.stages.frame import Selection
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.records import Generated, Grounding, Record, read_dataset, write_dataset

ROOT = Path(__file__).resolve().parents[2]
QUIET = Selection(progress=False)


@pytest.fixture
def root(tmp_path):
    """Two posts with pictures, one of them generated too, and one without."""
    folder = tmp_path / "set"
    generator = np.random.default_rng(0)
    for name, size in (("images/1.png", (80, 60)), ("images/2.png", (50, 90)), ("generated/1.png", (64, 64))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 40, (*size[::-1], 3), dtype=np.uint8)
        pixels[5:35, 20:45] = generator.integers(0, 256, (30, 25, 3))  # what stands out
        Image.fromarray(pixels).save(folder / name)
    old = ((0.0, 0.0, 0.5, 0.5),)
    drawn = Generated("generated/1.png", old)
    train = [
        Record("1", ("a",), ("O",), image="images/1.png", regions=old, phrases=("a",), generated=drawn),
        Record("2", ("b",), ("O",), image="images/2.png"),
        Record("3", ("c",), ("O",)),
    ]
    write_dataset(folder, {"name": "x", "task": "ner", "labels": ("PER",)}, {"train": train})
    return folder


def jsonl(tmp_path, *entries, name="boxes.jsonl"):
    path = tmp_path / name
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return path


def test_saliency_on_both_pictures(root):
    dataset = ground_regions(root, QUIET)
    first, second, third = dataset.splits["train"]
    for regions, grounding, picture in (
        (first.regions, first.grounding, "images/1.png"),
        (first.generated.regions, first.generated.grounding, "generated/1.png"),
        (second.regions, second.grounding, "images/2.png"),
    ):
        expected = salient_boxes(load_picture(root / picture))
        assert regions == tuple(box for box, _ in expected)
        assert grounding == tuple(Grounding(None, round(score, 6)) for _, score in expected)
    assert third.regions == () and second.generated is None
    manifest = dataset.info.stages["generated_regions"]
    assert manifest["records"]["train"] == {"done": 1, "failed": 0, "not done": 0, "of no concern": 2}
    assert manifest["options"] == {"method": "saliency", "maximum": 3} and manifest["model"] is None
    assert dataset.info.stages["regions"]["counts"]["regions"] == len(first.regions) + len(second.regions)


def test_a_changed_picture_is_looked_at_again(root):
    before = ground_regions(root, QUIET).splits["train"]
    Image.fromarray(np.eye(90, dtype=np.uint8) * 255).save(root / "images/2.png")
    after = ground_regions(root, QUIET).splits["train"]
    assert after[1].regions != before[1].regions and after[0] == before[0]
    for journal, lines in (("regions", 4), ("generated_regions", 2)):
        assert (root / f"journals/{journal}/shard-1-of-1.jsonl").read_text().count("\n") == lines


def test_a_damaged_picture_is_an_error_with_its_name(root):
    data = (root / "images/2.png").read_bytes()
    (root / "images/2.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"2.png: found a damaged picture"):
        ground_regions(root, QUIET)
    dataset = ground_regions(root, Selection(on_error="skip", progress=False))
    assert "2.png: found a damaged" in (root / dataset.info.stages["regions"]["failed"]).read_text()
    assert dataset.splits["train"][0].grounding and not dataset.splits["train"][1].regions


# ------------------------------------------------------------------ objects


def test_what_stands_out_is_an_object_too(root):
    dataset = ground_regions(root, QUIET)
    first, second, third = dataset.splits["train"]
    for record, phrases in ((first, ["a"]), (second, [])):
        objects = record.sides["objects"]
        assert [tuple(box) for box in objects["boxes"]] == list(record.regions) and objects["rows"] is None
        assert objects["labels"] == [*phrases, *["object"] * 3][: len(record.regions)]
        assert objects["scores"] == pytest.approx([item.score for item in record.grounding], abs=2e-6)
    assert not third.sides
    manifest = dataset.info.stages["objects"]
    assert manifest["tool"] == "data_prep/ground_regions.py" and "in turn" in manifest["notes"]["labels"]
    before = (root / "dataset.json").read_bytes()
    ground_regions(root, QUIET)
    assert (root / "dataset.json").read_bytes() == before


def test_objects_of_another_detector_stay(root, tmp_path, caplog):
    entry = {"image": "1.png", "objects": [{"label": "dog", "score": 1, "box": [0, 0, 1, 1]}]}
    import_objects(root, QUIET, objects=[jsonl(tmp_path, entry, name="objects.jsonl")])
    first = ground_regions(root, QUIET).splits["train"][0]
    assert first.sides["objects"]["labels"] == ["dog"] and first.grounding
    assert "the set has objects of objects.jsonl: they stay" in caplog.text


def test_no_objects_where_none_are_wanted(root):
    dataset = ground_regions(root, QUIET, objects=False)
    assert "objects" not in dataset.info.stages and not any(record.sides for record in dataset.splits["train"])


# ------------------------------------------------------------------ boxes from elsewhere


def test_boxes_in_pixels_with_phrases_and_scores(root, tmp_path):
    boxes = [[8, 6, 40, 30], [0, 0, 80, 60], [8, 6, 8.5, 30], [8, 6, 40, 30], [1, 1, 80.4, 60]]
    entry = {"id": "1", "boxes": boxes, "phrases": ["a", None, "a", "a", "a"], "scores": [0.5, 0.25, 1, 0.5, 0]}
    path = jsonl(tmp_path, entry, {"id": "9", "boxes": []})
    dataset = ground_regions(root, QUIET, pictures=["original"], method="import", boxes=(str(path),), units="pixels")
    first, second, _ = dataset.splits["train"]
    assert first.regions == ((0.1, 0.1, 0.5, 0.5), (0, 0, 1, 1), (0.0125, round(1 / 60, 6), 1.0, 1.0))
    assert first.grounding == (Grounding("a", 0.5), Grounding(None, 0.25), Grounding("a", 0))
    assert first.generated.regions == ((0.0, 0.0, 0.5, 0.5),) and second.regions == ()
    manifest = dataset.info.stages["regions"]
    assert manifest["counts"] == {
        "boxes thinner than a pixel (dropped)": 1,
        "pictures that no file names": 1,
        "pictures without a region": 1,
        "regions": 3,
    }
    assert manifest["sources"]["boxes.jsonl"]["entries"] == 2 and len(manifest["options"]["files"]["boxes.jsonl"]) == 64
    path.write_text("")
    with pytest.raises(DataError, match="--restart"):  # another file of the same name
        ground_regions(root, QUIET, pictures=["original"], method="import", boxes=(str(path),), units="pixels")


def test_the_released_boxes(root, tmp_path):
    boxes = [torch.tensor([0.0, 0, 768, 384]), torch.tensor([10, 10, 10.5, 20])]
    torch.save({"IMGID:1.png": boxes * 3, "IMGID:7.png": boxes[:1] * 3}, tmp_path / "train_grounding_cut_dif.pth")
    option = {"method": "import", "boxes": (str(tmp_path / "train_grounding_cut_dif.pth"),)}
    dataset = ground_regions(root, QUIET, pictures=["generated"], **option)
    drawn = dataset.splits["train"][0].generated
    assert drawn.regions == ((0.0, 0.0, 1.0, 0.5),) and drawn.grounding == ()  # nobody knows for which phrase
    source = dataset.info.stages["generated_regions"]["sources"]["train_grounding_cut_dif.pth"]
    assert source["boxes under a pixel (dropped)"] == 1 and source["lists that stood three times (read once)"] == 2
    torch.save({0: [torch.tensor([0.0, 0, 96, 96])]}, tmp_path / "mre_dif_train_dict.pth")
    path = tmp_path / "mre_dif_train_dict.pth"
    assert read_regions(path, "train")[0]["train-00000"].boxes == ((0, 0, 0.125, 0.125),)
    with pytest.raises(DataError, match=r"regions by row.*SPLIT=mre_dif_train_dict.pth"):
        read_regions(path)
    torch.save({"IMGID:1.png": ["a phrase"]}, path)
    with pytest.raises(DataError, match="phrases where boxes should be"):
        read_regions(path)


def test_the_released_crops(root, tmp_path):
    """Names by picture or by row; the crops are cut from the pictures and found in them again."""
    crops = tmp_path / "crops"
    crops.mkdir()
    picture = load_picture(root / "images/1.png")
    picture.crop((8, 6, 40, 30)).save(crops / "0_pred_yolo_crop_0.png")
    load_picture(root / "images/2.png").crop((0, 0, 20, 20)).save(crops / "0_pred_yolo_crop_1.png")  # of another
    torch.save({"1.jpg": ["0_pred_yolo_crop_0.png", "0_pred_yolo_crop_1.png"]}, tmp_path / "twitter2015_train_dict.pth")
    option = {"method": "import", "boxes": (str(tmp_path / "twitter2015_train_dict.pth"),), "pictures": ["original"]}
    dataset = ground_regions(root, QUIET, crops=crops, **option)
    assert dataset.splits["train"][0].regions == ((0.1, 0.1, 0.5, 0.5),)
    assert dataset.info.stages["regions"]["counts"]["crops that fit nowhere in their picture"] == 1
    restart = Selection(restart=True, progress=False)
    with pytest.raises(DataError, match="Name it with --crops"):
        ground_regions(root, restart, **option)
    with pytest.raises(DataError, match=r"crop_0.png: found no such file"):
        ground_regions(root, restart, crops=tmp_path, **option)
    torch.save({3: ["3_pred_yolo_crop_9.png"]}, tmp_path / "mre_val_dict.pth")
    assert read_regions(tmp_path / "mre_val_dict.pth", "dev")[0]["dev-00003"].crops == ("3_pred_yolo_crop_9.png",)


def relations(folder):
    """A set of relations with a generated picture in every post."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "p.png")
    splits = {}
    for split in ("train", "test"):
        splits[split] = [
            Record(f"{split}-{row:05d}", ("a", "b"), head=(0, 1), tail=(1, 2), relation=("None", "/x")[row % 2],
                   generated=Generated("p.png"))
            for row in range(40)
        ]  # fmt: skip
    write_dataset(folder, {"name": "x", "task": "re", "labels": ("None", "/x")}, splits)
    return folder


BOXES = [[0, 0, 20, 20], [20, 0, 40, 20], [0, 20, 20, 40]]


@pytest.mark.parametrize("kind", ["boxes", "crops"])
def test_regions_by_row_mark_the_set(tmp_path, caplog, kind):
    """They are MNRE's: made with the labels, whatever the audit of what is left of them says."""
    folder = relations(tmp_path)
    content = {0: [torch.tensor([0.0, 0, 96, 96])]}
    if kind == "crops":
        load_picture(folder / "p.png").crop((0, 0, 20, 20)).save(folder / "0_crop_0.png")
        content = {0: ["0_crop_0.png"]}
    torch.save(content, tmp_path / "any_name.pth")
    option = {"method": "import", "boxes": (f"train={tmp_path / 'any_name.pth'}",), "crops": folder}
    dataset = ground_regions(folder, QUIET, pictures=["generated"], **option)
    assert dataset.info.leaky_regions and read_dataset(folder).info.leaky_regions
    assert len(dataset.splits["train"][0].generated.regions) == 1 and "LEAKY REGIONS: any_name.pth" in caplog.text
    assert dataset.info.stages["generated_regions"]["sources"]["any_name.pth"]["made with the labels"] is True
    again = ground_regions(folder, Selection(restart=True, progress=False), pictures=["generated"])
    assert again.info.leaky_regions  # the mark stays until the set is imported anew


@pytest.mark.parametrize("leak", [True, False])
def test_a_file_whose_number_of_boxes_tells_labels_marks_the_set(tmp_path, leak):
    folder = relations(tmp_path)
    entries = [
        {"id": f"{split}-{row:05d}", "boxes": BOXES[: 2 + (row if leak else row // 2) % 2]}
        for split in ("train", "test")
        for row in range(40)
    ]
    option = {"method": "import", "boxes": (str(jsonl(tmp_path, *entries)),), "units": "pixels"}
    dataset = ground_regions(folder, QUIET, pictures=["generated"], **option)
    assert dataset.info.leaky_regions is leak
    assert [len(one.generated.regions) for one in dataset.splits["test"][:2]] == ([2, 3] if leak else [2, 2])


def test_the_manifest_says_what_the_number_of_regions_depends_on(root, tmp_path):
    dataset = ground_regions(root, QUIET)
    notes = {"asked for in every post": 3, "number depends on": "the picture"}
    for stage in ("regions", "generated_regions"):
        assert dataset.info.stages[stage]["notes"] == notes and not dataset.info.leaky_regions
    assert "\n  number depends on: the picture\n" in stage_table(dataset, "regions")
    option = {"method": "import", "boxes": (str(jsonl(tmp_path, {"id": "1", "boxes": []})),), "maximum": 2}
    dataset = ground_regions(root, Selection(restart=True, progress=False), **option)
    notes = {"asked for in every post": 2, "number depends on": "the imported file"}
    assert dataset.info.stages["regions"]["notes"] == notes
    assert set(NUMBER_DEPENDS_ON) == set(METHODS)


@given(st.data())
def test_a_crop_is_found_where_it_was_cut(data):
    width, height = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    x1, y1 = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    x2, y2 = data.draw(st.integers(x1 + 4, width)), data.draw(st.integers(y1 + 4, height))
    generator = np.random.default_rng(data.draw(st.integers(0, 9)))
    pixels = generator.integers(0, 256, (height, width), dtype=np.uint8)
    crop = pixels[y1:y2, x1:x2] + generator.integers(-3, 4, (y2 - y1, x2 - x1))  # as a lossy format would
    box = locate(Image.fromarray(pixels), Image.fromarray(crop.clip(0, 255).astype(np.uint8)))
    assert box == pytest.approx((x1 / width, y1 / height, x2 / width, y2 / height))
    assert locate(Image.fromarray(pixels), Image.fromarray(255 - pixels)) is None
    assert locate(Image.fromarray(pixels), Image.new("L", (width + 1, 4))) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1"}', "neither boxes nor crops"),
        ('{"id": "1", "boxes": [], "crops": []}', "boxes and crops"),
        ('{"boxes": []}', "no 'id'"),
        ('{"id": "1", "boxes": [[1, 2, 3]]}', "a list of 4 numbers"),
        ('{"id": "1", "boxes": {}}', "a list of boxes"),
        ('{"id": "1", "boxes": [[0, 0, 1, 1]], "scores": [1, 2]}', "a list of 1, one per region"),
        ('{"id": "1", "boxes": [[0, 0, 1, 1]], "scores": ["x"]}', "'x' in 'scores'"),
        ('{"id": "1", "boxes": [[0, 0, 1, 1]], "phrases": [""]}', "'' in 'phrases'"),
        ('{"id": "1", "boxs": []}', "Did you mean 'boxes'"),
        ('{"id": "1", "boxes": []}\n{"id": "1", "boxes": []}', "boxes.jsonl:2: found the id '1' again"),
        ('{"id": "1", "boxes": [[0, 0, 1, 1.5]]}', r"the box \[0.0, 0.0, 1.0, 1.5\] outside a picture of 80 x 60"),
        ('{"id": "1", "boxes"', "malformed JSON"),
    ],
)
def test_broken_files_of_boxes(root, tmp_path, line, message):
    path = tmp_path / "boxes.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        ground_regions(root, QUIET, pictures=["original"], method="import", boxes=(str(path),))
    assert str(caught.value).startswith(f"{path}:")


def test_an_id_in_two_files(root, tmp_path):
    paths = [str(jsonl(tmp_path, {"id": "1", "boxes": []}, name=name)) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(DataError, match="regions of '1' again"):
        ground_regions(root, QUIET, method="import", boxes=tuple(paths))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "yolo"}, ValueError, "expected one of"),
        ({"maximum": 0}, ValueError, "at least 1"),
        ({"units": "metres"}, ValueError, "expected fractions, pixels"),
        ({"method": "owlvit"}, DataError, "no --model"),
        ({"method": "import"}, DataError, "no --boxes"),
    ],
)
def test_options_that_lack_something(root, options, error, message):
    with pytest.raises(error, match=message):
        ground_regions(root, QUIET, **options)


def test_foreign_entries_are_named(root, tmp_path, caplog):
    path = jsonl(tmp_path, {"id": "1", "boxes": []}, {"id": "77", "boxes": []})
    ground_regions(root, QUIET, method="import", boxes=(str(path),))
    assert "1 entries are of no record, as 77" in caplog.text


# ------------------------------------------------------------------ the choice


def test_the_choice():
    counts = Counter()
    found = [
        Found((-0.2, 0, 0.5, 0.5), "a", 0.9),  # over the edge
        Found((0, 0, 0.5, 0.52), "b", 0.8),  # nearly the same
        Found((0.5, 0, 0.504, 1), "c", 0.7),  # half a pixel
        Found((0.5, math.nan, 0.9, 1), "c", 0.7),
        Found((0.5, 0.5, 1.5, 1), "c", 0.6),
        Found((0, 0.6, 0.2, 0.7), "d", 0.5),
    ]
    chosen = choose_regions(found, (100, 100), 2, counts)
    assert chosen == [Found((0, 0, 0.5, 0.5), "a", 0.9), Found((0.5, 0.5, 1, 1), "c", 0.6)]
    assert counts == {
        "boxes that cover another (left out)": 1,
        "boxes thinner than a pixel (dropped)": 2,
        "boxes beyond the maximum (left out)": 1,
    }


sides = st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] < pair[1])


@given(sides, sides, sides, sides)
def test_overlap_by_counting_cells(x, y, u, v):
    cells = [{(row, column) for row in range(*tall) for column in range(*wide)} for wide, tall in ((x, y), (u, v))]
    expected = len(cells[0] & cells[1]) / len(cells[0] | cells[1])
    assert overlap((x[0], y[0], x[1], y[1]), (u[0], v[0], u[1], v[1])) == pytest.approx(expected)


def test_the_command(root, tmp_path):
    run = [sys.executable, "data_prep/ground_regions.py", str(root)]
    done = subprocess.run([*run, "--pictures=original"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "regions (data_prep/ground_regions.py, no model):" in done.stdout
    assert read_dataset(root).splits["train"][1].regions
    done = subprocess.run([*run, "--method=groundingdino"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("ground_regions: --method=groundingdino: found no --model")
