"""Reward settings of a recipe: functions, models, limits of the verifier."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from rlvr.data.templates import ThoughtPairs
from rlvr.objective.uncertainty import Uncertainty
from rlvr.settings import Settings
from rlvr.settings.outside import (
    Given,
    from_json,
    given,
    is_lost,
    is_place,
    last_word,
    load_outside,
)


class ModelRewardTerm(Settings):
    """One reward model and its weight."""

    path: str
    """Model folder of a run with ``task: reward_model``."""
    others: tuple[str, ...] = ()
    """More models for the same task, such as other seeds: the value is then their mean, and its
    uncertainty their standard deviation."""
    name: str = Field("model", pattern=r"^[\w.-]+$")
    """Name of its values among those of the functions."""
    weight: float = 1.0
    """Factor of its value in the sum."""
    transform: Literal["none", "sigmoid"] = "none"
    """"none" uses the reward itself, "sigmoid" the probability of being right (for a model trained
    with cross-entropy)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute precision."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Maximum number of input positions in a micro-batch, including padding."""

    @property
    def scores(self) -> int:
        """Number of scores per completion."""
        return 1 + len(self.others)


def _function(value: object) -> str:
    if isinstance(value, str):
        return from_json(value)
    if callable(value):
        return given(value)
    raise ValueError("give the name of a function, or in Python the function itself")


FunctionPlace = Annotated[
    str, PlainValidator(_function), PlainSerializer(str, return_type=str, when_used="json")
]


class RewardTerm(Settings):
    """One reward function and its weight."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {"workers", "timeout", "retries", "concurrency"}
    )

    function: FunctionPlace
    """Name of a built-in function, or file.py:function or package.module:function of your own; in
    Python also the function itself. Its signature says how it is called."""
    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Name of its values in metrics and records; null is the function's."""
    weight: float = 1.0
    """Factor of its value in the sum."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    draws: int = Field(1, ge=1)
    """How often it is called, with draw = 0, 1, ... if it accepts that argument: the value of a
    stochastic function is then the mean, and its uncertainty the standard deviation."""
    messages: bool | None = None
    """What ``prompts`` and ``completions`` hold for a function with TRL's signature: lists of
    messages, or text. Null goes by the function's annotations, then by the data: messages if
    fields.messages names them."""
    workers: int = Field(0, ge=0)
    """Processes that call a plain function, each for another completion, group or batch; 0 calls it
    in this one, and one call after another."""
    concurrency: int = Field(256, ge=1)
    """Most calls of an asynchronous function at a time."""
    timeout: float | None = Field(None, gt=0)
    """Seconds that a call may take; null sets no limit. A call in a worker is killed then, one of
    an asynchronous function cancelled; a plain one in this process cannot be stopped, and is left
    to itself."""
    retries: int = Field(0, ge=0)
    """How often a call that failed or took too long is tried again, after a pause that grows."""
    failure: Literal["stop", "skip"] = "stop"
    """What follows the last attempt: "stop" saves the finished steps and ends the run, "skip" takes
    the function as not applying to the completions of the call, and counts them."""

    @model_validator(mode="after")
    def _there(self) -> "RewardTerm":
        if not is_place(self.function) or (is_lost(self.function) and not self.given):
            return self
        if not callable(self.source):
            raise ValueError(f"{self.function!r} is no function; name one that takes a RewardInput")
        if self.workers and is_lost(self.function):
            raise ValueError(
                f"workers: other processes cannot find {str(self.function)!r}; define the function "
                "at the top of a file or module, or leave workers out"
            )
        return self

    def __eq__(self, other: object) -> bool:
        """A function that only its own Python could find is the same as one of its name."""
        if isinstance(other, RewardTerm) and self.function != other.function:
            lost = is_lost(self.function) or is_lost(other.function)
            if lost and last_word(self.function) == last_word(other.function):
                return super().__eq__(other.model_copy(update={"function": self.function}))
        return super().__eq__(other)

    @property
    def given(self) -> bool:
        """Whether the function itself is here, given in Python."""
        return isinstance(self.function, Given)

    @property
    def label(self) -> str:
        """What its values are called."""
        return self.name or last_word(self.function)

    @property
    def source(self) -> str | Callable[..., Any]:
        """The name of a built-in function, or the function itself.

        Raises:
            ValueError: It cannot be found.
        """
        if not is_place(self.function):
            return self.function
        found: Callable[..., Any] = load_outside(self.function)
        return found


class CheckSettings(Settings):
    """How many verdicts of a run a second judge gives again (docs/verifier.md)."""

    may_change: ClassVar[frozenset[str]] = frozenset({"workers", "timeout"})

    accepted: float = Field(0.1, ge=0, le=1)
    """Share of the accepted answers, drawn at random."""
    rejected: float = Field(0.1, ge=0, le=1)
    """Share of the rejected answers, drawn at random; responses without an answer do not count."""
    timeout: float = Field(2.0, gt=0)
    """Seconds after which one verdict is given up, and how long a step waits for what is not judged
    when all else of its rollout is done."""
    workers: int = Field(1, ge=1)
    """Processes of the second judge."""

    @model_validator(mode="after")
    def _some(self) -> "CheckSettings":
        if not self.accepted and not self.rejected:
            raise ValueError(
                "accepted and rejected are both 0, so nothing would be judged again; raise one, or "
                "set reward.check to null"
            )
        return self


def _sampled(value: object) -> object:
    """The word ``sample`` stands for the defaults."""
    if isinstance(value, str):
        if value != "sample":
            raise ValueError(
                f"{value!r} is no way to check verdicts; give 'sample', null, or shares as in "
                "{accepted: 0.1, rejected: 0.1}"
            )
        return CheckSettings()
    return value


Check = Annotated[CheckSettings, BeforeValidator(_sampled)]


class CodeSettings(Settings):
    """How programs are run that the grader ``code`` judges (docs/code.md)."""

    sandbox: Literal["auto", "bubblewrap", "namespaces", "none_i_trust_the_code"] = "auto"
    """What separates a model's program from this machine: "bubblewrap", "namespaces" made by this
    package, or "auto", the first of them that works; without one that works a run is refused.
    "none_i_trust_the_code" lets programs do what the user may, but for limits of time and size."""
    packages: bool = False
    """Let programs import this environment's installed packages, besides the standard library."""


