"""The process that sends one checkpoint: ``python -m rlvr.hub.worker RUN RUN/uploads/step_000020``.

It speaks one line of JSON: ``ok``, ``message``, and ``passing`` where another attempt may succeed.
It ends when its standard input does, which is when the run that started it is gone.
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
    """Export what was put aside, as the run's recipe says; where it is then."""
    from rlvr.hub.export import Wanted, export
    from rlvr.hub.source import staged_source

    given = json.loads((job / JOB).read_text(encoding="utf-8"))
    source = staged_source(run, job / WEIGHTS, given["step"])
    hub = source.recipe.hub
    if hub is None:
        raise ValueError(f"{run}/recipe.yaml does not name a repository any more (hub.repo)")
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


def main() -> None:
    """Send, and say how it went."""
    os.nice(10)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from rlvr.hub.quiet import quiet_hub

    quiet_hub(bars=False)
    run, job = map(Path, sys.argv[1:])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            url = send(run, job)
    except HubError as error:
        _say(ok=False, message=str(error), passing=error.passing)
    except (ValueError, OSError) as error:
        _say(ok=False, message=str(error), passing=isinstance(error, OSError))
    else:
        _say(ok=True, message=url, passing=False)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _say(**line: bool | str) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
