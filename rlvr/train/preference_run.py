"""A preference run: everything that belongs to one, from a recipe or from its checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.data import ProblemSampler, Prompt
from rlvr.hub.background import Uploads, uploading
from rlvr.learner import (
    CheckpointWriter,
    Launch,
    PreferenceBatch,
    PreferenceLearner,
    adapters_off,
    checkpoint_path,
    join,
    random_states,
)
from rlvr.policy import Policy, load_policy, load_tokenizer, policy_writer, stop_token_ids
from rlvr.ranks import Ranks
from rlvr.rollout import TransformersEngine
from rlvr.train import run as runs
from rlvr.train.interrupt import StopSignals
from rlvr.train.log import RunLog, say
from rlvr.train.preference_data import check_fit, load_held_out_problems, load_pairs
from rlvr.train.preference_recipe import PreferenceRecipe
from rlvr.train.preference_reference import add_reference
from rlvr.train.prm_data import load_scored
from rlvr.train.prm_recipe import PrmRecipe
from rlvr.train.recipe import RewardSettings
from rlvr.train.scoring import Scorer
from rlvr.train.together import first_rank


@dataclass
class PreferenceRun:
    """A run in progress; ``step`` counts finished steps."""

    recipe: PreferenceRecipe | PrmRecipe
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
    uploads: Uploads | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.recipe.output

    @property
    def policy(self) -> Policy:
        """The model being trained."""
        return self.learner.policy

    def share(self, count: int) -> range:
        """The places, of ``count`` prompts, that this rank answers."""
        return self.ranks.share(count)

    def save(self) -> None:
        """Write a checkpoint of the state after ``step`` steps, unless that was done already."""
        if self.saved == checkpoint_path(self.checkpoints.folder, self.step):
            return
        write_policy = policy_writer(
            self.policy, keep=self.ranks.first, copy=self.checkpoints.background
        )

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
        state = runs.restore_learner(self.learner, checkpoint, self.ranks)
        self.sampler.load_state_dict(state["sampler"])
        self.step, self.saved = state["step"], checkpoint


@contextmanager
def open_preference_run(
    recipe: PreferenceRecipe | PrmRecipe, resume: bool, console: Console, signals: StopSignals
) -> Iterator[PreferenceRun]:
    """Build a run, from its newest valid checkpoint where ``resume`` is set and there is one.

    Raises:
        ValueError: Anything the recipe names is missing or unusable, the output folder holds
            another run, or the recipe does not go with the launch.
    """
    launch = join()
    ranks = launch.ranks
    check_launch(recipe, launch)
    signals.deferred = ranks.count > 1
    console = console if ranks.first else Console(quiet=True)
    found = first_rank(ranks, lambda: runs.starting_point(recipe, resume))
    checkpoint = None if found is None else Path(found)
    torch.manual_seed(recipe.seed)
    with ExitStack() as stack:
        run = _build_run(recipe, launch, checkpoint, stack, console, signals)
        stack.callback(run.checkpoints.wait)
        if ranks.count > 1 or launch.zero is not None:
            say(console, launch.description)
        if checkpoint is not None:
            run.restore(checkpoint)
            say(console, f"resuming after step {run.step} from {checkpoint}")
            runs.say_what_is_not_exact(console, checkpoint, ranks)
        # Only now: a recipe that cannot be carried out leaves no folder behind.
        first_rank(ranks, lambda: runs.record_run(recipe))
        run.log = stack.enter_context(runs.open_log(recipe, ranks, run.step, console))
        run.uploads = stack.enter_context(
            uploading(recipe.output, recipe.hub, ranks, run.checkpoints, run.log.say)
        )
        if run.engine is not None:
            run.engine.sync(run.policy, run.step)
        if recipe.needs_reference and not recipe.live_reference:
            add_reference(run, fresh=checkpoint is None)
        yield run


def check_launch(recipe: PreferenceRecipe | PrmRecipe, launch: Launch) -> None:
    """See that the recipe can be carried out by the processes there are.

    Raises:
        ValueError: It cannot; the message says what to change.
    """
    if isinstance(recipe, PrmRecipe):
        return
    if runs.shards_weights(launch) and recipe.evaluation.sets:
        raise ValueError(
            f"evaluation.sets names {min(recipe.evaluation.sets)!r}, whose problems are answered "
            "with the learner's own weights, which ZeRO 3 parts over processes; leave the sets out "
            "and evaluate the model afterwards by rlvr eval, or launch with ZeRO 2"
        )


def _build_run(
    recipe: PreferenceRecipe | PrmRecipe,
    launch: Launch,
    checkpoint: Path | None,
    stack: ExitStack,
    console: Console,
    signals: StopSignals,
) -> PreferenceRun:
    tokenizer = load_tokenizer(recipe.model)
    scorer = None
    if isinstance(recipe, PreferenceRecipe) and recipe.evaluation.sets:
        # Its processes start before torch touches a GPU.
        limit = recipe.evaluation_sampling.max_tokens
        scorer = stack.enter_context(Scorer(RewardSettings(), tokenizer, limit))
    prompts: dict[str, list[Prompt]] = {}
    if isinstance(recipe, PrmRecipe):
        data, held_out = load_scored(recipe, tokenizer, console)
    else:
        data, held_out = load_pairs(recipe, tokenizer, console)
        prompts = load_held_out_problems(recipe, tokenizer, scorer, console)
    # Weights that do not fit on one GPU are taken apart in host memory.
    device = torch.device("cpu") if runs.shards_weights(launch) else None
    policy = load_policy(recipe.model, saved=checkpoint, device=device)
    check_fit(policy, [data, *held_out.values()])
    learner = _build_learner(recipe, policy, launch)
    if not launch.ranks.first:
        torch.manual_seed(recipe.seed + launch.ranks.rank)  # dropout differs between ranks
    return PreferenceRun(
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
        engine=TransformersEngine(policy, stop_token_ids(policy, tokenizer)) if prompts else None,
        scorer=scorer,
    )


def _build_learner(
    recipe: PreferenceRecipe | PrmRecipe, policy: Policy, launch: Launch
) -> PreferenceLearner:
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
