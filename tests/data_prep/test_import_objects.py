"""Objects of any detector into a data set: the forms of files, the choice, the table of features, errors, alignment."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_prep.align_objects import align_objects
from data_prep.align_objects import main as align_main
from data_prep.import_objects import import_objects
from data_prep.import_objects import main as import_main
from data_prep.objects.detections import Choice, Detections
from data_prep.objects.graphs import box_edges, chain_edges
from data_prep.objects.structure import align
from data_prep.stages.frame import Selection
from tmrjax.files import DataError
from tmrjax.inputs.objects import Objects
from tmrjax.records import Record, read_dataset, write_dataset
from tmrjax.records.arrays import table_path

QUIET = Selection(progress=False)
DOG = {"label": "dog", "score": 0.5, "box": [0.1, 0.1, 0.5, 0.5]}
CAT = {"label": "cat", "score": 0.75, "box": [0.4, 0.25, 1, 1]}
HAT = {"label": "a hat", "score": 0.25, "box": [0, 0, 0.25, 0.25]}


@pytest.fixture
def root(tmp_path):
    """Three posts with pictures of 40 x 20 pixels and one without."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    records = [Record("4", ("d", "e"), ("O", "O"))]
    for name in "123":
        Image.new("RGB", (40, 20), (int(name) * 40, 0, 0)).save(folder / f"images/{name}.png")
        records.append(Record(name, ("a", "b", "c"), ("O",) * 3, image=f"images/{name}.png"))
    write_dataset(folder, {"name": "x", "task": "ner", "labels": ("PER",)}, {"train": records})
    return folder


def jsonl(tmp_path, *entries, name="objects.jsonl"):
    path = tmp_path / name
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return path


def entry(image, *objects):
    return {"image": image, "objects": list(objects)}


def sides(root):
    return {record.id: record.sides for record in read_dataset(root).splits["train"]}


def test_labels_scores_boxes_the_surest_first(root, tmp_path):
    path = jsonl(tmp_path, entry("images/1.png", DOG, CAT, HAT), entry("/far/away/images/2.png"), entry("3.png", HAT))
    import_objects(root, QUIET, objects=[path], min_score=0.3)
    found = sides(root)
    assert found["1"]["objects"] == {
        "labels": ["cat", "dog"], "scores": [0.75, 0.5], "boxes": [CAT["box"], DOG["box"]], "rows": None,
    }  # fmt: skip
    empty = {"labels": [], "scores": [], "boxes": [], "rows": None}
    assert found["2"]["objects"] == found["3"]["objects"] == empty and "objects" not in found["4"]
    manifest = read_dataset(root).info.stages["objects"]
    assert manifest["records"]["train"]["done"] == 3 and manifest["counts"]["objects"] == 2
    assert manifest["notes"] == {"objects below the least score (left out)": 2}
    assert manifest["sources"]["objects.jsonl"]["sha256"] and not table_path(root, "objects").exists()


def test_features_are_rows_that_the_input_reads(root, tmp_path):
    with_features = [item | {"feature": [number, 0.5, -number]} for number, item in enumerate((DOG, CAT, HAT))]
    path = jsonl(
        tmp_path, entry("1.png", *with_features), entry("other.png", with_features[0]), entry("3.png", with_features[2])
    )
    import_objects(root, QUIET, objects=[path], features=True, maximum=2)
    table = np.load(table_path(root, "objects"), mmap_mode="r")
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, [[1, 0.5, -1], [0, 0.5, 0], [0, 0.5, 0], [2, 0.5, -2]])
    records = read_dataset(root).splits["train"]
    third = {record.id: record for record in records}["3"]
    assert third.sides["objects"]["rows"] == [3, 4]
    np.testing.assert_array_equal(third.sides["objects"]["rows"].load(), [[2, 0.5, -2]])
    assert Objects(features=True).fit(records).width == 3 and Objects(features=True).check(records) is None


def test_the_same_from_arrays_of_one_picture_and_of_many(root, tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4)).astype(np.float32)
    arrays = {name: np.array([item[name[:-1]] for item in (DOG, CAT, HAT)]) for name in ("labels", "scores")}
    arrays |= {"boxes": np.array([DOG["box"], CAT["box"], HAT["box"]]), "features": features}
    np.savez(tmp_path / "all.npz", images=np.array(["images/1.png", "images/2.png", "images/1.png"]), **arrays)
    folder = tmp_path / "one by one" / "images"
    folder.mkdir(parents=True)
    for name, chosen in (("1.png", [0, 2]), ("2.png", [1])):
        np.savez(folder / f"{name}.npz", **{key: array[chosen] for key, array in arrays.items()})
    lines = [[item | {"feature": features[index].tolist()} for index, item in ((0, DOG), (2, HAT))]]
    lines += [[CAT | {"feature": features[1].tolist()}]]
    path = jsonl(tmp_path, *(entry(f"images/{n}.png", *line) for n, line in enumerate(lines, start=1)))
    read = []
    for source in (tmp_path / "all.npz", tmp_path / "one by one", path):
        table = tmp_path / f"{source.name}.npy"
        found = Detections([source], Choice(features=True), table)
        read.append([(item.image, item.labels, item.scores, item.boxes, item.rows) for item in found])
        np.testing.assert_allclose(np.load(table), features[[0, 2, 1]])
    assert read[0] == read[1] == read[2]


