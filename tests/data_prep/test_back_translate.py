"""Back-translation of a data set: what lands in records and files, killed and resumed, shards, safety, NaN."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import back_translate as stage
from data_prep.back_translate import Options, prompt_of, read_metadata, stripped_text, unused_line, unused_pictures
from data_prep.diffusion.sampler import Drawing, Generator, seed_of
from data_prep.diffusion.weights import ExtraMissingError, load_model
from data_prep.stages.frame import Selection
from tests.diffusion_parts import FAST, STEPS, Folders, pixels
from tmrjax.files import DataError
from tmrjax.records import Generated, Record, read_dataset, write_dataset

ROOT = Path(__file__).resolve().parents[2]
INFO = {"name": "posts", "task": "ner", "labels": ("PER",)}
WORDS = ("Ada in Paris", "the rain", "RT @ada : look http://t.co/x #Paris", "@ada http://t.co/x", "cats", "dogs", "x")
LONG = " ".join(["the"] * 90)
FIELDS = ("prompt", "seed", "scheduler", "steps", "guidance", "height", "width", "negative_prompt", "dtype", "model")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture(autouse=True)
def made_once(monkeypatch, cache={}):  # noqa: B006
    """Models and programs are real, but each is loaded and compiled once for all tests."""

    def once(make, key, *arguments, **options):
        if key not in cache:
            cache[key] = make(*arguments, **options)
        return cache[key]

    def model(folder, dtype):
        return once(load_model, (folder.sha256, dtype), folder, dtype=dtype)

    def generator(model, drawing, **options):
        known = (model.folder.sha256, model.dtype, drawing, options["devices"])
        return once(Generator, known, model, drawing, **options)

    monkeypatch.setattr(stage, "load_model", model)
    monkeypatch.setattr(stage, "Generator", generator)


@pytest.fixture
def root(tmp_path):
    """Seven posts to train with, two of dev; t5 has a picture from elsewhere, with all that may hang on it."""
    folder = tmp_path / "set"
    (folder / "generated").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "generated" / "t5.jpg")
    train = [Record(f"t{number}", tuple(text.split()), ("O",) * len(text.split())) for number, text in enumerate(WORDS)]
    old = Generated("generated/t5.jpg", ((0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5)))
    train[5] = dataclasses.replace(train[5], generated=old, generated_scores=(0.5, 0.25, 0.25))
    dev = [Record("d0", tuple(LONG.split()), ("O",) * 90), Record("a/b ü", ("Köln",), ("O",))]
    write_dataset(folder, INFO, {"train": train, "dev": dev})
    return folder


def run(root, folders, selection=None, model=None, **changes):
    options = Options(model or folders.folder(), Drawing(STEPS), devices=1, **changes)
    selection = Selection(**{"progress": False, **(selection or {})})
    return stage.back_translate(root, options, selection, compiler_options=FAST)


def records(dataset):
    return {record.id: record for split in dataset.splits.values() for record in split}


def files(root):
    return {path.name: path.read_bytes() for path in (root / "generated").iterdir()}


# ------------------------------------------------------------------ what a run leaves


def test_records_files_and_manifest(root, folders, caplog):
    dataset = run(root, folders)
    drawn = folders.generator(Drawing(STEPS)).draw(["the rain", LONG], [seed_of("t1"), seed_of("d0")])
    found = records(dataset)
    for record in found.values():
        made = record.generated
        assert made.prompt == " ".join(record.tokens) and made.seed == seed_of(record.id) and made.regions == ()
        assert made.model.endswith(" pndm 2 steps guidance 7.5") and made.model.startswith("sha256:")
        known = read_metadata(root / made.image)
        assert [known[name] for name in FIELDS] == [
            made.prompt, made.seed, "pndm", 2, 7.5, 64, 64, "", "float32", made.model.split(" ")[0]
        ]  # fmt: skip
    kept = [np.asarray(Image.open(root / found[name].generated.image)) for name in ("t1", "d0")]
    assert np.array_equal(np.stack(kept), pixels(drawn))
    assert found["t5"].generated_scores is None and found["t5"].generated.image != "generated/t5.jpg"
    manifest = dataset.info.stages["back_translate"]
    assert manifest["model"] == found["t0"].generated.model.split(" ")[0] and manifest["seed"] == 0
    assert manifest["options"]["scheduler"] == "pndm" and manifest["versions"]["diffusers"] == "0.39.0"
    assert manifest["counts"] == {
        "divergence scores cleared with them": 1,
        "pictures replaced": 1,
        "prompts longer than 77 pieces (their end was not read)": 1,
        "regions cleared with them": 2,
    }
    assert "d0: the prompt has 92 pieces, the model reads 77" in caplog.text
    assert unused_pictures(dataset) == ["t5.jpg"] and "1 files in generated/ belong to no" in unused_line(dataset)
    plain = {f"t{number}" for number in range(7)} | {"d0", "t5.jpg"}
    named = hashlib.sha256("a/b ü".encode()).hexdigest()[:16]  # an id that is no file name
    assert {name.rsplit("-", 1)[0] for name in files(root)} == plain | {named}


def test_a_repeat_does_nothing_and_loads_nothing(root, folders, monkeypatch):
    first = run(root, folders)
    later = records(first)["t0"]
    boxed = dataclasses.replace(later, generated=dataclasses.replace(later.generated, regions=((0.0, 0.0, 1.0, 1.0),)))
    splits = {name: tuple(boxed if item.id == "t0" else item for item in part) for name, part in first.splits.items()}
    write_dataset(root, first.info, splits)  # as a later stage would
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr(stage, "load_model", None)
    monkeypatch.setattr("hashlib.file_digest", None)
    again = run(root, folders)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert records(again)["t0"].generated.regions == ((0.0, 0.0, 1.0, 1.0),)


def test_shards_limits_and_batches_change_no_byte(root, folders, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", root, other], check=True)
    whole = run(root, folders)
    run(other, folders, {"limit": 1})
    run(other, folders, {"splits": ("dev",)})
    run(other, folders, {"shard": (2, 2)})
    parts = run(other, folders, {"shard": (1, 2)})
    assert records(parts) == records(whole) and files(other) == files(root)
    for split in ("train", "dev"):
        assert (other / f"{split}.jsonl").read_bytes() == (root / f"{split}.jsonl").read_bytes()


def test_killed_in_the_middle_and_repeated_without_torch(root, folders, tmp_path, monkeypatch):
    """The command, in a process that cannot import torch, dies after its sixth picture: in the second batch."""
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", root, other], check=True)
    program = (
        "import os, sys; sys.modules['torch'] = None\n"
        "from data_prep import back_translate as stage\n"
        "write, left = stage.write_atomic, [6]\n"
        "def dying(path, data):\n"
        "    write(path, data)\n"
        "    left[0] -= 'generated' in str(path)\n"
        "    left[0] > 0 or os.kill(os.getpid(), 9)\n"
        "stage.write_atomic = dying\n"
        "stage.main()\n"
    )
    flags = [str(other), f"--model={folders.folder()}", f"--steps={STEPS}", "--devices=1"]
    # The same program as in this process, up to optimisation.
    quick = " ".join(f"--{name}={str(value).lower()}" for name, value in FAST.items())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": quick}
    command = [sys.executable, "-c", program, *flags]
    died = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    journal = other / "journals/back_translate/shard-1-of-1.jsonl"
    done = [json.loads(line)["id"] for line in journal.read_text().splitlines()[1:]]
    assert done == ["t0", "t1", "t2", "t3"] and records(read_dataset(other))["t0"].generated is None
    left = {name for name in files(other) if not name.startswith(".")}
    assert len(left) >= 7  # six pictures and the old one; those of a thread that was writing may be there too
    drawn, work = [], stage._Drawer.work
    monkeypatch.setattr(
        stage._Drawer, "work", lambda self, batch: drawn.extend(item.id for item in batch) or work(self, batch)
    )
    resumed = run(other, folders)
    assert drawn == ["t4", "t5", "t6", "d0", "a/b ü"]
    whole = run(root, folders)
    assert records(resumed) == records(whole)
    for record in records(whole).values():
        ours, theirs = (np.asarray(Image.open(place / record.generated.image), int) for place in (root, other))
        assert np.abs(ours - theirs).max() <= 1


# ------------------------------------------------------------------ options


def test_jpeg_other_seeds_and_stripped_prompts(root, folders):
    first = records(run(root, folders, {"limit": 4}))
    with pytest.raises(DataError, match=r"expected .*\"jpeg\".*--restart"):
        run(root, folders, {"limit": 4}, format="jpeg")
    options = {"format": "jpeg", "seed": 7, "strip": ("urls", "users", "hashes")}
    dataset = run(root, folders, {"limit": 4, "restart": True}, **options)
    second = records(dataset)
    known = read_metadata(root / second["t2"].generated.image)
    assert second["t2"].generated.image.endswith(".jpg") and known["prompt"] == "RT : look Paris"
    assert known["seed"] == seed_of("t2", 7) != first["t2"].generated.seed
    assert second["t3"].generated.prompt == "@ada http://t.co/x"  # nothing would be left
    counts = dataset.info.stages["back_translate"]["counts"]
    assert counts["prompts kept whole (nothing would be left of them)"] == 1 and counts["pictures replaced"] == 4
    sizes = {Image.open(root / record.generated.image).size for record in second.values() if record.generated}
    assert sizes == {(64, 64), (8, 8)} and len(unused_pictures(dataset)) == 4


def test_only_missing_leaves_pictures_from_elsewhere(root, folders):
    for _ in range(2):  # what it drew itself is not from elsewhere
        dataset = run(root, folders, only_missing=True)
        assert records(dataset)["t5"].generated.image == "generated/t5.jpg" and records(dataset)["t5"].generated_scores
        assert dataset.info.stages["back_translate"]["records"]["train"] == {
            "done": 6, "failed": 0, "not done": 0, "of no concern": 1
        }  # fmt: skip


@pytest.mark.parametrize(
    "tokens, strip, prompt",
    [
        ("see https://t.co/a b", "urls", "see b"),
        ("see https : //t . co/w7rktBN5ac http://t.co/r end", "urls", "see end"),
        ("end http . . .", "urls", "end"),
        ("end http… http http://t.c…", "urls", "end"),
        ("www.x.org httpd and https:", "urls", "httpd and"),
        ("RT @a_b1 : hi @ Paris a@b", "users", "RT : hi a@b"),
        ("# 7 #Paris a#b # !", "hashes", "7 Paris a#b # !"),
        ("@x #y http://z", "users", "#y http://z"),
        ("a  b", "", "a  b"),
        ("#", "hashes", "#"),
    ],
)
def test_prompts(tokens, strip, prompt):
    assert prompt_of(tokens.split(" "), (strip,) if strip else ()) == prompt


def test_stripping_never_adds_a_word():
    for text in WORDS:
        assert set(stripped_text(text.split(), ("urls", "users", "hashes")).split()) <= set(
            text.replace("#", "").split()
        )


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"format": "gif"}, {"strip": ("emoji",)}])
def test_options_out_of_range(wrong, tmp_path):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(tmp_path, **wrong)


# ------------------------------------------------------------------ what is not a picture


def test_flagged_pictures_are_not_kept(root, folders, caplog):
    model = folders.folder(safety_checker=True, safety_threshold=-2.0)
    dataset = run(root, folders, {"splits": ("train",)}, model=model)
    assert all(record.generated is None and record.generated_scores is None for record in dataset.splits["train"])
    assert list(files(root)) == ["t5.jpg"] and "t0: flagged by the safety checker" in caplog.text
    counts = dataset.info.stages["back_translate"]["counts"]
    assert counts["flagged by the safety checker (no picture kept)"] == 7 and counts["pictures replaced"] == 1
    assert dataset.info.stages["back_translate"]["options"]["safety_checker"]


def test_nan_is_a_failure_never_a_black_picture(root, folders, monkeypatch):
    run(root, folders, {"limit": 1})
    (root / "journals/back_translate/shard-1-of-1.jsonl").unlink()
    generator = stage.Generator(
        stage.load_model(stage.open_folder(folders.folder()), "float32"), Drawing(STEPS), devices=1
    )
    draw = generator.draw

    def damaged(prompts, seeds):
        return [dataclasses.replace(item, finite=prompt != "cats") for item, prompt in
                zip(draw(prompts, seeds), prompts, strict=True)]  # fmt: skip

    monkeypatch.setattr(generator, "draw", damaged)
    with pytest.raises(DataError, match=r"t4: found NaN or infinity in the picture for 'cats'.*--dtype=float32"):
        run(root, folders)
    dataset = run(root, folders, {"on_error": "skip"})
    assert records(dataset)["t4"].generated is None and not any(name.startswith("t4-") for name in files(root))
    assert dataset.info.stages["back_translate"]["records"]["train"]["failed"] == 1


def test_the_command_names_the_extra(root, folders, monkeypatch):
    def missing(*_, **__):
        raise ExtraMissingError("pip install -e '.[backtranslation]'")

    monkeypatch.setattr(stage, "load_model", missing)
    monkeypatch.setattr(sys, "argv", ["back_translate.py", str(root), f"--model={folders.folder()}", "--steps=2"])
    with pytest.raises(SystemExit, match=r"back_translate: pip install -e '\.\[backtranslation\]'"):
        stage.main()
    monkeypatch.setattr(sys, "argv", ["back_translate.py", str(root), f"--model={root}"])
    with pytest.raises(SystemExit, match=r"back_translate: .*no model_index.json"):
        stage.main()
    monkeypatch.setattr(sys, "argv", ["back_translate.py", str(root), f"--model={folders.folder()}", "--height=72"])
    with pytest.raises(SystemExit, match=r"height is 72; this model draws multiples of 16 pixels"):
        stage.main()
