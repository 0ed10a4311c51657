"""What a second judge said of a run's verdicts: sentences, and the latest it contradicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr.files import read_lines
from rlvr.report.history import History

MOST = 50
MOST_CHARACTERS = 2_000
_TEXTS = ("problem_id", "answer", "response")
_KINDS = {
    "accepted": ("false_accepts", "accepted", "rejected"),
    "rejected": ("false_rejects", "rejected", "accepted"),
}


def read_disputes(path: Path, history: History, last: int | None = None) -> dict[str, Any] | None:
    """The panel of the second judge; None if the run had none.

    Args:
        path: ``disputed.jsonl``; it is missing as long as nothing is disputed.
        history: The run's metrics.
        last: Last step to use, because later steps were abandoned; None uses all.

    Returns:
        ``lines``, sentences with the estimates; ``rows``, the newest `MOST` disputed completions,
        newest first; ``total``, how many were recorded.
    """
    figures = {
        name.removeprefix("check/"): history.points(name)[-1][1]
        for name in history.columns
        if name.startswith("check/") and history.points(name)
    }
    if not figures:
        return None
    found = [row for row in read_lines(path).objects if _whole(row)]
    kept = [row for row in found if last is None or row["step"] <= last]
    return {
        "lines": [_sentence(kind, figures) for kind in _KINDS if figures.get(f"{kind}_judged")]
        or ["No verdict has been judged again yet."],
        "rows": [_row(row) for row in reversed(kept[-MOST:])],
        "total": len(kept),
    }


def _sentence(kind: str, figures: Mapping[str, float]) -> str:
    error, was, would = _KINDS[kind]
    count, judged, disputed, undecided = (
        f"{figures.get(name, 0):,.0f}"
        for name in (kind, *(f"{kind}_{part}" for part in ("judged", "disputed", "undecided")))
    )
    text = f"Of {count} {was} answers {judged} were judged again: {disputed} contradicted"
    text += f", {undecided} it cannot judge."
    share, low, high = (figures.get(f"{error}{end}") for end in ("", "_low", "_high"))
    if share is None or low is None or high is None:
        return text
    least, most = (figures.get(f"{error}{end}", 0.0) for end in ("_least", "_most"))
    ends = [_percent(value) for value in (share, low, high, least, most)]
    return (
        f"{text} Estimated share that it would have {would}: {ends[0]} (95 % interval {ends[1]} to "
        f"{ends[2]}); between {ends[3]} and {ends[4]} of those judged again, had it judged all."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: str(row.get(name, ""))[-MOST_CHARACTERS:] for name in _TEXTS}
    return {"step": row["step"], **texts} | {
        judge: {
            "correct": row[judge]["correct"],
            **{
                name: str(row[judge].get(name) or "")[:MOST_CHARACTERS]
                for name in ("extracted", "path", "reason", "certainty")
            },
        }
        for judge in ("verdict", "second")
    }


def _whole(row: Mapping[str, Any]) -> bool:
    return type(row.get("step")) is int and all(
        isinstance(row.get(judge), dict) and isinstance(row[judge].get("correct"), bool)
        for judge in ("verdict", "second")
    )
