"""What every recipe has, whatever its task."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rlvr.data import Source, TemplateChoice, load_template
from rlvr.learner.settings import UpdateSettings
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.sampling import Sampling
from rlvr.runs.alarm_settings import AlarmSettings
from rlvr.runs.hub_settings import HubSettings
from rlvr.runs.tracker_settings import TrackSettings
from rlvr.settings import Settings


class BaseEvaluation(Settings):
    """When a run is measured."""

    every: int = Field(20, ge=1)
    """Evaluate after every so many steps; also before the first and after the last."""


class CheckpointSettings(Settings):
    """What is kept to continue from."""

    every: int = Field(20, ge=1)
    """Write a checkpoint after every so many steps; always after the last."""
    keep: int = Field(2, ge=1)
    """How many of the newest remain."""
    background: bool = False
    """Write while training goes on, from copies in host memory; one at a time. A kill loses at most
    the checkpoint that is being written."""


class WatchdogSettings(Settings):
    """When a phase of the loop is taken to hang; the process is then ended with all stacks."""

    factor: float = Field(20.0, gt=1)
    """Times its median that a phase may last."""
    least_s: float = Field(600.0, gt=0)
    """Seconds that any phase may last."""
    first_s: float = Field(7200.0, gt=0)
    """Seconds that a phase may last which was not seen before."""


class LogSettings(TrackSettings):
    """What is written for people."""

    completions_per_step: int = Field(32, ge=0)
    """Training completions kept at each step: as many whole groups as that holds, at least one;
    0 keeps none."""
    completions_every: int = Field(1, ge=1)
    """Keep them at every so many steps."""
    watch_tokens: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Sets of words by name, such as exploratory: [but, wait]; count and probabilities of the
    sampled tokens that are one of them are logged."""
    watch_words: tuple[str, ...] = ()
    """Words such as rethink; the share of responses that hold each is logged, in
    training and in evaluation."""


class BaseRecipe(Settings):
    """The settings that the recipes of all tasks share.

    A task's recipe extends this class, declares ``task`` as a literal of its name and ``data`` as
    its own. It declares another field anew only to give it a help text, or a default, of its own.
    """

    task: str
    """What is trained, and how."""
    output: Path
    """Folder of the run; everything it writes is in there."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Order of the data, initialisation of adapters."""
    deterministic: bool = False
    """Use only operations that give the same bits every time on the same GPU and software: they are
    slower, and an operation that has no such form ends the run. Without it a run on a GPU repeats
    only up to rounding. On a CPU it changes nothing."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    model: ModelSettings
    """The model that is trained."""
    data: Settings
    """What it learns from."""
    learner: UpdateSettings = UpdateSettings()
    """The optimizer."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """What is kept to continue from."""
    hub: HubSettings | None = None
    """A repository of the Hugging Face Hub that checkpoints and the final model are sent to."""
    watchdog: WatchdogSettings | None = WatchdogSettings()
    """Ends a run that hangs; null lets it."""
    log: LogSettings = LogSettings()
    """What is written for people."""
    alarms: AlarmSettings = AlarmSettings()
    """Signs that training goes wrong, and what is done about them."""

    def zero_stage(self, launched: int) -> int:
        """The stage of DeepSpeed that a launch with one comes to; 0 is none.

        Exact sums of gradients are whole in every process, and so are the weights beside them.
        """
        return min(launched, 2) if self.learner.exact else launched

    def launch_faults(self, processes: int, zero_stage: int) -> list[str]:
        """Why so many processes under so much of DeepSpeed cannot carry it out, with remedies.

        Args:
            processes: Of the learner, on all nodes.
            zero_stage: DeepSpeed's stage; 0 is none.
        """
        return impossible_memory(self, processes, zero_stage)

    @property
    def holds_frozen_weights(self) -> bool:
        """Whether ``model`` names weights that are held and not trained."""
        return self.model.lora is not None


class OfflineData(Settings):
    """Data that are there before the run begins."""

    template: TemplateChoice = Field(default_factory=lambda: load_template("plain").settings)
    """How a prompt becomes tokens: the name of a built-in template, a YAML file, or the template
    itself."""
    per_step: int = Field(32, ge=1)
    """Examples of an optimizer step."""
    shuffle: bool = True
    """Visit them in a new random order in every epoch."""


class ProblemEvaluation(BaseEvaluation):
    """When a run is measured, and problems that the model answers then."""

    sets: dict[str, Source] = Field(default_factory=dict)
    """Problems by name; the model's answers are graded by the verifier."""
    template: TemplateChoice | None = None
    """Template of the problems; null is that of the data."""
    samples: int = Field(1, ge=1)
    """Completions of each problem."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=0.0)
    """How the model's answers are drawn."""


