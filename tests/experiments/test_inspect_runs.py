"""The page of posts: what stands on it, what its filters, keys and search do in a real browser, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.analysis.posts_page import json_for_html
from experiments.inspect_runs import inspect_runs
from tests.browser import Page
from tests.experiments.fabricated_runs import write_run
from tmrjax.files import DataError
from tmrjax.records import Generated, Grounding, Record, write_dataset
from tmrjax.training.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
EVIL = '</script><script>console.error("evil")</script><img src=x onerror=console.error(1)><!--'
POSTS = 60


def span(start, label, probability=None):
    found = {"start": start, "end": start + 1, "label": label}
    return found if probability is None else {**found, "probability": probability}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Posts of three words with two entities; pictures shared by posts, a damaged one, words that want to be HTML."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    for name, side in (("a", 64), ("b", 48)):
        pixels = np.random.default_rng(side).integers(0, 256, (side, side * 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{name}.png")
    (folder / "images/broken.png").write_bytes((folder / "images/a.png").read_bytes()[:100])
    records = []
    for number in range(POSTS):
        generated = Generated("images/b.png", prompt=f"prompt {number}", seed=7, model="tiny") if number % 2 else None
        records.append(
            Record(
                f"post {number}", ("Ada", "visits", f"town{number}"), ("B-PER", "O", "B-LOC"), image="images/a.png",
                regions=((0.25, 0.25, 0.5, 0.75),), grounding=(Grounding("Ada", 0.5),), phrases=("Ada",),
                generated=generated, scores=((0.7, 0.2, 0.1), (0.1, 0.2, 0.7))[number % 2],
            )
        )  # fmt: skip
    records[1] = Record(EVIL, (EVIL, "and", "others"), ("B-PER", "O", "O"), image="images/broken.png", phrases=(EVIL,))
    write_dataset(folder, {"name": EVIL, "task": "ner", "labels": ("PER", "LOC"), "synthetic": True}, {"test": records})
    return folder


def rows_of(wrong: int) -> list[dict]:
    """Predictions for the posts of ``root``; of the last ``wrong`` the towns are persons, and Ada is missed."""
    rows = []
    for number in range(POSTS):
        words, gold = ["Ada", "visits", f"town{number}"], [span(0, "PER"), span(2, "LOC")]
        if number == 1:
            words, gold = [EVIL, "and", "others"], [span(0, "PER")]
        predicted = [{**one, "probability": 0.9} for one in gold]
        if number >= POSTS - wrong:
            predicted = [span(2, "PER", 0.4)]
        identifier = EVIL if number == 1 else f"post {number}"
        rows.append({"id": identifier, "tokens": words, "gold": gold, "predicted": predicted})
    return rows


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / f"{method}-{seed}", rows_of(wrong), method=method, seed=seed, root=root)
        for method, seed, wrong in (("tmr", 0, 0), ("tmr", 1, 3), ("hvpnet", 0, 10))
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep/page.html"
    found = inspect_runs(runs, out)
    assert (found.posts, found.pictures, found.unreadable) == (POSTS, 2, ("images/broken.png",))
    return out


def content_of(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page.read_text())[1])


def test_what_stands_in_it(page):
    content = content_of(page)
    assert [(run["name"], run["seed"]) for run in content["runs"]] == [("tmr", 0), ("tmr", 1), ("hvpnet", 0)]
    assert content["runs"][0]["f1"] == 1 and content["runs"][0]["counts"]["right"] == 2 * POSTS - 1
    assert content["runs"][2]["counts"] | {"right": 0} == {
        "right": 0, "span": 0, "type": 10, "span and type": 0, "missed": 10, "invented": 0,
    }  # fmt: skip
    last = content["posts"][-1]
    assert last["found"][0]["missed"] == [] and last["found"][2] == {
        "spans": [[2, 3, "PER", 0.4, "type"]],
        "missed": [0],
    }
    assert (
        last["picture"] == {"number": 0, "boxes": [[0.25, 0.25, 0.25, 0.5, "Ada"]]}
        and last["made_by"] == "tiny, seed 7"
    )
    text = page.read_text()
    assert "SYNTHETIC DATA" in text and text.count('<script type="text/plain"') == 3
    assert "<script>console" not in text and "<img" not in text


def test_json_cannot_end_its_element():
    text = json_for_html({"a": "</script><!--\u2028"})
    assert "<" not in text and json.loads(text) == {"a": "</script><!--\u2028"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Page(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


HELPERS = """
const count = () => Number(document.getElementById("count").textContent.split(" ")[0]);
const ids = () => [...document.querySelectorAll("#posts code")].map((one) => one.textContent);
const set = (id, value) => { const one = document.getElementById(id);
  if (one.type === "checkbox") one.checked = value; else one.value = value;
  one.dispatchEvent(new Event("change", {bubbles: true})); };
