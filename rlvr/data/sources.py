"""The one way in: a source's settings -> its problems."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from rlvr.data.arithmetic import ArithmeticSource, load_arithmetic
from rlvr.data.consistency import prompt_key
from rlvr.data.files import FileSource, load_file
from rlvr.data.gym import GymSource, load_gym
from rlvr.data.hub import HubSource, load_hub
from rlvr.types import Problem

Source = Annotated[
    HubSource | FileSource | GymSource | ArithmeticSource, Field(discriminator="name")
]


def load_problems(source: HubSource | FileSource | GymSource | ArithmeticSource) -> list[Problem]:
    """Load, check and deduplicate the problems of a source.

    Ids are unique, prompts end with a user message, answers are non-empty text. Dropped duplicates
    and dropped rows are reported as one warning each, with a count and the first of them.

    Raises:
        ValueError: What the source cannot give (missing file, field, task), or a row that a
            verifier could not use; file, row and id are named, with the remedy.
    """
    if isinstance(source, HubSource):
        return load_hub(source)
    if isinstance(source, FileSource):
        return load_file(source)
    if isinstance(source, GymSource):
        return load_gym(source)
    return load_arithmetic(source)


def overlap(train: Iterable[Problem], held_out: Iterable[Problem]) -> list[str]:
    """Ids of held-out problems whose prompt also stands in the training set."""
    seen = {prompt_key(problem.messages) for problem in train}
    return [problem.id for problem in held_out if prompt_key(problem.messages) in seen]
