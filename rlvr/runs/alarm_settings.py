"""What a recipe says of alarms: what each one does when it begins, and from which figure on."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rlvr.settings import Settings

Action = Literal["off", "warn", "stop", "save"]


class AlarmRule(Settings):
    """One alarm; its action alone may stand in its place."""

    action: Action = "warn"
    """What happens when it begins: nothing is looked at (off), a line is printed and recorded
    (warn), and the run ends after this step as if it had been the last (stop), or a checkpoint of
    this step is written that is never pruned, to branch from (save)."""
    above: float | None = Field(None, ge=0)
    """The figure above which a step counts; null is the alarm's own (docs/alarms.md)."""
    steps: int | None = Field(None, ge=1)
    """So many such steps in a row begin it, and as many below four fifths of the figure end it;
    null is the alarm's own."""

    @model_validator(mode="before")
    @classmethod
    def _from_action(cls, given: Any) -> Any:  # noqa: ANN401
        """``truncation: stop`` for ``truncation: {action: stop}``; YAML reads off as false."""
        if isinstance(given, str | bool):
            given = {"action": given}
        if isinstance(given, dict) and given.get("action") is False:
            given = {**given, "action": "off"}
        return given


class AlarmSettings(Settings):
    """The alarms of a run without rollouts."""

    gradient_norm: AlarmRule = AlarmRule()
    """The gradient's norm, divided by the median of the last steps."""


class RLAlarmSettings(AlarmSettings):
    """The alarms of reinforcement learning."""

    mismatch: AlarmRule = AlarmRule()
    """Engine and learner differ by more than their precision explains."""
    entropy_collapse: AlarmRule = AlarmRule()
    """How many times smaller the entropy is than in the first steps."""
    length_explosion: AlarmRule = AlarmRule()
    """Mean length of completions, divided by the median of the last steps."""
    truncation: AlarmRule = AlarmRule()
    """Share of completions that are cut at the limit."""
    held_out_gap: AlarmRule = AlarmRule()
    """The reward rises while held-out accuracy falls below its best, in standard errors."""
    disputed: AlarmRule = AlarmRule()
    """Share of verdicts that a second judge contradicts (reward.check)."""
    zero_variance: AlarmRule = AlarmRule()
    """Share of groups whose rewards are all equal."""
    length_bias: AlarmRule = AlarmRule()
    """What is trained on is longer or shorter than what was drawn, in standard errors."""
    difficulty_bias: AlarmRule = AlarmRule()
    """What is trained on is easier or harder than what was drawn, in standard errors."""
