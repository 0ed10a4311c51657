"""Checkpoints on their way to the Hub while the run goes on.

A checkpoint's weights are put aside the moment it is written (another name for the same files, so
that pruning cannot take them), and a process of its own builds the export and sends it. Whatever
goes wrong there is a line in the log: it is tried again, later and later, and given up in the end;
training never waits and never stops for it.

    RUN/uploads/step_000020/   weights that wait to be sent, gone once they are
    RUN/uploads.jsonl          every attempt and how it ended

What a stopped run has not sent is sent when it goes on. At most ``most_waiting`` checkpoints wait,
since each keeps its weights on disk.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.hub.settings import HubSettings
from rlvr.hub.words import public
from rlvr.learner import CheckpointWriter
from rlvr.ranks import Ranks

FOLDER, LOG, JOB, WEIGHTS = "uploads", "uploads.jsonl", "job.json", "checkpoint"
_LONGEST_WAIT_S = 600.0
_MOST_S = 6 * 3600.0
"""That one attempt may take."""


@dataclass(frozen=True)
class Job:
    """Weights put aside, and the branch that they go to; None is main."""

    path: Path
    step: int
    revision: str | None

    @property
    def name(self) -> str:
        """For messages."""
        return f"step {self.step}" + ("" if self.revision else " (final)")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended; ``passing`` where another may end otherwise."""

    ok: bool
    message: str
    passing: bool = True


@contextlib.contextmanager
def uploading(
    run: Path,
    settings: HubSettings | None,
    ranks: Ranks,
    checkpoints: CheckpointWriter,
    say: Callable[[str], None],
) -> Iterator["Uploads | None"]:
    """Send what the first rank writes within the block; None where nothing is to be sent."""
    if settings is None or not ranks.first:
        yield None
        return
    uploads = Uploads(run, settings, say)
    if settings.every_checkpoint:
        checkpoints.written = uploads.checkpoint
    try:
        yield uploads
    finally:
        uploads.stop()


