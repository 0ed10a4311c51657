"""The schema of a recipe with ``task: distill``: the traces that it generates and keeps."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rlvr.data import Source, TemplateChoice, load_template
from rlvr.data.templates import ThoughtPairs
from rlvr.distill.acceptance_rule import AcceptanceRule
from rlvr.distill.settings import TraceEngineSettings, TraceModel, TransformersTraceSettings
from rlvr.distill.vocabulary_match import VocabularySettings
from rlvr.settings import Settings


class TraceData(Settings):
    """Where the problems come from and how they become prompts."""

    source: Source
    """The problems: a Hub data set, a file, a reasoning-gym task, or generated arithmetic."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("qwen_math").settings)
    """How a problem becomes the student's prompt: the name of a built-in template, a YAML file, or
    a template written out here."""
    teacher_template: TemplateChoice | None = None
    """A different template for the teacher, with its own tokenizer; null uses the student's
    prompt."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Maximum prompt length in tokens. Problems with a longer prompt are dropped and counted, never
    cut."""


class FilterSettings(Settings):
    """Which traces are kept, in the order in which they are checked."""

    require_stop: bool = True
    """Keep only traces that end with an end token."""
    think_close: str | None = None
    """A token that must occur in the trace exactly once, such as </think>; the answer is then read
    only from the text after it."""
    max_fallback: float = Field(0.5, ge=0, le=1)
    """Largest share of tokens that the student may have written itself. It does not apply to the
    student arm, where the student writes every token."""
    correctness: Literal["reference", "none"] = "reference"
    """"reference": the verifier must accept the answer; "none": traces are not graded."""
    grader: str = "rlvr"
    """The grader: rlvr, one_shot_rlvr, qwen, exact or math_verify (docs/verifier.md)."""
    thoughts: ThoughtPairs = ()
    """Pairs of markers, opening and closing, between which no answer is read, besides those of
    known models and those that the student's tokenizer or chat template has."""
    keep: Literal["shortest", "random", "all"] = "shortest"
    """Which of a problem's surviving traces to keep: the one with the fewest tokens, a random one,
    or all."""
    workers: int = Field(1, ge=1)
    """Number of verifier processes."""
    timeout: float = Field(5.0, gt=0)
    """Seconds after which grading is stopped and the trace counts as wrong."""


class ShardSettings(Settings):
    """Which part of the traces this job generates."""

    index: int | None = Field(None, ge=0)
    """Index of the part, from 0; null uses SLURM's array task."""
    count: int | None = Field(None, ge=1)
    """Number of parts; null uses the size of SLURM's array, or 1."""

    @model_validator(mode="after")
    def _both_or_none(self) -> "ShardSettings":
        if (self.index is None) != (self.count is None):
            raise ValueError("shard.index and shard.count belong together; set both or neither")
        if self.index is not None and self.count is not None and self.index >= self.count:
            raise ValueError(
                f"shard.index = {self.index} must be below shard.count = {self.count}; parts are "
                "numbered from 0"
            )
        return self

    def resolved(self) -> tuple[int, int]:
        """(part, parts), including the processes of a launcher.

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
    """Generate and filter reasoning traces: the recipe of ``task: distill``."""

    task: Literal["distill"]
    """Selects trace generation; ``task: sft`` can train on the traces."""
    output: Path
    """Folder to which everything is written."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Seed of all random numbers."""
    teacher: TraceModel
    """The model that proposes."""
    student: TraceModel
    """The model that may refuse and that will learn from the traces."""
    vocabulary: VocabularySettings = VocabularySettings()
    """How the tokens of the two models are matched."""
    data: TraceData
    """The problems."""
    samples: int = Field(16, ge=1)
    """Number of traces of each problem; all are generated, even if one is already right."""
    max_tokens: int = Field(7168, ge=1)
    """Maximum number of tokens in a trace."""
    stop: tuple[str, ...] = ()
    """Tokens of the student that end a trace, besides its end tokens."""
    acceptance_rule: AcceptanceRule = AcceptanceRule()
    """The acceptance rule."""
    engine: TraceEngineSettings = TransformersTraceSettings()
    """The engine that generates."""
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
        # More samples of a problem do not change its existing samples.
        del whole["samples"]
        return whole

    @property
    def fingerprint(self) -> str:
        """Hash of :attr:`identity`."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _impossible(recipe: DistillRecipe) -> Iterator[str]:
    """Combinations of valid settings that cannot work, each with a remedy."""
    rule, text = recipe.acceptance_rule, recipe.vocabulary.matching == "text"
    if text and recipe.engine.block > 1:
        yield "engine.block drafts tokens, but vocabulary.matching = text has none in common; use 1"
    if text and recipe.vocabulary.map:
        yield "vocabulary.map matches tokens, but vocabulary.matching = text has none; remove it"
    if recipe.engine.name != "vllm":
        return
    for name, model in (("teacher", recipe.teacher), ("student", recipe.student)):
        if model.precision == "float64":
            yield f"engine vllm has no float64; choose another {name}.precision"
    if text:
        yield "vocabulary.matching = text needs engine transformers; vllm reports only tokens"
    for name, pool in (("teacher", rule.teacher), ("student", rule.student)):
        if pool.top_k == 0 or pool.top_p < 1:
            yield (
                "engine vllm reports only the likeliest tokens: "
                f"acceptance_rule.{name}.top_k must be at least 1 (is {pool.top_k}) and top_p 1 "
                f"(is {pool.top_p}); or use engine transformers"
            )
    if rule.threshold_on == "processed" and rule.student.temperature != 1:
        yield "engine vllm reports raw probabilities; set acceptance_rule.threshold_on=raw"
