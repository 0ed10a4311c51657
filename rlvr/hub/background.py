"""Upload checkpoints to the Hub while the run continues.

As soon as a checkpoint is written, its weights are staged (hard links to the same files, so that
pruning cannot delete them), and a separate process builds the export and sends it. A failure is
logged in one line and retried with growing pauses; after the last attempt the upload is abandoned.
Training never waits or stops for it.

    RUN/uploads/step_000020/   staged weights, deleted once they are sent
    RUN/uploads.jsonl          every attempt and its outcome

A resumed run sends what the stopped run had not sent. At most ``most_waiting`` checkpoints wait,
because each keeps its weights on disk.
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

from rlvr.files import append_line, replacing_folder
from rlvr.hub.card_text import public
from rlvr.learner.checkpoint import CheckpointWriter
from rlvr.ranks import Ranks
from rlvr.runs.hub_settings import HubSettings

FOLDER, LOG, JOB, WEIGHTS = "uploads", "uploads.jsonl", "upload.json", "checkpoint"
_LONGEST_WAIT_S = 600.0
_MOST_S = 6 * 3600.0
"""Maximum seconds for one attempt."""


@dataclass(frozen=True)
class PendingUpload:
    """Staged weights and the branch to which they are sent; None is main."""

    path: Path
    step: int
    revision: str | None

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"step {self.step}" + ("" if self.revision else " (final)")


@dataclass(frozen=True)
class UploadOutcome:
    """How an attempt ended; ``passing`` if a later attempt may succeed."""

    ok: bool
    message: str
    passing: bool = True


@contextlib.contextmanager
def uploading(
    run: Path,
    settings: HubSettings | None,
    ranks: Ranks,
    checkpoints: CheckpointWriter,
    notify: Callable[[str], None],
) -> Iterator["UploadQueue | None"]:
    """Upload the checkpoints that rank 0 writes within the block; None if nothing is to be sent."""
    if settings is None or not ranks.first:
        yield None
        return
    uploads = UploadQueue(run, settings, notify)
    if settings.every_checkpoint:
        checkpoints.written = uploads.checkpoint
    try:
        yield uploads
    finally:
        uploads.stop()


class UploadQueue:
    """The queue of uploads and the thread that processes it.

    Args:
        run: The run folder.
        settings: The target repository, and how often to retry.
        notify: Called with lines for the person who watches the run.
    """

    def __init__(self, run: Path, settings: HubSettings, notify: Callable[[str], None]) -> None:
        self.run, self.settings, self.notify = run, settings, notify
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._busy: PendingUpload | None = None
        self._process: subprocess.Popen[str] | None = None
        self._jobs = self._left_over()
        if self._jobs:
            names = ", ".join(upload.name for upload in self._jobs)
            notify(f"hub: {names} was not sent before the run was interrupted; sending it now")
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def checkpoint(self, path: Path) -> None:
        """Queue a checkpoint for a branch with its name; never raises."""
        self._add(path, path.name)

    def finish(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """Queue the final weights for main, and wait for all uploads.

        Args:
            path: The last checkpoint.
            check: Called repeatedly; it may raise to end the wait.
        """
        self._add(path, None)
        deadline = time.monotonic() + self.settings.final_wait_s
        while self._waiting() and time.monotonic() < deadline:
            check()
            with self._changed:
                self._changed.wait(0.2)
        for upload in self._waiting():
            branch = f" --revision {upload.revision}" if upload.revision else ""
            self.notify(
                f"hub: {upload.name} is not sent yet; send it with: rlvr export {self.run} --step "
                f"{upload.step} --push-to-hub {self.settings.repo}{branch}"
            )

    def stop(self) -> None:
        """Stop immediately; weights that were not sent stay staged."""
        self._stopped.set()
        with self._changed:
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.kill()
        self._thread.join(10)

    def _waiting(self) -> list[PendingUpload]:
        with self._changed:
            return [*([self._busy] if self._busy else []), *self._jobs]

    def _left_over(self) -> list[PendingUpload]:
        pending = []
        for path in sorted((self.run / FOLDER).glob("*")):
            try:
                given = json.loads((path / JOB).read_text(encoding="utf-8"))
                pending.append(PendingUpload(path, given["step"], given["revision"]))
            except (OSError, ValueError, KeyError):
                shutil.rmtree(path, ignore_errors=True)
        return sorted(pending, key=lambda upload: (upload.step, upload.revision is None))

    def _add(self, checkpoint: Path, revision: str | None) -> None:
        step = int(checkpoint.name.removeprefix("step_"))
        staged = self.run / FOLDER / (revision or f"final_{step:06d}")
        upload = PendingUpload(staged, step, revision)
        with self._changed:
            self._jobs = [other for other in self._jobs if other.path != upload.path]
            if self._busy is not None and self._busy.path == upload.path:
                return  # the same weights are already being sent
        try:
            _put_aside(checkpoint, upload)
        except OSError as error:
            self.notify(
                f"hub: {upload.name} cannot be staged for the upload ({error}); it is skipped"
            )
            return
        with self._changed:
            self._jobs.append(upload)
            waiting = [other for other in self._jobs if other.revision is not None]
            given_up = waiting[: -self.settings.most_waiting]
            self._jobs = [other for other in self._jobs if other not in given_up]
            self._changed.notify_all()
        for other in given_up:
            shutil.rmtree(other.path, ignore_errors=True)
            self.notify(
                f"hub: {other.name} is abandoned: uploads are slower than checkpoints "
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
                self._busy = upload = self._jobs.pop(0)
            if self._send(upload):
                shutil.rmtree(upload.path, ignore_errors=True)

    def _send(self, upload: PendingUpload) -> bool:
        """Try until the upload succeeds or is abandoned; False if the run stopped before that."""
        wait = self.settings.first_wait_s
        for attempt in range(1, self.settings.attempts + 1):
            outcome = self._attempt(upload)
            if self._stopped.is_set() and not outcome.ok:
                return False
            self._record(upload, attempt, outcome)
            if outcome.ok:
                self.notify(f"hub: {upload.name} is at {outcome.message}")
                return True
            last = attempt == self.settings.attempts or not outcome.passing
            what = "abandoned" if last else f"trying again in {wait:.0f} s"
            self.notify(f"hub: {upload.name} was not sent ({outcome.message}); {what}")
            if last:
                return True
            if self._stopped.wait(wait):
                return False
            wait = min(2 * wait, _LONGEST_WAIT_S)
        raise AssertionError("at least one attempt is made")

    def _attempt(self, upload: PendingUpload) -> UploadOutcome:
        # The child ends when the pipe closes, that is when this process ends.
        reading, writing = os.pipe()
        try:
            with self._changed:
                if self._stopped.is_set():
                    return UploadOutcome(False, "the run is stopping")
                command = [sys.executable, "-m", "rlvr.hub.upload_worker"]
                self._process = subprocess.Popen(
                    [*command, str(self.run), str(upload.path)],
                    stdin=reading,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C must only reach the run
                )
            return _outcome(*self._process.communicate(timeout=_MOST_S))
        except OSError as error:
            return UploadOutcome(False, str(error))
        except subprocess.TimeoutExpired:
            return UploadOutcome(False, f"it took longer than {_MOST_S:.0f} s")
        finally:
            process, self._process = self._process, None
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            os.close(reading)
            os.close(writing)

    def _record(self, upload: PendingUpload, attempt: int, outcome: UploadOutcome) -> None:
        row = {
            "step": upload.step,
            "revision": upload.revision,
            "attempt": attempt,
            "ok": outcome.ok,
            "message": outcome.message,
            "time": round(time.time(), 3),
        }
        try:
            append_line(self.run / LOG, row)
        except OSError as error:  # the run itself reports a full disk
            self.notify(f"hub: {LOG} cannot be written ({error})")


def _put_aside(checkpoint: Path, upload: PendingUpload) -> None:
    """Link the checkpoint's weights into a second folder, which appears only when complete."""
    weights = (path for name in ("model", "adapter") for path in (checkpoint / name).rglob("*"))
    with replacing_folder(upload.path) as partial:
        for path in (path for path in weights if path.is_file()):
            target = partial / WEIGHTS / path.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:  # a file system without links
                shutil.copyfile(path, target)
        shutil.copyfile(checkpoint / "MANIFEST.json", partial / WEIGHTS / "MANIFEST.json")
        given = {"step": upload.step, "revision": upload.revision}
        (partial / JOB).write_text(json.dumps(given), encoding="utf-8")


def _environment() -> dict[str, str]:
    """Environment of the sending process: no GPU, and no rank in the run's process group."""
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


def _outcome(output: str, errors: str) -> UploadOutcome:
    """The outcome that the process printed in its last line."""
    lines = output.strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
        return UploadOutcome(bool(found["ok"]), str(found["message"]), bool(found["passing"]))
    except (IndexError, ValueError, KeyError, TypeError):
        told = errors.strip().splitlines()
        return UploadOutcome(False, public(told[-1]) if told else "the sending process died")
