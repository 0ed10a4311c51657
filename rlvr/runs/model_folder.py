"""Write the final model of a run atomically."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlvr.policy.model import Policy
from rlvr.ranks import Ranks
from rlvr.rollout.weight_sync import export_model


def export(
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401
    folder: Path,
    ranks: Ranks,
    beside: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write a run's model folder atomically, with adapters merged; a collective call.

    ``beside`` writes other files into it.
    """
    export_model(policy, tokenizer, folder / "model", ranks, beside)
