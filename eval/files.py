"""The folder of an evaluation.

OUT/plan.json         what is sampled: model, versions, data, templates, sampling, seeds
OUT/problems.jsonl    every problem with its prompt, reference, level and subject
OUT/parts/*.jsonl     samples as they finish, one file per process; gone when all are there
OUT/samples.jsonl     all samples in canonical order
OUT/task_loss.jsonl   bits of the reference answers (with --task-loss)
OUT/scores.jsonl      verdicts, written by scoring
OUT/disagreements.jsonl   samples that graders judge differently
OUT/results.json      metrics and manifest
OUT/report.html       all of it to look at
OUT/log.jsonl         when the process ran and how fast: the one file that two runs differ in
"""

import json
from pathlib import Path

from rlvr.jsonl import (
    Appender,
    Lines,
    Row,
    differences,
    line,
    read_lines,
    write_atomically,
    write_lines,
)

__all__ = [
    "Appender",
    "Lines",
    "Row",
    "differences",
    "line",
    "read_lines",
    "write_atomically",
    "write_lines",
]

Key = tuple[str, str, bool, int]
"""(benchmark, problem id, greedy, sample index)"""

PARTS, PLAN, PROBLEMS, SAMPLES = "parts", "plan.json", "problems.jsonl", "samples.jsonl"
LOSSES, SCORES, DISAGREEMENTS = "task_loss.jsonl", "scores.jsonl", "disagreements.jsonl"
RESULTS, PAGE, LOG = "results.json", "report.html", "log.jsonl"


def key_of(row: Row) -> Key:
    """What a sample or a verdict belongs to."""
    return row["benchmark"], row["problem"], row["greedy"], row["sample"]


def read_json(path: Path, what: str) -> Row:
    """A JSON object of an evaluation's folder.

    Raises:
        ValueError: It is missing or no JSON; ``what`` says what it would be.
    """
    if not path.is_file():
        raise ValueError(f"{str(path.parent)!r} is no evaluation: {path.name} ({what}) is missing")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); evaluate again into another folder"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; evaluate again into another folder")
    return value
