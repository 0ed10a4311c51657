"""Programs per minute that the grader of code judges, by kind of test and way of isolation.

    python -m tests.benchmarks.sandbox [--workers 2] [--programs 300] [--sandbox auto]

Each program is right and has a sandbox of its own. ``bare`` starts an interpreter for each program
without any sandbox, for comparison.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from reward import VerifierPool
from reward.sandbox.ways import way_of
from reward.verdict import GradingPolicy

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
SUM = "```python\nprint(sum(map(int, input().split())))\n```"
RUN = {"input": "1 2", "output": "3"}
CALL = {"function": "add", "args": [1, 2], "result": 3}
CASES = {
    "1 run": (SUM, {"runs": [RUN]}),
    "10 runs": (SUM, {"runs": [RUN] * 10}),
    "10 calls": (ADD, {"calls": [CALL] * 10}),
    "3 assertions": (ADD, {"assertions": ["assert add(1, 2) == 3"] * 3}),
}


def bare(_: int) -> None:
    """Start Python for a program of one line."""
    command = [sys.executable, "-I", "-S", "-c", "print(sum(map(int, input().split())))"]
    subprocess.run(command, input=b"1 2", stdout=subprocess.DEVNULL, check=True)


def per_minute(work: Callable[[], object], count: int) -> float:
    """How many are done in a minute, from the seconds of ``count``."""
    began = time.perf_counter()
    work()
    return 60 * count / (time.perf_counter() - began)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--sandbox", default="auto")
    given = parser.parse_args()
    policy = GradingPolicy(sandbox=given.sandbox)
    print(f"{way_of(policy.sandbox)}, {given.workers} workers, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    with VerifierPool(given.workers, 60, "code", policy) as pool:
        pool.grade_many([(SUM, json.dumps({"runs": [RUN]}))] * 2 * given.workers)
        for name, (response, gold) in CASES.items():
            asked = [(response, json.dumps(gold))] * given.programs
            rate = per_minute(lambda: assert_right(pool, asked), given.programs)  # noqa: B023
            print(f"{name:<14} {rate:8.0f} programs a minute")
    with ThreadPoolExecutor(given.workers) as threads:
        rate = per_minute(lambda: list(threads.map(bare, range(given.programs))), given.programs)
    print(f"{'bare':<14} {rate:8.0f} programs a minute")


def assert_right(pool: VerifierPool, asked: list[tuple[str, str]]) -> None:
    """Grade, and see that all are right."""
    assert all(grade.correct for grade in pool.grade_many(asked))


if __name__ == "__main__":
    main()
