"""Start the vLLM process, talk to it, and end it with everything that it started.

The process gets a socket and its settings, but not a launcher's environment variables, which would
make vLLM act as one rank of the training job.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rlvr.install_hints import VLLM_PACKAGES, fault_and_remedy, vllm_reinstall
from rlvr.rollout.channel import Channel, ClosedError
from rlvr.rollout.settings import ALONE, LOOPBACK

_CLOSE_S = 15.0
_RANK_VARIABLES = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "LOCAL_", "GROUP_", "ROLE_")
    for name in ("RANK", "WORLD_SIZE")
) | {"MASTER_ADDR", "MASTER_PORT"}


class EngineDiedError(RuntimeError):
    """The engine process ended, or was killed because it was silent for too long."""


class EngineProcess:
    """One process with one vLLM engine.

    Args:
        settings: Keyword arguments of ``vllm.LLM`` that JSON can represent.
        folder: Folder that the process removes when this process disappears.
        threads: Number of OpenMP threads.
        start_timeout_s: Maximum seconds until it is ready.
        silence_timeout_s: Maximum seconds without a message while it works.
        log: File for its output; None keeps the output only while the process lives.
        variables: Environment variables in addition to this process's.

    Raises:
        ValueError: vLLM cannot be imported or rejects the settings; no process is left running.
        EngineDiedError: The process ended before it was ready.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        folder: Path,
        *,
        threads: int,
        start_timeout_s: float,
        silence_timeout_s: float,
        log: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.silence_timeout_s = silence_timeout_s
        # Stays open until the process is dead, because error messages quote its last line.
        self.output: IO[bytes] = (
            tempfile.TemporaryFile() if log is None else log.open("ab+")  # noqa: SIM115
        )
        self.last_output = ""
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "rlvr.rollout.vllm_process"),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                start_new_session=True,
                env={**child_environment(os.environ, threads), **(variables or {})},
            )
        self.channel = Channel(ours)
        try:
            self._send(
                {"method": "start", "settings": dict(settings), "folder": str(folder.resolve())}
            )
            self._next("starting", start_timeout_s)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self.process.pid

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        """Send one request and wait for the answer.

        Raises:
            EngineDiedError: No answer arrived.
        """
        self._send({"method": method, **arguments})
        return self._next(method, self.silence_timeout_s)

    def stream(self, method: str, **arguments: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
        """Send one request and yield its messages as they arrive, including signs of life.

        Raises:
            EngineDiedError: The last message did not arrive.
        """
        self._send({"method": method, **arguments})
        while (message := self._next(method, self.silence_timeout_s))["event"] != "done":
            yield message

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self.channel.send(message)
        except ClosedError as error:
            raise self._died(str(message["method"])) from error

    def _next(self, doing: str, timeout_s: float) -> dict[str, Any]:
        try:
            message = self.channel.receive(timeout_s)
        except TimeoutError as error:
            self.kill()
            raise EngineDiedError(
                f"the vLLM process sent nothing for {timeout_s:g} s ({doing}) and was killed"
            ) from error
        except ClosedError as error:
            raise self._died(doing) from error
        if message["event"] == "failed":
            self._failed(doing, message["kind"], message["text"])
        return message

    def _died(self, doing: str) -> EngineDiedError:
        self.kill()
        return EngineDiedError(
            f"the vLLM process ended with code {self.process.returncode} ({doing}); "
            f"its last line of output: {_last_line(self.last_output)}"
        )

    def _failed(self, doing: str, kind: str, text: str) -> None:
        """Raise the error that the process reported; during the start it is a ValueError for the
        user."""
        self.kill()
        if doing != "starting":
            raise EngineDiedError(f"vLLM failed ({doing}): {_one_line(text)}")
        known = fault_and_remedy(self.last_output + text)
        if known is not None:
            raise ValueError(f"vLLM cannot be imported: {known[0]}; {known[1]}")
        if kind in ("ImportError", "ModuleNotFoundError"):
            remedy = vllm_reinstall(VLLM_PACKAGES[1])
            raise ValueError(f"vLLM cannot be imported: {_one_line(text)}; {remedy}")
        raise ValueError(
            f"vLLM does not start: {_one_line(text)}; change rollout.engine, or read its output in "
            "the file set by rollout.engine.log"
        )

    def close(self) -> None:
        """Ask it to end and wait; then kill it and everything that it started."""
        try:
            self.channel.send({"method": "close"})
            self.process.wait(_CLOSE_S)
        except (ClosedError, subprocess.TimeoutExpired):
            pass  # it is killed below
        self.kill()

    def kill(self) -> None:
        """Kill it and everything that it started; a second call does nothing."""
        if self.output.closed:
            return
        with suppress(ProcessLookupError):  # the process group may already be gone
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.channel.close()
        size = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, size - 20_000))
        self.last_output = self.output.read().decode(errors="replace")
        self.output.close()


def child_environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """Environment variables of the vLLM process; it uses no network and reports no usage."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _RANK_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
    return {
        "VLLM_LOGGING_LEVEL": "WARNING",
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **(ALONE if sys.platform.startswith("linux") else {"VLLM_HOST_IP": LOOPBACK}),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads must not spin, because the learner works while the engine waits.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())[:600]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "none"
