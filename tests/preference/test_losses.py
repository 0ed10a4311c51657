"""Losses: TRL's own code as the oracle for values and gradients, closed forms for the rest."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import logsigmoid

from rlvr.preference.losses.base import PreferenceLoss, mixed_loss
from rlvr.preference.losses.modifiers import desensitised_logps, sampling_weights
from rlvr.preference.losses.terms import Labelled, Pairs, Side
from rlvr.preference.losses.unpaired import baseline_of
from rlvr.settings import load_settings
from tests.preference import trl_oracle

LOSSES = PreferenceLoss.registry()
B, T = 6, 9
DPO_NAMES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
SMOOTHED = {"exo_pair", "robust", "aot", "aot_unpaired"}
DIVERGING = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"]


def make(name, **settings):
    return LOSSES[name](**settings)


class Batch:
    """Random token log-probabilities of 2B completions: B chosen, then B rejected."""

    def __init__(self, seed=0, scale=1.0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)

        def draw():
            return -scale * torch.rand(2 * B, T, generator=generator, dtype=torch.float64)

        lengths = torch.randint(1, T + 1, (2 * B,), generator=generator)
        self.mask = (torch.arange(T) < lengths[:, None]).to(dtype)
        self.policy = (draw().to(dtype) * self.mask).requires_grad_()
        self.reference = draw().to(dtype) * self.mask
        self.square_mass = draw().to(dtype) * self.mask

    def pairs(self, ld_alpha=None):
        lengths = self.mask.sum(-1)
        shared = torch.minimum(lengths[:B], lengths[B:]).repeat(2)
        policy = desensitised_logps(self.policy, self.mask, shared, ld_alpha)
        reference = desensitised_logps(self.reference, self.mask, shared, ld_alpha)
        plain = (self.policy * self.mask).sum(-1)
        sides = [
            Side(policy[rows], lengths[rows], reference[rows], plain[rows])
            for rows in (slice(0, B), slice(B, None))
        ]
        return Pairs(*sides, tokens_per_pair=float(lengths[:B].sum()) / B)

    def weights(self):
        values = sampling_weights(self.policy, self.square_mass, self.mask)
        return values[:B] * values[B:]


def assert_same(ours, theirs, *leaves, tolerance=1e-10):
    assert torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance), (ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        assert torch.allclose(mine, other, atol=tolerance, rtol=tolerance)
        assert mine.abs().sum() > 0


@pytest.mark.parametrize("name", DPO_NAMES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_trl_gives_the_same_values_and_gradients(name, seed, beta):
    batch = Batch(seed)
    smoothing = 0.1 if name in SMOOTHED else 0.0
    settings = {} if name == "sft" else {"beta": beta}
    loss = make(name, **settings, **({"label_smoothing": smoothing} if smoothing else {}))
    theirs = trl_oracle.dpo_loss(
        batch.policy, batch.reference, batch.mask, [name], beta=beta, label_smoothing=smoothing
    )
    # TRL holds exo_pair's epsilon in float32.
    tolerance = 1e-6 if name == "exo_pair" else 1e-10
    assert_same(loss(batch.pairs()).mean(), theirs, batch.policy, tolerance=tolerance)


@pytest.mark.parametrize("name", DIVERGING)
@pytest.mark.parametrize(
    ("divergence", "trl_name", "alpha"),
    [("forward_kl", "forward_kl", 0.5), ("js", "js_divergence", 0.5),
     ("alpha", "alpha_divergence", 0.5), ("alpha", "alpha_divergence", 1.0),
     ("alpha", "alpha_divergence", 2.0)],
)  # fmt: skip
def test_trl_gives_the_same_f_divergences(name, divergence, trl_name, alpha):
    batch = Batch(2, scale=0.3, dtype=torch.float32)  # TRL's alpha clamp knows no float64
    smoothing = 0.1 if name in SMOOTHED else 0.0
    loss = make(
        name, divergence=divergence, divergence_alpha=alpha,
        **({"label_smoothing": smoothing} if smoothing else {}),
    )  # fmt: skip
    theirs = trl_oracle.dpo_loss(
        batch.policy, batch.reference, batch.mask, [name], divergence=trl_name, alpha=alpha,
        label_smoothing=smoothing,
    )  # fmt: skip
    assert_same(loss(batch.pairs()).mean(), theirs, batch.policy, tolerance=2e-5)


# TRL weighs in place, which breaks its own backward through hinge's relu and fails on sft's
# expanded scalar; it refuses to weigh aot.
@pytest.mark.parametrize("name", sorted(set(DPO_NAMES) - {"aot", "aot_unpaired", "hinge", "sft"}))
def test_trl_gives_the_same_with_length_desensitising_and_weighting(name):
    batch = Batch(3)
    smoothing = 0.1 if name in SMOOTHED else 0.0
    loss = make(name, **({"label_smoothing": smoothing} if smoothing else {}))
    theirs = trl_oracle.dpo_loss(
        batch.policy, batch.reference, batch.mask, [name], ld_alpha=0.4,
        label_smoothing=smoothing, log_square_mass_BT=batch.square_mass,
    )  # fmt: skip
    ours = mixed_loss([loss], batch.pairs(ld_alpha=0.4), batch.weights()).mean()
    assert_same(ours, theirs, batch.policy, tolerance=1e-6 if name == "exo_pair" else 1e-10)


@pytest.mark.parametrize("name", ["hinge", "sft", "aot", "aot_unpaired"])
def test_trl_gives_the_same_with_length_desensitising_alone(name):
    batch = Batch(3)
    theirs = trl_oracle.dpo_loss(batch.policy, batch.reference, batch.mask, [name], ld_alpha=0.4)
    assert_same(make(name)(batch.pairs(ld_alpha=0.4)).mean(), theirs, batch.policy)


def test_trl_gives_the_same_mixture():
    """MPO's mixture (arXiv:2411.10442)."""
    batch, weights = Batch(4), [0.8, 0.2, 1.0]
    names = ["sigmoid", "bco_pair", "sft"]
    theirs = trl_oracle.dpo_loss(batch.policy, batch.reference, batch.mask, names, weights)
    losses = [make(name, weight=weight) for name, weight in zip(names, weights, strict=True)]
    assert_same(mixed_loss(losses, batch.pairs()).mean(), theirs, batch.policy)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("labels", ["mixed", "good", "bad"])