class RewardSettings(Settings):
    """The reward of a completion."""

    functions: tuple[RewardTerm, ...] = (RewardTerm(function="accuracy"),)
    """Reward functions, summed with their weights. It may be empty if there are models."""
    models: tuple[ModelRewardTerm, ...] = ()
    """Trained reward models, added with their weights."""
    uncertainty: Uncertainty | None = None
    """Give less weight to completions whose scores disagree (several draws of a function, or models
    of one term); null uses only their mean."""
    truncated: Literal["keep", "mask"] = "keep"
    """Completions cut at the token limit: "keep" trains on them with their reward, "mask" removes
    them from the loss. To shape their reward instead, add the function ``overlong``."""
    certainty: Literal["exact", "field", "digits", "points", "rounding", "library"] = "library"
    """The least evidence on which an answer counts as right, from the strongest: with "points", one
    that is equal only within rounding or by math-verify is wrong, and counted as
    ``verifier/uncertain``. It holds in evaluation sets too."""
    thoughts: ThoughtPairs = ()
    """Pairs of markers, opening and closing, between which a model thinks, such as [["<plan>",
    "</plan>"]]: no answer is read there. Those of known models and those that the tokenizer or its
    chat template has are found without it."""
    workers: int = Field(1, ge=1)
    """Number of verifier processes."""
    timeout: float = Field(5.0, gt=0)
    """Seconds after which grading is stopped, the worker is killed and the completion scores 0."""
    code: CodeSettings = CodeSettings()
    """How programs are run, where problems have the grader ``code``."""
    check: Check | None = None
    """Have a second judge give some of the verdicts in training again, to estimate how often the
    verifier is wrong: "sample" (a tenth), or shares. It changes no reward. Mathematics only."""

    @model_validator(mode="after")
    def _terms(self) -> "RewardSettings":
        names = [term.label for term in self.functions] + [term.name for term in self.models]
        if not names or len({*names}) < len(names):
            raise ValueError(
                f"reward.functions and reward.models are together {names}; give at least one, each "
                "with a different name"
            )
        scored = [*(term.draws for term in self.functions), *(t.scores for t in self.models)]
        if self.uncertainty is not None and max(scored) < 2:
            raise ValueError(
                "reward.uncertainty compares scores of one term, but every term has only one; set "
                "draws of a function or others of a model, or remove it"
            )
        return self
