"""Broadcast weights to the GPUs of one server, within a time limit.

A broadcast ends when every GPU of the group has taken part. If the server dies in its midst, NCCL
waits for ever, and so would the thread that called it. So the broadcast runs in a thread that may
be left behind: whoever waits for it learns that the server refused or failed as soon as the
server's answer says so, and gives up after a time limit. The group is then aborted, and the server
gets a new one when it is back.

Every fault of a server, whatever library noticed it, is a
:class:`~rlvr.rollout.server.ServerFailedError` that names the server, which is what the pool of
servers knows how to handle.
"""

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from rlvr.rollout.serve import start_hint
from rlvr.rollout.server import ServerFailedError, ServerRefusedError
from rlvr.rollout.weight_client import HTTPClient
from rlvr.rollout.weight_transfer import PolicySource, Sender, on_device

# What vLLM says without --weight-transfer-config.
_NOT_STARTED_FOR_IT = "Weight transfer not configured"


class TransferClient(HTTPClient):
    """The requests of a transfer, whose faults are told at once.

    Args:
        address: Address of the server.
        key: API key, sent as a bearer token; None sends none.
        timeout_s: Maximum seconds for one request.
        failed: Called with the fault as soon as a request fails, while another thread may still
            be in a broadcast that cannot end.
    """

    def __init__(
        self,
        address: str,
        key: str | None,
        timeout_s: float,
        failed: Callable[[Exception], None],
    ) -> None:
        super().__init__(address, key, timeout_s)
        self.address, self.failed = address, failed

    def _post(self, step: str, body: dict[str, Any] | None = None) -> None:
        try:
            super()._post(step, body)
        except ServerFailedError as error:
            fault: Exception = error
            if _NOT_STARTED_FOR_IT in str(error):
                fault = ServerRefusedError(
                    f"a server takes no weights from GPU to GPU ({error}); "
                    f"{start_hint(self.address)} --nccl"
                )
            self.failed(fault)
            raise fault from error


class BroadcastSender(Protocol):
    """vLLM's trainer-side engine for NCCL, as far as it is used."""

    model_update_group: Any

    def send_weights(self) -> None:
        """Broadcast the source's weights and wait until they are in use."""
        ...

    def shutdown(self) -> None:
        """Abort the group."""
        ...


class NcclSender(Sender):
    """Sends a policy's weights to one server; the first time it forms a group with its GPUs.

    Args:
        address: Address of the server, which was started with ``--weight-transfer-config``.
        world_size: Number of GPUs of the server.
        source: The weights to send.
        key: API key of the server.
        timeout_s: Maximum seconds for forming the group, and for sending the weights.
    """

    def __init__(
        self,
        address: str,
        world_size: int,
        source: PolicySource,
        key: str | None,
        timeout_s: float,
    ) -> None:
        self.address, self.world_size, self.source = address, world_size, source
        self.timeout_s = timeout_s
        # What became of the current work: (its result, or the fault that ended it).
        self._outcomes: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._client = TransferClient(
            address, key, timeout_s, lambda fault: self._outcomes.put((None, fault))
        )
        self._engine: BroadcastSender | None = None

    def send_weights(self) -> None:
        """See :class:`~rlvr.rollout.weight_transfer.Sender`.

        Raises:
            ServerFailedError: The server did not form the group, or did not take the weights in
                time; this sender is then of no further use.
            ServerRefusedError: The server was not started for it.
        """
        if self._engine is None:
            self._engine = self._within("forming a group for weights", self._connect)
        self._within("the broadcast of weights", self._engine.send_weights)

    def shutdown(self) -> None:
        """Abort the group; returns at once, as NCCL may take its time."""
        engine, self._engine = self._engine, None
        if engine is not None:
            # Not a daemon: at the end of the program it is waited for; vLLM gives up after 5 s.
            threading.Thread(target=engine.shutdown, name="nccl abort").start()

    def _connect(self) -> BroadcastSender:
        buffer_bytes = self.source.buffer_bytes()
        arguments = nccl_arguments(self.address, self.world_size, buffer_bytes)
        return connect(arguments, self._client, self.source)

    def _within(self, what: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401
        threading.Thread(target=self._run, args=(work,), daemon=True, name="nccl").start()
        try:
            result, fault = self._outcomes.get(timeout=self.timeout_s)
        except queue.Empty:
            fault = TimeoutError(f"{what} did not end within {self.timeout_s:g} s")
        if fault is None:
            return result
        self.shutdown()
        if isinstance(fault, (ServerFailedError, ServerRefusedError)):
            raise fault
        if isinstance(fault, (OSError, RuntimeError)):  # of sockets, of torch's store, of NCCL
            raise ServerFailedError(
                f"{self.address}: {what} failed: {type(fault).__name__}: "
                f"{' '.join(str(fault).split())[:300]}; if it stays out, restart that server",
                gone=True,
            ) from fault
        raise fault

    def _run(self, work: Callable[[], Any]) -> None:
        """The thread's work; a later sender has outcomes of its own."""
        try:
            with on_device(self.source.policy.device):
                self._outcomes.put((work(), None))
        except Exception as error:  # the thread's boundary: raised where it is waited for
            self._outcomes.put((None, error))


def connect(
    arguments: dict[str, Any], client: TransferClient, source: PolicySource
) -> BroadcastSender:
    """Form a group of this process, which is rank 0, and the server's workers."""
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLTrainerWeightTransferEngine,
    )

    info = NCCLTrainerInitInfo(**arguments, rank=0)
    sender: BroadcastSender = NCCLTrainerWeightTransferEngine.trainer_init(
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
