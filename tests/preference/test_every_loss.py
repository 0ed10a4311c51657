"""What holds for every preference loss: a new one is tested by being there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from rlvr.preference.losses.base import PairLoss, PreferenceLoss
from rlvr.preference.losses.terms import Labelled, Pairs, Side
from rlvr.preference.pages import example, loss_page
from rlvr.settings import describe, load_settings
from rlvr.settings.index import covered_by
from rlvr.tasks.preference import PreferenceRecipe

ROOT = Path(__file__).parents[2]
LOSSES = PreferenceLoss.registry()
B = 6
ORDER = [3, 0, 5, 1, 4, 2]


def made(name, **settings):
    return LOSSES[name](**{**LOSSES[name].example, **settings})


def every(kind=PreferenceLoss, **declared):
    """Losses of a kind whose class says so."""
    names = [
        name
        for name, loss in LOSSES.items()
        if issubclass(loss, kind) and all(getattr(loss, k) == v for k, v in declared.items())
    ]
    return pytest.mark.parametrize("name", names)


def given(name, seed=0):
    """Random completions of the kind that the loss takes, and the leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low=-30.0, high=-5.0):
        return low + (high - low) * torch.rand(B, generator=generator, dtype=torch.float64)

    def side(score):
        lengths = torch.randint(4, 12, (B,), generator=generator).double()
        logps = draw().requires_grad_()
        return Side(logps, lengths, logps.detach() + draw(-9, 9), scores_B=draw(score, score + 1))

    if not issubclass(LOSSES[name], PairLoss):
        logps = draw().requires_grad_()
        labels = torch.arange(B) % 3 == 0
        return Labelled(logps, logps.detach() + draw(-2, 2), labels, 0.3), [logps]
    chosen, rejected = side(3.0), side(1.0)
    pairs = Pairs(chosen, rejected, tokens_per_pair=8.0)
    return pairs, [chosen.logps_B, rejected.logps_B]


def rows(data, index):
    """Some of the completions, as a micro-batch of the same step."""
    if isinstance(data, Labelled):
        columns = (data.logps_B, data.reference_logps_B, data.desirable_B)
        return Labelled(*(column[index] for column in columns), data.baseline)
    sides = [
        Side(x.logps_B[index], x.lengths_B[index], x.reference_logps_B[index],
             scores_B=x.scores_B[index])
        for x in (data.chosen, data.rejected)
    ]  # fmt: skip
    return Pairs(*sides, tokens_per_pair=data.tokens_per_pair)


def slopes(value, leaves):
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros(B).double() if g is None else g for g in found]


@every(whole_step=False)
def test_a_pair_has_its_loss_whatever_the_others_are(name):
    """So order and micro-batches change nothing."""
    loss, (data, _) = made(name), given(name)
    value_B = loss(data)
    assert value_B.shape == (B,)
    assert torch.allclose(loss(rows(data, ORDER)), value_B[ORDER], rtol=1e-12)
    for row in range(B):
        assert torch.allclose(loss(rows(data, [row])), value_B[[row]], rtol=1e-12)


@every(whole_step=True)
def test_a_loss_of_the_whole_step_is_free_of_its_order(name):
    loss, (data, leaves) = made(name), given(name)
    one, other = loss(data).mean(), loss(rows(data, ORDER)).mean()
    assert other.item() == pytest.approx(one.item(), rel=1e-12)
    for ours, theirs in zip(slopes(one, leaves), slopes(other, leaves), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-13)
    alone = torch.stack([loss(rows(data, [row]))[0] for row in range(B)]).mean()
    assert alone.item() != pytest.approx(one.item(), rel=1e-6), "else it need not be declared"


@every(PairLoss)
def test_a_reference_is_looked_at_only_where_the_loss_says_so(name):
    loss, (data, _) = made(name), given(name)
    without = replace(
        data,
        chosen=replace(data.chosen, reference_logps_B=None),
        rejected=replace(data.rejected, reference_logps_B=None),
    )
    if not loss.needs_reference:
        assert torch.equal(loss(without), loss(data))
        return
    with pytest.raises((AssertionError, TypeError)):
        loss(without)


@every(PairLoss)
def test_scores_are_looked_at_only_where_the_loss_says_so(name):
    loss, (data, _) = made(name), given(name)
    other = replace(data, chosen=replace(data.chosen, scores_B=data.chosen.scores_B + 1))
    assert torch.equal(loss(other), loss(data)) != loss.needs_scores


@every(PairLoss)
def test_the_winner_is_never_pushed_down_where_the_pair_is_lost(name):
    """A step against the gradient does not lower the margin of a pair that is ranked wrong."""
    loss, (data, leaves) = made(name), given(name)
    with torch.no_grad():  # of all pairs: log-ratio -2 against +2
        for side, ratio in ((data.chosen, -2.0), (data.rejected, 2.0)):
            side.logps_B.copy_(side.reference_logps_B + ratio)
    won, lost = slopes(loss(data).sum(), leaves)
    assert bool((lost - won >= -1e-12).all())


@every()
def test_smoothing_is_refused_where_it_does_nothing(name):
    if "label_smoothing" in LOSSES[name].model_fields:
        made(name, label_smoothing=0.1)
        return
    with pytest.raises(ValidationError, match="does nothing to the loss"):
        made(name, label_smoothing=0.1)


@every()
def test_documents_speak_of_it(name):
    loss = LOSSES[name]
    assert loss.__doc__
    assert loss.equation
    assert loss.paper
    assert loss.written_example() in (ROOT / "docs" / "papers.md").read_text()
    assert covered_by(loss, ROOT), f"write a test in tests/preference that uses {name}"
    assert all(item.help for item in describe(loss)), "a help text under every setting"
    page = ROOT / "docs" / "methods" / "losses" / f"{name}.md"
    assert page.read_text() == loss_page(name), "run: python -m rlvr.preference.pages docs/methods"


@every()
def test_the_command_of_its_page_trains_with_it(name):
    recipe, override = example(name)
    loaded = load_settings(PreferenceRecipe, ROOT / recipe, [override.strip("'")])
    assert [loss.name for loss in loaded.losses] == [name]
