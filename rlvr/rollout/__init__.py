"""Text out: the engine protocol, the engines, and the worker that turns prompts into groups."""

from rlvr.rollout.engine import Engine, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling, sample_seed, uniform_stream
from rlvr.rollout.transformers_engine import TransformersEngine, TransformersEngineSettings
from rlvr.rollout.worker import sample_groups

__all__ = [
    "Engine",
    "Progress",
    "Request",
    "Sample",
    "Sampling",
    "TransformersEngine",
    "TransformersEngineSettings",
    "sample_groups",
    "sample_seed",
    "uniform_stream",
]
