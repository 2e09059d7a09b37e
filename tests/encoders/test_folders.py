"""Folders and hub names: a cache that the test writes, and a hub on this machine that the real client talks to."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tmrjax.encoders.folders import Folder, resolve

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with two commits of one model; main is the second."""
    folder = tmp_path / "hub" / "models--owner--name"
    for commit in (FIRST, SECOND):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text(json.dumps({"commit": commit}))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SECOND)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_name_in_the_cache_gives_its_folder_and_commit(cache):
    snapshots = cache / "models--owner--name" / "snapshots"
    assert resolve("owner/name") == Folder(snapshots / SECOND, "owner/name", SECOND)
    # A checkpoint that pins the older commit reads that one, though main has moved on.
    assert resolve("owner/name", revision=FIRST) == Folder(snapshots / FIRST, "owner/name", FIRST)
    assert resolve("owner/name", revision="main").revision == SECOND


def test_a_folder_wins_over_a_hub_name(cache, tmp_path):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve("owner/name") == Folder(Path("owner/name"), "owner/name", None)
    assert resolve(tmp_path / "owner" / "name").path == tmp_path / "owner" / "name"
    with pytest.raises(ValueError, match=r"owner/name is a folder of this machine, which has no revision '1111"):
        resolve("owner/name", revision=FIRST)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bert").mkdir()
    assert resolve("~/bert").path == tmp_path / "bert"


@pytest.mark.parametrize(
    "name", ["./owner/name", "../owner", "/absent/encoder", "a/b/c", "owner/na me", "~/absent", "x--y"]
)
def test_what_is_neither_a_folder_nor_a_hub_name(cache, name):
    with pytest.raises(FileNotFoundError, match=r"no such folder \(seen from .*owner/name"):
        resolve(name)


def test_a_file_and_an_empty_name(cache, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotADirectoryError, match=r"config\.json: a file; expected the folder"):
        resolve("config.json")
    with pytest.raises(ValueError, match="an empty name"):
        resolve("")


def test_what_is_not_in_the_cache_while_offline(cache):
    for name, revision in (("owner/other", None), ("bert-base-uncased", None), ("owner/name", "3" * 40)):
        with pytest.raises(FileNotFoundError) as error:
            resolve(name, revision=revision)
        for part in (name, revision or "", str(cache), "HF_HUB_OFFLINE forbids", f"hf download {name}"):
            assert part in str(error.value)


# --- the hub -----------------------------------------------------------------------------------------------------

OFFERED = {
    "config.json": b"{}",
    "vocab.txt": b"[PAD]\n",
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"never fetched",
    "README.md": b"never fetched",
    "onnx/model.safetensors": b"never fetched",
}
REFUSED = {  # of model owner/<key>: status and the hub's error code
    "gated": (403, "GatedRepo"),
    "absent": (401, "RepoNotFound"),
    "moved": (404, "RevisionNotFound"),
}


class Hub(BaseHTTPRequestHandler):
    """What the hub answers to its own client: a model's list of files, and files."""

    def do_GET(self, body=True):
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, repository, *rest = parts[2:] if api else parts
        status, code = REFUSED.get(repository, (200, None)) if owner == "owner" else (404, "RepoNotFound")
        if code:
            return self.answer(status, b'{"error": "no"}', {"X-Error-Code": code}, body)
        if api:  # what a model is (huggingface_hub below 1), or all of its files (above)
            files = [{"rfilename": name} for name in OFFERED]
            found = {"id": "owner/name", "modelId": "owner/name", "sha": FIRST, "siblings": files, "tags": []}
            if rest[0] == "tree":
                found = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in OFFERED.items()
                ]
            return self.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body)
        content = OFFERED["/".join(rest[2:])]
        etag = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": FIRST}, body)

    def do_HEAD(self):
        self.do_GET(body=False)

    def answer(self, status, content, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


PROGRAM = """
import json, sys
from tmrjax.encoders.folders import resolve
answers = {}
for name in sys.argv[1:]:
    try:
        answers[name] = list(map(str, resolve(name)))
    except Exception as error:
        answers[name] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


def ask(port, home, *names):
    """In a process of its own: the client reads where its hub is when it is imported."""
    client = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    client |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *names]
    result = subprocess.run(
        command, env={**os.environ, **client}, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(result.stdout.splitlines()[-1])


def test_the_hub_is_asked_for_what_is_needed_and_its_refusals_are_explained(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        answers = ask(server.server_port, tmp_path, "owner/name", "owner/gated", "owner/absent", "owner/moved")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    path, name, revision = answers["owner/name"]
    assert (name, revision) == ("owner/name", FIRST)
    fetched = {file.relative_to(path).as_posix(): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}
    assert fetched == {key: value for key, value in OFFERED.items() if value != b"never fetched"}
    for name, kind, message in (
        ("owner/gated", "PermissionError", "access is granted on request"),
        ("owner/absent", "FileNotFoundError", "neither a folder"),
        ("owner/moved", "FileNotFoundError", "no such commit, branch or tag"),
    ):
        assert answers[name][0] == kind
        assert f"{name}: " in answers[name][1] and message in answers[name][1]

    # The hub is gone: what was fetched is in the cache, what was not can't be had.
    answers = ask(server.server_port, tmp_path, "owner/name", "owner/other")
    assert answers["owner/name"] == [path, "owner/name", FIRST]
    kind, message = answers["owner/other"]
    assert kind == "FileNotFoundError"
    assert "the hub can't be reached" in message and "hf download owner/other" in message
