"""Make preferences from graded completions of a run: right against wrong answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr.data.cells import as_number, as_truth
from rlvr.data.consistency import short
from rlvr.data.hub import is_saved
from rlvr.data.kept import check_one_turn, was_cut
from rlvr.data.local_file import read_rows
from rlvr.data.rows import Row


def write_preferences(
    sources: Sequence[Path], out: Path, *, per_prompt: int = 1, labelled: bool = False
) -> int:
    """Write a JSONL file of preferences; return their number.

    Args:
        sources: JSONL files of graded completions; a run folder stands for the files in its
            ``completions`` folder.
        out: The file to write. Its prompts are already rendered: train with ``data.template: raw``.
        per_prompt: Maximum number of pairs per prompt.
        labelled: Write single completions with a label instead of pairs.

    Raises:
        ValueError: A source contains no graded completions, or no prompt has both right and wrong
            answers.
    """
    rows: list[Row] = []
    for source in sources:
        for file in _files(source):
            rows += [Row(f"{file}, {row.label}", row.values) for row in read_rows(file)]
    found = pairs_of_rows(rows, per_prompt=per_prompt, labelled=labelled)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    out.write_text(text, encoding="utf-8")
    return len(found)


def _files(source: Path) -> list[Path]:
    if not source.is_dir() or is_saved(source):
        return [source]
    files = sorted((source / "completions").glob("step_*.jsonl"))
    if not files:
        raise ValueError(
            f"folder {str(source)!r} is not a run that kept completions "
            "(completions/step_*.jsonl); name a run folder whose recipe sets "
            "log.completions_per_step"
        )
    return files


def pairs_of_rows(
    rows: Sequence[Row], *, per_prompt: int, labelled: bool = False
) -> list[dict[str, Any]]:
    """Make preferences from graded completions: right against wrong answers to one prompt.

    Completions that were cut at the token limit, and repetitions within a prompt, are skipped.

    Args:
        rows: Rows with ``prompt``, ``response``, ``correct`` and optionally ``reward`` and
            ``finish_reason``, as in a run's folders ``completions`` and ``evaluations``.
        per_prompt: Maximum number of pairs per prompt; the i-th right answer is paired with the
            i-th wrong one.
        labelled: Make single completions with a label instead of pairs, as many right as wrong
            ones.

    Raises:
        ValueError: A row lacks a field, or no prompt has both right and wrong answers.
    """
    groups: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for row in rows:
        values = {**row.values, "correct": as_truth(row.values.get("correct"))}
        for name, kind in (("prompt", str), ("response", str), ("correct", bool)):
            if not isinstance(values.get(name), kind):
                raise ValueError(
                    f"{row.label}: {name} = {short(row.values.get(name))}; graded completions need "
                    "prompt, response and correct, as in a run's folders"
                )
        check_one_turn(values, row.label)
        if was_cut(values) or not values["response"].strip():
            continue
        right, wrong = groups.setdefault(values["prompt"], ({}, {}))
        (right if values["correct"] else wrong).setdefault(
            values["response"], as_number(values.get("reward"))
        )
    found: list[dict[str, Any]] = []
    for prompt, (right, wrong) in groups.items():
        both = zip(right.items(), wrong.items(), strict=False)
        for good, bad in list(both)[:per_prompt]:
            found += (_labelled_rows if labelled else _pair_rows)(prompt, good, bad)
    if not found:
        raise ValueError(
            f"none of {len(groups)} prompts has both right and wrong answers; sample more of each"
        )
    return found


def _pair_rows(prompt: str, good: tuple[str, Any], bad: tuple[str, Any]) -> list[dict[str, Any]]:
    row = {"prompt": prompt, "chosen": good[0], "rejected": bad[0]}
    return [row | {"chosen_score": good[1], "rejected_score": bad[1]}]


def _labelled_rows(
    prompt: str, good: tuple[str, Any], bad: tuple[str, Any]
) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "completion": text, "label": label}
        for (text, _), label in ((good, True), (bad, False))
    ]
