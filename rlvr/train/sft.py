"""Supervised fine-tuning, the loop: TRL's trainer, with this project's records around it.

    rlvr train recipes/sft/tiny.yaml

Traces (or responses as text) are read and encoded once; TRL's SFTTrainer turns them into new
weights (``rlvr/train/sft_trainer.py``). Records, evaluation on held-out problems, signals, the
report and the exported model are those of every other task; checkpoints are transformers' own,
written whole or not at all. Under ``accelerate launch`` the processes share every step.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.console import Console

from rlvr.data import Prompt
from rlvr.data.demonstrations import Demonstration
from rlvr.distill.surprisal import check_fit
from rlvr.learner import Launch, join
from rlvr.policy import Policy, load_policy, load_tokenizer, response_logprobs, stop_token_ids
from rlvr.ranks import Ranks
from rlvr.rollout import TransformersEngine
from rlvr.train import run as runs
from rlvr.train.clock import Clock
from rlvr.train.evaluation import evaluate
from rlvr.train.interrupt import Stopped, StopSignals
from rlvr.train.log import RunLog, say
from rlvr.train.prompts import held_out_prompts
from rlvr.train.recipe import RewardSettings
from rlvr.train.rl import export, memory_used
from rlvr.train.run import Run
from rlvr.train.scoring import Scorer
from rlvr.train.sft_data import count_rows, dataset, load_training
from rlvr.train.sft_recipe import SftRecipe
from rlvr.train.together import first_rank, sum_over_ranks

if TYPE_CHECKING:
    from rlvr.train.sft_trainer import Trainer

IMPROBABLE = 0.01  # below this probability a token counts as improbable


@dataclass
class SftRun:
    """A run in progress; ``step`` counts finished steps."""

    recipe: SftRecipe
    tokenizer: Any
    policy: Policy
    trainer: "Trainer"
    held_out: dict[str, list[Demonstration]]
    log: RunLog
    ranks: Ranks
    signals: StopSignals
    total: int
    evaluation_prompts: dict[str, list[Prompt]] = field(default_factory=dict)
    engine: TransformersEngine | None = None
    scorer: Scorer | None = None
    checkpoint: Path | None = None
    """Where the run goes on from."""
    step: int = 0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.output

    def share(self, count: int) -> range:
        """The places, of ``count`` prompts, that this rank answers."""
        return self.ranks.share(count)


def train(recipe: SftRecipe, *, resume: bool = False, console: Console | None = None) -> Path:
    """Fine-tune a model as the recipe says; returns the run folder.

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
        open_sft_run(recipe, resume, console or Console(), signals) as run,
    ):
        try:
            _go_on(run)
        except Stopped:
            if run.step and run.step == run.trainer.state.global_step:
                run.trainer._save_checkpoint(run.trainer.model, trial=None)
            raise
        if run.step < run.total:
            run.log.say(f"stopped after step {run.step}; saved")
            raise Stopped(_pending(run))
        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
    return recipe.output


def _go_on(run: SftRun) -> None:
    """Train to the end, from the checkpoint if there is one."""
    checkpoint = None if run.checkpoint is None else str(run.checkpoint)
    if checkpoint is not None and run.step >= run.total:
        # A kill came before the export; transformers would train a step beyond the last.
        evaluate_if_due(run)
    else:
        run.trainer.train(resume_from_checkpoint=checkpoint)


@contextmanager
def open_sft_run(
    recipe: SftRecipe, resume: bool, console: Console, signals: StopSignals
) -> Iterator[SftRun]:
    """Build a run, from its newest valid checkpoint where ``resume`` is set and there is one.

    Raises:
        ValueError: Anything the recipe names is missing or unusable, the output folder holds
            another run, or the recipe does not go with the launch.
    """
    launch = join()
    ranks = launch.ranks
    check_launch(launch)
    signals.deferred = True  # between two steps the trainer is asked to stop
    console = console if ranks.first else Console(quiet=True)
    found = first_rank(ranks, lambda: runs.starting_point(recipe, resume))
    with ExitStack() as stack:
        checkpoint = None if found is None else Path(found)
        run = _build_run(recipe, ranks, checkpoint, stack, console, signals)
        if ranks.count > 1:
            say(console, launch.description)
        if run.checkpoint is not None:
            run.step = int(run.checkpoint.name.removeprefix("step_"))
            say(console, f"resuming after step {run.step} from {run.checkpoint}")
        # Only now: a recipe that cannot be carried out leaves no folder behind.
        first_rank(ranks, lambda: _begin(recipe))
        run.log = stack.enter_context(
            runs.open_log(recipe, ranks, run.step, console, total=run.total)
        )
        run.trainer.add_callback(_callback(run))
        yield run


