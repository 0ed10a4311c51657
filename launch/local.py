"""The roles of a job as child processes on this machine: no SLURM, the same commands.

"Nodes" are then only numbers: nodes that learn meet on one port of this machine, nodes that serve
have ports one after the other, and the GPUs that there are go to them in order. When one role ends
before its time all do; when this process ends, even by ``kill -9``, all do.
"""

import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from launch import health
from launch.job import Job, learner_command, server_command
from launch.node import GRACE_S
from launch.preflight import taken_ports
from launch.words import fill
from rlvr.rollout.settings import LOOPBACK

_PAUSE_S = 0.2
_LAST_LINES = 5
# Over the role's own patience, after which it kills what is below it.
_END_S = GRACE_S + 10.0


class LocalRun:
    """One launch on this machine.

    Args:
        job: What to start.
        logs: Folder of the roles' logs; None is next to the run's other launches.
    """

    def __init__(self, job: Job, logs: Path | None = None) -> None:
        self.job = job
        self.logs = logs or Path(job.folder) / time.strftime("local-%Y%m%d-%H%M%S")
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._signals: list[int] = []

    def run(self) -> int:
        """Start all roles and wait for the learner; the exit code.

        0 is a run that ended; 128 + N one that signal N stopped after saving; else the code of the
        role that failed, which is named.

        Raises:
            ValueError: A port is taken, or servers do not become healthy in time.
        """
        if taken := taken_ports(self._ports(), LOOPBACK):
            raise ValueError(
                f"port {', '.join(map(str, taken))} of this machine is taken; end what listens "
                "there, or choose others with --main-port and --server-port"
            )
        self.logs.mkdir(parents=True, exist_ok=True)
        (Path(self.job.folder) / "weights").mkdir(parents=True, exist_ok=True)
        with self._listening():
            try:
                self._start_servers()
                self._start_learners()
                return self._watch()
            except _Ended as ended:
                return ended.code
            finally:
                self._end()

    def _ports(self) -> list[int]:
        settings = self.job.settings
        servers = range(settings.server_port, settings.server_port + _server_count(self.job))
        return [settings.main_port, *servers]

    def _start_servers(self) -> None:
        settings, servers = self.job.settings, {}
        for index in range(_server_count(self.job)):
            name, port = f"server-{index}", settings.server_port + index
            command = server_words(self.job, index)
            self._start(name, command, self._devices(index))
            servers[f"http://{LOOPBACK}:{port}"] = str(self.logs / f"{name}.log")
        if servers:
            _say(f"{len(servers)} servers start; logs in {self.logs}")
            health.wait(servers, settings.start_timeout_s, self._look, self._key)

    def _start_learners(self) -> None:
        for rank in range(self.job.settings.learner_nodes):
            command = learner_words(self.job, rank, str(self.logs))
            # The first speaks to people.
            self._start(f"learner-{rank}", command, self._learner_devices(rank), shown=rank == 0)

    def _start(
        self, name: str, command: Sequence[str], devices: Sequence[int], *, shown: bool = False
    ) -> None:
        at = command.index("launch.node") + 1
        environment = {
            **os.environ,
            **self.job.settings.site.environment,
            "VLLM_API_KEY": self._key,
        }
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        with (self.logs / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [*command[:at], "--with-parent", *command[at:]],
                cwd=self.job.workdir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if shown else log,
                stderr=None if shown else log,
                # Ctrl-C is for this process, which stops the roles in order.
                start_new_session=True,
            )

    def _watch(self) -> int:
        while self._learners_run():
            self._look()
            time.sleep(_PAUSE_S)
        self._look()
        stopped = (self.logs / "stopped").is_dir()
        return 128 + self._signals[0] if stopped and self._signals else 0

    def _look(self) -> None:
        """Raise what ended before its time, and pass signals on."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None and (code != 0 or name.startswith("server")):
                self._account(name, code)
                raise _Ended(code if code > 0 else 1)
        if self._signals and not self._learners_run():
            raise _Ended(128 + self._signals[0])

    def _account(self, name: str, code: int) -> None:
        _say(f"{name} ended with exit code {code}, so all others are ended, too")
        log = self.logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        if lines:
            _say("\n".join([f"last lines of {log}:", *lines]))

    def _learners_run(self) -> bool:
        learners = [c for name, c in self._children.items() if name.startswith("learner")]
        return any(child.poll() is None for child in learners)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._signalled) for number in numbers}
        known = {**os.environ, **self.job.settings.site.environment}
        self._key = known.get("VLLM_API_KEY") or secrets.token_hex(16)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        """The first has the learner save and stop; a second ends everything."""
        self._signals.append(number)
        if len(self._signals) > 1 and number != signal.SIGUSR1:
            raise _Ended(128 + number)
        if len(self._signals) == 1:
            for name, child in self._children.items():
                if name.startswith("learner"):
                    child.send_signal(signal.SIGUSR1)

    def _end(self) -> None:
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        for child in self._children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _learner_devices(self, rank: int) -> list[int]:
        gpus = self.job.settings.gpus_per_node
        return list(range(rank * gpus, rank * gpus + min(gpus, self.job.settings.processes)))

    def _devices(self, index: int) -> list[int]:
        """GPUs of a server: after the learner's, in order."""
        settings = self.job.settings
        if not settings.gpus_per_node:
            return []
        node, place = divmod(index, settings.servers)
        first = (settings.learner_nodes + node) * settings.gpus_per_node
        first += place * settings.tensor_parallel
        return list(range(first, first + settings.tensor_parallel))


class _Ended(BaseException):
    """A role ended, or everything is to."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def learner_words(job: Job, rank: int, logs: str) -> list[str]:
    """The command of a learner "node" on this machine."""
    settings = job.settings
    ports = range(settings.server_port, settings.server_port + _server_count(job))
    late = {
        "rank": str(rank),
        "main_address": LOOPBACK,
        "logs": logs,
        "weights": f"{job.folder}/weights",
        "servers": ", ".join(f"http://{LOOPBACK}:{port}" for port in ports),
    }
    return fill(learner_command(job), late, ["--resume"] if job.resume else [])


def server_words(job: Job, index: int) -> list[str]:
    """The command of a server on this machine."""
    port = job.settings.server_port + index
    late = {"host": LOOPBACK, "port": str(port), "weights": f"{job.folder}/weights"}
    return fill(server_command(job), late)


def describe_roles(job: Job) -> str:
    """Every role's command on this machine, a line each."""
    lines = [f"server {i}: {shlex.join(server_words(job, i))}" for i in range(_server_count(job))]
    for rank in range(job.settings.learner_nodes):
        lines.append(f"learner {rank}: {shlex.join(learner_words(job, rank, 'LOGS'))}")
    return "\n".join(lines)


def _server_count(job: Job) -> int:
    return job.settings.rollout_nodes * job.settings.servers


def _say(text: str) -> None:
    print(f"rlvr launch: {text}", file=sys.stderr, flush=True)
