"""The root schema of a recipe: what a YAML file for ``rlvr train`` may say."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from rlvr.data import Source, TemplateChoice, load_template
from rlvr.environments.settings import EnvironmentSettings
from rlvr.learner.methods.critic import CriticSettings
from rlvr.learner.methods.prime import PrimeSettings
from rlvr.learner.methods.router import RouterSettings
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.corrections import Correction, NoCorrection
from rlvr.objective.parts import Advantage, PolicyLoss, Regulariser, TokenFilter
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import Reducer, TokenMean
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.steps import step_starts
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import EngineSettings, TransformersEngineSettings, VllmEngineSettings
from rlvr.runs.alarm_settings import RLAlarmSettings
from rlvr.runs.base_recipe import (
    BaseEvaluation,
    BaseRecipe,
    LogSettings,
    impossible_exactness,
    impossible_layout,
    impossible_names,
    nothing_frozen,
)
from rlvr.runs.rewards import RewardSettings, RewardTerm
from rlvr.settings import Settings
from rlvr.settings.outside import is_place

TRAINING = "training"
"""What a pathway probe calls the training problems, among the evaluation sets."""


class DataSettings(Settings):
    """Where the training problems come from and how they become prompts."""

    source: Source
    """The problems: a Hub data set, a file, a reasoning-gym task, or generated arithmetic."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("qwen_math").settings)
    """How a problem becomes a prompt: the name of a built-in template, a YAML file, or the
    template itself."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Problems whose prompt is longer are left out (and counted), never cut."""
    shuffle: bool = True
    """Visit the problems in a new random order in every epoch."""
    relabel: dict[str, str] = Field(default_factory=dict)
    """Reference answers to train with instead of the data's, by problem id: to see what a wrong
    label does."""


class RolloutSettings(Settings):
    """How many completions are sampled in a step, and by what."""

    engine: EngineSettings = TransformersEngineSettings()
    """What generates."""
    prompts_per_step: int = Field(16, ge=1)
    """Problems drawn for a step."""
    samples_per_prompt: int = Field(8, ge=1)
    """Completions of each problem: the group that advantages are relative to."""
    sampling: Sampling = Sampling()
    """How tokens are drawn in training."""
    dynamic_sampling_rounds: int = Field(0, ge=0)
    """Dynamic sampling: how many times groups of equal rewards are replaced by newly drawn
    problems before the step goes on with what there is. 0 trains on the first draw."""
    oversample: float = Field(1.0, ge=1)
    """Draw so many times the problems that a step needs. Groups that teach come first, in the order
    of sampling; the rest is set aside."""
    accuracy_range: tuple[float, float] | None = None
    """Which groups teach: those whose share of right completions lies within these bounds (which
    are included); null is those whose rewards are not all equal. Takes effect with
    dynamic_sampling_rounds or oversample."""
    carry_over_steps: int = Field(0, ge=0)
    """For how many steps groups that teach may wait when their step has no room for them; they come
    first in the next, and fewer problems are drawn. They are as many versions old as they waited
    (beyond max_staleness). 0 sets them aside for good; 1 is enough, as fewer wait than a step
    needs."""
    max_staleness: int = Field(0, ge=0)
    """How many versions older than the policy the weights may be that a rollout is sampled with.
    0 samples and updates in turn; 1 samples the next rollout during the update; more lets the
    engine run further ahead. Needs an engine with weights of its own (vllm, vllm_server)."""


class PathwaySettings(Settings):
    """The pathways of a mixture of experts on a fixed set of problems."""

    problems: int = Field(64, ge=2)
    """Problems of the training data, and of each evaluation set, that are looked at."""
    pairs: int = Field(2000, ge=1)
    """Pairs of problems whose pathways are compared, at most."""
    response: str = "\\boxed{{{answer}}}"
    """What follows the prompt; {answer} is the reference answer."""


