"""A real SLURM of one node on this machine: munged, slurmctld, slurmd, with all their files in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")


def missing() -> str:
    """Why there can be no SLURM here; empty where there can."""
    if os.geteuid() != 0:
        return "slurmd needs to be root"
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)" if absent else ""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class SlurmMachine:
    """Starts the daemons in ``folder``; ``environment`` lets sbatch and the others find them."""

    def __init__(self, folder: Path, cpus: int = 4):
        self.folder, self.processes = folder, []
        for name in ("munge", "state", "spool", "log"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        key, pipe = folder / "munge" / "key", folder / "munge" / "socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (folder / "munge").chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        # cred_expire: a requeued job waits until the credential of its first start has expired.
        self.conf = folder / "slurm.conf"
        self.conf.write_text(
            f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={pipe},cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SchedulerParameters=requeue_delay=1,sched_interval=2,bf_interval=2
MinJobAge=300
KillWait=30
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
        )
        self.environment = {"SLURM_CONF": str(self.conf)}
        arguments = [f"--key-file={key}", f"--socket={pipe}", f"--pid-file={folder}/munge/pid"]
        arguments += [f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed", "--foreground", "--force"]
        self._start("munged", *arguments)
        self._until(pipe.exists, "munged has no socket")
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D", "-c")
        self._until(lambda: "idle" in self.say("sinfo", "--noheader", "--format=%T"), "the node is not idle")

    def _start(self, name: str, *arguments: str) -> None:
        log = (self.folder / "log" / f"{name}.out").open("w")
        environment = os.environ | self.environment
        self.processes.append(
            subprocess.Popen([shutil.which(name), *arguments], stdout=log, stderr=log, env=environment)
        )

    def say(self, *command: str) -> str:
        """What one of SLURM's commands prints; empty while it fails."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | self.environment)
        return done.stdout if done.returncode == 0 else ""

    def preempt(self, job: str) -> None:
        """Signal a job as SLURM does when it takes its time away.

        scancel is stopped after a second: it would try again while the job is requeued, and hit its next start.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["scancel", "--signal=USR2", job], check=False, timeout=1, capture_output=True,
                env=os.environ | self.environment,
            )  # fmt: skip

    def _until(self, true, complaint: str, seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        while not true():
            if time.monotonic() > until:
                logs = "".join(
                    f"\n{path.name}: {path.read_text(errors='replace')[-1500:]}"
                    for path in (self.folder / "log").iterdir()
                )
                self.stop()
                raise RuntimeError(f"{complaint}{logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Cancel all jobs and end the daemons that this object started."""
        self.say("scancel", "--user=root")
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
