"""Reinforcement learning from verifiable rewards, the loop.

Prompts go to the rollout engine, which samples a group of completions for each; the verifier turns
completions into rewards; rewards become advantages; the learner turns them into new weights, which
the engine samples from in the next step, or, if rollouts are sampled ahead, in a later one.

    rlvr train recipes/smollm2_arithmetic.yaml

With several processes every one runs this loop over the same rollouts; sampling, grading and the
update are shared out, and the first keeps the records.
"""

import shutil
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
from rlvr.train.interrupt import Stopped, StopSignals
from rlvr.train.log import completion_row
from rlvr.train.prime import add_token_rewards, export_reward_model
from rlvr.train.recipe import RLRecipe
from rlvr.train.run import Run, finish_uploads, open_run
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
        try:
            _evaluate_if_due(run, rollouts, signals)
            while run.step < recipe.steps:
                train_step(run, rollouts, signals)
                _evaluate_if_due(run, rollouts, signals)
                if run.step % recipe.checkpoint.every == 0 or run.step == recipe.steps:
                    _save(run, rollouts, signals)
        except Stopped:
            if run.step:
                run.log.say(f"stopped after step {run.step}; saving")
                run.save(rollouts.state())
            raise
        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
        export_reward_model(run.learner.prime, run.tokenizer, run.folder, run.ranks)
        finish_uploads(run.uploads, run.checkpoints, run.saved, run.log, signals)
    return recipe.output


def train_step(run: Run, rollouts: Rollouts, signals: StopSignals) -> None:
    """Sample, verify, update, record."""
    step = run.step + 1
    clock = Clock(lambda *span: run.log.span("learner", step, *span))
    stop_together(run.ranks, run.signals)
    with run.watch("rollout"):
        rollout = rollouts.next(clock)
    batch = build_batch(rollout.groups, run.recipe.advantage, run.recipe.reward.truncated)
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


def _evaluate_if_due(run: Run, rollouts: Rollouts, signals: StopSignals) -> None:
    """Evaluate before the first step, every so often, and after the last, once each."""
    due = run.step % run.recipe.evaluation.every == 0 or run.step == run.recipe.steps
    if not run.evaluation_prompts or not due:
        return
    if run.ranks.broadcast(run.log.evaluated(run.step)):
        return
    clock = Clock(lambda *span: run.log.span("learner", run.step, *span))
    with rollouts.exclusive(), clock("evaluate"), run.watch("evaluation"):
        metrics, rows = evaluate(run)
    with signals.shield():
        run.log.completions("evaluations", run.step, rows)
        run.log.step(run.step, metrics | clock.seconds)


def _save(run: Run, rollouts: Rollouts, signals: StopSignals) -> None:
    clock = Clock(lambda *span: run.log.span("learner", run.step, *span))
    run.log.phase("waiting for rollouts to save")
    rollouts.settle()
    with signals.shield():
        run.log.phase("saving")
        with clock("checkpoint"), run.watch("checkpoint"):
            run.save(rollouts.state())
        run.log.step(run.step, clock.seconds)


def export(policy: Policy, tokenizer: Any, folder: Path, ranks: Ranks) -> None:  # noqa: ANN401
    """Write a run's final model folder, adapters merged, whole or not at all; collective."""
    target, partial = folder / "model", folder / ".model.partial"
    if not ranks.first:
        for _ in merged_buckets(policy, torch.float32):
            pass  # sharded weights are gathered by all
        return
    for leftover in (partial, target):  # of a run that was killed here, or that is continued
        shutil.rmtree(leftover, ignore_errors=True)
    write_model(policy, partial, torch.float32)
    tokenizer.save_pretrained(partial)
    partial.rename(target)


def _keep_completions(
    run: Run, step: int, groups: list[list[Scored]], advantage: Advantage
) -> None:
    log = run.recipe.log
    if step % log.completions_every or not log.completions_per_step:
        return
    whole = groups[: max(1, log.completions_per_step // run.recipe.rollout.samples_per_prompt)]
    flat = [item for group in whole for item in group]
    known = group_advantages(whole, advantage).tolist()
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
