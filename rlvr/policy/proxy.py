"""The proxy distribution of Lp-Reg on a chunk of log-probabilities, and kept for later.

Definitions stand in ``rlvr/objective/proxy.py``. Everything here works on rows [R, V] that
``token_stats`` has formed anyway; what outlives the chunk is two numbers a token, and, for the
tokens that may be regularised later, the few entries that the proxy kept.
"""

from dataclasses import dataclass

import torch

from rlvr.objective.proxy import Proxy


@dataclass(frozen=True, slots=True)
class ProxyRows:
    """Proxy distributions at some of N positions, entry by entry, S entries; constants.

    ``position_S`` ascends; ``token_S`` are vocabulary ids, ``logprob_S`` the proxy's there. At
    positions without an entry there is no divergence.
    """

    position_S: torch.Tensor
    token_S: torch.Tensor
    logprob_S: torch.Tensor

    def within(self, start: int, stop: int) -> "ProxyRows":
        """The entries of positions start to stop - 1, counted from start."""
        bounds = torch.tensor([start, stop], device=self.position_S.device)
        first, last = torch.searchsorted(self.position_S, bounds).tolist()
        return ProxyRows(
            self.position_S[first:last] - start,
            self.token_S[first:last],
            self.logprob_S[first:last],
        )


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """What to compute of the proxy distribution.

    Args:
        filter: What is noise.
        below: Look only at positions whose own log-probability is below this; at others the token
            counts as kept and the mass as 1.
        divergence: Also give the divergence of p from the proxy of p (at the positions looked at).
        rows: Give the divergence from these distributions instead.
        keep_at_N: Also return the proxy distributions of these positions (of those looked at).
    """

    filter: Proxy
    below: float = float("inf")
    divergence: bool = False
    rows: ProxyRows | None = None
    keep_at_N: torch.Tensor | None = None


def proxy_mass(logp_RV: torch.Tensor, proxy: Proxy) -> tuple[torch.Tensor, torch.Tensor]:
    """log Z [R] and the log threshold [R, 1]; strictly above the threshold is kept."""
    log_tau = torch.full_like(logp_RV[:, :1], proxy.kappa).log()
    if proxy.threshold == "min_p":
        log_tau = log_tau + logp_RV.max(dim=-1, keepdim=True).values
    kept_RV = logp_RV.masked_fill(logp_RV <= log_tau, float("-inf"))
    return torch.logsumexp(kept_RV, dim=-1), log_tau


def kept_entries(
    logp_RV: torch.Tensor, log_mass_R: torch.Tensor, log_tau_R1: torch.Tensor, first: int
) -> ProxyRows:
    """The proxy distributions of all R rows, positions counted from ``first``."""
    row_S, token_S = (logp_RV > log_tau_R1).nonzero(as_tuple=True)
    return ProxyRows(row_S + first, token_S, logp_RV[row_S, token_S] - log_mass_R[row_S])


def divergence_from(rows: ProxyRows, logp_CV: torch.Tensor) -> torch.Tensor:
    """KL(q || p) [C] with q from ``rows`` and log p given; 0 at positions without entries."""
    log_p_S = logp_CV[rows.position_S, rows.token_S]
    log_q_S = rows.logprob_S.to(log_p_S)
    total_C = logp_CV.new_zeros(logp_CV.shape[0])
    return total_C.index_add_(0, rows.position_S, log_q_S.exp() * (log_q_S - log_p_S))


def divergence_gradient(
    logp_CV: torch.Tensor, upstream_C: torch.Tensor, request: ProxyRequest, rows: ProxyRows | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """upstream (p - q) at the positions where upstream is not 0: their indices [R] and [R, V]."""
    if rows is not None:
        present_C = torch.zeros_like(upstream_C, dtype=torch.bool)
        present_C[rows.position_S] = True
        upstream_C = upstream_C * present_C
    index_R = upstream_C.nonzero()[:, 0]
    logp_RV, upstream_R1 = logp_CV[index_R], upstream_C[index_R, None]
    gradient_RV = logp_RV.exp()
    if rows is None:
        log_mass_R, log_tau_R1 = proxy_mass(logp_RV, request.filter)
        gradient_RV -= (logp_RV > log_tau_R1) * gradient_RV * (-log_mass_R[:, None]).exp()
        # An empty proxy (a fixed threshold above every probability) pulls nowhere.
        upstream_R1 = upstream_R1 * log_mass_R.isfinite()[:, None]
    else:
        slot_C = torch.full_like(upstream_C, -1, dtype=torch.long)
        slot_C[index_R] = torch.arange(len(index_R), device=index_R.device)
        inside_S = slot_C[rows.position_S] >= 0
        slot_S, token_S = slot_C[rows.position_S[inside_S]], rows.token_S[inside_S]
        q_S = rows.logprob_S[inside_S].exp().to(gradient_RV)
        gradient_RV.index_put_((slot_S, token_S), -q_S, accumulate=True)
    return index_R, gradient_RV.nan_to_num_(nan=0.0).mul_(upstream_R1)
