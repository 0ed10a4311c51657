"""Builders shared by the tests of losses: a row of tokens, and a toy softmax by enumeration."""

from dataclasses import replace

import pytest
import torch

from rlvr.objective.loss_inputs import LossInputs, Step
from rlvr.objective.objective import merge_metrics
from rlvr.objective.reducers import Counts


def row(ratio, advantage, **columns):
    """One completion with these ratios and advantages; old probability e^-2 everywhere."""
    ratio = torch.tensor([ratio], dtype=torch.float64)
    old = torch.full_like(ratio, -2.0)
    return LossInputs(
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
    names = [name for name in LossInputs.__slots__ if name not in ("columns", "prepared")]
    columns = {name: getattr(terms, name) for name in names}
    columns = {name: value[rows] for name, value in columns.items() if value is not None}
    named = {
        field: {name: value[rows] for name, value in getattr(terms, field).items()}
        for field in ("columns", "prepared")
    }
    return LossInputs(**columns, **named)


def whole(objective, terms):
    """Loss and metrics of the columns as one step in one micro-batch."""
    return objective(terms, Counts.of(terms.mask_BT))


def columns(seed=0, rows=8, width=6, junk=0.0, padding=0):
    """Random columns of a step, off-policy, with gradients, every optional one there.

    ``junk`` is what unmasked entries hold; ``padding`` adds columns of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low=0.0, high=1.0):
        return low + (high - low) * torch.rand(rows, width, generator=generator).double()

    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    mask = (torch.arange(width) < lengths).double()

    def laid_out(values, fill=junk):
        values = torch.where(mask > 0, values, fill)
        return torch.nn.functional.pad(values, (0, padding), value=fill)

    old = uniform(-5, 0)
    kept = (uniform() > 0.3).double()
    log_mass = uniform(-0.3, -0.01)
    logprobs = old + uniform(-0.5, 0.5)
    advantages = torch.randn(rows, 1, generator=generator).double() * torch.ones(1, width)
    return LossInputs(
        logprobs_BT=laid_out(logprobs).requires_grad_(),
        old_logprobs_BT=laid_out(old),
        advantages_BT=laid_out(advantages, 0.0),
        mask_BT=laid_out(mask, 0.0),
        entropy_BT=laid_out(uniform(0, 2)).requires_grad_(),
        columns={
            "log_kept_mass": laid_out(log_mass),
            "proxy_logprobs": laid_out(old - log_mass),
            "kept": laid_out(kept),
            "proxy_kl": laid_out(uniform(0, 1)).requires_grad_(),
        },
        reference_logprobs_BT=laid_out(old + uniform(-0.5, 0.5)),
        rollout_logprobs_BT=laid_out(old + uniform(-0.9, 0.9)),
    )


def gradients(loss, terms):
    """By everything that carries gradients; None where nothing flows."""
    leaves = (terms.logprobs_BT, terms.entropy_BT, terms.columns["proxy_kl"])
    if not loss.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)


def assert_split_free(objective, terms):
    """Loss, gradient and metrics are those of the whole step, however it is split."""
    case, counts = prepared(objective, terms), Counts.of(terms.mask_BT)
    loss, metrics = whole(objective, case)
    expected = gradients(loss, case)
    rows = list(range(len(terms.mask_BT)))
    for split in (
        [[4, 1], [0], [row for row in rows if row not in (0, 1, 4)]],
        [[r] for r in rows],
    ):
        share, shares = torch.zeros(()).double(), {}
        for some in split:
            part, numbers = objective(rows_of(case, some), counts)
            share, shares = share + part, merge_metrics(shares, numbers)
        assert share.item() == pytest.approx(loss.item(), rel=1e-12)
        assert objective.finish(shares) == pytest.approx(objective.finish(metrics), rel=1e-9)
        for ours, theirs in zip(gradients(share, case), expected, strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.allclose(ours, theirs, atol=1e-13)
