"""Choose and shrink the completions that a page carries.

Whole runs do not fit into a page that opens at once. Steps are taken in the order newest, first,
middle, quarters and so on, training and evaluation in turn, until the budget is spent; what stayed
out is told. Prompts are stored once per step, responses only where the tokens do not spell them,
numbers to four decimals.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from rlvr.page import embed
from rlvr.report.lines import read_lines

MAX_ROWS = 5_000
MAX_BYTES = 20_000_000
SPREAD = 20  # a step gets at most a 20th of the rows when there are at least as many steps

KINDS = {"training": "completions", "evaluation": "evaluations"}

TEXTS = ("problem_id", "group", "response", "answer", "extracted", "reason", "finish_reason", "set")
NUMBERS = ("sample", "reward", "advantage", "policy_version")
KNOWN = {*TEXTS, *NUMBERS, "step", "prompt", "rewards", "correct", "tokens", "step_ends"}


@dataclass(frozen=True)
class StepFile:
    """The completions of one step as the page embeds them: ``text`` is their JSON."""

    kind: str
    step: int
    rows: int
    total: int
    text: str

    @property
    def id(self) -> str:
        """Name of the element that holds it."""
        return f"completions-{self.kind}-{self.step}"


@dataclass(frozen=True)
class Completions:
    """The chosen steps, by kind and step, and what was left out."""

    files: tuple[StepFile, ...]
    notes: tuple[str, ...]


def choose_completions(
    run: Path, last_step: int | None = None, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
) -> Completions:
    """Read as many completions of ``run`` as the budget holds, whole groups, steps spread evenly.

    Args:
        run: Run folder.
        last_step: Files of later steps are skipped: an attempt that was resumed from an earlier
            checkpoint left them. None skips nothing.
        max_rows: Most rows in all.
        max_bytes: Most bytes of JSON in all.
    """
    paths = {kind: _step_files(run / folder, last_step) for kind, folder in KINDS.items()}
    count = sum(len(found) for found in paths.values())
    share = max(1, max_rows // max(1, min(count, SPREAD)))
    files: list[StepFile] = []
    notes: list[str] = []
    rows, size = max_rows, max_bytes
    for kind, step, path in _in_turn(paths):
        if rows <= 0:
            break
        lines = read_lines(path)
        notes += lines.notes(f"{path.parent.name}/{path.name}")
        file = _step_file(kind, step, lines.objects, share, (rows, size))
        if file.rows == 0 and file.total:
            break
        files.append(file)
        rows, size = rows - file.rows, size - len(file.text.encode())
    files.sort(key=lambda file: (list(KINDS).index(file.kind), file.step))
    return Completions(
        tuple(file for file in files if file.rows), _left_out(paths, files) + tuple(notes)
    )


def spread_order(count: int) -> list[int]:
    """Indices 0 to count - 1, so that any number taken from the front lies evenly; newest first.

    The last, the first, then the middles of the gaps between those taken, widest gaps first.
    """
    order = list(dict.fromkeys([count - 1, 0])) if count else []
    gaps = [(0, count - 1)]
    while gaps:
        halves = []
        for low, high in gaps:
            middle = (low + high) // 2
            if low < middle < high:
                order.append(middle)
                halves += [(low, middle), (middle, high)]
        gaps = halves
    return order


def _step_files(folder: Path, last_step: int | None) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("step_*.jsonl"):
        digits = path.stem.removeprefix("step_")
        if digits.isdecimal() and (last_step is None or int(digits) <= last_step):
            found.append((int(digits), path))
    return sorted(found)


def _in_turn(paths: dict[str, list[tuple[int, Path]]]) -> Iterator[tuple[str, int, Path]]:
    orders = [
        [(kind, *found[i]) for i in spread_order(len(found))] for kind, found in paths.items()
    ]
    for turn in zip_longest(*orders):
        yield from (item for item in turn if item is not None)


def _step_file(
    kind: str, step: int, objects: Sequence[dict[str, Any]], share: int, left: tuple[int, int]
) -> StepFile:
    """Whole groups up to ``share`` rows, at least one; never over ``left`` (rows, bytes)."""
    prompts: dict[str, int] = {}
    rows: list[str] = []
    size = 0
    for group in _groups(objects):
        total = len(rows) + len(group)
        if total > left[0] or (rows and total > share):
            break
        texts = [embed(_row(row, prompts)) for row in group]
        added = sum(len(text.encode()) for text in texts) + len(embed(group[0].get("prompt", "")))
        if size + added > left[1]:
            break
        rows += texts
        size += added
    text = f'{{"prompts":{embed(list(prompts))},"rows":[{",".join(rows)}]}}'
    return StepFile(kind, step, len(rows), len(objects), text)


def _groups(objects: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in objects:
        key = (str(row.get("set", "")), str(row.get("group", row.get("problem_id", ""))))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _row(row: dict[str, Any], prompts: dict[str, int]) -> dict[str, Any]:
    """One row as the page wants it; fields that nobody knows yet are carried along."""
    small: dict[str, Any] = {name: _text(row[name]) for name in TEXTS if row.get(name) is not None}
    small |= {name: _number(row.get(name)) for name in NUMBERS if name in row}
    small["prompt"] = prompts.setdefault(_text(row.get("prompt", "")), len(prompts))
    if isinstance(row.get("correct"), bool):
        small["correct"] = row["correct"]
    if isinstance(row.get("rewards"), dict):
        small["rewards"] = {str(name): _number(value) for name, value in row["rewards"].items()}
    tokens = row.get("tokens")
    if isinstance(tokens, list) and tokens:
        small["tokens"] = [_text(token) for token in tokens]
        small["lists"] = _token_lists(row, len(tokens))
        ends = row.get("step_ends")
        if _parts(ends, len(tokens)):
            small["steps"] = ends
        if "".join(small["tokens"]) == small.get("response"):
            del small["response"]
    small["extra"] = {
        name: _number(value) if isinstance(value, float) else value
        for name, value in row.items()
        if name not in KNOWN and isinstance(value, str | bool | int | float)
    }
    return small


def _parts(ends: object, length: int) -> bool:
    """Whether these are the ends of steps that part a response of so many tokens."""
    if not isinstance(ends, list) or not all(type(end) is int for end in ends):
        return False
    return ends[-1:] == [length] and all(a < b for a, b in pairwise([0, *ends]))


def _token_lists(row: dict[str, Any], length: int) -> dict[str, list[float | None]]:
    """Every field with one number per token: log-probabilities, and whatever else was kept."""
    return {
        name: [_number(value) for value in values]
        for name, values in row.items()
        if name not in KNOWN
        and isinstance(values, list)
        and len(values) == length
        and all(value is None or isinstance(value, int | float) for value in values)
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else round(value, 4)


def _left_out(
    paths: dict[str, list[tuple[int, Path]]], files: Sequence[StepFile]
) -> tuple[str, ...]:
    notes = []
    for kind, found in paths.items():
        taken = [file for file in files if file.kind == kind]
        cut = sum(file.total - file.rows for file in taken)
        if len(taken) < len(found) or cut:
            rows = f", {cut:,} further completions of these steps stayed out" if cut else ""
            notes.append(
                f"To keep the page small it holds {len(taken)} of the {len(found)} steps with "
                f"{kind} completions{rows}. All of them are in the run's folder {KINDS[kind]}."
            )
    return tuple(notes)
