"""The update from preferences: gradients that do not depend on the split, the reference, modes."""

import copy
import itertools
import random
from contextlib import nullcontext

import pytest
import torch

from rlvr.data.examples import Examples
from rlvr.learner.offline import OfflineLearner
from rlvr.learner.preference import PreferenceMixture, adapters_off
from rlvr.learner.settings import LearnerSettings
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.preference.losses.base import PreferenceLoss, mixed_loss
from rlvr.preference.losses.terms import Pairs, Side
from rlvr.reward_models.process_losses import StepLabels
from tests.learner.memory import short_of_memory

LOSSES = PreferenceLoss.registry()


def pairs(count=6, seed=0):
    generator = random.Random(seed)

    def ids(low, high):
        return tuple(generator.randrange(3, 60) for _ in range(generator.randrange(low, high)))

    prompts = [ids(2, 6) for _ in range(count)]
    prompts[1] = prompts[0]  # two pairs of one prompt
    return Examples.of_several(
        prompts,
        [(ids(1, 9), ids(1, 9)) for _ in range(count)],
        {"score": torch.tensor([[2.0, 1.0]] * count)},
    )


def labelled(count=6):
    both = pairs(count)
    return Examples.of_one(
        both.prompt_ids[::2],
        both.completion_ids[::2],
        {"label": (torch.arange(count) % 3 > 0).float()},
    )


def learner_of(policy, names, **settings):
    model, reference = copy.deepcopy(policy), copy.deepcopy(policy).requires_grad_(False)
    with torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():  # away from the reference
            parameter.add_(0.02 * torch.randn_like(parameter))
    options = {k: settings.pop(k) for k in ("ld_alpha", "weighting") if k in settings}
    losses = [LOSSES[name](**given) for name, given in names]
    values = LearnerSettings(**{"lr": 1e-2, "max_grad_norm": None, **settings})
    mixture = PreferenceMixture(losses, reference=lambda: nullcontext(reference), **options)
    return OfflineLearner(model, mixture, values)


UNPAIRED = ("kto", "apo_zero_unpaired")


class _CaughtError(Exception):
    pass


def gradients(learner, batch):
    caught = {}

    def catch(_lr):
        caught.update({n: p.grad.clone() for n, p in learner.store.named.items()})
        raise _CaughtError

    learner.store.step = catch
    with pytest.raises(_CaughtError):
        learner.update(batch)
    return caught


