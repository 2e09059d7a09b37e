"""Sources of pairs: tar shards, folders, tensorflow-datasets without tensorflow; from any position, faults told."""

import io
import itertools
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.build_divergence_corpus import build_corpus
from data_prep.corpus.sources import FolderSource, JsonlSource, TarSource, TfdsSource, open_source
from tests.corpus_pictures import encoded, options, picture, write_pairs
from tmrjax.divergence.corpus import open_corpus
from tmrjax.files import DataError


def write_tar(path, samples):
    with tarfile.open(path, "w") as shard:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))


def sample(key, text="words", **meta):
    return [
        (f"{key}.jpg", encoded(picture([7, int(key)]))),
        (f"{key}.txt", f"{text} {key}".encode()),
        (
            f"{key}.json",
            json.dumps({"caption": "other", "NSFW": "UNLIKELY", "width": 64, "exif": None} | meta).encode(),
        ),
    ]


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    root = tmp_path_factory.mktemp("laion")
    write_tar(root / "00000.tar", [member for key in range(5) for member in sample(f"{key:05d}")])
    failed = [("00105.json", json.dumps({"caption": "x", "status": "failed_to_download"}).encode())]
    bare = [member for member in sample("00106") if not member[0].endswith(".txt")]
    textless = [("00107.jpg", encoded(picture([7, 107])))]
    more = [*sample("00100", "naïve"), *failed, *bare, *textless]
    write_tar(root / "00001.tar", more)
    return root


def test_tar_samples(tars):
    source = open_source(f"laion={tars}", seed=0)
    assert isinstance(source, TarSource) and source.describe()["shards"] == 2 and source.shuffled
    items = list(source.items())
    assert len(items) == 9 and len({item.key for item in items}) == 9
    by_key = {item.key: item for item in items}
    first = by_key["00000.tar/00002"]
    assert first.captions == ("words 00002",) and first.columns == {
        "caption": "other",
        "NSFW": "UNLIKELY",
        "width": "64",
    }
    assert first.image == encoded(picture([7, 2]))
    assert by_key["00001.tar/00100"].captions == ("naïve 00100",)
    assert by_key["00001.tar/00106"].captions == ("other",)
    assert "failed_to_download" in str(by_key["00001.tar/00105"].error)
    assert "no text" in str(by_key["00001.tar/00107"].error)
    for start in range(10):
        assert [item.key for item in source.items(start)] == [item.key for item in items[start:]]
    orders = {tuple(item.key for item in open_source(str(tars), seed=seed).items()) for seed in range(8)}
    assert len(orders) == 2


