"""Settings of the two models and of the engines that generate traces."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlvr.policy.settings import ModelSettings
from rlvr.settings import Settings


class TraceModel(Settings):
    """A model that takes part in trace generation."""

    path: str
    """Local folder or Hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    tokenizer: str | None = None
    """Folder or Hub id of the tokenizer; null uses the model's."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of weights and computation."""
    device: str | None = Field(None, pattern=r"^(cpu|cuda(:\d+)?)$")
    """"cpu", "cuda" or "cuda:1"; null uses the first GPU, or the CPU if there is none. Under a
    launcher each process uses its own GPU."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """transformers' attention implementation."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Use it only for repositories that you have
    read."""

    @property
    def model_settings(self) -> ModelSettings:
        """The same model in the policy's settings."""
        return ModelSettings(
            path=self.path,
            revision=self.revision,
            tokenizer=self.tokenizer,
            attention=self.attention,
            trust_remote_code=self.trust_remote_code,
        )


class TransformersTraceSettings(Settings):
    """Generate traces with both models in this process; this engine is exact and the reference."""

    name: Literal["transformers"] = "transformers"
    """Both models run in this process, with transformers."""
    rows: int = Field(64, ge=1)
    """Number of traces generated at the same time."""
    block: int = Field(1, ge=1, le=64)
    """Tokens that the teacher drafts before the student judges them (K). It does not change the
    traces."""
    overlap: bool | None = None
    """Run both models at the same time, which needs block 1; null does so if they are on different
    devices."""


class VllmTraceSettings(Settings):
    """Generate traces with both models in vLLM processes."""

    name: Literal["vllm"] = "vllm"
    """Each model runs in a separate vLLM process."""
    rows: int = Field(64, ge=1)
    """Number of traces generated at the same time."""
    block: int = Field(1, ge=1, le=64)
    """Tokens that the teacher drafts before the student judges them (K). It does not change the
    traces."""
    enforce_eager: bool = True
    """Run the models without compilation. If false, vLLM compiles them: slower start, faster
    steps."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Memory in GiB for each model's keys and values; null is 1 GiB on a CPU and follows from
    ``memory_share`` on a GPU."""
    memory_share: float = Field(0.45, gt=0, le=1)
    """Share of a GPU's memory that each model may use."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of devices over which each model's weights are split."""
    threads: int | None = Field(None, ge=1)
    """Number of threads of each process on a CPU; null uses one per core."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds after which a process that is not ready is abandoned."""
    silence_timeout_s: float = Field(300.0, gt=0)
    """Seconds without an answer after which a process is abandoned."""
    log: Path | None = None
    """File for the output of both processes; null drops it."""


TraceEngineSettings = Annotated[
    TransformersTraceSettings | VllmTraceSettings, Field(discriminator="name")
]
