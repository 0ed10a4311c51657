"""Metrics of a problem's samples: pure functions of counts that compute expectations exactly.

A problem has n samples, c of them right. Every metric is a value per problem in [0, 1] and is
averaged over problems; ``eval.statistics`` computes the error of that mean.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.statistics import Bootstrap, Estimate

REFERENCE = 0
"""The vote class of answers that equal the reference."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One graded sample.

    ``vote`` is the class of equal answers for which it votes: :data:`REFERENCE` if it is right,
    another number for wrong answers, None without an answer.
    """

    correct: bool
    truncated: bool
    answered: bool
    tokens: int
    vote: int | None


@dataclass(frozen=True, slots=True)
class ProblemOutcomes:
    """A problem's samples, and its greedy completion if there is one."""

    problem_id: str
    sampled: tuple[Outcome, ...]
    greedy: Outcome | None = None
    level: str | None = None
    subject: str | None = None

    @property
    def correct(self) -> int:
        """Number of right samples."""
        return sum(outcome.correct for outcome in self.sampled)

    @property
    def average(self) -> float:
        """Share of samples that are right."""
        return self.correct / len(self.sampled)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k samples drawn without replacement include a right one; unbiased.

    1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1).

    Raises:
        ValueError: k is not in 1..n.
    """
    _check(n, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def all_at_k(n: int, c: int, k: int) -> float:
    """Probability that k samples drawn without replacement are all right (pass^k).

    Raises:
        ValueError: k is not in 1..n.
    """
    _check(n, k)
    return math.comb(c, k) / math.comb(n, k)


def maj_at_k(votes: Sequence[int | None], k: int) -> float:
    """Expected share of right majority votes over all subsets of k samples, exactly.

    Samples without an answer (None) are drawn but do not vote. Among classes with equally many
    votes the winner is random, so a tie of t classes that includes the reference counts 1/t.
    Subsets are counted, not enumerated: for each number m of votes for the reference, the
    polynomials of the other classes, prod_s (sum_{i<m} C(s, i) x^i + C(s, m) x^m y), count choices
    by votes (x) and ties (y).

    Args:
        votes: One class per sample; :data:`REFERENCE` is the right one.
        k: Size of the subsets.

    Raises:
        ValueError: k is not in 1..n.
    """
    n = len(votes)
    _check(n, k)
    sizes = Counter(votes)
    blank, right = sizes.pop(None, 0), sizes.pop(REFERENCE, 0)
    total = 0.0
    for m in range(1, min(right, k) + 1):
        ways = _choices(sorted(sizes.values()), blank, m, k - m)
        share = sum(count / (1 + ties) for ties, count in ways.items())
        total += math.comb(right, m) * share
    return total / math.comb(n, k)


def _choices(sizes: Sequence[int], blank: int, most: int, picks: int) -> dict[int, int]:
    """Ways to pick ``picks`` others with no class above ``most``, by number of classes at
    ``most``."""
    table = {(drawn, 0): math.comb(blank, drawn) for drawn in range(min(blank, picks) + 1)}
    for size in sizes:
        grown: dict[tuple[int, int], int] = {}
        for (drawn, ties), ways in table.items():
            for count in range(min(size, most, picks - drawn) + 1):
                key = (drawn + count, ties + (count == most))
                grown[key] = grown.get(key, 0) + ways * math.comb(size, count)
        table = grown
    return {ties: ways for (drawn, ties), ways in table.items() if drawn == picks}


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} needs at least {k} samples of a problem, but there are {n}")


def shown_ks(n: int) -> list[int]:
    """The values of k that tables show: powers of two up to n, and n."""
    return sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})


def benchmark_metrics(
    problems: Sequence[ProblemOutcomes], label: str, ks: Sequence[int] | None = None
) -> dict[str, object]:
    """All metrics of one benchmark.

    The keys do not depend on the budget; metrics that cannot be computed are omitted: ``greedy``;
    ``avg`` with ``samples``; ``pass``, ``all`` and ``maj`` by k.

    Args:
        problems: At least one; all must have the same number of samples.
        label: Determines the bootstrap's random numbers.
        ks: The values of k; None is every one up to n (for maj: those that tables show).

    Raises:
        ValueError: A k is larger than the number of samples.
    """
    bootstrap = Bootstrap(len(problems), label)
    n = min(len(problem.sampled) for problem in problems)
    found: dict[str, object] = {"problems": len(problems), "samples": n}
    if all(problem.greedy is not None for problem in problems):
        greedy = [float(p.greedy.correct) for p in problems if p.greedy is not None]
        found["greedy"] = bootstrap.estimate(greedy)
    for k in ks or ():
        _check(n, k)
    if n:
        counts = [(len(problem.sampled), problem.correct) for problem in problems]
        found["avg"] = bootstrap.estimate([problem.average for problem in problems])
        wanted = list(ks or range(1, n + 1))
        found["pass"] = {
            k: bootstrap.estimate([pass_at_k(n_i, c, k) for n_i, c in counts]) for k in wanted
        }
        found["all"] = {
            k: bootstrap.estimate([all_at_k(n_i, c, k) for n_i, c in counts]) for k in wanted
        }
        found["maj"] = _majority(problems, bootstrap, list(ks or shown_ks(n)))
    return found | _counts([outcome for problem in problems for outcome in _outcomes(problem)])


def _majority(
    problems: Sequence[ProblemOutcomes], bootstrap: Bootstrap, ks: Sequence[int]
) -> dict[int, Estimate]:
    votes = [[outcome.vote for outcome in problem.sampled] for problem in problems]
    return {k: bootstrap.estimate([maj_at_k(each, k) for each in votes]) for k in ks}


def _outcomes(problem: ProblemOutcomes) -> list[Outcome]:
    """The samples, or the greedy completion if there are none."""
    return list(problem.sampled) or ([problem.greedy] if problem.greedy else [])


def _counts(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Other figures: truncation, missing answers, lengths in tokens."""
    tokens = sorted(outcome.tokens for outcome in outcomes)
    found: dict[str, object] = {
        "responses": len(outcomes),
        "truncated": sum(outcome.truncated for outcome in outcomes) / len(outcomes),
        "no_answer": sum(not outcome.answered for outcome in outcomes) / len(outcomes),
        "tokens_mean": sum(tokens) / len(tokens),
        "tokens_median": (tokens[(len(tokens) - 1) // 2] + tokens[len(tokens) // 2]) / 2,
    }
    for name, wanted in (("tokens_right", True), ("tokens_wrong", False)):
        lengths = [outcome.tokens for outcome in outcomes if outcome.correct == wanted]
        if lengths:
            found[name] = sum(lengths) / len(lengths)
    return found


def training_metrics(problems: Sequence[ProblemOutcomes], label: str) -> dict[str, float]:
    """Metrics of an evaluation during training: accuracy with its error, length, truncation.

    With several samples per problem it also has pass@n.
    """
    n = min(len(problem.sampled) for problem in problems)
    found = benchmark_metrics(problems, label, [n])
    _, accuracy = headline_metric(found)
    counts = {"length": found["tokens_mean"], "truncated": found["truncated"]}
    metrics = {"accuracy": accuracy.value, **{k: float(str(v)) for k, v in counts.items()}}
    if accuracy.se is not None:
        metrics["accuracy_se"] = accuracy.se
    if n > 1:
        passed = [pass_at_k(len(problem.sampled), problem.correct, n) for problem in problems]
        metrics["pass_at_n"] = sum(passed) / len(passed)
    return metrics


def headline_metric(summary: dict[str, object]) -> tuple[str, Estimate]:
    """The main figure of a benchmark and its name: avg@n, or greedy accuracy."""
    average = summary.get("avg")
    if isinstance(average, Estimate):
        return f"avg@{summary['samples']}", average
    greedy = summary["greedy"]
    assert isinstance(greedy, Estimate)
    return "greedy", greedy
