"""Verdicts per second of the verifier beside math-verify, and the time a worker takes to start.

    python tests/benchmarks/verifier.py [--workers 2] [--rounds 5] [--shared FOLDER]

Both graders run in the same pool, on the same full responses and answer pairs of the collected
cases, in alternating rounds, so that a busy machine slows both. math-verify gets what its users
give it: the whole response, its default extraction, the reference in dollar signs.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from reward import VerifierPool

GRADERS = ("rlvr", "math_verify")


def load(shared: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the two workloads as (response, reference) pairs."""

    def rows(name: str) -> list[dict]:
        with (shared / "cases" / f"{name}.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    responses = [r for r in rows("extraction_cases") if r["category"] == "full-response"]
    return {
        "full responses": [(row["response"], row["gold"]) for row in responses],
        "answer pairs": [
            (f"\\boxed{{{row['pred']}}}", row["gold"])
            for row in rows("grader_cases")
            if row.get("pred_form") != "prose"
        ],
    }


def rate(pool: VerifierPool, pairs: list[tuple[str, str]]) -> float:
    """Return verdicts per second over all pairs."""
    began = time.perf_counter()
    pool.grade_many(pairs)
    return len(pairs) / (time.perf_counter() - began)


def start_seconds() -> float:
    """Return the seconds from nothing to a worker that has imported everything."""
    began = time.perf_counter()
    with VerifierPool():
        return time.perf_counter() - began


def main() -> None:
    """Measure and print medians."""
    beside = Path(__file__).resolve().parents[2] / ".." / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shared", type=Path, default=os.environ.get("RLVR_SHARED", beside))
    arguments = parser.parse_args()
    loads = load(Path(arguments.shared))
    pools = {
        name: VerifierPool(arguments.workers, grader=name, timeout=5).start() for name in GRADERS
    }
    print(f"{'verdicts/s, median':<22}" + "".join(f"{name:>14}" for name in GRADERS) + "   ratio")
    for workload, pairs in loads.items():
        rates: dict[str, list[float]] = {name: [] for name in GRADERS}
        for _ in range(arguments.rounds):
            for name, pool in pools.items():
                rates[name].append(rate(pool, pairs))
        medians = [statistics.median(rates[name]) for name in GRADERS]
        cells = "".join(f"{median:>14.0f}" for median in medians)
        print(f"{workload:<16}{len(pairs):>6}{cells}{medians[0] / medians[1]:>8.1f}")
    for pool in pools.values():
        pool.close()
    starts = [start_seconds() for _ in range(arguments.rounds)]
    print(f"worker start, median of {len(starts)}: {statistics.median(starts):.2f} s")


if __name__ == "__main__":
    main()