class Uploads:
    """The queue, and the thread that works it off.

    Args:
        run: The run folder.
        settings: Where to, and how patiently.
        say: Gets a line for the person watching.
    """

    def __init__(self, run: Path, settings: HubSettings, say: Callable[[str], None]) -> None:
        self.run, self.settings, self.say = run, settings, say
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._busy: Job | None = None
        self._process: subprocess.Popen[str] | None = None
        self._jobs = self._left_over()
        if self._jobs:
            names = ", ".join(job.name for job in self._jobs)
            say(f"hub: {names} was not sent before the run was interrupted; sending it now")
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def checkpoint(self, path: Path) -> None:
        """Have a checkpoint sent to a branch of its name; never raises."""
        self._add(path, path.name)

    def finish(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """Have the final weights sent to main, and wait for all that is under way.

        Args:
            path: The last checkpoint.
            check: Called again and again; may raise to end the wait.
        """
        self._add(path, None)
        deadline = time.monotonic() + self.settings.final_wait_s
        while self._waiting() and time.monotonic() < deadline:
            check()
            with self._changed:
                self._changed.wait(0.2)
        for job in self._waiting():
            branch = f" --revision {job.revision}" if job.revision else ""
            self.say(
                f"hub: {job.name} is not sent yet; send it by: rlvr export {self.run} --step "
                f"{job.step} --push-to-hub {self.settings.repo}{branch}"
            )

    def stop(self) -> None:
        """End at once; what was not sent stays put aside."""
        self._stopped.set()
        with self._changed:
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.kill()
        self._thread.join(10)

    def _waiting(self) -> list[Job]:
        with self._changed:
            return [*([self._busy] if self._busy else []), *self._jobs]

    def _left_over(self) -> list[Job]:
        jobs = []
        for path in sorted((self.run / FOLDER).glob("*")):
            try:
                given = json.loads((path / JOB).read_text(encoding="utf-8"))
                jobs.append(Job(path, given["step"], given["revision"]))
            except (OSError, ValueError, KeyError):
                shutil.rmtree(path, ignore_errors=True)
        return sorted(jobs, key=lambda job: (job.step, job.revision is None))

    def _add(self, checkpoint: Path, revision: str | None) -> None:
        step = int(checkpoint.name.removeprefix("step_"))
        job = Job(self.run / FOLDER / (revision or f"final_{step:06d}"), step, revision)
        with self._changed:
            self._jobs = [other for other in self._jobs if other.path != job.path]
            if self._busy is not None and self._busy.path == job.path:
                return  # the same weights are being sent
        try:
            _put_aside(checkpoint, job)
        except OSError as error:
            self.say(f"hub: {job.name} cannot be put aside to be sent ({error}); it is left out")
            return
        with self._changed:
            self._jobs.append(job)
            waiting = [other for other in self._jobs if other.revision is not None]
            given_up = waiting[: -self.settings.most_waiting]
            self._jobs = [other for other in self._jobs if other not in given_up]
            self._changed.notify_all()
        for other in given_up:
            shutil.rmtree(other.path, ignore_errors=True)
            self.say(
                f"hub: {other.name} is given up: uploads are slower than checkpoints "
                "(hub.most_waiting)"
            )

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                self._busy = None
                self._changed.notify_all()
                while not self._jobs and not self._stopped.is_set():
                    self._changed.wait(1.0)
                if self._stopped.is_set():
                    return
                self._busy = job = self._jobs.pop(0)
            if self._send(job):
                shutil.rmtree(job.path, ignore_errors=True)

    def _send(self, job: Job) -> bool:
        """Try until it succeeds or is given up; False where the run stopped before that."""
        wait = self.settings.first_wait_s
        for attempt in range(1, self.settings.attempts + 1):
            outcome = self._attempt(job)
            if self._stopped.is_set() and not outcome.ok:
                return False
            self._record(job, attempt, outcome)
            if outcome.ok:
                self.say(f"hub: {job.name} is at {outcome.message}")
                return True
            last = attempt == self.settings.attempts or not outcome.passing
            what = "given up" if last else f"trying again in {wait:.0f} s"
            self.say(f"hub: {job.name} was not sent ({outcome.message}); {what}")
            if last:
                return True
            if self._stopped.wait(wait):
                return False
            wait = min(2 * wait, _LONGEST_WAIT_S)
        raise AssertionError("at least one attempt is made")

    def _attempt(self, job: Job) -> Outcome:
        # The child ends when the pipe does, which is when this process is no more.
        reading, writing = os.pipe()
        try:
            with self._changed:
                if self._stopped.is_set():
                    return Outcome(False, "the run stops")
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "rlvr.hub.worker", str(self.run), str(job.path)],
                    stdin=reading,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C is for the run
                )
            return _outcome(*self._process.communicate(timeout=_MOST_S))
        except OSError as error:
            return Outcome(False, str(error))
        except subprocess.TimeoutExpired:
            return Outcome(False, f"it took longer than {_MOST_S:.0f} s")
        finally:
            process, self._process = self._process, None
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            os.close(reading)
            os.close(writing)

    def _record(self, job: Job, attempt: int, outcome: Outcome) -> None:
        row = {
            "step": job.step,
            "revision": job.revision,
            "attempt": attempt,
            "ok": outcome.ok,
            "message": outcome.message,
            "time": round(time.time(), 3),
        }
        try:
            with (self.run / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a full disk is the run's to report
            self.say(f"hub: {LOG} cannot be written ({error})")


def _put_aside(checkpoint: Path, job: Job) -> None:
    """Give the checkpoint's weights a second name; the folder appears once it is whole."""
    partial = job.path.with_name(f".{job.path.name}.partial")
    for leftover in (partial, job.path):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in ("model", "adapter"):
        for path in (checkpoint / name).rglob("*"):
            target = partial / WEIGHTS / path.relative_to(checkpoint)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, target)
                except OSError:  # a file system without links
                    shutil.copyfile(path, target)
    shutil.copyfile(checkpoint / "MANIFEST.json", partial / WEIGHTS / "MANIFEST.json")
    given = {"step": job.step, "revision": job.revision}
    (partial / JOB).write_text(json.dumps(given), encoding="utf-8")
    partial.rename(job.path)


def _environment() -> dict[str, str]:
    """Of the process that sends: no GPU, and no part in the run's process group."""
    launched = {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    }
    kept = {name: value for name, value in os.environ.items() if name not in launched}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _outcome(output: str, errors: str) -> Outcome:
    """What the process said in its last line."""
    lines = output.strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
        return Outcome(bool(found["ok"]), str(found["message"]), bool(found["passing"]))
    except (IndexError, ValueError, KeyError, TypeError):
        told = errors.strip().splitlines()
        return Outcome(False, public(told[-1]) if told else "the process that sends it died")
