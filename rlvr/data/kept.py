"""What the kept completions of a run say of their end."""

from collections.abc import Mapping
from typing import Any, get_args

from rlvr.types import FinishReason

_CUT = frozenset(get_args(FinishReason)) - {"stop"}


def was_cut(values: Mapping[str, Any]) -> bool:
    """Whether a completion was cut at a limit."""
    return values.get("finish_reason") in _CUT


def check_one_turn(values: Mapping[str, Any], where: str) -> None:
    """See that a completion is no episode of several turns, whose response is its last turn alone.

    Raises:
        ValueError: It is one.
    """
    turns = values.get("turns")
    if isinstance(turns, list) and len(turns) > 1:
        raise ValueError(
            f"{where}: the completion is an episode of {len(turns)} turns, and its prompt with its "
            "last turn is not what was sampled; use the completions of a run without environment"
        )
