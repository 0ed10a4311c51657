"""What ``rlvr eval`` is told, as settings; they load no model and no grader."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from eval.benchmarks import BENCHMARKS
from rlvr.data import Fields, TemplateChoice
from rlvr.data.templates import ThoughtPairs
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.settings import EngineSettings, TransformersEngineSettings
from rlvr.settings import Settings, load_settings


class EvalSettings(Settings):
    """Settings of ``rlvr eval``, except for the model."""

    benchmarks: tuple[str, ...] = ("math500",)
    """Names, NAME@REVISION, or files ([NAME=]PATH)."""
    protocol: str = "rlvr"
    """Name of a protocol: prompt, decoding and grader of a published evaluation."""
    template: TemplateChoice | None = None
    """Prompt template that replaces the protocol's: a built-in name or a YAML file."""
    samples: int | None = Field(None, ge=1)
    """Number of samples per problem; null is the protocol's."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature; 0 is greedy, null is the protocol's."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Instead of the protocol's."""
    top_k: int | None = Field(None, ge=0)
    """Instead of the protocol's; 0 keeps all tokens."""
    max_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens in a completion; null is the protocol's."""
    greedy: bool = False
    """Draw one greedy completion per problem in addition to the samples."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Seed of all sampling."""
    limit: int | None = Field(None, ge=1)
    """Number of problems to use from each benchmark, evenly spread; the result is marked as a
    trial."""
    problems: tuple[str, ...] = ()
    """Use only the problems with these ids."""
    fields: Fields = Fields()
    """Names of the columns in files of problems; numbers are always accepted as answers."""
    bad_rows: Literal["error", "drop"] = "error"
    """Rows of files without a usable problem or answer, or with two different answers to one
    problem: "error" refuses them, "drop" drops them with a warning that counts them."""
    data: Path | None = None
    """Folder of benchmark files that replaces the Hub; null reads RLVR_BENCHMARKS."""
    engine: EngineSettings = TransformersEngineSettings()
    """The engine that generates."""
    task_loss: bool = False
    """Also compute the bits that the model needs for each reference answer."""
    grader: str | None = None
    """Grader: rlvr, one_shot_rlvr, qwen, exact or math_verify, or one of another domain
    (docs/domains.md), whose references may be objects in files; null is the protocol's."""
    thoughts: ThoughtPairs = ()
    """Pairs of markers, opening and closing, between which the model thinks and no answer is read,
    besides those of known models and those that the tokenizer or its chat template has."""
    workers: int = Field(2, ge=1)
    """Number of grading processes."""
    timeout: float = Field(5.0, gt=0)
    """Maximum seconds for a verdict."""


def build_settings(
    model: str, given: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[EvalSettings, ModelSettings]:
    """Flags and ``key=value`` overrides as settings; ``model.*`` goes to the model's.

    Raises:
        ValueError: An unknown setting or a value that it cannot take.
    """
    values = {name: value for name, value in given.items() if value is not None}
    values["benchmarks"] = benchmark_names(str(values["benchmarks"]))
    mine = [item for item in overrides if not item.startswith("model.")]
    models = [item.removeprefix("model.") for item in overrides if item.startswith("model.")]
    settings = load_settings(EvalSettings, values, mine)
    return settings, load_settings(ModelSettings, {"path": model}, models)


def benchmark_names(text: str) -> list[str]:
    """``a,b`` as a list; ``all`` is every benchmark there is."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--benchmarks is empty; name some, or 'all'")
    return list(BENCHMARKS) if names == ["all"] else names


def parse_ks(text: str | None) -> list[int] | None:
    """``1,4,8`` as numbers.

    Raises:
        ValueError: They are no positive whole numbers.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"--k {text!r}: give positive whole numbers separated by commas, such as 1,8"
        )
    return sorted({int(part) for part in parts})
