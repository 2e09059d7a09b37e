"""The importer of MNRE: a small release with every anomaly, broken ones, the real one; the audit of its phrases."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_prep.audit_leaks import audit, audit_table
from data_prep.import_mnre import Options, import_mnre
from data_prep.importing import hashes as released_hashes
from data_prep.importing.frame import import_table
from tmrjax.files import DataError, sha256
from tmrjax.records import completeness, read_dataset
from tmrjax.tasks.report import warnings_of

ROOT = Path(__file__).resolve().parents[2]
RELATIONS = {"None": 0, "/per/org/member_of": 1, "/loc/loc/contain": 2}


def instance(tokens, head, tail, image, relation):
    def entity(span):
        return {"name": " ".join(tokens[slice(*span)]), "pos": list(span)}

    return {"token": tokens, "h": entity(head), "t": entity(tail), "img_id": f"{image}.jpg", "relation": relation}


@pytest.fixture
def release(tmp_path):
    """A release of four instances: a picture with two of them and two scores, overlapping entities, odd boxes."""
    folder, pictures = tmp_path / "data", tmp_path / "pictures"
    (folder / "txt").mkdir(parents=True)
    (pictures / "train").mkdir(parents=True)
    (folder / "ours_rel2id.json").write_text(json.dumps(RELATIONS))
    first = ["RT", "Ada", "Byron", "joins", "the", "Club"]
    instances = {
        "train": [
            instance(first, (1, 3), (5, 6), "p", "/per/org/member_of"),
            instance(first, (5, 6), (1, 3), "p", "None"),
        ],
        "val": [instance(["Aww", "Ada"], (0, 2), (1, 2), "q", "None")],
        "test": [instance(["Bonn", ",", "Rhineland"], (2, 3), (0, 1), "r", "/loc/loc/contain")],
    }
    phrases = {"train": ["Ada Byron Club person organization", "Club Ada"], "val": ["Ada"], "test": ["Bonn location"]}
    for split, rows in instances.items():
        (folder / "txt" / f"ours_{split}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        for prefix in ("", "dif_"):
            weak = [0.75, 0.5] if split == "train" else [0.25]
            for name, values in (("weak", weak), ("strong", [1 - value for value in weak])):
                lines = [f"{row['img_id']}\t{value}\n" for row, value in zip(rows, values, strict=True)]
                (folder / "txt" / f"{prefix}{split}_weight_{name}.txt").write_text("".join(lines))
        strings = {str(row): phrase for row, phrase in enumerate(phrases[split])}
        (folder / "txt" / f"phrase_text_{split}.json").write_text(json.dumps(strings))
        boxes = [torch.tensor([0.0, 0, 384, 768]), torch.tensor([0.0, 0, 384, 768]), torch.tensor([5.0, 5, 5, 9])]
        torch.save({row: boxes for row in range(len(rows))}, folder / "txt" / f"mre_dif_{split}_dict.pth")
        torch.save({row: ["0_crop.png"] for row in range(len(rows))}, folder / "txt" / f"mre_{split}_dict.pth")
    Image.new("RGB", (8, 8)).save(pictures / "train" / "p.jpg")
    Image.new("RGB", (8, 8)).save(pictures / "r.jpg")
    return Options(folder, tmp_path / "out", images=pictures, generated=pictures, progress=False)


def change(options, **changes):
    return dataclasses.replace(options, **changes)


def test_what_can_be_kept_is_kept_and_the_rest_is_counted(release):
    dataset = import_mnre(change(release, generated_boxes="released"))
    (first, second), [dev], [test] = (dataset.splits[split] for split in ("train", "dev", "test"))
    assert dataset.info.labels == tuple(RELATIONS) and dataset.info.renormalised_scores
    assert (first.id, first.head, first.tail, first.relation) == ("train-00000", (1, 3), (5, 6), "/per/org/member_of")
    assert first.image == second.image == "images/p.jpg" and dev.image is None and test.image == "images/r.jpg"
    assert first.scores is None and second.scores is None  # two instances, two scores: whose they are is lost
    assert test.scores == test.generated_scores == (0.0, 0.25, 0.75)
    assert test.generated.regions == ((0.0, 0.0, 0.5, 1.0),)
    assert (dev.head, dev.tail) == ((0, 2), (1, 2)) and completeness([dev], "re")["head and tail overlap"] == 1
    counts = dataset.info.stages["import_mnre"]["counts"]
    assert counts["train"]["pictures with several scores"] == 1
    assert counts["train"]["instances whose scores are unknown among several"] == 2
    assert counts["train"]["generated boxes under a pixel (dropped)"] == 2
    assert counts["train"]["generated boxes that stood there before (dropped)"] == 2
    assert counts["dev"]["generated boxes without their picture (left out)"] == 1
    last = import_mnre(change(release, scores="last"))
    assert [record.scores for record in last.splits["train"]] == [(0.0, 0.5, 0.5)] * 2
    none = import_mnre(change(release, scores="none"))
    assert none.splits["test"][0].scores is None and not none.info.renormalised_scores


def test_phrases_come_from_the_text_and_released_ones_mark_the_set(release):
    dataset = import_mnre(release)
    assert not dataset.info.leaky_phrases
    for record in (record for records in dataset.splits.values() for record in records):
        assert set(" ".join(record.phrases).split()) <= set(record.tokens)
    assert "Ada Byron" in dataset.splits["train"][0].phrases
    leaky = import_mnre(change(release, phrases="released"))
    assert leaky.info.leaky_phrases and leaky.splits["test"][0].phrases == ("Bonn location",)
    counts = leaky.info.stages["import_mnre"]["counts"]
    assert counts["train"]["instances whose phrase has words that the text lacks"] == 1
    assert "[leaky_phrases" in import_table(leaky, "import_mnre")
    bare = import_mnre(change(release, phrases="none", generated=None))
    assert bare.splits["train"][0].phrases == () and bare.splits["test"][0].generated is None


def test_nothing_of_the_released_crops_and_boxes_comes_in_unasked_and_marks_the_set(release):
    boxes = {path: path.read_bytes() for path in (release.source / "txt").glob("*_dict.pth")}
    assert len(boxes) == 6
    for path in boxes:
        path.unlink()
    dataset = import_mnre(release)
    assert not dataset.info.leaky_regions and dataset.splits["test"][0].generated.regions == ()
    with pytest.raises(DataError, match=r"none of txt/mre_dif_train_dict.pth and 5 more.*with --generated-boxes=none"):
        import_mnre(change(release, generated_boxes="released"))
    for path, content in boxes.items():
        path.write_bytes(content)
    leaky = import_mnre(change(release, generated_boxes="released"))
    assert leaky.info.leaky_regions and leaky.splits["test"][0].generated.regions
    assert "leaky_regions" in import_table(leaky, "import_mnre").splitlines()[0]
    assert "LEAKY REGIONS" in warnings_of(leaky.info)[0] and read_dataset(leaky.root).info.leaky_regions


def replace(name, old, new):
    def edit(options):
        path = options.source / "txt" / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


FAULTS = [  # what is broken, where it is reported, what is said
    (replace("ours_train.txt", "/per/org/member_of", "/per/org/founder"), "ours_train.txt:1", "unknown relation"),
    (replace("ours_train.txt", "'pos': [5, 6]", "'pos': [5, 7]"), "ours_train.txt:1", "0 <= start < end <= 6"),
    (replace("ours_val.txt", "'name': 'Ada', 'pos': [1, 2]", "'name': 'Aww Ada', 'pos': [0, 2]"), "ours_val.txt:1",
     "'head' and 'tail' equal"),
    (replace("ours_val.txt", "['Aww', 'Ada']", "[]"), "ours_val.txt:1", "no token"),
    (replace("ours_val.txt", "{'token'", "[{'token'"), "ours_val.txt:1", "no Python literal"),
    (replace("ours_val.txt", "{'token'", "[], {'token'"), "ours_val.txt:1", "a tuple"),
    (replace("ours_val.txt", "['Aww', 'Ada']", "[__import__('os').getcwd()]"), "ours_val.txt:1", "no Python literal"),
    (replace("ours_val.txt", "['Aww', 'Ada']", "[" * 2000), "ours_val.txt:1", "no Python literal"),
    (replace("ours_train.txt", "'name': 'Ada Byron'", "'name': 'Ada'"), "ours_train.txt:1", "as its position says"),
    (replace("ours_train.txt", "'img_id'", "'image'"), "ours_train.txt:1", "unknown key 'image'"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "where", "message"), FAULTS)
def test_bad_lines_stop_with_their_number_or_are_listed(release, edit, where, message):
    edit(release)
    with pytest.raises(DataError) as caught:
        import_mnre(release)
    assert where in str(caught.value) and message in str(caught.value)
    dataset = import_mnre(change(release, on_error="skip"))
    [skipped] = dataset.skipped
    assert message in skipped.error and sum(map(len, dataset.splits.values())) == 3
    if "train" in where:  # what is keyed by row still belongs to its row
        assert [record.id for record in dataset.splits["train"]] == ["train-00001"]


def test_other_bad_input(release):
    with pytest.raises(DataError, match=r"ours_val.txt:1: found no picture q.jpg.*--pictures=optional"):
        import_mnre(change(release, pictures="require"))
    (release.source / "txt" / "test_weight_weak.txt").write_text("r.jpg\t0.9\n")
    with pytest.raises(DataError, match=r"test_weight_strong.txt: found weak 0\.9 \+ strong 0\.75 of r"):
        import_mnre(release)
    (release.source / "txt" / "test_weight_weak.txt").write_text("r.jpg 0.9\n")
    with pytest.raises(DataError, match=r"test_weight_weak.txt:1: found 'r.jpg 0.9'.*--scores=none"):
        import_mnre(release)
    (release.source / "ours_rel2id.json").write_text('{"None": 1, "a": 0}')
    with pytest.raises(DataError, match="'None': 0"):
        import_mnre(release)


def lines_of(release, name):
    path = release.source / "txt" / name
    return path, path.read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ({"phrases": "released"}, "phrase_text_train.json"),
        ({"generated_boxes": "released"}, "mre_dif_train_dict.pth"),
        ({"scores": "none", "generated_boxes": "released"}, "mre_dif_train_dict.pth"),
    ],
)
def test_a_line_that_was_lost_shifts_nothing_in_silence(release, option, file):
    path, lines = lines_of(release, "ours_train.txt")
    option = {"scores": "none", **option}
    assert len(import_mnre(change(release, **option)).splits["train"]) == 2
    path.write_text(lines[1])
    with pytest.raises(DataError, match=rf"{file}: found the row 1 \(2 rows\); expected exactly the rows 0 to 0 of"):
        import_mnre(change(release, **option))
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(DataError, match=rf"{file}: found no row 2 \(2 rows\); expected exactly the rows 0 to 2 of"):
        import_mnre(change(release, **option))


def test_crops_of_other_rows_are_refused(release):
    torch.save({1: ["x.png"], 2: ["x.png"]}, release.source / "txt" / "mre_train_dict.pth")
    with pytest.raises(DataError, match=r"mre_train_dict.pth: found no row 0 \(2 rows\)"):
        import_mnre(change(release, generated_boxes="released"))


def test_scores_have_a_line_for_every_instance_in_both_files(release):
    names = ("train_weight_weak.txt", "train_weight_strong.txt")
    (weak, weak_lines), (strong, strong_lines) = (lines_of(release, name) for name in names)
    for lost in (0, 1):
        weak.write_text(weak_lines[1 - lost])
        with pytest.raises(
            DataError, match=r"weak.txt: found 1 scores of p, 2 in train_weight_strong.txt; expected one"
        ):
            import_mnre(release)
    strong.write_text(strong_lines[0])
    with pytest.raises(DataError, match=r"found 1 scores of p, 1 in .* for each of its 2 instances"):
        import_mnre(release)
    for path, lines in ((weak, weak_lines), (strong, strong_lines)):  # of neither: unknown, and counted
        path.write_text("".join(line.replace("p.jpg", "other.jpg") for line in lines))
    dataset = import_mnre(release)
    assert dataset.info.stages["import_mnre"]["counts"]["train"]["scores of no instance (left out)"] == 1
    assert completeness(dataset.splits["train"], "re")["without scores"] == 2


def test_swapped_files_are_noticed(release, monkeypatch):
    """By their hash where they are the released ones, else by what they hold on average."""
    (weak, _), (strong, _) = (lines_of(release, f"test_weight_{name}.txt") for name in ("weak", "strong"))
    digests = {name: sha256(path.read_bytes()) for name, path in (("weak", weak), ("strong", strong))}
    for path in (release.source / "txt").glob("dif_test_weight_*.txt"):
        path.write_text(path.read_text() + "\n")  # not the same file as that of the original pictures
    known = {digest: f"mnre/test_weight_{name}.txt" for name, digest in digests.items()}
    monkeypatch.setattr(released_hashes, "_NAMES", known)
    notes = import_mnre(release).info.stages["import_mnre"]["notes"]
    assert notes[0].startswith("not the released files, by SHA-256: ours_rel2id.json, ours_train.txt, ")
    assert "dif_test_weight_weak.txt" in notes[0] and " test_weight_weak.txt" not in notes[0]
    assert any(note.startswith("test: weak scores are smaller than strong ones") for note in notes)
    content = weak.read_bytes(), strong.read_bytes()
    weak.write_bytes(content[1])
    strong.write_bytes(content[0])
    with pytest.raises(DataError, match=r"weak.txt: found the content of test_weight_strong.txt.*swapped or renamed"):
        import_mnre(release)


def test_empty_files_are_errors_and_a_byte_order_mark_is_none(release):
    for name in ("ours_train.txt", "val_weight_weak.txt", "dif_test_weight_strong.txt", "phrase_text_val.json"):
        path, content = release.source / "txt" / name, (release.source / "txt" / name).read_bytes()
        path.write_bytes(b"{}" if name.endswith("json") else b"\n" if "ours" in name else b"")
        for on_error in ("raise", "skip"):
            with pytest.raises(DataError, match=rf"{name}: found no (instance|score|phrase); expected at least one"):
                import_mnre(change(release, phrases="released", on_error=on_error))
        path.write_bytes(content)
    before = import_mnre(change(release, phrases="released"))
    for path in [*(release.source / "txt").glob("*.txt"), *release.source.rglob("*.json")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert import_mnre(change(release, phrases="released")).splits == before.splits


def test_instances_that_stand_there_twice_are_counted_and_named(release, capsys):
    path, lines = lines_of(release, "ours_test.txt")
    other = lines[0].replace("/loc/loc/contain", "None")
    path.write_text("".join([*lines, *lines, other]))
    dataset = import_mnre(change(release, scores="none"))
    stage = dataset.info.stages["import_mnre"]
    repeated = ["test: line 2 repeats line 1", "test: line 3 repeats line 1, with another relation"]
    assert len(dataset.splits["test"]) == 3 and stage["repeated"] == repeated
    assert stage["counts"]["test"]["instances that stand there before (kept)"] == 2
    assert f"  ! instances that stand there twice: {'; '.join(repeated)}\n" in import_table(dataset, "import_mnre")


def test_text_only_needs_the_instances_alone_and_what_lacks_is_said_at_once(release):
    for path in (release.source / "txt").iterdir():
        if not path.name.startswith("ours_"):
            path.unlink()
    bare = change(release, images=None, generated=None)
    with pytest.raises(DataError) as caught:
        import_mnre(change(bare, phrases="released", generated_boxes="released"))
    message = str(caught.value)
    assert (
        "Go on without them with --scores=none --phrases=text --generated-boxes=none, or with --text-only." in message
    )
    assert "none of txt/train_weight_weak.txt and 11 more files (scores)" in message
    record = import_mnre(change(bare, text_only=True)).splits["train"][0]
    assert (record.phrases, record.scores, record.image, record.generated) == ((), None, None, None)
    with pytest.raises(ValueError, match="text_only leaves pictures out"):
        import_mnre(change(release, text_only=True))


def test_the_command_prints_what_is_missing_and_the_audit(release):
    command = [sys.executable, "data_prep/import_mnre.py", f"--source={release.source}", f"--out={release.out}"]
    done = subprocess.run([*command, "--link"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "relations (not None)" in done.stdout and "leak audit" in done.stdout
    done = subprocess.run(
        [sys.executable, "data_prep/audit_leaks.py", str(release.out)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = read_dataset(release.out)
    assert audit_table(audit(found), found.info) in done.stdout


@pytest.mark.data
def test_the_released_boxes_leak_where_every_picture_is_there(data_root, tmp_path):
    """The first instances of every split with a small picture for each name, original and generated."""
    source, thin = data_root / "tmr-release" / "TMR-RE" / "data", tmp_path / "data"
    (thin / "txt").mkdir(parents=True)
    (thin / "ours_rel2id.json").write_bytes((source / "ours_rel2id.json").read_bytes())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "grey.jpg")
    for split, count in (("train", 400), ("val", 20), ("test", 250)):
        lines = (source / f"txt/ours_{split}.txt").read_bytes().splitlines(keepends=True)[:count]
        (thin / f"txt/ours_{split}.txt").write_bytes(b"".join(lines))
        for name in (f"mre_{split}_dict.pth", f"mre_dif_{split}_dict.pth"):
            whole = torch.load(source / "txt" / name, weights_only=True)
            torch.save({row: whole[row] for row in range(count)}, thin / "txt" / name)
        for line in lines:
            picture = pictures / ast.literal_eval(line.decode())["img_id"]
            if not picture.exists():
                picture.hardlink_to(tmp_path / "grey.jpg")
    options = Options(thin, tmp_path / "clean", pictures, pictures, scores="none", link=True, progress=False)
    clean = import_mnre(options)
    assert all(one.image and one.generated for records in clean.splits.values() for one in records)
    rows = audit(clean)
    assert not any(row.leak for row in rows) and "no side input tells labels" in audit_table(rows, clean.info)
    leaky = import_mnre(change(options, out=tmp_path / "leaky", generated_boxes="released"))
    rows = {row.reads: row for row in audit(leaky)}
    number = rows["number of generated regions (of the first 3)"]
    assert number.leak and number.mark == "leaky_regions" and number.any > 0.98 > rows["nothing"].any + 0.2
    assert "the set carries the mark for this, leaky_regions" in audit_table(list(rows.values()), leaky.info)
    unmarked = dataclasses.replace(leaky.info, leaky_regions=False)
    assert "WARNING: NO REPORT WILL SAY SO: dataset.json has leaky_regions false" in audit_table(
        list(rows.values()), unmarked
    )


@pytest.mark.data
def test_the_real_release_gives_the_counts_of_its_description_and_its_phrases_leak(data_root, tmp_path):
    source = data_root / "tmr-release" / "TMR-RE" / "data"
    options = Options(source, tmp_path / "text", images=data_root / "images" / "mnre", progress=False)
    dataset = import_mnre(options)
    gold = {split: [record.relation for record in records] for split, records in dataset.splits.items()}
    sizes = {split: (len(relations), relations.count("None")) for split, relations in gold.items()}
    assert sizes == {"train": (12247, 7744), "dev": (1624, 1000), "test": (1614, 974)}
    assert len(dataset.info.labels) == 23
    columns = {split: completeness(records, "re") for split, records in dataset.splits.items()}
    assert [column["head and tail overlap"] for column in columns.values()] == [59, 3, 5]
    pictures = [column["records"] - column["without a picture"] for column in columns.values()]
    assert pictures == [45, 0, 46]
    counts = dataset.info.stages["import_mnre"]["counts"]
    assert [counts[split]["pictures with several scores"] for split in columns] == [1803, 255, 254]
    assert dataset.label_version == "MNRE" and dataset.info.stages["import_mnre"]["notes"] == []
    rows = {row.reads: row for row in audit(dataset)}
    assert not any(row.leak for row in rows.values())
    assert rows["last phrase words that the post lacks"].f1 == rows["nothing"].f1 == 0
    leaky = import_mnre(change(options, out=tmp_path / "released", phrases="released"))
    counts = leaky.info.stages["import_mnre"]["counts"]["train"]
    assert counts["instances whose phrase has words that the text lacks"] > 4000
    rows = {row.reads: row for row in audit(leaky)}
    suffix = rows["last phrase words that the post lacks"]
    assert suffix.leak and suffix.f1 == pytest.approx(0.866, abs=0.0005)