def test_boxes_in_pixels_are_cut_at_the_edge(root, tmp_path):
    path = jsonl(tmp_path, entry("1.png", DOG | {"box": [4, 2, 40.3, 10]}))
    import_objects(root, QUIET, objects=[path], units="pixels")
    assert sides(root)["1"]["objects"]["boxes"] == [[0.1, 0.1, 1, 0.5]]


def bad(**change):
    return entry("1.png", DOG | change)


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ([bad(box=[4, 2, 40, 10])], {}, r"jsonl:1: found the box \[4.0, 2.0, 40.0, 10.0\] of '1.png', outside"),
        ([bad(box=[0.5, 0.5, 0.2, 0.2])], {}, r"jsonl:1: found the box .* which has no area.*Write corners"),
        ([entry("1.png"), entry("1.png")], {}, r"jsonl:2: found the picture '1.png' again, first at .*jsonl:1"),
        ([entry("1.png", DOG | {"colour": 1})], {}, r"jsonl:1: found the unknown key 'colour' in the objects\[0\]"),
        ([bad(score="sure")], {}, r"jsonl:1: .*objects\[0\].score"),
        ([{"image": "1.png"}], {}, "jsonl:1: found no 'objects'"),
        ([entry("2.png"), bad()], {"features": True}, "jsonl:2: found objects without features"),
        ([entry("1.png", DOG | {"feature": [1, 2]}, CAT)], {}, "jsonl:1: found features of 1 of 2 objects"),
        ([bad(feature=[1, 2]), entry("2.png", DOG | {"feature": [1]})], {"features": True},
         "jsonl:2: found features of 1 numbers; expected 2"),
        ([entry("1.png", DOG | {"feature": [1, 2]}, CAT | {"feature": [1]})], {}, r"features of \[1, 2\] numbers"),
    ],
)  # fmt: skip
def test_errors_have_file_and_line(root, tmp_path, entries, options, message):
    before = sides(root)
    with pytest.raises(DataError, match=message):
        import_objects(root, QUIET, objects=[jsonl(tmp_path, *entries)], **options)
    assert sides(root) == before and not table_path(root, "objects").exists()
    assert not list(root.glob(".objects.*"))


def test_arrays_of_other_forms(root, tmp_path):
    good = {"labels": np.array(["a"]), "scores": np.array([0.5]), "boxes": np.array([[0, 0, 1, 1]])}
    for change, message in (
        ({"boxes": np.zeros((1, 5))}, r"found boxes \(1, 5\); expected \(1, 4\)"),
        ({"labels": np.array([3])}, "labels of the type int64; expected text"),
        ({"scores": np.array([np.nan])}, "scores of the type float64, not all finite"),
        ({"labels": np.array(["a"], object)}, "no arrays that can be read"),
        ({"features": np.zeros((2, 3))}, r"features \(2, 3\); expected \(1, F\)"),
    ):
        np.savez(tmp_path / "1.png.npz", **good | change)
        with pytest.raises(DataError, match=message):
            import_objects(root, QUIET, objects=[tmp_path / "1.png.npz"])
    with pytest.raises(DataError, match=r"no .npz file"):
        import_objects(root, QUIET, objects=[tmp_path / "set" / "images"])


def test_a_second_import_needs_a_restart_and_leaves_the_table_whole(root, tmp_path):
    first = jsonl(tmp_path, bad(feature=[1, 2]), entry("2.png", CAT | {"feature": [5, 6]}))
    import_objects(root, QUIET, objects=[first], features=True)
    align_objects(root, QUIET)
    table = table_path(root, "objects").read_bytes()
    second = jsonl(tmp_path, entry("2.png", HAT | {"feature": [3, 4, 5]}), name="second.jsonl")
    with pytest.raises(DataError, match="--restart to begin anew"):
        import_objects(root, QUIET, objects=[second], features=True)
    assert table_path(root, "objects").read_bytes() == table
    with pytest.raises(DataError, match=r"the rows \[1, 2\] of record 2, which are those of an older import"):
        import_objects(root, Selection(restart=True, limit=1, progress=False), objects=[second], features=True)
    assert table_path(root, "objects").read_bytes() == table and sides(root)["1"]["objects"]["rows"] == [0, 1]
    import_objects(root, Selection(restart=True, progress=False), objects=[second], features=True)
    found = sides(root)
    assert found["1"] == {} and found["2"]["objects"]["labels"] == ["a hat"] and "alignment" not in found["2"]
    np.testing.assert_array_equal(np.load(table_path(root, "objects")), [[3, 4, 5]])