@pytest.mark.parametrize("cut", [0, 100, 700, 1300, 2100])
def test_a_tar_that_is_cut_off_is_an_error_in_its_place(tars, tmp_path, cut):
    data = (tars / "00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2 + cut])
    items = list(open_source(str(tmp_path / "cut.tar")).items())
    assert items[-1].error is not None and "cut.tar" in str(items[-1].error)
    assert items[:-1] and all(item.error is None for item in items[:-1])
    again = list(open_source(str(tmp_path / "cut.tar")).items(len(items) - 1))
    assert len(again) == 1 and again[0].error is not None


def test_a_corpus_from_tars(tars, tmp_path):
    captions = write_pairs(tmp_path, "a", 20)
    with pytest.raises(DataError, match=r"failed_to_download|no text"):
        build_corpus(options(tmp_path / "out", captions, f"laion={tars}", dev=0, test=0))
    chosen = options(tmp_path / "out", captions, f"laion={tars}", dev=0, test=0, on_error="skip")
    info = build_corpus(chosen)
    assert info.skipped["unreadable item"] == {"laion": 2}
    assert info.splits["train"].counts["laion"] == {"weaken": 7, "complement": 7, "strengthen": 0}


def test_a_source_in_random_order_is_read_until_it_gave_enough(tmp_path):
    write_tar(tmp_path / "x.tar", [member for key in range(40) for member in sample(f"{key:05d}")])
    captions = write_pairs(tmp_path, "a", 20)
    info = build_corpus(options(tmp_path / "out", captions, f"x={tmp_path / 'x.tar'}", test=0))
    assert info.sources["x"]["read"] == info.sources["x"]["pictures"] == 15  # 12 for train, 3 for dev
    assert info.sources["a"]["read"] == 20


def test_folder(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(picture([ord(name)])))
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    source = open_source(str(tmp_path))
    assert isinstance(source, FolderSource)
    first, second = source.items()
    assert first.captions == ("one", "two") and first.key == "a.jpg"
    assert "b.txt" in str(second.error)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in str(next(source.items(1)).error)


def test_jsonl_from_any_position(tmp_path):
    source = open_source(str(write_pairs(tmp_path, "a", 5)))
    assert isinstance(source, JsonlSource) and source.name == "a"
    assert [item.key for item in source.items(3)] == ["images/3.jpg", "images/4.jpg"]
    assert open_source(str(tmp_path / "a" / "pairs.jsonl")).name == "a"


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A folder with the features of coco_captions, prepared by tensorflow-datasets itself, without tensorflow."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs pip install 'tmrjax[corpora]'")

    class CocoCaptions(tfds.core.GeneratorBasedBuilder):
        name = "coco_captions"
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            captions = tfds.features.Sequence({"id": np.int64, "text": np.str_})
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "nsfw": tfds.features.ClassLabel(names=["UNLIKELY", "NSFW"]),
                "captions": captions,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(12)), "val": self._generate_examples(range(12, 20))}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield (
                    i,
                    {
                        "image": io.BytesIO(encoded(picture([8, i]))),
                        "image/filename": f"{i}.jpg",
                        "image/id": i,
                        "nsfw": i % 2,
                        "captions": [{"id": i * 10 + j, "text": f"café {i} number {j}"} for j in range(1 + i % 3)],
                    },
                )

    builder = CocoCaptions(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


def test_tfds_folder(tfds_folder):
    source = open_source(f"coco={tfds_folder}")
    assert isinstance(source, TfdsSource)
    assert source.describe()["path"] == "coco_captions/1.1.0" and source.describe()["splits"] == {"train": 12, "val": 8}
    items = list(source.items())
    assert len(items) == 20
    numbers = [int(item.columns["image/id"]) for item in items]
    assert sorted(numbers) == list(range(20)) and set(numbers[:12]) == set(range(12))
    for item, number in zip(items, numbers, strict=True):
        assert item.captions == tuple(f"café {number} number {j}" for j in range(1 + number % 3))
        assert item.image == encoded(picture([8, number]))
        assert item.columns["nsfw"] == ("UNLIKELY", "NSFW")[number % 2]
        assert item.columns["image/filename"] == f"{number}.jpg"
    for start in (5, 12, 15, 20):
        assert [item.key for item in source.items(start)] == [item.key for item in items[start:]]


def test_a_corpus_from_tfds_without_tensorflow(tfds_folder, tmp_path):
    other = write_pairs(tmp_path, "b", 20, captions=1)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from data_prep.build_divergence_corpus import build_corpus\n"
        "from tests.corpus_pictures import options\n"
        f"build_corpus(options(Path({str(tmp_path / 'out')!r}), 'coco={tfds_folder}', {str(other)!r},"
        " exclude=('coco:nsfw=NSFW',), dev=0))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    corpus = open_corpus(tmp_path / "out")
    counts = corpus.info.splits["train"].counts["coco"]
    assert counts["strengthen"] == counts["weaken"] > 5
    shown = [pair for pair in itertools.chain(corpus["train"], corpus["test"]) if pair.label == 2]
    assert all(int(pair.text.split()[1]) % 2 == 0 for pair in shown)


def test_what_is_no_source_says_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match=r"tfds\.builder\('coco_captions'.*file_format='array_record'"):
        open_source(f"coco={tmp_path / 'missing'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"features\.json"):
        open_source(str(tmp_path / "empty"))
    (tmp_path / "empty" / "features.json").write_text("{}")
    pytest.importorskip("tensorflow_datasets", reason="needs pip install 'tmrjax[corpora]'")
    with pytest.raises(DataError, match="a prepared data set"):
        open_source(str(tmp_path / "empty")).describe()
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match=r"\.csv file"):
        open_source(str(tmp_path / "x.csv"))
