"""The schema of a recipe with ``task: reward_model``: an explicit outcome reward model."""

from typing import Literal

from pydantic import Field, model_validator

from rlvr.learner import OptimizerSettings
from rlvr.policy import ModelSettings
from rlvr.rm import (
    AnyRewardLoss,
    Cape,
    HeadSettings,
    LastToken,
    PairSettings,
    PointwiseCrossEntropy,
)
from rlvr.train.base_recipe import (
    BaseRecipe,
    impossible_layout,
    impossible_names,
    rollout_only,
    without_hub,
)
from rlvr.train.prm_recipe import LabelledData, PrmEvaluation

HELD_OUT = "held_out"
"""Name of the evaluation set that ``data.hold_out`` makes."""


class RewardModelData(LabelledData):
    """Where labelled responses come from and how they become tokens."""

    per_step: int = Field(64, ge=1)
    """Items of an optimizer step: pairs, single responses, or (ldr) prompts with all of theirs."""
    part: Literal["response", "prompt"] = "response"
    """What the model reads. prompt leaves the response out: what is learned from its label is the
    pass rate of the policy that sampled it, which problems can be chosen by."""
    hold_out: float = Field(0.0, ge=0, lt=1)
    """Share of the problems, with all their responses, that is not trained on and makes the
    evaluation set held_out."""


class RewardModelEvaluation(PrmEvaluation):
    """Held-out responses that the reward model is measured on from time to time."""

    keep_best: str | None = None
    """Name of a set: what is exported in the end is the model that was best on it, instead of the
    last. Best is the lowest log-loss, or where the loss leaves the level of rewards open the
    highest AUC within prompts."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row that were not the best; null trains to the end."""


class RewardModelRecipe(BaseRecipe):
    """Training an explicit outcome reward model: the recipe of ``task: reward_model``."""

    task: Literal["reward_model"]
    """What is trained: a scalar reward of whole responses, from the verifier's labels."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Which pairs and held-out problems, order of the data, initialisation of head and adapters."""
    model: ModelSettings
    """The language model under the head. A folder that holds a head goes on from it."""
    data: RewardModelData
    """The labelled responses."""
    head: HeadSettings = LastToken()
    """What reads a reward off the hidden states."""
    head_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the head, which starts from nothing; null is ``learner.lr``."""
    loss: AnyRewardLoss = PointwiseCrossEntropy()
    """What it is trained with."""
    pairs: PairSettings = PairSettings()
    """Which pairs, where the loss takes pairs."""
    calibration: Cape | None = None
    """Go on with a model that was trained by cross-entropy, and stopped early, until its
    probabilities are calibrated; null trains on the labels."""
    evaluation: RewardModelEvaluation = RewardModelEvaluation()
    """Held-out responses."""

    @model_validator(mode="after")
    def _possible(self) -> "RewardModelRecipe":
        for fault in _impossible(self):
            raise ValueError(fault)
        return self

    @property
    def head_optimizer(self) -> OptimizerSettings:
        """The head's: as the language model's, but for the rate."""
        shared = {
            name: getattr(self.learner, name)
            for name in OptimizerSettings.model_fields
            if name != "lr"
        }
        return OptimizerSettings(lr=self.head_lr or self.learner.lr, **shared)


def _impossible(recipe: RewardModelRecipe) -> list[str]:
    """Combinations of valid settings that cannot work, each with its remedy."""
    faults, loss, sets = [], recipe.loss, recipe.evaluation.responses
    if recipe.pairs != PairSettings() and loss.unit != "pairs":
        faults.append(
            f"pairs are given, but the loss {loss.name!r} takes none; leave them out, or use "
            "bradley_terry"
        )
    if recipe.calibration is not None and loss.name == "ce" and loss.tau != 1:
        faults.append(
            f"calibration wants probabilities, which loss.tau = {loss.tau} does not give; use 1"
        )
    if recipe.calibration is not None and loss.name != "ce":
        faults.append(
            f"calibration makes soft labels, which the loss {loss.name!r} does not take; use ce"
        )
    if recipe.data.part == "prompt" and loss.name != "ce":
        faults.append(
            f"data.part = 'prompt' gives all responses to a prompt one reward, so the loss "
            f"{loss.name!r} has nothing to compare; use ce"
        )
    if recipe.data.hold_out and HELD_OUT in sets:
        faults.append(
            f"data.hold_out makes an evaluation set {HELD_OUT!r}, which evaluation.responses "
            "names too; rename that, or leave hold_out out"
        )
    names = [*sets, *([HELD_OUT] if recipe.data.hold_out else [])]
    best = recipe.evaluation.keep_best
    if best is not None and best not in names:
        faults.append(
            f"evaluation.keep_best = {best!r} is not one of the evaluation sets {names}; name one, "
            "or set data.hold_out"
        )
    if recipe.evaluation.patience is not None and best is None:
        faults.append(
            "evaluation.patience counts from the best evaluation, which evaluation.keep_best has "
            "to name the set of"
        )
    faults += rollout_only(recipe.learner, "a reward model") + impossible_layout(recipe)
    faults += without_hub(recipe, "reward models")
    return faults + impossible_names(sets, "evaluation.responses")
