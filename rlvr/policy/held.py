"""Weights of linear layers and embeddings held with fewer bits than they compute with.

    bfloat16   2 bytes a weight
    int8       1 byte, and a float32 scale a row: w = s q, s = max |w| / 127 of the row
               (Dettmers et al., LLM.int8(), arXiv:2208.07339, section 2.1, of the weights alone)
    nf4        half a byte, and a float32 scale for 64: the 16 quantiles of a normal distribution
               (Dettmers et al., QLoRA, arXiv:2305.14314, section 3), through bitsandbytes

A layer's weight is made whole while the layer runs, forward and again backward, in the precision
that it computes with; so the numbers are those of the rounded weights in float32, and merging
adapters into them changes nothing but rounding. A lookup gives float32, as it does under autocast:
the residual stream is not rounded. Norms, biases and weights that are no plain linear layer or
embedding (a mixture's experts, convolutions) stay float32.

The parameters stay the same objects, so tied weights stay tied.
"""

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from rlvr.policy.settings import FrozenWeights, ModelSettings

_BLOCK = 64
_SLICE = 2**24
"""Weights looked at or rounded at once."""


def hold(causal_lm: Any, settings: ModelSettings) -> None:  # noqa: ANN401
    """Hold the weights of a model in float32 as the settings say, trained and frozen ones.

    Args:
        causal_lm: Of transformers, with its adapters if it is to have some; what requires a
            gradient is trained.
        settings: Its ``weights``, ``frozen_weights`` and ``precision``.

    Raises:
        ValueError: NF4 is asked for, and bitsandbytes is missing.
    """
    head = causal_lm.get_output_embeddings()
    rounded: set[int] = set()
    for weight, modules in _plain_weights(causal_lm):
        if weight.requires_grad:
            how: FrozenWeights = settings.weights
        else:
            how = settings.frozen_weights or _without_loss(weight, settings)
            inner = all(type(module) is nn.Linear and module is not head for module in modules)
            if how in ("int8", "nf4") and not (inner and len(modules) == 1):
                how = "bfloat16"
        if how != "float32":
            _round(weight, modules, how)
            rounded.add(id(weight))
    if rounded:
        _let_go_of_files(causal_lm, rounded)


def _let_go_of_files(model: nn.Module, copied: Container[int]) -> None:
    """Copy the tensors, by identity, that may lie in a file of weights still.

    Files are mapped into memory whole and stay there for as long as one tensor lies in them: a norm
    would keep all the weights that were rounded.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in copied:
            tensor.data = tensor.data.clone()


def _without_loss(weight: torch.Tensor, settings: ModelSettings) -> FrozenWeights:
    """bfloat16 where it computes with that and the weights are such numbers already."""
    rounds = settings.precision == "bfloat16"
    return "bfloat16" if rounds and is_bfloat16(weight) else "float32"


def is_bfloat16(tensor: torch.Tensor) -> bool:
    """Whether every value of a float32 tensor is a number of bfloat16."""
    flat = tensor.detach().view(-1).split(_SLICE)
    return all(bool((part.bfloat16().float() == part).all()) for part in flat)


def hold_in_float32(module: nn.Module) -> None:
    """Take back what :func:`hold` did to frozen weights that it did not round, for DeepSpeed.

    Raises:
        ValueError: Weights are held with fewer bits than that.
    """
    for each in module.modules():
        if isinstance(each, HeldLinear | HeldEmbedding):
            if each.weight.requires_grad or not each.weight.is_floating_point():
                raise ValueError(
                    "DeepSpeed shards float32 alone here; leave out model.weights and "
                    "model.frozen_weights, or launch without DeepSpeed"
                )
            each.weight.data = each.weight.data.float()
            each.__class__ = nn.Linear if isinstance(each, HeldLinear) else nn.Embedding  # type: ignore[assignment]


def _plain_weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, list[nn.Module]]]:
    """Weights that plain linear layers and embeddings alone own, each with all its owners."""
    owners: dict[int, tuple[nn.Parameter, list[nn.Module]]] = {}
    plain: dict[int, bool] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            key = id(parameter)
            owners.setdefault(key, (parameter, []))[1].append(module)
            plain[key] = plain.get(key, True) and name == "weight" and _is_plain(module)
    return (owned for key, owned in owners.items() if plain[key])


def _is_plain(module: nn.Module) -> bool:
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return type(module) is nn.Linear


def _round(weight: nn.Parameter, modules: list[nn.Module], how: FrozenWeights) -> None:
    """Replace what a parameter holds, and the classes of the modules that own it."""
    for module in modules:
        module.__class__ = HeldEmbedding if isinstance(module, nn.Embedding) else HeldLinear
    if how == "bfloat16":
        weight.data = weight.data.bfloat16()
        return
    codes, scales = _CODECS[how][0](weight.data.float())
    weight.data = codes
    modules[0].codec = how  # type: ignore[assignment]
    modules[0].register_buffer("scales", scales, persistent=False)


class HeldLinear(nn.Linear):
    """A linear layer whose weight is bfloat16, or quantised where it has ``scales``."""

    codec: str
    scales: torch.Tensor
    added: Callable[[], torch.Tensor] | None = None
    """An adapter's product, where the layer is tried with it merged."""

    def whole_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [outputs, inputs] in a precision."""
        weight = self.weight.detach()
        if not weight.is_floating_point():
            shape = (self.out_features, self.in_features)
            weight = _CODECS[self.codec][1](weight, self.scales, shape)
        if self.added is not None:
            weight = weight.float() + self.added()
        return weight.to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As a linear layer with the whole weight."""
        device = input.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else input.dtype
        if self.weight.dtype == dtype:
            return super().forward(input)
        product: torch.Tensor = _Product.apply(input, self.weight, self.bias, self, dtype)
        return product


