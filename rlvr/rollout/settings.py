"""The choice of engines, and the settings of each; the engines themselves load heavy libraries."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlvr.settings import Settings

DEFAULT_PORT = 8000
LOOPBACK = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
WEIGHTS_PREFIX = "rlvr-weights-"
"""How the name of a folder of weights on their way to an engine begins."""
ALONE = {"VLLM_HOST_IP": LOOPBACK, "GLOO_SOCKET_IFNAME": "lo"}
"""What keeps the sockets among vLLM's processes, which have no key, on the loopback of Linux."""
_LOCAL = ("localhost", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host of an address."""
    return host.startswith("127.") or host in _LOCAL


class TransformersEngineSettings(Settings):
    """Generate with the learner's own weights, with transformers."""

    name: Literal["transformers"] = "transformers"
    max_rows: int = Field(256, ge=1)
    """Maximum number of completions generated at the same time."""

    @property
    def overlaps(self) -> bool:
        """False, because it generates with the same weights that are being updated."""
        return False


class VllmEngineSettings(Settings):
    """Generate with vLLM in a separate process."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {
            "weights_folder",
            "log",
            "start_timeout_s",
            "silence_timeout_s",
            "max_restarts",
        }
    )
    name: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The engine's precision; "auto" is ``model.precision``. A recipe may not name another one,
    because the samples would come from a different policy, more so with every update."""
    enforce_eager: bool = True
    """Run the model without compilation. If false, vLLM compiles it: slower start, faster steps."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence (prompt and completion) in tokens; null is what the run's prompts and
    completions may need."""
    max_num_seqs: int = Field(128, ge=1)
    """Maximum number of completions that run at the same time; others wait and replace finished
    ones."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Memory in GiB for keys and values; null is 1 GiB on a CPU and follows from ``memory_share``
    on a GPU."""
    memory_share: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that the engine may use in total; null is what the learner leaves, or
    half of that if the engine does not sleep."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of devices over which the engine's weights are split: the process's own GPU, and GPUs
    without a learner."""
    block_size: int | None = Field(None, ge=16)
    """Tokens per block of the cache; samples of a prompt share whole blocks. Null is 32 on a CPU
    and vLLM's choice elsewhere."""
    threads: int | None = Field(None, ge=1)
    """Number of threads of the engine on a CPU; null uses one per core available to the process."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds after which an engine that is not ready is abandoned."""
    silence_timeout_s: float = Field(300.0, gt=0)
    """Seconds without a sign of life after which a working engine is killed and restarted."""
    max_restarts: int = Field(3, ge=0)
    """How many times in a row the engine may die before the run ends."""
    sync_tolerance: float | None = Field(None, gt=0)
    """Largest mean |difference| in nats between engine and learner on a fixed sequence after new
    weights; null is 0.001 for float32 (0.01 on a GPU) and 0.25 for bfloat16."""
    weights_folder: Path | None = None
    """Folder through which the weights go; null is shared memory if they fit."""
    weight_transfer: Literal["folder", "ipc"] = "folder"
    """How new weights reach the engine: "folder" through a folder, "ipc" from the learner's memory
    on the same GPU. ipc excludes asynchronous rollouts, tensor parallelism and ZeRO 3."""
    lora: Literal["merged", "adapter"] = "merged"
    """How a policy with adapters (``model.lora``) reaches the engine: "merged" sends all weights
    with the adapters merged, "adapter" the base once and then only adapters, which needs
    ``weight_transfer: folder``, ``sleep: 0`` or null, and ``tensor_parallel_size: 1``."""
    sleep: Literal[0, 1, 2] | None = None
    """What is removed from the GPU while the engine is idle: 0 nothing; 1 the cache, and the
    weights move to the CPU; 2 both, and the weights are sent again. 1 and 2 exclude asynchronous
    rollouts. Null is 1 beside a learner on a GPU that updates in turn, or else 0."""
    log: Path | None = None
    """File for the engine's output; null drops the output when the engine ends."""

    @property
    def overlaps(self) -> bool:
        """Whether the engine may generate while the learner updates."""
        return self.weight_transfer == "folder" and not self.sleep

    def sleeps(self, takes_turns: bool) -> bool:
        """Whether an engine on a GPU sleeps between calls.

        Args:
            takes_turns: Whether a learner on the same GPU updates the policy between calls.
        """
        if self.sleep is None:
            return takes_turns and self.lora == "merged"
        return self.sleep > 0

    @model_validator(mode="after")
    def _weights_reach_every_gpu(self) -> "VllmEngineSettings":
        if self.weight_transfer == "ipc" and self.tensor_parallel_size > 1:
            raise ValueError(
                f"weight_transfer = 'ipc' with tensor_parallel_size = {self.tensor_parallel_size}: "
                "a handle leads to the memory of the learner's own GPU, which the engine's other "
                "GPUs cannot open; use folder"
            )
        return self

    @model_validator(mode="after")
    def _adapters_can_be_sent(self) -> "VllmEngineSettings":
        needed = {"weight_transfer": "folder", "sleep": 0, "tensor_parallel_size": 1}
        for name, value in needed.items():
            given = getattr(self, name)
            if self.lora == "adapter" and given not in (value, None):
                raise ValueError(
                    f"lora = 'adapter' does not go with {name} = {given!r}: set {name} to "
                    f"{value!r}, or lora to merged"
                )
        return self


class VllmServerEngineSettings(Settings):
    """Generate with vLLM servers, which `rlvr serve` starts."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {
            "addresses",
            "api_key_variable",
            "weights_folder",
            "start_timeout_s",
            "outage_timeout_s",
            "request_timeout_s",
            "silence_timeout_s",
            "max_retries",
        }
    )
    name: Literal["vllm_server"] = "vllm_server"
    addresses: tuple[str, ...] = Field((f"http://{LOOPBACK}:{DEFAULT_PORT}",), min_length=1)
    """Addresses of the servers, each as http://HOST:PORT."""
    api_key_variable: str = "VLLM_API_KEY"
    """Environment variable that holds the servers' API key; if it is not set, the key is that of
    `~/.config/rlvr/server_key`, which `rlvr serve` makes."""
    max_in_flight: int = Field(128, ge=1)
    """Maximum number of completions in flight at one server."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds within which all servers must be ready at the start."""
    outage_timeout_s: float = Field(300.0, gt=0)
    """Seconds without any ready server after which a running run ends."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Maximum seconds for one completion, or for loading weights."""
    silence_timeout_s: float = Field(30.0, gt=0)
    """Seconds within which a server must answer a health check."""
    max_retries: int = Field(8, ge=0)
    """How often one completion may fail, on any server, before the run ends."""
    sync_tolerance: float | None = Field(None, gt=0)
    """Largest mean |difference| in nats between a server and the learner on a fixed sequence after
    new weights; null is 0.001 for float32 (0.01 with the learner on a GPU) and 0.25 for
    bfloat16."""
    weights_folder: Path | None = None
    """Folder through which the weights go; null is shared memory if they fit. Servers on other
    machines need a folder on a shared disk with the same path everywhere. Start the servers with
    --weights-folder and the same folder."""

    weight_transfer: Literal["folder", "nccl"] = "folder"
    """How new weights reach the servers: "folder" through a folder, "nccl" from GPU to GPU; for
    nccl start the servers with --nccl. nccl excludes asynchronous rollouts and ZeRO 3."""

    @property
    def overlaps(self) -> bool:
        """Whether the servers may generate while the learner updates."""
        return self.weight_transfer == "folder"

    @field_validator("addresses")
    @classmethod
    def _addresses_are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
                raise ValueError(f"{address!r} is not an address such as http://{LOOPBACK}:8000")
        if len({address.rstrip("/") for address in addresses}) < len(addresses):
            raise ValueError("an address occurs twice; remove one")
        return addresses

    @model_validator(mode="after")
    def _weights_can_get_there(self) -> "VllmServerEngineSettings":
        for address in self.addresses:
            host = urlsplit(address).hostname or ""
            through_folder = self.weight_transfer == "folder" and self.weights_folder is None
            if through_folder and not is_loopback(host):
                raise ValueError(
                    f"the weights cannot reach {address}: set weights_folder to a folder that this "
                    "machine and the servers share"
                )
        return self


AnyEngineSettings = TransformersEngineSettings | VllmEngineSettings | VllmServerEngineSettings
EngineSettings = Annotated[AnyEngineSettings, Field(discriminator="name")]