class EvaluationSettings(BaseEvaluation):
    """Held-out problems, answered by the running policy from time to time."""

    sets: dict[str, Source] = Field(default_factory=dict)
    """Evaluation sets by name; their problems go through the training template."""
    every: int = Field(10, ge=1)
    """Evaluate after every so many steps; also before the first and after the last."""
    samples: int = Field(1, ge=1)
    """Completions of each problem."""
    sampling: Sampling | None = None
    """How tokens are drawn; null is greedily, up to training's max_tokens."""
    pathways: PathwaySettings | None = None
    """Also measure how a mixture of experts routes some of the training and evaluation problems;
    null does not."""


class RLLogSettings(LogSettings):
    """What is written for people, and the ledger."""

    ledger: Literal["hashes", "tokens", "none"] = "hashes"
    """The run's ledger, which `rlvr audit` checks: every prompt drawn and its fate, every
    completion, the weights after each step. hashes: ids and log-probabilities as hashes. tokens:
    also themselves, so that a replay can say where it differs; some 25 bytes a token. none: no
    ledger."""


class RLRecipe(BaseRecipe):
    """Reinforcement learning from verifiable rewards: the recipe of ``rlvr train``."""

    task: Literal["rl"] = "rl"
    """What is trained: a policy, by reinforcement learning."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Order of problems, sampling, initialisation of adapters."""
    steps: int = Field(ge=1)
    """Rollouts to train on."""
    model: ModelSettings
    """The policy."""
    data: DataSettings
    """The training problems."""
    rollout: RolloutSettings = RolloutSettings()
    """Sampling of completions."""
    reward: RewardSettings = RewardSettings()
    """What a completion is worth."""
    environment: EnvironmentSettings | None = None
    """What answers the policy, in episodes of several turns; null ends every completion after one.
    Rewards are then the environment's, unless reward.functions says more."""
    advantage: Advantage = GroupAdvantage()
    """How rewards become advantages."""
    learner: LearnerSettings = LearnerSettings()
    """The optimizer."""
    critic: CriticSettings = CriticSettings()
    """The critic, where ``advantage`` is gae: a second model that starts as the policy's."""
    prime: PrimeSettings | None = None
    """An implicit process reward model that learns beside the policy and rewards its tokens
    (PRIME); null rewards outcomes alone."""
    router: RouterSettings | None = None
    """The routers of a mixture-of-experts policy: their losses and what is made of their choices;
    null leaves them to the policy loss, and is the only choice for a dense model."""
    policy_loss: PolicyLoss = Clip()
    """The policy-gradient loss."""
    correction: Correction = NoCorrection()
    """What is done about the difference between the engine's and the learner's probabilities."""
    filters: tuple[TokenFilter, ...] = ()
    """Which tokens take part in the policy loss; all where there is no filter."""
    regularisers: tuple[Regulariser, ...] = ()
    """Terms added to the loss."""
    reducer: Reducer = TokenMean()
    """How the loss over tokens becomes a number."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out problems."""
    alarms: RLAlarmSettings = RLAlarmSettings()
    """Signs that training goes wrong, and what is done about them."""
    log: RLLogSettings = RLLogSettings()
    """What is written for people, and the ledger."""

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str | None:
        """A loss that other tasks have and this one has not is told by the task that has it."""
        parts = [given.get("policy_loss"), *_listed(given.get("regularisers"))]
        names = [str(part.get("name")) for part in parts if isinstance(part, Mapping)]
        ours = {*PolicyLoss.registry(), *Regulariser.registry()}
        foreign = [name for name in names if not is_place(name) and name not in ours]
        for name in foreign:
            from rlvr.preference.losses.base import PreferenceLoss  # only a refusal needs them

            if loss := PreferenceLoss.registry().get(name):
                return f"{name} is refused in reinforcement learning: {loss.not_from_rewards}"
        return None

    @model_validator(mode="after")
    def _rewards_of_episodes(self) -> "RLRecipe":
        """Where an environment is set and no function, the reward is the environment's."""
        if self.environment is not None and "functions" not in self.reward.model_fields_set:
            functions = (RewardTerm(function="environment"),)
            self.__dict__["reward"] = self.reward.model_copy(update={"functions": functions})
        return self

    @model_validator(mode="after")
    def _possible(self) -> "RLRecipe":
        for fault in _impossible(self):
            raise ValueError(fault)
        return self

    def launch_faults(self, processes: int, zero_stage: int) -> list[str]:
        """See :meth:`BaseRecipe.launch_faults`."""
        faults = super().launch_faults(processes, zero_stage)
        if zero_stage == 3 and self.rollout.engine.name == "transformers":
            faults.append(
                "rollout.engine 'transformers' generates with the learner's own weights, which "
                "ZeRO 3 shards over processes; use vllm or vllm_server, or launch with ZeRO 2"
            )
        transfer = getattr(self.rollout.engine, "weight_transfer", "folder")
        if zero_stage == 3 and transfer != "folder":
            faults.append(
                f"rollout.engine.weight_transfer = {transfer!r} with ZeRO 3: a process that sends "
                "weights to its engine once more, as after a restart, would wait for the others, "
                "which hold a part of each; set it to folder"
            )
        if processes > 1 and self.rollout.max_staleness > 1:
            faults.append(
                f"rollout.max_staleness = {self.rollout.max_staleness} with several processes: "
                "which weights a rollout gets would depend on each one's timing; set it to 0 or 1"
            )
        return faults

    @property
    def holds_frozen_weights(self) -> bool:
        """See :meth:`BaseRecipe.holds_frozen_weights`."""
        terms = (self.policy_loss, *self.filters, *self.regularisers)
        compared = any(term.needs_reference for term in terms)
        compared = compared or getattr(self.advantage, "kl_in_reward", 0.0) > 0
        return compared or self.prime is not None or super().holds_frozen_weights

    @property
    def evaluation_sampling(self) -> Sampling:
        """How evaluation draws tokens."""
        return self.evaluation.sampling or Sampling(
            max_tokens=self.rollout.sampling.max_tokens, temperature=0.0
        )

    @property
    def oldest_rollout(self) -> int:
        """How many versions older than the policy the weights may be that a group comes from."""
        return self.rollout.max_staleness + self.rollout.carry_over_steps

    @property
    def completions_per_step(self) -> int:
        """Completions sampled in a step."""
        return self.rollout.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def longest_completion(self) -> int:
        """Most tokens of a completion of training, or behind the prompt of an episode."""
        if self.environment is not None:
            return self.environment.max_tokens
        return self.rollout.sampling.max_tokens

    @property
    def longest_sequence(self) -> int:
        """Most tokens that a prompt and its completion may have together."""
        longest = max(self.longest_completion, self.evaluation_sampling.max_tokens)
        return self.data.max_prompt_tokens + longest


