"""Grade recorded samples without a model, with any grader, as often as needed.

Metrics use the verdict of the main grader. Other graders run as well, and samples on which they
disagree are listed for reading. For majority votes the main grader also groups the wrong answers of
a problem into classes of equal ones: votes over raw strings would separate 0.5 from 1/2.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from eval.evaluation_folder import (
    DISAGREEMENTS,
    PLAN,
    PROBLEMS,
    SAMPLES,
    SCORES,
    Row,
    key_of,
    read_json,
    read_lines,
    write_lines,
)
from eval.metrics import REFERENCE, Outcome, ProblemOutcomes
from reward import DEFAULT, EVALUATION, Grade, VerifierPool
from reward.graders import graded_text
from reward.thoughts import left_open
from reward.tokens import number
from rlvr.data.consistency import MATHEMATICS

ALONGSIDE = ("rlvr", "qwen", "exact")
"""Graders that run in addition to the main one."""

Show = Callable[[str, int, int], None]
"""Called with (description, done, total)."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Recorded samples: the plan, the problems by (benchmark, id), the samples in order."""

    folder: Path
    plan: Row
    problems: dict[tuple[str, str], Row]
    samples: tuple[Row, ...]


def read_recorded(folder: Path) -> Recorded:
    """Read a finished evaluation.

    Raises:
        ValueError: The folder is not an evaluation, is not finished, or its files do not belong
            together.
    """
    plan = read_json(folder / PLAN, "what was sampled")
    if not (folder / SAMPLES).is_file():
        raise ValueError(
            f"evaluation {str(folder)!r} is not finished ({SAMPLES} is missing); run the same "
            "`rlvr eval` again to continue"
        )
    problems = {
        (row["benchmark"], row["problem"]): row
        for row in read_lines(folder / PROBLEMS, ended=True).objects
    }
    lines = read_lines(folder / SAMPLES, ended=True)
    lost = len(lines.unreadable) + lines.incomplete
    if lost:
        raise ValueError(
            f"{folder / SAMPLES} has {lost} lines that are not JSON objects; run the same `rlvr "
            "eval` again to draw these samples again"
        )
    for row in lines.objects:
        if (row["benchmark"], row["problem"]) not in problems:
            raise ValueError(
                f"{folder / SAMPLES} contains a sample of {row['problem']!r}, which is not in "
                f"{PROBLEMS}; the files do not belong together"
            )
    return Recorded(folder, plan, problems, lines.objects)


def score(
    recorded: Recorded,
    grader: str | None = None,
    *,
    workers: int = 2,
    timeout: float = 5.0,
    alongside: Sequence[str] | None = None,
    show: Show | None = None,
) -> list[Row]:
    """Grade every sample, write verdicts and disagreements, and return the verdicts.

    Args:
        recorded: The samples.
        grader: The main grader; None is the plan's.
        workers: Number of grading processes.
        timeout: Maximum seconds for a verdict.
        alongside: Graders whose verdicts are also recorded; None is :data:`ALONGSIDE`.
        show: Called with the progress.
    """
    main = grader or str(recorded.plan["grader"])
    # Graders of mathematics say nothing of the references of other domains.
    beside = ALONGSIDE if main in MATHEMATICS else ()
    names = list(dict.fromkeys([main, *(beside if alongside is None else alongside)]))
    thoughts = tuple((opening, closing) for opening, closing in recorded.plan.get("thoughts", ()))
    verdicts: dict[str, list[Grade]] = {}
    votes: list[int | None] = []
    for name in names:
        pairs = _to_grade(recorded, thoughts, name)
        with verifier(name, workers, timeout, thoughts) as pool:
            verdicts[name] = _graded(pool, pairs, f"grading ({name})", show)
            if name == main:
                same = partial(equal_answers, pool) if main in MATHEMATICS else equal_texts
                votes = _votes(same, recorded.samples, verdicts[name])
    wrong_if_cut = recorded.plan["truncated"] == "wrong"
    rows = [
        _score_row(row, {name: verdicts[name][index] for name in names}, main, vote, wrong_if_cut)
        for index, (row, vote) in enumerate(zip(recorded.samples, votes, strict=True))
    ]
    write_lines(recorded.folder / SCORES, rows)
    write_lines(recorded.folder / DISAGREEMENTS, _disagreements(recorded, rows))
    return rows


def verifier(
    name: str, workers: int, timeout: float, thoughts: tuple[tuple[str, str], ...] = ()
) -> VerifierPool:
    """A pool for a grader; ours uses the policy for evaluations, which rounds to decimal
    references."""
    policy = replace(EVALUATION if name == "rlvr" else DEFAULT, thoughts=thoughts)
    return VerifierPool(workers=workers, timeout=timeout, grader=name, policy=policy)


def _to_grade(
    recorded: Recorded, thoughts: Sequence[tuple[str, str]], grader: str
) -> list[tuple[str, str]]:
    """The text of each sample as the grader reads it, and the reference answer."""
    opened = {
        place: left_open(row.get("prompt") or "", thoughts)
        for place, row in recorded.problems.items()
    }
    return [
        (
            graded_text(row["response"], opened[_place(row)], grader),
            recorded.problems[_place(row)]["answer"],
        )
        for row in recorded.samples
    ]


def _place(row: Row) -> tuple[str, str]:
    return row["benchmark"], row["problem"]


