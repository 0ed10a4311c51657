"""Weights straight from GPU to GPU, by vLLM's own transfer engines and without a folder between.

``nccl`` broadcasts them to a server's GPUs, ``ipc`` lets the engine process read the learner's
memory on the same GPU. The learner stands still from publishing to loading, so an engine with
either does not sample ahead; the proof after every sync is the same as with a folder.

vLLM's classes are imported where they are used. What goes over an IPC handle is memory of a GPU;
the handle itself travels as JSON with a few types named in it, for vLLM's own way of sending it is
pickle.

None of this has been run so far, for want of a GPU; what needs none is tested.
"""

import base64
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch

from rlvr.policy import Policy
from rlvr.rollout.weights import merged_weights, weight_shapes

# Of the buffer that weights are packed into on their way.
_BUFFER_BYTES = 2**28
_TYPES: dict[str, Any] = {
    "Tensor": torch.Tensor,
    "TypedStorage": torch.storage.TypedStorage,
    "UntypedStorage": torch.UntypedStorage,
}


def check_device(transfer: str, device: torch.device) -> None:
    """See that a transfer is possible from where the policy is.

    Raises:
        ValueError: It goes from GPU to GPU and there is none.
    """
    if transfer != "folder" and device.type != "cuda":
        raise ValueError(
            f"rollout.engine.weight_transfer = {transfer!r} goes from GPU to GPU, and the "
            f"policy is on a device of type {device.type!r}; use 'folder'"
        )


class PolicySource:
    """A policy's merged weights as vLLM's sender wants them: shapes first, then the tensors.

    Args:
        policy: The learner's policy, on a GPU.
        dtype: Of the tensors that are sent.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self.policy, self.dtype = policy, dtype

    def metadata(self) -> list[Any]:
        """A ``ParamMeta`` for each tensor, in the order of iteration; gathers nothing."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [
            ParamMeta(name, dtype, shape)
            for name, dtype, shape in weight_shapes(self.policy, self.dtype)
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Copies, for the sender packs them when their bucket may be gone."""
        for name, tensor in merged_weights(self.policy, self.dtype):
            yield name, tensor.clone()

    def largest(self) -> int:
        """Bytes of the largest tensor."""
        shapes = weight_shapes(self.policy, self.dtype)
        return max(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in shapes)

    def buffer_bytes(self) -> int:
        """Bytes of a buffer that takes any tensor."""
        return max(_BUFFER_BYTES, self.largest())


class Sender(Protocol):
    """What vLLM's trainer-side engines have in common."""

    def send_weights(self) -> None:
        """Send the source's weights and wait until they are in use."""
        ...

    def shutdown(self) -> None:
        """Give up the connection."""
        ...


def nccl_sender(address: str, world_size: int, source: PolicySource, timeout_s: float) -> Sender:
    """A connection to one server, which joins a group of its own with this process.

    Args:
        address: Of the server, which was started with ``--weight-transfer-config``.
        world_size: GPUs of the server.
        source: What will be sent.
        timeout_s: Longest time of one request.
    """
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLTrainerWeightTransferEngine,
    )

    info = NCCLTrainerInitInfo(**nccl_arguments(address, world_size, source.buffer_bytes()), rank=0)
    client = HTTPVLLMWeightSyncClient(address, timeout_s)
    sender: Sender = NCCLTrainerWeightTransferEngine.trainer_init(
        info, client=client, source=source
    )
    return sender


def nccl_arguments(address: str, world_size: int, buffer_bytes: int) -> dict[str, Any]:
    """Where the server's workers meet this process, which is rank 0."""
    host = own_address(address)
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return {
        "master_address": host,
        "master_port": port,
        "world_size": world_size + 1,
        "packed": True,
        "packed_buffer_size_bytes": buffer_bytes,
    }


def own_address(address: str) -> str:
    """This machine's address on the way to ``address``; nothing is sent."""
    parts = urlsplit(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "", parts.port or 80))
        found: str = probe.getsockname()[0]
    return found


Call = Callable[..., Any]
"""Asks the engine process for one thing: (method, arguments by name)."""


class ProcessClient:
    """vLLM's weight-sync client over our own channel to the engine process."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._call("transfer", step="init", info=init_info)

    def start_weight_update(self) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._call("transfer", step="start", info={})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """See vLLM's ``VLLMWeightSyncClient``; the handles in it are made plain."""
        self._call("transfer", step="update", info=encode(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._call("transfer", step="finish", info={})


def ipc_sender(call: Call, source: PolicySource) -> Sender:
    """A connection to the engine process, on the GPU of the policy."""
    from vllm.distributed.weight_transfer.ipc_engine import (
        IPCTrainerInitInfo,
        IPCTrainerWeightTransferEngine,
    )

    info = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=source.buffer_bytes())
    sender: Sender = IPCTrainerWeightTransferEngine.trainer_init(
        info, client=ProcessClient(call), source=source
    )
    return sender


def encode(value: Any) -> Any:  # noqa: ANN401
    """A value of an update as JSON can carry it; see :func:`decode`.

    Raises:
        TypeError: It holds something that no update holds.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for name, known in _TYPES.items():
        if value is known:
            return {"type": name}
    raise TypeError(f"{type(value).__name__} is nothing that a weight update holds")


def decode(value: Any) -> Any:  # noqa: ANN401
    """What :func:`encode` was given; a type is one of three, and nothing is ever called.

    Raises:
        ValueError: It is nothing that :func:`encode` makes.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, list):
        return [decode(item) for item in value]
    ((kind, body),) = value.items()
    if kind == "bytes":
        return base64.b64decode(body)
    if kind == "tuple":
        return tuple(decode(item) for item in body)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in body}
    if kind == "type" and body in _TYPES:
        return _TYPES[body]
    if kind == "dtype" and isinstance(getattr(torch, body, None), torch.dtype):
        return getattr(torch, body)
    raise ValueError(f"not part of a weight update: {kind} {body!r}")
