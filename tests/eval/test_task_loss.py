"""Bits per byte of reference answers, against transformers' own loss and by its identities."""

import math

import pytest
import torch

from eval.plan import make_evaluation_plan
from eval.task_loss import answer_bits, task_losses
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.settings import ModelSettings
from tests.eval.small import settings_for


def test_bits_equal_the_models_own_loss(exact_policy):
    prompts, answers = [[1, 9, 8], [1, 5], [7]], [[4, 12, 3], [6], [5, 5]]
    found = answer_bits(exact_policy, prompts, answers, 64)
    for prompt, answer, bits in zip(prompts, answers, found, strict=True):
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = exact_policy.causal_lm(torch.tensor([prompt + answer]), labels=labels).loss
        assert bits == pytest.approx(float(loss) * len(answer) / math.log(2), rel=1e-5)


def test_bits_do_not_depend_on_the_batch(exact_policy):
    prompts, answers = [[1] * n for n in (2, 9, 4, 7)], [[3, 4], [5], [6, 7, 8], [9]]
    one_by_one = [
        answer_bits(exact_policy, [p], [a], 64)[0] for p, a in zip(prompts, answers, strict=True)
    ]
    for budget in (10, 30, 1000):
        assert answer_bits(exact_policy, prompts, answers, budget) == pytest.approx(one_by_one)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_token(
    tiny_folder, benchmark_file
):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    tokenizer = load_tokenizer(ModelSettings(path=str(tiny_folder)))
    for parameter in policy.causal_lm.lm_head.parameters():
        torch.nn.init.zeros_(parameter)
    plan = make_evaluation_plan(settings_for(benchmark_file), tokenizer, (2,), 256)
    words = policy.causal_lm.config.vocab_size
    for row in task_losses(plan, policy, tokenizer):
        assert row["bits"] / row["tokens"] == pytest.approx(math.log2(words), rel=1e-4)
        assert row["bytes"] in (len("\\boxed{1}"), len("\\boxed{10}"))
