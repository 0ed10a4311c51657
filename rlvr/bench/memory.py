"""Peak memory of a process and all its descendants; each shared page is counted once."""

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Watches a process tree while the block runs; ``gib`` is its peak memory.

    It adds up proportional set sizes (or resident ones if the system does not report them), so that
    a page shared by two processes is not counted twice.
    """

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        self.gib = 0.0
        self._process = psutil.Process(pid)
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.gib = max(self.gib, tree_gib(self._process))


def tree_gib(process: psutil.Process) -> float:
    """Current memory of a process and its descendants, in GiB."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(_bytes(member.pid) for member in family) / 2**30


def _bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
