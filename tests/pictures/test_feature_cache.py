"""The feature cache: computed once, found again by content, whole after every interruption."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from tmrjax.pictures import requests as requests_module
from tmrjax.pictures.cache import FeatureCache
from tmrjax.pictures.decode import PictureError, load_decoded, load_picture
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.pictures.requests import PictureRequest

SIZE, BATCH = 8, 4
SETTINGS = PictureSettings(SIZE, 10)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def maps_of(batch):
    """Stands in for a ResNet: 4 patches of 5 channels, each from its own quarter of the picture alone."""
    half = SIZE // 2
    quarters = SETTINGS.normalise(batch).reshape(-1, 2, half, 2, half, 3).mean((2, 4)).reshape(-1, 4, 3)
    return quarters @ WEIGHTS


def tokens_of(batch):
    return {"tokens": maps_of(batch)}


def states_of(batch):
    """All that an encoder gives; the stages are of unlike shapes."""
    maps = maps_of(batch)
    stages = (maps[:, :, None, :3], maps.reshape(-1, 2, 2, 5) + 1, maps[:, :1, None])
    return {"pooled": maps.mean(1), "stages": stages, "tokens": maps}


class Encoder:
    """Counts what it is asked for; stops at a given call."""

    def __init__(self, stop_at=None):
        self.calls, self.pictures, self.stop_at = 0, 0, stop_at

    def __call__(self, batch):
        assert batch.shape == (BATCH, SIZE, SIZE, 3) and batch.dtype == np.uint8
        if self.stop_at is not None and self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.pictures += int(np.any(batch, axis=(1, 2, 3)).sum())
        return tokens_of(batch)


@pytest.fixture
def requests(tmp_path):
    """Ten pictures, four of them also in a box; the last is a copy of the first."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(1)
    paths = [folder / f"{number}.png" for number in range(10)]
    for path in paths[:-1]:
        Image.fromarray(generator.integers(0, 255, (12, 15, 3), np.uint8)).save(path)
    paths[-1].write_bytes(paths[0].read_bytes())
    box = (0.1, 0.2, 0.7, 0.9)
    return [*(PictureRequest(path, None) for path in paths), *(PictureRequest(path, box) for path in paths[:4])]


def build(directory, requests, encoder=tokens_of, **options):
    settings = {
        "encoder_identity": {"weights": "w"},
        "settings": SETTINGS,
        "batch_size": BATCH,
        "progress": False,
    }
    return FeatureCache.build(directory, requests, encoder, **{**settings, **options})


def direct(request):
    picture = load_picture(request.path)
    pixels = SETTINGS.whole_pixels(picture) if request.box is None else SETTINGS.region_pixels(picture, request.box)
    return maps_of(pixels[None])[0]


def check(cache, requests, tolerance=1e-6):
    for request in requests:
        assert request in cache
        (tokens,) = cache[request].values()
        assert tokens.dtype == np.float32
        np.testing.assert_allclose(tokens, direct(request), atol=tolerance)


def test_maps_are_those_of_the_encoder_and_computed_once(tmp_path, requests):
    encoder = Encoder()
    cache = build(tmp_path / "cache", requests, encoder)
    check(cache, requests)
    assert len(cache) == 13 == encoder.pictures  # the copy is not computed again
    assert encoder.calls == 1 + 4  # one for the shape, then three full batches and one of a single picture
    again = Encoder(stop_at=0)
    check(build(tmp_path / "cache", requests, again), requests)
    assert again.calls == 0


def test_another_picture_box_size_or_weight_is_another_map(tmp_path, requests):
    directory = tmp_path / "cache"
    build(directory, requests[:1])
    for options in (
        {"encoder_identity": {"weights": "v"}},
        {"settings": PictureSettings(SIZE, 11)},
        {"dtype": "float16"},
    ):
        encoder = Encoder()
        build(directory, requests[:1], encoder, **options)
        assert encoder.pictures == 1
    encoder = Encoder()
    build(directory, [PictureRequest(requests[0].path, (0.0, 0.0, 1.0, 1.0))], encoder)
    assert encoder.pictures == 1
    requests[0].path.write_bytes(requests[1].path.read_bytes())
    check(build(directory, requests[:1]), requests[:1])  # the content counts, not the name


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_an_interrupted_build_continues(tmp_path, requests, stop_at):
    directory = tmp_path / "cache"
    first = Encoder(stop_at)
    with pytest.raises(KeyboardInterrupt):
        build(directory, requests, first)
    second = Encoder()
    check(build(directory, requests, second), requests)
    assert first.pictures + second.pictures == 13
    assert second.calls == 4 - (stop_at - 1)


def shard(directory, ending):
    (path,) = directory.glob(f"*/shard-00000.{ending}")
    return path


