"""Studies: files that are refused, trainings that fail, stop and go on, tables at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from data_prep.make_demo import make_demo
from data_prep.make_divergence_demo import make_divergence_demo
from experiments.lib.launchers.local import run_local
from experiments.lib.launchers.states import Place, state_of
from experiments.lib.study import Places, Study, Training, command_of, config_of, load_study, require_own
from experiments.lib.workdirs import claimed_workdir
from experiments.study import only, require_used, setting_of, trainings_of
from tests.experiments.fabricated_runs import entity_rows, write_run

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
from experiments.lib.study import Study, Training

def get_study(places):
    settings = {"data.root": str(places.data / "demo"), "method": "bert_crf"}
    return Study("Small", tuple(Training(row, "demo", "mner.py:demo", settings, seed)
                                for seed in places.seeds for row in ("one", "two")), reference="one")
"""


def study_file(folder: Path, text: str = STUDY) -> Path:
    path = folder / "small.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "no function get_study"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        (STUDY.replace('"method": "bert_crf"', '"method": "bert_crf", "model.dropuot": 0.1'), "dropuot.*dropout"),
        (STUDY.replace('"method"', '"lr_fusion": -1.0, "method"'), "lr_fusion is -1.0"),
        (STUDY.replace('"method"', '"epochs": "many", "method"'), "row 'one', column 'demo'"),
        (STUDY.replace("mner.py:demo", "mnre.py:demo"), "no file 'mnre.py'"),
        (STUDY.replace("mner.py:demo", "mner.py:demos"), "'demos'; choose one of"),
        (STUDY.replace('("one", "two")', '("one", "one")'), "is there 2 times"),
        ("def get_study(places):\n    return []\n", "expected a Study"),
    ],
)
def test_a_faulty_study_is_refused_before_anything_is_trained(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as error:
        load_study(study_file(tmp_path, text), Places(tmp_path))
    assert "small.py" in str(error.value)


def test_a_study_that_is_not_there_and_rows_that_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_study(tmp_path / "none.py", Places(tmp_path))
    study = load_study(study_file(tmp_path), Places(tmp_path, seeds=(3, 4)))
    assert [(t.row, t.seed) for t in only({"s": study}, ["two"])["s"].trainings] == [("two", 3), ("two", 4)]
    with pytest.raises(ValueError, match="'three'; those there are: one, two"):
        only({"s": study}, ["three"])
    assert [(t.row, t.seed) for t in trainings_of({"a": study, "b": study})] == [
        ("one", 3), ("two", 3), ("one", 4), ("two", 4),
    ]  # fmt: skip


def test_settings_replace_those_of_configs_that_have_the_key(tmp_path):
    text = STUDY.replace('for row in ("one", "two"))', 'for row in ("one", "two")) + (mde,)').replace(
        "    return", '    mde = Training("mde", "pairs", "mde.py:demo", {"steps": 5}, 0)\n    return'
    )
    study = load_study(study_file(tmp_path, text), Places(tmp_path, seeds=(0,)), {"epochs": 2, "steps": 7})
    found = {t.row: config_of(t).to_dict() for t in study.trainings}
    assert found["one"]["epochs"] == found["two"]["epochs"] == 2 and found["mde"]["steps"] == 7
    require_used({"epochs": 2, "steps": 7}, list(study.trainings))
    with pytest.raises(ValueError, match="--set=epoch: no training"):
        require_used({"epochs": 2, "epoch": 2}, list(study.trainings))


def test_settings_of_the_command_line():
    given = ["epochs=3", "model.grains=('fine',)", "method=umt", "data.root=a b", "model.use_scores=False"]
    assert dict(map(setting_of, given)) == {
        "epochs": 3, "model.grains": ("fine",), "method": "umt", "data.root": "a b", "model.use_scores": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="KEY=VALUE"):
        setting_of("epochs")


def test_the_command_builds_the_very_config(monkeypatch):
    """Tuples, truth values and numbers survive the way through the command line."""
    settings = {
        "method": "tmr", "model.grains": ("fine",), "model.use_scores": False, "data.fraction": 0.05,
        "data.root": "some folder/data", "rates": (("crf/.*", 0.05),), "epochs": 3,
    }  # fmt: skip
    training = Training("TMR", "x", "mner.py:demo", settings, 7)
    command = command_of(training, Path("w"))
    monkeypatch.setattr(sys, "argv", command[1:])
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(command[1:])
    assert values.config.to_dict() == config_of(training).to_dict() and values.config.seed == 7
    assert values.workdir == "w" and command[1].endswith("experiments/mner.py")


def test_a_training_of_other_settings_is_no_part_of_the_study(tmp_path):
    training = Training("TMR", "x", "mner.py:demo", {"epochs": 3}, 0)
    study = Study("s", (training,))
    config = json.loads(json.dumps(config_of(training).to_dict()))
    (tmp_path / training.name).mkdir(parents=True)
    path = tmp_path / training.name / "config.json"
    path.write_text(json.dumps(config | {"dataset": {}}))
    require_own(study, tmp_path)
    path.write_text(json.dumps(config | {"dataset": {}, "epochs": 4}))
    with pytest.raises(ValueError, match=r"other settings(.|\n)*epochs"):
        require_own(study, tmp_path)


# ------------------------------------------------------------------ launching; scripts stand for trainings

SCRIPT = """
import os, pathlib, signal, sys, time
workdir, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
workdir.mkdir(parents=True, exist_ok=True)
def stop(signum, frame):
    (workdir / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(workdir / "config.json").write_text("{}")
print("flags", os.environ.get("XLA_FLAGS"), flush=True)
if kind == "fails":
    sys.exit("umt: the disk is full")
while kind == "waits" and not (workdir / "saved").exists():
    time.sleep(0.02)
(workdir / "report.json").write_text('{"task": "ner", "test": {"f1": 0.5}}')
"""


def job(folder: Path, name: str, kind: str) -> tuple[str, Place, list[str]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    place = Place(folder / "work" / name)
    return name, place, [sys.executable, str(script), str(place.workdir), kind]


def test_a_failure_does_not_end_the_others_and_is_tried_again(tmp_path):
    jobs = [job(tmp_path, "a", "good"), job(tmp_path, "b", "fails"), job(tmp_path, "c", "good")]
    said = []
    assert run_local(jobs, at_once=2, say=said.append) == {"a": "done", "b": "failed", "c": "done"}
    (failure,) = [line for line in said if "FAILED" in line]
    assert "umt: the disk is full" in failure and "b.log" in failure and any("test F1 50.00" in line for line in said)
    assert state_of(jobs[1][1]) == "failed" and "multi_thread_eigen=false" in jobs[0][1].log.read_text()
    before = jobs[0][1].log.read_bytes()
    said.clear()
    assert run_local([jobs[0], job(tmp_path, "b", "good")], say=said.append) == {"a": "done", "b": "done"}
    assert len(said) == 1 and jobs[0][1].log.read_bytes() == before  # what is done is not done again
    assert not jobs[1][1].failure.exists()


def test_sigterm_lets_trainings_save_and_the_same_call_goes_on(tmp_path):
    names = ("a", "b", "c")
    jobs = [job(tmp_path, name, "waits") for name in names]
    program = tmp_path / "run.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom experiments.lib.launchers.local import run_local\n"
        "from experiments.lib.launchers.states import Place\n"
        f"jobs = [(n, Place(Path(w)), c) for n, w, c in {[(n, str(p.workdir), c) for n, p, c in jobs]!r}]\n"
        "print(run_local(jobs, at_once=2), flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(program)], env=environment, stdout=subprocess.PIPE, text=True)
    while not all((jobs[i][1].workdir / "config.json").exists() for i in range(2)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0].splitlines()[-1] == str({"a": "stopped", "b": "stopped", "c": "waiting"})
    assert [state_of(place) for _, place, _ in jobs] == ["stopped", "stopped", "waiting"]
    (jobs[2][1].workdir).mkdir()
    (jobs[2][1].workdir / "saved").touch()
    assert set(run_local(jobs, say=lambda line: None).values()) == {"done"}


def test_a_training_that_another_process_runs_is_left_to_it(tmp_path):
    one = job(tmp_path, "a", "good")
    with claimed_workdir(one[1].workdir, {}):
        assert state_of(one[1]) == "running" and run_local([one]) == {"a": "running"}
    assert state_of(one[1]) == "stopped"


# ------------------------------------------------------------------ the command


def call(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "experiments" / "study.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_make_paper_trains_says_how_it_stands_and_writes_one_report(tmp_path):
    """Two of its studies, one row of each, in worlds that are there already."""
    make_demo(tmp_path / "data" / "demo", posts=60, seed=1)
    make_demo(tmp_path / "data" / "demo-relations", posts=60, seed=1, task="re")
    make_divergence_demo(tmp_path / "data" / "demo-pairs", pairs=50, progress=False)
    small = "--set=epochs=1 --set=batch_size=8 --set=data.max_pieces=24 --set=steps=4 --set=evaluate_every=4"

    def make(options: str, *variables: str) -> subprocess.CompletedProcess:
        made = tmp_path / "installed"  # this Python has what the target would install
        command = ["make", f"--old-file={made}/.studies", f"VENV={made}", f"RUN={sys.executable}", f"PAPER={tmp_path}"]
        command += [*variables, f"OPTIONS={small} {options}", "paper"]
        # As the outermost make, although the suite itself runs under one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    done = make("--rows=BERT-CRF,cross-entropy", "STUDIES=table1 table3")
    assert done.returncode == 0, done.stderr
    assert "[1/2] demo-entities/BERT-CRF/seed-0: test F1" in done.stdout, done.stdout
    assert "[2/2] demo-pairs/cross-entropy/seed-0: " in done.stdout, done.stdout
    report = (tmp_path / "report.md").read_text()
    assert "SYNTHETIC" in report and "Table 3: the divergence estimator" in report and "BERT-CRF" in report
    assert all((tmp_path / f"{name}.html").exists() for name in ("table1", "table3", "report"))
    lines = make("--status").stdout.splitlines()  # of all studies
    assert lines[-1].startswith("2 done, ") and lines[-1].endswith(" waiting"), lines
    assert any("UMGF" in line and "50 %" in line for line in lines) and any("supervised contrast" in x for x in lines)


def test_unfinished_trainings_are_listed_and_the_status_is_1(tmp_path):
    (tmp_path / "demo").mkdir()  # without a data set, so every training fails
    work = tmp_path / "work"
    (write_run(work / "demo" / "one" / "seed-0", entity_rows([1, 2])) / "config.json").unlink()
    arguments = (f"--study={study_file(tmp_path)}", f"--workdir={work}", f"--data={tmp_path}", "--seeds=0")
    done = call(*arguments, "--rows=two")
    assert done.returncode == 1 and "1 of 1 trainings are not done" in done.stderr and "dataset.json" in done.stderr
    lines = call(*arguments, "--status").stdout.splitlines()
    assert lines[0] == "done     demo, one, seed 0: test F1 50.00" and lines[-1] == "1 done, 1 failed"
    assert lines[1].startswith("failed   demo, two, seed 0: exit status 1") and "dataset.json" in lines[1]


def test_slurm_without_its_parts_is_a_clear_error(tmp_path, monkeypatch):
    from experiments.lib.launchers import slurm

    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"no sbatch on PATH.*--launcher=local"):
        slurm.require_slurm()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="needs the package submitit"):
        slurm.require_slurm()
