"""The files in the folder of an evaluation.

OUT/plan.json         what is sampled: model, versions, data, templates, sampling, seeds
OUT/problems.jsonl    every problem with its prompt, reference, level and subject
OUT/parts/*.jsonl     samples as they finish, one file per process; deleted when all are there
OUT/samples.jsonl     all samples in canonical order
OUT/task_loss.jsonl   bits of the reference answers (with --task-loss)
OUT/scores.jsonl      verdicts, written by scoring
OUT/disagreements.jsonl   samples that graders judge differently
OUT/results.json      metrics and manifest
OUT/report.html       a page that shows everything
OUT/evaluation.lock   held by the process that writes here
OUT/log.jsonl         when the process ran and how fast: the only file that differs between two runs
"""

import json
from pathlib import Path

from rlvr.files import (
    Appender,
    Lines,
    Row,
    append_line,
    differences,
    line,
    locked,
    read_lines,
    remove_leftovers,
    write_atomically,
    write_lines,
)

__all__ = [
    "Appender",
    "Lines",
    "Row",
    "append_line",
    "differences",
    "line",
    "locked",
    "read_lines",
    "remove_leftovers",
    "write_atomically",
    "write_lines",
]

Key = tuple[str, str, bool, int]
"""(benchmark, problem id, greedy, sample index)"""

PARTS, PLAN, PROBLEMS, SAMPLES = "parts", "plan.json", "problems.jsonl", "samples.jsonl"
LOSSES, SCORES, DISAGREEMENTS = "task_loss.jsonl", "scores.jsonl", "disagreements.jsonl"
RESULTS, PAGE, LOG = "results.json", "report.html", "log.jsonl"
LOCK = "evaluation.lock"


def key_of(row: Row) -> Key:
    """The key that identifies a sample or a verdict."""
    return row["benchmark"], row["problem"], row["greedy"], row["sample"]


def read_json(path: Path, what: str) -> Row:
    """Read a JSON object from an evaluation's folder.

    Raises:
        ValueError: It is missing or not JSON; ``what`` describes its content.
    """
    if not path.is_file():
        raise ValueError(
            f"{str(path.parent)!r} is not an evaluation: {path.name} ({what}) is missing"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); evaluate again into another folder"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; evaluate again into another folder")
    return value