def test_shards_write_the_same(root, tmp_path):
    path = jsonl(tmp_path, *(entry(f"{n}.png", DOG | {"feature": [n, 1]}) for n in (1, 2, 3)))
    for shard in ((1, 2), (2, 2)):
        import_objects(root, Selection(shard=shard, progress=False), objects=[path], features=True)
    found = sides(root)
    assert [found[name]["objects"]["rows"] for name in "123"] == [[0, 1], [1, 2], [2, 3]]
    assert len(np.load(table_path(root, "objects"))) == 3


def test_a_number_of_objects_that_tells_labels_marks_the_set(root, tmp_path):
    records, entries = [], []
    for index in range(240):
        name = f"images/{index}.png"
        (root / name).write_bytes((root / "images/1.png").read_bytes())
        tag = "B-PER" if index % 2 else "O"
        records.append(Record(str(index), ("a", "b"), (tag, "O"), image=name))
        entries.append(entry(name, *[DOG] * (1 + index % 2)))
    info = {"name": "x", "task": "ner", "labels": ("PER",)}
    write_dataset(root, info, {"train": records[:120], "test": records[120:]})
    dataset = import_objects(root, QUIET, objects=[jsonl(tmp_path, *entries)])
    assert dataset.info.leaky_regions


# ------------------------------------------------------------------ alignment as a stage


def test_the_alignment_is_of_words_and_boxes(root, tmp_path):
    import_objects(root, QUIET, objects=[jsonl(tmp_path, entry("1.png", DOG, CAT, HAT), entry("2.png"))])
    dataset = align_objects(root, QUIET)
    found = sides(root)
    boxes = [tuple(item["box"]) for item in (CAT, DOG, HAT)]
    expected = align(3, chain_edges(3), 3, box_edges(boxes))
    np.testing.assert_allclose(found["1"]["alignment"], expected, atol=1e-6)
    assert all("alignment" not in found[name] for name in "234")
    manifest = dataset.info.stages["alignment"]
    assert manifest["records"]["train"] == {"done": 1, "failed": 0, "not done": 0, "of no concern": 3}
    assert manifest["options"] == {"parser": "chain", "objects": 10, "near": 0.1}


def test_other_objects_are_aligned_anew_and_only_so_many(root, tmp_path):
    import_objects(root, QUIET, objects=[jsonl(tmp_path, entry("1.png", DOG, HAT))])
    align_objects(root, QUIET, objects=2)
    first = sides(root)["1"]["alignment"]
    far = DOG | {"box": [0.7, 0.7, 0.9, 0.9]}
    again = jsonl(tmp_path, entry("1.png", DOG, far, HAT), name="b.jsonl")
    import_objects(root, Selection(restart=True, progress=False), objects=[again])
    align_objects(root, QUIET, objects=2)
    second = sides(root)["1"]["alignment"]
    np.testing.assert_allclose(first, align(3, chain_edges(3), 2, [(0, 1)]), atol=1e-6)
    np.testing.assert_allclose(second, align(3, chain_edges(3), 2, []), atol=1e-6)
    with pytest.raises(ValueError, match="expected objects >= 1"):
        align_objects(root, QUIET, objects=0)


def test_without_objects_or_models(root, monkeypatch):
    with pytest.raises(DataError, match=r"no record with objects.*import_objects.py or data_prep/ground_regions.py"):
        align_objects(root, QUIET)
    with pytest.raises(DataError, match="--parser=stanza: found no --models"):
        align_objects(root, QUIET, parser="stanza")
    monkeypatch.setitem(sys.modules, "stanza", SimpleNamespace(__version__="1"))
    with pytest.raises(DataError, match=r"found no resources.json.*depparse"):
        align_objects(root, QUIET, parser="stanza", models=root)


def test_the_commands(root, tmp_path, monkeypatch, capsys):
    path = jsonl(tmp_path, entry("1.png", DOG, CAT))
    for name, main, flags in (
        ("import_objects", import_main, [f"--objects={path}", "--min-score=0.6"]),
        ("align_objects", align_main, ["--near=0.2"]),
    ):
        monkeypatch.setattr("sys.argv", [name, str(root), *flags])
        main()
        assert f"(data_prep/{name}.py, no model):" in capsys.readouterr().out
    assert sides(root)["1"]["objects"]["labels"] == ["cat"] and len(sides(root)["1"]["alignment"]) == 3
    path.write_text(path.read_text().replace("[0.4", "[4"))
    monkeypatch.setattr("sys.argv", ["import_objects", str(root), f"--objects={path}", "--restart"])
    with pytest.raises(SystemExit, match=r"import_objects: .*jsonl:1: found the box \[4.0"):
        import_main()
