"""How programs are kept apart from a machine, what they may use, and how a run ended."""

from dataclasses import dataclass
from typing import Literal

Finish = Literal["ok", "timeout", "memory", "output", "crashed"]
"""How a run ended: by itself with exit status 0; stopped at its time; stopped at its memory, or by
a ``MemoryError``; stopped because it wrote too much; anything else."""


Isolation = Literal["auto", "bubblewrap", "namespaces", "none_i_trust_the_code"]
"""What separates a program from this machine; ``auto`` is bubblewrap or namespaces."""
Way = Literal["bubblewrap", "namespaces", "none_i_trust_the_code"]


@dataclass(frozen=True)
class Limits:
    """Bounds of one run.

    Attributes:
        seconds: of the clock; processor seconds are bounded by the same, rounded up, and one.
        memory_mib: address space of each process in MiB, and resident memory of all together.
        processes: processes and threads at the same time.
        output_kib: of stdout, and of stderr, in KiB.
        files_mib: size of the working folder, and of any file, in MiB.
        open_files: open files of a process.
    """

    seconds: float = 4.0
    memory_mib: int = 512
    processes: int = 32
    output_kib: int = 1024
    files_mib: int = 16
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, least in (("memory_mib", 64), ("processes", 1), ("open_files", 16)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least {least}")
        for name in ("seconds", "output_kib", "files_mib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be above 0")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    ``status`` is the exit status, negative for a signal; ``stdout`` and ``stderr`` are cut at their
    limit, bytes that are no UTF-8 replaced; ``seconds`` are of the clock.
    """

    finish: Finish
    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def how(self) -> str:
        """The end in words, without anything that the program was compared with."""
        if self.finish == "timeout":
            return f"no end within {self.seconds:.1f} s"
        if self.finish == "crashed":
            said = self.stderr.strip().rpartition("\n")[2][:120]
            how = f"signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
            return f"{how} ({said})" if said else how
        return {"ok": "ended", "memory": "too much memory", "output": "too much output"}[
            self.finish
        ]
