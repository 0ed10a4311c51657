"""Supervised fine-tuning, the loop: TRL's trainer, with this project's records around it.

    rlvr train recipes/sft/tiny.yaml

Traces (or responses as text) are read and encoded once; TRL's SFTTrainer turns them into new
weights (``rlvr/train/sft_trainer.py``). Records, evaluation on held-out problems, signals, the
report and the exported model are those of every other task. Under ``accelerate launch`` the
processes share every step.

The trainer takes the steps itself and calls back: :class:`Recorder` is what the loops of the other
tasks do between their steps.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.data.demonstrations import Demonstration
from rlvr.policy import response_logprobs
from rlvr.train.evaluation import evaluate
from rlvr.train.interrupt import Stopped, StopSignals
from rlvr.train.loop import Measured, evaluate_if_due
from rlvr.train.rl import export, memory_used
from rlvr.train.sft_recipe import SftRecipe
from rlvr.train.sft_run import SftRun, open_sft_run
from rlvr.train.together import sum_over_ranks

IMPROBABLE = 0.01  # below this probability a token counts as improbable


def train(recipe: SftRecipe, *, resume: bool = False, console: Console | None = None) -> Path:
    """Fine-tune a model as the recipe says; returns the run folder.

    Arguments and errors as :func:`rlvr.train.rl.train`.
    """
    with (
        StopSignals().watch() as signals,
        open_sft_run(recipe, resume, console or Console(), signals) as run,
    ):
        try:
            _take_steps(run)
        except Stopped:  # in an evaluation; the step before it is finished
            if run.step and run.step == run.learner.state.global_step:
                run.log.say(f"stopped after step {run.step}; saving")
                run.learner._save_checkpoint(run.learner.model, trial=None)
            raise
        if run.step < run.learner.total:
            run.log.say(f"stopped after step {run.step}; saved")
            raise Stopped(_pending(run))
        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
    return recipe.output


def _take_steps(run: SftRun) -> None:
    """Train to the end, from the checkpoint if there is one."""
    if run.step == run.learner.total:
        # A kill came before the export; the trainer would take a step beyond the last.
        _evaluate_if_due(run)
        return
    run.learner.add_callback(_recorder(run))
    checkpoint = None if run.saved is None else str(run.saved)
    run.learner.train(resume_from_checkpoint=checkpoint)


def _recorder(run: SftRun) -> Any:  # noqa: ANN401
    """Records every step, evaluates, and has the trainer stop when a signal came."""
    from transformers import TrainerCallback  # takes seconds

    class Recorder(TrainerCallback):
        """What the trainer calls; the arguments are transformers'."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            _evaluate_if_due(run)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            self.began, self.watched = time.perf_counter(), ExitStack()
            self.watched.enter_context(run.watch("update"))
            run.log.phase("updating")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            self.watched.close()
            self.seconds = time.perf_counter() - self.began
            if _pending(run):
                control.should_save = control.should_training_stop = True

        def on_log(
            self,
            args: Any,  # noqa: ANN401
            state: Any,  # noqa: ANN401
            control: Any,  # noqa: ANN401
            logs: dict[str, float],
            **_: Any,  # noqa: ANN401
        ) -> None:
            if "loss" in logs:  # and not the summary at the end
                run.step = state.global_step
                record(run, logs, self.seconds)
                _evaluate_if_due(run)

    return Recorder()


def _pending(run: SftRun) -> int:
    """The signal that one of the processes got, or 0; collective."""
    return int(run.ranks.maximum(torch.tensor(run.signals.pending)))


def record(run: SftRun, logs: dict[str, float], seconds: float) -> None:
    """A finished step's figures."""
    tokens = run.learner.target_tokens
    metrics = {
        "sft/loss": logs["loss"],
        "sft/token_accuracy": logs["mean_token_accuracy"],
        "sft/epoch": logs["epoch"],
        "sft/target_tokens": tokens,
        "policy/entropy": logs["entropy"],
        "learner/lr": logs["learning_rate"],
        "time/step": seconds,
        "throughput/trained_tokens_per_second": tokens / seconds,
    }
    if "grad_norm" in logs:
        metrics["learner/grad_norm"] = logs["grad_norm"]
    now = time.time()
    run.log.span("learner", run.step, "update", now - seconds, now)
    run.log.step(run.step, metrics | memory_used(run.ranks))


def _evaluate_if_due(run: SftRun) -> None:
    if run.held_out or run.problems is not None:
        evaluate_if_due(run, run.recipe.evaluation.every, lambda: _measure(run))


def _measure(run: SftRun) -> Measured:
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    for name, found in run.held_out.items():
        measured = held_out_surprisal(run, found)
        metrics |= {f"eval/{name}/{key}": value for key, value in measured.items()}
    if run.problems is not None:
        run.problems.engine.sync(run.policy, run.step)
        answered, rows = evaluate(run, run.problems)
        metrics |= answered
    return metrics, rows


def held_out_surprisal(run: SftRun, found: list[Demonstration]) -> dict[str, float]:
    """Mean negative log-likelihood of a token, and the share of improbable ones; collective."""
    mine = [found[place] for place in run.share(len(found))]
    rows = response_logprobs(
        run.policy,
        [item.prompt_ids for item in mine],
        [item.token_ids for item in mine],
        tokens_per_micro_batch=run.recipe.evaluation.tokens_per_micro_batch,
    )
    logprobs_N = torch.cat([torch.zeros(0), *rows]).double()
    bound = torch.tensor(IMPROBABLE, dtype=torch.float64).log()
    sums = sum_over_ranks(
        run.ranks,
        {
            "tokens": float(len(logprobs_N)),
            "nll": -logprobs_N.sum().item(),
            "improbable": (logprobs_N < bound).double().sum().item(),
        },
    )
    return {key: sums[key] / sums["tokens"] for key in ("nll", "improbable")}
