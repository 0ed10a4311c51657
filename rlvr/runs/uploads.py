"""The interface through which a run sends weights to the Hub; a higher room implements it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from rlvr.learner.checkpoint import CheckpointWriter
from rlvr.ranks import Ranks
from rlvr.runs.hub_settings import HubSettings


class Uploads(Protocol):
    """Uploads of a running run."""

    def finish(self, path: Path, check: Callable[[], None]) -> None:
        """Send the final weights and wait for all uploads; ``check`` may raise to end the wait."""


Uploading = Callable[
    [Path, HubSettings | None, Ranks, CheckpointWriter, Callable[[str], None]],
    AbstractContextManager[Uploads | None],
]
"""Opens the uploads of a run, given its folder, the recipe's settings, the ranks, the writer of
checkpoints, and a callback for messages (:func:`rlvr.hub.background.uploading`)."""


def no_uploading(
    run: Path,
    settings: HubSettings | None,
    ranks: Ranks,
    checkpoints: CheckpointWriter,
    notify: Callable[[str], None],
) -> AbstractContextManager[None]:
    """Send nothing.

    Raises:
        ValueError: The recipe asks for uploads.
    """
    if settings is not None:
        raise ValueError(
            f"hub.repo = {settings.repo!r} is set, but the run has no uploader; start it with "
            "`rlvr train`, or pass uploading=rlvr.hub.background.uploading"
        )
    return nullcontext()
