"""Text out: the engine protocol, the engines, and the worker that turns prompts into groups."""

from rlvr.rollout.build import EngineSettings, build_engine
from rlvr.rollout.engine import Engine, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling, sample_seed, uniform_stream
from rlvr.rollout.transformers_engine import TransformersEngine, TransformersEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine, VllmEngineSettings
from rlvr.rollout.vllm_server_engine import VllmServerEngine, VllmServerEngineSettings
from rlvr.rollout.weights import StaleWeightsError
from rlvr.rollout.worker import sample_groups

__all__ = [
    "Engine",
    "EngineSettings",
    "Progress",
    "Request",
    "Sample",
    "Sampling",
    "StaleWeightsError",
    "TransformersEngine",
    "TransformersEngineSettings",
    "VllmEngine",
    "VllmEngineSettings",
    "VllmServerEngine",
    "VllmServerEngineSettings",
    "build_engine",
    "sample_groups",
    "sample_seed",
    "uniform_stream",
]