class OfflineRecipe(BaseRecipe):
    """What the recipes of all tasks without rollouts share."""

    data: OfflineData
    """What it learns from."""
    evaluation: BaseEvaluation = BaseEvaluation()
    """What is measured from time to time."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for fault in self.faults():
            raise ValueError(fault)
        return self

    def faults(self) -> list[str]:
        """Combinations of valid settings that cannot work, each with its remedy."""
        return impossible_layout(self) + impossible_exactness(self) + nothing_frozen(self)

    def launch_faults(self, processes: int, zero_stage: int) -> list[str]:
        """See :meth:`BaseRecipe.launch_faults`."""
        asked, faults = self.evaluation, super().launch_faults(processes, zero_stage)
        if zero_stage < 3 or not isinstance(asked, ProblemEvaluation) or not asked.sets:
            return faults
        return [
            *faults,
            f"evaluation.sets names {min(asked.sets)!r}, whose problems are answered with the "
            "learner's own weights, which ZeRO 3 shards; leave the sets out and evaluate the model "
            "afterwards by rlvr eval, or launch with ZeRO 2",
        ]


def impossible_layout(recipe: BaseRecipe) -> list[str]:
    """What is wrong with the layout of micro-batches, with its remedy."""
    if recipe.learner.layout == "packed" and recipe.model.attention not in ("sdpa", "eager"):
        return [
            f"learner.layout = 'packed' needs a block mask, which model.attention = "
            f"{recipe.model.attention!r} does not take; use sdpa or layout padded"
        ]
    return []


def impossible_exactness(recipe: BaseRecipe) -> list[str]:
    """What cannot give the same bits however a step is split, with its remedy."""
    if not recipe.learner.exact:
        return []
    faults, model = [], recipe.model
    if recipe.learner.in_backward is not None:
        faults.append(
            f"learner.exact = true adds whole gradients exactly, and learner.in_backward = "
            f"{recipe.learner.in_backward!r} drops them as they come; leave one of them out"
        )
    asked = {"model.dropout": model.dropout}
    asked["model.lora.dropout"] = model.lora.dropout if model.lora else None
    faults += [
        f"learner.exact = true with {name} = {value}: what is dropped depends on who runs a "
        f"completion, and when; set {name} to 0, or learner.exact=false"
        for name, value in asked.items()
        if value
    ]
    return faults


def nothing_frozen(recipe: BaseRecipe) -> list[str]:
    """What is wrong with a precision of frozen weights where there are none."""
    asked = recipe.model.frozen_weights
    if asked in (None, "float32") or recipe.holds_frozen_weights:
        return []
    return [
        f"model.frozen_weights = {asked!r}, but all weights are trained and no reference is held; "
        "train adapters (model.lora), or leave it out"
    ]


def impossible_memory(recipe: BaseRecipe, processes: int, zero_stage: int) -> list[str]:
    """What the processes of a launch cannot hold as the settings say, with its remedy."""
    faults, model, learner = [], recipe.model, recipe.learner
    if learner.in_backward is not None and (processes > 1 or zero_stage):
        faults.append(
            f"learner.in_backward = {learner.in_backward!r} drops gradients before other processes "
            "could add theirs; leave it out, or launch one process without DeepSpeed"
        )
    if not zero_stage:
        return faults
    asked: dict[str, str] = {
        "model.weights": model.weights,
        "learner.optimizer_states": learner.optimizer_states,
    }
    if model.lora is not None:
        asked["model.frozen_weights"] = model.frozen_weights or "float32"
    return faults + [
        f"{name} = {value!r}: DeepSpeed shards float32 alone here; leave it out, or launch without "
        "DeepSpeed"
        for name, value in asked.items()
        if value != "float32"
    ]


def impossible_names(names: Iterable[str], key: str) -> list[str]:
    """Names of evaluation sets, given under ``key``, that no metric can have."""
    return [
        f"{key} names {name!r}; a name becomes part of a metric's: letters, digits, dots, "
        "underscores and hyphens"
        for name in names
        if not re.fullmatch(r"[\w.-]+", name)
    ]


def without_hub(recipe: BaseRecipe, whom: str) -> list[str]:
    """What is wrong with sending checkpoints of a task that are no plain causal LM to the Hub."""
    if recipe.hub is None:
        return []
    return [
        f"hub.repo = {recipe.hub.repo!r}: checkpoints of {whom} are not sent to the Hub; leave it "
        "out, and upload the run's model folder when it is done"
    ]
