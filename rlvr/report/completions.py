"""Choose and shrink the completions that a page contains.

A whole run does not fit into a page that opens quickly. Steps are chosen in the order newest,
first, middle, quarters and so on, alternating between training and evaluation, until the budget is
used; the page says what was omitted. Prompts are stored once per step, responses only if the tokens
do not spell them, and numbers with four decimals.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from rlvr.files import read_lines
from rlvr.page import embed

MAX_ROWS = 5_000
MAX_BYTES = 20_000_000
SPREAD = 20  # a step gets at most a 20th of the rows if there are at least 20 steps

PROMPT_END = 400  # characters by which a problem is recognised in a list

KINDS = {"training": "completions", "evaluation": "evaluations"}

TEXTS = ("problem_id", "group", "response", "answer", "extracted", "reason", "finish_reason", "set")
NUMBERS = ("sample", "reward", "advantage", "policy_version")
KNOWN = {*TEXTS, *NUMBERS, "step", "prompt", "rewards", "correct", "tokens", "step_ends", "turns"}


@dataclass(frozen=True)
class StepFile:
    """The completions of one step as embedded in the page; ``text`` is their JSON.

    ``verdicts`` counts right and all completions by set and problem id, of all rows, embedded or
    not; ``prompts`` holds the end of each problem's prompt.
    """

    kind: str
    step: int
    rows: int
    total: int
    text: str
    verdicts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Id of the HTML element that contains it."""
        return f"completions-{self.kind}-{self.step}"


@dataclass(frozen=True)
class Completions:
    """The chosen steps, by kind and step, and what was omitted."""

    files: tuple[StepFile, ...]
    notes: tuple[str, ...]


def choose_completions(
    run: Path, last_step: int | None = None, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
) -> Completions:
    """Read as many completions of ``run`` as the budget allows: whole groups, steps spread evenly.

    Args:
        run: Run folder.
        last_step: Files of later steps are skipped, because an attempt that was resumed from an
            earlier checkpoint left them. None skips nothing.
        max_rows: Maximum number of rows in total.
        max_bytes: Maximum bytes of JSON in total.
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


def list_steps(run: Path) -> list[tuple[str, int]]:
    """The kind and step of every file of completions in a run's folder."""
    return [
        (kind, step) for kind, name in KINDS.items() for step, _ in _step_files(run / name, None)
    ]


def read_step(run: Path, kind: str, step: int) -> StepFile | None:
    """All completions of one step that a page may hold; None if there are none.

    Args:
        run: Run folder.
        kind: ``training`` or ``evaluation``.
        step: The step; files are looked up by number, so no text of a reader becomes a path.
    """
    paths = dict(_step_files(run / KINDS[kind], None)) if kind in KINDS else {}
    if step not in paths:
        return None
    objects = read_lines(paths[step]).objects
    return _step_file(kind, step, objects, MAX_ROWS, (MAX_ROWS, MAX_BYTES))


def spread_order(count: int) -> list[int]:
    """Indices 0 to count - 1 in an order whose every prefix is spread evenly; the newest is first.

    The last, the first, then the middles of the gaps between chosen indices, widest gaps first.
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
    """Whole groups up to ``share`` rows, at least one group; never more than ``left`` (rows,
    bytes)."""
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
    return StepFile(
        kind, step, len(rows), len(objects), text, _verdicts(objects), _prompts(objects)
    )


def _verdicts(objects: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for row in objects:
        if isinstance(row.get("correct"), bool) and row.get("problem_id") is not None:
            counts = found.setdefault((_text(row.get("set", "")), _text(row["problem_id"])), [0, 0])
            counts[0] += row["correct"]
            counts[1] += 1
    return found


def _prompts(objects: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {
        _text(row["problem_id"]): _text(row.get("prompt", ""))[-PROMPT_END:]
        for row in objects
        if row.get("problem_id") is not None
    }


def _groups(objects: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in objects:
        key = (str(row.get("set", "")), str(row.get("group", row.get("problem_id", ""))))
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _row(row: dict[str, Any], prompts: dict[str, int]) -> dict[str, Any]:
    """One row in the page's format; unknown fields are kept."""
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
        if _turns(row.get("turns"), len(tokens)):
            small["turns"] = row["turns"]
        if "".join(small["tokens"]) == small.get("response"):
            del small["response"]
    small["extra"] = {
        name: _number(value) if isinstance(value, float) else value
        for name, value in row.items()
        if name not in KNOWN and isinstance(value, str | bool | int | float)
    }
    return small


def _parts(ends: object, length: int) -> bool:
    """Whether these are the ends of steps that divide a response of this many tokens."""
    if not isinstance(ends, list) or not all(type(end) is int for end in ends):
        return False
    return ends[-1:] == [length] and all(a < b for a, b in pairwise([0, *ends]))


def _turns(turns: object, length: int) -> bool:
    """Whether these are turns of an episode: [start, stop, reward or null] in order."""
    if not isinstance(turns, list) or len(turns) < 2:
        return False
    whole = all(isinstance(turn, list) and len(turn) == 3 for turn in turns)
    if not whole or not all(type(place) is int for *places, _ in turns for place in places):
        return False
    places = [place for start, stop, _ in turns for place in (start, stop)]
    return places == sorted(places) and places[0] >= 0 and places[-1] <= length


def _token_lists(row: dict[str, Any], length: int) -> dict[str, list[float | None]]:
    """Every field with one number per token: log-probabilities and others."""
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
            rows = f", {cut:,} more completions of these steps were omitted" if cut else ""
            notes.append(
                f"To keep the page small it contains {len(taken)} of the {len(found)} steps with "
                f"{kind} completions{rows}. All of them are in the run's folder {KINDS[kind]}."
            )
    return tuple(notes)
