r"""All that is to be measured and checked on a GPU, by one command, in parts with time limits.

    python -m tests.gpu.day --minutes 9 --out DIR
    python -m tests.gpu.day --minutes 9 --out DIR --tiny      # tiny shapes, on the CPU too
    python -m tests.gpu.day --render DIR                      # DIR as a page of Markdown

It runs from a checkout, by whatever Python has torch and transformers, and installs nothing. A
package that is missing there can be brought along in a folder (tests/gpu/prepare.py) that --site
names. Models have random weights, so nothing is downloaded.

Parts run in order of importance (tests/gpu/kit.py), each in a process of its own. A part has its
share of the minutes and what earlier ones left of theirs; then it is killed with all that it
started, and the next begins. Results are lines of JSON in DIR/results.jsonl, written as they come;
what parts print is in DIR/log.txt. The end is 0 if every part ended by itself and every check
passed, else 1; 2 is a mistake in the command.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.kit import PARTS, ROOT, SEED, Part, Row, append, read_rows
from tests.gpu.limits import run_limited
from tests.gpu.render import page

LOG = "log.txt"
_LEAST = 5.0
"""Seconds below which a part is not begun."""
_IMPORT_S = 120
_KILLED_LATER = 2.0
"""Seconds between the deadline that a part is told and the one that it is killed at."""


def run_day(
    parts: Sequence[Part], seconds: float, out: Path, *, tiny: bool, environment: dict[str, str]
) -> bool:
    """Run the parts in turn; whether all ended by themselves.

    Args:
        parts: In order of importance.
        seconds: For all of them together.
        out: Folder of the results.
        tiny: Use tiny shapes.
        environment: Of the processes.
    """
    end, scale = time.monotonic() + seconds, seconds / sum(part.share for part in parts)
    sound = True
    for number, part in enumerate(parts):
        kept = sum(later.share for later in parts[number + 1 :]) * scale
        limit = end - time.monotonic() - kept
        sound &= _run_part(part, limit, out, tiny, environment)
    return sound


def _run_part(part: Part, limit: float, out: Path, tiny: bool, environment: dict[str, str]) -> bool:
    if limit < min(_LEAST, part.share):
        append(out, {"part": part.name, "ended": "not begun: no time was left"})
        return False
    print(f"{part.name}: at most {limit:.0f} s", flush=True)
    log = out / LOG
    with log.open("a", encoding="utf-8") as file:
        file.write(f"== {part.name}\n")
    before = log.stat().st_size
    told = max(limit - _KILLED_LATER, 0.0)
    command = [sys.executable, "-m", "tests.gpu.part", part.name, part.module, str(out)]
    command += ["--seconds", f"{told:.1f}", *(["--tiny"] if tiny else [])]
    ended = run_limited(command, limit, log, environment)
    row: Row = {"part": part.name, "ended": "done", "seconds": round(ended.seconds, 1)}
    if ended.code is None:
        row["ended"] = f"killed at its limit of {limit:.0f} s"
    elif ended.code:
        row["ended"] = f"failed: {_last_line(log, before)}"
    append(out, row)
    print(f"{part.name}: {row['ended']}, {ended.seconds:.0f} s", flush=True)
    return ended.code == 0


def _last_line(log: Path, before: int) -> str:
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def commit() -> str:
    """The commit of the checkout, with a plus sign if files differ from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        except OSError:
            return None
        return None if done.returncode else done.stdout.strip()

    head, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain")
    return "unknown" if head is None else head + ("+" if changes else "")


def environment_of(site: Path | None) -> dict[str, str]:
    """The environment of the parts: offline, and with the folder of brought packages."""
    paths = [str(ROOT), *([str(site.resolve())] if site else [])]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(paths)}


def has_gpu(environment: dict[str, str]) -> bool:
    """Whether torch, in a process of its own, finds a CUDA device.

    Raises:
        ValueError: It is not imported in time.
    """
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    try:
        done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=_IMPORT_S)
    except subprocess.TimeoutExpired:
        raise ValueError(f"torch is not imported within {_IMPORT_S} s here") from None
    return done.returncode == 0


def chosen_parts(names: str | None) -> list[Part]:
    """The parts of these names, in their order.

    Raises:
        ValueError: There is none of a name.
    """
    if names is None:
        return list(PARTS)
    known = {part.name: part for part in PARTS}
    for name in names.split(","):
        if name not in known:
            raise ValueError(f"--parts: {name!r} is none of {','.join(known)}")
    return [known[name] for name in names.split(",")]


def check(options: argparse.Namespace, environment: dict[str, str]) -> None:
    """See that the day can begin.

    Raises:
        ValueError: It cannot; the message says why and what to do.
    """
    if options.out is None:
        raise ValueError("give --out DIR, a folder for the results, or --render DIR")
    if options.minutes <= 0:
        raise ValueError(f"--minutes {options.minutes} is no time; give more than 0")
    if options.out.is_dir() and any(options.out.iterdir()):
        raise ValueError(f"--out {str(options.out)!r} is not empty; give another folder")
    if options.site is not None and not options.site.is_dir():
        raise ValueError(
            f"--site {str(options.site)!r} is no folder; make it by "
            f"python -m tests.gpu.prepare {options.site}"
        )
    if not options.tiny and not has_gpu(environment):
        raise ValueError("torch finds no CUDA device here; add --tiny for tiny shapes on the CPU")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m tests.gpu.day", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    found.add_argument("--out", type=Path, help="folder of the results")
    found.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    found.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU too")
    found.add_argument("--parts", help="names with commas; by default all")
    found.add_argument("--site", type=Path, help="folder of packages that are missing here")
    found.add_argument("--commit", help="of the checkout, where there is no git")
    found.add_argument("--render", type=Path, metavar="DIR", help="print the page of a folder")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the day, or render one; the code that the process ends with."""
    options = parser().parse_args(words)
    environment = environment_of(options.site)
    try:
        if options.render is not None:
            print(page(read_rows(options.render)), end="")
            return 0
        parts = chosen_parts(options.parts)
        check(options, environment)
    except ValueError as error:
        print(f"tests.gpu.day: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    given = sys.argv[1:] if words is None else words
    header = {
        "command": shlex.join(["python", "-m", "tests.gpu.day", *given]),
        "commit": options.commit or commit(),
        "seed": SEED,
        "tiny": options.tiny,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    append(options.out, {"part": "day", **header})
    out = options.out.resolve()
    sound = run_day(parts, 60 * options.minutes, out, tiny=options.tiny, environment=environment)
    rows = read_rows(out)
    (out / "summary.md").write_text(page(rows), encoding="utf-8")
    failed = [row for row in rows if row.get("passed") is False]
    for row in failed:
        print(f"failed: {row['part']}, {row.get('check') or row.get('note')}", flush=True)
    return 0 if sound and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
