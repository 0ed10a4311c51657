"""The choice of engines, and the one place that builds them."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from rlvr.policy import Policy
from rlvr.ranks import Ranks
from rlvr.rollout.bystander import Bystander
from rlvr.rollout.engine import Engine
from rlvr.rollout.transformers_engine import TransformersEngine, TransformersEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine, VllmEngineSettings
from rlvr.rollout.vllm_server_engine import VllmServerEngine, VllmServerEngineSettings

AnyEngineSettings = TransformersEngineSettings | VllmEngineSettings | VllmServerEngineSettings
EngineSettings = Annotated[AnyEngineSettings, Field(discriminator="name")]


def build_engine(
    settings: AnyEngineSettings,
    policy: Policy,
    stop_ids: Sequence[int],
    longest: int | None = None,
    ranks: Ranks | None = None,
) -> Engine:
    """The engine that ``settings`` name; it needs a sync before it generates.

    Args:
        settings: Which engine, and how it runs.
        policy: The learner's policy.
        stop_ids: Token ids that end a completion.
        longest: Longest sequence that will be asked for; None is the model's context.
        ranks: The processes that sample together; servers are spoken to by the first alone.

    Raises:
        ValueError: What the engine needs is not installed.
    """
    if isinstance(settings, VllmEngineSettings):
        return VllmEngine(policy, stop_ids, settings, longest)
    if isinstance(settings, VllmServerEngineSettings):
        if ranks is not None and not ranks.first:
            return Bystander()
        return VllmServerEngine(policy, stop_ids, settings, longest)
    return TransformersEngine(policy, stop_ids, settings)
