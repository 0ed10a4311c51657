"""The schema of a recipe with ``task: preference``."""

from typing import Literal

from pydantic import Field, model_validator

from rlvr.data import Source, TemplateChoice, load_template
from rlvr.data.preferences import PreferenceSource
from rlvr.policy import ModelSettings
from rlvr.preference.losses import AnyLoss, UnpairedLoss
from rlvr.preference.resample import Resampling
from rlvr.rollout import Sampling
from rlvr.settings import Settings
from rlvr.train.base_recipe import (
    BaseEvaluation,
    BaseRecipe,
    impossible_layout,
    impossible_names,
    rollout_only,
)


class PreferenceData(Settings):
    """Where the preferences come from and how they become tokens."""

    source: PreferenceSource
    """The preferences: a file, or a data set of the Hub."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("plain").settings)
    """How a prompt becomes tokens: the name of a built-in template, a YAML file, or the template
    itself. ``raw`` takes prompts that are rendered already, such as those of ``rlvr pairs``."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Preferences with a longer prompt are left out (and counted), never cut."""
    max_completion_tokens: int = Field(1024, ge=1)
    """Preferences with a longer completion are left out (and counted), never cut."""
    per_step: int = Field(32, ge=1)
    """Pairs (or labelled completions) of an optimizer step."""
    shuffle: bool = True
    """Visit them in a new random order in every epoch."""
    resample: Resampling | None = None
    """For noisy labels: in the place of each pair of a step, draw one of its prompt by loss (PLD);
    null takes the pairs as they come."""


class ReferenceSettings(Settings):
    """How log-probabilities under the frozen reference, the model of the recipe, are had."""

    mode: Literal["auto", "precomputed", "live"] = "auto"
    """precomputed: once for all data before training, kept in the run folder; no second model is
    held. live: in every step, from a second model, or from the policy with its adapters off. auto
    is live where a loss needs other completions than the data's (kto), else precomputed."""


class PreferenceEvaluation(BaseEvaluation):
    """Held-out pairs that are measured, and problems that the policy answers, from time to time."""

    pairs: dict[str, PreferenceSource] = Field(default_factory=dict)
    """Held-out preferences by name, of the same kind as the training data."""
    sets: dict[str, Source] = Field(default_factory=dict)
    """Problems by name; the policy's answers are graded by the verifier."""
    template: TemplateChoice | None = None
    """Template of the problems; null is that of the data."""
    samples: int = Field(1, ge=1)
    """Completions of each problem."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=0.0)
    """How the policy's answers are drawn."""


class PreferenceRecipe(BaseRecipe):
    """Learning from preferences: the recipe of ``rlvr train`` with ``task: preference``."""

    task: Literal["preference"]
    """What is trained: a policy, from preferences."""
    model: ModelSettings
    """The policy, which as it is before training is also the reference."""
    data: PreferenceData
    """The preferences."""
    losses: tuple[AnyLoss, ...] = Field(min_length=1)
    """One loss, or a mixture of several with weights."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """Length desensitising (LD-DPO): weight of tokens beyond the shorter side's length."""
    weighting: bool = False
    """Weigh pairs by how probable the policy finds them (WPO), for one more forward pass."""
    reference: ReferenceSettings | None = None
    """How reference log-probabilities are had; leave it out for losses without a reference."""
    evaluation: PreferenceEvaluation = PreferenceEvaluation()
    """Held-out preferences and problems."""

    @model_validator(mode="after")
    def _possible(self) -> "PreferenceRecipe":
        for fault in _impossible(self):
            raise ValueError(fault)
        return self

    @property
    def kind(self) -> Literal["pairs", "labelled"]:
        """What the losses learn from."""
        return "labelled" if isinstance(self.losses[0], UnpairedLoss) else "pairs"

    @property
    def needs_reference(self) -> bool:
        """Whether a loss looks at the reference."""
        return any(loss.needs_reference for loss in self.losses)

    @property
    def live_reference(self) -> bool:
        """Whether reference log-probabilities are taken in every step."""
        mode = self.reference.mode if self.reference else "auto"
        return self.needs_reference and (mode == "live" or (mode == "auto" and self._mismatched))

    @property
    def _mismatched(self) -> bool:
        return any(loss.name == "kto" for loss in self.losses)

    @property
    def evaluation_sampling(self) -> Sampling:
        """How evaluation draws tokens."""
        return self.evaluation.sampling


def _impossible(recipe: PreferenceRecipe) -> list[str]:
    """Combinations of valid settings that cannot work, each with its remedy."""
    faults = []
    names = [loss.name for loss in recipe.losses]
    kinds = {isinstance(loss, UnpairedLoss) for loss in recipe.losses}
    if len(kinds) > 1:
        faults.append(
            f"losses {names} mix losses over pairs with losses over single completions; use one "
            "kind"
        )
    if recipe.reference is not None and not recipe.needs_reference:
        faults.append(
            f"reference is given, but no loss of {names} looks at a reference; leave it out"
        )
    if recipe.reference and recipe.reference.mode == "precomputed" and recipe._mismatched:
        faults.append(
            "reference.mode = 'precomputed' cannot serve the loss 'kto', which takes completions "
            "of other prompts in every step; use live"
        )
    if (recipe.ld_alpha is not None or recipe.weighting) and recipe.kind == "labelled":
        faults.append(
            f"ld_alpha and weighting compare the sides of a pair, which the losses {names} do not "
            "have; leave them out"
        )
    if recipe.weighting and any(loss.whole_step for loss in recipe.losses):
        faults.append("weighting is of pairs, but aot sorts each side by itself; drop one of them")
    faults += rollout_only(recipe.learner, "preference losses") + impossible_layout(recipe)
    if recipe.data.resample is not None and recipe.kind == "labelled":
        faults.append(
            f"data.resample draws pairs of a prompt, but the losses {names} take single "
            "completions; leave it out"
        )
    if recipe.data.resample is not None and any(loss.whole_step for loss in recipe.losses):
        faults.append(
            "data.resample compares losses of single pairs, but aot's is of a whole step; drop one"
        )
    return faults + _impossible_names(recipe.evaluation)


def _impossible_names(evaluation: PreferenceEvaluation) -> list[str]:
    faults = impossible_names((*evaluation.pairs, *evaluation.sets), "evaluation")
    for name in evaluation.pairs.keys() & evaluation.sets.keys():
        faults.append(f"evaluation.pairs and evaluation.sets both name {name!r}; rename one")
    return faults
