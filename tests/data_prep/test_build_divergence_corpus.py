"""The builder: what is in a corpus, what never is, what a kill leaves, what is said of bad input."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import build_divergence_corpus
from data_prep.build_divergence_corpus import build_corpus
from data_prep.corpus import pool as corpus_pool
from data_prep.corpus.mixture import WEAKEN_FROM, Counts, draft_plan, order_plan
from data_prep.corpus.pool import BANDS, Pool, difference_hash
from data_prep.corpus.texts import CLEANERS, clean_text, text_digest
from data_prep.make_divergence_demo import make_divergence_demo
from tests.corpus_pictures import encoded, options, picture, write_pairs
from tmrjax.divergence.corpus import CLASSES, open_corpus, verify_corpus
from tmrjax.files import DataError
from tmrjax.pictures.decode import decode_picture

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return write_pairs(root, "a", 30), write_pairs(root, "b", 40, captions=1)


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "built"
    build_corpus(options(out, *sources))
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def append(folder, *lines):
    with open(folder / "pairs.jsonl", "a", encoding="utf-8") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def dropped(out):
    return [json.loads(line) for line in (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------ what is in it


def test_mixture_and_classes(built):
    corpus = verify_corpus(built)
    assert corpus.info.splits["train"].class_counts() == {"weaken": 24, "complement": 12, "strengthen": 12}
    assert corpus.info.splits["test"].class_counts() == {"weaken": 6, "complement": 3, "strengthen": 3}
    assert corpus.info.splits["train"].counts["a"] == {"weaken": 12, "complement": 0, "strengthen": 12}
    assert "test_out_of_domain" not in corpus and not list(built.glob("pool*"))
    for pair in corpus["train"]:
        own = pair.text.split()[2] == pair.id.split("|")[-1].split("/")[-1].split(".")[0]
        assert own == (CLASSES[pair.label] != "weaken")
        assert pair.text.startswith(pair.source) and pair.domain == "in"
        assert decode_picture(pair.image, "x").size == (pair.width, pair.height)


def test_no_split_shares_a_text_or_a_picture(built):
    corpus = open_corpus(built)
    for kind in ("text", "image"):
        sets = [{getattr(pair, kind) for pair in corpus[split]} for split in corpus.info.splits]
        assert sum(map(len, sets)) == len(set.union(*sets)), kind


def test_each_text_comes_once_with_its_own_picture_and_once_with_another(built):
    train = open_corpus(built)["train"]
    for wanted in ("weaken", "positive"):
        texts = [pair.text for pair in train if (pair.label == 0) == (wanted == "weaken")]
        assert len(texts) == len(set(texts)) == 24
    assert {pair.text for pair in train if pair.label == 0} == {pair.text for pair in train if pair.label}


def test_weaken_may_take_the_pictures_of_any_source(tmp_path):
    info = make_divergence_demo(tmp_path / "demo", pairs=100, weaken_from="domain", progress=False)
    assert info.options["weaken_from"] == "domain"
    mixed, texts, shown = Counter(), [], Counter()
    for pair in open_corpus(tmp_path / "demo")["train"]:
        if pair.label == 0:
            text, _, picture = pair.id.partition("|")
            mixed[text.split(":")[0], pair.source] += 1
            assert picture.startswith(pair.source) == (not text.startswith(pair.source))
            texts.append(pair.text)
            shown[pair.image] += 1
    assert sum(mixed.values()) == 200 == len(set(texts))
    # each text's source with each picture's about as often: an even split with a deviation of 5
    assert len(mixed) == 4 and all(30 < count < 70 for count in mixed.values()), mixed
    assert max(shown.values()) <= 6  # no picture stands in for all


def test_same_seed_same_bytes_other_seed_others(sources, built, tmp_path):
    build_corpus(options(tmp_path / "built", *sources, workers=1))
    assert files(tmp_path / "built") == files(built)
    build_corpus(options(tmp_path / "other", *sources, seed=1))
    first, second = (open_corpus(folder)["train"] for folder in (built, tmp_path / "other"))
    assert [pair.id for pair in first] != [pair.id for pair in second]


def test_killed_at_any_moment_it_ends_with_the_same_bytes(sources, built, tmp_path):
    out, kills = tmp_path / "built", 0
    # moments: 30 and 40 items in chunks of 8, the plan, 5 + 2 + 2 shards, the removal of the pool
    for moment in (20, 25, 33, 3, 3, 3, 3, 3, 100):
        command = [sys.executable, str(HERE / "killed_build.py"), str(sources[0].parent), str(out), str(moment)]
        result = subprocess.run(command, cwd=HERE.parent, capture_output=True, check=False)
        code = result.returncode
        kills += code == -9
        if code == 0:
            break
        assert code == -9, result.stderr
    assert kills == 8
    assert files(out) == files(built)


def test_a_finished_corpus_is_returned_and_another_refused(sources, built, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    assert build_corpus(options(built, *sources)).name == "built"
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before
    with pytest.raises(DataError, match="a corpus of other options"):
        build_corpus(options(built, *sources, seed=9))
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match=r"letter\.txt"):
        build_corpus(options(tmp_path, *sources))
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_divergence_corpus, "write_shard", _interrupt)
        build_corpus(options(tmp_path / "out", *sources))
    with pytest.raises(DataError, match="other options"):
        build_corpus(options(tmp_path / "out", *sources, seed=9))
    with pytest.raises(DataError, match="no such file"):
        open_corpus(tmp_path / "out")
    build_corpus(options(tmp_path / "out", *sources, seed=9, restart=True))
    assert open_corpus(tmp_path / "out").info.seed == 9


def _interrupt(*_):
    raise KeyboardInterrupt


def test_small_sources_keep_the_mixture(sources, tmp_path):
    info = build_corpus(options(tmp_path / "out", *sources, counts=Counts(2000, 1000, 1000), dev=0.1, test=0.2))
    for split in info.splits.values():
        counts = split.class_counts()
        assert counts["strengthen"] == counts["complement"] and counts["weaken"] == 2 * counts["strengthen"]
    # 40 pictures of b with a text each, shared out as 10 : 1 : 2
    assert info.splits["train"].class_counts()["complement"] in (30, 31)


def test_out_of_domain_and_labelled(sources, tmp_path):
    other = write_pairs(tmp_path, "c", 9, captions=1, columns=lambda i: {"event": str(i % 3)})
    labelled = write_pairs(tmp_path, "l", 6, captions=1, labels=CLASSES)
    # a labelled picture may come again, with another text and label
    append(labelled, {"image": "images/0.jpg", "caption": "something else", "label": "weaken"})
    info = build_corpus(
        options(
            tmp_path / "out", *sources, out_of_domain=1.0, apart=("c:event",),
            out_of_domain_complement=(str(other),), out_of_domain_labelled=(f"experts={labelled}",),
        )
    )  # fmt: skip
    assert info.splits["test_out_of_domain"].counts == {
        "c": {"weaken": 9, "complement": 9, "strengthen": 0},
        "experts": {"weaken": 3, "complement": 2, "strengthen": 2},
    }
    for pair in open_corpus(tmp_path / "out")["test_out_of_domain"]:
        assert pair.domain == "out"
        if pair.source == "c" and pair.label == 0:
            text, shown = int(pair.text.split()[2]), int(pair.id.split("|")[1].split("/")[1].split(".")[0])
            assert text % 3 != shown % 3


@hypothesis_settings(max_examples=25)
@given(
    st.lists(st.integers(1, 4), min_size=8, max_size=60),
    st.lists(st.integers(1, 2), min_size=8, max_size=60),
    st.integers(1, 30), st.integers(0, 90), st.integers(0, 5), st.sampled_from(WEAKEN_FROM),
)  # fmt: skip
def test_plan_of_any_sources(captions_a, captions_b, most, weaken, seed, weaken_from):
    pool = Pool(":memory:", {})
    pool.path = Path("x/y")
    number = 0
    for source, (role, captions) in enumerate((("strengthen", captions_a), ("complement", captions_b))):
        pool.database.execute("INSERT INTO sources VALUES (?, ?, ?, 'in', 0, 1)", (source, role, role))
        for places in captions:
            number += 1
            zeros = [0] * BANDS
            pool.database.execute(
                f"INSERT INTO pictures VALUES (?, ?, ?, 1, 1, NULL, ?, '', NULL, {', '.join('?' * BANDS)})",
                (number, source, str(number), number * 7919 % 101, *zeros),
            )
            rows = [(number, place, f"{number}-{place}", number * 31 + place) for place in range(places)]
            pool.database.executemany("INSERT INTO texts VALUES (?, ?, ?, ?)", rows)
    wanted = {"test": Counts(weaken, most, most), "train": Counts(3 * weaken, 3 * most, 3 * most)}
    try:
        drawn = draft_plan(pool, wanted, "in", seed, weaken_from)
    except DataError as error:
        assert "too few" in str(error) or "no second picture" in str(error)
        return
    order_plan(pool)
    owner, seen = {}, {}
    for split, counts in drawn.items():
        rows = pool.database.execute("SELECT * FROM plan WHERE split = ? ORDER BY number", (split,)).fetchall()
        assert [row[1] for row in rows] == list(range(sum(counts)))
        assert Counter(row[2] for row in rows) == {k: v for k, v in enumerate(counts) if v}
        assert counts.strengthen == counts.complement <= wanted[split].strengthen
        assert len(set(rows)) == len(rows)
        for _, _, label, shown, text_of, place in rows:
            assert owner.setdefault(shown, split) == split and owner.setdefault(text_of, split) == split
            assert (shown == text_of) == (label != 0)
            sources = {
                pool.one("SELECT source FROM pictures WHERE number = ?", picture) for picture in (shown, text_of)
            }
            assert len(sources) == 1 or (weaken_from == "domain" and label == 0)
            if label:
                assert seen.setdefault((text_of, place), label) == label


# ------------------------------------------------------------------ bad input


def test_duplicates_are_found_and_reported(sources, tmp_path):
    again = write_pairs(tmp_path, "c", 3, captions=1)
    first = decode_picture((sources[0] / "images/0.jpg").read_bytes(), "x")
    (again / "images/exact.jpg").write_bytes((sources[0] / "images/1.jpg").read_bytes())
    (again / "images/near.jpg").write_bytes(encoded(first.resize((200, 150)), quality=40))
    append(
        again,
        {"image": "images/exact.jpg", "caption": "new words"},
        {"image": "images/near.jpg", "caption": "more new words"},
        {"image": "images/2.jpg", "captions": ["A says 3 in words 1!", "x"]},  # a text of the first source
    )
    info = build_corpus(options(tmp_path / "out", *sources, out_of_domain_strengthen=(str(again),), out_of_domain=1.0))
    assert info.duplicates == {
        "nearly the same picture is there already": {"c": 1},
        "picture that is there already": {"c": 2},  # 2.jpg stands there twice
        "text that is there already": {"c": 1},
    }
    listed = {(line["key"], line["reason"].split(" that")[0]): line["detail"] for line in dropped(tmp_path / "out")}
    assert listed["images/near.jpg", "nearly the same picture is there already"] == "a: images/0.jpg"
    assert listed["images/exact.jpg", "picture"] == "a: images/1.jpg"
    assert listed["images/2.jpg", "text"] == "A says 3 in words 1!"


def test_pictures_of_all_kinds(sources, tmp_path, monkeypatch):
    odd = write_pairs(tmp_path, "odd", 4, captions=1)
    images = odd / "images"
    frames = [picture(i) for i in (900, 901)]
    (images / "animated.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    (images / "cmyk.jpg").write_bytes(encoded(picture(902).convert("CMYK")))
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16).repeat(6, 0).repeat(8, 1)
    (images / "deep.png").write_bytes(encoded(Image.fromarray(deep), "PNG"))
    (images / "huge.jpg").write_bytes(encoded(picture(903, 1600, 2400)))
    (images / "tiny.png").write_bytes(encoded(picture(904, 31, 90), "PNG"))
    (images / "banner.png").write_bytes(encoded(picture(905, 40, 500), "PNG"))
    (images / "broken.jpg").write_bytes(encoded(picture(906))[:300])
    (images / "page.jpg").write_bytes(b"<html>not found</html>")
    (images / "bomb.png").write_bytes(encoded(Image.new("1", (3000, 3000)), "PNG"))
    monkeypatch.setattr("tmrjax.pictures.decode.MAX_PIXELS", 8_000_000)
    names = ("animated.gif", "cmyk.jpg", "deep.png", "huge.jpg", "tiny.png", "banner.png", "broken.jpg", "page.jpg")
    append(odd, *({"image": f"images/{name}", "caption": f"see {name}"} for name in (*names, "bomb.png")))
    append(odd, {"image": "images/0.jpg", "captions": ["", "  \u200b ".replace("\u200b", "")]})
    info = build_corpus(options(tmp_path / "out", *sources, out_of_domain_strengthen=(str(odd),), out_of_domain=1.0))
    assert info.skipped == {
        "broken picture": {"odd": 3},
        "empty text": {"odd": 2},
        "no text left": {"odd": 1},
        "picture more than 10 times as long as wide": {"odd": 1},
        "picture with a side below 32 pixels": {"odd": 1},
    }
    assert info.sources["odd"]["read"] == 14 and info.sources["odd"]["pictures"] == 8
    errors = {line["key"]: line["detail"] for line in dropped(tmp_path / "out") if line["reason"] == "broken picture"}
    assert "too large" in errors["images/bomb.png"] and "no picture" in errors["images/page.jpg"]
    shown = {pair.id.split("/")[1].split("#")[0]: pair for pair in open_corpus(tmp_path / "out")["test_out_of_domain"]
             if pair.label}  # fmt: skip
    assert (shown["huge.jpg"].height, shown["huge.jpg"].width) == (384, 576)
    stored = decode_picture(shown["animated.gif"].image, "x")
    assert np.abs(np.asarray(stored, int) - np.asarray(frames[0], int)).mean() < 12
    assert decode_picture(shown["cmyk.jpg"].image, "x").mode == "RGB"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "images/0.jpg", "caption": ', r"pairs\.jsonl:31.*malformed JSON"),
        ('{"image": 3, "caption": "x"}', r"pairs\.jsonl:31.*\"image\": a path"),
        ('{"image": "images/0.jpg"}', r"pairs\.jsonl:31.*None as captions"),
        ('{"image": "images/none.jpg", "caption": "x"}', r"pairs\.jsonl:31.*No such file"),
        ('{"image": "images/0.jpg", "caption": "x", "label": "neutral"}', r"pairs\.jsonl:31.*'neutral'"),
    ],
)  # fmt: skip
def test_a_bad_line_stops_the_build_or_is_listed(sources, tmp_path, line, message):
    bad = write_pairs(tmp_path, "a", 30)
    append(bad, line)
    with pytest.raises(DataError, match=message):
        build_corpus(options(tmp_path / "out", bad, sources[1]))
    info = build_corpus(options(tmp_path / "out", bad, sources[1], on_error="skip"))
    assert info.skipped == {"unreadable item": {"a": 1}} and len(dropped(tmp_path / "out")) == 1


def test_a_class_without_pairs_is_an_error(sources, tmp_path):
    with pytest.raises(DataError, match="no usable pair of the class complement"):
        build_corpus(replace(options(tmp_path / "out", *sources), complement=()))
    single = write_pairs(tmp_path, "one", 1)
    with pytest.raises(DataError, match=r"too few pictures|no second picture"):
        build_corpus(options(tmp_path / "out2", single, sources[1]))


def test_columns_choose_items(sources, tmp_path):
    marked = write_pairs(tmp_path, "m", 12, columns=lambda i: {"part": "held" if i % 3 == 0 else "free"})
    index = ["image\tgeometry", *(f"{i}.jpg\t{'squashed' if i < 2 else 'native'}" for i in range(12))]
    (marked / "index.tsv").write_text("\n".join(index) + "\n")
    rules = {"exclude": ("m:part=held",), "only": ("m:geometry=native",)}
    chosen = options(tmp_path / "out", marked, sources[1], dev=0, test=0, **rules)
    info = build_corpus(chosen)
    assert info.sources["m"]["pictures"] == 7
    with pytest.raises(DataError, match="no column 'colour'"):
        build_corpus(replace(chosen, out=tmp_path / "out2", only=("m:colour=red",)))
    with pytest.raises(DataError, match="NAME:COLUMN=VALUE"):
        build_corpus(replace(chosen, out=tmp_path / "out3", only=("nobody:colour=red",)))
    (marked / "index.tsv").write_text("\n".join([index[0], *reversed(index[1:])]))
    with pytest.raises(DataError, match="in the same order"):
        build_corpus(replace(chosen, out=tmp_path / "out4"))


def test_long_texts_are_counted(sources, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w"]))
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    wordy = write_pairs(tmp_path, "wordy", 30, captions=1)
    lines = [json.loads(line) for line in (wordy / "pairs.jsonl").read_text().splitlines()]
    texts = "".join(
        json.dumps(line | {"captions": [f"w{i} " + "w " * (10 * (i % 6))]}) + "\n" for i, line in enumerate(lines)
    )
    (wordy / "pairs.jsonl").write_text(texts)
    build_corpus(options(tmp_path / "out", wordy, sources[1], tokenizer=tokenizer))
    corpus = open_corpus(tmp_path / "out")
    pairs = [pair for split in corpus.info.splits for pair in corpus[split] if pair.source == "wordy"]
    long = sum(len(pair.text.split()) + 2 > 40 for pair in pairs)
    assert corpus.info.sources["wordy"]["pairs with texts over 40 pieces"] == long > 0


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("RT @someone: Look at  this #sunset &amp; that https://t.co/abc", "Look at this sunset & that"),
        ("A dog runs .", "A dog runs"),
        ("RT_com: BREAKING: news", "RT_com: BREAKING: news"),
        ("rt @a RT @b: twice told… htt…", "twice told"),
        ("carts of @me stay", "carts of stay"),
        ("start # 1", "start # 1"),
    ],
)
def test_cleaners(text, cleaned):
    assert clean_text(text, CLEANERS) == cleaned
    assert clean_text(" two  words\n") == "two words"


def test_texts_are_equal_but_for_case_space_and_ends():
    assert text_digest("A dog .") == text_digest("a  DOG") != text_digest("a dog's")
    assert 0 <= text_digest("x") < 2**63


def distance(first, second):
    pairs = zip(difference_hash(first), difference_hash(second), strict=True)
    return sum((a ^ b).bit_count() for a, b in pairs)


def test_difference_hash_follows_the_picture_not_its_file():
    for other in (picture(1).resize((640, 480)), decode_picture(encoded(picture(1), quality=50), "x")):
        assert distance(picture(1), other) <= corpus_pool.NEAR_BITS
    assert distance(picture(1), picture(2)) > 60
