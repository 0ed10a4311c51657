"""Problems that say nothing: tasks of an environment that makes its own."""

from typing import Literal

from pydantic import Field

from rlvr.settings import Settings
from rlvr.types import Message, Problem


class EpisodeSource(Settings):
    """Numbered tasks for a recipe with an ``environment``, which makes each from its number."""

    name: Literal["episodes"] = "episodes"
    """Tasks of the environment."""
    size: int = Field(1000, ge=1)
    """Number of tasks."""
    split: Literal["train", "held_out"] = "train"
    """Part of the id, so that the tasks of the two differ."""


def load_episodes(source: EpisodeSource) -> list[Problem]:
    """The tasks, without text or answer."""
    return [
        Problem(
            id=f"{source.split}-{number}",
            messages=(Message(role="user", content=""),),
            answer="",
            source="episodes",
            metadata={"number": number},
        )
        for number in range(source.size)
    ]
