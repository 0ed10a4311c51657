"""A preference run: everything that belongs to one, from a recipe or from its checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.data import ProblemSampler
from rlvr.learner import Launch, PreferenceBatch, PreferenceLearner, adapters_off
from rlvr.policy import Policy, load_policy, load_tokenizer, stop_token_ids
from rlvr.preference.resample import Resampler
from rlvr.rollout import TransformersEngine
from rlvr.train.base_run import BaseRun, Beginning, open_any_run, shards_weights, weights_device
from rlvr.train.evaluation import HeldOutProblems
from rlvr.train.interrupt import StopSignals
from rlvr.train.preference_data import check_fit, load_pairs
from rlvr.train.preference_recipe import PreferenceRecipe
from rlvr.train.preference_reference import add_reference, load_frozen, named_reference
from rlvr.train.prm_data import load_scored
from rlvr.train.prm_recipe import PrmRecipe
from rlvr.train.prompts import held_out_prompts
from rlvr.train.recipe import RewardSettings
from rlvr.train.scoring import Scorer


@dataclass(kw_only=True)
class PreferenceRun(BaseRun):
    """A run in progress; ``step`` counts finished steps."""

    recipe: PreferenceRecipe | PrmRecipe
    learner: PreferenceLearner
    data: PreferenceBatch
    held_out: dict[str, PreferenceBatch]
    sampler: ProblemSampler
    problems: HeldOutProblems | None = None
    resampler: Resampler | None = None

    def prepare(self, console: Console) -> None:
        """Give the engine, where there is one, its first weights."""
        if self.problems is not None:
            self.problems.engine.sync(self.policy, self.step)

    def save(self) -> Path:
        """Write a checkpoint of the state after ``step`` steps, unless that was done already."""
        return self.save_state({"sampler": self.sampler.state_dict()})

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything but the weights (loaded already) from a checkpoint; its state."""
        state = super().restore(checkpoint)
        self.sampler.load_state_dict(state["sampler"])
        return state


@contextmanager
def open_preference_run(
    recipe: PreferenceRecipe | PrmRecipe, resume: bool, console: Console, signals: StopSignals
) -> Iterator[PreferenceRun]:
    """Build a run, as :func:`rlvr.train.base_run.open_any_run`, and see to its reference.

    Raises:
        ValueError: As there.
    """
    with open_any_run(
        recipe,
        lambda beginning: _build_run(recipe, beginning),
        check=lambda launch: check_launch(recipe, launch),
        resume=resume,
        console=console,
        signals=signals,
    ) as run:
        if recipe.needs_reference and not recipe.live_reference:
            add_reference(run, fresh=run.saved is None)
        yield run


def check_launch(recipe: PreferenceRecipe | PrmRecipe, launch: Launch) -> None:
    """See that the recipe can be carried out by the processes there are.

    Raises:
        ValueError: It cannot; the message says what to change.
    """
    if isinstance(recipe, PrmRecipe):
        return
    if shards_weights(launch) and recipe.evaluation.sets:
        raise ValueError(
            f"evaluation.sets names {min(recipe.evaluation.sets)!r}, whose problems are answered "
            "with the learner's own weights, which ZeRO 3 parts over processes; leave the sets out "
            "and evaluate the model afterwards by rlvr eval, or launch with ZeRO 2"
        )


def _build_run(recipe: PreferenceRecipe | PrmRecipe, beginning: Beginning) -> PreferenceRun:
    console, launch = beginning.console, beginning.launch
    tokenizer = load_tokenizer(recipe.model)
    scorer = None
    if isinstance(recipe, PreferenceRecipe) and recipe.evaluation.sets:
        # Its processes start before torch touches a GPU.
        limit = recipe.evaluation_sampling.max_tokens
        scorer = beginning.stack.enter_context(Scorer(RewardSettings(), tokenizer, limit))
    prompts = {}
    if isinstance(recipe, PrmRecipe):
        data, held_out = load_scored(recipe, tokenizer, console)
    else:
        data, held_out = load_pairs(recipe, tokenizer, console)
        prompts = held_out_prompts(
            recipe.evaluation.sets,
            recipe.evaluation.template or recipe.data.template,
            recipe.data.max_prompt_tokens,
            tokenizer,
            scorer,
            console,
        )
    policy = load_policy(recipe.model, saved=beginning.checkpoint, device=weights_device(launch))
    check_fit(policy, [data, *held_out.values()])
    learner = _build_learner(recipe, policy, launch)
    beginning.part_seeds()
    problems = None
    if isinstance(recipe, PreferenceRecipe) and scorer is not None:
        engine = TransformersEngine(policy, stop_token_ids(policy, tokenizer))
        sampling, samples = recipe.evaluation_sampling, recipe.evaluation.samples
        problems = HeldOutProblems(prompts, engine, scorer, sampling, samples)
    return PreferenceRun(
        recipe=recipe,
        tokenizer=tokenizer,
        data=data,
        held_out=held_out,
        sampler=ProblemSampler(len(data), recipe.seed, shuffle=recipe.data.shuffle),
        learner=learner,
        checkpoints=beginning.checkpoint_writer(),
        ranks=launch.ranks,
        signals=beginning.signals,
        problems=problems,
        resampler=_resampler(recipe, data),
    )


def _resampler(recipe: PreferenceRecipe | PrmRecipe, data: PreferenceBatch) -> Resampler | None:
    settings = recipe.data.resample if isinstance(recipe, PreferenceRecipe) else None
    return None if settings is None else Resampler(settings, data.prompt_ids, recipe.seed)


def _build_learner(
    recipe: PreferenceRecipe | PrmRecipe, policy: Policy, launch: Launch
) -> PreferenceLearner:
    opened: Callable[[], AbstractContextManager[Policy]] | None = None
    named = named_reference(recipe)
    if recipe.live_reference and policy.has_adapters and named is None:
        opened = lambda: adapters_off(policy)  # noqa: E731
    elif recipe.live_reference:
        model = load_frozen(named or recipe.model, policy)
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
