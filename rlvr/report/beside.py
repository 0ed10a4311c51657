"""A dashboard that a training run starts beside itself, and that ends with it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def dashboard_beside(output: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Serve a dashboard of the folder that contains ``output`` while the block runs.

    It is a process of its own, so it takes no time from the run's, and it ends when the run's
    process does, however that ends. If it cannot be started, that is told and nothing else
    happens. Only the first process of a job starts one.

    Args:
        output: Folder of the run, which need not exist yet.
        tell: Called with a line: the address to open, or what went wrong; from another thread.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = output.absolute().parent
    command = [sys.executable, "-m", "rlvr", "dashboard", str(folder), "--beside-run"]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is the run's, which goes on until it has saved
        )
    except OSError as error:
        tell(f"dashboard: it could not be started ({error}); the run goes on without")
        yield
        return
    reader = threading.Thread(target=_tell_lines, args=(child, tell), daemon=True)
    reader.start()
    try:
        yield
    finally:
        _end(child)
        reader.join(timeout=2)


def _tell_lines(child: subprocess.Popen[str], tell: Callable[[str], None]) -> None:
    for line in child.stdout or ():
        if line.strip():
            tell(f"dashboard: {line.strip()}")


def _end(child: subprocess.Popen[str]) -> None:
    if child.stdin is not None:
        child.stdin.close()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