def check_launch(launch: Launch) -> None:
    """See that the processes there are can train this way.

    Raises:
        ValueError: They cannot; the message says what to change.
    """
    if launch.zero is not None:
        raise ValueError(
            "task sft runs data parallel alone, and the launch configuration asks for DeepSpeed; "
            "use recipes/accelerate/multi_gpu.yaml, with model.lora where memory is short"
        )


def _begin(recipe: SftRecipe) -> None:
    """Record the run, and remove what a kill left of a checkpoint."""
    from rlvr.train.sft_trainer import PREFIX

    runs.record_run(recipe)
    for leftover in (recipe.output / "checkpoints").glob(f"{PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _build_run(
    recipe: SftRecipe,
    ranks: Ranks,
    checkpoint: Path | None,
    stack: ExitStack,
    console: Console,
    signals: StopSignals,
) -> SftRun:
    from datasets import disable_progress_bars

    from rlvr.train.sft_trainer import Trainer, check_packing

    disable_progress_bars()
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    scorer = None
    if recipe.evaluation.sets:
        # Its processes start before torch touches a GPU.
        limit = recipe.evaluation.sampling.max_tokens
        scorer = stack.enter_context(Scorer(RewardSettings(), tokenizer, limit))
    policy = load_policy(recipe.model, saved=checkpoint)
    data, held_out = load_training(recipe, tokenizer, console, policy.context_length)
    for found in (data, *held_out.values()):
        check_fit(policy, found)
    asked = recipe.evaluation
    prompts = held_out_prompts(
        asked.sets,
        asked.template or recipe.data.template,
        asked.max_prompt_tokens,
        tokenizer,
        scorer,
        console,
    )
    if recipe.data.packing:
        check_packing(policy)
    total = recipe.total_steps(count_rows(recipe, data))
    trainer = Trainer(recipe, policy, tokenizer, ranks, total, dataset(data))
    return SftRun(
        recipe=recipe,
        tokenizer=tokenizer,
        policy=policy,
        trainer=trainer,
        held_out=held_out,
        log=None,  # type: ignore[arg-type]  # needs the step, which a checkpoint may set
        ranks=ranks,
        signals=signals,
        total=total,
        evaluation_prompts=prompts,
        engine=TransformersEngine(policy, stop_token_ids(policy, tokenizer)) if prompts else None,
        scorer=scorer,
        checkpoint=checkpoint,
    )


def _callback(run: SftRun) -> Any:  # noqa: ANN401  (transformers is imported late)
    """Records every step, evaluates, and has the trainer stop when a signal came."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            evaluate_if_due(run)  # by now with the checkpoint's weights

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            self.began = time.perf_counter()
            run.log.phase("updating")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
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
                record(run, logs, time.perf_counter() - self.began)
                evaluate_if_due(run)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
            run.log.phase("saving")

    return Recorder()


def _pending(run: SftRun) -> int:
    """The signal that one of the processes got, or 0; collective."""
    return int(run.ranks.maximum(torch.tensor(run.signals.pending)))


def record(run: SftRun, logs: dict[str, float], seconds: float) -> None:
    """A finished step's figures."""
    tokens = run.trainer.target_tokens
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


def evaluate_if_due(run: SftRun) -> None:
    """Evaluate before the first step, every so often, and after the last, once each."""
    due = run.step % run.recipe.evaluation.every == 0 or run.step == run.total
    if not due or not (run.held_out or run.evaluation_prompts):
        return
    if run.ranks.broadcast(run.log.evaluated(run.step)):
        return
    clock = Clock(lambda *span: run.log.span("learner", run.step, *span))
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    with clock("evaluate"):
        for name, found in run.held_out.items():
            metrics |= {f"eval/{name}/{key}": value for key, value in measure(run, found).items()}
        if run.engine is not None:
            run.engine.sync(run.policy, run.step)
            answered, rows = evaluate(cast(Run, run))  # it has all that evaluation looks at
            metrics |= answered
    run.log.completions("evaluations", run.step, rows)
    run.log.step(run.step, metrics | clock.seconds)


def measure(run: SftRun, found: list[Demonstration]) -> dict[str, float]:
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
