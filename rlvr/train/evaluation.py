"""Held-out problems, answered by the running policy with the running engine."""

from statistics import fmean
from typing import Any

from rlvr.data import Prompt
from rlvr.rollout import sample_groups
from rlvr.train.log import completion_row
from rlvr.train.run import Run
from rlvr.train.scoring import Scored, scored_from_state, scored_state
from rlvr.train.together import gather_or_stop


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
    for name, prompts in run.evaluation_prompts.items():
        scored = _answers(run, name, prompts)
        cut = [item.completion.finish_reason == "length" for item in scored]
        right = [item.grade.correct and not c for item, c in zip(scored, cut, strict=True)]
        metrics[f"eval/{name}/accuracy"] = fmean(right)
        metrics[f"eval/{name}/length"] = fmean(len(item.completion.token_ids) for item in scored)
        metrics[f"eval/{name}/truncated"] = fmean(cut)
        rows += [completion_row(item, run.step, run.tokenizer, set_name=name) for item in scored]
    return metrics, rows


def _answers(run: Run, name: str, prompts: list[Prompt]) -> list[Scored]:
    """All completions of a set in order; each process answers and grades its share."""
    sampling = run.recipe.evaluation_sampling

    def show(done: int, total: int) -> None:
        run.signals.check()
        run.log.phase(f"evaluating {name}", done, total)

    def own() -> list[Scored]:
        groups = sample_groups(
            run.engine,
            prompts,
            run.recipe.evaluation.samples,
            sampling,
            run_seed=run.recipe.seed,
            step=-1,
            progress=show,
            share=run.share(len(prompts)),
        )
        return [item for group in run.scorer.score(groups, sampling.max_tokens) for item in group]

    if run.ranks.count == 1:
        return own()
    states = gather_or_stop(run.ranks, lambda: [scored_state(item) for item in own()])
    return [scored_from_state(item) for share in states for item in share]
