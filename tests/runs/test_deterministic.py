"""``deterministic: true``: what is switched and when, the same bits, and operations that it stops.

What it does on a GPU was not tried.
"""

import os
from contextlib import suppress
from inspect import signature

import pytest
import torch
import yaml
from transformers import modeling_flash_attention_utils as flash

from rlvr.learner.deterministic import CUBLAS, deterministic_algorithms
from rlvr.rollout.sampling import exact_cumulative
from rlvr.runs import base_run
from tests.command import refused
from tests.rl.test_train import figures, run_in_process, same_weights, weights


def switches():
    return {
        "cublas": os.environ.get(CUBLAS),
        "flash": os.environ.get("FLASH_ATTENTION_DETERMINISTIC"),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
    }


STRICT = {
    **{"cublas": ":4096:8", "flash": "1", "algorithms": True, "warn_only": False},
    **{"cudnn": True, "benchmark": False},
}


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.delenv("FLASH_ATTENTION_DETERMINISTIC", raising=False)


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_all_is_switched_for_the_block_alone(error):
    """Whichever way it ends."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    before = switches()
    try:
        with suppress(KeyError, KeyboardInterrupt), deterministic_algorithms(True):
            assert switches() == STRICT
            if error is not None:
                raise error
    finally:
        assert switches() == before
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def test_nothing_is_switched_unless_it_is_wanted():
    before = switches()
    with deterministic_algorithms(False):
        assert switches() == before


def flash_arguments(function):
    """What transformers gives a flash attention that can be deterministic."""
    names = signature(function).parameters
    known = dict.fromkeys(("dropout_p", "window_size", "softcap", "s_aux", "deterministic"), True)
    known |= dict.fromkeys(("learnable_sink", "block_table", "page_table", "cache_seqlens"), False)
    known |= dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), False)
    assert "supports_mapping" in names
    return function(4, 4, True, supports_mapping=known)


def test_flash_attention_is_asked_for_its_deterministic_backward():
    call = flash._process_flash_attention_kwargs
    assert flash_arguments(call)["deterministic"] is False
    with deterministic_algorithms(True):
        assert flash_arguments(call)["deterministic"] is True


def test_a_run_switches_before_its_processes_meet(recipe_values, monkeypatch):
    """On a GPU that begins CUDA, after which cuBLAS does not look at its workspace again."""
    seen = []

    def join():
        seen.append(switches())
        raise ValueError("seen")

    monkeypatch.setattr(base_run, "join", join)
    for wanted in (True, False):
        with pytest.raises(ValueError, match=r"^seen$"):
            run_in_process(recipe_values, f"deterministic={wanted}")
    assert seen[0] == STRICT
    assert seen[1]["algorithms"] is False
    assert seen[1]["cublas"] is None


def test_cuda_that_has_begun_is_refused_unless_its_workspace_was_set(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with (
        pytest.raises(ValueError, match=f"set {CUBLAS}=:4096:8 in the environment and start"),
        deterministic_algorithms(True),
    ):
        raise AssertionError("not reached")
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic_algorithms(True):
        assert os.environ[CUBLAS] == ":16:8"
    monkeypatch.setenv(CUBLAS, ":0:0")
    with (
        pytest.raises(ValueError, match=r"needs .*:4096:8 or :16:8, but .* ':0:0'; unset it"),
        deterministic_algorithms(True),
    ):
        raise AssertionError("not reached")


def put(*, wrapped):
    """An operation without a deterministic form."""
    try:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    except RuntimeError as error:
        if wrapped:  # as the trial of a model does
            raise ValueError("model 'x' cannot be run") from error
        raise


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_operation_without_a_deterministic_form_is_named(wrapped):
    put(wrapped=wrapped)
    message = r"deterministic = true, but put_ has no .*=false, or"
    with pytest.raises(ValueError, match=message), deterministic_algorithms(True):
        put(wrapped=wrapped)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match=r"^out of luck$"), deterministic_algorithms(True):
        raise RuntimeError("out of luck")


def test_a_run_on_a_cpu_gives_the_same_bits(recipe_values, tmp_path):
    plain, strict = tmp_path / "plain", tmp_path / "strict"
    run_in_process(recipe_values, f"output={plain}", "steps=3")
    run_in_process(recipe_values, f"output={strict}", "steps=3", "deterministic=true")
    assert same_weights(weights(plain), weights(strict))
    assert figures(plain) == figures(strict)


LOSS = '''
from typing import Literal

import torch
from rlvr.objective.parts import PolicyLoss


class Puts(PolicyLoss):
    """Sets a number in a way that has no deterministic form."""

    name: Literal["puts"] = "puts"
    paper = "none"

    def __call__(self, terms):
        loss_BT = (-terms.advantages_BT * terms.logprobs_BT).clone()
        return loss_BT.put_(torch.tensor([0]), torch.zeros(1))
'''


def test_a_run_with_such_an_operation_ends_in_one_line(recipe_values, tmp_path):
    (tmp_path / "puts.py").write_text(LOSS)
    recipe_values["policy_loss"] = {"name": f"{tmp_path}/puts.py:Puts"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    line = refused("train", tmp_path / "recipe.yaml", "deterministic=true")
    assert "deterministic = true, but put_ has no deterministic implementation" in line


def test_a_sum_of_integers_stands_for_a_running_sum_of_probabilities():
    """In its place on a GPU, where PyTorch has no deterministic form of the latter."""
    generator = torch.Generator().manual_seed(0)
    logits_BV = 4 * torch.randn(16, 50_000, generator=generator, dtype=torch.float64)
    probabilities_BV = logits_BV.softmax(-1)
    found_BV = exact_cumulative(probabilities_BV)
    assert (found_BV - probabilities_BV.cumsum(-1)).abs().max() < 1e-10
    # In another order of addition, here of halves, the same bits.
    halves = probabilities_BV.split(25_000, dim=-1)
    second_BV = exact_cumulative(halves[0])[:, -1:] + exact_cumulative(halves[1])
    assert torch.equal(second_BV, found_BV[:, 25_000:])
