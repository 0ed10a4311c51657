"""Agreement of the verifier with the collected cases, beside other graders.

    python -m tests.reward.agreement                        # print the tables
    python -m tests.reward.agreement --write docs/verifier.md

The cases stand in ``shared/cases`` beside the checkout, or where RLVR_SHARED points. With
``--write`` the part of the page between the two markers is replaced.

Columns: this verifier (`reward.equivalent`, default policy, no row-specific settings);
math-verify 0.9.0 alone (the verdict recorded with each row); text equality after the MATH data
set's normalisation; the PRM800K rules (our own code for both, `reward.compatible`).
"""

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from reward.compatible import hendrycks_equal, prm800k_equal
from reward.extract import extract
from reward.grading import equivalent, grade
from reward.normalize import clean
from reward.verdict import DEFAULT, GradingPolicy

BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"
GRADERS = ("this verifier", "math-verify", "Hendrycks", "PRM800K")

# Rows whose upstream test reads answers that are in no box, and the extraction that reads them.
EXTRACTION_OF_POLICY = {
    "Geometry3K: answer in the last [..] bracket": "bracketed",
    "no box: expression/latex fallback": "last_math",
    "GSM8K: last number": "last_number",
    '"Answer:" line format': "marked",
    "<answer> tag format": "marked",
}
WHY_STILL_WRONG = {
    "g00099": "the chain is false: 1/3 is not near 1.3",
    "g00127": "the label holds at two decimals only (its test sets precision 2)",
    "g00148": "the reference is a whole solution whose box leaves the percent sign outside",
    "g00184": "the reference is a broken escape of \\text{13}, which is repaired here",
    "g00502": "the label holds at a tolerance of 1e-4 (its test sets it)",
    "g00508": "the label holds at an absolute tolerance of 0.001 (its test sets it)",
    "g00599": "an expression broken into rows, with a fraction that is not one",
    "g00635": "needs to know that omega is a cube root of unity",
    "g00912": "needs a case distinction over a parameter",
    "g00946": "the same statement in other words",
    "g00958": "a word of the reference alone; accepting that would reward guessing words",
    "g01000": "a word of the reference alone; accepting that would reward guessing words",
    "g01006": "the same statement in other words",
    "g01064": "a word of the reference alone; accepting that would reward guessing words",
    "g01096": "the same statement in other words",
    "e00050": "falls back to the last number, which a reward must not",
    "e00119": "upstream could not read sqrt(2) in plain text; the answer is right",
    "e00186": "no box; read with extraction `marked`",
    "e00188": "no box; read with extraction `marked`",
    "e00226": "no box, and the answer is spelled in words",
    "e00229": "no box",
}


@dataclass
class Tally:
    """Counts of one grader on one group of rows."""

    rows: int = 0
    agree: int = 0
    false_accepts: int = 0
    false_rejects: int = 0

    def add(self, verdict: bool, expected: bool) -> None:
        self.rows += 1
        self.agree += verdict == expected
        self.false_accepts += verdict and not expected
        self.false_rejects += expected and not verdict

    def __str__(self) -> str:
        return f"{self.agree} ({self.false_rejects} / {self.false_accepts})"


@dataclass
class Agreement:
    """Tallies per group and grader, and the rows on which this verifier is wrong."""

    groups: dict[str, dict[str, Tally]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Tally))
    )
    wrong: list[dict] = field(default_factory=list)

    def total(self, grader: str, groups: Iterable[str] | None = None) -> Tally:
        chosen = self.groups if groups is None else {g: self.groups[g] for g in groups}
        result = Tally()
        for tallies in chosen.values():
            one = tallies[grader]
            result.rows += one.rows
            result.agree += one.agree
            result.false_accepts += one.false_accepts
            result.false_rejects += one.false_rejects
        return result


def find_shared() -> Path:
    """Return the folder of shared data."""
    beside = Path(__file__).resolve().parents[2] / ".." / "shared"
    return Path(os.environ.get("RLVR_SHARED", beside))


