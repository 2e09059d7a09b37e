"""The corpus on disk: what is written is read back at any position, in any process; damage is told, not read."""

import json
import pickle

import numpy as np
import pytest

from tmrjax.divergence.corpus import (
    CLASSES,
    CORPUS_FILE,
    CorpusSplit,
    Pair,
    corpus_table,
    hash_file,
    open_corpus,
    verify_corpus,
    write_corpus,
)
from tmrjax.files import DataError


def pair(number, split="train", label=None):
    label = number % 3 if label is None else label
    source = ("captions", "tweets")[number % 2]
    return Pair(
        f"{split}-{number}",
        f"text {number} \u200d❤",
        label,
        source,
        "in",
        bytes([number % 256]) * 1000,
        40 + number,
        60,
    )


def write(root, **splits):
    return write_corpus(root, splits, name="tiny", source_names=("captions", "tweets"), shard_records=4, seed=3)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, train=(pair(i) for i in range(10)), test=(pair(i, "test") for i in range(3)))
    return tmp_path


def test_pairs_come_back_at_random_access(root):
    corpus = open_corpus(root)
    split = corpus["train"]
    assert len(split) == 10 and len(corpus["test"]) == 3 and "dev" not in corpus
    assert [split[i] for i in (9, 0, 4, -1, 3)] == [pair(i) for i in (9, 0, 4, 9, 3)]
    assert isinstance(split[2], Pair)
    with pytest.raises(IndexError):
        split[10]
    again = pickle.loads(pickle.dumps(split))
    assert isinstance(again, CorpusSplit) and again[7] == pair(7)
    assert split.index["height"].tolist() == list(range(40, 50))
    assert split.index["label"].tolist() == [i % 3 for i in range(10)]
    assert split.index["characters"][0] == len(pair(0).text)


def test_info_counts_and_describes(root):
    info = open_corpus(root).info
    assert info.splits["train"].counts == {
        "captions": {"weaken": 2, "complement": 1, "strengthen": 2},
        "tweets": {"weaken": 2, "complement": 2, "strengthen": 1},
    }
    assert info.splits["train"].class_counts() == dict(zip(CLASSES, (4, 3, 3), strict=True))
    assert [shard["records"] for shard in info.splits["train"].shards] == [4, 4, 2]
    assert info.splits["train"].shards[1]["file"] == "train-00001-of-00003.array_record"
    assert "train · tweets" in corpus_table(info)
    assert verify_corpus(root).info == info


def test_same_pairs_same_bytes(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write(other, train=(pair(i) for i in range(10)), test=(pair(i, "test") for i in range(3)))
    for file in root.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name
    assert sorted(file.name for file in root.iterdir()) == sorted(file.name for file in other.iterdir())


def test_a_missing_class_is_an_error(tmp_path):
    write(tmp_path, train=(pair(i, label=i % 2) for i in range(6)))
    with pytest.raises(DataError, match="no pair of the class strengthen in the split 'train'"):
        open_corpus(tmp_path)
    assert len(open_corpus(tmp_path, require_classes=())["train"]) == 6


def test_what_is_missing_or_damaged_is_named(root):
    with pytest.raises(DataError, match="no split 'dev'"):
        open_corpus(root)["dev"]
    with pytest.raises(DataError, match="splits out of"):
        write(root / "x", valid=[pair(0)])
    shard = root / "train-00001-of-00003.array_record"
    content = shard.read_bytes()
    middle = content.index(b"\x04" * 500) + 100
    shard.write_bytes(content[:middle] + b"\xff" + content[middle + 1 :])
    with pytest.raises(DataError, match=r"train-00001-of-00003.*SHA-256"):
        verify_corpus(root)
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="unreadable shard of 'train'"):
        open_corpus(root)
    shard.unlink()
    with pytest.raises(DataError, match="no such file"):
        open_corpus(root)


