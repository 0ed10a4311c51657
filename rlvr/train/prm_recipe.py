"""The schema of a recipe with ``task: prm``: an implicit process reward model from outcomes."""

import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rlvr.data import TemplateChoice, load_template
from rlvr.hub.settings import HubSettings
from rlvr.learner import LearnerSettings
from rlvr.policy import ModelSettings
from rlvr.preference.losses import PreferenceLoss
from rlvr.prm import PrmObjective, takes_pairs
from rlvr.prm.objectives import CeSettings
from rlvr.settings import Settings
from rlvr.train.recipe import CheckpointSettings, LogSettings


class PrmData(Settings):
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


class PrmEvaluation(Settings):
    """Held-out responses that the reward model is measured on from time to time."""

    responses: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    """Labelled responses by name, as ``data.sources``."""
    every: int = Field(20, ge=1)
    """Measure after every so many steps; also before the first and after the last."""


class PrmRecipe(Settings):
    """Training an implicit process reward model: the recipe of ``task: prm``."""

    task: Literal["prm"]
    """What is trained: an implicit process reward model, from labels of whole responses."""
    output: Path
    """Folder of the run; everything it writes is in there."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Order of the data, balance, initialisation of adapters."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    model: ModelSettings
    """The reward model, which as it is before training is also the reference."""
    data: PrmData
    """The labelled responses."""
    objective: PrmObjective = CeSettings()
    """What it is trained with."""
    use_reference: bool = True
    """Train the log-ratio to the reference; false trains the log-probability alone."""
    learner: LearnerSettings = LearnerSettings()
    """The optimizer."""
    evaluation: PrmEvaluation = PrmEvaluation()
    """Held-out responses."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """What is kept to continue from."""
    hub: HubSettings | None = None
    """A repository of the Hugging Face Hub that checkpoints and the final model are sent to."""
    log: LogSettings = LogSettings()
    """What is written for people."""

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
    for name in ("updates_per_rollout", "ratio_against", "skip_zero_advantage"):
        default = LearnerSettings.model_fields[name].default
        if getattr(recipe.learner, name) != default:
            faults.append(
                f"learner.{name} = {getattr(recipe.learner, name)} means nothing to a reward "
                "model; leave it out"
            )
    for name in recipe.evaluation.responses:
        if not re.fullmatch(r"[\w.-]+", name):
            faults.append(
                f"evaluation.responses names {name!r}; a name becomes part of a metric's: letters, "
                "digits, dots, underscores and hyphens"
            )
    return faults
