"""A run of learning from rewards: everything its recipe describes, built and put in one place."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.data import ProblemSampler, Prompt
from rlvr.learner import CriticTraining, Launch, Learner, RouterTraining
from rlvr.objective import Gae, Objective
from rlvr.policy import critic_writer, load_critic, load_policy, load_tokenizer, stop_token_ids
from rlvr.ranks import Ranks
from rlvr.rollout import Engine, TransformersEngine, build_engine
from rlvr.train.base_run import BaseRun, Beginning, open_any_run, shards_weights, weights_device
from rlvr.train.evaluation import HeldOutProblems
from rlvr.train.interrupt import StopSignals
from rlvr.train.pathways import TRAINING, Probe
from rlvr.train.prime import build_prime, reward_model_writer
from rlvr.train.prompts import check_context, load_prompts
from rlvr.train.recipe import RLRecipe
from rlvr.train.scoring import Scored, Scorer

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
    surplus: list[list[Scored]] = field(default_factory=list)
    """Groups that teach and wait for a step with room for them."""

    @property
    def central(self) -> bool:
        """Whether the first rank speaks to the engine for all."""
        return self.recipe.rollout.engine.name == "vllm_server"

    def share(self, count: int) -> range:
        """The places, of ``count`` prompts, that this rank samples."""
        if self.central:
            return range(count if self.ranks.first else 0)
        return super().share(count)

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
        self.sync()

    def model_writers(self) -> list[Callable[[Path], None]]:
        """Those of policy, critic and reward model."""
        keep, copy = self.ranks.first, self.checkpoints.background
        critic = None if self.learner.critic is None else self.learner.critic.model
        return [
            *super().model_writers(),
            critic_writer(critic, self.policy, keep=keep, copy=copy),
            reward_model_writer(self.learner.prime, keep=keep, copy=copy),
        ]

    def save(self, rollouts: Mapping[str, Any]) -> Path:
        """Write a checkpoint; ``rollouts`` is where their sampling stands."""
        return self.save_state(
            {
                "rollouts": dict(rollouts),
                "trained_rollouts": self.learner.rollouts,
                "objective": self.learner.objective.state(),
            }
        )

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything but the weights (loaded already) from a checkpoint; its state."""
        state = super().restore(checkpoint)
        self.rollouts_state = state["rollouts"]
        self.sampler.load_state_dict(self.rollouts_state["sampler"])
        self.learner.rollouts = state.get("trained_rollouts", 0)
        self.learner.objective.load_state(state.get("objective", {}))
        return state


@contextmanager
def open_run(
    recipe: RLRecipe, *, resume: bool, console: Console, signals: StopSignals | None = None
) -> Iterator[Run]:
    """Build a run, as :func:`rlvr.train.base_run.open_any_run`.

    Raises:
        ValueError: As there.
    """
    with open_any_run(
        recipe,
        lambda beginning: _build_run(recipe, beginning),
        check=lambda launch: check_launch(recipe, launch),
        resume=resume,
        console=console,
        signals=signals or StopSignals(),
    ) as run:
        yield run


def _build_run(recipe: RLRecipe, beginning: Beginning) -> Run:
    ranks, stack = beginning.ranks, beginning.stack
    tokenizer = load_tokenizer(recipe.model)
    # Verifier processes start before torch touches a GPU.
    limit = recipe.rollout.sampling.max_tokens
    scorer = stack.enter_context(Scorer(recipe.reward, tokenizer, limit))
    prompts, evaluation_prompts = load_prompts(recipe, tokenizer, scorer, beginning.console)
    learner = build_learner(recipe, beginning.checkpoint, beginning.launch)
    beginning.part_seeds()
    check_context(recipe, learner.policy, [prompts, *evaluation_prompts.values()])
    stop_ids = stop_token_ids(learner.policy, tokenizer)
    engine = stack.enter_context(
        closing(
            build_engine(
                recipe.rollout.engine, learner.policy, stop_ids, recipe.longest_sequence, ranks
            )
        )
    )
    if isinstance(engine, TransformersEngine):
        engine.keeps_experts = recipe.router is not None and recipe.router.needs_engine
    sampling, samples = recipe.evaluation_sampling, recipe.evaluation.samples
    return Run(
        recipe=recipe,
        tokenizer=tokenizer,
        prompts=prompts,
        sampler=ProblemSampler(len(prompts), recipe.seed, shuffle=recipe.data.shuffle),
        engine=engine,
        learner=learner,
        scorer=scorer,
        held_out=HeldOutProblems(evaluation_prompts, engine, scorer, sampling, samples),
        checkpoints=beginning.checkpoint_writer(),
        ranks=ranks,
        rollout_ranks=ranks.group(),
        signals=beginning.signals,
        probe=_probe(recipe, {TRAINING: prompts, **evaluation_prompts}, tokenizer),
    )


def _probe(
    recipe: RLRecipe,
    prompts: dict[str, list[Prompt]],
    tokenizer: Any,  # noqa: ANN401
) -> Probe | None:
    settings = recipe.evaluation.pathways
    return None if settings is None else Probe(settings, prompts, tokenizer)


def check_launch(recipe: RLRecipe, launch: Launch) -> None:
    """See that the recipe can be carried out by the processes there are.

    Raises:
        ValueError: It cannot; the message says what to change.
    """
    if shards_weights(launch) and recipe.rollout.engine.name == "transformers":
        raise ValueError(
            "rollout.engine 'transformers' generates with the learner's own weights, which ZeRO 3 "
            "parts over processes; use vllm or vllm_server, or launch with ZeRO 2"
        )
    if launch.ranks.count > 1 and recipe.rollout.max_staleness > 1:
        raise ValueError(
            f"rollout.max_staleness = {recipe.rollout.max_staleness} with several processes: which "
            "weights a rollout gets would depend on each one's timing; set it to 0 or 1"
        )


def build_learner(
    recipe: RLRecipe, checkpoint: Path | None = None, launch: Launch | None = None
) -> Learner:
    """The policy, its reference where the objective needs one, and the optimizer."""
    objective = Objective(
        recipe.policy_loss,
        recipe.regularisers,
        recipe.reducer,
        recipe.correction,
        recipe.filters,
    )
    device = weights_device(launch)
    policy = load_policy(recipe.model, saved=checkpoint, device=device)
    if recipe.evaluation.pathways is not None:
        policy.watch_routers()
    router = None if recipe.router is None else RouterTraining(policy, recipe.router)
    critic, needs_reference = None, objective.needs_reference
    if isinstance(recipe.advantage, Gae):
        model = load_critic(recipe.model, saved=checkpoint, device=device)
        critic = CriticTraining(model, recipe.critic, recipe.advantage)
        needs_reference |= recipe.advantage.kl_in_reward > 0
    reference = None
    if needs_reference and recipe.model.lora is None:
        reference = load_policy(recipe.model).requires_grad_(False).eval()
    return Learner(
        policy,
        objective,
        recipe.learner,
        temperature=recipe.rollout.sampling.temperature,
        total_updates=recipe.steps * recipe.learner.updates_per_rollout,
        reference=reference,
        critic=critic,
        prime=build_prime(recipe, policy, checkpoint, device),
        router=router,
        launch=launch,
    )
