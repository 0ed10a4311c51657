"""Plans: overrides, order, seeds, and what the command line makes of strings."""

import pytest

from eval.plan import make_evaluation_plan
from eval.settings import benchmark_names, build_settings, parse_ks
from rlvr.policy.tiny import character_tokenizer
from tests.eval.small import settings_for


def plan(path, context=None, **changed):
    return make_evaluation_plan(settings_for(path, **changed), character_tokenizer(), (2,), context)


def test_seeds_differ_and_depend_on_problem_and_sample_alone(benchmark_file):
    whole, part = plan(benchmark_file), plan(benchmark_file, limit=3)
    seeds = {item.key: item.request(0).seeds for item in whole.planned}
    assert len(set(seeds.values())) == len(seeds) == 20
    assert all(seeds[item.key] == item.request(0).seeds for item in part.planned)
    assert all(seeds[item.key] != item.request(1).seeds for item in part.planned)


def test_the_longest_come_first(tmp_path, benchmark_file):
    long = tmp_path / "long.jsonl"
    long.write_text(benchmark_file.read_text().replace(" + ", " plus "))
    both = make_evaluation_plan(
        settings_for(benchmark_file).model_copy(
            update={"benchmarks": (str(benchmark_file), str(long)), "greedy": True}
        ),
        character_tokenizer(),
        (2,),
        None,
    )
    rounds = list(both.rounds(both.planned))
    assert [sampling.temperature for sampling, _ in rounds] == [0.0, 1.0]
    for _, planned in rounds:
        lengths = [len(item.benchmark.prompts[item.row]) for item in planned]
        assert lengths == sorted(lengths, reverse=True)
    assert sum(len(planned) for _, planned in rounds) == len(both.planned) == 60


def test_greedy_samples_are_one_per_problem(benchmark_file):
    assert [item.key[2:] for item in plan(benchmark_file, temperature=0.0, samples=1).planned] == [
        (True, 0)
    ] * 10
    with pytest.raises(ValueError, match=r"8 samples at temperature 0 would all be equal"):
        plan(benchmark_file, temperature=0.0, samples=8)


def test_a_protocol_that_samples_becomes_one_greedy_completion_at_temperature_0(benchmark_file):
    found = plan(benchmark_file, protocol="lighteval", temperature=0.0, samples=None)
    assert found.benchmarks[0].decoding.samples == 1
    assert found.benchmarks[0].decoding.top_p == 1


def test_protocols_know_their_stop_tokens(benchmark_file):
    found = plan(benchmark_file, protocol="qwen25_math")
    assert found.stop_ids == (2,), "tokens that the vocabulary does not have are left out"


def test_a_prompt_that_fills_the_context_is_refused_by_name(benchmark_file):
    with pytest.raises(ValueError, match=r"the prompt of problem .* leaves no room"):
        plan(benchmark_file, context=5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"protocol": "qwen_math"}, "unknown protocol 'qwen_math'; did you mean"),
        ({"grader": "quen"}, "did you mean 'qwen'"),
        ({"problems": ("none",)}, "no benchmark has problems with the ids"),
    ],
)
def test_unknown_names_are_refused(benchmark_file, changed, message):
    with pytest.raises(ValueError, match=message):
        plan(benchmark_file, **changed)


def test_flags_and_overrides_make_settings():
    settings, model = build_settings(
        "./m",
        {"benchmarks": "aime24, amc23", "samples": 8, "engine": {"name": "vllm"}, "limit": None},
        ["model.precision=bfloat16", "engine.max_num_seqs=7", "workers=3"],
    )
    assert settings.benchmarks == ("aime24", "amc23")
    assert (settings.engine.name, settings.engine.max_num_seqs) == ("vllm", 7)
    assert (settings.workers, model.precision, model.path) == (3, "bfloat16", "./m")
    with pytest.raises(ValueError, match="did you mean"):
        build_settings("./m", {"benchmarks": "all"}, ["worker=3"])


def test_lists_on_the_command_line():
    assert len(benchmark_names("all")) == 7
    assert parse_ks("8, 1,4") == [1, 4, 8]
    with pytest.raises(ValueError, match="positive whole numbers"):
        parse_ks("1,x")
