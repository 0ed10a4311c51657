"""Held-out problems, answered by the running policy with the running engine."""

from collections.abc import Sequence
from typing import Any

from eval.metrics import REFERENCE, Outcome, ProblemOutcomes, training_metrics
from rlvr.rollout import sample_groups
from rlvr.train.log import completion_row
from rlvr.train.run import Run
from rlvr.train.scoring import Scored


def evaluate(run: Run) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answer and grade every evaluation set.

    Accuracy is the mean over problems and samples of the verifier's verdict; truncated completions
    count as wrong. The random numbers do not depend on the step, so that a change between two
    evaluations is a change of the policy.

    Returns:
        Metrics ``eval/<set>/...`` and the completions as rows to keep.
    """
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    sampling = run.recipe.evaluation_sampling
    for name, prompts in run.evaluation_prompts.items():
        groups = sample_groups(
            run.engine,
            prompts,
            run.recipe.evaluation.samples,
            sampling,
            run_seed=run.recipe.seed,
            step=-1,
            progress=lambda done, total, name=name: run.log.phase(
                f"evaluating {name}", done, total
            ),  # type: ignore[misc]
        )
        scored = run.scorer.score(groups, sampling.max_tokens)
        found = training_metrics([problem_outcomes(group) for group in scored], name)
        metrics |= {f"eval/{name}/{figure}": value for figure, value in found.items()}
        flat = [item for group in scored for item in group]
        rows += [completion_row(item, run.step, run.tokenizer, set_name=name) for item in flat]
    return metrics, rows


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
