"""Compare evaluations: paired tests, problems won and lost, a leaderboard.

Every evaluation is compared with the first one, benchmark by benchmark, over the problems that both
have (same id, question and reference). Greedy answers are compared with McNemar's exact test,
averages of samples with a paired bootstrap over problems. For evaluations that are about as good as
the baseline (seeds, late checkpoints) their disagreement is also computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

import numpy as np
from rich.table import Table

from eval.evaluation_folder import PLAN, PROBLEMS, SCORES, Row, read_json, read_lines
from eval.metrics import ProblemOutcomes
from eval.multiplicity import LEAST_MEMBERS, Multiplicity, multiplicity
from eval.results import plain_table
from eval.score import outcomes_by_benchmark
from eval.statistics import Paired, holm, mcnemar, paired_bootstrap
from eval.swiss import Standing, standings

_FEW = 6
"""With fewer models a tournament says little more than the number of benchmarks won."""


@dataclass(frozen=True, slots=True)
class ScoredEvaluation:
    """A scored evaluation: its name, plan, and outcomes by benchmark and problem."""

    name: str
    plan: Row
    outcomes: dict[str, dict[str, ProblemOutcomes]]
    questions: dict[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against the baseline on one benchmark.

    ``metric`` is greedy or avg@n; ``won`` and ``lost`` are the problems that changed, most changed
    first; ``p_holm`` is adjusted for all tests of the comparison.
    """

    model: str
    benchmark: str
    metric: str
    problems: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    won: tuple[str, ...]
    lost: tuple[str, ...]
    p_holm: float = 1.0


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Disagreement on a benchmark's problems among the evaluations near the baseline."""

    benchmark: str
    metric: str
    models: tuple[str, ...]
    found: Multiplicity
    disputed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """The whole comparison."""

    runs: tuple[ScoredEvaluation, ...]
    comparisons: tuple[Comparison, ...]
    benchmarks: tuple[str, ...]
    results_MK: np.ndarray
    standings: tuple[Standing, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    notes: tuple[str, ...] = field(default=())


def compare(
    folders: Sequence[Path],
    *,
    tournaments: int = 10_000,
    seed: int = 0,
    resamples: int = 200,
    epsilon: float = 0.01,
    delta: float = 0.3,
) -> Compared:
    """Compare scored evaluations; the first is the baseline.

    Args:
        folders: Folders of the evaluations.
        tournaments: Number of tournaments for the leaderboard.
        seed: Seed of tournaments and resampling.
        resamples: Number of resamples of the leaderboard's problems.
        epsilon: Largest difference of accuracy at which an evaluation is as good as the baseline.
        delta: Difference of a problem's pass rate that counts as disagreement.

    Raises:
        ValueError: There are fewer than two evaluations, one is not scored, or none has problems in
            common with the baseline.
    """
    if len(folders) < 2:
        raise ValueError("a comparison needs two evaluations; name a second folder")
    runs = _named([read_scored(folder) for folder in folders])
    tests = [
        test
        for run in runs[1:]
        for benchmark in runs[0].outcomes
        if benchmark in run.outcomes
        for test in _tests(runs[0], run, benchmark, seed)
    ]
    if not tests:
        raise ValueError(
            f"{folders[0]} has no problem in common with {', '.join(map(str, folders[1:]))}; "
            "evaluate them on the same benchmarks"
        )
    adjusted = holm([test.p for test in tests])
    comparisons = tuple(
        _with_holm(test, value) for test, value in zip(tests, adjusted, strict=True)
    )
    benchmarks = tuple(n for n in runs[0].outcomes if all(n in run.outcomes for run in runs))
    table = np.array([[_mean(run.outcomes[n]) for n in benchmarks] for run in runs])
    places: list[Standing] = []
    if len(runs) > 2 and benchmarks:
        places = standings(
            table,
            tournaments=tournaments,
            seed=seed,
            resample=lambda random: _resampled(runs, benchmarks, random),
            resamples=resamples,
        )
    disagreements, notes = _disagreements(runs, benchmarks, epsilon, delta, seed)
    return Compared(
        runs,
        comparisons,
        benchmarks,
        table,
        tuple(places),
        disagreements,
        (*_notes(runs, tests), *notes),
    )


def _disagreements(
    runs: Sequence[ScoredEvaluation],
    benchmarks: Sequence[str],
    epsilon: float,
    delta: float,
    seed: int,
) -> tuple[tuple[Disagreement, ...], list[str]]:
    """Disagreements by benchmark, or why there is none; over the problems that all evaluations
    have."""
    found, notes = [], []
    for benchmark in benchmarks if len(runs) >= LEAST_MEMBERS else ():
        names = [n for n in runs[0].outcomes[benchmark] if _everywhere(runs, benchmark, n)]
        items = [[run.outcomes[benchmark][name] for name in names] for run in runs]
        sampled = all(item.sampled for row in items for item in row)
        if not names or not (sampled or all(item.greedy for row in items for item in row)):
            continue
        rates = np.array([[_rate(item, sampled) for item in row] for row in items])
        counts = np.array([[len(i.sampled) for i in row] for row in items]) if sampled else None
        result = multiplicity(rates, counts, epsilon=epsilon, delta=delta, seed=seed)
        if len(result.members) < LEAST_MEMBERS:
            notes.append(
                f"{benchmark}: {len(result.members)} of {len(runs)} evaluations are within "
                f"{epsilon:g} of the baseline's accuracy; their disagreement is computed from "
                f"{LEAST_MEMBERS} on (--epsilon)."
            )
            continue
        models = tuple(runs[place].name for place in result.members)
        disputed = tuple(names[place] for place in result.disputed)
        metric = "pass rate" if sampled else "greedy"
        found.append(Disagreement(benchmark, metric, models, result, disputed))
    return tuple(found), notes


def _rate(problem: ProblemOutcomes, sampled: bool) -> float:
    if sampled:
        return problem.average
    assert problem.greedy is not None
    return float(problem.greedy.correct)


def read_scored(folder: Path) -> ScoredEvaluation:
    """Read a scored evaluation.

    Raises:
        ValueError: The folder does not contain one.
    """
    plan = read_json(folder / PLAN, "what was sampled")
    if not (folder / SCORES).is_file():
        raise ValueError(f"{str(folder)!r} is not scored yet; run: rlvr score {quote(str(folder))}")
    problems = {
        (row["benchmark"], row["problem"]): row
        for row in read_lines(folder / PROBLEMS, ended=True).objects
    }
    outcomes = outcomes_by_benchmark(
        plan, problems, read_lines(folder / SCORES, ended=True).objects
    )
    return ScoredEvaluation(
        folder.resolve().name,
        plan,
        {name: {item.problem_id: item for item in found} for name, found in outcomes.items()},
        {place: (row["question"], row["answer"]) for place, row in problems.items()},
    )


def _named(runs: Sequence[ScoredEvaluation]) -> tuple[ScoredEvaluation, ...]:
    """Give runs distinct names: folders with equal names are numbered."""
    names: list[str] = []
    for run in runs:
        name, number = run.name, 2
        while name in names:
            name, number = f"{run.name}-{number}", number + 1
        names.append(name)
    return tuple(
        ScoredEvaluation(name, run.plan, run.outcomes, run.questions)
        for name, run in zip(names, runs, strict=True)
    )


def _tests(
    first: ScoredEvaluation, second: ScoredEvaluation, benchmark: str, seed: int
) -> list[Comparison]:
    """The tests for which both evaluations have data."""
    pairs = [
        (mine, second.outcomes[benchmark][name])
        for name, mine in first.outcomes[benchmark].items()
        if name in second.outcomes[benchmark]
        and first.questions[benchmark, name] == second.questions[benchmark, name]
    ]
    found = []
    greedy = [(a, b) for a, b in pairs if a.greedy is not None and b.greedy is not None]
    if greedy:
        found.append(_greedy_test(second.name, benchmark, greedy, seed))
    sampled = [(a, b) for a, b in pairs if a.sampled and b.sampled]
    if sampled:
        found.append(_sampled_test(second.name, benchmark, sampled, seed))
    return found


Pair = tuple[ProblemOutcomes, ProblemOutcomes]


def _greedy_test(model: str, benchmark: str, pairs: Sequence[Pair], seed: int) -> Comparison:
    values = [
        (float(a.greedy.correct), float(b.greedy.correct))
        for a, b in pairs
        if a.greedy is not None and b.greedy is not None
    ]
    p = mcnemar(sum(a > b for a, b in values), sum(b > a for a, b in values))
    return _comparison(model, benchmark, "greedy", pairs, values, seed, p)


def _sampled_test(model: str, benchmark: str, pairs: Sequence[Pair], seed: int) -> Comparison:
    values = [(a.average, b.average) for a, b in pairs]
    counts = sorted({len(side.sampled) for pair in pairs for side in pair})
    metric = f"avg@{'/'.join(map(str, counts))}"
    return _comparison(model, benchmark, metric, pairs, values, seed, None)


def _comparison(
    model: str,
    benchmark: str,
    metric: str,
    pairs: Sequence[Pair],
    values: Sequence[tuple[float, float]],
    seed: int,
    p: float | None,
) -> Comparison:
    first, second = [a for a, _ in values], [b for _, b in values]
    paired: Paired = paired_bootstrap(first, second, f"{seed}/{benchmark}/{metric}")
    changes = [(b - a, pair[0].problem_id) for (a, b), pair in zip(values, pairs, strict=True)]
    return Comparison(
        model=model,
        benchmark=benchmark,
        metric=metric,
        problems=len(pairs),
        first=float(np.mean(first)),
        second=float(np.mean(second)),
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        p=paired.p if p is None else p,
        won=tuple(name for change, name in sorted(changes, key=lambda c: -c[0]) if change > 0),
        lost=tuple(name for change, name in sorted(changes, key=lambda c: c[0]) if change < 0),
    )


def _with_holm(test: Comparison, adjusted: float) -> Comparison:
    return replace(test, p_holm=adjusted)


def _mean(problems: dict[str, ProblemOutcomes]) -> float:
    return float(np.mean([_value(problem) for problem in problems.values()]))


def _value(problem: ProblemOutcomes) -> float:
    """The headline value: the average over samples, or else the greedy completion."""
    if problem.sampled:
        return problem.average
    assert problem.greedy is not None
    return float(problem.greedy.correct)


def _resampled(
    runs: Sequence[ScoredEvaluation], benchmarks: Sequence[str], random: np.random.Generator
) -> np.ndarray:
    """Results over resampled problems, the same ones for every model."""
    columns = []
    for benchmark in benchmarks:
        shared = [n for n in runs[0].outcomes[benchmark] if _everywhere(runs, benchmark, n)]
        names = shared or list(runs[0].outcomes[benchmark])
        drawn = random.integers(0, len(names), len(names))
        columns.append(
            [
                np.mean([_value(run.outcomes[benchmark][names[i]]) for i in drawn])
                if shared
                else _mean(run.outcomes[benchmark])
                for run in runs
            ]
        )
    return np.array(columns).T


def _everywhere(runs: Sequence[ScoredEvaluation], benchmark: str, problem: str) -> bool:
    return all(problem in run.outcomes[benchmark] for run in runs)


def _notes(runs: Sequence[ScoredEvaluation], tests: Sequence[Comparison]) -> list[str]:
    notes = []
    if len(tests) > 1:
        notes.append(
            f"{len(tests)} tests: at 0.05 each, {0.05 * len(tests):.1f} would be positive if "
            "nothing differed; the Holm column accounts for all tests together."
        )
    for run in runs[1:]:
        for key in ("protocol", "grader", "truncated"):
            if run.plan[key] != runs[0].plan[key]:
                notes.append(
                    f"{run.name} was evaluated with {key} {run.plan[key]!r}, {runs[0].name} with "
                    f"{runs[0].plan[key]!r}: the difference is not only due to the models."
                )
        notes += _decoding_notes(runs[0], run)
    if 2 < len(runs) < _FEW:
        notes.append(
            f"With {len(runs)} models a tournament says little more than the mean; use {_FEW} or "
            "more."
        )
    return notes


def _decoding_notes(first: ScoredEvaluation, second: ScoredEvaluation) -> list[str]:
    notes = []
    for name, mine in first.plan["benchmarks"].items():
        theirs = second.plan["benchmarks"].get(name, mine)
        keys = ("samples", "temperature", "top_p", "max_tokens", "template_sha256")
        differing = [key for key in keys if mine[key] != theirs[key]]
        if differing:
            notes.append(f"{second.name}, {name}: {', '.join(differing)} differ from the baseline.")
    return notes


def comparison_rows(compared: Compared) -> list[dict[str, str]]:
    """The tests against the baseline as texts by column; in percent and points."""
    return [
        {
            "model": test.model,
            "benchmark": test.benchmark,
            "metric": test.metric,
            "problems": str(test.problems),
            "before": f"{100 * test.first:.1f}",
            "after": f"{100 * test.second:.1f}",
            "difference": f"{100 * test.difference:+.1f}",
            "95 %": f"{100 * test.low:+.1f} to {100 * test.high:+.1f}",
            "won": str(len(test.won)),
            "lost": str(len(test.lost)),
            "p": _p(test.p),
            "p (Holm)": _p(test.p_holm),
        }
        for test in compared.comparisons
    ]


def comparison_table(compared: Compared) -> Table:
    """The table of tests for the terminal."""
    rows = comparison_rows(compared)
    table = plain_table(f"against {compared.runs[0].name}", list(rows[0]), left=2)
    for row in rows:
        table.add_row(*row.values())
    return table


def leaderboard_table(compared: Compared) -> Table:
    """Means and tournament scores, best first."""
    heads = ["model", *compared.benchmarks, "mean", "Swiss score", "rank", "95 % of ranks"]
    heads += ["any order", "change per T", "rank at largest T"]
    table = plain_table("leaderboard", heads, left=1)
    means = compared.results_MK.mean(1)
    order = sorted(range(len(compared.runs)), key=lambda m: -compared.standings[m].score)
    for m in order:
        place = compared.standings[m]
        table.add_row(
            compared.runs[m].name,
            *(f"{100 * value:.1f}" for value in compared.results_MK[m]),
            f"{100 * means[m]:.1f}",
            f"{place.score:.2f}",
            f"{place.rank:g}",
            f"{place.low:g} to {place.high:g}",
            f"{place.any_order:.2f}",
            f"{place.slope:+.2f}",
            f"{place.failing_rank:g}",
        )
    return table


def disagreement_table(compared: Compared) -> Table:
    """How much near-equal evaluations disagree, and how much one model would disagree with
    itself."""
    heads = ["benchmark", "of", "measure", "models", "problems", "mean range", "share"]
    heads += ["by chance", "95 % of it", "p"]
    table = plain_table("disagreement of near-equal evaluations", heads, left=3)
    for item in compared.disagreements:
        found = item.found
        for name, value, null in (
            ("ambiguity", found.ambiguity, found.ambiguity_null),
            ("discrepancy", found.discrepancy, found.discrepancy_null),
        ):
            chance = ("", "", "")
            if null is not None:
                chance = (f"{100 * null.mean:.1f}", f"{100 * null.high:.1f}", _p(null.p))
            table.add_row(
                item.benchmark,
                item.metric,
                name,
                str(len(item.models)),
                str(found.problems),
                f"{100 * found.width:.1f}",
                f"{100 * value:.1f}",
                *chance,
            )
    return table


def disputed_problems(compared: Compared, most: int = 12) -> list[str]:
    """Lines that name the problems on which near-equal evaluations disagree most."""
    return [
        f"{item.benchmark} disputed among {', '.join(item.models)}: "
        + ", ".join(item.disputed[:most])
        + (f" and {len(item.disputed) - most} more" if len(item.disputed) > most else "")
        for item in compared.disagreements
        if item.disputed
    ]


def changed_problems(compared: Compared, most: int = 12) -> list[str]:
    """Lines that name the problems won and lost, as many as fit."""
    lines = []
    for test in compared.comparisons:
        for word, names in (("won", test.won), ("lost", test.lost)):
            if names:
                more = f" and {len(names) - most} more" if len(names) > most else ""
                shown = ", ".join(names[:most])
                lines.append(f"{test.model} {test.benchmark} {test.metric} {word}: {shown}{more}")
    return lines


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
