"""The one place that builds engines from their settings."""

from collections.abc import Callable, Sequence

from rlvr.policy.model import Policy
from rlvr.ranks import Ranks
from rlvr.rollout.engine import Engine
from rlvr.rollout.null_engine import NullEngine
from rlvr.rollout.settings import (
    AnyEngineSettings,
    VllmEngineSettings,
    VllmServerEngineSettings,
)
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.rollout.vllm_server_engine import VllmServerEngine


def build_engine(
    settings: AnyEngineSettings,
    policy: Policy,
    stop_ids: Sequence[int],
    longest: int | None = None,
    ranks: Ranks | None = None,
    *,
    takes_turns: bool | None = None,
    growth: Callable[[], int] = lambda: 0,
    exact: bool = False,
) -> Engine:
    """Build the engine that ``settings`` name; it needs a sync before it generates.

    Args:
        settings: Which engine to build, and how it runs.
        policy: The learner's policy.
        stop_ids: Token ids that end a completion.
        longest: Longest sequence in tokens that will be requested; None is the model's context.
        ranks: The processes that sample together; only the first one talks to servers.
        takes_turns: Whether a learner updates the policy between calls, so that an engine on its
            GPU had better sleep then, or at any time; None if there is no learner.
        growth: Bytes of a GPU that the learner will hold during calls and does not hold yet.
        exact: Whether a completion has the same bits in every batch, where the engine can do that:
            transformers.

    Raises:
        ValueError: A package that the engine needs is not installed.
    """
    if isinstance(settings, VllmEngineSettings):
        return VllmEngine(
            policy, stop_ids, settings, longest, takes_turns=takes_turns, growth=growth
        )
    if isinstance(settings, VllmServerEngineSettings):
        if ranks is not None and not ranks.first:
            return NullEngine(policy, longest)
        return VllmServerEngine(policy, stop_ids, settings, longest)
    return TransformersEngine(policy, stop_ids, settings, exact=exact)