"""


@pytest.fixture
def opened(browser, page):
    browser.console.clear()
    browser.open(page.as_uri())
    browser.run(HELPERS)
    yield browser
    assert not browser.console, browser.console


def test_filters(opened):
    def after(script: str) -> int:
        return opened.run(f"{script}; count()")

    assert after("") == POSTS
    assert after('set("kind", "missed")') == 10 and opened.run("location.hash") == "#kind=missed"
    assert after('set("run", "1")') == 3
    assert opened.run("ids()") == [f"post {n}" for n in range(POSTS - 3, POSTS)]
    assert after('set("label", "LOC")') == 0 and not opened.run('document.getElementById("nothing").hidden')
    assert after('document.getElementById("reset").click()') == POSTS
    assert after('set("label", "LOC"); set("errors", true)') == 10  # towns that are persons, though Ada is missed too
    assert after('set("kind", "missed"); set("label", "LOC")') == 0
    assert after('document.getElementById("reset").click(); set("score", "strengthen")') == POSTS // 2 - 1
    assert after('set("score", "unknown")') == 1
    assert after('document.querySelector("#counts tbody tr:nth-child(3) td:nth-child(6) button").click()') == 10
    assert opened.run("location.hash") == "#run=2&kind=type"


def test_keys_and_search(opened):
    opened.press("d")
    assert opened.run("count()") == 10
    opened.press("d", "e")
    assert opened.run("count()") == 10 and opened.run("location.hash") == "#errors=1"
    opened.press("Escape", "/", *"TOWN12")
    opened.until('count() === 1 && ids()[0] === "post 12"')
    opened.press("Escape", "Escape")  # out of the field, then all posts
    assert opened.run("count()") == POSTS and opened.run('document.getElementById("search").value') == ""
    opened.press("/", *"<script")
    opened.until("count() === 1")
    assert opened.run("ids()") == [EVIL]
    opened.press("Escape", "Escape", "j", "ArrowDown", "j", "k")
    assert opened.run('document.querySelectorAll(".current").length') == 1
    assert opened.run('document.activeElement.querySelector("code").textContent') == EVIL
    assert opened.run("document.activeElement.getBoundingClientRect().top") > 0
    opened.press("g")
    assert opened.run("count()") == POSTS // 2 - 1  # those with a generated picture
    assert opened.run('document.querySelector(".prompt").textContent') == "prompt 3 (tiny, seed 7)"
    opened.press("?")
    assert opened.run('document.getElementById("help").open')
    opened.press("g")  # keys rest while help is shown
    assert opened.run("count()") == POSTS // 2 - 1


def test_only_what_is_on_the_screen_is_drawn(opened):
    drawn = '[...document.querySelectorAll("#posts > li")].map((one) => one.children.length > 0)'
    last = f"{drawn}.at(-1)"
    opened.until(f"{drawn}.filter(Boolean).length > 6")
    top = opened.run(drawn)
    assert all(top[:6]) and not top[-1] and sum(top) < POSTS / 2
    opened.until('[...document.querySelectorAll("#posts img")].every((one) => one.complete && one.naturalWidth > 0)')
    opened.until(f"window.scrollTo(0, document.documentElement.scrollHeight), {last} && !{drawn}[0]")
    assert sum(opened.run(drawn)) < POSTS / 2
    opened.until(f"window.scrollTo(0, 0), {drawn}[0] && !{last}")


def test_an_address_is_a_choice_and_nothing_that_a_post_holds_runs(browser, page):
    browser.console.clear()
    browser.open(page.as_uri() + "#run=2&kind=missed&label=PER")
    assert browser.run('document.getElementById("count").textContent') == "10 of 60 posts"
    colours = set(map(tuple, np.unique(browser.picture().reshape(-1, 3), axis=0).tolist()))
    assert {(0xC8, 0x55, 0x3D), (0xE0, 0xB0, 0x4A), (0x2F, 0x8F, 0x83), (0x00, 0x77, 0xC8)} <= colours
    browser.open(page.as_uri() + "#search=script")
    assert browser.run('document.querySelector("#posts code").textContent') == EVIL
    assert browser.run('document.querySelectorAll("#posts script, #posts img").length') == 0
    assert not browser.console


def test_relations_and_files_of_other_pictures(tmp_path):
    record = Record("a", ("Ada", "in", "Rome"), head=(0, 1), tail=(2, 3), relation="/per/loc/in")
    records = [record, Record("b", ("Bo", "in", "Ulm"), head=(0, 1), tail=(2, 3), relation="None")]
    write_dataset(tmp_path / "data", {"name": "p", "task": "re", "labels": ("None", "/per/loc/in")}, {"test": records})

    def rows(first, second):
        gold = {"a": "/per/loc/in", "b": "None"}
        return [
            {"id": one.id, "tokens": list(one.tokens), "head": [0, 1], "tail": [2, 3], "gold": gold[one.id],
             "gold_probability": 0.25, "predicted": found, "probability": 0.75}
            for one, found in zip(records, (first, second), strict=True)
        ]  # fmt: skip

    run = write_run(tmp_path / "run", rows("/per/loc/in", "None"), task="re", root=tmp_path / "data")
    other = write_run(tmp_path / "other", rows("None", "/per/loc/in"), task="re", root=tmp_path / "data")
    file = tmp_path / "test-grey.jsonl"
    file.write_bytes((other / "predictions/test.jsonl").read_bytes())
    about = json.loads((other / "predictions/test.jsonl.about.json").read_text())
    about_file = tmp_path / "test-grey.jsonl.about.json"
    about_file.write_text(json.dumps({**about, "pictures": "grey", "workdir": str(run)}))
    inspect_runs([run, file], tmp_path / "page.html")
    content = content_of(tmp_path / "page.html")
    assert [one["name"] for one in content["runs"]] == ["tmr", "tmr, pictures=grey"]
    assert content["runs"][1]["counts"] == {"right": 0, "relation": 0, "missed": 1, "invented": 1}
    assert content["posts"][0]["found"][1] == {
        "relation": "None", "kind": "missed", "probability": 0.75, "gold_probability": 0.25,
    }  # fmt: skip
    assert content["posts"][1]["found"][0]["kind"] is None
    with pytest.raises(CheckpointError, match=r"predictions of test, expected those of dev; see --split"):
        inspect_runs([file], tmp_path / "page.html", split="dev")
    about_file.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="does not say of what run"):
        inspect_runs([file], tmp_path / "page.html")
    about_file.unlink()
    with pytest.raises(CheckpointError, match=r"no test-grey\.jsonl\.about\.json beside it"):
        inspect_runs([file], tmp_path / "page.html")


def test_what_does_not_fit_is_refused(runs, root, tmp_path):
    out = tmp_path / "page.html"
    with pytest.raises(ValueError, match="name the workdirs of finished runs"):
        inspect_runs([], out)
    other = write_run(tmp_path / "other", rows_of(0)[:-1], root=root)
    with pytest.raises(CheckpointError, match=r"cannot be compared: they differ in their test set"):
        inspect_runs([runs[0], other], out)
    records = [Record("x", ("a",), ("O",))]
    write_dataset(tmp_path / "data", {"name": "n", "task": "ner", "labels": ("PER", "LOC")}, {"test": records})
    with pytest.raises(DataError, match=r"60 of 60 posts not in test, or with other words; 'post 0' first.*--data"):
        inspect_runs(runs, out, data=str(tmp_path / "data"))
    assert not out.exists()
    command = [sys.executable, "experiments/inspect_runs.py", str(tmp_path), f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"inspect_runs: {tmp_path}: no run (no config.json)")
    command = [*command[:2], str(runs[0]), f"--out={out}", "--limit=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "wrote" in done.stdout and "5 posts" in done.stdout, done.stderr
