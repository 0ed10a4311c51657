"""Reading routers changes nothing; replaying a routing does exactly what it says."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen2MoeConfig

from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy, packing_is_exact
from rlvr.policy.routers import (
    ANY,
    RoutingRequest,
    expert_weights,
    replayed,
    router_modules,
    sequence_positions,
)
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import ModelSettings

PROMPTS = ((5, 6, 7), (5, 6, 7), (8, 9))
COMPLETIONS = ((10, 11, 12, 13), (14, 15), (16,))
LENGTHS = [len(prompt) for prompt in PROMPTS]
LAYOUTS = {"padded": padded_inputs, "packed": packed_inputs}


def inputs_of(layout):
    return LAYOUTS[layout](PROMPTS, COMPLETIONS, (0, 1, 2))


def gradient_of(policy, stats):
    policy.zero_grad()
    stats.logprobs_N.sum().backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_changes_neither_numbers_nor_gradients(mixture, layout):
    inputs = inputs_of(layout)
    plain = mixture(inputs)
    before = gradient_of(mixture, plain)
    mixture.watch_routers()
    read = mixture(inputs, routing=RoutingRequest())
    assert torch.equal(plain.logprobs_N, read.logprobs_N)
    after = gradient_of(mixture, read)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert mixture(inputs).routing is None
    assert read.routing.logits_NME.shape == (7, 2, 6)
    assert read.routing.experts_NMK.shape == (7, 2, 2)


def test_what_is_read_is_what_the_model_says_of_its_routers(mixture):
    mixture.watch_routers()
    inputs = inputs_of("padded")
    read = mixture(inputs, routing=RoutingRequest(everywhere=True)).routing
    said = mixture.causal_lm.model(
        input_ids=inputs.input_ids_RL,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids_RL,
        output_router_logits=True,
    ).router_logits
    assert torch.equal(read.logits_NME, torch.stack(said, 1))
    assert torch.equal(read.experts_NMK, read.logits_NME.topk(2, -1).indices)


def test_both_layouts_read_the_same_routing(mixture):
    mixture.watch_routers()
    found = []
    for layout in LAYOUTS:
        inputs = inputs_of(layout)
        read = mixture(inputs, routing=RoutingRequest()).routing
        found.append(read.logits_NME[torch.argsort(inputs.row_N * 10 + inputs.column_N)])
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_of_a_row_are_those_of_its_tokens(layout):
    inputs = inputs_of(layout)
    where = sequence_positions(inputs, LENGTHS)
    for row, positions in enumerate(where):
        ids = inputs.input_ids_RL.flatten()[positions].tolist()
        assert ids == [*PROMPTS[row], *COMPLETIONS[row][:-1]]


def test_an_empty_completion_has_no_positions():
    inputs = padded_inputs(((5, 6), (7,)), ((), (8, 9)), (0, 1))
    assert [len(where) for where in sequence_positions(inputs, [2, 1])] == [0, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replaying_the_own_routing_changes_nothing(mixture, layout):
    mixture.watch_routers()
    inputs = inputs_of(layout)
    free = mixture(inputs, routing=RoutingRequest(everywhere=True))
    own = [free.routing.experts_NMK[where] for where in sequence_positions(inputs, LENGTHS)]
    replay = RoutingRequest(replay_PMK=replayed(inputs, LENGTHS, own))
    again = mixture(inputs, routing=replay)
    assert torch.allclose(free.logprobs_N, again.logprobs_N, atol=1e-6)
    before, after = gradient_of(mixture, free), gradient_of(mixture, again)
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_under_other_weights_the_replayed_experts_are_used_with_the_new_weights(mixture, layout):
    """The oracle: a model whose top-k is patched to pick the old experts."""
    mixture.watch_routers()
    inputs = inputs_of(layout)
    with torch.no_grad():
        old = mixture(inputs, routing=RoutingRequest(everywhere=True)).routing.experts_NMK
        for router in router_modules(mixture.causal_lm.model):
            router.weight.add_(torch.randn(router.weight.shape, generator=torch.manual_seed(2)))
    rows = [old[where] for where in sequence_positions(inputs, LENGTHS)]
    request = RoutingRequest(replay_PMK=replayed(inputs, LENGTHS, rows))
    result = mixture(inputs, routing=request)
    assert not torch.equal(result.routing.experts_NMK, old[inputs.predict_N]), "own choices moved"

    oracle = copy.deepcopy(mixture)
    for layer, router in enumerate(router_modules(oracle.causal_lm.model)):
        router._forward_hooks.clear()

        def pick(hidden, router=router, layer=layer):
            logits = hidden.reshape(-1, hidden.shape[-1]) @ router.weight.T
            own = logits.topk(2, -1).indices
            known = request.replay_PMK[:, layer]
            chosen = torch.where(known == ANY, own, known)
            p = logits.exp().gather(-1, chosen)
            return logits, p / p.sum(-1, keepdim=True), chosen

        router.forward = pick
    expected = oracle(inputs)
    assert torch.allclose(result.logprobs_N, expected.logprobs_N, atol=1e-6)
    mine, theirs = gradient_of(mixture, result), gradient_of(oracle, expected)
    assert all(torch.allclose(mine[n], theirs[n], atol=1e-6) for n in theirs)
    assert not torch.allclose(result.logprobs_N, mixture(inputs).logprobs_N, atol=1e-3)


def test_recomputing_in_the_backward_pass_replays_too(mixture_folder):
    found = []
    for checkpointing in (False, True):
        policy = load_policy(
            ModelSettings(path=str(mixture_folder), gradient_checkpointing=checkpointing)
        ).double()
        policy.causal_lm.set_experts_implementation("eager")
        policy.train()
        policy.watch_routers()
        inputs = inputs_of("padded")
        replay = torch.randint(6, (inputs.num_positions, 2, 1), generator=torch.manual_seed(0))
        replay = torch.cat([replay, (replay + 1) % 6], -1)
        stats = policy(inputs, routing=RoutingRequest(replay_PMK=replay))
        policy.zero_grad()
        (stats.logprobs_N.sum() + stats.routing.logits_NME.square().sum()).backward()
        found.append({n: p.grad for n, p in policy.named_parameters()})
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-8) for n in found[0])


def test_an_engines_pass_is_left_alone(mixture):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = mixture.causal_lm(input_ids=ids).logits
        mixture.watch_routers()
        inputs = inputs_of("padded")
        replay = torch.zeros(inputs.num_positions, 2, 2, dtype=torch.long)
    stats = mixture(inputs, routing=RoutingRequest(replay_PMK=replay))
    with torch.no_grad():
        assert torch.equal(mixture.causal_lm(input_ids=ids).logits, before)
    stats.logprobs_N.sum().backward()


@pytest.mark.parametrize("config", [MixtralConfig, OlmoeConfig, Qwen2MoeConfig])
def test_families_whose_weights_are_a_softmax_are_known(config):
    shape = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4,
        "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8, "pad_token_id": 0,
    }  # fmt: skip
    policy = Policy(AutoModelForCausalLM.from_config(config(**shape)))
    routers = policy.watch_routers()
    assert (len(routers.modules), routers.experts, routers.chosen) == (2, 4, 2)
    assert routers.normalised == (config is MixtralConfig)


def test_others_are_refused(tiny_folder, mixture_folder):
    with pytest.raises(ValueError, match="no mixture-of-experts layers"):
        load_policy(ModelSettings(path=str(tiny_folder))).watch_routers()
    policy = load_policy(ModelSettings(path=str(mixture_folder)))
    router = router_modules(policy.causal_lm.model)[0]
    plain = type(router).forward
    router.forward = lambda hidden: (lambda o: (o[0], o[0].sigmoid()[:, :2], o[2]))(
        plain(router, hidden)
    )
    with pytest.raises(ValueError, match="do not weigh experts by a softmax"):
        policy.watch_routers()


def test_weights_of_given_experts():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    p = logits.softmax(-1)[0]
    experts = torch.tensor([[0, 2]])
    assert torch.allclose(expert_weights(logits, experts, normalised=False)[0], p[[0, 2]])
    shares = expert_weights(logits, experts, normalised=True)[0]
    assert torch.allclose(shares, p[[0, 2]] / p[[0, 2]].sum())


def test_a_mixture_packs_and_comes_back_from_its_folder(mixture_folder, tmp_path):
    policy = load_policy(ModelSettings(path=str(mixture_folder)))
    assert packing_is_exact(policy)
    save_policy(policy, tmp_path)
    again = load_policy(ModelSettings(path=str(mixture_folder)), saved=tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True)
    )
