"""Reinforcement learning from verifiable rewards, the loop.

Prompts go to the rollout engine, which samples a group of completions for each; the verifier turns
completions into rewards; rewards become advantages; the learner turns them into new weights, which
the engine samples from in the next step, or, if rollouts are sampled ahead, in a later one.

    rlvr train recipes/smollm2_arithmetic.yaml

With several processes every one runs this loop over the same rollouts; sampling, grading and the
update are shared out, and the first keeps the records.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from rlvr.objective import Advantage, Gae
from rlvr.policy import Policy
from rlvr.ranks import Ranks
from rlvr.rollout.weights import merged_buckets, write_model
from rlvr.train.ahead import Rollouts, sampling_rollouts
from rlvr.train.batch import build_batch, group_advantages, rollout_metrics
from rlvr.train.clock import Clock
from rlvr.train.collect import Rollout
from rlvr.train.evaluation import evaluate
from rlvr.train.interrupt import StopSignals
from rlvr.train.log import completion_row
from rlvr.train.loop import evaluate_if_due, run_steps, step_clock
from rlvr.train.prime import add_token_rewards, export_reward_model
from rlvr.train.recipe import RLRecipe
from rlvr.train.run import Run, open_run
from rlvr.train.scoring import Scored
from rlvr.train.together import max_over_ranks, stop_together, sum_over_ranks
from rlvr.train.watch import token_ids, watched_tokens, watched_words


def train(recipe: RLRecipe, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train a policy as the recipe says; returns the run folder.

    Args:
        recipe: What to do.
        resume: Continue from the newest valid checkpoint in the output folder, if there is one.
        console: Where progress is shown; None is standard output.

    Raises:
        ValueError: The recipe cannot be carried out; the message says why and what to change.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was written first.
    """
    with (
        StopSignals().watch() as signals,
        open_run(recipe, resume=resume, console=console or Console(), signals=signals) as run,
        sampling_rollouts(run) as rollouts,
    ):
        run_steps(
            run,
            lambda: train_step(run, rollouts, signals),
            lambda: _evaluate_if_due(run, rollouts),
            lambda: run.save(rollouts.state()),
            settle=lambda: _settle(run, rollouts),
        )
        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
        export_reward_model(run.learner.prime, run.tokenizer, run.folder, run.ranks)
        run.finish_uploads()
    return recipe.output


def train_step(run: Run, rollouts: Rollouts, signals: StopSignals) -> None:
    """Sample, verify, update, record."""
    step = run.step + 1
    clock = step_clock(run, step)
    stop_together(run.ranks, run.signals)
    with run.watch("rollout"):
        rollout = rollouts.next(clock)
    rules = run.recipe.reward
    batch = build_batch(rollout.groups, run.recipe.advantage, rules.truncated, rules.uncertainty)
    with signals.shield():
        run.log.phase("updating")
        with clock("update", counted=False), run.watch("update"):
            metrics = run.learner.update(batch)
        run.step = step
        rollouts.finished()
        with clock("sync"), run.watch("sync"):
            run.log.phase("syncing weights")
            metrics |= rollouts.publish()
        metrics |= (
            rollout_metrics(rollout.sampled)
            | _watched(run, rollout)
            | rollout.metrics
            | rollout.seconds
        )
        metrics |= sum_over_ranks(run.ranks, run.scorer.counters) | clock.seconds
        run.log.step(step, metrics | _rates(run, rollout, metrics, clock))
        run.log.accuracy(step, rollout.sampled)
        _keep_completions(run, step, rollout.groups, run.recipe.advantage)


def _evaluate_if_due(run: Run, rollouts: Rollouts) -> None:
    if run.held_out.prompts or run.probe:
        every, beside = run.recipe.evaluation.every, rollouts.exclusive()
        evaluate_if_due(run, every, lambda: _measured(run), beside=beside)


def _measured(run: Run) -> tuple[dict[str, float], list[dict[str, Any]]]:
    metrics, rows = evaluate(run, run.held_out)
    return metrics | ({} if run.probe is None else run.probe.measure(run.learner)), rows


def _settle(run: Run, rollouts: Rollouts) -> None:
    run.log.phase("waiting for rollouts to save")
    rollouts.settle()


def export(
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401
    folder: Path,
    ranks: Ranks,
    beside: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write a run's model folder, adapters merged, whole or not at all; collective.

    ``beside`` writes what else belongs into it.
    """
    target, partial = folder / "model", folder / ".model.partial"
    if not ranks.first:
        for _ in merged_buckets(policy, torch.float32):
            pass  # sharded weights are gathered by all
        return
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
    write_model(policy, partial, torch.float32)
    tokenizer.save_pretrained(partial)
    beside(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _keep_completions(
    run: Run, step: int, groups: list[list[Scored]], advantage: Advantage
) -> None:
    log = run.recipe.log
    if step % log.completions_every or not log.completions_per_step:
        return
    whole = groups[: max(1, log.completions_per_step // run.recipe.rollout.samples_per_prompt)]
    flat = [item for group in whole for item in group]
    known = group_advantages(whole, advantage, run.recipe.reward.uncertainty).tolist()
    advantages = [None] * len(flat) if isinstance(advantage, Gae) else known
    rows = [
        completion_row(item, step, run.tokenizer, advantage=value)
        for item, value in zip(flat, advantages, strict=True)
    ]
    if run.learner.process_rewards_BT is not None:
        rewards_BT, prime = run.learner.process_rewards_BT, run.recipe.prime
        assert prime is not None
        add_token_rewards(rows, flat, rewards_BT, run.tokenizer, prime.steps)
    run.log.completions("completions", step, rows)


def _watched(run: Run, rollout: Rollout) -> dict[str, float]:
    log = run.recipe.log
    sets = {name: token_ids(words, run.tokenizer) for name, words in log.watch_tokens.items()}
    return watched_tokens(rollout.sampled, sets) | watched_words(rollout.sampled, log.watch_words)


def _rates(run: Run, rollout: Rollout, metrics: dict[str, float], clock: Clock) -> dict[str, float]:
    def tokens(groups: list[list[Scored]]) -> int:
        return sum(len(item.completion.token_ids) for group in groups for item in group)

    rates = {
        "time/step": clock.total,
        "throughput/trained_tokens_per_second": tokens(rollout.groups) / metrics["time/update"],
    }
    if "time/generate" in metrics:  # unless it was sampled before the run was interrupted
        generated = tokens(rollout.sampled) / metrics["time/generate"]
        rates["throughput/generated_tokens_per_second"] = generated
    return memory_used(run.ranks) | rates


def memory_used(ranks: Ranks) -> dict[str, float]:
    """Memory of the process, and of the GPU if there is one, that uses most; collective."""
    memory = {"memory/rss_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        memory["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return max_over_ranks(ranks, memory)