def test_half_a_row_and_half_a_key_are_thrown_away(tmp_path, requests):
    directory = tmp_path / "cache"
    build(directory, requests[:6])
    with shard(directory, "maps").open("ab") as maps, shard(directory, "keys").open("a") as keys:
        maps.write(b"\x01" * 37)
        keys.write("0123")
    check(build(directory, requests), requests)


def test_keys_without_their_rows_do_not_become_zeros(tmp_path, requests):
    directory = tmp_path / "cache"
    build(directory, requests)
    maps = shard(directory, "maps")
    os.truncate(maps, maps.stat().st_size // 2 + 3)  # as after a power cut
    encoder = Encoder()
    check(build(directory, requests, encoder), requests)
    assert encoder.pictures == 7
    check(build(directory, requests), requests)


def test_all_broken_pictures_are_named_at_once_and_the_rest_is_kept(tmp_path, requests):
    for request in (requests[2], requests[7]):
        request.path.write_bytes(request.path.read_bytes()[:200])
    encoder = Encoder()
    with pytest.raises(PictureError, match="2 pictures that cannot be read") as caught:
        build(tmp_path / "cache", requests, encoder)
    assert str(requests[2].path) in str(caught.value) and str(requests[7].path) in str(caught.value)
    good = [request for request in requests if request.path not in (requests[2].path, requests[7].path)]
    check(build(tmp_path / "cache", good, Encoder(stop_at=0)), good)
    requests[1].path.unlink()
    requests[3].path.unlink()
    with pytest.raises(PictureError) as caught:
        build(tmp_path / "cache", requests)
    assert str(requests[1].path) in str(caught.value) and str(requests[3].path) in str(caught.value)


def test_half_precision_halves_the_file(tmp_path, requests):
    build(tmp_path / "a", requests)
    cache = build(tmp_path / "b", requests, dtype="float16")
    check(cache, requests, tolerance=5e-3)
    assert 2 * shard(tmp_path / "b", "maps").stat().st_size == shard(tmp_path / "a", "maps").stat().st_size
    with pytest.raises(ValueError, match="bfloat16"):
        build(tmp_path / "c", requests, dtype="bfloat16")


def test_maps_that_do_not_fit_are_refused(tmp_path, requests):
    with pytest.raises(ValueError, match="NaN or infinity as float16"):
        build(tmp_path / "a", requests, lambda batch: {"tokens": maps_of(batch) * 1e6}, dtype="float16")
    build(tmp_path / "b", requests[:1])
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        build(tmp_path / "b", requests, lambda batch: {"tokens": maps_of(batch)[..., :4]})


def test_what_was_not_asked_for_is_not_there(tmp_path, requests):
    cache = build(tmp_path / "cache", requests[:3])
    assert requests[3] not in cache and cache.shapes == {"tokens": (4, 5)}
    with pytest.raises(KeyError, match="not in the feature cache"):
        cache[requests[3]]


def test_it_travels_to_workers_without_its_maps(tmp_path, requests):
    cache = build(tmp_path / "cache", requests)
    unused = len(pickle.dumps(cache))
    check(cache, requests)
    sent = pickle.dumps(cache)
    assert len(sent) == unused
    check(pickle.loads(sent), requests)


def test_shards_of_several_processes_are_one_cache(tmp_path, requests):
    directory = tmp_path / "cache"
    build(directory, requests[:5], shard=0)
    build(directory, requests[5:], shard=1)
    assert len(list(directory.glob("*/*.maps"))) == 2
    check(build(directory, requests, Encoder(stop_at=0)), requests)


def test_builds_of_one_shard_wait_for_each_other(tmp_path, requests):
    encoders = [Encoder() for _ in range(4)]
    threads = [threading.Thread(target=build, args=(tmp_path / "cache", requests, encoder)) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(encoder.pictures for encoder in encoders) == 13
    check(build(tmp_path / "cache", requests, Encoder(stop_at=0)), requests)


def test_a_killed_process_leaves_no_lock(tmp_path, requests):
    program = """
import json, os, sys
sys.path.insert(0, os.path.join("tests", "pictures"))
import test_feature_cache as here
from tmrjax.pictures.cache import PictureRequest
directory, paths = json.loads(sys.argv[1])
calls = []
def encode(batch):
    calls.append(1)
    return here.tokens_of(batch) if len(calls) < 3 else os._exit(9)
here.build(directory, [PictureRequest(path, None) for path in paths], encode)
"""
    paths = [str(request.path) for request in requests[:9]]
    argument = json.dumps([str(tmp_path / "cache"), paths])
    done = subprocess.run([sys.executable, "-c", program, argument], check=False)
    assert done.returncode == 9
    encoder = Encoder()
    check(build(tmp_path / "cache", requests[:9], encoder), requests[:9])
    assert encoder.pictures == 9 - BATCH


def damaged(data, generator):
    """One of: a flipped bit, 32 zeroed bytes, a cut, a byte that becomes another, a doubled or a lost line."""
    kind, place = generator.integers(6), int(generator.integers(len(data)))
    if kind == 0:
        return data[:place] + bytes([data[place] ^ (1 << int(generator.integers(8)))]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + b"\0" * len(data[place : place + 32]) + data[place + 32 :]
    if kind == 2:
        return data[:place]
    if kind == 3:
        return data[:place] + bytes([int(generator.integers(256))]) + data[place + 1 :]
    lines = data.split(b"\n")
    number = int(generator.integers(len(lines)))
    return b"\n".join(lines[:number] + lines[number : number + 1] * (2 if kind == 4 else 0) + lines[number + 1 :])


@pytest.mark.parametrize("ending", ["keys", "maps", "json"])
def test_no_damage_gives_another_map(tmp_path, requests, ending):
    """80 damages of each file; what is damaged is computed again. Nothing is raised, and no map is another's."""
    directory, generator = tmp_path / "cache", np.random.default_rng(0)
    expected = [direct(request) for request in requests]
    build(directory, requests)
    path = next(directory.glob("*/cache.json")) if ending == "json" else shard(directory, ending)
    sound = {file: file.read_bytes() for file in path.parent.iterdir()}
    computed = 0
    for _ in range(80):
        for file, data in sound.items():
            file.write_bytes(data)
        path.write_bytes(damaged(sound[path], generator))
        encoder = Encoder()
        cache = build(directory, requests, encoder)
        computed += encoder.pictures
        for request, maps in zip(requests, expected, strict=True):
            np.testing.assert_allclose(cache[request]["tokens"], maps, atol=1e-6)
        check(build(directory, requests, Encoder(stop_at=0)), requests[:2])  # and now it is whole
    assert ending == "json" or computed > 80


def test_swapped_rows_and_a_changed_box_are_noticed(tmp_path, requests):
    directory = tmp_path / "cache"
    build(directory, requests)
    maps, keys = shard(directory, "maps"), shard(directory, "keys")
    rows = np.fromfile(maps, "<f4").reshape(-1, 20)
    rows[[0, 5]] = rows[[5, 0]]
    rows.tofile(maps)
    encoder = Encoder()
    check(build(directory, requests, encoder), requests)
    assert encoder.pictures == 2
    other = PictureRequest(requests[0].path, (0.1, 0.2, 0.7, 0.8))
    keys.write_bytes(keys.read_bytes().replace(b"0.1,0.2,0.7,0.9", b"0.1,0.2,0.7,0.8"))
    check(build(directory, [other]), [other])


def test_an_encoder_of_another_type_or_with_another_flag_has_maps_of_its_own(tmp_path, requests):
    identities = [
        {"weights": "w", "config": {"flag": flag}, "dtype": dtype}
        for flag in (False, True)
        for dtype in ("float32", "bfloat16")
    ]
    for identity in identities:
        encoder = Encoder()
        build(tmp_path / "cache", requests[:1], encoder, encoder_identity=identity)
        assert encoder.pictures == 1
    assert len(list((tmp_path / "cache").iterdir())) == len(identities)


@pytest.mark.parametrize("keep", [("pooled",), ("stages",), ("stages", "tokens"), ("tokens", "pooled", "stages")])
def test_what_is_asked_for_is_kept_and_nothing_else(tmp_path, requests, keep):
    cache = build(tmp_path / "cache", requests, states_of, keep=keep)
    assert set(cache.shapes) == set(keep)
    numbers = sum({"tokens": 20, "pooled": 5, "stages": 12 + 20 + 5}[name] for name in keep)
    assert shard(tmp_path / "cache", "maps").stat().st_size == 13 * numbers * 4
    again = build(tmp_path / "cache", requests, Encoder(stop_at=0), keep=keep)
    for opened in (cache, again, pickle.loads(pickle.dumps(cache))):
        for request in requests:
            found, expected = opened[request], direct(request)
            assert set(found) == set(keep) and [len(part) for part in found.get("stages", ())] in ([4, 2, 1], [])
            of_all = {"tokens": (expected,), "pooled": (expected.mean(0),)}
            of_all["stages"] = (expected[:, None, :3], expected.reshape(2, 2, 5) + 1, expected[:1, None])
            for name in keep:
                parts = found[name] if name == "stages" else (found[name],)
                for part, values in zip(parts, of_all[name], strict=True):
                    assert part.dtype == np.float32
                    np.testing.assert_allclose(part, values, atol=1e-6)
    blank = again.empty()
    assert set(blank) == set(keep) and not any(np.any(part) for value in blank.values() for part in value)
    if "pooled" in keep:
        assert blank["pooled"].shape == (5,)
    if "stages" in keep:
        assert [part.shape for part in blank["stages"]] == [(4, 1, 3), (2, 2, 5), (1, 1, 5)]


def test_other_things_kept_are_another_cache_and_their_order_is_none(tmp_path, requests):
    directory = tmp_path / "cache"
    for keep in (("tokens",), ("pooled",), ("tokens", "pooled")):
        build(directory, requests[:1], states_of, keep=keep)
    assert len(list(directory.iterdir())) == 3
    build(directory, requests[:1], Encoder(stop_at=0), keep=("pooled", "tokens"))
    assert len(list(directory.iterdir())) == 3


def test_an_older_cache_is_left_alone(tmp_path, requests):
    old = tmp_path / "cache" / "0123456789abcdef"
    old.mkdir(parents=True)
    files = {
        "cache.json": b'{"format": 2, "shape": [4, 5]}',
        "shard-00000.maps": b"\1" * 80,
        "shard-00000.keys": b"x\n",
    }
    for name, content in files.items():
        (old / name).write_bytes(content)
    check(build(tmp_path / "cache", requests), requests)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == files


def test_what_cannot_be_kept_is_named(tmp_path, requests):
    with pytest.raises(ValueError, match=r"asked to keep \['logits'\]; expected some of tokens, pooled, stages"):
        build(tmp_path, requests, keep=("logits",))
    with pytest.raises(ValueError, match="asked to keep \\[\\]"):
        build(tmp_path, requests, keep=())
    with pytest.raises(ValueError, match="this encoder gives no pooled; it gives tokens"):
        build(tmp_path, requests, keep=("tokens", "pooled"))
    for released in (PictureSettings(SIZE, 10, missing="zeros"), PictureSettings(SIZE, 10, whole="area_bgr")):
        with pytest.raises(ValueError, match="of released weights ask for other ones"):
            build(tmp_path, requests, settings=released)


def test_a_picture_and_its_regions_are_decoded_once(tmp_path, requests, monkeypatch):
    """As long as they come in one chunk; in the order of requests, whole pictures before the regions, they do not."""
    decoded, load = [], requests_module.load_decoded
    monkeypatch.setattr(requests_module, "load_decoded", lambda path, s: decoded.append(path) or load(path, s))
    path = requests[0].path
    boxes = [None, (0.1, 0.2, 0.7, 0.9), (0.0, 0.0, 0.5, 0.5), (0.2, 0.2, 1.0, 1.0)]
    asked = [PictureRequest(path, box) for box in boxes]
    check(build(tmp_path / "cache", asked), asked)
    assert decoded == [path]


def test_how_small_a_picture_is_decoded_does_not_depend_on_the_chunk(tmp_path):
    """A small region needs the whole picture, also where it is in another chunk than the picture itself."""
    noise = np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    settings = dataclasses.replace(SETTINGS, reducing_gap=1.0)
    boxes = [None, (0.0, 0.0, 0.9, 0.9), (0.0, 0.0, 1.0, 1.0), (0.0, 0.1, 1.0, 1.0), (0.0, 0.0, 0.1, 0.1)]
    asked = [PictureRequest(tmp_path / "a.jpg", box) for box in boxes]

    def kept(number, requests):
        options = {"settings": settings, "keep": ("pixels",), "dtype": "uint8", "encoder_identity": {}}
        return build(tmp_path / str(number), requests, lambda pixels: {"pixels": pixels}, **options)

    together, alone = kept(0, asked), kept(1, asked[:1])
    full = load_picture(tmp_path / "a.jpg")
    assert np.array_equal(together[asked[0]]["pixels"], settings.whole_pixels(full))
    small = load_decoded(tmp_path / "a.jpg", settings.shrinking([None]))
    assert small.factor == 8 and np.array_equal(alone[asked[0]]["pixels"], settings.whole_pixels(small))


def test_pixels_are_kept_as_bytes_and_apart_from_states(tmp_path, requests):
    options = {"encoder_identity": {}, "keep": ("pixels",), "dtype": "uint8"}
    cache = build(tmp_path / "cache", requests, lambda pixels: {"pixels": pixels}, **options)
    for request in requests:
        picture = load_picture(request.path)
        box = request.box
        expected = SETTINGS.whole_pixels(picture) if box is None else SETTINGS.region_pixels(picture, box)
        found = cache[request]["pixels"]
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert sum(path.stat().st_size for path in cache.folder.glob("*.maps")) == 13 * SIZE * SIZE * 3
    assert cache.empty()["pixels"].dtype == np.uint8
    again = build(tmp_path / "cache", requests, Encoder(stop_at=0), **options)  # nothing is missing
    assert len(again) == 13
    for wrong in ({"dtype": "float32"}, {"keep": ("tokens",)}, {"keep": ("pixels", "tokens")}):
        with pytest.raises(ValueError, match="pixels, alone, are uint8"):
            build(tmp_path / "cache", requests, **{**options, **wrong})
