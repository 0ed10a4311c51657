"""The processes of a job and their collective operations.

With one process, the common case, every operation is the identity and costs nothing. Objects are
sent as JSON in tensors, not pickled, so that reading one can never run code. All operations use a
group for CPU tensors (gloo), separate from the group of the gradients.
"""

import atexit
import json
import os
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """This process's rank in the job; every rank must make each collective call.

    Two threads must not share an instance: give each its own :meth:`group`.

    Args:
        timeout_s: Maximum wait for another rank in a collective call, in seconds.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        self.timeout_s = timeout_s
        joined = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if joined else 0
        self.count: int = dist.get_world_size() if joined else 1
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if joined else 0
        self._group: Any = None
        if self.count > 1:
            _leave_at_exit()
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and prints messages."""
        return self.rank == 0

    def group(self) -> "Ranks":
        """The same ranks with separate connections, for another thread; a collective call."""
        return Ranks(self.timeout_s)

    def share(self, count: int) -> range:
        """This rank's contiguous share of ``count`` items, divided as evenly as possible."""
        return range(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks of a CPU tensor with the same shape on all ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks of a CPU tensor with the same shape on all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: torch.Tensor, operation: Any) -> torch.Tensor:  # noqa: ANN401
        if self.count == 1:
            return values
        total = values.detach().clone().contiguous()
        dist.all_reduce(total, op=operation, group=self._group)
        return total

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """Every rank's JSON value, by rank."""
        if self.count == 1:
            return [value]
        body = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self._gather_tensor(torch.tensor([len(body)]))
        longest = int(max(sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(body)] = body
        bodies = self._gather_tensor(padded)
        return [
            json.loads(bytes(found[: int(size)].numpy()))
            for found, size in zip(bodies, sizes, strict=True)
        ]

    def _gather_tensor(self, values: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(found, values, group=self._group)
        return found

    def broadcast(self, value: Any) -> Any:  # noqa: ANN401
        """Rank 0's value, on every rank."""
        return self.gather(value if self.first else None)[0]

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.count > 1:
            dist.barrier(group=self._group)


@cache
def _leave_at_exit() -> None:
    """Have this process leave the job before the interpreter is taken down.

    Else threads of the groups are, which aborts the process now and then after all is done.
    """
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
