"""The one place that builds engines from their settings."""

from collections.abc import Sequence

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
) -> Engine:
    """Build the engine that ``settings`` name; it needs a sync before it generates.

    Args:
        settings: Which engine to build, and how it runs.
        policy: The learner's policy.
        stop_ids: Token ids that end a completion.
        longest: Longest sequence in tokens that will be requested; None is the model's context.
        ranks: The processes that sample together; only the first one talks to servers.

    Raises:
        ValueError: A package that the engine needs is not installed.
    """
    if isinstance(settings, VllmEngineSettings):
        return VllmEngine(policy, stop_ids, settings, longest)
    if isinstance(settings, VllmServerEngineSettings):
        if ranks is not None and not ranks.first:
            return NullEngine()
        return VllmServerEngine(policy, stop_ids, settings, longest)
    return TransformersEngine(policy, stop_ids, settings)
