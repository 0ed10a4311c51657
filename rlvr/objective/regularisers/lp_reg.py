"""Lp-Reg: keep rare tokens that are not noise from being extinguished.

    loss_t = beta 1_t D_t
    1_t = 1  iff  pi(o_t) < delta          low probability: below the rho-percentile of the pool
             and  proxy(o_t) > 0           not noise: above the threshold tau of the proxy
             and  A_t < 0                  pushed down
    D_t = KL(proxy(. | s_t) || pi(. | s_t))                     kl: full
    D_t = e^d - d - 1,  d = log proxy(o_t) - log pi(o_t)        kl: sampled

Huang et al., "Low-probability Tokens Sustain Exploration" (arXiv:2510.03222, Eq. 6), with the proxy
of :mod:`rlvr.objective.proxy`. The proxy, the percentile and the gates are constants. The policy
loss that goes with it is ``{name: ratio, cap: 10}`` in the paper.

``full`` is the equation as printed; d D / d logits = pi - proxy. ``sampled`` is what the released
code computes; d D / d logits = (1 - proxy(o)/pi(o)) (e_o - pi), zero once |D| exceeds ``clamp``
(a token crushed 13.6 fold). It protects a rare token far more: docs/methods/lp_reg.md.

``pool: step`` takes delta over all tokens of the optimizer step, from the old policy's
probabilities, before anything is updated. ``pool: micro_batch`` is the released code's: the
max(1, floor(rho N)) smallest of the N negative tokens of each micro-batch, none where that is 1;
it depends on how the step is split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken, Step
from rlvr.objective.loss_term import Memory
from rlvr.objective.numerics import k3
from rlvr.objective.parts import Regulariser
from rlvr.objective.proxy import Proxy, ProxyDivergence, ProxyStatistic
from rlvr.objective.selection import count_of, largest, low_threshold
from rlvr.objective.token_statistic import SparseRows, TokenStatistic

_TENTHS = 10


class LpReg(Regulariser):
    """Pull rare, sensible tokens of bad completions towards the denoised old policy (Lp-Reg)."""

    name: Literal["lp_reg"] = "lp_reg"
    paper: ClassVar[str] = "Huang et al., Lp-Reg, 2510.03222"
    beta: float = Field(1.0, ge=0)
    """Weight of the term."""
    rho: float = Field(0.01, ge=0, le=1)
    """Share of tokens that count as of low probability."""
    kl: Literal["full", "sampled"] = "full"
    """The divergence over the vocabulary (paper), or its estimate on the sampled token (released
    code)."""
    proxy: Proxy = Proxy()
    """What counts as noise."""
    pool: Literal["step", "micro_batch"] = "step"
    """Tokens that the percentile is taken over: all of the optimizer step (paper), or the negative
    ones of each micro-batch (released code)."""
    noise_gate: Literal["kept", "below_proxy"] = "kept"
    """Tokens that are not noise: those that the proxy keeps (paper), or those whose probability is
    below the proxy's (released code), which lets go of a token that has risen above it."""
    sign: Literal["negative", "both"] = "negative"
    """Act on tokens of negative advantage, or of any that is not zero (an ablation)."""
    clamp: float | None = Field(10.0, gt=0)
    """Largest value of the sampled estimate, beyond which it has no gradient; null has none."""

    @property
    def active(self) -> bool:
        """Whether the term changes the gradient."""
        return self.beta > 0 and self.rho > 0

    @property
    def needs_step_logprobs(self) -> bool:
        """Where the percentile is over the step."""
        return self.pool == "step"

    @property
    def statistics(self) -> tuple[str, ...]:
        """Of the proxy, which is the old policy's."""
        return ("log_kept_mass", "kept", "proxy_logprobs")

    def old_statistic(self, advantages_N: torch.Tensor) -> TokenStatistic:
        """The proxy, and its distributions where the gates can open."""
        keep_at_N = advantages_N != 0 if self.kl == "full" else None
        return ProxyStatistic(self.proxy, keep_at_N=keep_at_N)

    def statistic(
        self, prepared_BT: torch.Tensor | None, old: Callable[[str], SparseRows] | None
    ) -> TokenStatistic | None:
        """The policy's own proxy where it is the old one, else the divergence from the old ones."""
        if old is not None:
            return ProxyDivergence(old("proxy")) if self.kl == "full" else None
        # From log delta on nothing looks at a token.
        below = math.inf if prepared_BT is None else float(prepared_BT.flatten()[0])
        return ProxyStatistic(self.proxy, below=below, divergence=self.kl == "full")

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor | None:
        """log delta, the same for every token, [B, T]."""
        if self.pool == "micro_batch":
            return None
        return low_threshold(step.logprobs_BT, step.mask_BT, self.rho).expand_as(step.mask_BT)

    def __call__(self, terms: LossInputs) -> PerToken:
        """beta x divergence at the tokens that pass the three gates, [B, T]."""
        logp_BT, log_proxy_BT = terms.logprobs_BT.detach(), terms.columns["proxy_logprobs"]
        low_BT, log_delta_BT = self._low(terms, logp_BT)
        passed_BT = low_BT & (terms.columns["kept"] > 0)
        if self.noise_gate == "below_proxy":
            passed_BT = passed_BT & (logp_BT < log_proxy_BT)
        gate_BT = passed_BT & self._signed(terms)
        if self.kl == "full":
            kl_BT = terms.columns["proxy_kl"]
        else:
            kl_BT = self._sampled(log_proxy_BT - terms.logprobs_BT, gate_BT)
        kl_BT = torch.where(gate_BT, kl_BT, torch.zeros_like(kl_BT))
        mass_BT = terms.columns["log_kept_mass"].exp()
        metrics = {
            "lp_reg/threshold": log_delta_BT.exp(),
            "lp_reg/low": low_BT.to(mass_BT),
            "lp_reg/passed": passed_BT.to(mass_BT),
            "lp_reg/kept_mass": torch.where(low_BT, mass_BT, torch.zeros_like(mass_BT)),
            "lp_reg/regularised": gate_BT.to(mass_BT),
            "lp_reg/kl": kl_BT.detach(),
            **_tenths("lp_reg/kept_mass", mass_BT, low_BT),
        }
        return PerToken(self.beta * kl_BT, metrics)

    def finish(self, metrics: dict[str, float], memory: Memory) -> tuple[dict[str, float], Memory]:
        """Make means over all tokens means over the tokens they are about."""
        about = {"passed": "low", "kept_mass": "low", "kl": "regularised"}
        about |= {f"kept_mass/tenth_{k}": "low" for k in range(_TENTHS)}
        means = {
            f"lp_reg/{name}": metrics[f"lp_reg/{name}"] / metrics[f"lp_reg/{group}"]
            for name, group in about.items()
            if metrics.get(f"lp_reg/{group}", 0) > 0
        }
        return means, memory

    def _signed(self, terms: LossInputs) -> torch.Tensor:
        signed_BT = terms.advantages_BT < 0 if self.sign == "negative" else terms.advantages_BT != 0
        return signed_BT & (terms.mask_BT > 0)

    def _low(self, terms: LossInputs, logp_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of low probability, and log delta, [B, T] each."""
        if self.pool == "step":
            log_delta_BT = terms.prepared[self.name]
            return (logp_BT < log_delta_BT) & (terms.mask_BT > 0), log_delta_BT
        signed_BT = self._signed(terms).to(logp_BT)
        count = max(1, count_of(self.rho, int(signed_BT.sum())))
        low_BT = largest(-logp_BT, signed_BT, count if count > 1 else 0)
        highest = logp_BT[low_BT].max() if bool(low_BT.any()) else logp_BT.new_tensor(-math.inf)
        return low_BT, highest.expand_as(logp_BT)

    def _sampled(self, d_BT: torch.Tensor, gate_BT: torch.Tensor) -> torch.Tensor:
        # Where the gate is closed d may be infinite, and its gradient not a number.
        d_BT = torch.where(gate_BT, d_BT, torch.zeros_like(d_BT))
        k3_BT = k3(d_BT)
        return k3_BT if self.clamp is None else k3_BT.clamp(-self.clamp, self.clamp)


def _tenths(name: str, share_BT: torch.Tensor, about_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Indicators of [k/10, (k + 1)/10), the last with its end: unlike deciles they add up."""
    tenth_BT = (share_BT * _TENTHS).floor().clamp(0, _TENTHS - 1)
    return {f"{name}/tenth_{k}": (about_BT & (tenth_BT == k)).to(share_BT) for k in range(_TENTHS)}
