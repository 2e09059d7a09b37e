"""Own tagged text: columns, tag schemes, pictures, splits, and what is wrong with a file, said by file and line."""

import functools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import import_twitter
from data_prep.import_conll import TOOL, Options, import_conll, split_by_hand
from data_prep.importing.column_files import Columns, Sentence, TagError, read_sentences, to_iob2
from tmrjax.files import DataError
from tmrjax.records import SKIPPED_FILE, read_dataset

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "dev", "test")


@pytest.fixture
def write(tmp_path):
    """Writes three files, the same text unless told otherwise, and gives the options that import them."""

    def make(train, dev=None, test=None, **options):
        paths = {}
        for split, text in zip(SPLITS, (train, dev, test), strict=True):
            content = f"{split}\tB-PER\n" if text is None else text
            paths[split] = tmp_path / f"{split}.txt"
            paths[split].write_bytes(content if isinstance(content, bytes) else content.encode())
        columns = Columns(**options.pop("columns", {}))
        return Options(out=tmp_path / "out", columns=columns, **paths, **options, progress=False)

    return make


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("1.jpg", "2.png", "unused.jpg", "a/x.jpg", "b/x.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), len(name), np.uint8)).save(folder / name)
    return folder


def words(dataset, split="train"):
    return [list(zip(record.tokens, record.tags, strict=True)) for record in dataset.splits[split]]


def counts(dataset, split="train"):
    return dataset.info.stages[TOOL]["counts"][split]


# ------------------------------------------------------------------ schemes


@pytest.mark.parametrize(
    ("scheme", "tags", "expected", "counted"),
    [
        ("iob2", "B-A I-A O B-A B-A I-B", "B-A I-A O B-A B-A I-B", {}),  # the orphan stays: a scorer's matter
        ("iob1", "I-A I-A B-A O I-B I-A", "B-A I-A B-A O B-B B-A", {"tags written as IOB2 (iob1)": 3}),
        ("bioes", "S-A B-A I-A E-A O", "B-A B-A I-A I-A O", {"tags written as IOB2 (bioes)": 2}),
        ("bioes", "U-A B-A M-A L-A W-B", "B-A B-A I-A I-A B-B", {"tags written as IOB2 (bioes)": 4}),
        ("plain", "A A O B A", "B-A I-A O B-B B-A", {"tags written as IOB2 (plain)": 4}),
        (
            "bioes", "E-A B-A O B-A E-A I-A", "B-A B-A O B-A I-A B-A",
            {"tags written as IOB2 (bioes)": 3, "entities without E- (kept)": 2,
             "entities without B- (begun at their I- or E-)": 2},
        ),
    ],
)  # fmt: skip
def test_schemes_become_iob2(scheme, tags, expected, counted):
    found, counts = to_iob2(tags.split(), scheme, {})
    assert found == expected.split()
    assert counts == Counter(counted)


def test_types_are_renamed_before_neighbours_are_compared():
    found, counts = to_iob2(["OTHER", "MISC", "OTHER"], "plain", {"OTHER": "MISC"})
    assert found == ["B-MISC", "I-MISC", "I-MISC"] and counts["types renamed"] == 2


@pytest.mark.parametrize(
    ("scheme", "tag", "advice"),
    [
        ("iob2", "S-PER", "--scheme=bioes"),
        ("iob2", "PER", "--tag-column"),
        ("iob1", "B-", "--tag-column"),
        ("plain", "B-PER", "--scheme=iob2"),
        ("bioes", "X-PER", "--tag-column"),
    ],
)
def test_a_tag_outside_of_the_scheme_says_which_to_take(scheme, tag, advice):
    with pytest.raises(TagError) as error:
        to_iob2(["O", tag], scheme, {})
    assert error.value.index == 1 and advice in error.value.advice


# ------------------------------------------------------------------ files


def test_tabs_blanks_and_other_separators(write):
    texts = "New York\tB-LOC\nx\tO\n\nBob\tB-PER", "\ufeffa  NN B-PER\r\n \r\nb N O\r\n", "a N B-PER\n"
    dataset = import_conll(write(*texts))
    assert words(dataset) == [[("New York", "B-LOC"), ("x", "O")], [("Bob", "B-PER")]]
    assert words(dataset, "dev") == [[("a", "B-PER")], [("b", "O")]]
    assert [record.id for record in dataset.splits["dev"]] == ["dev-1", "dev-3"]
    assert dataset.info.labels == ("LOC", "PER") and dataset.info.task == "ner"
    other = write("B-X|1|a\n", "O|1|b\n", "O|1|c|d\n", columns={"separator": "|", "token": 3, "tag": 1})
    assert words(import_conll(other), "dev") == [[("b", "O")]]


def test_characters_of_a_script_without_blanks(write):
    text = "徐 B-PER\n悲 I-PER\n鸿 I-PER\n\u3000 O\n绘 O\n\n纵 O\n"
    dataset = import_conll(write(text))
    assert dataset.splits["train"][0].tokens == ("徐", "悲", "鸿", "\u3000", "绘")
    assert counts(dataset)["words that vanish in BERT's cleaning"] == 1


def test_markers_and_comments_are_left_out_and_counted(write):
    text = "-DOCSTART- -X- O\n\n# id 1\nBob X B-PER\n\n-DOCSTART- -X- O\n\n# id 2\n\n# id 3\nx X O\n"
    dataset = import_conll(write(text, columns={"comment": "# "}))
    assert words(dataset) == [[("Bob", "B-PER")], [("x", "O")]]
    assert counts(dataset)["markers of documents (left out)"] == 2 and counts(dataset)["comments (left out)"] == 3


def test_types_in_the_order_of_the_files_or_as_asked_for(write):
    files = "a\tB-X\n", "a\tB-Y\nb\tI-Z\n", "a\tB-X\n"
    dataset = import_conll(write(*files))
    assert dataset.info.labels == ("X", "Y", "Z")
    assert counts(dataset, "dev")["entity types that train does not have"] == 2
    assert import_conll(write(*files, labels=("Z", "Y", "X"))).info.labels == ("Z", "Y", "X")
    assert import_conll(write(*files, rename={"Z": "X", "Y": "X"})).info.labels == ("X",)
    with pytest.raises(DataError, match=r"dev: found the entity type 'Y'; expected one of X, Z.*--rename"):
        import_conll(write(*files, labels=("X", "Z")))


# ------------------------------------------------------------------ pictures


def test_pictures_by_id(write, pictures):
    text = "IMGID:1\na\tB-X\n\nIMGID:1.jpg\nb\tO\n\nIMGID:9\nc\tO\n\nd\tO\n"
    dataset = import_conll(write(text, "IMGID:1\ne\tO\n", "IMGID:2\nf\tO\n", images=pictures))
    train = dataset.splits["train"]
    assert [(record.id, record.image) for record in train] == [
        ("1", "images/1.jpg"), ("1-2", "images/1.jpg"), ("9", None), ("train-10", None)
    ]  # fmt: skip
    assert dataset.splits["test"][0].image == "images/2.png" and dataset.path("images/2.png").is_file()
    assert counts(dataset)["pictures that are named, but not in --images"] == 1
    assert counts(dataset)["pictures of no sentence of any split (left out)"] == 1
    assert counts(dataset, "dev")["sentences with a picture that another split has"] == 1
    without = import_conll(write(text, "IMGID:5\ne\tO\n", "IMGID:2\nf\tO\n"))
    assert counts(without)["pictures that are named, without --images"] == 3


def test_pictures_by_a_column(write, pictures):
    text = "a,B-X,a/x.jpg\nb,O,a/x.jpg\n\nc,O,b/x\n\nd,O,-\n"
    columns = {"separator": ",", "tag": 2, "image": 3}
    dataset = import_conll(write(text, "e,O,1.jpg\n", "f,O,7.jpg\n", columns=columns, images=pictures))
    assert [record.image for record in dataset.splits["train"]] == ["images/a/x.jpg", "images/b/x.jpg", None]
    assert [record.id for record in dataset.splits["train"]] == ["train-1", "train-4", "train-6"]
    assert counts(dataset, "test")["pictures that are named, but not in --images"] == 1
    for cell in ("../x.jpg", "/x.jpg"):
        with pytest.raises(DataError, match=rf"train.txt:1: found the picture '{cell}'; expected a path inside"):
            import_conll(write(f"a,B-X,{cell}\n", "e,O,-\n", "f,O,-\n", columns=columns, images=pictures))


def test_pictures_that_are_required(write, pictures):
    options = {"images": pictures, "pictures": "require"}
    with pytest.raises(DataError, match=r"train.txt:2: found no picture 9; expected one in"):
        import_conll(write("IMGID:9\na\tB-X\n", "IMGID:1\nb\tO\n", "IMGID:2\nc\tO\n", **options))
    with pytest.raises(DataError, match=r"train.txt:1: found no name of a picture"):
        import_conll(write("a\tB-X\n", "IMGID:1\nb\tO\n", "IMGID:2\nc\tO\n", **options))
    (pictures / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train.txt:2: .*expected a picture that can be read"):
        import_conll(write("IMGID:1\na\tB-X\n", "b\tO\n", "c\tO\n", images=pictures))


# ------------------------------------------------------------------ what is wrong

BAD = {
    "a\tB-X\nb O\n": r"train.txt:2: found 1 columns in 'b O'; expected 2 columns .* parted by '\\t'",
    "a B-X\nNew York O\n": "train.txt:2: found 3 columns in 'New York O'; expected 2 columns",
    "a\n": "train.txt:1: found 1 columns in 'a'; expected columns \\[1, -1\\] that are 2 different ones",
    "a\tB-X\n\tO\n": "train.txt:2: found no token",
    "a\tB-X\nb\t\n": "train.txt:2: found the tag ''; expected O or B-TYPE, I-TYPE",
    "a\tB-X\nb\tS-X\n": "train.txt:2: found the tag 'S-X'.*--scheme=bioes",
    b"a\tB-X\n\xff\tO\n": "train.txt:2: found bytes that are not UTF-8",
    "a\tB-X\nIMGID:1\nb\tO\n": "train.txt:2: found 'IMGID:1'; expected 'IMGID:' before the first token only",
    "IMGID:a/b\nb\tB-X\n": "train.txt:1: found 'IMGID:a/b'; expected 'IMGID:<id>'",
    "IMGID:1\n\nb\tB-X\n": "train.txt:1: found the picture 1 without a token",
    "\n \n": "train.txt: found no sentence",
    "-DOCSTART-\tO\n": "train.txt: found no sentence",
    "a\tI-X\nb\tO\nc\tI-X\n": "train.txt: found 2 entities that begin with I- and 0 with B-.*--scheme=iob1",
}


@pytest.mark.parametrize("text", BAD)
def test_a_fault_is_said_by_file_and_line(write, text):
    with pytest.raises(DataError, match=BAD[text]):
        import_conll(write(text))


def test_faulty_sentences_are_listed_and_the_others_kept(write):
    text = "a\tB-X\n\nIMGID:7\nb\tE-X\n\nc d\n\ne\tO\n"
    dataset = import_conll(write(text, on_error="skip"))
    assert words(dataset) == [[("a", "B-X")], [("e", "O")]]
    listed = [json.loads(line) for line in (dataset.root / SKIPPED_FILE).read_text().splitlines()]
    assert [(item["file"], item["line"], item["id"]) for item in listed] == [
        ("train.txt", 3, "7"),
        ("train.txt", 6, None),
    ]
    assert dataset.info.stages[TOOL]["skipped"] == 2
    with pytest.raises(DataError, match="found no sentence"):
        import_conll(write("a\tB-X", "b\tE-X\n", on_error="skip"))


def test_sets_without_entities_and_wrong_columns_are_refused(write):
    with pytest.raises(DataError, match=r"found no entity; expected tagged entities. Is the tag in another column\?"):
        import_conll(write("a\tO\n", "b\tO\n", "c\tO\n"))
    with pytest.raises(DataError, match=r"expected columns \[1, 3\]"):
        import_conll(write("a\tB-X\n", columns={"tag": 3}))
    with pytest.raises(ValueError, match="columns count from 1"):
        Columns(token=0)


def _keep(faults, *fault):
    faults.append(fault)


@pytest.mark.parametrize("seed", range(3))
def test_damage_stays_in_its_sentence_and_is_never_another_error(tmp_path, seed):
    """300 files, each with some bytes of one sentence replaced, dropped or doubled."""
    generator = np.random.default_rng(seed)
    blocks = [f"IMGID:{i}\nÄda\tB-X\nw{i}\tI-X\n\u3000x\tO".encode() for i in range(6)]
    path, columns = tmp_path / "a.txt", Columns(separator="tab")
    outcomes = Counter()
    for _ in range(100):
        place = int(generator.integers(1, len(blocks)))  # the first line says how many columns there are
        damaged = bytearray(blocks[place])
        for _ in range(generator.integers(1, 3)):
            at = int(generator.integers(len(damaged)))
            kind = generator.choice(["replace", "drop", "double"])
            if kind == "replace":
                damaged[at] = int(generator.choice([0, 9, 13, 45, 255, *range(65, 91)]))
            elif kind == "drop" and damaged[at] != 10:
                del damaged[at]
            elif kind == "double" and damaged[at] != 10:
                damaged.insert(at, damaged[at])
        path.write_bytes(b"\n\n".join([*blocks[:place], bytes(damaged), *blocks[place + 1 :]]) + b"\n")
        faults = []
        keep = functools.partial(_keep, faults)
        read = list(read_sentences(path, columns, "iob2", {}, keep, Counter()))
        others = [str(number) for number in range(len(blocks)) if number != place]
        found = [sentence.picture for sentence in read if len(sentence.tokens) == 3 and sentence.picture in others]
        assert sorted({*found}) == others
        assert all(str(error).startswith(f"{path}:") and line > 0 for error, line, _ in faults)
        assert all(tag == "O" or tag[:2] in ("B-", "I-") for sentence in read for tag in sentence.tags)
        outcomes["refused" if faults else "read"] += 1
    assert outcomes["refused"] > 30 and outcomes["read"] > 10


# ------------------------------------------------------------------ splits


def sentence(word, picture=None, document=0):
    return Sentence((word,), ("O",), (1,), picture, document)


def test_shares_by_seed():
    sentences = [sentence(str(number)) for number in range(200)]
    parts = split_by_hand(sentences, (0.8, 0.1, 0.1), seed=0)
    assert [len(part) for part in parts] == [160, 20, 20]
    assert sorted(index for part in parts for index in part) == list(range(200))
    assert parts == split_by_hand(sentences, (0.8, 0.1, 0.1), seed=0)
    assert parts != split_by_hand(sentences, (0.8, 0.1, 0.1), seed=1)
    assert parts[0] == sorted(parts[0])


@pytest.mark.parametrize("seed", range(5))
def test_what_belongs_together_is_not_parted(seed):
    generator = np.random.default_rng(seed)
    sentences = [
        sentence(str(generator.integers(300)), generator.choice([None, *map(str, range(40))])) for _ in range(100)
    ]
    parts = split_by_hand(sentences, (0.6, 0.2, 0.2), seed)
    for keys in (
        ((sentences[i].picture for i in part) for part in parts),
        ((sentences[i].tokens for i in part) for part in parts),
    ):
        sets = [set(part) - {None} for part in keys]
        assert all(not sets[a] & sets[b] for a in range(3) for b in range(a))
    assert all(parts)


def test_documents_are_not_parted():
    sentences = [sentence(str(number), document=1 + number // 10) for number in range(60)]
    parts = split_by_hand(sentences, (0.5, 0.25, 0.25), seed=3)
    assert all({i // 10 for i in a}.isdisjoint(i // 10 for i in b) for a in parts for b in parts if a is not b)
    with pytest.raises(ValueError, match="2 groups of sentences that belong together, for 3 splits"):
        split_by_hand(sentences[:20], (0.5, 0.25, 0.25), seed=0)


def test_a_large_group_leaves_no_split_empty():
    sentences = [sentence(str(number), "same") for number in range(50)] + [sentence("x"), sentence("y")]
    assert all(all(split_by_hand(sentences, (0.8, 0.1, 0.1), seed)) for seed in range(6))


def test_one_file_split_by_hand(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text("".join(f"w{number}\tB-X\n\n" for number in range(20)))
    options = Options(out=tmp_path / "out", file=path, split=(0.5, 0.25, 0.25), seed=4, progress=False)
    dataset = import_conll(options)
    assert [len(dataset.splits[split]) for split in SPLITS] == [10, 5, 5]
    assert dataset.splits["train"][0].id.startswith("all-")
    assert dataset.info.stages[TOOL]["options"]["split"] == [0.5, 0.25, 0.25]
    path.write_text("a\tB-X\n\nb\tO\n")
    with pytest.raises(DataError, match=r"2 groups.*Give more text"):
        import_conll(options)


def test_either_three_files_or_one_with_shares(tmp_path):
    for given in (
        {"train": tmp_path},
        {"file": tmp_path},
        {},
        {"file": tmp_path, "train": tmp_path, "split": (1, 1, 1)},
    ):
        with pytest.raises(ValueError, match="--split"):
            Options(out=tmp_path, **given)
    with pytest.raises(ValueError, match="sum to 1"):
        Options(out=tmp_path, file=tmp_path, split=(0.8, 0.1, 0.2))


# ------------------------------------------------------------------ the command, and the Twitter files


def test_the_command(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text("".join(f"x|PER|w{number}\n\n" for number in range(10)))
    command = [
        sys.executable, "data_prep/import_conll.py", f"--file={path}", "--split=0.6,0.2,0.2",
        f"--out={tmp_path / 'out'}",
        "--separator=|", "--token-column=3", "--tag-column=2", "--scheme=plain", "--rename", "PER=HUM", "--name=mine",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mine (ner: HUM)" in done.stdout and "tags written as IOB2 (plain)" in done.stdout
    assert len(read_dataset(tmp_path / "out").splits["train"]) == 6
    done = subprocess.run([*command, "--scheme=iob2"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"import_conll: {path}:1: found the tag 'PER'")
    done = subprocess.run([*command[:2], "--out=x"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "give --train, --dev and --test, or --file with --split" in done.stderr


@pytest.mark.data
@pytest.mark.parametrize("name", ["twitter2015", "twitter2017"])
def test_the_released_twitter_files_come_out_as_by_their_own_importer(data_root, tmp_path, name):
    source = data_root / "tmr-release" / "TMR-NER" / "data" / name
    theirs = import_twitter.import_twitter(
        import_twitter.Options(
            source, tmp_path / "theirs", phrases="none", scores=False, generated_boxes="none", progress=False
        )
    )
    files = {"train": source / "train.txt", "test": source / "test.txt"}
    files["dev"] = next(path for path in (source / "val.txt", source / "valid.txt") if path.is_file())
    ours = import_conll(
        Options(out=tmp_path / "ours", **files, rename={"OTHER": "MISC"}, labels=theirs.info.labels, progress=False)
    )
    for split in SPLITS:
        assert [(r.id, r.tokens, r.tags) for r in ours.splits[split]] == [
            (r.id, r.tokens, r.tags) for r in theirs.splits[split]
        ]
