"""A run of learning from rewards: everything its recipe describes, built and put in one place."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.data import ProblemSampler, Prompt, load_template
from rlvr.data.templates import ends_of
from rlvr.environments.episode import Environments
from rlvr.learner.launch import Launch
from rlvr.learner.learner import Learner
from rlvr.objective.objective import Objective
from rlvr.policy.loading import load_policy, load_tokenizer, stop_token_ids
from rlvr.ranks import Ranks
from rlvr.rl.methods import build_hooks
from rlvr.rl.prompts import check_context, load_prompts, needs_verdicts
from rlvr.rl.recipe import TRAINING, RLRecipe, stale_warnings
from rlvr.rl.routing_probe import Probe
from rlvr.rollout.build import build_engine
from rlvr.rollout.engine import Engine
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.memory_share import moments_to_come
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.runs.base_run import BaseRun, RunContext, open_any_run, weights_device
from rlvr.runs.callers import NO_CALLER, CallerObjects
from rlvr.runs.collectives import on_rank_zero
from rlvr.runs.evaluation import HeldOutProblems
from rlvr.runs.interrupt import StopSignals
from rlvr.runs.ledger import Ledger
from rlvr.runs.log import notify
from rlvr.runs.parent import Parent
from rlvr.runs.scoring import ScoredCompletion, Scorer, try_functions
from rlvr.runs.uploads import Uploading, no_uploading

_TRIAL_TOKENS = 8
_SAMPLED_BY = ("seed", "model", "data", "rollout", "reward")
_WAITED_FOR = {"vllm": "starting vLLM", "vllm_server": "waiting for vLLM servers"}


@dataclass(kw_only=True)
class Run(BaseRun):
    """A run in progress; ``step`` counts finished steps."""

    recipe: RLRecipe
    learner: Learner
    prompts: list[Prompt]
    sampler: ProblemSampler
    engine: Engine
    scorer: Scorer
    held_out: HeldOutProblems
    rollout_ranks: Ranks
    """The same processes, for the thread that samples."""
    probe: Probe | None = None
    """What a mixture of experts is looked at with."""
    rollouts_state: dict[str, Any] = field(default_factory=dict)
    """Where the sampling of rollouts stood at the checkpoint that the run was continued from."""
    opinions: Counter[str] = field(default_factory=Counter)
    """What a second judge made of verdicts, of all steps that were recorded."""
    carry_over: list[list[ScoredCompletion]] = field(default_factory=list)
    """Informative groups that wait for a step with room for them."""
    refused: Counter[str] = field(default_factory=Counter)
    """Problems of the data that are never drawn, by why."""
    environments: Environments | None = None
    """What answers the policy; None ends every completion after one turn."""
    ledger: Ledger | None = None
    """On the first rank, unless the recipe turns it off."""
    dropped: list[int] = field(default_factory=list)
    """Draws of the parent whose completions a branch has no use for."""

    @property
    def central(self) -> bool:
        """Whether the first rank speaks to the engine for all."""
        return self.recipe.rollout.engine.name == "vllm_server"

    def share(self, count: int) -> range:
        """The places, of ``count`` prompts, that this rank samples."""
        if self.central:
            return range(count if self.ranks.first else 0)
        return super().share(count)

    def token_ids(self) -> Iterator[tuple[str, Sequence[int]]]:
        """The prompts of training; evaluation may change."""
        return ((prompt.problem.id, prompt.ids) for prompt in self.prompts)

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each problem stands in the data, by its id."""
        return {prompt.problem.id: place for place, prompt in enumerate(self.prompts)}

    def next_prompts(self, count: int) -> list[Prompt]:
        """The coming prompts; the sampler advances."""
        return [self.prompts[index] for index in self.sampler.next(count)]

    def sync(self) -> dict[str, float]:
        """Give the engine the learner's weights; metrics of it."""
        return self.engine.sync(self.policy, self.step)

    def prepare(self, console: Console) -> None:
        """Give the engine its first weights, which starts it."""
        if self.recipe.rollout.engine.name in _WAITED_FOR:
            console.print(_WAITED_FOR[self.recipe.rollout.engine.name])
        if isinstance(self.engine, TransformersEngine) and self.engine.note is not None:
            notify(console, self.engine.note)
        self.sync()
        on_rank_zero(self.ranks, self._try_a_sample)

    def _try_a_sample(self) -> None:
        """Sample a few tokens and reward them, so that what fails here fails before the run begins.

        Neither samples nor counters of the run depend on it.

        Raises:
            ValueError: A reward function fails, or returns no number.
        """
        tokens = min(self.recipe.rollout.sampling.max_tokens, _TRIAL_TOKENS)
        greedy, prompts = Sampling(max_tokens=tokens, temperature=0.0), self.prompts[:1]
        seed = self.recipe.seed
        self.scorer.score(
            sample_groups(
                self.engine,
                prompts,
                1,
                greedy,
                run_seed=seed,
                step=self.step,
                environment=self.environments,
            )
        )

    def model_writers(self) -> list[Callable[[Path], None]]:
        """Those of the policy, and of the models that are trained with it."""
        keep, copy = self.ranks.first, self.checkpoints.background
        own = [hook.writer(self.policy, keep=keep, copy=copy) for hook in self.learner.hooks]
        return [*super().model_writers(), *own]

    def save(self, rollouts: Mapping[str, Any]) -> Path:
        """Write a checkpoint; ``rollouts`` is where their sampling stands."""
        restarts = self.verdicts["restarts"] + self.scorer.pool.counters["restarts"]
        return self.save_state(
            {
                "rollouts": dict(rollouts),
                "learner": self.learner.state(),
                "verifier": {**self.verdicts, "restarts": restarts},
                **({} if self.ledger is None else {"ledger": self.ledger.head}),
                **({} if self.recipe.reward.check is None else {"check": dict(self.opinions)}),
            }
        )

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything but the weights (loaded already) from a checkpoint; its state."""
        state = super().restore(checkpoint)
        self.rollouts_state = state["rollouts"]
        goes_on = self.continue_order(self.sampler, self.rollouts_state["sampler"], state)
        if self.branch is None:
            self.learner.load_state(state["learner"])
            self.verdicts = Counter(state["verifier"])
            self.opinions = Counter(state.get("check", {}))
            return state
        before = self.branch.recipe.get("learner", {}).get("updates_per_rollout", 1)
        self.learner.branch_from(state["learner"], before)
        sampled = {"queue", "carry_over"} & self.rollouts_state.keys()
        if sampled and not (goes_on and not self.branch.changed(self.recipe, *_SAMPLED_BY)):
            self.dropped = _draws(self.rollouts_state)
            self.rollouts_state = {}
            self.notes.append(
                "completions that the parent had sampled ahead are dropped: what they come from, "
                "or how they are rewarded, has changed"
            )
        return state


def _draws(state: Mapping[str, Any]) -> list[int]:
    """The draws of all groups that a checkpoint holds."""
    queue = state.get("queue", [])
    lists = [state.get("carry_over", []), *(rollout["sampled"] for rollout in queue)]
    return sorted({g[0]["completion"].get("draw", -1) for groups in lists for g in groups})


@contextmanager
def open_run(
    recipe: RLRecipe,
    resume: bool,
    console: Console,
    signals: StopSignals | None = None,
    uploading: Uploading = no_uploading,
    parent: Parent | None = None,
    caller: CallerObjects = NO_CALLER,
) -> Iterator[Run]:
    """Build a run, as :func:`rlvr.runs.base_run.open_any_run`.

    Raises:
        ValueError: As there.
    """
    with open_any_run(
        recipe,
        lambda context: _build_run(recipe, context),
        resume=resume,
        console=console,
        signals=signals or StopSignals(),
        uploading=uploading,
        parent=parent,
        caller=caller,
    ) as run:
        yield run


def _build_run(recipe: RLRecipe, context: RunContext) -> Run:
    ranks, stack = context.ranks, context.stack
    for warning in stale_warnings(recipe):
        notify(context.console, warning)
    tokenizer = load_tokenizer(recipe.model)
    # Verifier processes start before torch touches a GPU.
    limit = recipe.rollout.sampling.max_tokens
    scorer = stack.enter_context(Scorer(recipe.reward, tokenizer, limit, recipe.steps, recipe.seed))
    scorer.needs_verdicts |= needs_verdicts(recipe)
    refused: Counter[str] = Counter()
    environments = None
    if recipe.environment is not None:
        template = load_template(recipe.data.template)
        environments = Environments(
            recipe.environment, template, tokenizer, scorer.decode, scorer.judged
        )
        stack.enter_context(closing(environments))
    prompts, evaluation_prompts = load_prompts(
        recipe, tokenizer, scorer, context.console, refused, environments
    )
    episodes = environments is not None
    on_rank_zero(
        ranks,
        lambda: try_functions(scorer.functions, prompts[0].problem, limit, episodes=episodes),
    )
    learner = build_learner(recipe, context.checkpoint, context.launch, context.caller.model)
    context.seed_per_rank()
    check_context(recipe, learner.policy, [prompts, *evaluation_prompts.values()])
    asked = [item.ids for own in (prompts, *evaluation_prompts.values()) for item in own]
    ends = ends_of(recipe.data.template, tokenizer, asked)
    stop_ids = stop_token_ids(learner.policy, tokenizer, ends)
    engine = stack.enter_context(
        closing(
            build_engine(
                recipe.rollout.engine,
                learner.policy,
                stop_ids,
                recipe.longest_sequence,
                ranks,
                takes_turns=not recipe.rollout.max_staleness,
                growth=lambda: moments_to_come(learner.store.optimizer),
                exact=recipe.learner.exact,
            )
        )
    )
    if isinstance(engine, TransformersEngine):
        engine.keeps_experts = any(hook.needs_experts for hook in learner.hooks)
    sampling, samples = recipe.evaluation_sampling, recipe.evaluation.samples
    return Run(
        recipe=recipe,
        tokenizer=tokenizer,
        prompts=prompts,
        sampler=ProblemSampler(len(prompts), recipe.seed, shuffle=recipe.data.shuffle),
        engine=engine,
        learner=learner,
        scorer=scorer,
        held_out=HeldOutProblems(
            evaluation_prompts, engine, scorer, sampling, samples, environments
        ),
        checkpoints=context.checkpoint_writer(),
        ranks=ranks,
        rollout_ranks=ranks.group(),
        signals=context.signals,
        probe=_probe(recipe, {TRAINING: prompts, **evaluation_prompts}, tokenizer),
        refused=refused,
        environments=environments,
    )


def _probe(
    recipe: RLRecipe,
    prompts: dict[str, list[Prompt]],
    tokenizer: Any,  # noqa: ANN401
) -> Probe | None:
    settings = recipe.evaluation.pathways
    return None if settings is None else Probe(settings, prompts, tokenizer)


def build_learner(
    recipe: RLRecipe,
    checkpoint: Path | None = None,
    launch: Launch | None = None,
    model: Any = None,  # noqa: ANN401
) -> Learner:
    """The policy, its reference where the objective needs one, and the optimizer.

    ``model`` is the policy's, where it is in memory already (see ``load_policy``).
    """
    objective = Objective(
        recipe.policy_loss,
        recipe.regularisers,
        recipe.reducer,
        recipe.correction,
        recipe.filters,
    )
    device = weights_device(launch)
    policy = load_policy(recipe.model, saved=checkpoint, device=device, model=model)
    if recipe.evaluation.pathways is not None:
        policy.watch_routers()
    hooks = build_hooks(recipe, policy, checkpoint, device)
    reference = None
    if recipe.model.lora is None and (
        objective.needs_reference or any(hook.needs_reference for hook in hooks)
    ):
        reference = load_policy(recipe.model, trained=False, device=device)
    return Learner(
        policy,
        objective,
        recipe.learner,
        temperature=recipe.rollout.sampling.temperature,
        total_updates=recipe.steps * recipe.learner.updates_per_rollout,
        reference=reference,
        hooks=hooks,
        launch=launch,
        stale=recipe.oldest_rollout > 0,
        seed=recipe.seed,
    )
