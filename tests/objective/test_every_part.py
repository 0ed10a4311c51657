"""What holds for every part of an objective, whoever wrote it: a new file is tested by being there.

A part is tried with its defaults (and its ``example``), and with the settings of ``ALSO``, which
are strong enough to act on a few random tokens.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlvr.objective.corrections import Correction
from rlvr.objective.objective import Objective
from rlvr.objective.pages import KINDS
from rlvr.objective.parts import Advantage, PolicyLoss, Regulariser, TokenFilter
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.reinforce import Reinforce
from rlvr.objective.reducers import Counts, Reducer
from rlvr.settings import describe
from rlvr.settings.index import covered_by, shown_in
from rlvr.settings.outside import load_outside
from tests.objective.columns import (
    assert_split_free,
    columns,
    gradients,
    prepared,
    rows_of,
    whole,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "how_to" / "examples"
ALSO = {
    "clip": [{"high": 0.28}, {"dual": 3.0}, {"low": 1.0, "high": 9.0}],
    "ratio": [{"cap": 10.0}],
    "gspo": [{"low": 0.05, "high": 0.1}],
    "gmpo": [{"bound": 0.1}],
    "cispo": [{"low": 0.1, "high": 0.1}],
    "clip_cov": [{"fraction": 0.2, "low": 0.0, "high": 9.0}],
    "off_policy": [{"limit": 0.05}],
    "kl": [{"estimator": name, "coefficient": 0.1} for name in ("k1", "k2", "k3")]
    + [{"weighted": True, "coefficient": 0.1}],
    "adaptive_entropy": [{"initial": 0.1, "target": 9.0}],
    "kl_cov": [{"fraction": 0.2}],
    "lp_reg": [{"rho": 0.3}, {"rho": 0.3, "kl": "sampled"}],
    "truncated": [{"cap": 1.1}, {"level": "sequence", "cap": 1.1}],
    "masked": [{"low": 0.8, "high": 1.2}, {"level": "sequence", "low": 0.5, "high": 2.0}],
    "mask_only": [{"low": 0.8, "high": 1.2}],
    "group": [{"scale": "none"}],
    "reinforce_pp": [{"baseline": "group"}],
}
OUTSIDE = [
    load_outside(f"{EXAMPLES}/topr.py:Topr"),
    load_outside(f"{EXAMPLES}/w_reinforce.py:WeightedReinforce"),
]
REGISTERED = [part for kind in KINDS for part in kind.registry().values()]
EVERY = [
    part(**{**part.example, **settings})
    for part in (*REGISTERED, *OUTSIDE)
    for settings in ({}, *ALSO.get(part(**part.example).name, []))
]
TERMS = [part for part in EVERY if not isinstance(part, Advantage)]
LOSSES = [part for part in EVERY if isinstance(part, PolicyLoss)]
ADVANTAGES = [part for part in EVERY if isinstance(part, Advantage)]


def objective_of(part):
    """An objective whose other parts are plain, with the reducer that the part's paper takes."""
    reducers, loss = Reducer.registry(), part if isinstance(part, PolicyLoss) else Clip()
    return Objective(
        policy_loss=loss,
        regularisers=(part,) if isinstance(part, Regulariser) else (),
        reducer=part
        if isinstance(part, Reducer)
        else reducers[loss.reducer_of_paper or "token_mean"](),
        filters=(part,) if isinstance(part, TokenFilter) else (),
        **({"correction": part} if isinstance(part, Correction) else {}),
    )


def parts(values):
    return pytest.mark.parametrize("part", values, ids=repr)


def same(ours, theirs):
    """Gradients up to rounding; None is all zero."""
    return all(
        torch.allclose(torch.zeros_like(b) if a is None else a, b, atol=1e-13)
        for a, b in zip(ours, theirs, strict=True)
        if b is not None
    )


@parts(TERMS)
def test_padding_changes_nothing(part):
    objective = objective_of(part)
    case = prepared(objective, columns())
    loss, metrics = whole(objective, case)
    for junk, padding in ((50.0, 0), (0.0, 3), (-50.0, 2)):
        padded = prepared(objective, columns(junk=junk, padding=padding))
        value, numbers = objective(padded, Counts.of(case.mask_BT))
        assert value.item() == pytest.approx(loss.item(), rel=1e-12)
        assert numbers == pytest.approx(metrics, rel=1e-12)
        slopes = gradients(value, padded)
        width = case.mask_BT.shape[1]
        assert same([g if g is None else g[:, :width] for g in slopes], gradients(loss, case))
        assert all(g is None or bool((g[padded.mask_BT == 0] == 0).all()) for g in slopes)