def load(shared: Path, name: str) -> list[dict]:
    """Read one of the case files."""
    with (shared / "cases" / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def decidable(row: dict) -> bool:
    """Tell whether a rule can decide a row and no two sources contradict each other on it."""
    return not row.get("disputed") and not row.get("needs")


def verdicts(row: dict) -> dict[str, bool]:
    """Return every grader's verdict on a pair."""
    pred, gold = row.get("pred_bare", row["pred"]), row.get("gold_bare", row["gold"])
    hendrycks = hendrycks_equal(pred, gold)
    return {
        "this verifier": equivalent(row["pred"], row["gold"]).correct,
        "math-verify": bool(row["mv090"]),
        "Hendrycks": hendrycks,
        "PRM800K": hendrycks or prm800k_equal(pred, gold),
    }


def measure(rows: Iterable[dict], group: Callable[[dict], str]) -> Agreement:
    """Tally all graders on pairs."""
    result = Agreement()
    for row in rows:
        found = verdicts(row)
        for grader, verdict in found.items():
            result.groups[group(row)][grader].add(verdict, row["expected"])
        if found["this verifier"] != row["expected"]:
            result.wrong.append(row)
    return result


def extraction_verdict(row: dict) -> bool:
    """Tell whether extraction and verdict on a full response are as the row expects."""
    mode = EXTRACTION_OF_POLICY.get(row.get("policy") or "", "boxed")
    policy = GradingPolicy(extraction=mode)
    found = extract(row["response"], mode)
    if row["expected"] is not None:
        golds = row["gold"] if isinstance(row["gold"], list) else [row["gold"]]
        if any(grade(row["response"], gold, policy).correct for gold in golds) != row["expected"]:
            return False
    if "extracted" in row:
        return _same_extract(found.answer, row["extracted"])
    return row["expected"] is not None or "extract" not in row["category"] or found.answer is None


def _same_extract(found: str | None, wanted: str | None) -> bool:
    if not found or not wanted:
        return (found or None) == (wanted or None)
    return clean(found) == clean(wanted) or equivalent(found, wanted, DEFAULT).correct


def source_of(row: dict) -> str:
    """Return the repository a row comes from."""
    return row["source"].split(":")[0].split("#")[0]


def category_of(row: dict) -> str:
    """Return the kind of row."""
    return row["category"]


def table(agreement: Agreement, heading: str) -> list[str]:
    """Format tallies as a Markdown table, largest group first."""
    lines = [f"| {heading} | rows | " + " | ".join(GRADERS) + " |"]
    lines.append("|---|---:|" + "---:|" * len(GRADERS))
    ordered = sorted(agreement.groups.items(), key=lambda item: -item[1][GRADERS[0]].rows)
    for name, tallies in ordered:
        cells = " | ".join(str(tallies[grader]) for grader in GRADERS)
        lines.append(f"| {name} | {tallies[GRADERS[0]].rows} | {cells} |")
    totals = [agreement.total(grader) for grader in GRADERS]
    lines.append(f"| **all** | {totals[0].rows} | " + " | ".join(map(str, totals)) + " |")
    return lines


def page(shared: Path) -> str:
    """Write the generated part of the page."""
    pairs = [row for row in load(shared, "grader_cases") if decidable(row)]
    derived = [row for row in load(shared, "grader_cases_derived") if decidable(row)]
    responses = [row for row in load(shared, "extraction_cases") if not row.get("disputed")]
    disputed = [
        row
        for name in ("grader_cases", "grader_cases_derived")
        for row in load(shared, name)
        if not decidable(row)
    ]
    by_source, by_kind = measure(pairs, source_of), measure(pairs, category_of)
    further, open_rows = measure(derived, category_of), measure(disputed, _why_undecided)
    missed = [row for row in responses if not extraction_verdict(row)]
    share = by_source.total(GRADERS[0]).agree / len(pairs)
    lines = [
        BEGIN,
        "Cells: rows on which the grader agrees with the label (false rejects / false accepts).",
        "",
        f"Answer pairs from public test suites and benchmarks: {share:.1%} agreement.",
        "",
        *table(by_source, "source"),
        "",
        *table(by_kind, "kind of row"),
        "",
        "Derived pairs: golds against themselves, mutated golds, degenerate answers, hand probes.",
        "",
        *table(further, "kind of row"),
        "",
        "Rows outside the count, because sources contradict each other or no rule can decide them:",
        "",
        *table(open_rows, "why"),
        "",
        f"Full responses and extraction probes: {len(responses) - len(missed)} of "
        f"{len(responses)} as expected ({1 - len(missed) / len(responses):.1%}).",
        "",
        "### Rows still wrong",
        "",
        *still_wrong([*by_source.wrong, *further.wrong, *missed]),
        END,
    ]
    return "\n".join(lines)


def _why_undecided(row: dict) -> str:
    return f"needs {row['needs']}" if row.get("needs") else "disputed"


def still_wrong(rows: Iterable[dict]) -> list[str]:
    """List the rows that are wrong, each with the reason."""
    lines = ["| row | reference | answer | label | why |", "|---|---|---|---|---|"]
    for row in rows:
        answer = row.get("pred", row.get("response", ""))
        label = {True: "right", False: "wrong", None: "extraction"}[row["expected"]]
        why = WHY_STILL_WRONG.get(row["id"], "")
        cells = (_cell(str(row["gold"])), _cell(answer[-60:] if "response" in row else answer))
        lines.append(f"| {row['id']} | {cells[0]} | {cells[1]} | {label} | {why} |")
    return lines


def _cell(text: str) -> str:
    short = " ".join(text.split())
    short = short if len(short) <= 60 else short[:57] + "..."
    return "`" + short.replace("|", "\\|").replace("`", "'") + "`"


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="page to write the tables into")
    parser.add_argument("--shared", type=Path, default=find_shared())
    arguments = parser.parse_args()
    text = page(arguments.shared)
    if arguments.write is None:
        print(text)
        return
    old = arguments.write.read_text(encoding="utf-8")
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    arguments.write.write_text(head + text + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
