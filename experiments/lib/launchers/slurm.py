"""Trainings as an array of SLURM jobs, through submitit: requeued when preempted or out of time, and then resumed."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.lib.command import write_json
from experiments.lib.launchers.states import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    STOPPED,
    Place,
    failure_of,
    finish,
    start,
    state_of,
    stop,
)
from experiments.lib.study import ROOT
from experiments.lib.workdirs import read_json

JOBS = "slurm-jobs.json"
SIGNAL_SECONDS = 90  # before the end of a job's time at which it is told to save
REQUEUES = 100  # how often a job may run out of time


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What is asked of SLURM for each training; 0 or "" leaves it to the cluster.

    tasks: processes of a training, on one node, found by jax.distributed. minutes: after which a job is requeued.
    setup: shell commands before it starts.
    """

    partition: str = ""
    account: str = ""
    gpus: int = 0
    cpus: int = 1
    memory_gb: float = 0
    minutes: int = 24 * 60
    tasks: int = 1
    setup: tuple[str, ...] = ()


@dataclasses.dataclass
class TrainingJob:
    """What runs inside of a job: the training's command in a process of its own. submitit keeps it as it is."""

    command: list[str]
    workdir: str
    tasks: int = 1

    def __call__(self) -> str:
        """Train to the end; raises RuntimeError where the command fails, so that SLURM shows a failed job."""
        place = Place(Path(self.workdir))
        command = [*self.command, "--distributed"] if self.tasks > 1 else self.command
        # SLURM sends submitit's signal to every process of the job; the training would die of it without saving.
        process = start(command, place, deaf_to=(signal.SIGUSR2, signal.SIGUSR1))
        self.pid = process.pid
        # Not process.wait(): checkpoint() may interrupt this thread, and must find no lock taken.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            time.sleep(0.2)
        state = finish(place, process.wait())
        if state == FAILED:
            raise RuntimeError(failure_of(place))
        if state == STOPPED and self.tasks == 1:
            raise RuntimeError("stopped from outside; submit the study again, it goes on")
        return state

    def checkpoint(self):
        """submitit calls this when SLURM takes the job's time away: let the training save, and queue it again."""
        import submitit

        if hasattr(self, "pid"):
            stop(self.pid, SIGNAL_SECONDS - 15)
        return submitit.helpers.DelayedSubmission(TrainingJob(self.command, self.workdir, self.tasks))


def require_slurm() -> None:
    """Raises ValueError with what to do where submitit or a SLURM is not there."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ValueError(
            "--launcher=slurm needs the package submitit: pip install -e '.[studies]', or use --launcher=local"
        ) from None
    if shutil.which("sbatch") is None:
        raise ValueError(
            "--launcher=slurm: there is no sbatch on PATH; call it on a login node of a SLURM cluster, or use "
            "--launcher=local"
        )


def submit(
    folder: Path, jobs: Sequence[tuple[str, Place, Sequence[str]]], options: SlurmOptions, *, at_once: int
) -> dict[str, str]:
    """Submit what is neither done nor in the queue as one array; returns name -> id of the new jobs.

    folder: of the study. at_once: jobs of the array that run at a time. Raises ValueError of :func:`require_slurm`, and
    with SLURM's own words where it refuses.
    """
    require_slurm()
    import submitit

    states = queue_of(folder)
    wanted = [job for job in jobs if state_of(job[1], states.get(job[0], "")) not in (DONE, RUNNING, QUEUED)]
    if not wanted:
        return {}
    executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm", slurm_max_num_timeout=REQUEUES)
    named = {
        "slurm_partition": options.partition, "slurm_account": options.account, "gpus_per_node": options.gpus,
        "mem_gb": options.memory_gb, 
        # submitit's process imports this module, from whatever folder it is called in.
        "slurm_setup": [*options.setup, f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
    }  # fmt: skip
    executor.update_parameters(
        name="tmrjax", timeout_min=options.minutes, tasks_per_node=options.tasks, cpus_per_task=options.cpus,
        slurm_array_parallelism=at_once, slurm_signal_delay_s=SIGNAL_SECONDS,
        **{key: value for key, value in named.items() if value},
    )  # fmt: skip
    try:
        with executor.batch():
            submitted = [
                executor.submit(TrainingJob(list(command), str(place.workdir.resolve()), options.tasks))
                for _, place, command in wanted
            ]
    except submitit.core.utils.FailedJobError as error:
        raise ValueError(f"SLURM does not take the jobs: {' '.join(str(error).split())}") from error
    ids = {name: job.job_id for (name, _, _), job in zip(wanted, submitted, strict=True)}
    write_json(folder / JOBS, _known(folder) | ids)
    return ids


def _known(folder: Path) -> dict[str, str]:
    path = folder / JOBS
    return read_json(path, "delete it; jobs in the queue are then not known any more") if path.exists() else {}


def queue_of(folder: Path) -> Mapping[str, str]:
    """Name -> RUNNING or QUEUED of the study's jobs that SLURM has; empty where no job was submitted.

    Raises ValueError where SLURM does not answer.
    """
    known = _known(folder)
    if not known:
        return {}
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i %T"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise ValueError(f"SLURM does not say what is in its queue: {' '.join(said.split())}") from error
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
    states = {name: found[job] for name, job in known.items() if job in found}
    return {name: RUNNING if state in ("RUNNING", "COMPLETING") else QUEUED for name, state in states.items()}


def wait(folder: Path, seconds: float = 5.0) -> None:
    """Until SLURM has no job of the study any more."""
    while queue_of(folder):
        sys.stdout.flush()
        time.sleep(seconds)
