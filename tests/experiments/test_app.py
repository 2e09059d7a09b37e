"""The page and the JSON interface with a tiny model of random weights: one answer, every bound, nothing kept."""

import base64
import io
import json
import re
import threading
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

gradio = pytest.importorskip("gradio", reason="no gradio: the extra `app` is none of the core's tests")

import uvicorn  # noqa: E402

from experiments import app as command  # noqa: E402
from experiments.web.answers import Answers, Explained, Limits, RefusedError  # noqa: E402
from experiments.web.drawing import drawn, percent  # noqa: E402
from experiments.web.page import assembled, from_utf16, read_examples, with_page  # noqa: E402
from experiments.web.service import make_service  # noqa: E402
from tests.browser import Page  # noqa: E402
from tests.prediction.test_predict import root, tokenizer, with_pictures  # noqa: E402, F401 - fixtures
from tests.test_explain import POST  # noqa: E402
from tmrjax.explain import Explainer  # noqa: E402
from tmrjax.files import DataError  # noqa: E402

LIMITS = Limits(characters=200, picture_bytes=20_000, request_bytes=60_000, posts=3)
HOSTILE = "Jordan <script>alert(1)</script> ${1+1} {{value}} at the harbour"


def data_url(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def image(root):  # noqa: F811
    return (root / "a.png").read_bytes()


@pytest.fixture(scope="module")
def answers(with_pictures):  # noqa: F811
    return Answers(with_pictures, limits=LIMITS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def address(answers, image, folder, tmp_path_factory):
    """A server with the page and the interface."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(folder))
    posts = tmp_path_factory.mktemp("examples") / "posts.jsonl"
    (posts.parent / "a.png").write_bytes(image)
    posts.write_text(
        json.dumps({**POST, "text": HOSTILE, "scores": [0.25, 0.5, 0.25], "sides": {"objects": {}}}) + "\n"
    )
    about = command.about_model(answers.predictor, "runs/tiny")
    served = with_page(make_service(answers, about), answers, about, read_examples(posts, 8, LIMITS.picture_bytes))
    server = uvicorn.Server(uvicorn.Config(served, port=0, access_log=False, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join(10)
    patch.undo()


def ask(address, path, body=None):
    """(status, JSON or text); ``body`` is an object, or bytes."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as found:
            status, text = found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text.startswith(("{", "[")) else text


# ---------------------------------------------------------------------- answers


def test_the_interface_answers_as_the_predictor_does(address, with_pictures, image):  # noqa: F811
    expected = with_pictures.entities({**POST, "image": image, "id": 3})
    post = {**POST, "image": base64.b64encode(image).decode(), "id": 3}
    assert ask(address, "/api/predict", post) == (200, expected) and expected["entities"]
    status, found = ask(address, "/api/predict?explain=true", {**post, "scores": [0.2, 0.3, 0.5]})
    explanation = found.pop("explanation")
    exact = Explainer(with_pictures)({**POST, "image": image, "id": 3, "scores": [0.2, 0.3, 0.5]})
    assert status == 200 and found == exact.result and explanation["without_pictures"] == exact.without_pictures
    np.testing.assert_allclose(
        explanation["attention"]["image"]["patches"], exact.attention["image"].patches, atol=6e-5
    )
    assert explanation["scores"] == {"image": [0.2, 0.3, 0.5]} and explanation["words"][0] == [0, 6]


def test_a_batch_has_errors_in_their_place(address, with_pictures, image):  # noqa: F811
    posts = [{"text": "Jordan", "id": "a"}, {"id": 7, "text": "x", "image": "photo.jpg"}, 3]
    status, found = ask(address, "/api/predict_batch", {"posts": posts})
    first, second, third = found["results"]
    assert status == 200 and first == with_pictures.entities(posts[0])
    assert second["id"] == 7 and "post 1, 'image': no base64; expected a picture's file" in second["error"]
    assert third == {"id": None, "error": "post 2: found int, expected an object with 'text' or 'tokens'"}
    assert ask(address, "/api/predict_batch", {"posts": posts[:1] * 4})[0] == 413


def bomb():
    """A PNG of 100,000 x 100,000 pixels in a hundred bytes."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "a megabyte of text": ({"text": "word " * 10_000}, 413, "50,000 characters of text; at most 200"),
    "a bomb": ({"text": "a", "image": data_url(bomb())}, 422, "too large .*10000000000 pixels.* at most 40,000,000"),
    "an EPS named .jpg": ({"text": "a", "image": data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n", "jpeg")}, 422, "is no picture"),
    "a large file": ({"text": "a", "image": data_url(bytes(20_010))}, 413, r"'image': 0.0 MB; at most 0.02 MB"),
    "a path": ({"text": "a", "image": "/etc/passwd"}, 422, "no path and no URL"),
    "a number as picture": (b'{"text": "a", "image": 3}', 422, "image: input should be a valid string"),
    "a large request": ({"text": "a" * 70_000}, 413, "a request of more than 0.06 MB"),
    "no JSON": (b'{"text": ', 422, "the request: no JSON"),
    "nested JSON": (b"[" * 50_000, 400, "error parsing the body"),
    "an unknown key": ({"text": "a", "txet": 1}, 422, "txet: extra inputs are not permitted"),
    "no word": ({"text": " "}, 422, "the post: found no word|post 0: found no word"),
    "scores of NaN": (b'{"text": "a", "scores": [NaN, 0, 1]}', 422, "expected 3 finite numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_one_sentence(address, name):
    body, status, message = BAD[name]
    found_status, found = ask(address, "/api/predict", body)
    assert (found_status, list(found)) == (status, ["error"]), found
    assert re.search(message, found["error"]) and "\n" not in found["error"]


def test_the_queue_and_the_time_are_bounded(with_pictures, monkeypatch):  # noqa: F811
    answers, go, begun = (
        Answers(with_pictures, limits=Limits(waiting=1, seconds=30)),
        threading.Event(),
        threading.Event(),
    )
    monkeypatch.setattr(answers, "_results", lambda *_: begun.set() or go.wait(30))
    threads = [threading.Thread(target=answers.predict_one, args=({"text": "a"},)) for _ in range(2)]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    end = time.monotonic() + 10
    while answers._places._value:  # until the second one waits
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(RefusedError, match="busy: 1 requests are waiting already") as refused:
        answers.predict_one({"text": "a"})
    go.set()
    for thread in threads:
        thread.join(10)
    assert refused.value.status == 503 and answers.predict_one({"text": "a"})  # its place is free again
    late = Answers(with_pictures, limits=Limits(seconds=0.05))
    monkeypatch.setattr(late, "_results", lambda *_: threading.Event().wait(0.3))
    with pytest.raises(RefusedError, match=r"no answer within 0\.05 seconds"):
        late.predict_one({"text": "a"})


def test_many_pairs_are_refused(with_pictures):  # noqa: F811
    answers = Answers(with_pictures, entities=with_pictures, limits=Limits(pairs=2))
    with pytest.raises(RefusedError, match=r"4 entities, which are more than 2 pairs: give 'head'"):
        answers.predict_one({"text": "Jordan at the harbour"})


def test_the_estimator_gives_scores(with_pictures, image, monkeypatch):  # noqa: F811
    from experiments.web import answers as module

    seen = []
    monkeypatch.setattr(module, "encode_texts", lambda _, texts, settings: seen.append(texts) or [[1, 2]])
    monkeypatch.setattr(module, "estimator_pixels", lambda picture, settings: picture.size)

    class Scorer:
        estimator = types.SimpleNamespace(tokenizer=None, texts=None, pictures=None)

        def __call__(self, texts, pictures):
            assert (texts, pictures) == ([[1, 2]], [(30, 20)])
            return np.float32([[0.5, 0.25, 0.25]])

    answers = Answers(with_pictures, scorer=Scorer())
    assert answers.explain({"text": "Jordan", "image": data_url(image)}).scores == {"image": [0.5, 0.25, 0.25]}
    given = {"text": "Jordan", "image": data_url(image), "scores": [0, 0, 1]}
    assert answers.explain(given).scores == {"image": [0, 0, 1]} and seen == [["Jordan"]]


# ---------------------------------------------------------------------- nothing is kept, nothing is fetched


def test_nothing_is_written_and_nothing_logged(address, answers, folder, monkeypatch, caplog, capfd):
    def failing(post):
        raise KeyError(post["text"])

    monkeypatch.setattr(answers, "_explain", failing)
    assert ask(address, "/api/predict?explain=true", {"text": "a secret"})[0] == 500
    joined = {"data": ["a secret"], "fn_index": 0, "session_hash": "a"}  # too few values for the page
    assert ask(address, "/gradio_api/queue/join", joined)[0] == 200
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=a") as stream:
        assert b"the request is none of this page" in stream.read(2000)
    for closed in ("upload", "file=/etc/hostname", "proxy=http://localhost", "vibe-edit", "call/read", "run/read"):
        assert ask(address, f"/gradio_api/{closed}", b"{}")[0] == 404
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert "KeyError in " in caplog.text and "secret" not in caplog.text + "".join(capfd.readouterr())


def test_every_page_keeps_to_itself(address):
    for path in ("/", "/docs"):
        with urllib.request.urlopen(address + path) as found:
            page, policy = found.read().decode(), found.headers["content-security-policy"]
        assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?https?://""", page)
        assert "default-src 'self'" in policy and "connect-src 'self' data: blob:;" in policy
    assert "POST /api/predict_batch" in page and "20000" in page
    status, described = ask(address, "/openapi.json")
    assert status == 200 and {"/api/predict", "/api/predict_batch", "/api/health"} <= set(described["paths"])
    health = ask(address, "/api/health")[1]
    assert (health["status"], health["labels"], health["limits"]["posts"]) == ("ok", ["PER", "LOC"], 3)


READ = "document.querySelector('#read').click()"
ANSWERED = "!!document.querySelector('#answer .t-answer, #answer .t-fault')"
CHOOSE = """(() => {
  const bytes = Uint8Array.from(atob('%s'), (c) => c.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], 'a.%s'));
  const field = document.querySelector('#image input');
  field.files = files.files;
  field.dispatchEvent(new Event('change', {bubbles: true}));
})()"""
TYPE = """(() => {
  const text = document.querySelector('#text textarea');
  text.value = %s;
  text.dispatchEvent(new Event('input', {bubbles: true}));
})()"""


TEXT = """(() => {
  const post = document.querySelector('.t-post').cloneNode(true);
  post.querySelectorAll('.t-label').forEach((one) => one.remove());
  return post.textContent;
})()"""
# The list opens and takes a choice at the mouse button's way down.
EXAMPLE = """(async () => {
  const down = (one) => one.dispatchEvent(new MouseEvent('mousedown', {bubbles: true}));
  const list = document.querySelector('input[role=listbox]');
  list.focus();
  down(list);
  while (!document.querySelector('[role=option]')) await new Promise((go) => setTimeout(go, 20));
  down(document.querySelector('[role=option]'));
})()"""


def test_the_page_on_a_phone(address, image, with_pictures, tmp_path):  # noqa: F811
    """Text and picture in, the answer out, with and without a picture; nothing is asked of another host."""
    page = Page(tmp_path, size=(390, 844))
    try:
        page.open(address + "/")
        page.until("!!document.querySelector('#read') && !!document.querySelector('#image input')")
        page.run(TYPE % json.dumps(HOSTILE))
        page.run(READ)
        page.until(ANSWERED)
        assert page.run(TEXT) == HOSTILE
        assert page.run("document.querySelectorAll('#answer figure').length") == 0
        page.run(CHOOSE % (base64.b64encode(image).decode(), "png"))
        page.until("!!document.querySelector('#image img')")
        page.run(READ)
        page.until("document.querySelectorAll('#answer figure').length == 1")
        entities = with_pictures.entities({"text": HOSTILE, "image": image})["entities"]
        assert page.run("document.querySelectorAll('.t-post mark').length") == len(entities) > 0
        shown = "[...document.querySelectorAll('.t-layer')].map((one) => getComputedStyle(one).display)"
        assert page.run(shown) == ["block", *["none"] * 5]
        page.run("document.querySelectorAll('.t-choices input')[2].click()")
        assert page.run(shown)[:3] == ["none", "none", "block"]
        assert page.run("document.documentElement.scrollWidth") == 390
        page.run(CHOOSE % (base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode(), "jpg"))
        page.until("document.querySelector('#image img').naturalWidth == 0")
        page.run(READ)
        page.until("!!document.querySelector('#answer .t-fault')")
        assert "found a file that is no picture" in page.run("document.querySelector('.t-fault').innerText")
        page.run(TYPE % '"x"')
        page.run(EXAMPLE)
        page.until("document.querySelectorAll('#answer .t-scores .t-bar').length == 3")
        assert page.run(TEXT) == HOSTILE and page.run("document.querySelectorAll('.t-box').length") == 2
        asked = page.run("performance.getEntriesByType('resource').map((one) => one.name)")
        assert len(asked) > 5 and [one for one in asked if not one.startswith((address, "data:", "blob:"))] == []
        assert [line for line in page.console if "Content Security Policy" in line or "exceptionThrown" in line] == []
    finally:
        page.close()


# ---------------------------------------------------------------------- forms and drawings


def test_places_of_a_browser_are_places_of_python():
    text = "👍🏽 Ada 👍 met Bob"
    place = len(text[: text.index("Bob")].encode("utf-16-le")) // 2
    assert [text[start:end] for start, end in [from_utf16(text, place, place + 3)]] == ["Bob"]


def test_a_form_becomes_a_post():
    pair = {"head": {"start": 0, "end": 3, "text": "Ada"}, "tail": {"start": 8, "end": 11, "text": "Bob"}}
    further = '{"phrases": ["Bob"]}'
    assert assembled("Ada met Bob", ("data:,", None), further, pair) == {
        "text": "Ada met Bob", "image": "data:,", "phrases": ["Bob"], "head": [0, 3], "tail": [8, 11],
    }  # fmt: skip
    for text, rest, message in (
        ("Ada saw Bo", "", "the tail 'Bob' stands elsewhere now"),
        ("Ada met Bob", "{", "more of the post"),
        ("Ada met Bob", '{"image": "/etc/passwd"}', "expected an object with some of phrases"),
    ):
        with pytest.raises(RefusedError, match=message):
            assembled(text, (None, None), rest, pair)


def test_examples_are_read_once_and_checked(tmp_path, image):
    (tmp_path / "a.png").write_bytes(image)
    (tmp_path / "posts.jsonl").write_text('{"text": "x", "image": "a.png", "id": 3}\n\n{"text": "y"}\n')
    with pytest.raises(DataError, match=r"posts\.jsonl:2: found no post"):
        read_examples(tmp_path / "posts.jsonl", 2, 10**6)
    picture = f"data:;base64,{base64.b64encode(image).decode()}"
    assert read_examples(tmp_path / "posts.jsonl", 1, 10**6) == [{"text": "x", "image": picture}]


def test_a_drawing(answers, image):
    """Places and strengths of patches, the words that a box looked at, scores, what was not read."""
    found = answers.explain({**POST, "image": data_url(image), "scores": [0.25, 0.5, 0.25]})
    html = drawn(found, ["PER", "LOC"])
    patches = found.explanation.attention["image"].patches
    first = re.search(r'<g class="t-layer">(.*?)</g>', html)[1]
    told = np.array([float(value) for value in re.findall(r"<title>([\d.]+)</title>", first)])
    words = [word for word in range(4) if patches[..., word].max() == patches.max((0, 1)).max()]
    np.testing.assert_allclose(told, patches[..., words[0]].ravel(), atol=6e-4)
    # 30 x 20 drawn as 480 x 320, of which the middle 320 x 320 was read in 2 x 2 patches.
    places = [(80, 0), (240, 0), (80, 160), (240, 160)]
    assert re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', first) == [(f"{x:.1f}", f"{y:.1f}") for x, y in places]
    assert html.count('class="t-box"') == 2 and re.search(r'class="t-boxed"[^>]*>(the|harbour) 0\.\d\d<', html)
    assert "<span>complement</span>" in html and "50 %" in html and "with pictures" in html
    alone = drawn(answers.explain({"text": '<b>Jordan</b> & "more"'}), ["PER", "LOC"])
    post = re.sub(
        '<span class="t-label">.*?</span>|</?mark[^>]*>', "", re.search('<p class="t-post">(.*?)</p>', alone)[1]
    )
    assert post == "&lt;b&gt;Jordan&lt;/b&gt; &amp; &quot;more&quot;"
    assert "Not given, and so not read: picture." in alone


def test_relations_are_drawn_with_none(answers):
    head, tail = {"start": 0, "end": 3, "text": "Ada"}, {"start": 8, "end": 11, "text": "Bob"}
    base = {"text": "Ada <i> Bob", "masked": [], "unread_words": 0, "unknown_words": 0, "unread_pairs": 2}
    results = [base | {"relations": [{"head": head, "tail": tail, "relation": name, "score": 0.9996}]}
               for name in ("peer", "None")]  # fmt: skip
    explanation = types.SimpleNamespace(
        result=results[0], without_pictures=results[1], words=((0, 3),), attention={}, pair=(head, tail)
    )
    html = drawn(Explained(explanation, {}, {}), ["None", "peer"])
    assert (
        html.count("<mark") == 2
        and "</mark> &lt;i&gt; <mark" in html
        and "peer" in html
        and "none (99.9 %)" in html
        and "2 pairs too far apart" in html
    )
    assert percent(1.0) == "100.0 %" and percent(0.5) == "50 %"


# ---------------------------------------------------------------------- the command


def test_the_command(with_pictures, monkeypatch, tmp_path):  # noqa: F811
    served, loaded = [], []
    monkeypatch.setattr(command, "serve", lambda *arguments: served.append(arguments))
    monkeypatch.setattr(
        command.Predictor, "load", lambda name, **options: loaded.append((name, options)) or with_pictures
    )
    flags = {f"max_{name}": value for name, value in vars(Limits(posts=5)).items()} | {
        "model": "runs/a", "entities": "runs/b", "estimator": None, "calibrated": True, "examples": None,
        "number_of_examples": 8, "host": "127.0.0.1", "port": 7860,
    }  # fmt: skip
    monkeypatch.setattr(command, "FLAGS", types.SimpleNamespace(**flags))
    command.main(None)
    ((answers, *rest),) = served
    assert rest == ["runs/a", None, 8, "127.0.0.1", 7860] and answers.limits.posts == 5 and answers.entities
    assert loaded == [(name, {"calibrated": True, "devices": 1}) for name in ("runs/a", "runs/b")]


def test_gradio_is_imported_by_the_page_alone():
    here = Path(command.__file__).parent.parent
    importing = [path for package in ("tmrjax", "experiments", "data_prep") for path in (here / package).rglob("*.py")
                 if re.search(r"^\s*(import|from) gradio", path.read_text(encoding="utf-8"), re.MULTILINE)]  # fmt: skip
    assert [path.name for path in importing] == ["page.py"]
    assert gradio.__version__