@parts([part for part in TERMS if not getattr(part, "draws", False)])
def test_the_order_of_completions_changes_nothing(part):
    objective, order = objective_of(part), [3, 0, 6, 2, 5, 1, 4, 7]
    case = columns()
    ours, theirs = (prepared(objective, terms) for terms in (case, rows_of(case, order)))
    (loss, metrics), (other, numbers) = whole(objective, ours), whole(objective, theirs)
    assert other.item() == pytest.approx(loss.item(), rel=1e-12)
    assert numbers == pytest.approx(metrics, rel=1e-12)
    moved = [g if g is None else g[order] for g in gradients(loss, ours)]
    assert same(moved, gradients(other, theirs))


@parts(TERMS)
def test_the_split_into_micro_batches_changes_nothing(part):
    assert_split_free(objective_of(part), columns())


@parts(TERMS)
def test_tokens_of_advantage_zero_have_a_gradient_only_where_the_part_says_so(part):
    objective, case = objective_of(part), columns()
    case = prepared(objective, replace(case, advantages_BT=torch.zeros_like(case.mask_BT)))
    loss, _ = whole(objective, case)
    moves = any(g is not None and bool((g != 0).any()) for g in gradients(loss, case))
    assert not moves or objective.regularised


@parts(TERMS)
def test_a_reference_is_looked_at_only_where_the_part_says_so(part):
    objective, case = objective_of(part), columns()
    with_reference, _ = whole(objective, prepared(objective, case))
    other = replace(case, reference_logprobs_BT=case.reference_logprobs_BT - 0.5)
    moved, _ = whole(objective, prepared(objective, other))
    assert (moved.item() != with_reference.item()) == objective.needs_reference


@parts(LOSSES)
def test_on_policy_the_gradient_is_the_plain_one_where_the_part_says_so(part):
    objective, case = objective_of(part), columns()
    old_BT = case.logprobs_BT.detach()
    case = replace(case, old_logprobs_BT=old_BT, rollout_logprobs_BT=None)
    plain = replace(objective, policy_loss=Reinforce())
    ours, theirs = (gradients(whole(o, case)[0], case) for o in (objective, plain))
    assert same(ours, theirs) == part.plain_on_policy


@parts(LOSSES)
def test_the_ratio_is_looked_at_only_where_the_part_says_so(part):
    objective, case = objective_of(part), replace(columns(), rollout_logprobs_BT=None)
    other = replace(case, old_logprobs_BT=case.old_logprobs_BT - 0.05 * case.mask_BT)
    ours, theirs = (gradients(whole(objective, terms)[0], terms) for terms in (case, other))
    assert same(ours, theirs) != part.uses_ratio


REWARDS = torch.tensor([1.0, 5, 0, 9, 2, 2, 7], dtype=torch.float64)
GROUPS = torch.tensor([0, 1, 0, 1, 0, 1, 2])


@parts(ADVANTAGES)
def test_group_numbers_are_names_and_the_order_of_completions_is_free(part):
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    values = part(REWARDS, GROUPS)
    assert torch.allclose(part(REWARDS[order], 40 - GROUPS[order]), values[order])
    assert part(REWARDS.float(), GROUPS).dtype == torch.float32


@parts([part for part in ADVANTAGES if part.compares])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e3, 2 / 3])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_equal_rewards_are_worth_exactly_nothing(part, value, count):
    rewards = torch.full((count,), value, dtype=torch.float64)
    assert part(rewards, torch.zeros(count).long()).tolist() == [0.0] * count


@parts(ADVANTAGES)
def test_siblings_are_needed_only_where_the_part_says_so(part):
    alone = part(REWARDS, torch.arange(7))
    assert bool((alone == 0).all()) == (part.needs_siblings or part.needs_critic)


@parts(ADVANTAGES)
def test_a_constant_on_all_rewards_changes_nothing_where_the_part_says_so(part):
    moved = part(REWARDS + 3, GROUPS)
    assert torch.allclose(moved, part(REWARDS, GROUPS)) == part.shift_invariant


@pytest.mark.parametrize("part", REGISTERED, ids=lambda part: part.__name__)
def test_documents_speak_of_it(part):
    assert part.__doc__, "what it does, in a sentence"
    assert part.paper or not part(**part.example).active
    assert part.written_example() in (ROOT / "docs" / "papers.md").read_text()
    assert shown_in(part, ROOT), f"say in docs/methods what `{part.written_example()}` is"
    assert covered_by(part, ROOT), f"write a test in tests/objective that uses {part.__name__}"
    assert all(item.help for item in describe(part)), "a help text under every setting"
