r"""Agreement of the verifier with pairs written as a policy that hacks rewards would write them.

    python -m tests.reward.adversarial          # by kind, then each row that is wrong

The rows stand in ``shared/cases/adversarial_pairs.jsonl`` (see `tests.reward.agreement`). Disputed
rows are not counted. A row's kind is derived from how it is written, in the order of `KINDS`.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from reward import grade
from tests.reward.agreement import Tally, find_shared, load

NAME = "adversarial_pairs"
KINDS: tuple[tuple[str, Callable[[str, str], object]], ...] = (
    ("response around the box", lambda answer, gold: answer.startswith("?")),
    ("characters", lambda answer, gold: not (answer + gold).isascii()),
    ("integer functions", lambda answer, gold: _INTEGER.search(answer + gold)),
    ("words", lambda answer, gold: re.search(r"\\text\s*\{|[A-Za-z]{4,}", _bare(answer))),
    ("labels and chains", lambda answer, gold: re.search(r"=|\\approx|\\equiv", answer + gold)),
    ("expressions", lambda answer, gold: re.search(r"[a-z]", _bare(gold))),
    ("numbers and the rest", lambda answer, gold: True),
)
_INTEGER = re.compile(r"\bn\b|!|\\binom|gcd|lcm|\(-1\)\^")


def _bare(text: str) -> str:
    return re.sub(r"\\(?!text\b)[A-Za-z]+", "", text)


def kind_of_row(row: dict) -> str:
    """Name the kind of a row by the way it is written."""
    whole = re.fullmatch(r"\\boxed\{(.*)\}", row["response"], re.DOTALL)
    answer = whole.group(1) if whole and "\\boxed" not in whole.group(1) else "?"
    return next(name for name, holds in KINDS if holds(answer, row["gold"]))


def measure(rows: Iterable[dict]) -> tuple[dict[str, Tally], list[dict]]:
    """Tally the undisputed rows by kind; return the wrong ones too."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    wrong = []
    for row in rows:
        if row.get("disputed"):
            continue
        correct = grade(row["response"], row["gold"]).correct
        tallies[kind_of_row(row)].add(correct, row["expected"])
        if correct != row["expected"]:
            wrong.append(row)
    return dict(tallies), wrong


def main() -> None:
    """Print a line for each kind, the total, and the rows that are wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=find_shared())
    tallies, wrong = measure(load(parser.parse_args().shared, NAME))
    rows = sum(tally.rows for tally in tallies.values())
    print(f"{'kind':<26}{'rows':>6}  right (false rejects / false accepts)")
    for name, _ in KINDS:
        if name in tallies:
            print(f"{name:<26}{tallies[name].rows:>6}  {tallies[name]}")
    accepts = sum(tally.false_accepts for tally in tallies.values())
    rejects = sum(tally.false_rejects for tally in tallies.values())
    share = 1 - len(wrong) / rows
    print(f"{'all':<26}{rows:>6}  {rows - len(wrong)} ({rejects} / {accepts}), {share:.1%}\n")
    for row in wrong:
        fault = "refused " if row["expected"] else "accepted"
        print(f"{row['id']} {fault} {row['response']!r} for {row['gold']!r}")


if __name__ == "__main__":
    main()
