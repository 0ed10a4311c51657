r"""Rows written without knowledge of the rules: answers of every kind, and hostile ones.

``fresh_pairs.jsonl`` has [kind, reference, answer, equal]; ``equal`` is null where the rules of
the graders leave it open (such rows must only not fail). ``fresh_responses.jsonl`` has
[kind, response, answer]; null where there is none.
"""

import json
from pathlib import Path

import pytest

from reward import grade

HERE = Path(__file__).parent
# Right answers that no rule reads, and why none was added.
MISSED = {
    "3-i4",  # a number behind a letter is more often an index or a lost power sign
    r"\mathbf{R}",  # a bold R is as often a matrix or a vector
}


def load(name: str) -> list[list]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


PAIRS = load("fresh_pairs.jsonl")
RESPONSES = load("fresh_responses.jsonl")


@pytest.mark.parametrize("kind", sorted({row[0] for row in PAIRS}))
def test_fresh_pairs(kind):
    wrong = []
    for _, gold, pred, expected in (row for row in PAIRS if row[0] == kind):
        correct = grade(f"\\boxed{{{pred}}}", gold).correct
        wanted = False if pred in MISSED else expected
        if expected is not None and correct != wanted:
            wrong.append((gold, pred, expected))
    assert wrong == []


@pytest.mark.parametrize("kind", sorted({row[0] for row in RESPONSES}))
def test_fresh_responses(kind):
    wrong = []
    for _, response, answer in (row for row in RESPONSES if row[0] == kind):
        extracted = grade(response, "1").extracted
        if extracted != answer:
            wrong.append((response, answer, extracted))
    assert wrong == []
