"""The schema of a recipe with ``task: distill``: what ``rlvr distill`` generates and keeps."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlvr.data import Source, TemplateChoice, load_template
from rlvr.distill.lockstep import TransformersTraceSettings
from rlvr.distill.models import TraceModel
from rlvr.distill.rule import RuleSettings
from rlvr.distill.vllm_lane import VllmTraceSettings
from rlvr.distill.vocabulary import VocabularySettings
from rlvr.settings import Settings

TraceEngineSettings = Annotated[
    TransformersTraceSettings | VllmTraceSettings, Field(discriminator="name")
]


class TraceData(Settings):
    """Where the problems come from and how they become prompts."""

    source: Source
    """The problems: a Hub data set, a file, a reasoning-gym task, or generated arithmetic."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("qwen_math").settings)
    """How a problem becomes the student's prompt: the name of a built-in template, a YAML file, or
    the template itself."""
    teacher_template: TemplateChoice | None = None
    """Another prompt for the teacher, through its own tokenizer; null gives it the student's."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Problems whose prompt is longer are left out (and counted), never cut."""


class FilterSettings(Settings):
    """Which traces are kept, in the order in which they are checked."""

    require_stop: bool = True
    """Only traces that end with an end token."""
    think_close: str | None = None
    """A token that must stand in the trace exactly once, such as </think>; the answer is then read
    behind it alone."""
    max_fallback: float = Field(0.5, ge=0, le=1)
    """Largest share of tokens that the student wrote itself. Of the student's own arm, where that
    is all of them, nothing is asked."""
    correctness: Literal["reference", "none"] = "reference"
    """"reference": the verifier must find the answer right; "none": traces are not graded."""
    grader: str = "rlvr"
    """Whose verdict counts: rlvr, one_shot_rlvr, qwen, exact or math_verify (docs/verifier.md)."""
    keep: Literal["shortest", "random", "all"] = "shortest"
    """Of a problem's surviving traces: the one with fewest tokens, one at random, or all."""
    workers: int = Field(1, ge=1)
    """Verifier processes."""
    timeout: float = Field(5.0, gt=0)
    """Seconds after which a verdict is given up and the trace counted as wrong."""


class ShardSettings(Settings):
    """Which part of the traces this job generates."""

    index: int | None = Field(None, ge=0)
    """Number of the part, from 0; null takes SLURM's array task."""
    count: int | None = Field(None, ge=1)
    """Number of parts; null takes the size of SLURM's array, or 1."""

    @model_validator(mode="after")
    def _both_or_none(self) -> "ShardSettings":
        if (self.index is None) != (self.count is None):
            raise ValueError("shard.index and shard.count belong together; set both or neither")
        if self.index is not None and self.count is not None and self.index >= self.count:
            raise ValueError(
                f"shard.index = {self.index} must be below shard.count = {self.count}; parts "
                "count from 0"
            )
        return self

    def resolved(self) -> tuple[int, int]:
        """(part, parts), the processes of a launcher counted in.

        Raises:
            ValueError: SLURM's variables make no sense.
        """
        part, parts = (0, 1) if self.index is None else (self.index, self.count or 1)
        if self.index is None and "SLURM_ARRAY_TASK_ID" in os.environ:
            task = _number("SLURM_ARRAY_TASK_ID")
            first, step = _number("SLURM_ARRAY_TASK_MIN", 0), _number("SLURM_ARRAY_TASK_STEP", 1)
            part, parts = (task - first) // step, _number("SLURM_ARRAY_TASK_COUNT", 1)
            if not 0 <= part < parts:
                raise ValueError(
                    f"SLURM_ARRAY_TASK_ID = {task} lies outside an array of {parts} tasks from "
                    f"{first}; set shard.index and shard.count"
                )
        rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
        return part * world + rank, parts * world


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        raise ValueError(f"environment variable {name} = {text!r} is not a whole number")
    return int(text)


class DistillRecipe(Settings):
    """Generating and filtering reasoning traces: the recipe of ``task: distill``."""

    task: Literal["distill"]
    """What is done: traces are generated, for ``task: sft`` to train on."""
    output: Path
    """Folder of the traces; everything that is written is in there."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Of all random numbers."""
    teacher: TraceModel
    """The model that proposes."""
    student: TraceModel
    """The model that may refuse, and that is to learn from the traces."""
    vocabulary: VocabularySettings = VocabularySettings()
    """How tokens of the two are matched."""
    data: TraceData
    """The problems."""
    samples: int = Field(16, ge=1)
    """Traces of each problem; all are generated, solved or not."""
    max_tokens: int = Field(7168, ge=1)
    """Most tokens of a trace."""
    stop: tuple[str, ...] = ()
    """Tokens of the student that end a trace, besides its end tokens."""
    rule: RuleSettings = RuleSettings()
    """The acceptance rule."""
    engine: TraceEngineSettings = TransformersTraceSettings()
    """What generates."""
    filter: FilterSettings = FilterSettings()
    """Which traces are kept."""
    shard: ShardSettings = ShardSettings()
    """Which part of the traces this job generates."""

    @model_validator(mode="after")
    def _possible(self) -> "DistillRecipe":
        for fault in _impossible(self):
            raise ValueError(fault)
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """All settings that a trace depends on, for records and for resuming."""
        whole = self.model_dump(mode="json")
        for name in ("output", "filter", "shard"):
            del whole[name]
        whole["engine"] = {"name": self.engine.name}
        for model in ("teacher", "student"):
            del whole[model]["device"]
        # More samples of a problem leave those that there are as they are.
        del whole["samples"]
        return whole

    @property
    def fingerprint(self) -> str:
        """Hash of :attr:`identity`."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _impossible(recipe: DistillRecipe) -> Iterator[str]:
    """Combinations of valid settings that cannot work, each with its remedy."""
    rule, text = recipe.rule, recipe.vocabulary.matching == "text"
    if text and recipe.engine.block > 1:
        yield "engine.block drafts tokens, and vocabulary.matching = text has none in common; use 1"
    if text and recipe.vocabulary.map:
        yield "vocabulary.map matches tokens, and vocabulary.matching = text has none; leave it out"
    if recipe.engine.name != "vllm":
        return
    for name, model in (("teacher", recipe.teacher), ("student", recipe.student)):
        if model.precision == "float64":
            yield f"engine vllm has no float64; set {name}.precision to another"
    if text:
        yield "vocabulary.matching = text needs engine transformers; vllm reports tokens only"
    for name, pool in (("teacher", rule.teacher), ("student", rule.student)):
        if pool.top_k == 0 or pool.top_p < 1:
            yield (
                f"engine vllm reports the likeliest tokens only: rule.{name}.top_k must be at "
                f"least 1 (is {pool.top_k}) and top_p 1 (is {pool.top_p}); use engine transformers"
            )
    if rule.threshold_on == "processed" and rule.student.temperature != 1:
        yield "engine vllm reports raw probabilities; set rule.threshold_on=raw"
