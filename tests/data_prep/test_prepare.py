"""One command for all that is missing: what runs, in which order, what it says of what it lacks."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.prepare import STAGES, planned, prepare
from data_prep.stages.frame import Selection
from tmrjax.files import DataError
from tmrjax.records import Record, read_dataset, write_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:40] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    Image.fromarray(pixels).save(tmp_path / "images/1.png")
    post = Record("1", ("a", "red", "dog", "barks"), ("O",) * 4, image="images/1.png")
    train = [post, dataclasses.replace(post, id="2", image=None)]
    write_dataset(tmp_path, {"name": "x", "task": "ner", "labels": ("PER",)}, {"train": train})
    return tmp_path


def test_what_needs_no_model_is_run_once(root):
    dataset = prepare(root, selection=Selection(progress=False))
    first, second = dataset.splits["train"]
    assert first.phrases == ("red dog",) and first.regions and second.phrases and not second.regions
    assert list(dataset.info.stages) == ["phrases", "regions", "objects", "generated_regions"]
    before = {path: path.read_bytes() for path in root.rglob("*.json*")}
    prepare(root, selection=Selection(progress=False))
    assert before == {path: path.read_bytes() for path in root.rglob("*.json*")}


def test_all_that_lacks_is_said_at_once(root):
    with pytest.raises(DataError) as caught:
        prepare(root, STAGES, parser="stanza", regions="owlvit")
    for option in ("--stanza=DIR", "--diffusion=DIR", "--detector=DIR", "--estimator=WORKDIR"):
        assert option in str(caught.value)
    assert not read_dataset(root).info.stages  # and nothing ran
    with pytest.raises(ValueError, match="no stage 'boxes'; expected some of phrases, back_translate"):
        planned(["boxes"])
    some = planned(("scores", "regions", "phrases"), estimator=root)
    assert [name for name, _ in some] == ["phrases", "regions", "scores"]


def test_the_command_prints_before_and_after(root):
    run = [sys.executable, "data_prep/prepare.py", str(root)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("\n\n", 1)
    assert "without phrases                       2" in before and "without phrases                       0" in after
    assert "without regions                       1" in after
    done = subprocess.run([*run, "--stages=scores"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("prepare: --stages: found scores: --estimator=WORKDIR")
    assert not done.stdout
