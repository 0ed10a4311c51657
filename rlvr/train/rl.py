"""Reinforcement learning from verifiable rewards, the loop.

Prompts go to the rollout engine, which samples a group of completions for each; the verifier turns
completions into rewards; rewards become advantages; the learner turns them into new weights, which
the engine samples from in the next step.

    rlvr train recipes/smollm2_arithmetic.yaml

Left out here: asynchrony (sampling ahead of the learner) and more than one process.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from rich.console import Console

from rlvr.policy import export_policy
from rlvr.rollout import sample_groups
from rlvr.train.batch import build_batch, rollout_metrics
from rlvr.train.evaluation import evaluate
from rlvr.train.interrupt import Stopped, StopSignals
from rlvr.train.log import completion_row
from rlvr.train.recipe import RLRecipe
from rlvr.train.run import Run, open_run
from rlvr.train.scoring import Scored
from rlvr.types import Batch


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
        open_run(recipe, resume=resume, console=console or Console()) as run,
    ):
        try:
            _evaluate_if_due(run)
            while run.step < recipe.steps:
                train_step(run, signals)
                _evaluate_if_due(run)
                if run.step % recipe.checkpoint.every == 0 or run.step == recipe.steps:
                    _save(run, signals)
        except Stopped:
            if run.step:
                run.log.say(f"stopped after step {run.step}; saving")
                run.save()
            raise
        run.log.phase("exporting")
        export_policy(run.policy, run.folder / "model")
        run.tokenizer.save_pretrained(run.folder / "model")
    return recipe.output


def train_step(run: Run, signals: StopSignals) -> None:
    """Sample, verify, update, record."""
    step, recipe, clock = run.step + 1, run.recipe, Clock()
    with clock("generate"):
        run.log.phase("generating")
        groups = sample_groups(
            run.engine,
            run.next_prompts(),
            recipe.rollout.samples_per_prompt,
            recipe.rollout.sampling,
            run_seed=recipe.seed,
            step=step,
            progress=lambda done, total: run.log.phase("generating", done, total),
        )
    with clock("verify"):
        run.log.phase("verifying")
        scored = run.scorer.score(groups)
    batch = build_batch(scored, recipe.advantage)
    with signals.shield():
        run.log.phase("updating")
        metrics = run.learner.update(batch)
        run.finish_step()
        metrics |= rollout_metrics(scored) | run.scorer.counters | clock.seconds
        run.log.step(step, metrics | _rates(batch, metrics, clock))
        _keep_completions(run, step, scored, batch)


def _evaluate_if_due(run: Run) -> None:
    """Evaluate before the first step, every so often, and after the last, once each."""
    due = run.step % run.recipe.evaluation.every == 0 or run.step == run.recipe.steps
    if not run.evaluation_prompts or not due or run.log.evaluated(run.step):
        return
    clock = Clock()
    with clock("evaluate"):
        metrics, rows = evaluate(run)
    run.log.completions("evaluations", run.step, rows)
    run.log.step(run.step, metrics | clock.seconds)


def _save(run: Run, signals: StopSignals) -> None:
    clock = Clock()
    with signals.shield(), clock("checkpoint"):
        run.log.phase("saving")
        run.save()
    run.log.step(run.step, clock.seconds)


def _keep_completions(run: Run, step: int, scored: list[list[Scored]], batch: Batch) -> None:
    log = run.recipe.log
    if step % log.completions_every or not log.completions_per_step:
        return
    advantages = batch.advantages_BT[:, 0].tolist()
    groups = log.completions_per_step // run.recipe.rollout.samples_per_prompt
    flat = [item for group in scored[: max(1, groups)] for item in group]
    rows = [
        completion_row(item, step, run.tokenizer, advantage=advantage)
        for item, advantage in zip(flat, advantages, strict=False)
    ]
    run.log.completions("completions", step, rows)


def _rates(batch: Batch, metrics: dict[str, float], clock: "Clock") -> dict[str, float]:
    tokens = float(batch.mask_BT.sum())
    memory = {"memory/rss_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        memory["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return memory | {
        "time/step": clock.total,
        "throughput/generated_tokens_per_second": tokens / clock.seconds["time/generate"],
        "throughput/trained_tokens_per_second": tokens / metrics["time/update"],
    }


class Clock:
    """Seconds per phase since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block under ``time/<phase>``."""
        started = time.perf_counter()
        yield
        self.seconds[f"time/{phase}"] = time.perf_counter() - started

    @property
    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started
