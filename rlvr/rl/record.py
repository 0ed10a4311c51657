"""What a training step leaves in the records: its metrics, and some of its completions."""

from collections import Counter
from typing import Any

import torch

from reward.pool import COUNTERS
from rlvr.rl.batch import rollout_metrics
from rlvr.rl.bias import bias_metrics
from rlvr.rl.collect import Rollout
from rlvr.rl.ledger import record_ledger
from rlvr.rl.run import Run
from rlvr.runs.clock import Clock, other_seconds
from rlvr.runs.collectives import memory_used
from rlvr.runs.log import completion_row
from rlvr.runs.scoring import ScoredCompletion, counted_verdicts
from rlvr.runs.token_metrics import token_ids, watched_tokens, watched_words
from rlvr.runs.verdict_errors import check_metrics, counted_opinions
from rlvr.types import Batch


def record_step(
    run: Run, rollout: Rollout, batch: Batch, metrics: dict[str, float], clock: Clock
) -> None:
    """Write a finished step down; collective.

    Args:
        run: Its ``step`` is the one.
        rollout: What was sampled for it.
        batch: What was trained on, in the order of the rollout's groups.
        metrics: Of the update, and of the weights on their way.
        clock: Timed its phases.
    """
    metrics = metrics | rollout_metrics(rollout.sampled) | _watched(run, rollout)
    metrics |= bias_metrics(rollout.sampled, rollout.groups, batch)
    metrics |= rollout.metrics | rollout.seconds
    with clock("ledger"):
        record_ledger(run, rollout, batch, metrics)
    run.verdicts += counted_verdicts(rollout.sampled)
    metrics |= _verifier_counters(run) | _second_opinions(run, rollout) | clock.seconds
    run.log.step(run.step, metrics | _rates(run, rollout, metrics, clock))
    run.log.accuracy(run.step, rollout.sampled)
    run.log.disputed(run.step, [item for group in rollout.sampled for item in group])
    _keep_completions(run, rollout.groups, batch)


def _second_opinions(run: Run, rollout: Rollout) -> dict[str, float]:
    """What a second judge says of the verdicts since the run began."""
    check = run.recipe.reward.check
    if check is None:
        return {}
    run.opinions += counted_opinions(rollout.sampled)
    return check_metrics(run.opinions, check)


def _verifier_counters(run: Run) -> dict[str, float]:
    """Verifier events since the run began; collective."""
    counts = Counter(run.verdicts)
    counts["unparsable_golds"] += run.scorer.rejected_golds
    counts["restarts"] += int(run.ranks.sum(torch.tensor(run.scorer.pool.counters["restarts"])))
    return {f"verifier/{name}": float(counts[name]) for name in COUNTERS}


def _keep_completions(run: Run, groups: list[list[ScoredCompletion]], batch: Batch) -> None:
    log, recipe = run.recipe.log, run.recipe
    if run.step % log.completions_every or not log.completions_per_step:
        return
    whole = groups[: max(1, log.completions_per_step // recipe.rollout.samples_per_prompt)]
    flat = [item for group in whole for item in group]
    advantages_BT = run.learner.advantages_BT
    assert advantages_BT is not None, "a step was trained"
    rows = []
    for item, advantages_T, mask_T in zip(flat, advantages_BT, batch.mask_BT, strict=False):
        row = completion_row(item, run.step, run.tokenizer)
        rows.append(row | trained_advantages(advantages_T, mask_T))
    for hook in run.learner.hooks:
        hook.describe(rows, [item.completion.token_ids for item in flat], run.tokenizer)
    run.log.completions("completions", run.step, rows)


def trained_advantages(advantages_T: torch.Tensor, mask_T: torch.Tensor) -> dict[str, Any]:
    """A completion's advantage as it was trained on: the mean over its tokens in the loss.

    None is that of a completion that was masked out. Where tokens differ, as with a critic, their
    own stand in ``token_advantages``.
    """
    values = advantages_T[mask_T > 0]
    if not len(values):
        return {"advantage": None}
    if bool((values == values[0]).all()):
        return {"advantage": float(values[0])}
    own = [round(value, 5) for value in values.tolist()]
    return {"advantage": float(values.double().mean()), "token_advantages": own}


def _watched(run: Run, rollout: Rollout) -> dict[str, float]:
    log = run.recipe.log
    sets = {name: token_ids(words, run.tokenizer) for name, words in log.watch_tokens.items()}
    return watched_tokens(rollout.sampled, sets) | watched_words(rollout.sampled, log.watch_words)


def _rates(run: Run, rollout: Rollout, metrics: dict[str, float], clock: Clock) -> dict[str, float]:
    def tokens(groups: list[list[ScoredCompletion]]) -> int:
        return sum(item.completion.length for group in groups for item in group)

    total = clock.total
    rates = {
        "time/step": total,
        "time/other": other_seconds(total, metrics, run.recipe.rollout.max_staleness > 0),
        **run.wall.of_step(total),
        "throughput/trained_tokens_per_second": tokens(rollout.groups) / metrics["time/update"],
    }
    if "time/generate" in metrics:  # unless it was sampled before the run was interrupted
        generated = tokens(rollout.sampled) / metrics["time/generate"]
        rates["throughput/generated_tokens_per_second"] = generated
    return memory_used(run.ranks) | rates
