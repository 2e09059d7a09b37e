"""Posts with a text-picture label: the published form of the corpus, tabs, pictures, errors, the manifest."""

import json

import pytest
from PIL import Image

from data_prep.import_text_picture import Options, import_text_picture, main
from tmrjax.files import DataError, parse_json
from tmrjax.prediction.posts import read_post
from tmrjax.records import DatasetInfo, Record, read_dataset, write_dataset

HEADER = '"tweet_id","user_id","tweet","text_is_represented","image_adds"'
ROWS = [
    r'"11","5","a \"fine\" day, isn\'t it? http://t.co/abc https://t.co/xYz9","0","1"',
    '"12","5","two\nlines 👍","1","0"',
    '"13","6","no picture","1","1"',
    '"14","6"," https://t.co/only1","1","1"',
]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("11.jpg", "T12.png", "14.jpg", "99.jpg"):
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "pictures" / name)
    (tmp_path / "data.csv").write_text("\n".join([HEADER, *ROWS]) + "\n", encoding="utf-8")
    return tmp_path


def options(corpus, source="data.csv", **changes):
    return Options(corpus / source, corpus / "pictures", corpus / "out", **changes)


def posts(corpus):
    return [json.loads(line) for line in (corpus / "out/text_picture.jsonl").open(encoding="utf-8")]


def test_the_published_form(corpus):
    counts = import_text_picture(options(corpus))
    assert posts(corpus) == [
        {"id": "11", "tokens": ["a", '"', "fine", '"', "day", ",", "isn't", "it", "?", "http://t.co/abc"],
         "image": "text_picture/11.jpg", "regions": [], "picture_adds": True},
        {"id": "12", "tokens": ["two", "lines", "👍"], "image": "text_picture/T12.png", "regions": [],
         "picture_adds": False},
    ]  # fmt: skip
    assert counts == {
        "rows": 4, "posts": 2, "posts whose picture adds": 1, "rows without a picture (left out)": 1,
        "rows without a word (left out)": 1,
    }  # fmt: skip
    copied = sorted(path.name for path in (corpus / "out/text_picture").iterdir())
    assert copied == ["11.jpg", "T12.png"]
    info = DatasetInfo("x", "re", ("None", "/a"))
    for line in (corpus / "out/text_picture.jsonl").open("rb"):
        assert read_post(parse_json(line, "x"), info, where="x").carried.keys() == {"picture_adds"}


def test_tabs_names_of_columns_and_the_first_rows(corpus):
    lines = ["key\ttext\tadds", '11\tsays "hi"\t0', "12\tsecond\t1", "14\tthird\t1"]
    (corpus / "data.tsv").write_text("\n".join(lines) + "\n")
    import_text_picture(options(corpus, "data.tsv", id="key", text="text", label="adds", rows=2, link=True))
    assert [(post["id"], post["tokens"], post["picture_adds"]) for post in posts(corpus)] == [
        ("11", ["says", '"', "hi", '"'], False), ("12", ["second"], True),
    ]  # fmt: skip
    assert (corpus / "out/text_picture/11.jpg").stat().st_nlink == 2


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (['"11","5","x","0","yes"'], {}, r"data.csv:2: found 'yes' in 'image_adds'; expected 0 or 1"),
        (['"11","5","x","0","1"'] * 2, {}, r"data.csv:3: found the id '11' again, first at line 2"),
        (['"11","5","x","0"'], {}, r"data.csv:2: found 4 fields; expected 5"),
        (['"13","5","x","0","1"'], {"pictures": "require"}, r"data.csv:2: found no picture of '13'"),
        (['"13","5","x","0","1"'], {}, r"data.csv: found no post to write"),
        ([], {"label": "adds"}, r"data.csv:1: found the columns .*; expected 'adds' too"),
        (['"","5","x","0","1"'], {}, r"data.csv:2: .*tweet_id"),
    ],
)
def test_errors_have_file_and_line(corpus, rows, changes, message):
    (corpus / "data.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    with pytest.raises(DataError, match=message):
        import_text_picture(options(corpus, **changes))
    assert not (corpus / "out/text_picture.jsonl").exists()


def test_a_damaged_picture_is_named(corpus):
    (corpus / "pictures/11.jpg").write_bytes(b"\xff\xd8no")
    with pytest.raises(DataError, match=r"data.csv:2: found .*11.jpg"):
        import_text_picture(options(corpus))


def test_into_a_data_set_which_says_so(corpus, monkeypatch, capsys):
    records = {"train": [Record("1", ("a",), ("O",))]}
    write_dataset(corpus / "out", {"name": "x", "task": "ner", "labels": ("PER",)}, records)
    flags = [f"--source={corpus / 'data.csv'}", f"--images={corpus / 'pictures'}", f"--out={corpus / 'out'}"]
    monkeypatch.setattr("sys.argv", ["import_text_picture", *flags, "--rows=3"])
    main()
    assert capsys.readouterr().out.split("\n")[0].split() == ["rows", "3"]
    dataset = read_dataset(corpus / "out")
    stage = dataset.info.stages["text_picture"]
    assert dataset.splits["train"] == tuple(records["train"]) and stage["options"]["rows"] == 3
    assert stage["sources"].keys() == {"data.csv"} and stage["counts"]["posts"] == 2
    monkeypatch.setattr("sys.argv", ["import_text_picture", *flags, "--label=adds"])
    with pytest.raises(SystemExit, match=r"import_text_picture: .*data.csv:1: found the columns"):
        main()
