"""AdamW's two moments of a parameter in float32, bfloat16 or 8 bits.

    float32    exp_avg, exp_avg_sq of the parameter's shape
    bfloat16   likewise, rounded at random
    int8       codes of exp_avg and of the root of exp_avg_sq, and exp_avg_scale, exp_avg_sq_scale:
               a float32 for 256 of them

A checkpoint holds them as they are; any store can take up what another one wrote.
"""

from collections.abc import Mapping
from typing import Any

import torch

from rlvr.learner.rounding import BLOCK, from_codes, to_bfloat16, to_codes
from rlvr.learner.settings import OptimizerStates

MOMENTS = ("exp_avg", "exp_avg_sq")
_MEAN, _SQUARE = MOMENTS


def scale_of(key: str) -> str:
    """What the scales of a moment are called."""
    return f"{key}_scale"


def empty_moments(parameter: torch.Tensor, states: OptimizerStates) -> dict[str, torch.Tensor]:
    """Moments of zero for a parameter."""
    whole = torch.promote_types(parameter.dtype, torch.float32)
    dtype = {"float32": whole, "bfloat16": torch.bfloat16, "int8": torch.uint8}[states]
    if states != "int8":
        return {key: torch.zeros_like(parameter, dtype=dtype) for key in MOMENTS}
    # All zeros have one code; finding it for each takes 40 bytes a weight for a moment.
    blocks, one = -(-parameter.numel() // BLOCK), torch.zeros(1, device=parameter.device)
    tensors = {}
    for key in MOMENTS:
        code, _ = to_codes(one, None, signed=key == _MEAN)
        tensors[key] = torch.full_like(parameter, int(code), dtype=dtype)
        tensors[scale_of(key)] = one.new_zeros(blocks)
    return tensors


class Moments:
    """The elements ``start`` to ``end`` of both moments of a flattened parameter.

    Args:
        state: What the optimizer holds of the parameter.
        start: With 8 bits the start of a block.
        end: Exclusive.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], start: int, end: int) -> None:
        self._parts = {key: state[key].view(-1)[start:end] for key in MOMENTS}
        blocks = slice(start // BLOCK, -(-end // BLOCK))
        names = [scale_of(key) for key in MOMENTS if scale_of(key) in state]
        self._scales = {name: state[name][blocks] for name in names}

    def read(self) -> list[torch.Tensor]:
        """Mean and mean square, float32."""
        return [
            _whole(key, part, self._scales.get(scale_of(key))) for key, part in self._parts.items()
        ]

    def write(
        self, mean: torch.Tensor, square: torch.Tensor, noise: torch.Generator | None
    ) -> None:
        """Put both back, rounded at random with ``noise``, or to the nearest without."""
        for (key, part), value in zip(self._parts.items(), (mean, square), strict=True):
            if self._scales:
                root = value if key == _MEAN else value.sqrt()
                codes, scales = to_codes(root, noise, signed=key == _MEAN)
                part.copy_(codes)
                self._scales[scale_of(key)].copy_(scales)
            elif part.dtype == torch.bfloat16 and noise is not None:
                part.copy_(to_bfloat16(value, noise))
            else:
                part.copy_(value)


def _whole(key: str, part: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    if scales is None:
        return part if part.dtype == torch.float32 else part.float()
    value = from_codes(part.view(-1), scales, signed=key == _MEAN)
    return value if key == _MEAN else value.square()


def saved_moment(tensors: Mapping[str, Any], key: str, name: str) -> torch.Tensor:
    """A moment of a checkpoint in float32 (float64 stays), whatever it was held in."""
    tensor: torch.Tensor = tensors[f"{key}/{name}"]
    scales = f"{scale_of(key)}/{name}"
    if scales in tensors:
        return _whole(key, tensor, tensors[scales]).view(tensor.shape)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def load_moments(state: dict[str, torch.Tensor], tensors: Mapping[str, Any], name: str) -> None:
    """Take up a parameter's moments from a checkpoint, as they are or in another precision."""
    keys = [key for key in state if key != "step"]
    alike = all(
        f"{key}/{name}" in tensors and tensors[f"{key}/{name}"].dtype == state[key].dtype
        for key in keys
    )
    if alike:
        for key in keys:
            state[key].copy_(tensors[f"{key}/{name}"].view_as(state[key]))
    else:
        mean, square = (saved_moment(tensors, key, name).reshape(-1) for key in MOMENTS)
        Moments(state, 0, state[_MEAN].numel()).write(mean, square, None)
