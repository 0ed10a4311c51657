"""What a recipe says of its environment."""

from pydantic import Field, JsonValue

from rlvr.settings import Settings


class EnvironmentSettings(Settings):
    """Episodes of several turns."""

    name: str
    """The environment: guess_number, grid, self_correction, tools, or file.py:Class or
    package.module:Class of your own."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of its constructor."""
    max_turns: int = Field(8, ge=1)
    """Most turns of an episode; one that needs more is cut (finish reason "turns")."""
    max_tokens: int = Field(2048, ge=1)
    """Most tokens behind the prompt, sampled or said by the environment. A turn begins only where
    rollout.sampling.max_tokens, the limit of a turn, has room; else the episode is cut ("tokens").
    """
    max_seconds: float | None = Field(None, gt=0)
    """Seconds from the first turn on after which episodes are cut ("seconds"), also where the
    environment does not answer; null sets no limit. What is cut then depends on timing."""
