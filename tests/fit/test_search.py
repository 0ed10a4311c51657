"""The settings that are proposed fit, do the least harm, and give away no speed."""

from dataclasses import replace

import pytest

from rlvr.fit.asked import STARTING_POINT, Asked, parse_gpus
from rlvr.fit.levels import checkpointing, engines, levels, micro_batches
from rlvr.fit.search import _candidate, alternatives, search
from rlvr.memory import GIB, Machine, ModelShape
from rlvr.settings import describe, load_settings
from rlvr.settings.load import apply_overrides
from rlvr.tasks.registry import find_task

B = 10**9


def shape_of(recipe):
    """Of a model of seven billion weights, without a configuration."""
    adapters = 4 * 10**7
    lora = recipe.model.lora is not None
    return ModelShape(
        parameters=7 * B,
        trained=adapters if lora else 7 * B,
        linear=6 * B,
        plain=7 * B,
        largest=10**6 if lora else B // 2,
        hidden=3584,
        intermediate=18944,
        layers=28,
        key_value_width=512,
        vocabulary=152064,
        active=7 * B,
        text="7 billion parameters",
        context=32768,
        stored="bfloat16",
    )


def ask(gib, gpus=1, **options):
    host = options.pop("host", None)
    machine = Machine("cuda", gib * GIB, None if host is None else host * GIB)
    return Asked("nobody/seven", gpus=gpus, machine=machine, **options)


def least(asked, level):
    """A level with everything that changes no number, chosen anew here."""
    recipe = asked.build({})
    small = {}
    for choice in (
        checkpointing(recipe),
        micro_batches(recipe, 1536),
        engines(recipe, level.stage),
    ):
        small |= choice[-1]
    return _candidate(asked, small, level, shape_of)


@pytest.mark.parametrize(
    ("gib", "gpus", "options", "name"),
    [
        (200, 1, {}, "as given"),
        (140, 1, {}, "the recipe's own precision"),
        (80, 4, {}, "ZeRO 2"),
        (80, 2, {}, "moments in int8, trained weights in bfloat16"),
        (80, 1, {"host": 500}, "moments in int8, trained weights in bfloat16"),
        (40, 1, {"host": 500}, "ZeRO 3 with offload"),
        (40, 1, {"host": 100}, "LoRA"),
        (24, 1, {}, "LoRA, bfloat16 passes"),
        (13, 1, {}, "LoRA, base in int8"),
        (9, 1, {}, "QLoRA: LoRA, base in nf4"),
        (80, 8, {"train": "lora"}, "LoRA"),
    ],
)
def test_the_first_level_that_can_fit_is_taken(gib, gpus, options, name):
    asked = ask(gib, gpus, **options)
    answer = search(asked, shape_of)
    assert answer.fits
    assert answer.best.level.name == name
    assert answer.best.found.total <= 0.9 * gib * GIB
    for level in levels(asked, asked.build({})):
        if level.name == name or name == "as given":
            break
        candidate = least(asked, level)
        assert candidate is None or not candidate.fits, level.name


@pytest.mark.parametrize(("gib", "gpus"), [(140, 1), (80, 4), (24, 1), (9, 1)])
def test_what_changes_no_number_is_used_only_as_far_as_it_is_needed(gib, gpus):
    """No choice could be one step faster with all others as they are."""
    asked = ask(gib, gpus)
    best, recipe = search(asked, shape_of).best, asked.build({})
    choices = (
        checkpointing(recipe),
        micro_batches(recipe, 1536),
        engines(recipe, best.level.stage),
    )
    chosen = {key: value for choice in choices for key, value in choice[0].items()}
    chosen |= {key: value for key, value in best.changes.items() if key in chosen}
    for choice in choices:
        place = choice.index({key: chosen[key] for key in choice[0]})
        for faster in choice[:place]:
            candidate = _candidate(asked, {**chosen, **faster}, best.level, shape_of)
            assert not candidate.fits, faster


def test_what_is_missing_is_said_and_what_would_do_does():
    asked = ask(24, train="full")
    answer = search(asked, shape_of)
    assert not answer.fits
    best = answer.best
    assert best.recipe.model.lora is None
    assert best.missing == pytest.approx(best.found.total - 0.9 * 24 * GIB)
    assert best.found.total == min(size for _, size in answer.tried)
    found = dict(alternatives(asked, shape_of))
    assert "--lora" in found
    assert all(other.fits for other in found.values())
    more = next(other for words, other in found.items() if words.startswith("--gpus"))
    fewer = replace(more.asked, gpus=more.asked.gpus // 2)
    assert not search(fewer, shape_of).fits or more.asked.nodes > 1


def test_a_shorter_completion_is_offered_where_length_is_what_costs():
    asked = ask(9, completion=16384, train="lora")
    assert not search(asked, shape_of).fits
    words = next(words for words, _ in alternatives(asked, shape_of) if "completion" in words)
    tokens = int(words.split()[1])
    assert search(replace(asked, completion=tokens), shape_of).fits
    assert not search(replace(asked, completion=2 * tokens), shape_of).fits


def test_settings_of_the_command_line_are_kept():
    words = ("model.gradient_checkpointing=false", "rollout.engine.max_rows=64")
    best = search(ask(40, words=words), shape_of).best
    assert not best.recipe.model.gradient_checkpointing
    assert best.recipe.rollout.engine.max_rows == 64
    assert not best.changes.keys() & {word.partition("=")[0] for word in words}


def test_settings_that_do_not_go_together_are_not_proposed():
    for gib, gpus in ((80, 1), (80, 2), (24, 4), (24, 8), (9, 2)):
        best = search(ask(gib, gpus), shape_of).best
        processes = best.found.processes
        assert best.recipe.launch_faults(processes.count, processes.stage) == []


def test_a_sequence_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match=r"33,280 tokens exceed the context .* lower --prompt"):
        search(ask(80, completion=32768), shape_of)


def test_the_starting_point_is_a_recipe():
    values = apply_overrides(STARTING_POINT, ["model.path=m", "output=runs/fit"])
    assert load_settings(find_task("rl").schema, values).steps == 100


def test_gpus_are_a_count_and_a_size():
    assert parse_gpus("1x24") == (1, 24 * GIB)
    assert parse_gpus("8X79.1 GiB") == (8, 79.1 * GIB)
    for wrong in ("24", "x24", "2x", "0x24", "2x0", "2x-1", "two x 24", "900x24"):
        with pytest.raises(ValueError, match="--gpus"):
            parse_gpus(wrong)


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        ("preference", "data.max_completion_tokens"),
        ("reward_model", "data.max_response_tokens"),
        ("sft", "data.max_tokens"),
    ],
)
def test_every_task_has_a_longest_completion(task, setting):
    assert any(setting == item.key for item in describe(find_task(task).schema))
