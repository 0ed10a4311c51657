"""Send weights directly from GPU to GPU with vLLM's transfer engines, without a folder.

``nccl`` broadcasts them to a server's GPUs; ``ipc`` lets the engine process read the learner's
memory on the same GPU. The learner's weights must not change between publishing and loading, so
neither works with asynchronous rollouts. The proof after every sync is the same as with a folder.

vLLM's classes are imported where they are used. An IPC handle refers to GPU memory; the handle is
sent as JSON that names a few types, because vLLM itself would send it as pickle.

This has not been run so far, because there was no GPU; the parts that need none are tested.
"""

import base64
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch

from rlvr.policy.merging import merged_weights, weight_shapes
from rlvr.policy.model import Policy

# Bytes of the buffer into which weights are packed for sending.
_BUFFER_BYTES = 2**28
_TYPES: dict[str, Any] = {
    "Tensor": torch.Tensor,
    "TypedStorage": torch.storage.TypedStorage,
    "UntypedStorage": torch.UntypedStorage,
}


def check_device(transfer: str, device: torch.device) -> None:
    """Check that weights can be transferred from the policy's device.

    Raises:
        ValueError: The transfer goes from GPU to GPU, but the policy is not on a GPU.
    """
    if transfer != "folder" and device.type != "cuda":
        raise ValueError(
            f"rollout.engine.weight_transfer = {transfer!r} goes from GPU to GPU, but the policy "
            f"is on a device of type {device.type!r}; use 'folder'"
        )


class PolicySource:
    """A policy's merged weights in the form that vLLM's sender expects: shapes first, then tensors.

    Args:
        policy: The learner's policy, on a GPU.
        dtype: Type of the tensors that are sent.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self.policy, self.dtype = policy, dtype

    def metadata(self) -> list[Any]:
        """A ``ParamMeta`` for each tensor, in the order of iteration; it gathers no weights."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [
            ParamMeta(name, dtype, shape)
            for name, dtype, shape in weight_shapes(self.policy, self.dtype)
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Copies of the tensors, because the sender may pack them after their bucket is gone."""
        for name, tensor in merged_weights(self.policy, self.dtype):
            yield name, tensor.clone()

    def largest(self) -> int:
        """Size of the largest tensor in bytes."""
        shapes = weight_shapes(self.policy, self.dtype)
        return max(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in shapes)

    def buffer_bytes(self) -> int:
        """Size in bytes of a buffer that holds any tensor."""
        return max(_BUFFER_BYTES, self.largest())


class Sender(Protocol):
    """The common interface of vLLM's trainer-side engines."""

    def send_weights(self) -> None:
        """Send the source's weights and wait until they are in use."""
        ...

    def shutdown(self) -> None:
        """Close the connection."""
        ...


def nccl_sender(address: str, world_size: int, source: PolicySource, client: object) -> Sender:
    """Connect to one server, which forms a separate group with this process.

    Args:
        address: Address of the server, which was started with ``--weight-transfer-config``.
        world_size: Number of GPUs of the server.
        source: The weights to send.
        client: Has the methods of vLLM's ``VLLMWeightSyncClient``.
    """
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLTrainerWeightTransferEngine,
    )

    info = NCCLTrainerInitInfo(**nccl_arguments(address, world_size, source.buffer_bytes()), rank=0)
    sender: Sender = NCCLTrainerWeightTransferEngine.trainer_init(
        info, client=client, source=source
    )
    return sender


def nccl_arguments(address: str, world_size: int, buffer_bytes: int) -> dict[str, Any]:
    """Address and ranks of the group of the server's workers and this process, which is rank 0."""
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
    """This machine's address on the route to ``address``; nothing is sent."""
    parts = urlsplit(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "", parts.port or 80))
        found: str = probe.getsockname()[0]
    return found


Call = Callable[..., Any]
"""Sends one request to the engine process: (method, keyword arguments)."""


class ProcessClient:
    """vLLM's weight-sync client over our channel to the engine process."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._call("transfer", step="init", info=init_info)

    def start_weight_update(self) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._call("transfer", step="start", info={})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """See vLLM's ``VLLMWeightSyncClient``; handles are encoded as JSON."""
        self._call("transfer", step="update", info=encode(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._call("transfer", step="finish", info={})


def ipc_sender(call: Call, source: PolicySource) -> Sender:
    """Connect to the engine process on the policy's GPU."""
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
    """Encode a value of an update as JSON; see :func:`decode`.

    Raises:
        TypeError: It holds a value that cannot occur in an update.
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
    raise TypeError(f"{type(value).__name__} cannot occur in a weight update")


def decode(value: Any) -> Any:  # noqa: ANN401
    """Decode the output of :func:`encode`; it allows only three types and never calls anything.

    Raises:
        ValueError: The value does not come from :func:`encode`.
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
