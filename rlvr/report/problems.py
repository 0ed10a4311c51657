"""How often each problem was solved at each step at which it was sampled, in one run or several."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlvr.files import Row, read_lines
from rlvr.report.recorded_run import RunFolder

MAX_PROBLEMS = 2_000
MAX_POINTS = 200_000

Points = dict[int, tuple[int, int]]
"""Right and all completions of a problem by step."""


def follow_problems(
    runs: Sequence[RunFolder], most: int = MAX_PROBLEMS, most_points: int = MAX_POINTS
) -> dict[str, Any]:
    """The course of each problem that was sampled, those that were sampled most often first.

    Training problems come from ``accuracy.jsonl``, or, if it is missing, like evaluation problems
    from the steps whose completions the page contains.

    Returns:
        ``problems``, each with ``id``, ``set`` (empty in training), ``text`` (the end of its
        prompt, if the page contains it) and ``runs`` (for each run a list of ``[step, right,
        total]``); ``notes`` about what was omitted.
    """
    courses = [_courses(run) for run in runs]
    keys = dict.fromkeys(key for course in courses for key in course)
    visits = {key: sum(len(course.get(key, {})) for course in courses) for key in keys}
    ranked = sorted(keys, key=lambda key: -visits[key])
    chosen, points = [], 0
    for key in ranked[:most]:
        points += visits[key]
        if points > most_points:
            break
        chosen.append(key)
    texts = {
        k: v for run in runs for file in run.completions.files for k, v in file.prompts.items()
    }
    notes = []
    if len(chosen) < len(ranked):
        notes.append(
            f"The page follows the {len(chosen):,} problems that were sampled most often, of "
            f"{len(ranked):,}."
        )
    return {"problems": [_problem(key, courses, texts) for key in chosen], "notes": notes}


def _problem(
    key: tuple[str, str], courses: Sequence[Mapping[tuple[str, str], Points]], texts: Row
) -> dict[str, Any]:
    name, problem = key
    return {
        "id": problem,
        "set": name,
        "text": texts.get(problem, ""),
        "runs": [
            [[step, *counts] for step, counts in sorted(course.get(key, {}).items())]
            for course in courses
        ],
    }


def _courses(run: RunFolder) -> dict[tuple[str, str], Points]:
    found: dict[tuple[str, str], Points] = {}
    last = run.history.steps[-1] if run.history.rewound else None
    counted = False
    for row in read_lines(run.path / "accuracy.jsonl").objects:
        step, counts = row.get("step"), row.get("counts")
        if not isinstance(step, int) or not isinstance(counts, dict):
            continue
        if last is not None and step > last:
            continue
        counted = True
        for problem, pair in counts.items():
            if _is_count(pair):
                found.setdefault(("", problem), {})[step] = (pair[0], pair[1])
    for file in run.completions.files:
        if file.kind == "training" and counted:
            continue
        for key, (right, total) in file.verdicts.items():
            found.setdefault(key, {})[file.step] = (right, total)
    return found


def _is_count(pair: object) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(number) is int for number in pair)
        and 0 <= pair[0] <= pair[1]
        and pair[1] > 0
    )
