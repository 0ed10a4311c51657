"""The process that uploads one checkpoint: ``python -m rlvr.hub.upload_worker RUN
RUN/uploads/step_000020``.

It prints one line of JSON: ``ok``, ``message``, and ``passing`` if another attempt may succeed. It
ends when its standard input closes, that is when the run that started it is gone.
"""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from rlvr.hub.background import JOB, WEIGHTS
from rlvr.hub.remote import HubError


def send(run: Path, job: Path) -> str:
    """Export the staged weights as the run's recipe says; return where they are."""
    from rlvr.hub.export import Wanted, export
    from rlvr.hub.source import staged_source

    given = json.loads((job / JOB).read_text(encoding="utf-8"))
    source = staged_source(run, job / WEIGHTS, given["step"])
    hub = source.recipe.hub
    if hub is None:
        raise ValueError(f"{run}/recipe.yaml no longer names a repository (hub.repo); set it")
    wanted = Wanted(
        repo=hub.repo,
        revision=given["revision"],
        private=hub.private,
        adapter_only=hub.adapter_only,
        attempts=2,
    )
    pushed = export(source, wanted)
    assert pushed is not None, "a repository was given"
    return pushed.url


def attempt(run: Path, job: Path) -> str:
    """Send the staged weights once; the line that says how it ended."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            url = send(run, job)
    except HubError as error:
        return _line(ok=False, message=str(error), passing=error.passing)
    except (ValueError, OSError) as error:
        return _line(ok=False, message=str(error), passing=isinstance(error, OSError))
    return _line(ok=True, message=url, passing=False)


def main() -> None:
    """Send the weights and print the outcome."""
    os.nice(10)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from rlvr.hub.remote import quiet_hub

    quiet_hub(bars=False)
    print(attempt(*map(Path, sys.argv[1:])), flush=True)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _line(**fields: bool | str) -> str:
    return json.dumps(fields)


if __name__ == "__main__":
    main()
