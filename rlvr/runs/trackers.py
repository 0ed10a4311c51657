"""Experiment trackers: wandb, trackio and tensorboard, each started by accelerate.

They get what the run folder gets: every metric under its name, at its step; the recipe with its
numbers as numbers; the completions that people read as tables. ``metrics.jsonl`` is the record, so
a tracker that fails once the run has begun is told of once and counted, and the run goes on. What
can be known to fail is refused before the run has a folder: nothing asks for a password here, where
a job of a cluster would wait for it until its time is over.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from rlvr.files import write_atomically
from rlvr.runs.tracker_settings import TrackSettings

# Seconds that a finished run waits for wandb's uploads; what is left lies in the run's folder.
_LAST_UPLOAD_S = 600.0
# What a person reads of a completion; the run folder has its tokens and log-probabilities too.
_COLUMNS = (
    "set",
    "problem_id",
    "prompt",
    "response",
    "answer",
    "extracted",
    "correct",
    "reward",
    "advantage",
    "finish_reason",
)


def check_trackers(settings: TrackSettings, folder: Path, *, resuming: bool) -> None:
    """Check that the trackers can start before the run writes anything.

    Args:
        settings: Which, and how.
        folder: The run folder; it need not be there.
        resuming: Whether the run goes on; it then does so even if wandb's server is away.

    Raises:
        ValueError: A tracker is not installed or is given what it does not take, or wandb has no
            key, or one that its server refuses.
    """
    for name in settings.track:
        if find_spec(name) is None:
            raise ValueError(
                f"log.track names {name!r}, which is not installed; run: pip install 'rlvr[track]'"
            )
        if settings.tracker_init.get(name):
            _check_arguments(name, settings.tracker_init[name])
    if "trackio" in settings.track:
        _check_trackio_project(_project("trackio", settings, folder))
    if "wandb" in settings.track:
        _check_login(settings.tracker_init.get("wandb", {}).get("mode"), verify=not resuming)


class Trackers:
    """The trackers of a run.

    Args:
        settings: Which, and how they name the run.
        folder: The run folder.
        config: The recipe, as JSON values.
        resumed_step: Number of steps already done.
        notify: Prints a line for people.

    Raises:
        ValueError: One could not start, and the run is new.
    """

    def __init__(
        self,
        settings: TrackSettings,
        folder: Path,
        config: Mapping[str, Any],
        resumed_step: int,
        notify: Callable[[str], None],
    ) -> None:
        self.settings, self.notify = settings, notify
        self.failures = 0
        """How often one could not take what it was given."""
        self._warned: set[str] = set()
        self._started: dict[str, Any] = {}
        for name in settings.track:
            try:
                self._started[name] = _start(name, settings, folder, config, resumed_step)
            except Exception as error:  # another program's, which may raise anything
                if not resumed_step:
                    self.finish(error)
                    raise ValueError(
                        f"log.track: {name} cannot start ({_one_line(error)}); mend that, or leave "
                        f"{name} out{_OFFLINE if name == 'wandb' else ''}"
                    ) from error
                self._failed(name, error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send metrics of a step; those of one step may come in several calls."""
        for name, tracker in self._started.items():
            with self._going_on(name):
                if name == "wandb":
                    # Not wandb's own step, which only grows: what comes late would be dropped.
                    tracker.log({**metrics, "step": step})
                else:
                    tracker.log(dict(metrics), step=step)

    def completions(self, kind: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send completions as a table; ``kind`` names it."""
        rows = rows[: self.settings.tracked_completions]
        if not rows:
            return
        names = [name for name in _COLUMNS if any(name in row for row in rows)]
        cells = [[step, *(_cell(row.get(name)) for name in names)] for row in rows]
        for name, tracker in self._started.items():
            with self._going_on(name):
                _send_table(name, tracker, kind, step, ["step", *names], cells)

    def finish(self, error: BaseException | None = None) -> None:
        """End the run at the trackers: finished, or failed by ``error``."""
        for name, tracker in self._started.items():
            with self._going_on(name):
                _finish(name, tracker, error)
        self._started = {}

    @contextmanager
    def _going_on(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # another program's, which may raise anything
            self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self.failures += 1
        if name not in self._warned:
            self._warned.add(name)
            self.notify(
                f"{name} failed ({_one_line(error)}); the run goes on, and metrics.jsonl has "
                "everything; later failures are counted as log/tracker_failures"
            )


_OFFLINE = ", or set WANDB_MODE=offline and run `wandb sync` later"


def _check_arguments(name: str, given: Mapping[str, Any]) -> None:
    known = set(signature(_start_function(name)).parameters) - {"self", "config", "project"}
    for key in given:
        if key not in known:
            raise ValueError(
                f"log.tracker_init.{name} has {key!r}, which {name} does not take here; it takes "
                f"{', '.join(sorted(known))}"
            )


def _start_function(name: str) -> Callable[..., Any]:
    if name == "wandb":
        import wandb

        return wandb.init
    if name == "trackio":
        import trackio

        return trackio.init
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


def _check_trackio_project(project: str) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    try:
        SQLiteStorage.validate_project_name(project)
    except ValueError as error:
        raise ValueError(f"log.project {project!r}: {_one_line(error)}; choose another") from error


def _check_login(mode: str | None, *, verify: bool) -> None:
    """Check that wandb can send, where it is to send: it has a key, and its server takes it."""
    import wandb

    mode = mode or wandb.setup().settings.mode
    if mode not in ("online", "shared"):
        return
    try:
        known = wandb.login(prompt=False, verify=verify)
    except Exception as error:  # a refused key, no server, no service
        raise ValueError(
            f"log.track names wandb, which cannot log in ({_one_line(error)}); run `wandb login`, "
            f"or set WANDB_API_KEY{_OFFLINE}"
        ) from error
    if not known:
        raise ValueError(
            "log.track names wandb, which has no API key; run `wandb login`, or set WANDB_API_KEY"
            f"{_OFFLINE}"
        )


def _start(
    name: str, settings: TrackSettings, folder: Path, config: Mapping[str, Any], resumed_step: int
) -> Any:  # noqa: ANN401
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers' own log messages fail without it, and one process has none yet
    arguments = _arguments(name, settings, folder, config, resumed_step)
    tracker = LOGGER_TYPE_TO_CLASS[name](_project(name, settings, folder), **arguments)
    tracker.start()
    if name == "wandb":
        tracker.tracker.define_metric("*", step_metric="step")
    if name == "tensorboard":
        tracker.store_init_configuration(_flat(config))
        tracker.tracker.add_text(
            "recipe", f"```\n{yaml.safe_dump(dict(config))}```", global_step=resumed_step
        )
    return tracker


def _arguments(
    name: str, settings: TrackSettings, folder: Path, config: Mapping[str, Any], resumed_step: int
) -> dict[str, Any]:
    """What a tracker is started with; a resumed run goes on under the name that it has there."""
    given = settings.tracker_init.get(name, {})  # type: ignore[call-overload]
    if name == "tensorboard":
        purged = {"purge_step": resumed_step + 1} if resumed_step else {}
        return {"logging_dir": str(folder / name), **purged, **given}
    known_as = _tracked_as(folder, settings.run_name or folder.name)
    common = {"resume": "allow", "group": settings.group}
    if name == "trackio":
        tags = {"tags": list(settings.tags)} if settings.tags else {}
        return {"name": known_as, **common, "embed": False, "config": {**config, **tags}, **given}
    wandb_settings = {"finish_timeout": _LAST_UPLOAD_S, **given.get("settings", {})}
    return {
        "id": known_as,
        "name": settings.run_name or os.environ.get("WANDB_NAME") or folder.name,
        **common,
        "entity": settings.entity,
        "tags": list(settings.tags) or None,
        "dir": os.environ.get("WANDB_DIR") or str(folder),
        "config": dict(config),
        **given,
        "settings": wandb_settings,
    }


def _project(name: str, settings: TrackSettings, folder: Path) -> str:
    if name == "tensorboard":
        return folder.name  # it calls the folder of its events so
    return settings.project or os.environ.get(f"{name.upper()}_PROJECT") or "rlvr"


def _tracked_as(folder: Path, name: str) -> str:
    """The name of a run at its trackers, which no other run has, in letters that both take."""
    path = folder / "tracked_as"
    if not path.is_file():
        write_atomically(path, f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)[:50]}-{uuid4().hex[:8]}")
    return path.read_text(encoding="utf-8")


def _send_table(
    name: str,
    tracker: Any,  # noqa: ANN401
    kind: str,
    step: int,
    columns: Sequence[str],
    cells: list[list[Any]],
) -> None:
    if name == "wandb":
        import wandb

        table = wandb.Table(columns=list(columns), data=cells, allow_mixed_types=True)
        tracker.log({kind: table, "step": step})
    elif name == "trackio":
        import trackio

        tracker.log({kind: trackio.Table(columns=list(columns), data=cells)}, step=step)
    else:
        text = "\n\n---\n\n".join(_as_text(columns, row) for row in cells)
        tracker.tracker.add_text(kind, text, global_step=step)


def _as_text(columns: Sequence[str], row: Sequence[Any]) -> str:
    """A completion in Markdown, shown letter by letter: indented text is not interpreted."""
    return "\n\n".join(
        f"**{name}**\n\n" + "\n".join(f"    {line}" for line in str(value).splitlines())
        for name, value in zip(columns, row, strict=True)
    )


def _finish(name: str, tracker: Any, error: BaseException | None) -> None:  # noqa: ANN401
    if error is None:
        tracker.finish()
        return
    stopped = getattr(error, "signal_number", None)
    why = _one_line(error) if stopped is None else f"stopped by signal {stopped}"
    if name == "wandb":
        tracker.tracker.finish(exit_code=1 if stopped is None else 128 + stopped)
        return
    if name == "trackio":
        tracker.tracker.alert("the run ended early", why)
    else:
        tracker.tracker.add_text("run/ended_early", why)
    tracker.finish()


def _cell(value: Any) -> Any:  # noqa: ANN401
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Nested settings as dotted keys, because tensorboard does not accept nested values."""
    if not isinstance(config, Mapping):
        return {prefix: config if isinstance(config, bool | int | float | str) else str(config)}
    return {
        key: value
        for name, inner in config.items()
        for key, value in _flat(inner, f"{prefix}.{name}" if prefix else name).items()
    }
