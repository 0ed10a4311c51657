"""Attention piece by piece is attention behind the mask, and computes fewer pairs."""

import copy
import importlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tree_attention import block_mask, pieces_of, piecewise, recompute_contexts
from tests.learner.batches import make_batch
from tests.learner.test_learner import gradients, learner_of

PLAIN = Objective(Clip(), (), TokenMean())


def row(shape, seed=0):
    """Prompts and completions of groups, given as (prompt length, completion lengths)."""
    generator = random.Random(seed)
    prompts, completions = [], []
    for prompt, lengths in shape:
        ids = tuple(generator.randrange(3, 60) for _ in range(prompt))
        prompts += [ids] * len(lengths)
        completions += [tuple(generator.randrange(3, 60) for _ in range(n)) for n in lengths]
    return prompts, completions, range(len(prompts))


SHAPES = {
    "one short group": [(4, [3, 5])],
    "two groups": [(90, [40, 60]), (80, [50, 70, 30])],
    "long completions": [(20, [150, 170, 90])],
    "both": [(20, [160, 180, 170]), (60, [9, 8]), (30, [1]), (40, [0, 7, 40])],
}
COUNTS = {"one short group": 1, "two groups": 2, "long completions": 4, "both": 7}


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_cover_the_row_and_see_what_the_mask_shows(shape):
    inputs = packed_inputs(*row(SHAPES[shape]))
    mask_LL = inputs.attention_mask[0, 0]
    pieces = pieces_of(inputs.blocks, mask_LL)
    assert len(pieces) == COUNTS[shape]
    seen_LL = torch.zeros_like(mask_LL)
    for piece in pieces:
        own = range(piece.start, piece.stop)
        behind = [] if piece.behind is None else pieces[piece.behind]
        keys = [*(range(behind.start, behind.stop) if behind else ()), *own]
        mask = torch.ones(len(own), len(own)).tril().bool() if piece.mask is None else piece.mask
        seen_LL[torch.tensor(list(own))[:, None], torch.tensor(keys)] = mask
    assert torch.equal(seen_LL, mask_LL)
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, len(mask_LL))


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_are_those_of_padded_rows(exact_policy, shape):
    data = row(SHAPES[shape])
    packed, padded = packed_inputs(*data), padded_inputs(*data)
    found = exact_policy(packed)
    expected = exact_policy(padded)
    order = [inputs.row_N * 1000 + inputs.column_N for inputs in (packed, padded)]
    found_N, expected_N = (
        stats.logprobs_N[by.argsort()] for stats, by in zip((found, expected), order, strict=True)
    )
    assert torch.allclose(found_N, expected_N, atol=1e-6)
    config = exact_policy.causal_lm.config
    assert config._attn_implementation == "sdpa", "the choice is put back"


@pytest.fixture
def calls(monkeypatch):
    """A list that grows with each piece that is attended to; pieces are cut wherever they can."""
    monkeypatch.setattr("rlvr.policy.tree_attention._CALL", 1)
    made = []
    usual = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "rlvr.policy.tree_attention.scaled_dot_product_attention",
        lambda *args, **more: made.append(1) or usual(*args, **more),
    )
    return made


def recomputing(policy, **options):
    """The policy with activations that are recomputed."""
    again = copy.deepcopy(policy)
    again.causal_lm.gradient_checkpointing_enable({"use_reentrant": False, **options})
    return again.train()


def test_gradients_are_those_of_the_mask(exact_policy, calls):
    """And of activations that are recomputed, piece by piece or, if not told so, by the mask."""
    batch = make_batch([1.0, 0, 0, 1, 0, 0, 0, 1])

    def of(policy):
        calls.clear()
        return gradients(learner_of(policy, PLAIN, layout="packed"), batch), len(calls)

    pieces, forward = of(exact_policy)
    masked, by_the_mask = of(recomputing(exact_policy))
    recomputed, twice = of(recomputing(exact_policy, context_fn=recompute_contexts))
    assert by_the_mask == 0 < forward
    # Each layer forward, and once more for its gradient; the trial of packing has none.
    assert twice > 1.5 * forward
    for name, value in masked.items():
        assert torch.allclose(value, pieces[name], atol=1e-7, rtol=1e-4), name
        assert torch.allclose(value, recomputed[name], atol=1e-7, rtol=1e-4), name


