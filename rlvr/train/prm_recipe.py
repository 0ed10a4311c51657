"""The schema of a recipe with ``task: prm``: an implicit process reward model from outcomes."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlvr.data import TemplateChoice, load_template
from rlvr.policy import ModelSettings
from rlvr.preference.losses import PreferenceLoss
from rlvr.prm import PrmObjective, takes_pairs
from rlvr.prm.objectives import CeSettings
from rlvr.settings import Settings
from rlvr.train.base_recipe import (
    BaseEvaluation,
    BaseRecipe,
    impossible_names,
    rollout_only,
)


class LabelledData(Settings):
    """Where labelled responses come from and how they become tokens."""

    sources: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of responses (prompt, response, correct), or run folders, which stand for the
    completions that the run kept."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("raw").settings)
    """How a prompt becomes tokens: the name of a built-in template, a YAML file, or the template
    itself. raw takes prompts that are rendered already, as a run keeps them."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Responses to a longer prompt are left out (and counted), never cut."""
    max_response_tokens: int = Field(4096, ge=1)
    """Longer responses are left out (and counted), never cut."""
    per_step: int = Field(64, ge=1)
    """Responses (or pairs) of an optimizer step."""
    shuffle: bool = True
    """Visit them in a new random order in every epoch."""


class PrmData(LabelledData):
    """Where labelled responses come from, or with the objective steps solutions in steps."""

    sources: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of responses (prompt, response, correct), or run folders, which stand for the
    completions that the run kept. With the objective steps: solutions in steps with step_labels or
    label, the index of the first wrong step (-1 where there is none)."""
    steps: str = "blank_lines"
    """Where the steps of a response are that is not given in steps: blank_lines, numbered, lines,
    or a pattern at whose matches steps begin. For the objectives steps and bag alone."""


class PrmEvaluation(BaseEvaluation):
    """Held-out responses that the reward model is measured on from time to time."""

    responses: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    """Labelled responses by name, as ``data.sources``."""


class PrmRecipe(BaseRecipe):
    """Training an implicit process reward model: the recipe of ``task: prm``."""

    task: Literal["prm"]
    """What is trained: an implicit process reward model, from labels of whole responses."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Order of the data, balance, initialisation of adapters."""
    model: ModelSettings
    """The reward model, which as it is before training is also the reference."""
    reference: ModelSettings | None = None
    """Another frozen reference: a second stage starts from the first one's reward model and keeps
    the reference of that."""
    data: PrmData
    """The labelled responses."""
    objective: PrmObjective = CeSettings()
    """What it is trained with."""
    use_reference: bool = True
    """Train the log-ratio to the reference; false trains the log-probability alone."""
    evaluation: PrmEvaluation = PrmEvaluation()
    """Held-out responses."""

    @model_validator(mode="after")
    def _possible(self) -> "PrmRecipe":
        for fault in _impossible(self):
            raise ValueError(fault)
        return self

    @property
    def losses(self) -> tuple[PreferenceLoss, ...]:
        """The objective as a preference loss."""
        return (self.objective.loss,)

    @property
    def kind(self) -> Literal["pairs", "labelled"]:
        """What the objective learns from."""
        return "pairs" if takes_pairs(self.objective) else "labelled"

    @property
    def in_steps(self) -> bool:
        """Whether it learns from labels of steps."""
        return self.objective.name == "steps"

    @property
    def in_bags(self) -> bool:
        """Whether the label of a response is for the bag of its steps."""
        return self.objective.name == "bag"

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under the reference are to be taken."""
        return self.use_reference

    @property
    def live_reference(self) -> bool:
        """Whether they are taken in every step: KTO's baseline needs completions of its own."""
        return self.objective.name == "kto"

    ld_alpha: ClassVar[float | None] = None  # modifiers of preference losses
    weighting: ClassVar[bool] = False


def _impossible(recipe: PrmRecipe) -> list[str]:
    """Combinations of valid settings that cannot work, each with its remedy."""
    faults = []
    if recipe.objective.name == "kto" and not recipe.use_reference:
        faults.append(
            "objective 'kto' compares with its distance from the reference, which use_reference = "
            "false leaves out; use ce"
        )
    if recipe.reference is not None and not recipe.use_reference:
        faults.append(
            f"reference = {recipe.reference.path!r} goes with use_reference = true; leave one out"
        )
    if recipe.data.steps != "blank_lines" and not (recipe.in_steps or recipe.in_bags):
        faults.append(
            f"data.steps = {recipe.data.steps!r} means nothing to the objective "
            f"{recipe.objective.name!r}, which takes whole responses; leave it out"
        )
    faults += rollout_only(recipe.learner, "a reward model")
    faults += impossible_names(recipe.evaluation.responses, "evaluation.responses")
    return faults
