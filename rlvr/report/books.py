"""Where a run's prompts and tokens went, from the sums in its ledger."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

_PROMPTS = {
    "trained": "an update learnt from their completions",
    "filtered": "set aside by the filter: rewards all equal, or accuracy out of range",
    "surplus": "informative, but their step had no room for them",
    "stale": "waited for a step until their weights were too old",
    "waiting": "wait for a later step",
}
_TOKENS = {
    "trained": "in the loss",
    "skipped": "trained on, with advantage 0: no gradient",
    "masked": "cut at the limit and left out of the loss",
    "filtered": "of filtered prompts",
    "surplus": "of surplus prompts",
    "stale": "of stale prompts",
    "waiting": "of prompts that wait",
}


def read_books(path: Path, last: int | None = None) -> dict[str, Any] | None:
    """The panel of the books; None if the run keeps no ledger or has finished no step.

    Args:
        path: ``ledger.jsonl``, of which only the rows with the sums of a step are parsed.
        last: Last step to use, because later steps were abandoned; None uses all.

    Returns:
        ``steps``, how many it tells of; ``flows``, of prompts and of tokens: their name, how many
        were drawn or generated, and for each fate its count and what it means.
    """
    sums: dict[str, Counter[str]] = {"prompts": Counter(), "tokens": Counter()}
    steps = 0
    for row in _step_rows(path):
        if last is None or row["step"] <= last:
            steps += 1
            for name, counts in sums.items():
                counts.update(row[name])
    if not steps:
        return None
    return {
        "steps": steps,
        "flows": [
            _flow("prompts drawn", "drawn", sums["prompts"], _PROMPTS),
            _flow("tokens generated", "generated", sums["tokens"], _TOKENS),
        ],
    }


def _flow(name: str, source: str, counts: Counter[str], meanings: dict[str, str]) -> dict[str, Any]:
    own = {fate: counts[fate] for fate in meanings}
    # A prompt that waited counts as carried once, and under its last fate later.
    own["waiting"] = max(0, counts[source] - sum(own.values()))
    return {
        "name": name,
        "total": counts[source],
        "fates": [
            {"fate": fate, "count": own[fate], "meaning": meaning}
            for fate, meaning in meanings.items()
            if own[fate]
        ],
    }


def _step_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of kind step that can be read; the file may be long, and most rows are others."""
    if not path.is_file():
        return []
    found = []
    with path.open("rb") as file:
        for text in file:
            if b'"kind": "step"' not in text:
                continue
            try:
                row = json.loads(text)
            except ValueError:
                continue
            if row.get("kind") == "step":
                found.append(row)
    return found
