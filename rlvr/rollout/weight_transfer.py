"""Send weights directly from GPU to GPU with vLLM's transfer engines, without a folder.

``ipc`` lets the engine process read the learner's memory on the same GPU; ``nccl`` broadcasts to a
server's GPUs (``rlvr.rollout.nccl_transfer``). The learner's weights must not change between
publishing and loading, so neither works with asynchronous rollouts. The proof after every sync is
the same as with a folder, and so are the names of the tensors: those of published checkpoints,
which vLLM's loaders know, where transformers holds the experts of a mixture as one tensor.

Each process sends to its own engine whenever that one needs it. Weights that are sharded over
processes would have to be gathered by all of them at once, so ZeRO 3 is refused.

vLLM's classes are imported where they are used. An IPC handle refers to GPU memory; the handle is
sent as JSON that names a few types, because vLLM itself would send it as pickle.

This has not been run so far, because there was no GPU; the parts that need none are tested.
"""

import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from transformers.core_model_loading import revert_weight_conversion

from rlvr.policy.merging import shape_buckets
from rlvr.policy.model import Policy
from rlvr.rollout.weight_sync import sent_tensors

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


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which vLLM's senders, which use the thread's current GPU, use this one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class PolicySource:
    """A policy's merged weights in the form that vLLM's sender expects: shapes first, then tensors.

    Args:
        policy: The learner's policy, on a GPU.
        dtype: Type of the tensors that are sent.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self.policy, self.dtype = policy, dtype

    def shapes(self) -> dict[str, torch.Tensor]:
        """The tensors without numbers, in the order of iteration; it gathers no weights."""
        found: dict[str, torch.Tensor] = {}
        for bucket in shape_buckets(self.policy, self.dtype):
            found |= revert_weight_conversion(self.policy.causal_lm, bucket)
        return found

    def metadata(self) -> list[Any]:
        """A ``ParamMeta`` for each tensor, in the order of iteration; it gathers no weights."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in self.shapes().items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Copies of the tensors, because the sender may pack them after their bucket is gone."""
        for name, tensor in sent_tensors(self.policy, self.dtype):
            yield name, tensor.clone(memory_format=torch.contiguous_format)

    def largest(self) -> int:
        """Size of the largest tensor in bytes."""
        return max(tensor.nbytes for tensor in self.shapes().values())

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
    """Connect to the engine process on the policy's GPU.

    vLLM's sender takes all processes of a job for one that shares an engine, and has them gather
    handles and wait for each other. Here each has an engine of its own, which may need the weights
    when no other does.
    """
    from vllm.distributed.weight_transfer.ipc_engine import (
        IPCTrainerInitInfo,
        IPCTrainerWeightTransferEngine,
    )

    info = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=source.buffer_bytes())
    sender: Any = IPCTrainerWeightTransferEngine.trainer_init(
        info, client=ProcessClient(call), source=source
    )
    sender._all_gather_and_merge_handles = lambda handles: handles
    sender._post_send_sync = torch.cuda.ipc_collect
    alone: Sender = sender
    return alone


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