def stale_warnings(recipe: RLRecipe) -> list[str]:
    """What is not what it says where rollouts come from older weights, each with its remedy."""
    learner, age = recipe.learner, f"rollouts up to {recipe.oldest_rollout} versions old"
    if not recipe.oldest_rollout:
        return []
    found = []
    if learner.old_logprobs_from == "learner" and not recipe.correction.active:
        found.append(
            f"warning: {age} are learnt from as if the policy had just sampled them: the ratio is "
            "that to the policy at the start of the updates, and correction is none; set "
            "correction.name = truncated or masked, or learner.old_logprobs_from = rollout"
        )
    parts = [recipe.policy_loss, *recipe.filters, *recipe.regularisers]
    names = [p.name for p in parts if p.active and (p.statistics or p.needs_step_entropy)]
    if names:
        found.append(
            f"warning: {', '.join(names)}: with {age} the statistics over the vocabulary are those "
            "of the policy at the start of the updates, as no engine reports those of the policy "
            "that sampled; for the paper's, set rollout.max_staleness and carry_over_steps to 0"
        )
    return found


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _impossible_episodes(recipe: RLRecipe) -> list[str]:
    """Faults of several turns."""
    if recipe.environment is None:
        if any(term.function == "environment" for term in recipe.reward.functions):
            return ["reward.functions names environment, and the recipe has none; set environment"]
        return []
    faults = []
    for where, sampling in (
        ("rollout", recipe.rollout.sampling),
        ("evaluation", recipe.evaluation_sampling),
    ):
        if sampling.max_tokens > recipe.environment.max_tokens:
            faults.append(
                f"{where}.sampling.max_tokens = {sampling.max_tokens}, the limit of a turn, is "
                f"above environment.max_tokens = {recipe.environment.max_tokens}, that of an "
                "episode; lower the first or raise the second"
            )
    if recipe.router is not None and recipe.router.replay:
        faults.append(
            "router.replay with environment: engines do not report the experts of tokens that "
            "an environment said; set router.replay to false"
        )
    return faults


