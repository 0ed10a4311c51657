"""The Hub settings of a recipe."""

import os
import re

from pydantic import Field, field_validator

from rlvr.settings import Settings

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


class HubSettings(Settings):
    """A repository on the Hugging Face Hub to which a run is sent; HF_TOKEN contains the token."""

    repo: str
    """OWNER/NAME. It is created if missing; a repository with other content is not changed."""
    private: bool = False
    """Create it as private."""
    every_checkpoint: bool = True
    """Send every checkpoint to a separate branch (step_000020, ...) during training, and the final
    model to main; false sends only the final model."""
    adapter_only: bool = False
    """Send the adapters of a LoRA run without merging them into the base model."""
    attempts: int = Field(6, ge=1)
    """How often to try an upload before it is abandoned; training continues."""
    first_wait_s: float = Field(15.0, gt=0)
    """Seconds before the second attempt; the wait doubles each time, up to ten minutes."""
    most_waiting: int = Field(2, ge=1)
    """How many checkpoints may wait for their upload (each keeps its weights on disk); if there are
    more, the oldest is abandoned."""
    final_wait_s: float = Field(1800.0, ge=0)
    """Seconds that a finished run waits for unfinished uploads."""

    @field_validator("repo")
    @classmethod
    def _has_an_owner(cls, value: str) -> str:
        check_repository(value)
        return value


def check_repository(repo: str) -> None:
    """Check that ``repo`` can be the id of a repository.

    Raises:
        ValueError: It cannot.
    """
    if not _REPOSITORY.fullmatch(repo) or len(repo) > 96 or "--" in repo or ".." in repo:
        raise ValueError(
            f"{repo!r} is not the id of a Hub repository; give OWNER/NAME, such as me/my-model: "
            "letters, digits, - _ and ., at most 96"
        )


def token_from_environment() -> str:
    """The Hub's token.

    Raises:
        ValueError: HF_TOKEN is not set.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ValueError(
            "there is no Hub token: set HF_TOKEN to one with write access "
            "(https://huggingface.co/settings/tokens), or export to a folder with --to"
        )
    return token
