"""The importer of the released Twitter files: a small release with every anomaly, broken ones, and the real one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import import_twitter as importer
from data_prep.import_twitter import Options, import_twitter
from data_prep.importing import hashes as released_hashes
from data_prep.importing import release_files
from data_prep.importing.frame import import_table
from tmrjax.files import DataError, sha256
from tmrjax.records import completeness, read_dataset

ROOT = Path(__file__).resolve().parents[2]


def tweet(identifier, words):
    return f"IMGID:{identifier}\n" + "".join(f"{word}\n" for word in words) + "\n"


def box(*sides):
    return torch.tensor(sides, dtype=torch.float32)


@pytest.fixture
def release(tmp_path):
    """A release of five tweets in the style of 2015 with one of each anomaly, and a folder of pictures."""
    folder, pictures = tmp_path / "twitter2015", tmp_path / "pictures"
    folder.mkdir()
    pictures.mkdir()
    texts = {
        "train": tweet("1", ["RT\tO", "Ada\tB-PER", "Expo\tB-OTHER", "2\tI-OTHER", "\ufe0f\tO"])
        + tweet("2", ["no\tO", "name\tI-LOC"]),
        "val": tweet("3", ["no\tO", "name\tO"]),
        "test": tweet("4", ["Köln\tB-LOC"]) + tweet("5", ["\u200d\tO", "x\tO"]),
    }
    ids = {"train": ["1", "2"], "val": ["3"], "test": ["4", "5"]}
    for split, text in texts.items():
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        for kind, weak, strong in (("ner", 0.25, 0.5), ("ner_diff", 0.125, 0.0625)):
            for name, value in (("weak", weak), ("strong", strong)):
                lines = [f"{identifier}.jpg\t{value}\n" for identifier in reversed(ids[split])]  # not in text order
                (folder / f"{kind}_{split}_weight_{name}.txt").write_text("".join(lines))
        strings = {"1": "Ada Expo", "4": release_files.NO_PHRASE, "5": "x"}
        phrases = {f"{identifier}.jpg": strings.get(identifier, "name") for identifier in ids[split]}
        (folder / f"ner15_grounding_text_{split}.json").write_text(json.dumps(phrases))
        torch.save({f"{identifier}.jpg": ["0_pred_yolo_crop_0.png"] for identifier in ids[split] if identifier != "2"},
                   folder / f"twitter2015_{split}_dict.pth")  # fmt: skip
    boxes = [box(0, 0, 768, 384), box(10, 10, 10.5, 20)]  # the second is half a pixel wide
    torch.save(
        {"IMGID:1.png": boxes * 3, "IMGID:2.png": [box(0, 0, 96, 96)] * 3}, folder / "train_grounding_cut_dif.pth"
    )
    torch.save({"IMGID:3.png": ["a phrase"]}, folder / "val_grounding_cut_dif.pth")
    torch.save({"IMGID:4.png": [box(0, 0, 7, 7)], "IMGID:5.png": [box(0, 0, 7, 7), box(1, 1, 7, 7)]},
               folder / "test_grounding_cut_dif.pth")  # fmt: skip
    for name in ("1.jpg", "4.png"):
        Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(pictures / name)
    return Options(folder, tmp_path / "out", images=pictures, generated=pictures, progress=False)


def change(options, **fields):
    return Options(**{**vars(options), **fields})


def test_what_the_small_release_becomes(release):
    dataset = import_twitter(release)
    first, second = dataset.splits["train"]
    assert first.tags == ("O", "B-PER", "B-MISC", "I-MISC", "O") and second.tags == ("O", "I-LOC")
    assert (first.image, second.image) == ("images/1.jpg", None)
    assert first.generated.image == "generated/1.jpg"
    assert first.generated.regions == ((0.0, 0.0, 1.0, 0.5),)  # read once, not three times; the thin one is gone
    assert second.generated is None and first.regions == ()
    # weaken, complement (released "weak"), strengthen (released "strong")
    assert first.scores == (0.25, 0.25, 0.5) and first.generated_scores == (0.8125, 0.125, 0.0625)
    assert first.phrases == ("Ada Expo",)
    assert dataset.splits["test"][0].phrases == ()  # the constant for "none found"
    assert dataset.splits["test"][0].image == "images/4.png"
    assert not dataset.info.leaky_phrases and dataset.info.labels == ("PER", "LOC", "ORG", "MISC")
    stage = dataset.info.stages["import_twitter"]
    counts = stage["counts"]
    assert counts["train"] == {
        "scores of no tweet (left out)": 0,
        "generated scores of no tweet (left out)": 0,
        "phrase words that the tweet does not have": 0,
        "original pictures with crops, of which no box is released": 1,
        "tweets that the crops' file does not name": 1,
        "generated boxes that can be used": 2,
        "generated boxes under a pixel (dropped)": 1,
        "lists of boxes that stood three times (read once)": 2,
        "lists of phrases where boxes should be (no boxes)": 0,
        "generated boxes without their picture (left out)": 1,
        "words that vanish in BERT's cleaning": 1,
        "pictures of no tweet of any split (left out)": 0,
        "generated pictures of no tweet of any split (left out)": 0,
    }
    assert counts["dev"]["lists of phrases where boxes should be (no boxes)"] == 1
    assert counts["test"]["phrases that only say that none was found (dropped)"] == 1
    assert counts["test"]["lists of boxes that stood three times (read once)"] == 0
    assert stage["equal_texts"] == [["train:2", "dev:3"]]
    assert len(stage["sources"]) == 3 * 8 and stage["options"]["source"] == "twitter2015"
    table = import_table(dataset, "import_twitter")
    assert "orphan inside tags                    1        0        0" in table
    assert "more than once: 1, of these across splits: 1" in table


def test_a_second_import_changes_nothing(release):
    import_twitter(release)
    first = {path: (path.read_bytes(), path.stat().st_ino) for path in release.out.rglob("*.*g")}
    import_twitter(release)
    assert first == {path: (path.read_bytes(), path.stat().st_ino) for path in release.out.rglob("*.*g")} and first


def test_links_save_the_space(release):
    import_twitter(change(release, link=True))
    assert (release.out / "images/1.jpg").stat().st_ino == (release.images / "1.jpg").stat().st_ino


def test_a_leak_is_marked(release):
    path = release.source / "ner15_grounding_text_test.json"
    path.write_text(json.dumps({"4.jpg": "Köln location", "5.jpg": "x"}))
    dataset = import_twitter(release)
    assert dataset.info.leaky_phrases
    count = dataset.info.stages["import_twitter"]["counts"]["test"]["phrase words that the tweet does not have"]
    assert count == 1


def test_parts_can_be_left_out(release):
    for name in [*release.source.glob("ner*"), *release.source.glob("*.pth")]:
        name.unlink()
    bare = change(release, scores=False, phrases="none", generated_boxes="none", images=None, generated=None)
    record = import_twitter(bare).splits["train"][0]
    assert (record.scores, record.phrases, record.image, record.generated) == (None, (), None, None)
    with pytest.raises(DataError, match=r"none of ner_train_weight_weak.txt.*--no-scores"):
        import_twitter(release)
    with pytest.raises(DataError, match=r"none of ner15_grounding_text_train.json, ner17.*--phrases=none"):
        import_twitter(change(bare, phrases="released"))
    with pytest.raises(DataError, match=r"none of train_grounding_cut_dif.pth.*--generated-boxes=none"):
        import_twitter(change(bare, generated_boxes="released"))


def test_a_missing_score_is_absent_and_counted(release):
    for weight, value in (("weak", 0.25), ("strong", 0.5)):
        (release.source / f"ner_train_weight_{weight}.txt").write_text(f"2.jpg\t{value}\n999.jpg\t0.1\n")
    dataset = import_twitter(release)
    assert [record.scores is None for record in dataset.splits["train"]] == [True, False]
    assert dataset.info.stages["import_twitter"]["counts"]["train"]["scores of no tweet (left out)"] == 1
    assert completeness(dataset.splits["train"])["without scores"] == 1


def test_a_score_in_one_of_two_files_is_an_error(release):
    (release.source / "ner_train_weight_weak.txt").write_text("2.jpg\t0.25\n")
    with pytest.raises(DataError, match=r"strong.txt: found a score of 1.jpg, but none in ner_train_weight_weak.txt"):
        import_twitter(release)
    dataset = import_twitter(change(release, on_error="skip"))
    assert [item.id for item in dataset.skipped] == ["1"] and [one.id for one in dataset.splits["train"]] == ["2"]


def test_weak_scores_below_strong_ones_are_noted(release):
    """As they are here; in the release weak ones are far greater. Of generated pictures they are."""
    stage = import_twitter(release).info.stages["import_twitter"]
    swapped = [note for note in stage["notes"] if "are the files swapped?" in note]
    assert [note.split(" scores")[0] for note in swapped] == ["train: weak", "val: weak", "test: weak"]


def test_files_that_are_not_the_released_ones_are_named(release, monkeypatch):
    table = import_table(import_twitter(release), "import_twitter")
    assert "  ! not the released files, by SHA-256: train.txt, ner_train_weight_weak.txt, " in table
    contents = {path.name: path.read_bytes() for path in release.source.iterdir()}
    known = {sha256(content): f"twitter2015/{name}" for name, content in contents.items()}
    del known[sha256(contents["val.txt"])]
    known[sha256(contents["test.txt"])] = "twitter2017/test.txt"
    monkeypatch.setattr(released_hashes, "_NAMES", known)
    notes = import_twitter(release).info.stages["import_twitter"]["notes"]
    assert notes[:2] == [
        "not the released files, by SHA-256: val.txt",
        "files of different releases: twitter2015, twitter2017",
    ]


def test_empty_files_are_errors_and_a_byte_order_mark_is_none(release):
    names = "test.txt", "ner_val_weight_weak.txt", "ner15_grounding_text_val.json", "test_grounding_cut_dif.pth"
    for name, what in zip(names, ("tweet", "score", "phrase", "entry"), strict=True):
        path, content = release.source / name, (release.source / name).read_bytes()
        if path.suffix == ".pth":
            torch.save({}, path)
        else:
            path.write_text("{}" if path.suffix == ".json" else "\n")
        for on_error in ("raise", "skip"):
            with pytest.raises(DataError, match=rf"{name}: found no {what}; expected at least one"):
                import_twitter(change(release, on_error=on_error))
        path.write_bytes(content)
    before = import_twitter(release)
    for path in [*release.source.glob("*.txt"), *release.source.glob("*.json")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert import_twitter(release).splits == before.splits and before.splits["train"][0].scores is not None


@pytest.mark.parametrize("number", ["1_0", " 0.5", "0.5 ", "٠.٥", "0,5", "inf", "0x1", ""])
def test_scores_are_plain_numbers(tmp_path, number):
    path = tmp_path / "scores.txt"
    path.write_text(f"1.jpg\t{number}\n", encoding="utf-8")
    with pytest.raises(DataError, match="number in"):
        release_files.read_score_lists(path)
    path.write_bytes(b"1.jpg\t2.5e-05\r\n2.jpg\t1\n")
    assert release_files.read_score_lists(path) == {"1": [2.5e-05], "2": [1.0]}


def test_text_only_needs_the_tagged_text_alone_and_what_lacks_is_said_at_once(release):
    whole = import_twitter(release)
    for name in [*release.source.glob("*ner*"), *release.source.glob("*.pth")]:
        name.unlink()
    bare = change(release, images=None, generated=None)
    with pytest.raises(DataError) as caught:
        import_twitter(bare)
    message = str(caught.value)
    for part in (
        "ner_train_weight_weak.txt and 11 more files (scores)",
        "and 2 more files (phrases)",
        "(boxes and crops)",
    ):
        assert part in message
    flags = "--no-scores --phrases=none --generated-boxes=none, or with --text-only."
    assert message.endswith(f"Go on without them with {flags}")
    dataset = import_twitter(change(bare, text_only=True))
    record = dataset.splits["train"][0]
    assert (record.scores, record.phrases, record.image, record.generated) == (None, (), None, None)
    assert [one.tags for one in dataset.splits["train"]] == [one.tags for one in whole.splits["train"]]
    assert dataset.info.labels_sha256 == whole.info.labels_sha256
    (release.source / "test.txt").unlink()
    with pytest.raises(
        DataError, match=r"none of test.txt \(tagged text.*; none of .*Correct --source, go on without them"
    ):
        import_twitter(bare)
    for wrong in ({"images": release.images}, {"pictures": "require"}):
        with pytest.raises(ValueError, match="text_only leaves pictures out"):
            import_twitter(change(bare, text_only=True, **wrong))


def test_rounding_below_zero_is_zero_and_more_is_an_error():
    assert release_files.alpha(0.4, 0.6000004, "x")[0] == 0.0
    with pytest.raises(DataError, match=r"x: found weak 0.5 \+ strong 0.6 > 1"):
        release_files.alpha(0.5, 0.6, "x")


def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_without_torch_the_error_says_what_to_do(release, monkeypatch):
    without_torch(monkeypatch)
    with pytest.raises(DataError, match=r"pip install 'tmrjax\[release\]', or --generated-boxes=none"):
        import_twitter(release)
    assert len(import_twitter(change(release, generated_boxes="none")).splits["train"]) == 2


def test_a_pth_that_holds_code_is_refused(release):
    path = release.source / "train_grounding_cut_dif.pth"
    torch.save({"IMGID:1.png": [Path("x")]}, path)
    with pytest.raises(DataError, match="no plain data"):
        import_twitter(release)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({"IMGID:1.png": ["a", box(0, 0, 9, 9)]}, "phrases between boxes"),
        ({"1.jpg": []}, "'IMGID:<id>.png'"),
        ({"IMGID:1.png": [box(0, 0, 769, 9)]}, "pixels in 0 to 768"),
        ({"IMGID:1.png": [box(0, 0, float("nan"), 9)]}, "four finite numbers"),
        ({"IMGID:1.png": [box(0, 0, 9)]}, "four finite numbers"),
        ([], "a list; expected a dict"),
    ],
)
def test_broken_boxes(release, boxes, message):
    torch.save(boxes, release.source / "train_grounding_cut_dif.pth")
    with pytest.raises(DataError, match=message):
        import_twitter(release)


def replace(name, old, new):
    def edit(options):
        path = options.source / name
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new))

    return edit


def damage(options):
    data = (options.images / "1.jpg").read_bytes()
    (options.images / "1.jpg").write_bytes(data[: len(data) // 2])


FAULTS = [  # what is broken, where it is reported, what is said, the tweet it concerns
    (replace("train.txt", b"Ada\tB-PER", b"Ada B-PER"), "train.txt:3", "expected 'token<TAB>tag'", "1"),
    (replace("train.txt", b"Ada\tB-PER", b"\tB-PER"), "train.txt:3", "expected 'token<TAB>tag'", "1"),
    (replace("train.txt", b"Ada\tB-PER", b"Ada\tB-PERSON"), "train.txt:3", "unknown tag 'B-PERSON'", "1"),
    (replace("train.txt", b"Ada", b"\xff"), "train.txt:3", "not UTF-8", "1"),
    (replace("train.txt", b"IMGID:1\n", b""), "train.txt:1", "'IMGID:<id>' at the start", None),
    (replace("train.txt", b"IMGID:1\n", b"IMGID:1\n\n"), "train.txt:1", "without a token", "1"),
    (replace("train.txt", b"\n\nIMGID:2", b"\nIMGID:2"), "train.txt:7", "expected 'token<TAB>tag'", "1"),
    (replace("test.txt", b"IMGID:4", b"IMGID:1"), "test.txt:1", "the tweet 1 again, first at", "1"),
    (replace("ner_train_weight_weak.txt", b"1.jpg\t0.25", b"1.jpg\tnan"), "weak.txt:2", "number in [0, 1]", "1"),
    (replace("ner_train_weight_weak.txt", b"1.jpg\t0.25", b"1.jpg 0.25"), "weak.txt:2", "number in [0, 1]", None),
    (replace("ner_train_weight_weak.txt", b"1.jpg\t0.25", b"1.jpg\t-0.1"), "weak.txt:2", "number in [0, 1]", "1"),
    (replace("ner_train_weight_weak.txt", b"1.jpg", b"2.jpg"), "weak.txt:2", "a second score of 2.jpg", "2"),
    (replace("ner_train_weight_weak.txt", b"0.25", b"0.75"), "weak.txt: 1", "> 1", "1"),
    (damage, "train.txt:1", "1.jpg: found a damaged picture", "1"),
]


@pytest.mark.parametrize(("edit", "where", "message", "dropped"), FAULTS)
def test_bad_input_stops_with_its_line_or_is_listed(release, edit, where, message, dropped):
    edit(release)
    with pytest.raises(DataError) as caught:
        import_twitter(release)
    assert where in str(caught.value) and message in str(caught.value)
    assert not (release.out / "dataset.json").exists()
    dataset = import_twitter(change(release, on_error="skip"))
    listed = [json.loads(line) for line in (release.out / "skipped.jsonl").read_text().splitlines()]
    assert message in listed[0]["error"] and dropped in [item["id"] for item in listed] + [None]
    assert len(dataset.skipped) == len(listed) == dataset.info.stages["import_twitter"]["skipped"]
    if dropped is not None and "again" not in message:
        assert dropped not in [record.id for records in dataset.splits.values() for record in records]
    assert read_dataset(release.out).splits == dataset.splits
    assert f"skipped records: {len(listed)}" in import_table(dataset, "import_twitter")


def test_pictures_can_be_required(release):
    with pytest.raises(DataError, match=r"train.txt:8: found no picture 2.jpg.*--pictures=optional"):
        import_twitter(change(release, pictures="require"))
    with pytest.raises(DataError, match=r"no such folder.*Correct --images"):
        import_twitter(change(release, images=release.out / "nowhere"))
    (release.images / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="a second picture of 1"):
        import_twitter(release)


def test_misspelt_options(release):
    with pytest.raises(ValueError, match="on_error is 'ignore'; expected one of"):
        import_twitter(change(release, on_error="ignore"))


def test_the_command(release):
    command = [sys.executable, "data_prep/import_twitter.py", f"--source={release.source}", f"--out={release.out}"]
    done = subprocess.run(
        [*command, "--generated-boxes=none", "--link"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "\nlabels: unknown version\n" in done.stdout
    assert "without a picture" in done.stdout and f"written to {release.out}" in done.stdout
    (release.source / "train.txt").unlink()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"import_twitter: {release.source}: found none of train.txt")


# Counted with shell tools: records, B- tags (PER LOC ORG MISC), orphans, without an entity, vanishing words, pictures
REAL = {
    "twitter2015": {
        "train": (4000, (2218, 2091, 928, 933), 182, 104, 0, 9),
        "dev": (1000, (552, 522, 247, 220), 53, 31, 0, 5),
        "test": (3257, (1825, 1730, 839, 725), 118, 85, 0, 5),
    },
    "twitter2017": {
        "train": (3373, (2943, 731, 1674, 701), 0, 392, 116, 12),
        "dev": (723, (626, 173, 375, 150), 0, 76, 16, 4),
        "test": (723, (621, 178, 395, 157), 0, 86, 26, 2),
    },
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_the_real_release_gives_the_counts_of_its_description(data_root, tmp_path, name):
    source = data_root / "tmr-release" / "TMR-NER" / "data" / name
    options = Options(source, tmp_path, images=data_root / "images" / name, progress=False)
    dataset = import_twitter(options)
    stage = dataset.info.stages["import_twitter"]
    for split, (records, by_type, orphans, without, vanishing, pictures) in REAL[name].items():
        found = dataset.splits[split]
        counts = completeness(found)
        tags = [tag for record in found for tag in record.tags]
        assert tuple(tags.count(f"B-{label}") for label in importer.LABELS) == by_type
        assert (counts["records"], counts["orphan inside tags"], counts["without an entity"]) == (
            records,
            orphans,
            without,
        )
        assert stage["counts"][split]["words that vanish in BERT's cleaning"] == vanishing
        assert counts["without a picture"] == records - pictures
        assert counts["without scores"] == counts["without generated scores"] == 0
        assert stage["counts"][split]["phrase words that the tweet does not have"] == 0
    assert not dataset.info.leaky_phrases and stage["notes"] == []
    assert dataset.label_version == {"twitter2015": "Twitter-2015 (TMR, HVPNeT)", "twitter2017": "Twitter-2017"}[name]
    total = {key: [stage["counts"][split].get(key, 0) for split in REAL[name]] for key in stage["counts"]["train"]}
    groups = stage["equal_texts"]
    crossing = [group for group in groups if len({item.split(":")[0] for item in group}) > 1]
    if name == "twitter2015":
        assert (len(groups), sum(map(len, groups)), len(crossing)) == (11, 23, 7)
        assert total["tweets that the crops' file does not name"] == [0, 1, 0]  # 1351353
        assert total["generated boxes under a pixel (dropped)"] == [2, 0, 2]
    else:
        assert (len(groups), len(crossing)) == (3, 1)
        assert total["lists of boxes that stood three times (read once)"] == [3373, 0, 0]
        assert total["lists of phrases where boxes should be (no boxes)"] == [0, 723, 723]
        assert total["generated boxes that can be used"] == [6852, 0, 0]  # 6,853 less one under a pixel
        assert total["generated boxes under a pixel (dropped)"] == [1, 0, 0]