@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_trl_gives_the_same_unpaired_losses(name, labels, shift):
    batch, other = Batch(5), Batch(6)
    label = {
        "mixed": torch.arange(2 * B) % 3 == 0,
        "good": torch.ones(2 * B, dtype=torch.bool),
        "bad": torch.zeros(2 * B, dtype=torch.bool),
    }[labels]
    mismatched = other.policy.detach() + shift * other.mask  # so that the estimate takes both signs
    theirs = trl_oracle.kto_loss(
        batch.policy, batch.reference, mismatched, other.reference, batch.mask, label, name,
        desirable_weight=1.3, undesirable_weight=0.7,
    )  # fmt: skip
    z0 = baseline_of(mismatched.sum(-1) - other.reference.sum(-1))
    assert z0 >= 0
    assert (z0 > 0) == (shift > 0)
    loss = make(name, desirable_weight=1.3, undesirable_weight=0.7)
    labelled = Labelled((batch.policy * batch.mask).sum(-1), batch.reference.sum(-1), label, z0)
    assert_same(loss(labelled).mean(), theirs, batch.policy)


VOCABULARY, LENGTH = 11, 12


def random_logits(seed=0):
    """2B sequences of prompt and completion, with the log-probabilities that logits give."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2 * B, LENGTH, VOCABULARY, generator=generator, dtype=torch.float64)
    prompts = torch.randint(2, 5, (B,), generator=generator).repeat(2)
    ends = prompts + torch.randint(1, LENGTH - 5, (2 * B,), generator=generator)
    ids = torch.randint(1, VOCABULARY, (2 * B, LENGTH), generator=generator)
    ids[torch.arange(LENGTH)[None] >= ends[:, None]] = 0
    return logits.requires_grad_(), ids, prompts, ends


def pairs_of(logits, ids, prompts, ends):
    logps = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    position = torch.arange(1, LENGTH)[None]
    completion = (position >= prompts[:, None]) & (position < ends[:, None])
    prompt = position < prompts[:, None]
    sums = (logps * completion).sum(-1)
    lengths = completion.sum(-1).double()
    return Pairs(
        Side(sums[:B], lengths[:B]),
        Side(sums[B:], lengths[B:]),
        tokens_per_pair=float(lengths[:B].mean()),
        prompt_logps_B=(logps * prompt).sum(-1)[:B],
        prompt_tokens_per_pair=float(prompt[:B].sum() / B),
    )


@pytest.mark.parametrize(
    ("name", "settings", "trl"),
    [
        ("cpo", {}, {"loss_type": "sigmoid"}),
        ("cpo", {"label_smoothing": 0.2, "nll_weight": 0.5},
         {"loss_type": "sigmoid", "label_smoothing": 0.2, "cpo_alpha": 0.5}),
        ("cpo", {"form": "hinge"}, {"loss_type": "hinge"}),
        ("cpo", {"alpha": 0.05}, {"loss_type": "sigmoid", "alpha": 0.05}),
        ("cpo_ipo", {}, {"loss_type": "ipo"}),
        ("cpo_ipo", {"alpha": 0.1}, {"loss_type": "ipo", "alpha": 0.1}),
        ("simpo", {"beta": 2.0, "gamma": 0.5}, {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0}),
        ("simpo", {"beta": 2.0, "nll_weight": 1.0}, {"loss_type": "simpo", "beta": 2.0}),
        ("alphapo", {"beta": 2.0, "alpha": 0.25},
         {"loss_type": "simpo", "beta": 2.0, "alpha": 0.25, "cpo_alpha": 0}),
    ],
)  # fmt: skip
def test_trl_gives_the_same_reference_free_losses(name, settings, trl):
    logits, ids, prompts, ends = random_logits()
    given = {
        "beta": 0.1,
        "alpha": 0.0,
        "label_smoothing": 0.0,
        "simpo_gamma": 0.5,
        "cpo_alpha": 1.0,
    }
    theirs = trl_oracle.contrastive_loss("cpo", logits, ids, prompts, **given | trl)
    loss = make(name, **settings)
    assert_same(loss(pairs_of(logits, ids, prompts, ends)).mean(), theirs, logits)


def test_trl_gives_the_same_orpo_over_prompt_and_completion():
    logits, ids, prompts, ends = random_logits(1)
    theirs = trl_oracle.contrastive_loss("orpo", logits.float(), ids, prompts, beta=0.1)
    loss = make("orpo", nll_over="prompt_and_completion")
    ours = loss(pairs_of(logits, ids, prompts, ends)).mean()
    assert_same(ours.float(), theirs, logits, tolerance=1e-6)


def point(a=-12.0, b=-15.0, a0=-13.5, b0=-14.0, w=10.0, length=12.0, **more):
    def one(value):
        return torch.tensor([value], dtype=torch.float64)

    return Pairs(
        Side(one(a).requires_grad_(), one(w), one(a0)),
        Side(one(b).requires_grad_(), one(length), one(b0)),
        tokens_per_pair=w,
        **more,
    )


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sigmoid", {}, 0.575939),
        ("hinge", {}, 0.75),
        ("nca_pair", {}, 1.328634),
        ("apo_down", {}, 0.975253),
        ("cpo", {"nll_weight": 0.0}, 0.554355),
    ],
)
def test_the_specified_point(name, settings, expected):
    assert make(name, **settings)(point()).item() == pytest.approx(expected, abs=1e-6)


def minus_log_sigmoid(value):
    return -float(logsigmoid(torch.tensor(value, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("r_dpo", {"alpha": 0.05}, minus_log_sigmoid(0.1 * 2.5 + 0.05 * (10 - 12))),
        ("dpop", {"penalty": 7.0}, minus_log_sigmoid(0.1 * 2.5)),
        ("slic", {"margin": 5.0, "nll_weight": 0.5}, max(0.0, 5.0 - 3.0) + 0.5 * 12),
        ("slic", {"margin": 2.0, "nll_weight": 0.0}, 0.0),
        ("rrhf", {"nll_weight": 0.0}, max(0.0, 12 / 10 - 15 / 12)),
        ("rrhf", {"nll_weight": 1.0}, 12.0),
        ("alphapo", {"alpha": 0.0, "beta": 2.0}, minus_log_sigmoid(2 * (-1.2 + 1.25) - 0.5)),
    ],
)
def test_closed_forms(name, settings, expected):
    assert make(name, **settings)(point()).item() == pytest.approx(expected, abs=1e-9)


def test_dpop_penalises_only_a_winner_that_fell():
    fallen = point(a=-14.0)
    r_w, d = -0.5, -0.5 + 1.0
    expected = minus_log_sigmoid(0.1 * (d - 7 * -r_w))
    assert float(make("dpop", penalty=7.0)(fallen)) == pytest.approx(expected)
    assert make("dpop", penalty=0.0)(fallen) == make("sigmoid")(fallen)


@pytest.mark.parametrize(("of", "offset"), [("log_difference", math.log(3)), ("difference", 3.0)])
def test_odpo_asks_for_a_margin_by_score(of, offset):
    given = point()
    scored = Pairs(
        Side(given.chosen.logps_B, given.chosen.lengths_B, given.chosen.reference_logps_B,
             scores_B=torch.tensor([4.0], dtype=torch.float64)),
        Side(given.rejected.logps_B, given.rejected.lengths_B, given.rejected.reference_logps_B,
             scores_B=torch.tensor([1.0], dtype=torch.float64)),
        tokens_per_pair=10,
    )  # fmt: skip
    expected = minus_log_sigmoid(0.1 * 2.5 - 0.5 * offset)
    assert float(make("odpo", alpha=0.5, of=of)(scored)) == pytest.approx(expected)


# Limit cases: what each loss and its gradient become where the pair is settled or nothing is.


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "robust", "r_dpo", "dpop"])
def test_at_the_reference_the_loss_is_log_2_and_pushes_both_sides(name):
    loss = make(name)
    given = point(a=-13.5, b=-14.0, length=10.0)
    value = loss(given)
    assert float(value) == pytest.approx(math.log(2))
    won, lost = torch.autograd.grad(value.sum(), [given.chosen.logps_B, given.rejected.logps_B])
    assert won < 0 < lost


@pytest.mark.parametrize(
    "name", ["sigmoid", "hinge", "exo_pair", "robust", "discopop", "r_dpo", "dpop", "cpo", "slic"]
)
def test_a_won_pair_has_no_gradient_left(name):
    loss = make(name, **({"nll_weight": 0.0} if name in ("cpo", "slic") else {}))
    given = point(a=-1.0, b=-8000.0)
    value = loss(given).sum()
    sides = [given.chosen.logps_B, given.rejected.logps_B]
    for gradient in torch.autograd.grad(value, sides, allow_unused=True):
        assert gradient is None or gradient.abs() < 1e-6


@pytest.mark.parametrize(
    "name", sorted(set(LOSSES) - {"kto", "apo_zero_unpaired", "odpo", "logic"})
)
@pytest.mark.parametrize(
    "sides", [(-690.8, -690.8), (-690.8, -0.01), (-0.01, -690.8), (-1e4, -1e4)]
)
def test_gradients_are_finite_at_vanishing_probabilities(name, sides):
    a, b = (torch.tensor([value, value - 1], requires_grad=True) for value in sides)
    lengths = torch.tensor([10.0, 10.0])
    reference = torch.tensor([-600.0, -700.0])
    pairs = Pairs(Side(a, lengths, reference), Side(b, lengths, reference), tokens_per_pair=10.0)
    value = make(name)(pairs).sum()
    gradients = torch.autograd.grad(value, [a, b], allow_unused=True)
    finite = [g is None or bool(g.isfinite().all()) for g in gradients]
    if name in ("alphapo",) and min(sides) < -1e3:
        return  # p^-alpha itself leaves float32, in TRL too
    assert all(finite), gradients
    assert value.isfinite()


def test_constants_of_a_divergence_cancel_in_differences_and_not_per_token():
    given = point()
    r_w, r_l = 1.5, -1.0
    js = make("sigmoid", divergence="js")
    plain = logsigmoid(torch.tensor(r_w)) - logsigmoid(torch.tensor(r_l))
    assert float(js(given)) == pytest.approx(minus_log_sigmoid(0.1 * float(plain)), abs=1e-6)
    per_token = make("sigmoid_norm", divergence="js")
    without = float(logsigmoid(torch.tensor(r_w))) / 10 - float(logsigmoid(torch.tensor(r_l))) / 12
    with_constant = without + math.log(2) * (1 / 10 - 1 / 12)
    assert float(per_token(given)) == pytest.approx(
        minus_log_sigmoid(0.1 * with_constant), abs=1e-6
    )


DIFFERENCE_ONLY = {
    "sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm", "r_dpo", "odpo",
    "comp_sum",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(DPO_NAMES) - {"sft", "aot", "aot_unpaired"}))
def test_which_losses_see_only_the_difference(name):
    """Raising both log-ratios alike (per token where lengths enter) changes only the others."""
    same = point(a=-12 + 5 * 1.0, b=-15 + 5 * 1.0, w=10.0, length=10.0)
    base = point(w=10.0, length=10.0)
    unchanged = float(make(name)(same)) == pytest.approx(float(make(name)(base)), abs=1e-12)
    assert unchanged == (name in DIFFERENCE_ONLY)


def test_alpha_po_with_alpha_0_is_simpo():
    assert make("alphapo", alpha=0.0)(point()) == make("simpo")(point())


@pytest.mark.parametrize(
    ("name", "setting"), [("robust", 0.5), ("exo_pair", 0.0), ("robust", -0.1)]
)
def test_impossible_smoothing_is_refused(name, setting):
    with pytest.raises(ValidationError):
        make(name, label_smoothing=setting)


def test_logic_gives_dpo_and_cpo_exactly():
    batch = Batch(7)
    dpo = make("logic", structure="DPO", per="sequence", beta=0.1)
    assert_same(dpo(batch.pairs()).mean(), make("sigmoid")(batch.pairs()).mean(), batch.policy)
    cpo = make("logic", structure="CPO", per="sequence", beta=0.1, nll_weight=1.0)
    assert_same(cpo(batch.pairs()).mean(), make("cpo")(batch.pairs()).mean(), batch.policy)
    odds = make("logic", structure="ORPO", per="token")
    orpo = make("orpo", beta=1.0, nll_weight=0.0)
    assert_same(odds(batch.pairs()).mean(), orpo(batch.pairs()).mean(), batch.policy)
    margin = make("logic", structure="SimPO", manual={"mw": 0.3, "ml": 0.2}, beta=2.0)
    simpo = make("simpo", beta=2.0, gamma=2 * math.log(0.3 / 0.2))
    assert_same(margin(batch.pairs()).mean(), simpo(batch.pairs()).mean(), batch.policy)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"structure": "cCPOO"}, "no loss is named 'cCPOO'"),
        ({"structure": {"P": "true"}}, "Cross is empty"),
        ({"structure": {"P": "l -> q"}}, "'q' is no atom"),
        ({"structure": "DPO", "reference": True}, "speaks of the reference already"),
        ({"structure": "SimPO"}, "give manual.ml"),
        ({"structure": "CPO", "manual": {"mw": 0.5}}, "manual.mw"),
    ],
)
def test_impossible_structures_are_refused(given, part):
    with pytest.raises(ValueError, match=part):
        load_settings(LOSSES["logic"], given)
