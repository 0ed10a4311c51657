"""Builders shared by the tests of losses: a row of tokens, and a toy softmax by enumeration."""

from dataclasses import replace

import torch

from rlvr.objective import Counts, Step, Terms


def row(ratio, advantage, **columns):
    """One completion with these ratios and advantages; old probability e^-2 everywhere."""
    ratio = torch.tensor([ratio], dtype=torch.float64)
    old = torch.full_like(ratio, -2.0)
    return Terms(
        logprobs_BT=(old + ratio.log()).requires_grad_(),
        old_logprobs_BT=old,
        advantages_BT=torch.tensor([advantage], dtype=torch.float64),
        mask_BT=torch.ones_like(ratio),
        **columns,
    )


def slope(loss, terms):
    """Gradient of the summed loss by the log-probabilities, as a list."""
    (gradient,) = torch.autograd.grad(loss(terms).loss_BT.sum(), terms.logprobs_BT)
    return gradient[0].tolist()


def step_of(terms, number=0):
    """The columns as a whole step under the old policy."""
    entropy_BT = None if terms.entropy_BT is None else terms.entropy_BT.detach()
    return Step(terms.old_logprobs_BT, terms.advantages_BT, terms.mask_BT, entropy_BT, number)


def prepared(objective, terms, number=0):
    """The terms with what the objective prepares from them."""
    return replace(terms, prepared=objective.prepare(step_of(terms, number)))


def rows_of(terms, rows):
    """Some rows of the columns."""
    names = [name for name in Terms.__slots__ if name != "prepared"]
    columns = {name: getattr(terms, name) for name in names}
    columns = {name: value[rows] for name, value in columns.items() if value is not None}
    cut = {name: value[rows] for name, value in terms.prepared.items()}
    return Terms(**columns, prepared=cut)


def whole(objective, terms):
    """Loss and metrics of the columns as one step in one micro-batch."""
    return objective(terms, Counts.of(terms.mask_BT))
