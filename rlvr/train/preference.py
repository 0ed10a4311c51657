"""Learning from preferences, the loop.

    rlvr train recipes/preference_dpo.yaml

Pairs (or labelled completions) are read and encoded once, reference log-probabilities are taken
once or in every step, and the learner turns a step's pairs into new weights. Checkpoints, records,
signals and the report are those of every other task.

Left out here: more than one process.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from rlvr.data import ProblemSampler, Prompt, load_problems, load_template
from rlvr.data.preferences import EncodedPreference, encode_preferences, load_preferences
from rlvr.learner import (
    CheckpointWriter,
    Launch,
    PreferenceBatch,
    PreferenceLearner,
    adapters_off,
    check_one_process,
    checkpoint_path,
    join,
    load_state,
    random_states,
    restore_random_states,
)
from rlvr.policy import Policy, load_policy, load_tokenizer, policy_writer, stop_token_ids
from rlvr.ranks import Ranks
from rlvr.rollout import TransformersEngine
from rlvr.train import run as runs
from rlvr.train.clock import Clock
from rlvr.train.evaluation import evaluate
from rlvr.train.interrupt import Stopped, StopSignals
from rlvr.train.log import RunLog, say
from rlvr.train.preference_recipe import PreferenceRecipe
from rlvr.train.prompts import usable_prompts
from rlvr.train.recipe import RewardSettings
from rlvr.train.rl import export
from rlvr.train.run import Run
from rlvr.train.scoring import Scorer

_REFERENCE = "reference.safetensors"


@dataclass
class PreferenceRun:
    """A run in progress; ``step`` counts finished steps."""

    recipe: PreferenceRecipe
    tokenizer: Any
    data: PreferenceBatch
    held_out: dict[str, PreferenceBatch]
    sampler: ProblemSampler
    learner: PreferenceLearner
    log: RunLog
    checkpoints: CheckpointWriter
    ranks: Ranks
    signals: StopSignals
    evaluation_prompts: dict[str, list[Prompt]] = field(default_factory=dict)
    engine: TransformersEngine | None = None
    scorer: Scorer | None = None
    step: int = 0
    saved: Path | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.output

    @property
    def policy(self) -> Policy:
        """The model being trained."""
        return self.learner.policy

    def share(self, count: int) -> range:
        """The places, of ``count`` prompts, that this process answers: all."""
        return self.ranks.share(count)

    def save(self) -> None:
        """Write a checkpoint of the state after ``step`` steps, unless that was done already."""
        if self.saved == checkpoint_path(self.checkpoints.folder, self.step):
            return
        write_policy = policy_writer(self.policy, copy=self.checkpoints.background)

        def write_model(path: Path) -> None:
            write_policy(path)
            if not self.policy.has_adapters:
                self.tokenizer.save_pretrained(path / "model")

        self.saved = self.checkpoints.save(
            self.step,
            write_model,
            tensors={**self.learner.engine.state(), **random_states()},
            state={
                "step": self.step,
                "sampler": self.sampler.state_dict(),
                "updates": self.learner.updates,
                "skipped_updates": self.learner.skipped_updates,
            },
        )

    def restore(self, checkpoint: Path) -> None:
        """Take everything but the weights (loaded already) from a checkpoint."""
        state, tensors = load_state(checkpoint, self.ranks)
        self.learner.engine.load_state(
            {key: value for key, value in tensors.items() if not key.startswith("rng/")}
        )
        restore_random_states(tensors)
        self.sampler.load_state_dict(state["sampler"])
        self.learner.updates = state["updates"]
        self.learner.skipped_updates = state["skipped_updates"]
        self.step, self.saved = state["step"], checkpoint


def train(
    recipe: PreferenceRecipe, *, resume: bool = False, console: Console | None = None
) -> Path:
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
        _open_run(recipe, resume, console or Console(), signals) as run,
    ):
        try:
            _evaluate_if_due(run, signals)
            while run.step < recipe.steps:
                train_step(run, signals)
                _evaluate_if_due(run, signals)
                if run.step % recipe.checkpoint.every == 0 or run.step == recipe.steps:
                    with signals.shield():
                        run.log.phase("saving")
                        run.save()
        except Stopped:
            if run.step:
                run.log.say(f"stopped after step {run.step}; saving")
                run.save()
            raise
        run.log.phase("exporting")
        export(run.policy, run.tokenizer, run.folder, run.ranks)
    return recipe.output


def train_step(run: PreferenceRun, signals: StopSignals) -> None:
    """Take the next preferences, update, record."""
    clock = Clock(lambda *span: run.log.span("learner", run.step + 1, *span))
    with signals.shield():
        batch = run.data.select(run.sampler.next(run.recipe.data.per_step))
        run.log.phase("updating")
        with clock("update", counted=False):
            metrics = run.learner.update(batch)
        run.step += 1
        metrics["time/step"] = clock.total
        metrics["preference/epoch"] = run.step * len(batch) / len(run.data)
        metrics["memory/rss_gib"] = psutil.Process().memory_info().rss / 2**30
        tokens = sum(len(ids) for item in batch.completion_ids for ids in item)
        metrics["throughput/trained_tokens_per_second"] = tokens / metrics["time/update"]
        run.log.step(run.step, metrics)


def _evaluate_if_due(run: PreferenceRun, signals: StopSignals) -> None:
    """Evaluate before the first step, every so often, and after the last, once each."""
    due = run.step % run.recipe.evaluation.every == 0 or run.step == run.recipe.steps
    if not due or run.log.evaluated(run.step) or not (run.held_out or run.evaluation_prompts):
        return
    clock = Clock(lambda *span: run.log.span("learner", run.step, *span))
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    with clock("evaluate"):
        for name, batch in run.held_out.items():
            measured = run.learner.measure(batch)
            metrics |= {
                f"eval/{name}/{key.removeprefix('preference/')}": value
                for key, value in measured.items()
            }
        if run.engine is not None:
            answered, rows = evaluate(cast(Run, run))
            metrics |= answered
    with signals.shield():
        run.log.completions("evaluations", run.step, rows)
        run.log.step(run.step, metrics | clock.seconds)


@contextmanager
def _open_run(
    recipe: PreferenceRecipe, resume: bool, console: Console, signals: StopSignals
) -> Iterator[PreferenceRun]:
    """Build a run, from its newest valid checkpoint where ``resume`` is set and there is one."""
    launch = join()
    check_one_process(launch)
    found = runs.starting_point(recipe, resume)
    checkpoint = None if found is None else Path(found)
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    with ExitStack() as stack:
        scorer = None
        if recipe.evaluation.sets:  # its processes start before torch touches a GPU
            limit = recipe.evaluation_sampling.max_tokens
            scorer = stack.enter_context(Scorer(RewardSettings(), tokenizer, limit))
        data, held_out = _load_data(recipe, tokenizer, console)
        prompts = _load_problems(recipe, tokenizer, scorer, console)
        policy = load_policy(recipe.model, saved=checkpoint)
        _check_fit(policy, [data, *held_out.values()])
        learner = _build_learner(recipe, policy, launch)
        run = PreferenceRun(
            recipe=recipe,
            tokenizer=tokenizer,
            data=data,
            held_out=held_out,
            sampler=ProblemSampler(len(data), recipe.seed, shuffle=recipe.data.shuffle),
            learner=learner,
            log=None,  # type: ignore[arg-type]  # needs the step, which a checkpoint may set
            checkpoints=CheckpointWriter(
                recipe.output / "checkpoints",
                recipe.checkpoint.keep,
                launch.ranks,
                background=recipe.checkpoint.background,
            ),
            ranks=launch.ranks,
            signals=signals,
            evaluation_prompts=prompts,
            scorer=scorer,
        )
        stack.callback(run.checkpoints.wait)
        if prompts:
            run.engine = TransformersEngine(policy, stop_token_ids(policy, tokenizer))
        if checkpoint is not None:
            run.restore(checkpoint)
            say(console, f"resuming after step {run.step} from {checkpoint}")
        runs.record_run(recipe)
        run.log = stack.enter_context(
            RunLog(
                recipe.output,
                recipe.steps,
                resumed_step=run.step,
                trackers=recipe.log.track,
                config=recipe.model_dump(mode="json"),
                console=console,
            )
        )
        if run.engine is not None:
            run.engine.sync(policy, run.step)
        if recipe.needs_reference and not recipe.live_reference:
            _add_reference(run, fresh=checkpoint is None)
        yield run


def _load_data(
    recipe: PreferenceRecipe,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> tuple[PreferenceBatch, dict[str, PreferenceBatch]]:
    template, settings = load_template(recipe.data.template), recipe.data

    def load(name: str, source: Any) -> PreferenceBatch:  # noqa: ANN401
        encoded = encode_preferences(
            load_preferences(source, recipe.kind),
            template,
            tokenizer,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_completion_tokens=settings.max_completion_tokens,
            say=lambda text: say(console, f"{name}: {text}"),
        )
        return _columns(encoded, recipe, name)

    training = load("data", settings.source)
    return training, {name: load(name, s) for name, s in recipe.evaluation.pairs.items()}


def _columns(
    encoded: Sequence[EncodedPreference], recipe: PreferenceRecipe, name: str
) -> PreferenceBatch:
    """Columns of all preferences.

    Raises:
        ValueError: A loss needs scores, and a pair has none or equal ones.
    """
    scored = [item.scores for item in encoded]
    if any(loss.needs_scores for loss in recipe.losses):
        bad = [i for i, s in enumerate(scored) if s is None or s[0] <= s[1]]
        if bad:
            raise ValueError(
                f"{name}: the loss 'odpo' needs a higher score of the chosen completion "
                f"(columns {recipe.data.source.columns.chosen_score!r} and "
                f"{recipe.data.source.columns.rejected_score!r}), but pair {bad[0] + 1} has "
                f"{scored[bad[0]]}"
            )
    known = [s for s in scored if s is not None]
    labels = [bool(item.desirable) for item in encoded]
    return PreferenceBatch(
        tuple(item.prompt_ids for item in encoded),
        tuple(item.completion_ids for item in encoded),
        torch.tensor(labels) if recipe.kind == "labelled" else None,
        torch.tensor(known) if len(known) == len(encoded) else None,
    )


def _load_problems(
    recipe: PreferenceRecipe,
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer | None,
    console: Console,
) -> dict[str, list[Prompt]]:
    if scorer is None:
        return {}
    template = load_template(recipe.evaluation.template or recipe.data.template)
    limit = recipe.data.max_prompt_tokens
    return {
        name: usable_prompts(
            name, load_problems(source), template, tokenizer, limit, scorer, console
        )
        for name, source in recipe.evaluation.sets.items()
    }


def _check_fit(policy: Policy, batches: Sequence[PreferenceBatch]) -> None:
    """See that the model knows every token and has room for every sequence.

    Raises:
        ValueError: It does not.
    """
    words = policy.causal_lm.get_input_embeddings().num_embeddings
    limit = policy.context_length
    for batch in batches:
        for prompt, item in zip(batch.prompt_ids, batch.completion_ids, strict=True):
            if max(map(max, (prompt, *item))) >= words:
                raise ValueError(
                    f"a preference holds token {max(map(max, (prompt, *item)))}, but the model has "
                    f"{words} embeddings; set model.tokenizer to the model's own tokenizer"
                )
            longest = len(prompt) + max(map(len, item))
            if limit is not None and longest > limit:
                raise ValueError(
                    f"a preference has {longest} tokens, more than the model's context of {limit}; "
                    "lower data.max_prompt_tokens or data.max_completion_tokens"
                )


def _build_learner(recipe: PreferenceRecipe, policy: Policy, launch: Launch) -> PreferenceLearner:
    opened: Callable[[], AbstractContextManager[Policy]] | None = None
    if recipe.live_reference and policy.has_adapters:
        opened = lambda: adapters_off(policy)  # noqa: E731
    elif recipe.live_reference:
        model = load_policy(recipe.model).requires_grad_(False).eval()
        opened = lambda: nullcontext(model)  # noqa: E731
    return PreferenceLearner(
        policy,
        recipe.losses,
        recipe.learner,
        total_updates=recipe.steps,
        reference=opened,
        ld_alpha=recipe.ld_alpha,
        weighting=recipe.weighting,
        launch=launch,
    )


def _add_reference(run: PreferenceRun, *, fresh: bool) -> None:
    """Put reference log-probabilities beside all data, from the run folder where they are."""
    batches = {"data": run.data, **run.held_out}
    found = _cached(run, batches)
    if found is None:
        with _reference_model(run, fresh=fresh) as model:
            found = {name: _reference_of(run, name, b, model) for name, b in batches.items()}
        path = run.folder / _REFERENCE
        partial = path.with_suffix(".partial")
        save_file(found, partial, {"key": _key(run, batches)})
        partial.replace(path)
    run.data = replace(run.data, reference_BK=found["data"])
    run.held_out = {
        name: replace(batch, reference_BK=found[name]) for name, batch in run.held_out.items()
    }


def _reference_of(
    run: PreferenceRun, name: str, batch: PreferenceBatch, model: Policy
) -> torch.Tensor:
    def progress(done: int) -> None:
        run.log.phase(f"reference log-probabilities of {name}", done, len(batch))

    return run.learner.reference_sums(batch, model, progress).contiguous()


@contextmanager
def _reference_model(run: PreferenceRun, *, fresh: bool) -> Iterator[Policy]:
    """The recipe's model: the policy itself before its first step, or with its adapters off."""
    if run.policy.has_adapters:
        with adapters_off(run.policy) as model:
            yield model
    elif fresh:
        yield run.policy
    else:
        yield load_policy(run.recipe.model)


def _cached(run: PreferenceRun, batches: dict[str, PreferenceBatch]) -> dict[str, Any] | None:
    """What an earlier start of this run computed for the same tokens and model."""
    from safetensors import safe_open

    path = run.folder / _REFERENCE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        same = (file.metadata() or {}).get("key") == _key(run, batches)
    return load_file(path) if same else None


def _key(run: PreferenceRun, batches: dict[str, PreferenceBatch]) -> str:
    content = {name: [b.prompt_ids, b.completion_ids] for name, b in batches.items()}
    model = run.recipe.model.model_dump(mode="json")
    text = json.dumps([model, run.recipe.ld_alpha, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
