"""The engine chooses a way to generate that gives the learner's numbers, or says that none does."""

import pytest

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout import engine_trial
from rlvr.rollout.engine import Request
from rlvr.rollout.engine_trial import Caching, exact_caching
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from tests.families import largest_difference, write_family


def load(family, folder):
    write_family(family, folder)
    return load_policy(ModelSettings(path=str(folder), attention="eager"))


@pytest.mark.parametrize(
    ("family", "caching"),
    [
        ("llama", Caching()),
        ("mamba2", Caching("model")),
        ("mamba", Caching("model", mixed=False)),
        ("lfm2", Caching("model")),
        ("bart", Caching(mixed=False)),
        ("rwkv", Caching("none")),
    ],
)
def test_samples_have_the_learners_log_probabilities(family, caching, tmp_path):
    policy = load(family, tmp_path)
    engine = TransformersEngine(policy, range(0, 86, 25))
    assert engine.caching == caching
    assert (engine.note is None) == (caching.kind != "none" and caching.mixed)
    assert largest_difference(policy, engine) < 1e-4


def test_a_completion_without_a_cache_is_that_with_one(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    requests = [Request((5, 6, 7), (1, 2)), Request((9,), (3, 4)), Request((8, 8, 8, 8), (5,))]
    sampling = Sampling(max_tokens=20, temperature=1.2)
    usual, *others = (
        TransformersEngine(policy, [2, 7, 11], caching=caching).generate(requests, sampling)
        for caching in engine_trial._WAYS
    )
    for other in others:
        for one, two in zip(usual, other, strict=True):
            assert [x.token_ids for x in one] == [x.token_ids for x in two]
            for mine, theirs in zip(one, two, strict=True):
                assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_a_way_that_is_wrong_without_a_word_is_not_taken(tmp_path):
    policy = load("mamba", tmp_path)
    wrong = TransformersEngine(policy, [2], caching=Caching("model", mixed=True))
    assert largest_difference(policy, wrong, max_tokens=8) > 1e-2


def test_a_model_that_no_way_is_exact_for_is_refused(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))

    def off(stop_ids, caching):
        engine = TransformersEngine(policy, stop_ids, caching=caching)
        usual = engine.generate

        def generate(requests, sampling):
            return usual(requests, sampling.model_copy(update={"temperature": 1.5}))

        engine.generate = generate
        return engine

    with pytest.raises(ValueError, match=r"nats apart.*rollout.engine.name=vllm") as refused:
        exact_caching(policy, off)
    assert "\n" not in str(refused.value)
