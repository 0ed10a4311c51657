"""The proxy distribution of Lp-Reg: a policy with its noise tail cut off, renormalised.

    tau(s)     = kappa * max_v pi(v | s)             threshold: min_p
    tau(s)     = kappa                               threshold: fixed
    K(s)       = {v : pi(v | s) > tau(s)},   Z(s) = sum_{v in K} pi(v | s)
    proxy(v|s) = pi(v | s) / Z(s) for v in K, exactly 0 elsewhere

Huang et al., arXiv:2510.03222, section 4.1 and Eq. 5. pi is the policy that the update starts from
and the proxy a constant. A token whose probability equals the threshold is dropped (the released
code keeps it). min_p always keeps the most likely token; a fixed threshold can empty K, and such a
position is then not regularised (in the released code its proxy would be uniform).
"""

from typing import Literal

from pydantic import Field

from rlvr.settings import Settings


class Proxy(Settings):
    """The noise filter that defines Lp-Reg's proxy distribution (arXiv:2510.03222, section 4.1)."""

    threshold: Literal["min_p", "fixed"] = "min_p"
    """How tau is set: kappa times the largest probability at the position, or kappa itself."""
    kappa: float = Field(0.02, gt=0, lt=1)
    """The filter's strength."""
