"""What an explicit reward model is trained with: losses of the rewards that its head gives.

The language model is the store's policy, with its own rate; the head is an auxiliary model with
another. A response that several examples of a micro-batch share is run once.
"""

from collections.abc import Callable, Mapping
from statistics import fmean

import torch

from rlvr.data.examples import Examples
from rlvr.learner.launch import Launch
from rlvr.learner.offline import (
    ForwardPass,
    Numbers,
    OfflineLearner,
    OfflineStep,
    PromptAndCompletion,
    Statistic,
)
from rlvr.learner.partition import Rows
from rlvr.learner.settings import OptimizerSettings, UpdateSettings
from rlvr.policy.model import Policy
from rlvr.reward_models.heads import OutcomeRewardModel
from rlvr.reward_models.outcome_losses import RewardLoss

HEAD = "reward_head"


class ResponseRewards(Statistic):
    """The reward [1] of a single response."""

    def size(self, examples: Examples) -> tuple[int, ...]:
        """One."""
        return (1,)

    def values(self, run: ForwardPass) -> torch.Tensor:
        """Rewards [b, 1]."""
        return run.forward(run=(HEAD,)).auxiliary[HEAD][:, None]


class HeadRewards(Statistic):
    """Numbers [K] of an example: rewards of its responses, the first again where it has fewer."""

    def sequences(self, examples: Examples, micro: Rows) -> list[PromptAndCompletion]:
        """The responses of the examples, each once, in the order of the data."""
        return [
            (examples.prompt_ids[row], examples.completion_ids[row])
            for row in _responses(examples, micro)
        ]

    def size(self, examples: Examples) -> tuple[int, ...]:
        """K."""
        return (examples.most,)

    def values(self, run: ForwardPass) -> torch.Tensor:
        """Rewards [b, K]."""
        rewards_U = run.forward(run=(HEAD,)).auxiliary[HEAD]
        place = {row: index for index, row in enumerate(_responses(run.examples, run.micro))}
        rows = run.examples.rows_NK[list(run.micro)].tolist()
        index_BK = torch.tensor([[place[row] for row in own] for own in rows])
        return rewards_U[index_BK.to(rewards_U.device)]


class HeadRewardLoss:
    """A loss of an explicit reward model, as the learner takes it."""

    grad_norms: Mapping[str, str] = {HEAD: "rm/head_grad_norm"}
    whole_step = False

    def __init__(self, loss: RewardLoss) -> None:
        self.loss, self.statistic = loss, HeadRewards()

    def begin(self, learner: OfflineLearner, examples: Examples) -> OfflineStep:
        """The mean over the step's examples."""
        return OfflineStep(examples, len(examples))

    def losses(self, micro: OfflineStep, values: torch.Tensor) -> tuple[torch.Tensor, Numbers]:
        """Loss [b], and rewards by outcome, of pairs the differences by kind."""
        examples, mask_IK = micro.examples, micro.examples.mask_NK
        values = values[:, : examples.most]
        targets_IK = examples.column("target").to(values)
        loss_I = self.loss(values, targets_IK, mask_IK.to(values.device))
        rewards_IK = values.detach().cpu()
        right_IK = examples.column("label") > 0.5
        numbers = {
            "right": rewards_IK[mask_IK & right_IK].tolist(),
            "wrong": rewards_IK[mask_IK & ~right_IK].tolist(),
        }
        if self.loss.unit == "pairs":
            d_I, tie_I = rewards_IK[:, 0] - rewards_IK[:, 1], right_IK[:, 1]
            numbers |= {"margin": d_I[~tie_I].tolist(), "tie_gap": d_I[tie_I].abs().tolist()}
        return loss_I, numbers

    def metrics(self, numbers: Numbers, step: OfflineStep) -> dict[str, float]:
        """Means over the step; what it has none of is left out."""
        names = {"right": "reward_right", "wrong": "reward_wrong"}
        metrics = {f"rm/{names.get(name, name)}": fmean(v) for name, v in numbers.items() if v}
        if numbers.get("margin"):
            margins = numbers["margin"]
            metrics["rm/accuracy"] = fmean(0.5 if d == 0 else float(d > 0) for d in margins)
        return metrics


def reward_model_learner(
    model: OutcomeRewardModel,
    loss: RewardLoss,
    settings: UpdateSettings,
    head: OptimizerSettings,
    *,
    total_updates: int = 1,
    launch: Launch | None = None,
    seed: int = 0,
) -> OfflineLearner:
    """What trains an explicit reward model.

    Args:
        model: Language model and head.
        loss: What it is trained with.
        settings: Optimizer of the language model, and batching.
        head: Optimizer of the head.
        total_updates: Length of the learning-rate schedule.
        launch: The processes of the job and what holds the parameters; None is this process alone.
        seed: Of the run, for what is rounded at random.

    Raises:
        ValueError: Packing is asked for, and does not give this model's numbers.
    """
    _freeze_output_head(model.policy)
    return OfflineLearner(
        model.policy,
        HeadRewardLoss(loss),
        settings,
        total_updates=total_updates,
        launch=launch,
        auxiliary={HEAD: (model, head)},
        # A head that reads whole layers projects a packed row once for each completion on it, so
        # there padding is the cheaper way.
        packing=not model.head.all_layers,
        seed=seed,
    )


def response_rewards(
    learner: OfflineLearner,
    examples: Examples,
    progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Rewards [M] in float64 of all responses, in their order, without gradient; collective."""
    single = examples.of_completions(range(len(examples.prompt_ids)))
    return learner.values(single, progress=progress, statistic=ResponseRewards())[:, 0].double()


def _responses(examples: Examples, micro: Rows) -> list[int]:
    return sorted({row for example in micro for row in examples.rows[example]})


def _freeze_output_head(policy: Policy) -> None:
    """Nothing reads the output head's own weights, which therefore get neither gradient nor decay.

    A head that is tied to the embeddings is trained as these.
    """
    head = policy.causal_lm.get_output_embeddings()
    embeddings = policy.causal_lm.get_input_embeddings()
    if head.weight is not embeddings.weight:
        head.requires_grad_(False)
