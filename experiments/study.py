"""Run studies: all their trainings, here or on SLURM, and their tables.

python experiments/study.py --study=experiments/studies/table1.py --workdir=runs/paper --data=data \
    --text-encoder=BERT --picture-encoder=RESNET50 [--clip-encoder=CLIP] [--seeds=0,1,2] [--set=epochs=3]

--data holds prepared data sets by their names (twitter2015, twitter2017, mnre, or the demo's); a study takes those
that are there. What is done is not done again; a training that fails does not end the others and is listed at the end;
Ctrl-C saves, and the same command goes on. Tables are written to WORKDIR/NAME with the endings .md, .tex, .csv and
.html, with what is finished so far; of several studies also to WORKDIR/report. A training that two studies have is done
once.

--status only says what is done, running, failed. --launcher=slurm submits one array of jobs and returns (--wait: does
not); jobs that are preempted or out of time save, are requeued and go on. Call it again for the tables.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.lib import command
from experiments.lib.launchers import slurm
from experiments.lib.launchers.local import run_local
from experiments.lib.launchers.states import DONE, FAILED, STATES, Place, failure_of, figure_of, state_of
from experiments.lib.study import Places, Study, Training, command_of, config_of, has_key, load_study, require_own

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    FLAGS.set_default("compile_cache", False)  # each training has its own flag; nothing is compiled here
    flags.DEFINE_multi_string("study", None, "Python file, as experiments/studies/table1.py; may be repeated.")
    flags.DEFINE_string("workdir", None, "Folder of the study; a training has a folder below it.")
    flags.DEFINE_string("data", None, "Folder of prepared data sets, each in a folder by its name.")
    flags.DEFINE_string("text_encoder", "", "Folder or hub name of a BERT.")
    flags.DEFINE_string("picture_encoder", "", "Folder or hub name of a ResNet.")
    flags.DEFINE_string("clip_encoder", "", "Folder or hub name of a CLIP (MKGformer).")
    flags.DEFINE_string("estimator_encoder", "", "Folder of a ViLT (table 3).")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every row.")
    flags.DEFINE_list("rows", [], "Only these rows of the studies; all unless given.")
    flags.DEFINE_multi_string("set", [], "KEY=VALUE for every config that has the key; may be repeated.")
    flags.DEFINE_bool("status", False, "Say what is done, running, failed, and do nothing.")
    flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "Where trainings run.")
    flags.DEFINE_integer("jobs", 1, "Trainings at a time.", lower_bound=1)
    flags.DEFINE_bool("wait", False, "SLURM: return when the queue has no job of the study any more.")
    for name, about in (("partition", "Partition."), ("account", "Account.")):
        flags.DEFINE_string(name, "", f"SLURM: {about}")
    flags.DEFINE_integer("gpus", 0, "SLURM: GPUs of a training.", lower_bound=0)
    flags.DEFINE_integer("cpus", 1, "SLURM: cores of a process.", lower_bound=1)
    flags.DEFINE_float("memory_gb", 0, "SLURM: memory of a training in GB; the cluster's own unless given.")
    flags.DEFINE_integer("minutes", 24 * 60, "SLURM: time of a job; then it is requeued and goes on.", lower_bound=1)
    flags.DEFINE_integer("tasks", 1, "SLURM: processes of a training, by jax.distributed.", lower_bound=1)
    flags.DEFINE_multi_string("setup", [], "SLURM: shell command before a job, such as a module load; may be repeated.")


def places_from_flags() -> Places:
    """What the command line says; raises ValueError for a seed or a setting that cannot be read."""
    if any(not seed.strip().isdigit() for seed in FLAGS.seeds):
        raise ValueError(f"--seeds={','.join(FLAGS.seeds)}; expected whole numbers, as 0,1,2")
    if not FLAGS.data or not Path(FLAGS.data).is_dir():
        raise ValueError(f"--data={FLAGS.data}: no such folder; expected one with prepared data sets")
    return Places(
        Path(FLAGS.data),
        text_encoder=FLAGS.text_encoder,
        picture_encoder=FLAGS.picture_encoder,
        clip_encoder=FLAGS.clip_encoder,
        estimator_encoder=FLAGS.estimator_encoder,
        seeds=tuple(int(seed) for seed in FLAGS.seeds),
    )


def setting_of(text: str) -> tuple[str, Any]:
    """``epochs=3`` -> ("epochs", 3): a Python literal, else a text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"--set={text}: expected KEY=VALUE, as --set=epochs=3")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def only(studies: dict[str, Study], rows: list[str]) -> dict[str, Study]:
    """The studies with some of their rows; raises ValueError for a row that none has."""
    known = list(dict.fromkeys(training.row for study in studies.values() for training in study.trainings))
    unknown = [row for row in rows if row not in known]
    if unknown:
        raise ValueError(f"--rows: no row {unknown[0]!r}; those there are: {', '.join(known)}")
    kept = {
        name: dataclasses.replace(study, trainings=tuple(t for t in study.trainings if not rows or t.row in rows))
        for name, study in studies.items()
    }
    return {name: study for name, study in kept.items() if study.trainings}


