"""The corpus on disk: what is written is read back at any position, in any process; damage is told, not read."""

import json
import pickle

import numpy as np
import pytest

from tmrjax.corpus import (
    CLASSES,
    CORPUS_FILE,
    CorpusSplit,
    Pair,
    corpus_table,
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


def test_an_interrupted_write_leaves_no_corpus(root):
    def stopping():
        yield pair(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(root, train=stopping())
    with pytest.raises(DataError, match="no such file"):
        open_corpus(root)
