"""The frame of every task without rollouts: open, restore, train, measure, save, export.

Examples are read and encoded once, the learner turns a step's into new weights, and the records,
signals and report are those of every other task. With several processes each runs its share of a
step and the first keeps the records.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.data import ProblemSampler, Prompt
from rlvr.data.templates import ends_of
from rlvr.policy.loading import load_policy, load_tokenizer, stop_token_ids
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.runs.base_recipe import ProblemEvaluation
from rlvr.runs.base_run import RunContext, open_any_run, weights_device
from rlvr.runs.callers import NO_CALLER, CallerObjects
from rlvr.runs.clock import other_seconds
from rlvr.runs.collectives import memory_used, stop_together
from rlvr.runs.evaluation import HeldOutProblems, evaluate
from rlvr.runs.interrupt import StopSignals
from rlvr.runs.log import notify
from rlvr.runs.loop import Measured, evaluate_if_due, run_steps, step_clock
from rlvr.runs.offline_run import OfflineRun
from rlvr.runs.offline_task import OfflineTask
from rlvr.runs.parent import Parent
from rlvr.runs.prompts import held_out_prompts
from rlvr.runs.rewards import RewardSettings
from rlvr.runs.scoring import Scorer
from rlvr.runs.uploads import Uploading, no_uploading


def train(
    task: OfflineTask[Any],
    *,
    resume: bool = False,
    console: Console | None = None,
    uploading: Uploading | None = None,
    parent: Parent | None = None,
    caller: CallerObjects = NO_CALLER,
) -> Path:
    """Train as the task's recipe says; returns the run folder.

    Arguments and errors as :func:`rlvr.rl.train.train`.
    """
    with (
        StopSignals().watch() as signals,
        open_offline_run(
            task, resume, console or Console(), signals, uploading, parent, caller
        ) as run,
    ):
        run_steps(run, lambda: train_step(task, run), lambda: _evaluate(task, run), run.save)
        task.finish(run)
        run.finish_uploads()
    return task.recipe.output


@contextmanager
def open_offline_run(
    task: OfflineTask[Any],
    resume: bool,
    console: Console,
    signals: StopSignals,
    uploading: Uploading | None = None,
    parent: Parent | None = None,
    caller: CallerObjects = NO_CALLER,
) -> Iterator[OfflineRun]:
    """Build a run, as :func:`rlvr.runs.base_run.open_any_run`.

    Raises:
        ValueError: As there.
    """
    with open_any_run(
        task.recipe,
        lambda context: _build_run(task, context),
        resume=resume,
        console=console,
        signals=signals,
        uploading=uploading or no_uploading,
        parent=parent,
        caller=caller,
    ) as run:
        task.opened(run)
        yield run


def train_step(task: OfflineTask[Any], run: OfflineRun) -> None:
    """Take the next examples, update, record."""
    clock = step_clock(run, run.step + 1)
    stop_together(run.ranks, run.signals)
    with run.signals.shield():
        with run.taking_step():
            examples, chosen = task.next(run, clock)
            run.log.phase("updating")
            with clock("update", counted=False), run.watch("update"):
                metrics = run.learner.update(examples) | chosen
        total = clock.total
        metrics["time/other"] = other_seconds(total, metrics)
        metrics |= {"time/step": total, **run.wall.of_step(total)}
        metrics[f"{task.prefix}/epoch"] = task.epoch(run)
        metrics |= memory_used(run.ranks)
        rate = sum(map(len, examples.completion_ids)) / metrics["time/update"]
        metrics["throughput/trained_tokens_per_second"] = rate
        run.log.step(run.step, metrics)


def measure(task: OfflineTask[Any], run: OfflineRun) -> Measured:
    """Evaluate every held-out set; collective."""
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    for name, examples in run.held_out.items():
        measured = task.measure(run, name, examples)
        metrics |= {f"eval/{name}/{key}": value for key, value in measured.items()}
    task.measured(run, metrics)
    if run.problems is not None:
        run.problems.engine.sync(run.policy, run.step)
        answered, rows = evaluate(run, run.problems)
        metrics |= answered
    return metrics, rows


def _evaluate(task: OfflineTask[Any], run: OfflineRun) -> None:
    if run.held_out or run.problems is not None:
        task.before_evaluation(run)
        evaluate_if_due(run, run.recipe.evaluation.every, lambda: measure(task, run))


def _build_run(task: OfflineTask[Any], context: RunContext) -> OfflineRun:
    recipe, console, launch = task.recipe, context.console, context.launch
    tokenizer = load_tokenizer(recipe.model)
    asked = recipe.evaluation
    scorer = None
    if isinstance(asked, ProblemEvaluation) and asked.sets:
        # Its processes start before torch touches a GPU.
        limit = asked.sampling.max_tokens
        scorer = context.stack.enter_context(Scorer(RewardSettings(), tokenizer, limit))
    data, held_out = task.load(tokenizer, console)
    prompts = _problem_prompts(task, tokenizer, scorer, console)
    device, model = weights_device(launch), context.caller.model
    policy = load_policy(recipe.model, saved=context.checkpoint, device=device, model=model)
    data = task.fitting(policy, "data", data, console)
    held_out = {name: task.fitting(policy, name, x, console) for name, x in held_out.items()}
    steps = {"steps": task.total_steps(len(data))}
    task.recipe = recipe.model_copy(update=steps)
    learner = task.learner(policy, launch, context.checkpoint)
    context.seed_per_rank()
    problems = None
    if scorer is not None:
        template = asked.template or recipe.data.template
        ends = ends_of(template, tokenizer, [item.ids for own in prompts.values() for item in own])
        stop_ids = stop_token_ids(policy, tokenizer, ends)
        engine = TransformersEngine(policy, stop_ids, exact=recipe.learner.exact)
        if engine.note is not None:
            notify(console, engine.note)
        problems = HeldOutProblems(prompts, engine, scorer, asked.sampling, asked.samples)
    return OfflineRun(
        task=task,
        recipe=task.recipe,
        tokenizer=tokenizer,
        learner=learner,
        checkpoints=context.checkpoint_writer(),
        ranks=launch.ranks,
        signals=context.signals,
        data=data,
        held_out=held_out,
        sampler=ProblemSampler(len(data), recipe.seed, shuffle=recipe.data.shuffle),
        problems=problems,
    )


def _problem_prompts(
    task: OfflineTask[Any],
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer | None,
    console: Console,
) -> dict[str, list[Prompt]]:
    asked = task.recipe.evaluation
    if scorer is None or not isinstance(asked, ProblemEvaluation):
        return {}
    template = asked.template or task.recipe.data.template
    return held_out_prompts(asked.sets, template, task.prompt_limit, tokenizer, scorer, console)
