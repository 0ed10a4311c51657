"""A hash of a policy's tensors that is cheap enough to take after every step.

The bits of a tensor are read as 64-bit integers x_0, x_1, ... in rows of ``_ROW``, and

    checksum = sum over rows i of  h(i) * sum over columns j of  m(j) * (x_ij + (x_ij >> 32))

modulo 2^64, with odd pseudo-random h and m (SplitMix64; Steele et al., "Fast splittable
pseudorandom number generators", OOPSLA 2014). Integers add up to the same in every order, so it is
the same on every device, and every place has its own multiplier, so numbers that change places are
noticed. A single changed number always changes it, as odd multipliers are invertible; the shifted
term has high bits that change together (two signs) meet low bits of the multipliers. SHA-256 over
names, shapes, types and checksums, in the order of names, is the fingerprint.

It tells accidents: other weights, in other places, under other names. It is no signature: whoever
wants to can make another tensor with the same checksum.

Whole tensors are read, one bucket at a time where they are sharded, so that the fingerprint depends
neither on the number of processes nor on the stage of ZeRO.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from rlvr.policy.merging import BUCKET_BYTES
from rlvr.policy.model import Policy

_ROW = 2**16
_ROWS_AT_ONCE = 64
_WORD = 8
_MASK = 2**64 - 1


def fingerprint(policy: Policy, *, trained: bool = True, most: int = BUCKET_BYTES) -> str:
    """SHA-256 (hexadecimal) of the policy's trained tensors, or of the frozen ones; collective.

    Args:
        policy: Its sharded weights are gathered, on every process.
        trained: Whether tensors with gradients are meant, or all others (buffers, too).
        most: Maximum bytes that are gathered at once.
    """
    chosen = [(name, t) for name, t in _tensors(policy) if t.requires_grad == trained]
    digest = hashlib.sha256()
    for bucket in _buckets(chosen, most):
        with policy.gathered([t for _, t in bucket if isinstance(t, nn.Parameter)]):
            for name, tensor in bucket:
                shape, bits = list(tensor.shape), checksum(tensor)
                digest.update(f"{name} {shape} {tensor.dtype} {bits:016x}\n".encode())
    return digest.hexdigest()


def checksum(tensor: torch.Tensor) -> int:
    """The checksum of a tensor's bits in the order of its elements, from 0 to 2^64 - 1."""
    words_W, device = _words(tensor.detach()), tensor.device
    multipliers_J = _multipliers(_ROW, 0).to(device)
    whole = len(words_W) // _ROW * _ROW
    rows_IJ = words_W[:whole].view(-1, _ROW)
    if device.type == "cpu":
        sums = [_row_sums_on_cpu(rows_IJ, multipliers_J)]
    else:
        chunks = rows_IJ.split(_ROWS_AT_ONCE)
        sums = [_row_sums(chunk_IJ, multipliers_J) for chunk_IJ in chunks]
    rest_J = words_W[whole:]
    sums.append(_row_sums(rest_J[None], multipliers_J[: len(rest_J)]))
    sums_I = torch.cat(sums)
    total = int((sums_I * _multipliers(len(sums_I), 1).to(device)).sum())
    return total & _MASK


def _row_sums(words_IJ: torch.Tensor, multipliers_J: torch.Tensor) -> torch.Tensor:
    mixed_IJ = words_IJ >> 32
    mixed_IJ += words_IJ
    mixed_IJ *= multipliers_J
    return mixed_IJ.sum(-1)


def _row_sums_on_cpu(words_IJ: torch.Tensor, multipliers_J: torch.Tensor) -> torch.Tensor:
    """The same sums in one buffer of a row, which the cache of a core holds.

    NumPy's product of integers neither writes the products nor takes another thread.
    """
    rows_IJ, factors_J = words_IJ.numpy(), multipliers_J.numpy()
    sums_I, mixed_J = np.empty(len(rows_IJ), np.int64), np.empty_like(factors_J)
    for place, row_J in enumerate(rows_IJ):
        np.right_shift(row_J, 32, out=mixed_J)
        np.add(mixed_J, row_J, out=mixed_J)
        sums_I[place] = np.dot(mixed_J, factors_J)
    return torch.from_numpy(sums_I)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes as 64-bit integers [W], the last one filled up with zeros."""
    flat = tensor.contiguous().view(-1)
    if flat.storage_offset() * flat.element_size() % _WORD:
        flat = flat.clone()  # a view of other integers must begin at a multiple of their size
    fitting = flat.numel() * flat.element_size() // _WORD * _WORD // flat.element_size()
    words_W = flat[:fitting].view(torch.int64)
    if fitting == flat.numel():
        return words_W
    rest = flat[fitting:].clone().view(torch.uint8)
    padded = torch.zeros(_WORD, dtype=torch.uint8, device=flat.device)
    padded[: len(rest)] = rest
    return torch.cat([words_W, padded.view(torch.int64)])


@cache
def _multipliers(count: int, stream: int) -> torch.Tensor:
    """Odd pseudo-random 64-bit integers [count]; SplitMix64 at consecutive places."""
    place = torch.arange(count, dtype=torch.int64) + (stream << 40)
    mixed = (place + 1) * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    return (mixed ^ _shifted(mixed, 31)) | 1


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shifted(values: torch.Tensor, by: int) -> torch.Tensor:
    """A shift to the right that fills up with zeros."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def _tensors(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model once, in the order of names."""
    seen: set[int] = set()
    found: dict[str, Any] = policy.causal_lm.state_dict(keep_vars=True)
    for name in sorted(found):
        # By identity, not by address: all sharded parameters share the same empty memory.
        if isinstance(found[name], torch.Tensor) and id(found[name]) not in seen:
            seen.add(id(found[name]))
            yield name, found[name]


def _buckets(
    tensors: list[tuple[str, torch.Tensor]], most: int
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        more = getattr(tensor, "ds_numel", tensor.numel()) * tensor.element_size()
        if bucket and size + more > most:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += more
    if bucket:
        yield bucket