def _impossible(recipe: RLRecipe) -> list[str]:
    """Combinations of valid settings that cannot work, each with its remedy."""
    rollout, sampling, faults = recipe.rollout, recipe.rollout.sampling, []
    if sampling.temperature == 0:
        faults.append(
            "rollout.sampling.temperature = 0 gives every sample of a problem the same tokens, so "
            "there is nothing to learn from; choose one above 0"
        )
    if sampling.truncates and recipe.policy_loss.uses_ratio:
        faults.append(
            f"rollout.sampling.top_p = {sampling.top_p} and top_k = {sampling.top_k} sample from "
            "another distribution than the one whose ratio policy_loss "
            f"{recipe.policy_loss.name!r} takes; set top_p = 1 and top_k = 0"
        )
    if rollout.samples_per_prompt < 2 and recipe.advantage.needs_siblings:
        faults.append(
            f"rollout.samples_per_prompt = {rollout.samples_per_prompt}: advantage "
            f"{recipe.advantage.name!r} compares a completion with others of its prompt; sample at "
            "least 2"
        )
    if recipe.learner.updates_per_rollout > rollout.prompts_per_step:
        faults.append(
            f"learner.updates_per_rollout = {recipe.learner.updates_per_rollout} cannot split "
            f"rollout.prompts_per_step = {rollout.prompts_per_step} prompts; lower it"
        )
    faults += _impossible_episodes(recipe)
    faults += _impossible_filter(rollout) + _impossible_prime(recipe) + _impossible_router(recipe)
    uncertainty = recipe.reward.uncertainty
    if (
        uncertainty is not None
        and uncertainty.apply == "advantages"
        and (recipe.advantage.needs_critic or recipe.prime is not None)
    ):
        faults.append(
            "reward.uncertainty.apply = 'advantages' weighs advantages that rewards alone give, "
            "and here a critic or process rewards take part in them; use apply: rewards"
        )
    faults += recipe.model.dropout_faults("reinforcement learning")
    engine, precision = rollout.engine, recipe.model.precision
    if rollout.max_staleness and not engine.overlaps:
        faults.append(
            f"rollout.max_staleness = {rollout.max_staleness} samples during the update, but "
            f"rollout.engine {engine.name!r} has no weights of its own then; choose the engine "
            "vllm or vllm_server (weight_transfer: folder, sleep: 0), or max_staleness = 0"
        )
    ratios = recipe.learner.old_logprobs_from
    if ratios == "rollout" and recipe.correction.active:
        faults.append(
            f"learner.old_logprobs_from = 'rollout' has the loss's own ratio correct for the "
            f"engine, which correction {recipe.correction.name!r} would do a second time; drop one"
        )
    if isinstance(engine, VllmEngineSettings) and engine.dtype not in ("auto", precision):
        faults.append(
            f"rollout.engine.dtype = {engine.dtype!r} rounds otherwise than model.precision = "
            f"{precision!r}: the samples would drift away from the policy; set dtype to auto"
        )
    if (
        isinstance(engine, VllmEngineSettings)
        and engine.lora == "adapter"
        and not recipe.model.lora
    ):
        faults.append(
            "rollout.engine.lora = 'adapter' sends adapters, but the policy has none; set "
            "model.lora, or rollout.engine.lora=merged"
        )
    faults += _impossible_parts(recipe)
    faults += impossible_layout(recipe) + impossible_exactness(recipe) + nothing_frozen(recipe)
    faults += impossible_names(recipe.evaluation.sets, "evaluation.sets")
    return faults


