"""``rlvr plan``: print a table of predictions."""

from collections.abc import Sequence
from pathlib import Path

from rlvr.bench.pipeline import Measured, best_split
from rlvr.settings import load_settings


def plan_table(path: Path, overrides: Sequence[str], gpus: str, staleness: int, steps: int) -> str:
    """The best split for each number of GPUs, as text.

    Raises:
        ValueError: The file or the list of numbers is invalid, or there are too few GPUs.
    """
    measured = load_settings(Measured, path, overrides)
    lines = [
        f"{measured.completions} completions per step, staleness {staleness}",
        "  GPUs  rollout  learner    s/step  rollout s  update s   idle  speed-up  bound by",
    ]
    first: float | None = None
    for count in numbers(gpus):
        found = best_split(measured, count, staleness, steps)
        first = found.step_s if first is None else first
        rollout = str(found.rollout) if found.rollout else "all"
        lines.append(
            f"{count:6d}  {rollout:>7}  {found.learner:7d}  {found.step_s:8.2f}  "
            f"{found.rollout_s:9.2f}  {found.update_s:8.2f}  {found.idle:5.0%}  "
            f"{first / found.step_s:8.2f}  {found.bound_by}"
        )
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    """Parse "1,2,8" as [1, 2, 8]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"--gpus {text!r} is not a list of numbers such as 1,8,64")
    return [int(part) for part in parts]
