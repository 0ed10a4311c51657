"""The weights of a policy with its adapters merged, one bucket at a time.

Merging adds an adapter's product to the weight that it adapts, in float32, and leaves the policy as
it is. Sharded weights are whole only while their bucket is the current one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from rlvr.policy.held import HeldLinear, held_alone, quantised_layers
from rlvr.policy.model import Policy

# Bytes of weights that are gathered at once.
BUCKET_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class _Entry:
    """A weight of the model and the adapter to be added to it."""

    name: str
    tensor: torch.Tensor
    adapter: Any = None
    layer: HeldLinear | None = None
    """Makes the weight whole, where the tensor is quantised."""

    @property
    def floating(self) -> bool:
        """Whether the whole weight is of floating point."""
        return self.layer is not None or self.tensor.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole weight."""
        if self.layer is not None:
            return (self.layer.out_features, self.layer.in_features)
        return tuple(getattr(self.tensor, "ds_shape", self.tensor.shape))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that must be gathered before the merged weight can be computed."""
        found = [self.tensor] if isinstance(self.tensor, nn.Parameter) else []
        if self.adapter is not None:
            found += [p for name, p in self.adapter.named_parameters() if "lora_" in name]
        return found

    def merged(self, dtype: torch.dtype) -> torch.Tensor:
        """The merged weight; the adapter is added in float32 at least."""
        value = self.tensor.detach()
        if self.layer is not None:
            value = self.layer.whole_weight(torch.float32)
        if self.adapter is not None:
            value = value + added(self.adapter)
        return (value.to(dtype) if value.is_floating_point() else value).contiguous()

    def on_meta(self, dtype: torch.dtype) -> torch.Tensor:
        """The merged weight's shape and dtype, as a tensor without numbers."""
        kept = dtype if self.floating else self.tensor.dtype
        return torch.empty(self.shape, dtype=kept, device="meta")


def merged_buckets(
    policy: Policy, dtype: torch.dtype, most: int = BUCKET_BYTES, *, adapters: bool = True
) -> Iterator[dict[str, torch.Tensor]]:
    """The policy's weights with the names of its architecture, in ``dtype``, one bucket at a time.

    Adapters are merged in the precision of the base weights and rounded once; the policy does not
    change. Tied tensors appear once. Sharded weights are whole only while their bucket is the
    current one, and every process must iterate over the buckets in step. Copy a tensor that must
    last longer, because it may be the policy's own.

    Args:
        policy: The learner's policy.
        dtype: Type of the floating-point tensors.
        most: Maximum bytes of a bucket in ``dtype``; a larger weight forms a separate bucket.
        adapters: Whether to merge adapters; if not, the weights are those of the base.
    """
    for bucket in _buckets(policy, dtype, most, adapters):
        yield from _realised(policy, bucket, dtype)


def merged_weights(
    policy: Policy, dtype: torch.dtype, most: int = BUCKET_BYTES
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of :func:`merged_buckets` one by one; they last only as long as their bucket."""
    for bucket in merged_buckets(policy, dtype, most):
        yield from bucket.items()


def shape_buckets(
    policy: Policy, dtype: torch.dtype, most: int = BUCKET_BYTES
) -> Iterator[dict[str, torch.Tensor]]:
    """:func:`merged_buckets` without numbers, on torch's meta device; it gathers nothing."""
    for bucket in _buckets(policy, dtype, most):
        yield {entry.name: entry.on_meta(dtype) for entry in bucket}


def weight_shapes(
    policy: Policy, dtype: torch.dtype
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and whole shape of each tensor of :func:`merged_weights`, without gathering."""
    buckets = shape_buckets(policy, dtype)
    return [(name, t.dtype, tuple(t.shape)) for bucket in buckets for name, t in bucket.items()]


def _buckets(
    policy: Policy, dtype: torch.dtype, most: int, adapters: bool = True
) -> Iterator[list[_Entry]]:
    bucket: list[_Entry] = []
    size = 0
    for entry in _entries(policy, adapters=adapters):
        more = prod(entry.shape) * dtype.itemsize
        if bucket and size + more > most:
            yield bucket
            bucket, size = [], 0
        bucket.append(entry)
        size += more
    yield bucket


def _realised(
    policy: Policy, bucket: list[_Entry], dtype: torch.dtype
) -> Iterator[dict[str, torch.Tensor]]:
    parameters = [parameter for entry in bucket for parameter in entry.parameters]
    with policy.gathered(parameters):
        with torch.no_grad():
            merged = {entry.name: entry.merged(dtype) for entry in bucket}
        yield merged


def adapted_weights(policy: Policy) -> Iterator[tuple[torch.Tensor, HeldLinear | None, Any]]:
    """Each parameter that an adapter changes, the layer where it is held alone, and the adapter."""
    alone = {id(layer.weight): layer for layer in held_alone(policy.causal_lm)}
    for key, adapter in _adapters(policy).items():
        yield _adapted_weight(adapter), alone.get(key), adapter


def added(adapter: Any) -> torch.Tensor:  # noqa: ANN401
    """What an adapter adds to its weight."""
    with torch.no_grad():
        product: torch.Tensor = adapter.get_delta_weight(adapter.active_adapters[0])
    return product


def _adapters(policy: Policy) -> dict[int, Any]:
    """Adapters by the identity of the weight that they change."""
    return {
        id(_adapted_weight(module)): module
        for module in policy.causal_lm.modules()
        if hasattr(module, "get_delta_weight") and module.active_adapters
    }


def _entries(policy: Policy, *, adapters: bool = True) -> Iterator[_Entry]:
    """Every weight except those of adapters, once, with the adapter that changes it."""
    causal_lm = policy.causal_lm
    changes = _adapters(policy) if adapters else {}
    quantised = quantised_layers(causal_lm)
    seen: set[int] = set()
    for name, tensor in causal_lm.state_dict(keep_vars=True).items():
        # Compare by identity, not by address: all sharded parameters share the same empty memory.
        if ".lora_" in name or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        plain, key = name.replace(".base_layer", ""), id(tensor)
        yield _Entry(plain, tensor, changes.pop(key, None), quantised.get(key))
    assert not changes, "an adapter changes a weight that the model does not have"


def _adapted_weight(adapter: Any) -> torch.Tensor:  # noqa: ANN401
    """What an adapter is added to: a layer's weight, or a parameter that it names (experts)."""
    weight: torch.Tensor
    weight = getattr(adapter.get_base_layer(), getattr(adapter, "parameter_name", "weight"))
    return weight
