"""Versions of labels: the hash by its definition, what dataset.json keeps of it, the names of known versions."""

import dataclasses
import hashlib
import json

import pytest

from tmrjax.files import DataError
from tmrjax.records import DatasetInfo, Record, label_versions, read_dataset, refresh_hashes, write_dataset
from tmrjax.records.label_versions import UNKNOWN, hash_labels, label_version

NER = DatasetInfo("posts", "ner", ("PER", "Ö"))
RE = DatasetInfo("pairs", "re", ("None", "/a/b"))
ADA = Record("1", ("Ada", "Byron", "!"), tags=("B-PER", "I-PER", "O"))
OSLO = Record("2", ("Ö",), tags=("B-Ö",))
PAIR = Record("p", ("Ada", "at", "X"), head=(0, 1), tail=(2, 3), relation="/a/b")


def test_the_hash_is_that_of_its_definition():
    lines = '["B-PER","I-PER","O"]\n["B-Ö"]\n'
    assert hash_labels([ADA, OSLO], "ner") == hashlib.sha256(lines.encode()).hexdigest()
    assert hash_labels([PAIR], "re") == hashlib.sha256(b'[[0,1],[2,3],"/a/b"]\n').hexdigest()
    other_words = dataclasses.replace(ADA, id="9", tokens=("a", "b", "c"), phrases=("x",))
    assert hash_labels([other_words, OSLO], "ner") == hash_labels([ADA, OSLO], "ner")
    changed = [[OSLO, ADA], [ADA], [ADA, OSLO, OSLO], [dataclasses.replace(ADA, tags=("B-PER", "B-PER", "O")), OSLO]]
    assert len({hash_labels(records, "ner") for records in [[ADA, OSLO], *changed]}) == 5


def test_a_data_set_keeps_it_and_is_checked_against_it(tmp_path):
    info = write_dataset(tmp_path, NER, {"train": [ADA, OSLO], "test": [dataclasses.replace(ADA, id="3")]})
    assert info.labels_sha256 == {"train": hash_labels([ADA, OSLO], "ner"), "test": hash_labels([ADA], "ner")}
    assert read_dataset(tmp_path).info == info
    path = tmp_path / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"labels_sha256": value["labels_sha256"] | {"test": "0" * 64}}))
    with pytest.raises(DataError, match=r"dataset.json: found 'labels_sha256' 000000000000… of test"):
        read_dataset(tmp_path)
    path.write_text(json.dumps(value | {"labels_sha256": {}}))
    with pytest.raises(DataError, match=r"'labels_sha256' of \[\]; expected of the splits in 'files', \['test', 'tr"):
        read_dataset(tmp_path)


def test_an_edit_that_is_accepted_and_records_that_are_skipped_have_a_hash_of_their_own(tmp_path):
    before = write_dataset(tmp_path, NER, {"train": [ADA, OSLO]}).labels_sha256
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text(lines[0])
    assert refresh_hashes(tmp_path).info.labels_sha256 == {"train": hash_labels([ADA], "ner")} != before
    assert read_dataset(tmp_path).info.labels_sha256 == {"train": hash_labels([ADA], "ner")}
    (tmp_path / "train.jsonl").write_text(lines[0] + "{}\n")
    found = read_dataset(tmp_path, on_error="skip", verify_hashes=False)
    assert len(found.skipped) == 1 and found.info.labels_sha256 == {"train": hash_labels([ADA], "ner")}


@pytest.mark.parametrize("missing", [("leaky_regions",), ("labels_sha256",), ("leaky_regions", "labels_sha256")])
def test_an_older_data_set_is_refused_with_what_to_do(tmp_path, missing):
    write_dataset(tmp_path, RE, {"train": [PAIR]})
    path = tmp_path / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({key: value[key] for key in value if key not in missing}))
    with pytest.raises(DataError, match=r"an older version prepared; .*Prepare it again with its importer"):
        read_dataset(tmp_path)


def test_names_of_versions(monkeypatch):
    hashes = {"train": "a", "dev": "b", "test": "c"}
    monkeypatch.setattr(label_versions, "KNOWN", {"X": hashes, "Y": {**hashes, "test": "d"}})
    assert label_version(hashes) == "X" and label_version({**hashes, "test": "d"}) == "Y"
    assert label_version({"test": "c"}) == "X, test only" and label_version({"test": "e"}) == UNKNOWN
    assert label_version({"train": "e", "dev": "e", "test": "c"}) == f"{UNKNOWN} (test is that of X)"
    assert label_version({}) == UNKNOWN


def test_a_version_that_is_known_by_its_counts(monkeypatch):
    monkeypatch.setattr(label_versions, "KNOWN_BY_COUNTS", {"Z": {"train": (2, 2), "test": (1, 1)}})
    splits = {"train": [ADA, OSLO], "test": [ADA]}
    hashes = dict.fromkeys(splits, "-")
    assert label_version(hashes, splits) == "Z, by its counts of posts and B- tags"
    assert label_version(hashes, {**splits, "test": [ADA, OSLO]}) == UNKNOWN
    assert label_version(hashes, {"train": [ADA, OSLO]}) == UNKNOWN  # test is what tells versions apart


def test_umts_twitter_2015_by_its_counts():
    """5,072 B- tags in test; the file itself is not at hand."""
    person, nobody = ("B-PER",), ("O",)

    def split(posts, entities):
        return [Record("x", ("x",), tags=person if number < entities else nobody) for number in range(posts)]

    one = Record("x", ("x",) * 4000, tags=("B-PER",) * 4000)
    umt = {
        "train": [*split(3999, 2166), one],
        "dev": [*split(999, 541), dataclasses.replace(one, tags=("B-PER",) * 1000)],
        "test": [*split(3256, 1072), one],
    }
    name = label_version(dict.fromkeys(umt, "-"), umt)
    assert name.startswith("Twitter-2015 (UMT, UMGF)") and "by its counts" in name
