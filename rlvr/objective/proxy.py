"""The proxy distribution of Lp-Reg: a policy with its noise tail cut off, renormalised.

    tau(s)     = kappa * max_v pi(v | s)             threshold: min_p
    tau(s)     = kappa                               threshold: fixed
    K(s)       = {v : pi(v | s) > tau(s)},   Z(s) = sum_{v in K} pi(v | s)
    proxy(v|s) = pi(v | s) / Z(s) for v in K, exactly 0 elsewhere

Huang et al., arXiv:2510.03222, section 4.1 and Eq. 5. pi is the policy that the update starts from
and the proxy q a constant. A token whose probability equals the threshold is dropped (the released
code keeps it). min_p always keeps the most likely token; a fixed threshold can empty K, and such a
position is then not regularised (in the released code its proxy would be uniform).

    KL(q || p) = sum_v q_v log(q_v / p_v)            d KL / d logits of p = p - q

The divergence from the proxy of p itself is -log Z; from that of an older p, whose few entries were
kept, it is summed over these. Where a loss ignores a position's divergence, the backward pass
spends nothing on it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.token_statistic import SparseRows, TokenStatistic
from rlvr.settings import Settings


class Proxy(Settings):
    """The noise filter that defines Lp-Reg's proxy distribution (arXiv:2510.03222, section 4.1)."""

    threshold: Literal["min_p", "fixed"] = "min_p"
    """How tau is set: kappa times the largest probability at the position, or kappa itself."""
    kappa: float = Field(0.02, gt=0, lt=1)
    """The filter's strength."""

    def mass(self, logp_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log Z [R] and log tau [R, 1]; strictly above tau is kept."""
        log_tau = torch.full_like(logp_RV[:, :1], self.kappa).log()
        if self.threshold == "min_p":
            log_tau = log_tau + logp_RV.max(dim=-1, keepdim=True).values
        kept_RV = logp_RV.masked_fill(logp_RV <= log_tau, float("-inf"))
        return torch.logsumexp(kept_RV, dim=-1), log_tau


class ProxyStatistic(TokenStatistic):
    """The proxy of the policy that is run.

    Columns: ``log_kept_mass`` is log Z; ``kept`` whether the token passed the filter;
    ``proxy_logprobs`` the proxy's log-probability of a kept token; ``proxy_kl`` KL(q || p).

    Args:
        proxy: What is noise.
        below: Look only at tokens whose log-probability is below this; others count as kept, and
            the mass as 1.
        divergence: Also give ``proxy_kl``.
        keep_at_N: Keep the distributions of these tokens (of those looked at), as ``proxy``.
    """

    differentiable = ("proxy_kl",)

    def __init__(
        self,
        proxy: Proxy,
        *,
        below: float = float("inf"),
        divergence: bool = False,
        keep_at_N: torch.Tensor | None = None,
    ) -> None:
        self.proxy, self.below, self.divergence = proxy, below, divergence
        self.keep_at_N = keep_at_N
        self._kept: list[SparseRows] = []

    def read(
        self, logp_CV: torch.Tensor, logprobs_C: torch.Tensor, start: int
    ) -> dict[str, torch.Tensor]:
        """See :class:`~rlvr.objective.token_statistic.TokenStatistic`."""
        log_mass_C, kl_C = torch.zeros_like(logprobs_C), torch.zeros_like(logprobs_C)
        kept_C = torch.ones_like(logprobs_C, dtype=torch.bool)
        seen_R = (logprobs_C < self.below).nonzero()[:, 0]
        logp_RV = logp_CV if len(seen_R) == len(logprobs_C) else logp_CV[seen_R]
        log_mass_R, log_tau_R1 = self.proxy.mass(logp_RV)
        log_mass_C[seen_R] = log_mass_R
        kept_C[seen_R] = logprobs_C[seen_R] > log_tau_R1[:, 0]
        kl_C[seen_R] = (-log_mass_R).masked_fill(log_mass_R.isinf(), 0.0)
        if self.keep_at_N is not None:
            wanted = self.keep_at_N[start + seen_R].nonzero()[:, 0]
            entries = _entries(logp_RV[wanted], log_mass_R[wanted], log_tau_R1[wanted])
            position_S = start + seen_R[wanted][entries.position_S]
            self._kept.append(SparseRows(position_S, entries.token_S, entries.value_S))
        columns = {
            "log_kept_mass": log_mass_C,
            "kept": kept_C,
            "proxy_logprobs": logprobs_C - log_mass_C,
        }
        return columns | ({"proxy_kl": kl_C} if self.divergence else {})

    def gradient(
        self, name: str, upstream_C: torch.Tensor, logp_CV: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """upstream (p - q)."""
        index_R = upstream_C.nonzero()[:, 0]
        logp_RV, upstream_R1 = logp_CV[index_R], upstream_C[index_R, None]
        gradient_RV = logp_RV.exp()
        log_mass_R, log_tau_R1 = self.proxy.mass(logp_RV)
        gradient_RV -= (logp_RV > log_tau_R1) * gradient_RV * (-log_mass_R[:, None]).exp()
        # An empty proxy (a fixed threshold above every probability) pulls nowhere.
        upstream_R1 = upstream_R1 * log_mass_R.isfinite()[:, None]
        return index_R, gradient_RV.nan_to_num_(nan=0.0).mul_(upstream_R1)

    def sparse(self) -> dict[str, SparseRows]:
        """The distributions that were to be kept."""
        return {} if self.keep_at_N is None else {"proxy": SparseRows.joined(self._kept)}


class ProxyDivergence(TokenStatistic):
    """``proxy_kl``: the divergence of the policy that is run from proxies that were kept earlier.

    Args:
        proxies: The entries of q by position; without an entry there is no divergence.
    """

    differentiable = ("proxy_kl",)

    def __init__(self, proxies: SparseRows) -> None:
        self.proxies = proxies

    def read(
        self, logp_CV: torch.Tensor, logprobs_C: torch.Tensor, start: int
    ) -> dict[str, torch.Tensor]:
        """See :class:`~rlvr.objective.token_statistic.TokenStatistic`."""
        q = self.proxies.within(start, start + len(logprobs_C))
        log_p_S = logp_CV[q.position_S, q.token_S]
        log_q_S = q.value_S.to(log_p_S)
        total_C = logp_CV.new_zeros(logp_CV.shape[0])
        total_C.index_add_(0, q.position_S, log_q_S.exp() * (log_q_S - log_p_S))
        return {"proxy_kl": total_C}

    def gradient(
        self, name: str, upstream_C: torch.Tensor, logp_CV: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """upstream (p - q), where q has entries."""
        q = self.proxies.within(start, start + len(logp_CV))
        present_C = torch.zeros_like(upstream_C, dtype=torch.bool)
        present_C[q.position_S] = True
        upstream_C = upstream_C * present_C
        index_R = upstream_C.nonzero()[:, 0]
        gradient_RV = logp_CV[index_R].exp()
        slot_C = torch.full_like(upstream_C, -1, dtype=torch.long)
        slot_C[index_R] = torch.arange(len(index_R), device=index_R.device)
        inside_S = slot_C[q.position_S] >= 0
        slot_S, token_S = slot_C[q.position_S[inside_S]], q.token_S[inside_S]
        q_S = q.value_S[inside_S].exp().to(gradient_RV)
        gradient_RV.index_put_((slot_S, token_S), -q_S, accumulate=True)
        return index_R, gradient_RV.nan_to_num_(nan=0.0).mul_(upstream_C[index_R, None])


def _entries(
    logp_RV: torch.Tensor, log_mass_R: torch.Tensor, log_tau_R1: torch.Tensor
) -> SparseRows:
    """log q of all R rows, where it is not minus infinity."""
    row_S, token_S = (logp_RV > log_tau_R1).nonzero(as_tuple=True)
    return SparseRows(row_S, token_S, logp_RV[row_S, token_S] - log_mass_R[row_S])