class _Product(torch.autograd.Function):
    """x W^T + b with a weight that is whole only meanwhile.

    d x = g W,  d W = g^T x,  d b = sum of g.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layer: HeldLinear,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rounded = input.to(dtype)
        # The weight is saved, and not used, so that a change of it in between is noticed.
        ctx.save_for_backward(rounded if weight.requires_grad else None, weight)
        ctx.layer, ctx.dtype, ctx.given = layer, dtype, input.dtype
        own_bias = None if bias is None else bias.to(dtype)
        return nn.functional.linear(rounded, layer.whole_weight(dtype), own_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        with torch.autocast(gradient.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_input = (gradient @ ctx.layer.whole_weight(ctx.dtype)).to(ctx.given)
            flat = gradient.flatten(0, -2)
            if ctx.needs_input_grad[1]:
                grad_weight = (flat.T @ input.flatten(0, -2)).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                grad_bias = flat.sum(0).to(ctx.layer.bias.dtype)
        return grad_input, grad_weight, grad_bias, None, None


class HeldEmbedding(nn.Embedding):
    """An embedding in bfloat16 whose lookups are float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, in float32."""
        rows: torch.Tensor = _Lookup.apply(self.weight, input, self.padding_idx)
        return rows


class _Lookup(torch.autograd.Function):
    """Rows of a weight; their gradient is added up in float32, and rounded once."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weight: torch.Tensor,
        ids: torch.Tensor,
        padding: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = padding
        return nn.functional.embedding(ids, weight).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        ids, weight = ctx.saved_tensors
        used_U, place_N = ids.reshape(-1).unique(return_inverse=True)
        rows_ND = gradient.reshape(len(place_N), -1)
        rows_UD = rows_ND.new_zeros(len(used_U), rows_ND.shape[-1]).index_add_(0, place_N, rows_ND)
        if ctx.padding is not None:
            rows_UD[used_U == ctx.padding] = 0.0
        whole = torch.zeros_like(weight)
        whole[used_U] = rows_UD.to(weight.dtype)
        return whole, None, None


def quantised_layers(model: nn.Module) -> dict[int, HeldLinear]:
    """The layers whose weight is quantised, by the identity of the parameter."""
    return {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, HeldLinear) and not module.weight.is_floating_point()
    }


def held_alone(model: nn.Module) -> list[HeldLinear]:
    """The layers that are held otherwise than in float32 and share their weight with no other."""
    layers = [module for module in model.modules() if isinstance(module, HeldLinear)]
    # Adapters have a property of that name, and no such parameter.
    owners = Counter(id(module._parameters.get("weight")) for module in model.modules())
    return [layer for layer in layers if owners[id(layer.weight)] == 1]


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers of -127 to 127, and each row's scale."""
    scales = weight.abs().amax(-1, keepdim=True) / 127
    steps = weight / scales.clamp_min(torch.finfo(scales.dtype).tiny)
    return steps.round().to(torch.int8), scales


def _from_int8(codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return codes.float() * scales


def _to_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    functional = _bitsandbytes()
    codes, state = functional.quantize_4bit(weight, blocksize=_BLOCK, quant_type="nf4")
    return codes, state.absmax


def _from_nf4(codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    functional = _bitsandbytes()
    state = functional.QuantState(
        absmax=scales,
        shape=torch.Size(shape),
        code=functional.get_4bit_type("nf4", device=codes.device),
        blocksize=_BLOCK,
        quant_type="nf4",
        dtype=torch.float32,
    )
    whole: torch.Tensor = functional.dequantize_4bit(codes, state)
    return whole


_CODECS = {"int8": (_to_int8, _from_int8), "nf4": (_to_nf4, _from_nf4)}


def check_bitsandbytes(settings: ModelSettings) -> None:
    """See that NF4 can be had where it is asked for.

    Raises:
        ValueError: The package is missing, or cannot be loaded.
    """
    if settings.frozen_weights == "nf4":
        _bitsandbytes()


def _bitsandbytes() -> Any:  # noqa: ANN401
    # It says that it lacks a package for a product that is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise ValueError(
            "model.frozen_weights = 'nf4' needs bitsandbytes; run: pip install 'rlvr[quantized]'"
        ) from error
    return bitsandbytes.functional
