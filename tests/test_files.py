"""What every reader of files shares: hostile JSON is a clear error, only regular files are opened, the umask holds."""

import json
import os
import stat
import time

import pytest

from tmrjax import files
from tmrjax.files import DataError, open_regular, parse_json, read_bytes, write_atomic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 200_000, "more than 100 levels"),
        (b"[" * 150 + b"]" * 150, "more than 100 levels"),
        (b'{"a":' * 101 + b"{}" + b"}" * 101, "more than 100 levels"),
        (b"1" * 5_000, "a number that cannot be read"),
        (b'{"scores": [1e999]}', "the number 1e999"),
        (b"[NaN]", "the number NaN"),
        (b"[-Infinity]", "the number -Infinity"),
        (b'{"id": "\\ud800"}', "a lone surrogate in 'id'"),
        (b'{"a": {"b": ["x", "\\udfff"]}}', r"a lone surrogate in 'a.b\[1\]'"),
        (b'{"\\ud800": 1}', "a lone surrogate in 'a key'"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' more than once"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' more than once"),
        (b"\xff", "not UTF-8"),
        (b'{"a": 1', "malformed JSON"),
    ],
)
def test_hostile_json_is_a_clear_error_with_its_place(text, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_json(text, "x.jsonl:7")
    assert str(caught.value).startswith("x.jsonl:7: found ")


def test_ordinary_json_is_read_as_it_is():
    value = {"a": [1, 2.5, -3e-7, None, True], "b": {"c": "\u2028 🚀"}, "d": 10**300, "e": [[0.1] * 4] * 200}
    assert parse_json(json.dumps(value).encode(), "x") == value  # the rocket is a pair of escapes: no lone surrogate
    deep = b"[" * 100 + b"1" + b"]" * 100
    assert parse_json(deep, "x") == json.loads(deep)


def test_many_keys_take_linear_time():
    """200,000 keys; with a count for each of them this would take the better part of an hour."""
    text = json.dumps({str(number): 0 for number in range(200_000)}).encode()
    began = time.process_time()
    assert len(parse_json(text, "x")) == 200_000
    with pytest.raises(DataError, match="'7' more than once"):
        parse_json(text[:-1] + b', "7": 1}', "x")
    assert time.process_time() - began < 10


def test_a_pipe_a_device_and_a_folder_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", "/dev/null"):
        with pytest.raises(DataError, match="a pipe, a socket or a device"):
            read_bytes(path)
    with pytest.raises(DataError, match="a folder"):
        read_bytes(tmp_path)
    with pytest.raises(DataError, match="NUL character"):
        read_bytes("a\0b")
    with pytest.raises(DataError, match="No such file"):
        read_bytes(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"abc")
    assert read_bytes(tmp_path / "file") == b"abc"


def test_a_file_that_becomes_a_pipe_after_the_look_is_refused_too(tmp_path, monkeypatch):
    path, look = tmp_path / "a", os.stat
    path.write_bytes(b"abc")

    def stat_then_replace(*arguments, **options):
        status = look(*arguments, **options)
        path.unlink()
        os.mkfifo(path)
        return status

    monkeypatch.setattr(files.os, "stat", stat_then_replace)
    with pytest.raises(OSError, match="a pipe"):
        open_regular(path)


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_written_file_has_the_mode_that_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "a", b"private")
        write_atomic(tmp_path / "a", b"again")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_bytes() == b"again" and os.listdir(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]
