"""The contact sheet: what stands on it, that it asks for nothing, and how a real browser shows it."""

import dataclasses
import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.inspect_dataset import inspect_dataset
from data_prep.inspection.contact_sheet import entity_parts, pair_parts
from tests.browser import Page
from tmrjax.files import DataError
from tmrjax.records import Generated, Grounding, Record, read_dataset, write_dataset

ROOT = Path(__file__).resolve().parents[2]
EVIL = '</p><script>console.error("evil")</script><img src=x onerror=alert(1)>&amp;'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A set in which everything happens: all parts, none, a damaged picture, an orphan, words that want to be HTML."""
    folder = tmp_path_factory.mktemp("set")
    for name, size in (("images/1.png", (400, 300)), ("images/2.png", (30, 60)), ("generated/1.png", (64, 64))):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "images/3.png").write_bytes((folder / "images/1.png").read_bytes()[:200])
    full = Record(
        id="full",
        tokens=("Kevin", "Love", "visits", "Köln", "👍🏽"),
        tags=("B-PER", "I-PER", "O", "I-LOC", "O"),
        image="images/1.png",
        regions=((0.1, 0.2, 0.5, 0.9), (0.5, 0.5, 1.0, 1.0)),
        grounding=(Grounding("Kevin Love", 0.875), Grounding(None, 0.25)),
        phrases=("Kevin Love", "Köln location"),
        generated=Generated("generated/1.png", ((0.0, 0.0, 0.5, 0.5),), "Kevin Love visits Köln", 7, "tiny diffusion"),
        scores=(0.625, 0.25, 0.125),
        generated_scores=(0.125, 0.25, 0.625),
    )
    evil = dataclasses.replace(full, id=EVIL, tokens=(EVIL,), tags=("O",), phrases=(EVIL,), image="images/2.png",
                               regions=(), grounding=())  # fmt: skip
    bare = Record("bare", ("nothing",), ("O",))
    broken = dataclasses.replace(bare, id="broken", image="images/3.png")
    info = {"name": "posts <1>", "task": "ner", "labels": ("PER", "LOC"), "leaky_phrases": True, "synthetic": True}
    info["leaky_regions"] = True
    write_dataset(folder, info, {"train": [full, evil, bare], "test": [broken]})
    return folder


@pytest.fixture(scope="module")
def page(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep/sheet.html"
    posts = inspect_dataset(root, out)
    assert len(posts) == 4 and posts[0][0] == "train" and posts[0][1].id == "full"
    return out


class Elements(html.parser.HTMLParser):
    """Start tags with their attributes, and the text in the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag, kind):
        return sum(name == tag and kind in (attrs.get("class") or "").split() for name, attrs in self.tags)


def test_what_stands_on_it(page):
    elements = Elements(page.read_text())
    text = re.sub(r"\s+", " ", " ".join(elements.text))
    assert elements.count("article", "post") == 4
    assert elements.count("mark", "entity") == 1 and elements.count("mark", "orphan") == 1
    assert elements.count("rect", "region") == 4 and elements.count("span", "foreign") == 1
    assert "0.88" in text and "of no phrase" in text and "no region" in text
    assert "can't be read" in text and "damaged picture" in text  # 3.png
    assert text.count("no picture") == 1 and text.count("no generated picture") == 2 and text.count("no scores") == 4
    assert "SYNTHETIC DATA" in text and "LEAKY PHRASES" in text and "LEAKY REGIONS" in text and "posts <1>" in text
    assert "labels: unknown version" in text and "Predicted: the set of entity types" in text
    assert "50 %" not in text and text.count("100 %") == 1 and text.count("0 %") == 2  # of pictures, of generated
    assert "Kevin Love visits Köln" in text and "tiny diffusion, seed 7" in text
    assert "1 inside tags have no beginning" in text
    images = [attrs for tag, attrs in elements.tags if tag == "img"]
    assert len(images) == 4 and all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in images)
    bars = [attrs["style"] for tag, attrs in elements.tags if tag == "i" and attrs.get("class") in ("s0", "s1", "s2")
            and "style" in attrs]  # fmt: skip
    assert bars[:3] == ["width: 62.5%", "width: 25.0%", "width: 12.5%"]


