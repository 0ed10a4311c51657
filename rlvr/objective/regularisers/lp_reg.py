"""Lp-Reg: keep rare tokens that are not noise from being extinguished.

    loss_t = beta 1_t D_t
    1_t = 1  iff  pi(o_t) < delta          low probability: below the rho-percentile of the pool
             and  proxy(o_t) > 0           not noise: above the threshold tau of the proxy
             and  A_t < 0                  pushed down
    D_t = KL(proxy(. | s_t) || pi(. | s_t))                     kl: full
    D_t = e^d - d - 1,  d = log proxy(o_t) - log pi(o_t)        kl: sampled

Huang et al., "Low-probability Tokens Sustain Exploration" (arXiv:2510.03222, Eq. 6), with the proxy
of :mod:`rlvr.objective.proxy`. The proxy, the percentile and the gates are constants. The policy
loss beside it is ``{name: ratio, cap: 10}`` in the paper.

``full`` is the equation as printed; d D / d logits = pi - proxy. ``sampled`` is what the released
code computes; d D / d logits = (1 - proxy(o)/pi(o)) (e_o - pi), zero once |D| exceeds ``clamp``
(a token crushed 13.6 fold). It protects a rare token far more: docs/methods/lp_reg.md.

``pool: step`` takes delta over all tokens of the optimizer step, from the old policy's
probabilities, before anything is updated. ``pool: micro_batch`` is the released code's: the
max(1, floor(rho N)) smallest of the N negative tokens of each micro-batch, none where that is 1;
it depends on how the step is split.
"""

import math
from typing import Literal

import torch
from pydantic import Field

from rlvr.objective.proxy import Proxy
from rlvr.objective.selection import count_of, largest, low_threshold
from rlvr.objective.terms import Memory, Part, PerToken, Step, Terms


class LpReg(Part):
    """Pull rare, sensible tokens of bad completions towards the denoised old policy (Lp-Reg)."""

    name: Literal["lp_reg"] = "lp_reg"
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
    def noise_filter(self) -> Proxy | None:
        """The proxy."""
        return self.proxy

    def noise_below(self, prepared_BT: torch.Tensor | None) -> float:
        """log delta, where it is known beforehand."""
        return math.inf if prepared_BT is None else float(prepared_BT.flatten()[0])

    @property
    def needs_proxy_kl(self) -> bool:
        """For the divergence over the vocabulary."""
        return self.kl == "full"

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor | None:
        """log delta, the same for every token, [B, T]."""
        if self.pool == "micro_batch":
            return None
        return low_threshold(step.logprobs_BT, step.mask_BT, self.rho).expand_as(step.mask_BT)

    def __call__(self, terms: Terms) -> PerToken:
        """beta x divergence at the tokens that pass the three gates, [B, T]."""
        assert terms.kept_BT is not None, "the learner provides the proxy's statistics"
        assert terms.log_kept_mass_BT is not None
        assert terms.proxy_logprobs_BT is not None
        logp_BT = terms.logprobs_BT.detach()
        log_proxy_BT = terms.proxy_logprobs_BT
        low_BT, log_delta_BT = self._low(terms, logp_BT)
        passed_BT = low_BT & (terms.kept_BT > 0)
        if self.noise_gate == "below_proxy":
            passed_BT = passed_BT & (logp_BT < log_proxy_BT)
        gate_BT = passed_BT & self._signed(terms)
        if self.kl == "full":
            assert terms.proxy_kl_BT is not None, "the learner provides it when needed"
            kl_BT = terms.proxy_kl_BT
        else:
            kl_BT = self._sampled(log_proxy_BT - terms.logprobs_BT, gate_BT)
        kl_BT = torch.where(gate_BT, kl_BT, torch.zeros_like(kl_BT))
        mass_BT = terms.log_kept_mass_BT.exp()
        metrics = {
            "lp_reg/threshold": log_delta_BT.exp(),
            "lp_reg/low": low_BT.to(mass_BT),
            "lp_reg/passed": passed_BT.to(mass_BT),
            "lp_reg/kept_mass": torch.where(low_BT, mass_BT, torch.zeros_like(mass_BT)),
            "lp_reg/regularised": gate_BT.to(mass_BT),
            "lp_reg/kl": kl_BT.detach(),
        }
        return PerToken(self.beta * kl_BT, metrics)

    def finish(self, metrics: dict[str, float], memory: Memory) -> tuple[dict[str, float], Memory]:
        """Make means over all tokens means over the tokens they are about."""
        about = {"passed": "low", "kept_mass": "low", "kl": "regularised"}
        means = {
            f"lp_reg/{name}": metrics[f"lp_reg/{name}"] / metrics[f"lp_reg/{group}"]
            for name, group in about.items()
            if metrics.get(f"lp_reg/{group}", 0) > 0
        }
        return means, memory

    def _signed(self, terms: Terms) -> torch.Tensor:
        signed_BT = terms.advantages_BT < 0 if self.sign == "negative" else terms.advantages_BT != 0
        return signed_BT & (terms.mask_BT > 0)

    def _low(self, terms: Terms, logp_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
        k3_BT = d_BT.exp() - d_BT - 1
        return k3_BT if self.clamp is None else k3_BT.clamp(-self.clamp, self.clamp)
