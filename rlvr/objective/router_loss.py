"""Losses that keep a mixture of experts in use, and its router's logits small.

With g the router's logits of a token over E experts of a layer, p = softmax(g), and f_e the share
of the step's expert choices (k a token) that fell on expert e, a constant that sums to 1:

    balance  = E sum_e f_e mean_tokens p_e       at least 1 when f follows p; 1 where all is even
    z        = mean_tokens (logsumexp g)^2

each a mean over the sparse layers. Fedus et al., Switch Transformers, arXiv:2101.03961, equations 4
to 6; Zoph et al., ST-MoE, arXiv:2202.08906, equation 5. This z-loss is the router's: it has nothing
to do with the softmax replacement of the same name (arXiv:1604.08859).

f belongs to the whole optimizer step (as Qiu et al., arXiv:2501.11873, find better than shares of
single micro-batches), so the gradient does not depend on how the step is split. transformers' own
loss pools the layers and lets f sum to k: with one layer it is k times this one.

Both are means over completion tokens, each counted once however prompts are laid out.
"""

from __future__ import annotations

from rlvr.lazy import torch


def balance_terms(logits_NME: torch.Tensor, share_ME: torch.Tensor) -> torch.Tensor:
    """E sum_e f_e p_e of every token, mean over layers, [N]; differentiable in the logits.

    Args:
        logits_NME: Router logits of N tokens in M layers over E experts.
        share_ME: f, summing to 1 over the experts of each layer.
    """
    p_NME = logits_NME.to(_at_least_float32(logits_NME)).softmax(-1)
    share_ME = share_ME.to(p_NME).detach()
    return logits_NME.shape[-1] * (p_NME * share_ME).sum(-1).mean(-1)


def z_terms(logits_NME: torch.Tensor) -> torch.Tensor:
    """(logsumexp g)^2 of every token, mean over layers, [N]."""
    logits_NME = logits_NME.to(_at_least_float32(logits_NME))
    return logits_NME.logsumexp(-1).square().mean(-1)


def entropy_terms(logits_NME: torch.Tensor) -> torch.Tensor:
    """Entropy of the distribution over experts in nats, mean over layers, [N]; a constant."""
    logits_NME = logits_NME.detach().to(_at_least_float32(logits_NME))
    logp_NME = logits_NME.log_softmax(-1)
    return -(logp_NME.exp() * logp_NME).sum(-1).mean(-1)


def expert_counts(experts_NMK: torch.Tensor, experts: int) -> torch.Tensor:
    """How often each expert of each layer was chosen, float64 [M, E].

    Args:
        experts_NMK: The K experts that each of N tokens went to, by layer.
        experts: E.
    """
    layers = experts_NMK.shape[1]
    offset_M1 = torch.arange(layers, device=experts_NMK.device)[:, None] * experts
    flat = (experts_NMK.long() + offset_M1).flatten()
    return torch.bincount(flat, minlength=layers * experts).view(layers, experts).double()


def load_shares(counts_ME: torch.Tensor) -> torch.Tensor:
    """f: counts over their sum in each layer; even where nothing was counted."""
    total_M1 = counts_ME.sum(-1, keepdim=True)
    even = torch.full_like(counts_ME, 1 / counts_ME.shape[-1])
    return torch.where(total_M1 > 0, counts_ME / total_M1.clamp_min(1), even)


def choices_differ(first_NMK: torch.Tensor, second_NMK: torch.Tensor) -> torch.Tensor:
    """Share of a token's layers whose sets of experts differ, [N]; their order counts for nothing.

    Entries of -1 in ``second_NMK`` mean that nothing is known, and nothing differs.
    """
    same_NM = (first_NMK.sort(-1).values == second_NMK.sort(-1).values).all(-1)
    known_NM = (second_NMK >= 0).all(-1)
    return (~same_NM & known_NM).double().mean(-1)


def _at_least_float32(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
