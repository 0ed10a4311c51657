"""The engine: a completion does not depend on its batch, and its numbers are the learner's."""

import random

import pytest
import torch

from rlvr.data import Prompt
from rlvr.policy.batching import padded_inputs
from rlvr.rollout.engine import Request
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import TransformersEngineSettings
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.types import Message, Problem


def requests(count, samples=3, seed=0):
    generator = random.Random(seed)
    return [
        Request(
            tuple(generator.randrange(3, 60) for _ in range(generator.randrange(2, 12))),
            tuple(generator.randrange(2**60) for _ in range(samples)),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def engine(exact_policy):
    return TransformersEngine(exact_policy, [2, 7])


SAMPLING = Sampling(max_tokens=40, temperature=1.3)


def test_a_completion_is_the_same_in_any_batch(exact_policy, engine):
    asked = requests(12)
    together = engine.generate(asked, SAMPLING)
    shuffled = list(range(12))
    random.Random(1).shuffle(shuffled)
    again = engine.generate([asked[index] for index in shuffled], SAMPLING)
    small = TransformersEngine(exact_policy, [2, 7], TransformersEngineSettings(max_rows=5))
    split = small.generate(asked, SAMPLING)
    alone = [engine.generate([request], SAMPLING)[0] for request in asked]
    for index in range(12):
        for other in (again[shuffled.index(index)], split[index], alone[index]):
            for one, two in zip(together[index], other, strict=True):
                assert one.token_ids == two.token_ids
                assert one.logprobs == pytest.approx(two.logprobs, abs=1e-10)
    lengths = {len(sample.token_ids) for samples in together for sample in samples}
    assert len(lengths) > 5, "rows must have left the batch at different times"


def test_log_probabilities_are_the_learners_under_the_sampling_temperature(exact_policy, engine):
    asked = requests(5, seed=2)
    outputs = engine.generate(asked, SAMPLING)
    prompts = [request.prompt_ids for request in asked for _ in request.seeds]
    samples = [sample for output in outputs for sample in output]
    completions = [sample.token_ids for sample in samples]
    inputs = padded_inputs(prompts, completions, range(len(samples)))
    with torch.no_grad():
        stats = exact_policy(inputs, temperature=1.3)
    expected = torch.tensor([value for sample in samples for value in sample.logprobs])
    assert torch.allclose(stats.logprobs_N, expected.double(), atol=1e-6)


def test_greedy_generation_is_that_of_transformers(exact_policy):
    engine = TransformersEngine(exact_policy, [2])
    model = exact_policy.causal_lm
    for request in requests(4, samples=1, seed=3):
        (sample,) = engine.generate([request], Sampling(max_tokens=20, temperature=0.0))[0]
        ids = torch.tensor([request.prompt_ids])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
        assert tuple(output[0, ids.shape[1] :].tolist()) == sample.token_ids


def test_finish_reasons_and_stop_tokens(engine):
    samples = [s for output in engine.generate(requests(20), SAMPLING) for s in output]
    stopped = [sample for sample in samples if sample.finish_reason == "stop"]
    cut = [sample for sample in samples if sample.finish_reason == "length"]
    assert stopped
    assert cut
    assert all(sample.token_ids[-1] in (2, 7) for sample in stopped)
    assert all(len(sample.token_ids) == 40 for sample in cut)
    assert not any({2, 7} & set(sample.token_ids[:-1]) for sample in samples)


def test_progress_counts_to_the_end_and_training_mode_is_given_back(exact_policy, engine):
    seen = []
    exact_policy.train()
    exact_policy.zero_grad(set_to_none=True)
    engine.generate(requests(4), SAMPLING, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    assert exact_policy.training
    assert not any(p.grad is not None for p in exact_policy.parameters())


def test_a_prompt_that_leaves_no_room_is_refused(engine):
    with pytest.raises(ValueError, match="a prompt of 250 tokens with max_tokens 40 exceeds"):
        engine.generate([Request((5,) * 250, (1,))], SAMPLING)


def prompt(name):
    return Prompt(Problem(name, (Message(role="user", content="x"),), "1", "test"), (5, 6, 7))


def test_a_problem_repeated_in_a_step_gets_groups_of_its_own(engine):
    prompts = [prompt("a"), prompt("b"), prompt("a")]
    groups = sample_groups(engine, prompts, 4, SAMPLING, run_seed=1, step=3)
    assert [group.completions[0].group_id for group in groups] == ["3/0", "3/1", "3/2"]
    assert [c.sample_index for c in groups[2].completions] == [4, 5, 6, 7]
    texts = {c.token_ids for group in groups for c in group.completions}
    assert len(texts) > 8, "copies must not sample the same completions"
    again = sample_groups(engine, prompts[:1], 8, SAMPLING, run_seed=1, step=3)
    assert again[0].completions[4].token_ids == groups[2].completions[0].token_ids


def test_a_mixtures_choices_are_those_of_the_learner_at_every_position(mixture):
    """Left-padded prompts, shared prefills and rows that leave, against one plain pass each."""
    engine = TransformersEngine(mixture, [2], TransformersEngineSettings(max_rows=5))
    asked, sampling = requests(4), Sampling(max_tokens=9)
    plain = engine.generate(asked, sampling)
    assert all(sample.experts is None for samples in plain for sample in samples)
    engine.keeps_experts = True
    kept = engine.generate(asked, sampling)
    for request, samples, others in zip(asked, kept, plain, strict=True):
        for sample, other in zip(samples, others, strict=True):
            assert sample.token_ids == other.token_ids
            ids = [*request.prompt_ids, *sample.token_ids[:-1]]
            assert sample.experts.shape == (len(ids), 2, 2)
            with torch.no_grad():
                said = mixture.causal_lm.model(
                    input_ids=torch.tensor([ids]), output_router_logits=True
                ).router_logits
            chosen = torch.stack(said, 1).topk(2, -1).indices
            assert torch.equal(sample.experts.long().sort(-1).values, chosen.sort(-1).values)