CASES = {
    "dpo": ([("sigmoid", {})], {}),
    "mixture": ([("sigmoid", {"weight": 0.8}), ("bco_pair", {"weight": 0.2}), ("sft", {})], {}),
    "orpo": ([("orpo", {"nll_over": "prompt_and_completion"})], {}),
    "aot": ([("aot", {}), ("simpo", {})], {}),
    "ld_and_wpo": ([("ipo", {}), ("dpop", {})], {"ld_alpha": 0.3, "weighting": True}),
    "logic": ([("logic", {"structure": "cCPO", "reference": True})], {}),
    "odpo": ([("odpo", {})], {}),
    "kto": ([("kto", {}), ("apo_zero_unpaired", {})], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_does_not_depend_on_the_split(exact_policy, case):
    names, options = CASES[case]
    batch = labelled() if case == "kto" else pairs()
    whole = gradients(
        learner_of(exact_policy, names, layout="padded", tokens_per_micro_batch=10_000, **options),
        batch,
    )
    assert any(value.abs().sum() > 0 for value in whole.values())
    for layout, budget in (("padded", 1), ("padded", 40), ("packed", 1), ("packed", 50)):
        learner = learner_of(
            exact_policy, names, layout=layout, tokens_per_micro_batch=budget, logits_chunk=3,
            **options,
        )  # fmt: skip
        for name, value in gradients(learner, batch).items():
            assert torch.allclose(value, whole[name], atol=1e-12, rtol=1e-8), (layout, name)


@pytest.mark.parametrize("case", ["dpo", "ld_and_wpo", "aot", "kto"])
def test_out_of_memory_halves_the_budget_once_and_the_step_is_the_same(exact_policy, case):
    names, options = CASES[case]
    batch = labelled() if case == "kto" else pairs()
    whole, halved = (
        learner_of(exact_policy, names, layout="padded", tokens_per_micro_batch=40, **options)
        for _ in range(2)
    )
    short_of_memory(halved, times=1)
    expected, found = whole.update(batch), halved.update(batch)
    assert (expected["learner/out_of_memory"], found["learner/out_of_memory"]) == (0, 1)
    assert (whole.budget.tokens, halved.budget.tokens) == (40, 20)
    assert found["preference/loss"] == pytest.approx(expected["preference/loss"], rel=1e-12)
    for (name, one), two in zip(
        whole.policy.named_parameters(), halved.policy.parameters(), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-9, rtol=0), name
    short_of_memory(halved, times=1)
    with pytest.raises(ValueError, match=r"lower learner\.tokens_per_micro_batch"):
        halved.update(batch)


@pytest.mark.parametrize("case", ["dpo", "ld_and_wpo", "aot", "orpo"])
def test_the_gradient_is_that_of_the_plain_loss(exact_policy, case):
    """Against log-softmax of one sequence at a time and the loss of the table."""
    names, options = CASES[case]
    batch = pairs()
    learner = learner_of(exact_policy, names, tokens_per_micro_batch=30, **options)
    model = learner.policy.causal_lm
    with learner.loss.reference() as frozen:
        reference = frozen.causal_lm

    def one(lm, prompt, completion):
        ids = torch.tensor([[*prompt, *completion]])
        logp = lm(input_ids=ids).logits[0].double().log_softmax(-1)
        rows = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        return logp[rows].gather(-1, ids[0, rows + 1, None])[:, 0], logp[rows]

    sides, weights = [], 1.0
    for k in (0, 1):
        sums, plain, frozen_sums, lengths, confidence = [], [], [], [], []
        for own in batch.rows:
            prompt = batch.prompt_ids[own[0]]
            item = [batch.completion_ids[row] for row in own]
            shared = min(map(len, item))
            scale = torch.ones(len(item[k]), dtype=torch.float64)
            scale[shared:] = options.get("ld_alpha") or 1.0
            values, logp = one(model, prompt, item[k])
            sums.append((values * scale).sum())
            plain.append(values.sum())
            with torch.no_grad():
                frozen_sums.append((one(reference, prompt, item[k])[0] * scale).sum())
            square = logp.detach().exp().square().sum(-1).log()
            confidence.append((values.detach() - square).mean().exp())
            lengths.append(float(len(item[k])))
        sides.append(
            Side(torch.stack(sums), torch.tensor(lengths).double(), torch.stack(frozen_sums),
                 torch.stack(plain))
        )  # fmt: skip
        if options.get("weighting"):
            weights = weights * torch.stack(confidence)
    prompts = [one(model, p[:1], p[1:])[0].sum() for p in batch.prompt_ids[::2]]
    given = Pairs(
        *sides,
        tokens_per_pair=float(sides[0].lengths_B.mean()),
        prompt_logps_B=torch.stack(prompts),
        prompt_tokens_per_pair=sum(len(p) - 1 for p in batch.prompt_ids[::2]) / len(batch),
    )
    loss = (mixed_loss(learner.loss.mixture, given) * weights).mean()
    loss.backward()  # a tied lookup adds its rows to the gradient itself
    expected = [parameter.grad.clone() for parameter in learner.store.named.values()]
    learner.store.clear()
    measured = learner.measure(batch)
    assert measured["preference/loss"] == pytest.approx(loss.item(), rel=1e-8)
    found = gradients(learner, batch)
    for (name, value), wanted in zip(found.items(), expected, strict=True):
        assert torch.allclose(value, wanted, atol=1e-9, rtol=1e-6), name


def test_adapters_off_are_the_reference(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    base = load_policy(ModelSettings(path=str(tiny_folder)))
    mixture = PreferenceMixture([LOSSES["sigmoid"]()], reference=lambda: adapters_off(policy))
    learner = OfflineLearner(policy, mixture, LearnerSettings(lr=1e-2))
    batch = pairs()
    first = learner.update(batch)
    assert first["preference/loss"] == pytest.approx(0.693147, abs=1e-5)
    for _ in range(15):  # adapters that begin small move slowly
        learner.update(batch)
    with adapters_off(policy) as reference:
        frozen = learner.values(batch, reference)
    assert torch.allclose(frozen, learner.values(batch, base), atol=1e-4)
    assert not torch.allclose(frozen, learner.values(batch), atol=1e-2)
    assert learner.measure(batch)["preference/loss"] < first["preference/loss"]


def trained(tiny_folder, loss, batch):
    """Metrics before and after a few steps."""
    policy, frozen = (load_policy(ModelSettings(path=str(tiny_folder))) for _ in range(2))
    mixture = PreferenceMixture([loss], reference=lambda: nullcontext(frozen))
    learner = OfflineLearner(policy, mixture, LearnerSettings(lr=2e-3))
    before = learner.measure(batch)
    for _ in range(12):
        assert learner.update(batch)["learner/skipped_updates"] == 0
    return before, learner.measure(batch)


# discopop is not monotone: at the reference its gradient lowers the margin.
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {*UNPAIRED, "sft", "discopop"}))
def test_every_paired_loss_widens_the_margin(tiny_folder, name):
    given = {"structure": "cCPO"} if name == "logic" else {}
    before, after = trained(tiny_folder, LOSSES[name](**given), pairs())
    assert after["preference/margin"] > before["preference/margin"]
    assert after["preference/loss"] < before["preference/loss"]


def test_discopop_falls_and_at_the_reference_lowers_the_margin(tiny_folder):
    """m' (exp(-z) - log(1 + exp(-z))) outweighs the rest at z = 0: (1 - log 2) / (4 tau) > 3/4."""
    before, after = trained(tiny_folder, LOSSES["discopop"](), pairs())
    assert after["preference/loss"] < before["preference/loss"]
    assert after["preference/margin"] < before["preference/margin"] == 0


@pytest.mark.parametrize("name", UNPAIRED)
def test_unpaired_losses_part_desirable_from_undesirable(tiny_folder, name):
    before, after = trained(tiny_folder, LOSSES[name](), labelled())
    assert before["preference/desirable_log_ratio"] == 0
    assert after["preference/desirable_log_ratio"] > after["preference/undesirable_log_ratio"]
    assert after["preference/kl_baseline"] >= 0


def in_steps(count=6):
    """Responses of one to four steps; some steps judged by nobody, one response by nobody."""
    both = labelled(count)
    generator, ends = random.Random(5), []
    for ids in both.completion_ids:
        inner = range(1, len(ids))
        ends.append((*sorted(generator.sample(inner, min(3, len(inner)))), len(ids)))
    most = max(map(len, ends))
    labels_BK = torch.full((count, most), float("nan"))
    for row, own in enumerate(ends[1:], 1):
        for step in range(len(own)):
            labels_BK[row, step] = (row + step) % 3 / 2 if (row + step) % 4 else float("nan")
    return Examples.of_one(
        both.prompt_ids, both.completion_ids, {"step_label": labels_BK}, step_ends=ends
    )


def step_learner(policy, **settings):
    learner = learner_of(policy, [("kto", {})], **settings)
    learner.loss.mixture = (StepLabels(beta=0.5),)
    return learner


def test_steps_are_summed_as_they_part_the_response(exact_policy):
    batch = in_steps()
    learner = step_learner(exact_policy, tokens_per_micro_batch=30)
    sums_BK = learner.values(batch)[..., 0]
    whole_B = learner.values(labelled())[:, 0, 0]
    assert torch.allclose(sums_BK.sum(-1), whole_B, atol=1e-10)
    for row, (prompt, ids, ends) in enumerate(
        zip(batch.prompt_ids, batch.completion_ids, batch.step_ends, strict=True)
    ):
        logits = learner.policy.causal_lm(input_ids=torch.tensor([[*prompt, *ids]])).logits[0]
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
        own = [float(logp[i, token]) for i, token in enumerate(ids)]
        expected = [sum(own[a:b]) for a, b in itertools.pairwise((0, *ends))]
        found = sums_BK[row].tolist()
        assert found == pytest.approx([*expected, *[0.0] * (len(found) - len(expected))])


def test_the_gradient_of_step_labels_does_not_depend_on_the_split(exact_policy):
    batch = in_steps()
    whole = gradients(step_learner(exact_policy, tokens_per_micro_batch=10_000), batch)
    assert any(value.abs().sum() > 0 for value in whole.values())
    for layout, budget in (("padded", 1), ("padded", 40), ("packed", 50)):
        learner = step_learner(exact_policy, layout=layout, tokens_per_micro_batch=budget)
        for name, value in gradients(learner, batch).items():
            assert torch.allclose(value, whole[name], atol=1e-12, rtol=1e-8), (layout, name)


def test_a_part_of_a_batch_keeps_the_width_of_its_steps(exact_policy):
    batch, learner = in_steps(), step_learner(exact_policy)
    most = max(map(len, batch.step_ends))
    few = [row for row, ends in enumerate(batch.step_ends) if len(ends) < most]
    assert few
    values = learner.values(batch.select(few))
    assert torch.allclose(values, learner.values(batch)[few], atol=1e-12)
    assert learner.update(batch.select(few))["learner/skipped_updates"] == 0