def _impossible_parts(recipe: RLRecipe) -> list[str]:
    loss, faults = recipe.policy_loss, []
    names = [term.name for term in (loss, *recipe.filters, *recipe.regularisers)]
    if len(set(names)) < len(names):
        faults.append(
            f"policy_loss, filters and regularisers {names} name one twice; merge their "
            "coefficients"
        )
    if loss.needs_reducer and recipe.reducer.name != loss.reducer_of_paper:
        faults.append(
            f"policy_loss {loss.name!r} is made for another mean than reducer = "
            f"{recipe.reducer.name!r}; set reducer.name = {loss.reducer_of_paper!r}"
        )
    return faults


def _impossible_filter(rollout: RolloutSettings) -> list[str]:
    bounds = rollout.accuracy_range
    if rollout.carry_over_steps and rollout.oversample == 1:
        return [
            f"rollout.carry_over_steps = {rollout.carry_over_steps} has nothing to keep, as no "
            "more is drawn than a step needs; set rollout.oversample above 1"
        ]
    if bounds is None:
        return []
    if not 0 <= bounds[0] <= bounds[1] <= 1:
        return [f"rollout.accuracy_range = {list(bounds)} is no range within [0, 1]"]
    if not rollout.dynamic_sampling_rounds and rollout.oversample == 1:
        return [
            f"rollout.accuracy_range = {list(bounds)} has nothing to choose from; set "
            "rollout.dynamic_sampling_rounds, or rollout.oversample above 1"
        ]
    return []


def _impossible_router(recipe: RLRecipe) -> list[str]:
    router, evaluation, faults = recipe.router, recipe.evaluation, []
    if (router or evaluation.pathways) and recipe.model.compile:
        faults.append(
            "router and evaluation.pathways read routers by hooks, which model.compile = true "
            "drops; set it to false"
        )
    if evaluation.pathways and TRAINING in evaluation.sets:
        faults.append(
            f"evaluation.pathways calls the training problems {TRAINING!r}, which "
            "evaluation.sets names too; rename that set"
        )
    if router is None:
        return faults
    if router.replay and router.against == "none":
        faults.append("router.replay needs choices to replay; set router.against to old or engine")
    if router.against == "old" and recipe.learner.updates_per_rollout == 1:
        faults.append(
            "router.against = 'old' compares the policy with itself, as "
            "learner.updates_per_rollout = 1 moves it after the only pass; raise that, or leave "
            "against out"
        )
    if router.needs_engine and recipe.rollout.engine.name != "transformers":
        faults.append(
            f"router.against = 'engine' needs an engine that tells where it sends tokens, which "
            f"rollout.engine {recipe.rollout.engine.name!r} does not here; use transformers, or old"
        )
    return faults


def _impossible_prime(recipe: RLRecipe) -> list[str]:
    prime = recipe.prime
    faults: list[str] = []
    if prime is None:
        return faults
    step_starts("", prime.steps)  # says what is wrong with a pattern
    baseline = prime.returns.baseline
    if recipe.rollout.samples_per_prompt < 2 and baseline in ("leave_one_out", "group"):
        faults.append(
            f"prime.returns.baseline = {baseline!r} compares completions of a prompt, of which "
            f"rollout.samples_per_prompt = {recipe.rollout.samples_per_prompt} samples too few; "
            "sample at least 2, or use none"
        )
    if prime.update == "reverse" and recipe.rollout.samples_per_prompt == 1:
        faults.append(
            "prime.update = 'reverse' compares completions of a prompt, of which "
            "rollout.samples_per_prompt = 1 gives one; draw more, or use after"
        )
    if prime.best_of_n_weights and prime.update != "reverse":
        faults.append(
            f"prime.best_of_n_weights weighs comparisons, which prime.update = {prime.update!r} "
            "does not make; use reverse, or leave it out"
        )
    if prime.model is not None and prime.update == "none" and prime.model.lora is not None:
        faults.append(
            "prime.model.lora are fresh adapters, which prime.update = 'none' leaves untrained: "
            "every reward would be 0; leave them out"
        )
    start, reference = prime.model or recipe.model, prime.reference or recipe.model
    if prime.update == "none" and start.path == reference.path:
        faults.append(
            "prime.update = 'none' keeps a reward model that equals its reference, so every reward "
            "is 0; train it (after, before, reverse), or name a trained one in prime.model.path"
        )
    return faults
