"""An estimate as an aligned table of lines, for ``--dry-run`` and ``rlvr fit``."""

from rlvr.memory.estimate import DOING, Component, Estimate
from rlvr.memory.work import GIB


def memory_lines(found: Estimate) -> list[str]:
    """A line for every component at the peak, the total, and what is left of the machine.

    What is there at another moment is named behind the total, with what that moment takes.
    """
    per = "a GPU" if found.machine.device == "cuda" else "a process"
    lines = [f"memory of {per} at full lengths, estimated, GiB ({found.processes.text}):"]
    shown = [c for c in found.components if not c.host and found.peak in c.when]
    rows = [(c.name, c.size, c.note) for c in shown]
    lines += _aligned([*rows, ("total", found.total, _total_note(found))])
    elsewhere = [c for c in found.components if c.host]
    if elsewhere:
        lines += _host_lines(found, elsewhere)
    return lines


def _aligned(rows: list[tuple[str, float, str]]) -> list[str]:
    width = max(len(name) for name, *_ in rows)
    number = max(len(f"{size / GIB:,.2f}") for _, size, _ in rows)
    return [
        f"  {name:<{width}}  {size / GIB:>{number},.2f}  {note}".rstrip()
        for name, size, note in rows
    ]


def _total_note(found: Estimate) -> str:
    peak = DOING[found.peak]
    others: dict[str, float] = {}
    for phase, doing in DOING.items():
        if doing != peak:
            others[doing] = max(others.get(doing, 0.0), found.at(phase))
    parts = [f"{peak}; " + ", ".join(f"{at / GIB:,.2f} {name}" for name, at in others.items())]
    if found.left is not None:
        assert found.machine.memory is not None
        parts.append(left_text(found.left, found.machine.memory))
    return "; ".join(parts)


def left_text(left: float, memory: float) -> str:
    """What is left, or missing, of so many bytes."""
    if left < 0:
        return f"{-left / GIB:,.1f} more than the {memory / GIB:,.1f} there are"
    return f"{left / GIB:,.1f} of {memory / GIB:,.1f} left"


def _host_lines(found: Estimate, parts: list[Component]) -> list[str]:
    rows = [(c.name, c.size * found.processes.gpus, c.note) for c in parts]
    note = (
        ""
        if found.host_left is None or found.machine.host is None
        else left_text(found.host_left, found.machine.host)
    )
    return ["memory of a node's host, GiB:", *_aligned([*rows, ("total", found.host, note)])]