def test_it_asks_for_nothing_and_runs_nothing(page):
    elements = Elements(page.read_text())
    for tag, attrs in elements.tags:
        assert tag not in ("script", "iframe", "object", "embed") and not any(name.startswith("on") for name in attrs)
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith("data:")
    policy = next(attrs["content"] for tag, attrs in elements.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "url(" not in page.read_text()
    assert EVIL in " ".join(elements.text)  # as text


def test_a_browser_shows_it(page, tmp_path):
    """One visit: the screenshot is not blank, the DOM has the posts, the console is silent."""
    browser = Page(tmp_path, size=(1280, 2200))
    try:
        browser.open(page.as_uri())
        dom, shot = Elements(browser.run("document.documentElement.outerHTML")), browser.picture()
    finally:
        browser.close()
    assert not browser.console
    assert dom.count("article", "post") == 4 and dom.count("rect", "region") == 4
    assert shot.shape == (2200, 1280, 3) and shot.reshape(-1, 3).std(0).min() > 15
    colours = set(map(tuple, np.unique(shot.reshape(-1, 3), axis=0).tolist()))
    # The bars of the scores and the rectangles of the regions are there, in the colours of the style sheet.
    assert {(0xC8, 0x55, 0x3D), (0xE0, 0xB0, 0x4A), (0x2F, 0x8F, 0x83), (0x00, 0x77, 0xC8)} <= colours


def test_runs_of_tokens():
    record = Record("1", tuple("abcdef"), ("B-PER", "B-PER", "I-PER", "I-LOC", "O", "O"))
    runs = [(part.text, part.kind, part.label) for part in entity_parts(record, {"PER": 1, "LOC": 2})]
    assert runs == [("a", "entity", "PER"), ("b c", "entity", "PER"), ("d", "orphan", "LOC"), ("e f", "", "")]
    pair = Record("1", tuple("abcdef"), head=(0, 3), tail=(2, 4), relation="x")
    runs = [(part.text, part.kind, part.label) for part in pair_parts(pair)]
    assert runs == [("a b", "head", "head"), ("c", "both", "head tail"), ("d", "tail", "tail"), ("e f", "", "")]


def test_relations_and_renormalised_scores(tmp_path):
    one = Record("0", ("Ada", "at", "X"), head=(0, 1), tail=(2, 3), relation="/a/b", scores=(0.0, 0.25, 0.75))
    info = {"name": "p", "task": "re", "labels": ("None", "/a/b"), "renormalised_scores": True}
    train = [dataclasses.replace(one, id=str(number)) for number in range(3)]
    write_dataset(tmp_path, info, {"train": train, "test": [dataclasses.replace(one, id="t")]})
    inspect_dataset(tmp_path, tmp_path / "sheet.html", limit=2)
    elements = Elements((tmp_path / "sheet.html").read_text())
    text = re.sub(r"\s+", " ", " ".join(elements.text))
    assert elements.count("mark", "head") == 2 and elements.count("mark", "tail") == 2
    styles = re.search(r"<style>(.*)</style>", (tmp_path / "sheet.html").read_text(), re.DOTALL)[1]
    assert not re.search(r"\.(head|tail|entity)\b", styles)  # the marks have their own look only
    assert (
        "RENORMALISED SCORES" in text
        and "unknown" in text
        and "2 of 4 posts , the first ones".replace(" ,", ",") in text
    )
    assert "few to say more than chance" in text


def test_the_choice_of_posts(root, tmp_path):
    def ids(**options):
        return [record.id for _, record in inspect_dataset(root, tmp_path / "x.html", **options)]

    assert ids(limit=2) == ["full", EVIL]
    assert ids(splits=["test"]) == ["broken"] and len(ids(limit=1)) == 1
    assert ids(limit=3, sample=1) == ids(limit=3, sample=1)
    assert len({tuple(ids(limit=2, sample=seed)) for seed in range(8)}) > 1
    with pytest.raises(DataError, match="no split 'dev'"):
        ids(splits=["dev"])
    with pytest.raises(ValueError, match="at least 1"):
        ids(limit=0)


def test_the_command(root, tmp_path):
    run = [sys.executable, "data_prep/inspect_dataset.py", str(root), f"--out={tmp_path / 'sheet.html'}", "--limit=2"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("2 posts, "), done.stderr
    assert json.loads((root / "dataset.json").read_text()) and len(read_dataset(root).splits["train"]) == 3
    done = subprocess.run([*run, "--split=dev"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("inspect_dataset: ")
