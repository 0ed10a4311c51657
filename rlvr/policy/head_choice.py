"""Whether a policy's log-probabilities are read in chunks or by the kernel, which is tried first.

The trial holds forward and backward of ``rlvr/policy/head_kernel.py`` against the chunks of
``rlvr/policy/token_stats.py`` in float32, on the head's own weights: what a compiler, a driver or a
GPU gets wrong shows before anything is trained.
"""

import warnings
from importlib.util import find_spec
from typing import Literal

import torch

from rlvr.policy.model import MODEL_ERRORS, Policy, first_line
from rlvr.policy.token_stats import TokenHead, token_stats

# Tokens and words of the trial: no whole tiles of either.
_TOKENS, _WORDS = 24, 5008
# In nats, and of the largest gradient; bfloat16 resolves a 256th.
_TOLERANCE = 0.03


def choose_logits(policy: Policy, asked: Literal["auto", "chunked", "kernel"]) -> None:
    """Set how ``policy.head`` reads log-probabilities.

    Args:
        policy: Loaded, whole on its device.
        asked: ``model.logits``. With auto, a kernel that fails its trial gives a warning.

    Raises:
        ValueError: The kernel is asked for and does not run, or gives other numbers.
    """
    assert policy.head is not None
    suits = policy.device.type == "cuda" and policy.compute_dtype.itemsize == 2
    if asked == "chunked" or (asked == "auto" and not (suits and find_spec("triton"))):
        return
    fault = _fault(policy)
    if fault is None:
        policy.head.logits = "kernel"
    elif asked == "kernel":
        raise ValueError(f"model.logits=kernel {fault}; set it to auto")
    else:
        warnings.warn(f"logits are formed in chunks, since the kernel {fault}", stacklevel=2)


def _fault(policy: Policy) -> str | None:
    """Why the kernel cannot be used."""
    assert policy.head is not None
    if policy.device.type != "cuda":
        return "needs a GPU"
    if not find_spec("triton"):
        return "needs Triton (pip install triton)"
    from triton.errors import TritonError

    try:
        found = difference(policy.head, policy.compute_dtype)
    except (*MODEL_ERRORS, TritonError) as error:
        return f"does not run here ({first_line(error)})"
    return None if found < _TOLERANCE else f"is off by {found:.3g} in a trial"


def difference(head: TokenHead, dtype: torch.dtype) -> float:
    """How far kernel and chunks are apart: values in nats, gradients relative to the largest.

    Args:
        head: Whole on a device that runs the kernel.
        dtype: Of the matrix products.
    """
    assert isinstance(head.weight, torch.Tensor)
    generator = torch.Generator().manual_seed(0)
    weight_VD = head.weight.detach()[:_WORDS].to(dtype)
    bias_V = head.bias.detach()[:_WORDS] if isinstance(head.bias, torch.Tensor) else None
    hidden_ND = torch.randn(_TOKENS, weight_VD.shape[1], generator=generator).to(weight_VD)
    targets_N = torch.randint(len(weight_VD), (_TOKENS,), generator=generator)
    wide = torch.promote_types(dtype, torch.float32)

    def read(way: Literal["chunked", "kernel"], dtype: torch.dtype) -> list[torch.Tensor]:
        hidden, weight = (x.detach().to(dtype).requires_grad_() for x in (hidden_ND, weight_VD))
        with torch.enable_grad():
            stats = token_stats(
                hidden,
                weight,
                targets_N.to(weight.device),
                temperature=0.9,
                bias_V=bias_V,
                entropy=True,
                logits=way,
            )
            assert stats.entropy_N is not None
            loss = (stats.logprobs_N + stats.entropy_N).sum()
            gradients = torch.autograd.grad(loss, (hidden, weight))
        return [stats.logprobs_N.detach(), stats.entropy_N.detach(), *gradients]

    expected = read("chunked", wide)
    pairs = zip(read("kernel", dtype), expected, strict=True)
    apart_4 = torch.stack([(found - due).abs().max() for found, due in pairs])
    # A model of zeros has gradients of zero.
    apart_4[2:] /= torch.stack([due.abs().max().clamp_min(1e-6) for due in expected[2:]])
    return float(apart_4.max())
