"""Scalar heads: the same reward alone, padded or packed, and after a file."""

import copy

import pytest
import torch

from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.head_settings import LastToken, LayerQueries
from rlvr.reward_models.heads import (
    OutcomeRewardModel,
    has_head,
    head_writer,
    load_head,
    load_reward_model,
)

PROMPTS = [[5, 6, 7], [5, 6, 7], [9, 8], [5, 6, 7]]
COMPLETIONS = [[10, 11], [12], [13, 14, 15, 16], []]
HEADS = [LastToken(), LayerQueries(heads=4), LayerQueries(layers=(1,), heads=2, dropout=0.5)]


def awake(model):
    """With weights in place of the zeros that a head starts from."""
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.out.weight)
    return model.eval()


@pytest.fixture(params=HEADS, ids=["last_token", "layer_queries", "one_layer"])
def model(request, exact_policy):
    return awake(OutcomeRewardModel(copy.deepcopy(exact_policy), request.param, bias=False))


def test_a_reward_is_the_same_alone_padded_and_packed(model):
    alone = torch.stack(
        [model(padded_inputs(PROMPTS, COMPLETIONS, (row,)))[0] for row in range(len(PROMPTS))]
    )
    assert alone.unique().numel() == len(PROMPTS)
    rows = (2, 0, 3, 1)
    for lay_out in (padded_inputs, packed_inputs):
        found = model(lay_out(PROMPTS, COMPLETIONS, rows))
        assert torch.allclose(found, alone[list(rows)], atol=1e-12), lay_out.__name__


def test_the_last_token_is_read_by_one_row(exact_policy):
    model = awake(OutcomeRewardModel(copy.deepcopy(exact_policy), LastToken(), bias=False))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        hidden = model.policy.backbone(input_ids=torch.tensor([[*prompt, *completion]]))
        expected = hidden.last_hidden_state[0, -1] @ model.head.out.weight[0]
        found = model(padded_inputs(PROMPTS, COMPLETIONS, (row,)))
        assert torch.allclose(found[0], expected)


def test_queries_ask_layer_after_layer_and_the_residual_asks_the_last(exact_policy):
    model = awake(
        OutcomeRewardModel(copy.deepcopy(exact_policy), LayerQueries(heads=4), bias=False)
    )
    head = model.head
    assert head.layers == (1, 2)
    ids = torch.tensor([[*PROMPTS[0], *COMPLETIONS[0]]])
    hidden = model.policy.backbone(input_ids=ids, output_hidden_states=True).hidden_states

    def ask(attention, query_D, keys_LD):
        """Attention written out."""
        width, heads = len(query_D), 4
        q, k, v = (
            weight @ x.T + bias[:, None]
            for weight, bias, x in zip(
                attention.in_proj_weight.chunk(3),
                attention.in_proj_bias.chunk(3),
                (query_D[None], keys_LD, keys_LD),
                strict=True,
            )
        )
        parts = []
        for part in range(heads):
            rows = slice(part * width // heads, (part + 1) * width // heads)
            scores = (k[rows] * q[rows]).sum(0) / (width / heads) ** 0.5
            parts.append(v[rows] @ scores.softmax(0))
        return attention.out_proj(torch.cat(parts))

    query = head.query_D
    for layer, attention in zip((1, 2), head.attentions, strict=True):
        query = ask(attention, query, hidden[layer][0])
    residual = ask(head.residual_attention, head.residual_query_D, hidden[-1][0])
    inner = torch.nn.functional.silu(head.inner(query + residual))
    found = model(padded_inputs(PROMPTS, COMPLETIONS, (0,)))
    assert torch.allclose(found[0], head.out(inner)[0], atol=1e-12)


def test_all_rewards_begin_at_zero_and_gradients_reach_the_transformer(exact_policy):
    for settings in HEADS:
        model = OutcomeRewardModel(copy.deepcopy(exact_policy), settings, bias=True).eval()
        inputs = padded_inputs(PROMPTS, COMPLETIONS, (0, 1, 2))
        assert model(inputs).abs().sum() == 0
        awake(model)(inputs).sum().backward()
        first = next(model.policy.model.parameters())
        assert first.grad.abs().sum() > 0
        assert all(p.grad is not None for p in model.head.parameters())


def test_the_language_model_is_no_part_of_the_module(model):
    """An engine holds it beside the head, and must not find its parameters twice."""
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"head"}


def test_a_head_is_kept_beside_its_model(tiny_folder, tmp_path):
    settings = ModelSettings(path=str(tiny_folder))
    model = awake(OutcomeRewardModel(load_policy(settings), LayerQueries(heads=4), bias=True))
    assert not has_head(tiny_folder)
    save_policy(model.policy, tmp_path)
    head_writer(model)(tmp_path / "model")
    assert has_head(tmp_path / "model")
    again = load_reward_model(ModelSettings(path=str(tmp_path / "model"), tokenizer="unused"))
    inputs = padded_inputs(PROMPTS, COMPLETIONS, (0, 1, 2, 3))
    kept, expected = again.state_dict(), model.state_dict()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert again(inputs).tolist() == pytest.approx(model(inputs).tolist(), rel=1e-5)
    assert (again.settings, again.bias, again.training) == (model.settings, True, False)
    assert not any(p.requires_grad for p in again.head.parameters())


def test_a_folder_without_a_head_or_with_another_models_is_refused(tiny_folder, tmp_path):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    with pytest.raises(ValueError, match="holds no reward model's head"):
        load_head(policy, tiny_folder)
    head_writer(OutcomeRewardModel(policy, LastToken(), bias=False))(tmp_path)
    policy.causal_lm.config.hidden_size = 16
    with pytest.raises(ValueError, match="a model of another shape"):
        load_head(policy, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LayerQueries(layers=(1, 3), heads=4), "numbers from 1 to 2"),
        (LayerQueries(layers=(2, 1), heads=4), "in rising order"),
        (LayerQueries(layers=(), heads=4), "numbers from 1 to 2"),
        (LayerQueries(heads=5), "does not divide the model's width of 32"),
    ],
)
def test_a_head_that_does_not_fit_the_model_is_refused(exact_policy, settings, message):
    with pytest.raises(ValueError, match=message):
        OutcomeRewardModel(exact_policy, settings, bias=False)