def _graded(
    pool: VerifierPool, pairs: Sequence[tuple[str, str]], what: str, show: Show | None
) -> list[Grade]:
    found: dict[int, Grade] = {}
    for index, grade in pool.grade_stream(pairs, ahead=256):
        found[index] = grade
        if show is not None and (len(found) % 64 == 0 or len(found) == len(pairs)):
            show(what, len(found), len(pairs))
    return [found[index] for index in range(len(pairs))]


def _score_row(
    sample: Row, verdicts: dict[str, Grade], main: str, vote: int | None, wrong_if_cut: bool
) -> Row:
    chosen = verdicts[main]
    benchmark, problem, greedy, index = key_of(sample)
    cut = sample["finish_reason"] == "length"
    return {
        "benchmark": benchmark,
        "problem": problem,
        "greedy": greedy,
        "sample": index,
        "correct": chosen.correct and not (cut and wrong_if_cut),
        "truncated": cut,
        "answered": chosen.extracted is not None and chosen.status != "no_answer",
        "tokens": sample["tokens"],
        "vote": vote,
        "grader": main,
        "verdicts": {
            name: {
                "correct": grade.correct,
                "extracted": grade.extracted,
                "status": grade.status,
                "reason": grade.reason,
            }
            for name, grade in verdicts.items()
        },
    }


def _disagreements(recorded: Recorded, rows: Sequence[Row]) -> Iterator[Row]:
    """Samples that graders judge differently, with the answers that they extracted."""
    for sample, row in zip(recorded.samples, rows, strict=True):
        if len({verdict["correct"] for verdict in row["verdicts"].values()}) > 1:
            yield {
                **{name: row[name] for name in ("benchmark", "problem", "greedy", "sample")},
                "answer": recorded.problems[_place(sample)]["answer"],
                "verdicts": {
                    name: [verdict["correct"], verdict["extracted"], verdict["reason"]]
                    for name, verdict in row["verdicts"].items()
                },
                "response_end": sample["response"][-300:],
            }


def _votes(
    compare: Callable[[Sequence[str]], dict[str, int]],
    samples: Sequence[Row],
    grades: Sequence[Grade],
) -> list[int | None]:
    """The class for which each sample votes; a greedy completion votes only for itself."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, sample in enumerate(samples):
        if not sample["greedy"]:
            groups.setdefault(_place(sample), []).append(index)
    votes: list[int | None] = [REFERENCE if grade.correct else None for grade in grades]
    for members in groups.values():
        wrong = [index for index in members if not grades[index].correct]
        answers = {grades[i].extracted for i in wrong if grades[i].status != "no_answer"}
        classes = compare(sorted(answer for answer in answers if answer is not None))
        for index in wrong:
            votes[index] = classes.get(grades[index].extracted or "")
    return votes


def equal_texts(answers: Sequence[str]) -> dict[str, int]:
    """Classes, from 1, of answers that are the same text: in domains beside mathematics an answer
    is no reference that another could be compared with."""
    return {answer: place for place, answer in enumerate(answers, 1)}


def equal_answers(pool: VerifierPool, answers: Sequence[str]) -> dict[str, int]:
    """Classes, from 1, of equal answers; each answer joins the first class that it equals.

    Plain numbers are compared here; the pool's grader compares all other pairs at once.
    """
    numbers = [number(answer.strip()) for answer in answers]
    asked: dict[tuple[int, int], Future[Grade]] = {}
    for second in range(len(answers)):
        for first in range(second):
            if numbers[first] is None or numbers[second] is None:
                asked[first, second] = pool.submit_pair(answers[second], answers[first])
    found: dict[str, int] = {}
    leaders: list[int] = []
    for index, answer in enumerate(answers):
        for place, leader in enumerate(leaders, 1):
            future = asked.get((leader, index))
            same = future.result().correct if future else numbers[leader] == numbers[index]
            if same:
                found[answer] = place
                break
        else:
            leaders.append(index)
            found[answer] = len(leaders)
    return found


def outcomes_by_benchmark(
    plan: Row, problems: dict[tuple[str, str], Row], rows: Sequence[Row]
) -> dict[str, list[ProblemOutcomes]]:
    """Verdicts as outcomes for the metrics, in the plan's order."""
    judged: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        judged.setdefault(_place(row), []).append(row)
    found: dict[str, list[ProblemOutcomes]] = {name: [] for name in plan["benchmarks"]}
    for place, members in judged.items():
        problem = problems[place]
        greedy = [outcome(row) for row in members if row["greedy"]]
        found[place[0]].append(
            ProblemOutcomes(
                place[1],
                tuple(outcome(row) for row in members if not row["greedy"]),
                greedy[0] if greedy else None,
                problem.get("level"),
                problem.get("subject"),
            )
        )
    return found


def outcome(row: Row) -> Outcome:
    """A verdict row as an outcome; an answer that is wrong because it was cut does not vote."""
    vote = row["vote"]
    if vote == REFERENCE and not row["correct"]:
        vote = None
    return Outcome(row["correct"], row["truncated"], row["answered"], row["tokens"], vote)


def status_counts(rows: Sequence[Row]) -> dict[str, int]:
    """How often the main grader returned each status other than ok."""
    counts = Counter(row["verdicts"][row["grader"]]["status"] for row in rows)
    return {name: count for name, count in sorted(counts.items()) if name != "ok"}


def agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracy of each grader over all samples, and the number of samples on which they
    disagree."""
    names = list(rows[0]["verdicts"]) if rows else []
    right = {name: sum(row["verdicts"][name]["correct"] for row in rows) for name in names}
    split = sum(len({v["correct"] for v in row["verdicts"].values()}) > 1 for row in rows)
    return {"correct": right, "samples": len(rows), "disagreements": split}
