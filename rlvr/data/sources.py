"""Load the problems of a source from its settings."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from rlvr.data.arithmetic import ArithmeticSource, load_arithmetic
from rlvr.data.consistency import prompt_key
from rlvr.data.episodes import EpisodeSource, load_episodes
from rlvr.data.gym import GymSource, load_gym
from rlvr.data.hub import HubSource, load_hub
from rlvr.data.local_file import FileSource, load_file
from rlvr.data.rows import ANSWERS, RowsWanted
from rlvr.types import Problem

Source = Annotated[
    HubSource | FileSource | GymSource | ArithmeticSource | EpisodeSource,
    Field(discriminator="name"),
]


def load_problems(
    source: HubSource | FileSource | GymSource | ArithmeticSource | EpisodeSource,
    wanted: RowsWanted = ANSWERS,
) -> list[Problem]:
    """Load, check and deduplicate the problems of a source.

    Ids are unique, prompts end with a user message, and answers are non-empty text. One warning
    each reports dropped duplicates and dropped rows, with their number and the first of them.

    Args:
        source: Where they are.
        wanted: Whether they must have answers, and keep their rows.

    Raises:
        ValueError: A file, field or task is missing, or a verifier could not use a row; the message
            names file, row and id, and a remedy.
    """
    if isinstance(source, HubSource):
        return load_hub(source, wanted)
    if isinstance(source, FileSource):
        return load_file(source, wanted)
    if isinstance(source, GymSource):
        return load_gym(source)
    if isinstance(source, EpisodeSource):
        return load_episodes(source)
    return load_arithmetic(source)


def overlap(train: Iterable[Problem], held_out: Iterable[Problem]) -> list[str]:
    """Ids of held-out problems whose prompt also occurs in the training set."""
    seen = {prompt_key(problem.messages) for problem in train}
    return [problem.id for problem in held_out if prompt_key(problem.messages) in seen]
