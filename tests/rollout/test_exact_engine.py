"""``learner.exact``: a completion has the same bits in any batch, share and order."""

import random

import pytest
import torch

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.engine import Request
from rlvr.rollout.engine_trial import Caching
from rlvr.rollout.exact_batch import BLOCK_ROWS, BlockBatch, block_width
from rlvr.rollout.running_batch import RunningBatch
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import TransformersEngineSettings
from rlvr.rollout.transformers_engine import TransformersEngine
from tests.families import write_family
from tests.training import column, run

SAMPLING = Sampling(max_tokens=8, temperature=1.3)
STOP = [2, 7, 11]


def requests(lengths=(3, 18, 5, 16, 40, 5, 9), samples=3):
    generator = random.Random(0)
    return [
        Request(
            tuple(generator.randrange(3, 60) for _ in range(length)),
            tuple(generator.randrange(2**60) for _ in range(samples)),
        )
        for length in lengths
    ]


def engine_of(policy, max_rows=256, exact=True, **options):
    settings = TransformersEngineSettings(max_rows=max_rows)
    return TransformersEngine(policy, STOP, settings, exact=exact, **options)


def flat(outputs):
    return [sample for samples in outputs for sample in samples]


def every_way(build, asked):
    """What is generated in batches of several sizes, in shares, and in another order."""
    engine = build(256)
    yield engine.generate(asked, SAMPLING)
    yield build(5).generate(asked, SAMPLING)
    yield build(1).generate(asked[:3], SAMPLING) + engine.generate(asked[3:], SAMPLING)
    shares = [asked[rank::2] for rank in range(2)]
    halves = [engine.generate(share, SAMPLING) for share in shares]
    yield [halves[place % 2][place // 2] for place in range(len(asked))]
    order = random.Random(1).sample(range(len(asked)), len(asked))
    mixed = engine.generate([asked[place] for place in order], SAMPLING)
    yield [mixed[order.index(place)] for place in range(len(asked))]


def all_the_same(build, asked):
    first, *others = every_way(build, asked)
    return all(other == first for other in others)


@pytest.mark.parametrize(
    ("family", "precision"),
    [("llama", "float32"), ("qwen2", "float32"), ("qwen3", "float32"), ("qwen3", "bfloat16")],
)
def test_bits_do_not_depend_on_the_batch(family, precision, tmp_path):
    write_family(family, tmp_path)
    policy = load_policy(ModelSettings(path=str(tmp_path), precision=precision))
    caching = engine_of(policy).caching
    assert all_the_same(lambda rows: engine_of(policy, rows, caching=caching), requests())


def test_bits_do_not_depend_on_the_number_of_threads(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    engine, before = engine_of(policy), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(engine.generate(requests(), SAMPLING))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_samples_are_the_ordinary_ones_up_to_rounding(exact_policy):
    usual = engine_of(exact_policy, exact=False).generate(requests(), SAMPLING)
    exact = engine_of(exact_policy).generate(requests(), SAMPLING)
    for one, two in zip(flat(usual), flat(exact), strict=True):
        assert (one.token_ids, one.finish_reason) == (two.token_ids, two.finish_reason)
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-9)
    assert len({len(sample.token_ids) for sample in flat(exact)}) > 2


@pytest.fixture
def by_shape(monkeypatch):
    """Kernels whose rounding depends on the number of rows, as real ones may."""
    usual = RunningBatch._forward

    def forward(self, ids, positions, mask):
        return usual(self, ids, positions, mask) * (1 + 1e-5 * len(ids))

    monkeypatch.setattr(RunningBatch, "_forward", forward)


def test_kernels_that_choose_by_shape_are_told_apart_by_the_ordinary_engine_alone(
    tiny_folder, by_shape
):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    caching = Caching()
    ordinary = lambda rows: engine_of(policy, rows, exact=False, caching=caching)  # noqa: E731
    assert not all_the_same(ordinary, requests())
    exact = engine_of(policy, caching=caching)
    assert exact.rows == "blocks"
    assert all_the_same(lambda rows: engine_of(policy, rows, caching=caching), requests())


def test_a_model_whose_rows_depend_on_their_place_runs_them_alone(tiny_folder, monkeypatch):
    usual = BlockBatch._forward

    def forward(self, ids, positions, mask):
        places = torch.arange(len(ids))[:, None]
        return usual(self, ids, positions, mask) * (1 + 1e-5 * places)

    monkeypatch.setattr(BlockBatch, "_forward", forward)
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    assert engine_of(policy, caching=Caching()).rows == "alone"
    assert all_the_same(lambda rows: engine_of(policy, rows, caching=Caching()), requests())


@pytest.mark.parametrize("kind", ["none", "model"])
def test_rows_without_a_cache_to_join_run_alone(tiny_folder, kind):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))

    def build(max_rows):
        return engine_of(policy, max_rows, caching=Caching(kind))

    assert build(4).rows == "alone"
    assert all_the_same(build, requests((3, 9, 4, 9)))


def test_prompts_of_one_length_run_in_blocks_where_padding_cannot_be_skipped(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))

    def build(max_rows):
        return engine_of(policy, max_rows, caching=Caching(mixed=False))

    assert build(4).rows == "blocks"
    assert all_the_same(build, requests((9, 4, 9, 5)))


def test_a_mixtures_rows_run_alone_with_the_experts_they_went_to(mixture):
    def build(max_rows):
        engine = engine_of(mixture, max_rows, caching=Caching())
        assert engine.rows == "alone"
        engine.keeps_experts = True
        return engine

    first, *others = every_way(build, requests((3, 9, 4)))
    for other in others:
        for one, two in zip(flat(first), flat(other), strict=True):
            assert (one.token_ids, one.logprobs) == (two.token_ids, two.logprobs)
            assert torch.equal(one.experts, two.experts)


def test_no_row_of_a_block_is_left_to_a_loop_over_single_numbers():
    generator = torch.Generator().manual_seed(0)
    for width in (1, 43, 57, 85):
        for shift in range(1, BLOCK_ROWS):
            x = torch.randn(BLOCK_ROWS, width, generator=generator)
            for function in (torch.nn.functional.silu, torch.exp):
                assert torch.equal(function(x.roll(shift, 0)).roll(-shift, 0), function(x))


def test_activations_of_odd_width_in_bfloat16_run_rows_alone(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder), precision="bfloat16"))
    assert any(getattr(m, "out_features", 0) % 2 for m in policy.modules())
    assert engine_of(policy, caching=Caching()).rows == "alone"


def test_the_width_of_a_prompt_is_its_own():
    assert [block_width(length, True) for length in (1, 15, 16, 17)] == [16, 16, 32, 32]
    assert block_width(7, False) == 7
    assert BLOCK_ROWS > 1


def test_a_run_is_the_same_whatever_the_engines_batch(recipe_values, tmp_path):
    found = []
    for max_rows in (256, 5):
        values = recipe_values | {"output": str(tmp_path / str(max_rows)), "steps": 1}
        _, metrics = run(
            values,
            "learner.exact=true",
            f"rollout.engine.max_rows={max_rows}",
            "evaluation.every=1",
        )
        found.append(metrics)
    first, second = ([_untimed(row) for row in rows] for rows in found)
    assert first == second
    assert column(first, "mismatch/difference")


def _untimed(row):
    timed = ("time/", "throughput/", "memory/")
    return {name: value for name, value in row.items() if not name.startswith(timed)}
