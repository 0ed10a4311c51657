"""The command line: one verb per stage. It parses, builds and runs; everything else is library.

Heavy imports stand inside the commands, so that ``rlvr --help`` answers at once.
"""

import os
import sys
from typing import NoReturn

import typer

from rlvr.cli import (
    auditing,
    bench,
    converting,
    distill,
    evaluation,
    export,
    fitting,
    launching,
    machine,
    preference,
    prm,
    replay,
    reporting,
    sweeping,
    training,
)

app = typer.Typer(
    name="rlvr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Post-training of language models by reinforcement learning from verifiable rewards. "
        "Start with `rlvr quickstart`: it trains a tiny model from nothing and shows the result."
    ),
)

for room in (
    training,
    replay,
    reporting,
    auditing,
    sweeping,
    converting,
    fitting,
    launching,
    evaluation,
    preference,
    prm,
    distill,
    export,
    bench,
    machine,
):
    app.add_typer(room.app)


_GOES_ON = {"train": "; go on with --resume", "quickstart": "; the same command goes on"}
"""How the verbs that a signal stops are gone on with; others only read."""


def main() -> None:
    """Entry point: faults of the user's making end in one line and exit code 2."""
    # Tensors in huge pages: a freshly allocated gradient costs a third of the time in page faults
    # (docs/benchmarks/learner.md). torch reads it when it makes its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = app(prog_name="rlvr", standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except (ValueError, OSError) as error:
        if os.environ.get("RLVR_TRACEBACK"):
            raise
        _fail(str(error), 2)
    except BaseException as error:
        # By shape, not by class: the parser's own errors come from click or from typer's copy of
        # it, depending on typer's version; the loop's from a module that imports torch.
        if hasattr(error, "format_message"):
            _fail(error.format_message(), 2)
        if not hasattr(error, "signal_number"):
            raise
        verb = sys.argv[1] if len(sys.argv) > 1 else ""
        _fail("stopped" + _GOES_ON.get(verb, ""), 128 + error.signal_number)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"rlvr: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
