"""What a recipe says about the Hub."""

import re

from pydantic import Field, field_validator

from rlvr.settings import Settings

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


class HubSettings(Settings):
    """A repository of the Hugging Face Hub that a run is sent to; HF_TOKEN holds the token."""

    repo: str
    """OWNER/NAME. It is made if it is not there; one that holds other content is left alone."""
    private: bool = False
    """Make it private."""
    every_checkpoint: bool = True
    """Send every checkpoint to a branch of its own (step_000020, ...), while training goes on, and
    the final model to main; false sends the final model alone."""
    adapter_only: bool = False
    """Send the adapters of a LoRA run as they are, instead of merging them into the base model."""
    attempts: int = Field(6, ge=1)
    """How often an upload that failed is begun again before it is given up; training goes on."""
    first_wait_s: float = Field(15.0, gt=0)
    """Seconds before the second attempt; twice as long before each later one, up to ten minutes."""
    most_waiting: int = Field(2, ge=1)
    """How many checkpoints may wait for their upload (each keeps its weights on disk); where there
    are more, the oldest is given up."""
    final_wait_s: float = Field(1800.0, ge=0)
    """Seconds that a finished run waits for what is not sent yet."""

    @field_validator("repo")
    @classmethod
    def _has_an_owner(cls, value: str) -> str:
        check_repository(value)
        return value


def check_repository(repo: str) -> None:
    """See that ``repo`` can be the id of a repository.

    Raises:
        ValueError: It cannot.
    """
    if not _REPOSITORY.fullmatch(repo) or len(repo) > 96 or "--" in repo or ".." in repo:
        raise ValueError(
            f"{repo!r} is no id of a Hub repository; give OWNER/NAME, such as me/my-model: "
            "letters, digits, - _ and ., at most 96"
        )
