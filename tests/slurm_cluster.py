"""A real Slurm for the tests: one machine that plays two nodes, with everything it writes in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "srun")


class NoSlurm(RuntimeError):
    """Slurm cannot be started on this machine; says why."""


SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
MaxArraySize=3
KillWait=3
SlurmdTimeout=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostName={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=graceful Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=first Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for socket_ in sockets:
        socket_.bind(("127.0.0.1", 0))
    ports = [socket_.getsockname()[1] for socket_ in sockets]
    for socket_ in sockets:
        socket_.close()
    return ports


@dataclass(frozen=True)
class Cluster:
    """A running cluster; everything it writes is below `folder`."""

    folder: Path

    def node(self, action: str, name: str) -> None:
        """ "start" the slurmd of a node, or "kill" it (SIGKILL)."""
        if action == "start":
            run("slurmd", "-N", name, "-f", str(self.folder / "slurm.conf"))
            return
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / f"slurmd.{name}.pid").read_text()), signal.SIGKILL)


@contextmanager
def restarted_if_it_crashes(conf: Path) -> Iterator[None]:
    """Start slurmctld, and again if it is gone for two seconds, as systemd does on a real cluster: that of Slurm 22.05 may
    crash while it answers a question about a job. Jobs go on meanwhile."""
    pid_file, over = conf.with_name("slurmctld.pid"), threading.Event()
    run("slurmctld", "-f", str(conf))

    def watch() -> None:
        gone = 0
        while not over.wait(1):
            gone = 0 if is_alive(pid_file) else gone + 1
            if gone > 1:
                subprocess.run(["slurmctld", "-f", str(conf)], capture_output=True, check=False, timeout=60)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A running cluster of two nodes of one core each, without accounting; SLURM_CONF names it meanwhile."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None]
    if missing:
        raise NoSlurm(f"no Slurm on this machine: {', '.join(missing)} not found (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        raise NoSlurm("a Slurm of its own needs root")
    for part in ("state", "spool.n1", "spool.n2"):
        (folder / part).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(folder=folder, host=host, ports=free_ports(3)))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    before = os.environ.copy()
    os.environ["SLURM_CONF"] = str(conf)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    try:
        options = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
        }
        places = [f"--{option}={folder / name}" for option, name in options.items()]
        run("munged", "--force", f"--seed-file={folder / 'munged.seed'}", *places)
        with restarted_if_it_crashes(conf):
            for node in ("n1", "n2"):
                run("slurmd", "-N", node, "-f", str(conf))
            end = time.monotonic() + 60
            while (states := set(sinfo())) != {"idle"}:
                assert time.monotonic() < end, f"nodes are {states}; see {folder}/*.log"
                time.sleep(0.5)
            yield Cluster(folder)
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], check=False, timeout=30)
        for name in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munged.pid"):
            end_process(folder / name)
        os.environ.clear()
        os.environ.update(before)


def sinfo() -> list[str]:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "main", "-o", "%T"], capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.split()


def is_alive(pid_file: Path) -> bool:
    """Whether the daemon that wrote `pid_file` runs."""
    try:
        os.kill(int(pid_file.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def end_process(pid_file: Path) -> None:
    """End the daemon that wrote `pid_file`, and no other."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        for _ in range(50):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        pass  # never started, or gone