def test_recomputed_pieces_need_neither_the_thread_nor_the_pass_they_came_from(exact_policy, calls):
    """Backward in another thread, twice, after the model has run another row."""
    policy = recomputing(exact_policy, context_fn=recompute_contexts)
    parameters = list(policy.parameters())
    first, other = (packed_inputs(*row(SHAPES[name])) for name in ("two groups", "both"))
    plain = exact_policy(first).logprobs_N.sum()
    expected = torch.autograd.grad(plain, list(exact_policy.parameters()))
    loss = policy(first).logprobs_N.sum()
    policy(other)
    calls.clear()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            grad = pool.submit(torch.autograd.grad, loss, parameters, retain_graph=True).result()
            for found, due in zip(grad, expected, strict=True):
                assert torch.allclose(found, due, atol=1e-9, rtol=1e-7)
    layers = policy.causal_lm.config.num_hidden_layers
    assert len(calls) == 2 * layers * len(pieces_of(first.blocks, first.attention_mask[0, 0]))
    assert policy.causal_lm.config._attn_implementation == "sdpa", "the choice is put back"


def test_a_recipe_that_recomputes_tells_its_layers_the_pieces(tiny_folder, calls):
    policy = load_policy(ModelSettings(path=str(tiny_folder), gradient_checkpointing=True)).train()
    loss = policy(packed_inputs(*row(SHAPES["two groups"]))).logprobs_N.sum()
    forward = len(calls)
    loss.backward()
    assert len(calls) == 2 * forward > 0


def test_what_is_not_the_row_of_the_pieces_is_attended_to_by_its_mask(exact_policy):
    """Such as a generation in another thread, while the model runs a packed row here."""
    inputs = packed_inputs(*row(SHAPES["two groups"]))
    ids = torch.tensor([[5, 9, 4, 7]])
    alone = exact_policy.backbone(input_ids=ids).last_hidden_state
    with piecewise(exact_policy._transformer, inputs.blocks, inputs.attention_mask):
        within = exact_policy.backbone(input_ids=ids).last_hidden_state
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(exact_policy.backbone, input_ids=ids).result().last_hidden_state
    assert torch.allclose(within, alone, atol=1e-12)
    assert torch.allclose(beside, alone, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_flex_attention_is_shown_what_the_mask_shows(shape):
    inputs = packed_inputs(*row(SHAPES[shape]))
    mask = block_mask(inputs.blocks, torch.device("cpu"))
    position = torch.arange(len(inputs.attention_mask[0, 0]))
    shown_LL = mask.mask_mod(0, 0, position[:, None], position[None, :])
    assert torch.equal(shown_LL, inputs.attention_mask[0, 0])
    visible = torch.nn.functional.pad(inputs.attention_mask[0, 0], (0, -len(position) % 128) * 2)
    tiles = visible.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(1).any(2)
    assert torch.equal(mask.to_dense()[0, 0].bool(), tiles), "no tile is skipped or run in vain"


def test_statistics_and_gradients_of_flex_attention_are_those_of_the_mask(
    exact_policy, monkeypatch
):
    """Its own arithmetic without the compiler, which has no gradient on a CPU."""
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(
        "transformers.integrations.flex_attention.compile_friendly_flex_attention",
        lambda *args, training, **more: flex.flex_attention(*args, **more),
    )
    inputs = packed_inputs(*row([(70, [40, 60]), (5, [0, 30])]))
    results = []
    for attention in ("sdpa", "flex_attention"):
        policy = recomputing(exact_policy, context_fn=recompute_contexts)
        policy.causal_lm.config._attn_implementation = attention
        stats = policy(inputs, entropy=True)
        loss = (stats.logprobs_N.sin() + stats.entropy_N).sum()
        gradient = torch.autograd.grad(loss, list(policy.parameters()))
        results.append((stats.logprobs_N, stats.entropy_N, *gradient))
    for found, due in zip(*results, strict=True):
        assert torch.allclose(found, due, atol=1e-6)


def test_flex_attention_on_a_cpu_is_refused(tiny_folder):
    settings = ModelSettings(path=str(tiny_folder), attention="flex_attention")
    with pytest.raises(ValueError, match=r"has no gradient on a CPU; set it to sdpa"):
        load_policy(settings, device=torch.device("cpu"))
