"""Held-out problems, answered by the running policy with the running engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from eval.metrics import REFERENCE, Outcome, ProblemOutcomes, training_metrics
from rlvr.data import Prompt
from rlvr.rollout.engine import Engine
from rlvr.rollout.groups import EpisodeSource, sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.runs.base_run import BaseRun
from rlvr.runs.collectives import gather_or_stop
from rlvr.runs.log import completion_row
from rlvr.runs.loop import Measured
from rlvr.runs.scoring import (
    ScoredCompletion,
    Scorer,
    counted_verdicts,
    logged_metrics,
    scored_from_state,
    scored_state,
)
from rlvr.runs.token_metrics import watched_words


@dataclass(frozen=True)
class HeldOutProblems:
    """Evaluation sets by name, and what answers and grades them."""

    prompts: dict[str, list[Prompt]]
    engine: Engine
    scorer: Scorer
    sampling: Sampling
    samples: int
    """Completions of each problem."""
    environments: EpisodeSource | None = None
    """What answers the policy, in episodes of several turns."""


def evaluate(run: BaseRun, problems: HeldOutProblems) -> Measured:
    """Answer and grade every evaluation set.

    Accuracy is the mean over problems and samples of the verifier's verdict; truncated completions
    count as wrong, and problems without a reference answer do not count. With rewards other than
    the verdict, the mean reward stands beside it. The random numbers do not depend on the step, so
    that a change between two evaluations is a change of the policy.

    Returns:
        Metrics ``eval/<set>/...`` and the completions as rows to keep.
    """
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name in problems.prompts:
        scored = _answers(run, problems, name)
        run.verdicts += counted_verdicts(scored)
        figures = _figures(scored, name)
        if problems.scorer.rewards_beyond_verdicts:
            figures |= {"reward": fmean(item.reward for group in scored for item in group)}
        figures |= logged_metrics([item for group in scored for item in group])
        figures |= watched_words(scored, run.recipe.log.watch_words, "words_")
        metrics |= {f"eval/{name}/{figure}": value for figure, value in figures.items()}
        flat = [item for group in scored for item in group]
        rows += [completion_row(item, run.step, run.tokenizer, set_name=name) for item in flat]
    return metrics, rows


def _figures(scored: Sequence[Sequence[ScoredCompletion]], name: str) -> dict[str, float]:
    """Accuracy of what was graded, length, truncation."""
    graded = [group for group in scored if all(item.grade is not None for item in group)]
    figures = training_metrics([problem_outcomes(group) for group in graded or scored], name)
    if graded:
        return figures
    return {figure: figures[figure] for figure in ("length", "truncated")}


def _answers(run: BaseRun, problems: HeldOutProblems, name: str) -> list[list[ScoredCompletion]]:
    """All groups of a set in order; each process answers and grades its share."""
    prompts, sampling = problems.prompts[name], problems.sampling

    def show(done: int, total: int) -> None:
        run.signals.check()
        run.log.phase(f"evaluating {name}", done, total)

    def own() -> list[list[ScoredCompletion]]:
        groups = sample_groups(
            problems.engine,
            prompts,
            problems.samples,
            sampling,
            run_seed=run.recipe.seed,
            step=-1,
            progress=show,
            share=run.share(len(prompts)),
            environment=problems.environments,
        )
        return problems.scorer.score(
            groups, sampling.max_tokens, step=run.step, tick=run.signals.check
        )

    if run.ranks.count == 1:
        return own()
    states = gather_or_stop(
        run.ranks, lambda: [[scored_state(item) for item in group] for group in own()]
    )
    return [[scored_from_state(item) for item in group] for share in states for group in share]


def problem_outcomes(group: Sequence[ScoredCompletion]) -> ProblemOutcomes:
    """A graded group as evaluation sees it: what was cut at the limit counts as wrong."""
    outcomes = []
    for item in group:
        cut = item.completion.truncated
        right = bool(item.correct) and not cut
        answered = item.grade is not None and item.grade.status != "no_answer"
        length = item.completion.length
        outcomes.append(Outcome(right, cut, answered, length, REFERENCE if right else None))
    return ProblemOutcomes(group[0].completion.problem_id, tuple(outcomes))
