"""Held-out problems, answered by the running policy with the running engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.metrics import REFERENCE, Outcome, ProblemOutcomes, training_metrics
from rlvr.data import Prompt
from rlvr.rollout import Engine, Sampling, sample_groups
from rlvr.train.base_run import BaseRun
from rlvr.train.log import completion_row
from rlvr.train.loop import Measured
from rlvr.train.scoring import Scored, Scorer, scored_from_state, scored_state
from rlvr.train.together import gather_or_stop
from rlvr.train.watch import watched_words


@dataclass(frozen=True)
class HeldOutProblems:
    """Evaluation sets by name, and what answers and grades them."""

    prompts: dict[str, list[Prompt]]
    engine: Engine
    scorer: Scorer
    sampling: Sampling
    samples: int
    """Completions of each problem."""


def evaluate(run: BaseRun, problems: HeldOutProblems) -> Measured:
    """Answer and grade every evaluation set.

    Accuracy is the mean over problems and samples of the verifier's verdict; truncated completions
    count as wrong. The random numbers do not depend on the step, so that a change between two
    evaluations is a change of the policy.

    Returns:
        Metrics ``eval/<set>/...`` and the completions as rows to keep.
    """
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name in problems.prompts:
        scored = _answers(run, problems, name)
        found = training_metrics([problem_outcomes(group) for group in scored], name)
        found |= watched_words(scored, run.recipe.log.watch_words, "words_")
        metrics |= {f"eval/{name}/{figure}": value for figure, value in found.items()}
        flat = [item for group in scored for item in group]
        rows += [completion_row(item, run.step, run.tokenizer, set_name=name) for item in flat]
    return metrics, rows


def _answers(run: BaseRun, problems: HeldOutProblems, name: str) -> list[list[Scored]]:
    """All groups of a set in order; each process answers and grades its share."""
    prompts, sampling = problems.prompts[name], problems.sampling

    def show(done: int, total: int) -> None:
        run.signals.check()
        run.log.phase(f"evaluating {name}", done, total)

    def own() -> list[list[Scored]]:
        groups = sample_groups(
            problems.engine,
            prompts,
            problems.samples,
            sampling,
            run_seed=run.recipe.seed,
            step=-1,
            progress=show,
            share=run.share(len(prompts)),
        )
        return problems.scorer.score(groups, sampling.max_tokens)

    if run.ranks.count == 1:
        return own()
    states = gather_or_stop(
        run.ranks, lambda: [[scored_state(item) for item in group] for group in own()]
    )
    return [[scored_from_state(item) for item in group] for share in states for group in share]


def problem_outcomes(group: Sequence[Scored]) -> ProblemOutcomes:
    """A graded group as evaluation sees it: what was cut at the limit counts as wrong."""
    outcomes = []
    for item in group:
        cut = item.completion.finish_reason == "length"
        right = item.grade.correct and not cut
        answered = item.grade.status != "no_answer"
        length = len(item.completion.token_ids)
        outcomes.append(Outcome(right, cut, answered, length, REFERENCE if right else None))
    return ProblemOutcomes(group[0].completion.problem_id, tuple(outcomes))
