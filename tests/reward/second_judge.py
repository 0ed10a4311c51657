"""How often the second judge errs, and of how much it says nothing, on pairs of known truth.

    python -m tests.reward.second_judge --pairs 2400 [--seed 0]

The pairs are those of `tests.reward.grammar`. A row counts, of equal and of unequal answers, those
that the judge calls equal, those that it calls different, and those of which it says nothing.
"""

import argparse
import random

from reward.second_opinion import second_opinion
from tests.reward.grammar import FAMILIES

WORDS = {True: 0, False: 1, None: 2}


def says(answer: str, gold: str) -> bool | None:
    """Whether the judge calls an answer right; None if it cannot say."""
    verdict = second_opinion(f"\\boxed{{{answer}}}", gold)
    return verdict.correct if verdict.status == "ok" else None


def measure(pairs: int, seed: int) -> tuple[dict[str, list[int]], list[tuple[str, str, bool]]]:
    """Judge pairs; by family the six counts, and the pairs that were judged wrong."""
    counts = {name: [0] * 6 for name in FAMILIES}
    wrong = []
    draw = random.Random(seed)
    for index in range(pairs // 2):
        name = list(FAMILIES)[index % len(FAMILIES)]
        gold, equal, miss = FAMILIES[name](draw)
        for answer, truth in ((equal, True), (miss, False)):
            said = says(answer, gold)
            counts[name][WORDS[said] + (0 if truth else 3)] += 1
            if said is not None and said != truth:
                wrong.append((gold, answer, truth))
    return counts, wrong


def main() -> None:
    """Print the table, and the first pairs judged wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts, wrong = measure(arguments.pairs, arguments.seed)
    print("| family | equal: right | wrong | none | unequal: wrong | right | none |")
    print("|---|" + "---:|" * 6)
    for name, row in counts.items():
        print(f"| {name} | " + " | ".join(map(str, row)) + " |")
    total = [sum(row[place] for row in counts.values()) for place in range(6)]
    print("| **all** | " + " | ".join(map(str, total)) + " |")
    for gold, answer, truth in wrong[:40]:
        print(f"{'refused ' if truth else 'accepted'} {answer} for {gold}")


if __name__ == "__main__":
    main()