def trainings_of(studies: dict[str, Study]) -> list[Training]:
    """Each training once, though several studies may have it; the first seeds of all rows come first."""
    unique = list({training.name: training for study in studies.values() for training in study.trainings}.values())
    seeds = list(dict.fromkeys(training.seed for training in unique))
    return sorted(unique, key=lambda training: seeds.index(training.seed))


def require_used(settings: Mapping[str, Any], trainings: list[Training]) -> None:
    """Raise ValueError for a key of --set that no training's config has: it is misspelt."""
    left = [key for key in settings if not any(has_key(config_of(training), key) for training in trainings)]
    if left:
        raise ValueError(f"--set={left[0]}: no training has this key in its config")


def show_status(trainings: list[Training], workdir: Path) -> None:
    """A line a training, and counts."""
    queue = slurm.queue_of(workdir)
    counts = collections.Counter()
    for training in trainings:
        place = Place(workdir / training.name)
        state = state_of(place, queue.get(training.name, ""))
        counts[state] += 1
        more = {DONE: figure_of, FAILED: failure_of}.get(state, lambda place: "")(place)
        print(f"{state:8} {training.column}, {training.row}, seed {training.seed}{f': {more}' if more else ''}")
    print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))


def write_report(studies: dict[str, Study], workdir: Path) -> None:
    """The tables of what is finished, of each study and, where there are several, of all; nothing where nothing is."""
    from experiments.analysis.study_tables import tables_of
    from experiments.analysis.writing import grids_of, markdown_grid, write_tables

    found = {}
    for name, study in studies.items():
        if any(state_of(Place(workdir / training.name)) == DONE for training in study.trainings):
            found[name] = tables_of(study, workdir)
            print("".join(f"\n{markdown_grid(grids_of(table)[0])}\n" for table in found[name]), end="")
            paths = write_tables(found[name], workdir / name, study.title)
            print(f"\nwrote {', '.join(map(str, paths))}", flush=True)
    if len(found) > 1:
        paths = write_tables([table for tables in found.values() for table in tables], workdir / "report", "Report")
        print(f"wrote {', '.join(map(str, paths))}", flush=True)


def main(_) -> None:
    """Flags in, trainings and tables out."""
    workdir, places, settings = Path(FLAGS.workdir), places_from_flags(), dict(map(setting_of, FLAGS.set))
    studies = only({Path(file).stem: load_study(Path(file), places, settings) for file in FLAGS.study}, FLAGS.rows)
    trainings = trainings_of(studies)
    require_used(settings, trainings)
    if FLAGS.status:
        show_status(trainings, workdir)
        return
    for study in studies.values():
        require_own(study, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    jobs = [(t.name, Place(workdir / t.name), command_of(t, (workdir / t.name).resolve())) for t in trainings]
    if FLAGS.launcher == "local":
        run_local(jobs, at_once=FLAGS.jobs, say=lambda line: print(line, flush=True))
    else:
        options = slurm.SlurmOptions(
            FLAGS.partition, FLAGS.account, FLAGS.gpus, FLAGS.cpus, FLAGS.memory_gb, FLAGS.minutes, FLAGS.tasks,
            tuple(FLAGS.setup),
        )  # fmt: skip
        submitted = slurm.submit(workdir, jobs, options, at_once=FLAGS.jobs)
        print(f"submitted {len(submitted)} of {len(jobs)} trainings to SLURM; --status says how they are", flush=True)
        if FLAGS.wait:
            slurm.wait(workdir)
    write_report(studies, workdir)
    undone = [(name, place) for name, place, _ in jobs if state_of(place) != DONE]
    if undone and (FLAGS.launcher == "local" or FLAGS.wait):
        print(f"\n{len(undone)} of {len(jobs)} trainings are not done:", file=sys.stderr)
        for name, place in undone:
            state = state_of(place)
            why = f", {failure_of(place)}; see {place.log}" if state == FAILED else ""
            print(f"  {name}: {state}{why}", file=sys.stderr)
        sys.exit(1)


def cli() -> None:
    """The command."""
    define_flags()
    flags.mark_flags_as_required(["study", "workdir", "data"])
    command.run(main)


if __name__ == "__main__":
    cli()
