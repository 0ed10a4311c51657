"""Choose the samples of a page, and compute the values of the heat map.

A page with all samples would be too large: whole problems are chosen evenly from every benchmark
and evaluation until the budget is used, and the page says what was omitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.evaluation_folder import PROBLEMS, SAMPLES, SCORES, Row, key_of, read_lines
from rlvr.page import embed

MAX_SAMPLES = 4000
MAX_CHARACTERS = 16_000_000
_LONGEST = 60_000
"""Maximum characters of a response that are shown; the file has all of it."""

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Chosen:
    """JSON by element id, an index of it, per-problem values by run, and what was omitted."""

    files: dict[str, str]
    index: list[Row]
    values: list[dict[Place, float]]
    notes: list[str]


def choose_samples(
    folders: Sequence[Path], most: int = MAX_SAMPLES, characters: int = MAX_CHARACTERS
) -> Chosen:
    """Choose samples of scored evaluations.

    Args:
        folders: The evaluations.
        most: Maximum number of samples.
        characters: Maximum characters of JSON.
    """
    files: dict[str, str] = {}
    index: list[Row] = []
    values, notes = [], []
    for number, folder in enumerate(folders):
        groups = _grouped(folder)
        values.append({place: _value(rows) for place, rows in groups.items()})
        names = list(dict.fromkeys(name for name, _ in groups))
        share = max(1, most // (len(folders) * max(1, len(names))))
        room = characters // (len(folders) * max(1, len(names)))
        problems = {
            (r["benchmark"], r["problem"]): r
            for r in read_lines(folder / PROBLEMS, ended=True).objects
        }
        for name in names:
            mine = {place: rows for place, rows in groups.items() if place[0] == name}
            kept = _within(mine, problems, share, room)
            key = f"samples-{number}-{name}"
            files[key] = f"[{','.join(kept)}]"
            index.append({"run": number, "benchmark": name, "id": key, "problems": len(kept)})
            if len(kept) < len(mine):
                notes.append(
                    f"To keep the page small it contains the samples of {len(kept)} of {len(mine)} "
                    f"{name} problems; all are in {SAMPLES}."
                )
    return Chosen(files, index, values, list(dict.fromkeys(notes)))


def _grouped(folder: Path) -> dict[Place, list[Row]]:
    """Samples with their verdicts, by problem."""
    verdicts = {key_of(row): row for row in read_lines(folder / SCORES, ended=True).objects}
    groups: dict[Place, list[Row]] = {}
    for row in read_lines(folder / SAMPLES, ended=True).objects:
        verdict = verdicts.get(key_of(row))
        if verdict is not None:
            groups.setdefault((row["benchmark"], row["problem"]), []).append({**row, **verdict})
    return groups


def _value(rows: Sequence[Row]) -> float:
    sampled = [row for row in rows if not row["greedy"]] or rows
    return sum(row["correct"] for row in sampled) / len(sampled)


def _within(
    groups: dict[Place, list[Row]], problems: dict[Place, Row], most: int, characters: int
) -> list[str]:
    """JSON of as many problems as fit, spread evenly; at least one."""
    places = list(groups)
    each = max(len(rows) for rows in groups.values())
    count = max(1, min(len(places), most // each))
    kept: list[str] = []
    for place in [places[i * len(places) // count] for i in range(count)]:
        text = embed(_problem(problems[place], groups[place]))
        if kept and sum(map(len, kept)) + len(text) > characters:
            break
        kept.append(text)
    return kept


def _problem(problem: Row, rows: Sequence[Row]) -> Row:
    return {
        **{name: problem[name] for name in ("problem", "question", "prompt", "answer")},
        **{name: problem[name] for name in ("level", "subject") if name in problem},
        "samples": [
            {
                "greedy": row["greedy"],
                "sample": row["sample"],
                "correct": row["correct"],
                "truncated": row["truncated"],
                "tokens": row["tokens"],
                "grader": row["grader"],
                "verdicts": row["verdicts"],
                "response": row["response"][:_LONGEST],
            }
            for row in rows
        ],
    }