def test_an_edited_index_or_manifest_is_refused(root):
    index = root / "test.index.npy"
    content = np.load(index)
    content["label"][0] = 2
    np.save(index, content)
    with pytest.raises(DataError, match=r"test\.index\.npy.*SHA-256"):
        open_corpus(root)
    manifest = json.loads((root / CORPUS_FILE).read_text())
    manifest["seeds"] = manifest.pop("seed")
    (root / CORPUS_FILE).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="seed"):
        open_corpus(root)
    (root / CORPUS_FILE).unlink()
    with pytest.raises(DataError, match="build_divergence_corpus"):
        open_corpus(root)


def changed(path, value):
    """`corpus.json` with `value` at a path of keys."""

    def change(manifest):
        place = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("splits",), [], "a list in 'splits'"),
        (("splits", "train"), None, "None as the split 'train'"),
        (("splits", "train", "records"), "10", "a str in 'train.records'"),
        (("splits", "train", "records"), -1, "a int in 'train.records'"),
        (("splits", "train", "counts"), 3, "a int in 'train.counts'"),
        (("splits", "train", "counts", "tweets"), [1], "a list in 'train.counts.tweets'"),
        (("splits", "train", "counts", "tweets", "weaken"), "2", "a str in 'train.counts.tweets.weaken'"),
        (("splits", "train", "counts", "nobody"), {}, "the unknown source 'nobody'"),
        (("splits", "train", "shards"), {}, "a dict in 'train.shards'"),
        (("splits", "train", "shards", 0), 7, "7 as the file"),
        (("splits", "train", "shards", 0, "file"), 7, "a int in 'train.file'"),
        (("splits", "train", "shards", 0, "file"), "../x", "the path '../x'"),
        (("splits", "train", "shards", 0, "file"), "/etc/passwd", "the path '/etc/passwd'"),
        (("splits", "train", "index"), None, "None as the file"),
        (("splits", "train", "index", "sha256"), None, "a NoneType in 'train.sha256'"),
        (("source_names",), "ab", "a str in 'source_names'"),
        (("source_names", 0), 3, "3 in 'source_names"),
        (("classes",), None, "other classes"),
        (("seed",), 1.5, "a float in 'seed'"),
        (("synthetic",), 1, "a int in 'synthetic'"),
        (("name",), None, "a NoneType in 'name'"),
        (("sources",), [], "a list in 'sources'"),
    ],
)
def test_a_value_of_another_type_is_a_clear_error(root, path, value, message):
    manifest = json.loads((root / CORPUS_FILE).read_text())
    changed(path, value)(manifest)
    (root / CORPUS_FILE).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        open_corpus(root)


def test_an_index_of_other_numbers_is_refused_though_its_hash_fits(root):
    np.save(root / "test.index.npy", np.zeros((3, 2)))
    manifest = json.loads((root / CORPUS_FILE).read_text())
    manifest["splits"]["test"]["index"]["sha256"] = hash_file(root / "test.index.npy")
    (root / CORPUS_FILE).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"an array of float64, 2 axes"):
        open_corpus(root)
    (root / "test.index.npy").write_bytes(b"\x93NUMPY\x01\x00")
    manifest["splits"]["test"]["index"]["sha256"] = hash_file(root / "test.index.npy")
    (root / CORPUS_FILE).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no index"):
        open_corpus(root)


@pytest.mark.parametrize("change", [{"label": 3}, {"label": "1"}, {"text": 7}, {"image": "x"}, {"height": None}])
def test_a_record_of_other_types_is_no_pair(tmp_path, change, monkeypatch):
    write(tmp_path, test=[pair(0)])
    monkeypatch.setattr("tmrjax.divergence.corpus.msgpack.unpackb", lambda data: pair(0)._asdict() | change)
    with pytest.raises(DataError, match="record 0: found no pair"):
        open_corpus(tmp_path, require_classes=())["test"][0]


def test_an_interrupted_write_leaves_no_corpus(root):
    def stopping():
        yield pair(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(root, train=stopping())
    with pytest.raises(DataError, match="no such file"):
        open_corpus(root)
