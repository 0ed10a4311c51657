"""Grading recorded samples: no model, any grader, as often as one likes.

The main grader's verdict is what metrics are made of; others are asked as well, and where they
disagree the sample is listed for reading. For majority votes the wrong answers of a problem are put
into classes of equal ones by the main grader too: votes over raw strings would split 0.5 from 1/2.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.files import (
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
from reward.tokens import number

ALONGSIDE = ("rlvr", "qwen", "exact")
"""Graders that are asked beside the main one."""

Show = Callable[[str, int, int], None]
"""Told (what is going on, done, out of)."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What generation left: the plan, the problems by (benchmark, id), the samples in order."""

    folder: Path
    plan: Row
    problems: dict[tuple[str, str], Row]
    samples: tuple[Row, ...]


def read_recorded(folder: Path) -> Recorded:
    """Read a finished evaluation.

    Raises:
        ValueError: It is none, or is not finished, or its files do not belong together.
    """
    plan = read_json(folder / PLAN, "what was sampled")
    if not (folder / SAMPLES).is_file():
        raise ValueError(
            f"evaluation {str(folder)!r} is not finished ({SAMPLES} is missing); run the same "
            "`rlvr eval` again to go on"
        )
    problems = {
        (row["benchmark"], row["problem"]): row for row in read_lines(folder / PROBLEMS).rows
    }
    lines = read_lines(folder / SAMPLES)
    if lines.damaged or lines.cut:
        raise ValueError(
            f"{folder / SAMPLES} has {lines.damaged + lines.cut} lines that are no JSON objects; "
            "run the same `rlvr eval` again to draw these samples anew"
        )
    for row in lines.rows:
        if (row["benchmark"], row["problem"]) not in problems:
            raise ValueError(
                f"{folder / SAMPLES} holds a sample of {row['problem']!r}, which "
                f"{PROBLEMS} does not know; the files do not belong together"
            )
    return Recorded(folder, plan, problems, lines.rows)


def score(
    recorded: Recorded,
    grader: str | None = None,
    *,
    workers: int = 2,
    timeout: float = 5.0,
    alongside: Sequence[str] | None = None,
    show: Show | None = None,
) -> list[Row]:
    """Grade every sample, write the verdicts and the disagreements, return the verdicts.

    Args:
        recorded: The samples.
        grader: Whose verdict counts; None is the plan's.
        workers: Grading processes.
        timeout: Seconds a verdict may take.
        alongside: Graders whose verdicts are recorded as well; None is :data:`ALONGSIDE`.
        show: Told about progress.
    """
    main = grader or str(recorded.plan["grader"])
    names = list(dict.fromkeys([main, *(ALONGSIDE if alongside is None else alongside)]))
    pairs = [
        (row["response"], recorded.problems[_place(row)]["answer"]) for row in recorded.samples
    ]
    verdicts: dict[str, list[Grade]] = {}
    votes: list[int | None] = []
    for name in names:
        with verifier(name, workers, timeout) as pool:
            verdicts[name] = _graded(pool, pairs, f"grading ({name})", show)
            if name == main:
                votes = _votes(pool, recorded.samples, verdicts[name])
    wrong_if_cut = recorded.plan["truncated"] == "wrong"
    rows = [
        _score_row(row, {name: verdicts[name][index] for name in names}, main, vote, wrong_if_cut)
        for index, (row, vote) in enumerate(zip(recorded.samples, votes, strict=True))
    ]
    write_lines(recorded.folder / SCORES, rows)
    write_lines(recorded.folder / DISAGREEMENTS, _disagreements(recorded, rows))
    return rows


def verifier(name: str, workers: int, timeout: float) -> VerifierPool:
    """A pool for a grader; ours judges as an evaluation should, rounding to decimal references."""
    policy = EVALUATION if name == "rlvr" else DEFAULT
    return VerifierPool(workers=workers, timeout=timeout, grader=name, policy=policy)


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
    """Samples that graders judge differently, with what they read."""
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


def _votes(pool: VerifierPool, samples: Sequence[Row], grades: Sequence[Grade]) -> list[int | None]:
    """The class that each sample votes for; greedy completions vote for none but themselves."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, sample in enumerate(samples):
        if not sample["greedy"]:
            groups.setdefault(_place(sample), []).append(index)
    votes: list[int | None] = [REFERENCE if grade.correct else None for grade in grades]
    for members in groups.values():
        wrong = [index for index in members if not grades[index].correct]
        answers = {grades[i].extracted for i in wrong if grades[i].status != "no_answer"}
        classes = equal_answers(pool, sorted(answer for answer in answers if answer is not None))
        for index in wrong:
            votes[index] = classes.get(grades[index].extracted or "")
    return votes


def equal_answers(pool: VerifierPool, answers: Sequence[str]) -> dict[str, int]:
    """Classes, from 1, of answers that count as equal; each joins the first that it equals.

    Plain numbers are compared here; the rest by the pool's grader, all pairs at once.
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
    """Verdicts as the metrics take them, in the plan's order."""
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
    """A verdict row as an outcome; what is wrong for being cut votes for nothing."""
    vote = row["vote"]
    if vote == REFERENCE and not row["correct"]:
        vote = None
    return Outcome(row["correct"], row["truncated"], row["answered"], row["tokens"], vote)


def status_counts(rows: Sequence[Row]) -> dict[str, int]:
    """How often the main grader ended in each status other than ok."""
    counts = Counter(row["verdicts"][row["grader"]]["status"] for row in rows)
    return {name: count for name, count in sorted(counts.items()) if name != "ok"}


def agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracy by each grader over all samples, and how many samples they disagree on."""
    names = list(rows[0]["verdicts"]) if rows else []
    right = {name: sum(row["verdicts"][name]["correct"] for row in rows) for name in names}
    split = sum(len({v["correct"] for v in row["verdicts"].values()}) > 1 for row in rows)
    return {"correct": right, "samples": len(rows), "disagreements": split}
