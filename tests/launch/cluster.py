"""A SLURM cluster on loopback: munge, one controller, node daemons, all in one temporary folder."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
_PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def find(name):
    return shutil.which(name, path=_PLACES)


def missing():
    return [name for name in BINARIES if find(name) is None]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def may_mount():
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(find("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


CONF = """
ClusterName=rlvr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldParameters=idle_on_node_suspend
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobRequeue=1
KillWait=30
InactiveLimit=0
SchedulerParameters=sched_min_interval=0
{nodes}
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
PartitionName=apart Nodes=node1,{apart} MaxTime=INFINITE State=UP
"""


class Cluster:
    """Daemons that live until :meth:`close`; :attr:`own` of the last node is nobody else's.

    node1 and node2 are the partition ``main``. Where mounts are allowed, node3 is a daemon that
    sees an empty folder where the others see :attr:`own`, as a disk of its own would be; with node1
    it is the partition ``apart``.

    Args:
        folder: For everything that they write; short, for a socket lies in it.
    """

    def __init__(self, folder):
        self.folder, self.processes = Path(folder), []
        self.own = self.folder / "own"
        self.own.mkdir()
        self.apart = may_mount()
        self.names = ["node1", "node2", *(["node3"] if self.apart else [])]
        ports = free_ports(len(self.names) + 1)
        host = socket.gethostname().partition(".")[0]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4"
            for name, port in zip(self.names, ports[1:], strict=True)
        ]
        for name in ("state", *(f"spool-{name}" for name in self.names)):
            (self.folder / name).mkdir()
        self.conf = self.folder / "slurm.conf"
        filled = CONF.format(
            host=host,
            ports=ports,
            folder=self.folder,
            user=getpass.getuser(),
            apart=self.names[-1],
            nodes="\n".join(lines),
        )
        self.conf.write_text(filled)
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        # munged looks at who may write to the folders above its files.
        self.daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )
        self.wait(lambda: (self.folder / "munge.socket").exists(), 20, "munged")
        self.daemon("slurmctld", "-D")
        for name in self.names[:2]:
            self.daemon("slurmd", "-D", "-N", name)
        if self.apart:
            hide = 'mount -t tmpfs none "$1" && shift && exec "$@"'
            words = ("sh", "-c", hide, "sh", str(self.own), find("slurmd"), "-D", "-N", "node3")
            self.daemon("unshare", "--mount", *words)
        self.wait(lambda: self.idle() == len(self.names), 60, "the nodes")

    def daemon(self, name, *arguments):
        with (self.folder / f"{len(self.processes)}-{name}.out").open("ab") as output:
            process = subprocess.Popen(
                [find(name), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def wait(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come in time; see {self.folder}"
            time.sleep(0.2)

    def ask(self, name, *arguments):
        done = subprocess.run(
            [find(name), *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def idle(self):
        lines = self.ask("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return len({line for line in lines if line.endswith(" idle")})

    def job(self, number):
        """Its fields as scontrol shows them."""
        words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words)

    def state(self, number):
        return self.job(number).get("JobState", "")

    def tasks(self, name):
        """Processes of the jobs' steps on a node."""
        found = []
        for process in self._mine():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == name:
                    found.append(process)
        return found

    def _mine(self):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.conf):
                    yield process

    def left(self):
        """Processes that belong to this cluster or its jobs."""
        return [process for process in self._mine() if process.pid != os.getpid()]

    def close(self):
        """End all jobs, then all daemons, then whatever is left of either."""
        for number in self.ask("squeue", "--noheader", "--format=%i").split():
            self.ask("scancel", number)
        with contextlib.suppress(AssertionError):
            self.wait(lambda: not self.ask("squeue", "--noheader"), 45, "the end of the jobs")
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
        for process in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
