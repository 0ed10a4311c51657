"""Attention piece by piece is attention behind the mask, and computes fewer pairs."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.tree_attention import pieces_of, piecewise
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


def test_gradients_are_those_of_the_mask(exact_policy, monkeypatch):
    """And of activations that are recomputed, which attend by the mask."""
    monkeypatch.setattr("rlvr.policy.tree_attention._CALL", 1)
    batch = make_batch([1.0, 0, 0, 1, 0, 0, 0, 1])
    calls = []
    usual = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "rlvr.policy.tree_attention.scaled_dot_product_attention",
        lambda *args, **more: calls.append(1) or usual(*args, **more),
    )
    pieces = gradients(learner_of(exact_policy, PLAIN, layout="packed"), batch)
    assert calls
    calls.clear()
    again = copy.deepcopy(exact_policy)
    again.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    again.train()
    recomputed = gradients(learner_of(again, PLAIN, layout="packed"), batch)
    assert not calls
    for name, value in pieces.items():
        assert torch.allclose(value, recomputed[name], atol=1e-7, rtol=1e-4), name


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
