"""The settings of experiment trackers."""

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rlvr.settings import Settings

TrackerName = Literal["tensorboard", "wandb", "trackio"]
_SECRET_KEY = re.compile(r"token|api_?key|password|secret|webhook_url", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(token|key|secret)=", re.IGNORECASE)  # as in a server's address


class TrackSettings(Settings):
    """Where experiment trackers put the run."""

    track: tuple[TrackerName, ...] = ()
    """Experiment trackers to send the metrics to; ``metrics.jsonl`` is always written."""
    project: str | None = Field(None, min_length=1)
    """Project at wandb and trackio; null is that of WANDB_PROJECT or TRACKIO_PROJECT, else rlvr."""
    entity: str | None = Field(None, min_length=1)
    """User or team at wandb; null is the default of who is logged in."""
    run_name: str | None = Field(None, min_length=1)
    """Name of the run there; null is that of the run folder."""
    group: str | None = Field(None, min_length=1)
    """Group of runs that belong together, at wandb and trackio."""
    tags: tuple[str, ...] = ()
    """Words to find the run by at wandb; part of the run's configuration at trackio."""
    tracked_completions: int = Field(32, ge=0)
    """Completions of a training step, and of an evaluation, that trackers get as a table; 0 sends
    none. log.completions_per_step and log.completions_every say which there are."""
    tracker_init: dict[TrackerName, dict[str, Any]] = Field(default_factory=dict)
    """Further arguments by tracker, of wandb.init, trackio.init or tensorboard's SummaryWriter:
    trackio: {space_id: me/runs}. Tokens belong in the environment."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        for name, arguments in self.tracker_init.items():
            for key, value in arguments.items():
                if _is_secret(key, value):
                    raise ValueError(
                        f"tracker_init.{name}.{key} looks like a secret, and a recipe is copied to "
                        "the run folder; set the tracker's variable in the environment instead "
                        "(WANDB_API_KEY, TRACKIO_WRITE_TOKEN, TRACKIO_WEBHOOK_URL)"
                    )
        return self


def _is_secret(key: str, value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, Mapping):
        return any(_is_secret(inner, held) for inner, held in value.items())
    return bool(_SECRET_KEY.search(key) or _SECRET_VALUE.search(str(value)))
