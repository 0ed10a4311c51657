"""Functions of the user's own through recipes: TRL's, of groups and batches, without answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command import call, refused
from tests.training import run

REWARDS = '''
import asyncio
import re

seen = []


def shortest(group):
    """1 for the shortest of a prompt."""
    least = min(len(item.token_ids) for item in group)
    return [float(len(item.token_ids) == least) for item in group]


def place(prompts, completions, level, trainer_state, log_extra, log_metric, **columns):
    assert isinstance(prompts[0], str) and isinstance(completions[0], str)
    seen.append((prompts, trainer_state.global_step))
    log_extra("asked", prompts)
    log_metric("batch", len(prompts))
    return [index if level[index] != "none" else None for index in range(len(prompts))]


async def judge(response, prompt, level, step):
    await asyncio.sleep(0)
    return len(response) / 10


def wants(response, levle):
    return 1.0


def reads(item):
    return float(item.grade.correct)


def short(completions):
    return [1.0]


def text(item):
    return "good"


def nan(group):
    return [float("nan") for _ in group]


def chat(completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def broken(response):
    return 1 / 0
'''
ROLLOUT = {"prompts_per_step": 2, "samples_per_prompt": 2, "sampling": {"max_tokens": 4}}
LEVELS = ["easy", "hard", "none"]


@pytest.fixture
def own(recipe_values, tmp_path):
    """A recipe on 12 rows without answers, with functions of a file beside it."""
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    rows = [{"problem": f"{i}+1=", "level": LEVELS[i % 3]} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "file", "path": str(tmp_path / "rows.jsonl")}

    def own(*functions, **more):
        terms = [
            one if isinstance(one, dict) else {"function": f"{tmp_path}/own_rewards.py:{one}"}
            for one in functions
        ]
        values = {**recipe_values, "steps": 1, "evaluation": {}, **more}
        values["data"] = {**values["data"], "source": source}
        values["log"] = {"completions_per_step": 100, "completions_every": 1}
        return {**values, "reward": {"functions": terms}}

    return own


def written(values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def completions_of(folder, step=1):
    return [json.loads(x) for x in (folder / f"completions/step_{step:06d}.jsonl").open()]


def test_groups_batches_and_judges_reward_data_without_answers(own):
    sets = {"held_out": {"name": "file", "path": own()["data"]["source"]["path"], "limit": 4}}
    values = own("shortest", "place", "judge", evaluation={"every": 1, "sets": sets})
    folder, metrics = run(values)
    rows = completions_of(folder)
    assert len(rows) == 36
    levels = {f"{i}+1=": LEVELS[i % 3] for i in range(12)}
    for index, row in enumerate(rows):
        place = None if levels[row["asked"]] == "none" else index
        assert row["rewards"].get("place") == place, "the batch is in the order of the groups"
        assert row["rewards"]["judge"] == pytest.approx(len(row["response"]) / 10)
        assert row["correct"] is None
        assert row["asked"] in row["prompt"]
    for first in range(0, 36, 6):
        lengths = [len(row["tokens"]) for row in rows[first : first + 6]]
        best = [row["rewards"]["shortest"] for row in rows[first : first + 6]]
        assert best == [float(length == min(lengths)) for length in lengths]
    step = next(row for row in metrics if "reward/mean" in row)
    assert "reward/correct" not in step
    assert step["verifier/graded"] == 0
    assert step["logged/batch"] == 36
    values = [row["rewards"]["judge"] for row in rows]
    assert step["reward/judge/mean"] == pytest.approx(sum(values) / 36)
    assert step["reward/shortest/std"] > 0
    applies = sum("place" in row["rewards"] for row in rows)
    assert step["reward/place/not_applicable"] == pytest.approx(1 - applies / 36)
    evaluated = next(row for row in metrics if "eval/held_out/reward" in row)
    assert "eval/held_out/accuracy" not in evaluated
    assert evaluated["eval/held_out/logged/batch"] == 4


TRL = [
    {"function": "trl.rewards:think_format_reward"},
    {"function": "trl.rewards:accuracy_reward"},
    {
        "function": "trl.rewards:reasoning_accuracy_reward",
        "parameters": {"reasoning_delimiters": ["</think>", "####"]},
    },
    {
        "function": "trl.rewards:get_soft_overlong_punishment",
        "parameters": {"max_completion_len": 8, "soft_punish_cache": 4},
    },
    {"function": "trl.rewards:get_repetition_penalty_reward", "parameters": {"ngram_size": 2}},
    {"function": "trl.rewards:get_cosine_scaled_reward", "parameters": {"max_len": 8}},
]


def test_all_of_trls_rewards_run_as_they_are_and_agree(own, tmp_path):
    import trl.rewards as theirs

    assert sorted(one["function"].partition(":")[2] for one in TRL) == sorted(
        name for names in theirs._import_structure.values() for name in names
    )
    values = own(*TRL)
    messages = [
        {"prompt": [{"role": "user", "content": f"{i}+1="}], "solution": f"\\boxed{{{i + 1}}}"}
        for i in range(12)
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in messages))
    values["data"]["source"] = {"name": "file", "path": str(file), "fields": {"messages": "prompt"}}
    folder, _ = run(values)
    rows = completions_of(folder)
    contents = [[{"role": "assistant", "content": row["response"]}] for row in rows]
    asked = {row["prompt"][0]["content"]: row["solution"] for row in messages}
    given = [next(s for q, s in asked.items() if row["prompt"].endswith(q)) for row in rows]
    ids = [[0] * len(row["tokens"]) for row in rows]
    overlong = theirs.get_soft_overlong_punishment(max_completion_len=8, soft_punish_cache=4)
    for name, expected in (
        ("think_format_reward", theirs.think_format_reward(contents)),
        ("accuracy_reward", theirs.accuracy_reward(contents, given)),
        ("get_soft_overlong_punishment", overlong(completion_ids=ids)),
    ):
        assert [row["rewards"][name] for row in rows] == expected
    assert any(row["rewards"]["get_soft_overlong_punishment"] for row in rows)
    assert all("gold_parsed" in row for row in rows), "what log_extra was given"


def test_answers_that_only_a_function_reads_need_not_be_gradable(own, tmp_path):
    """The verifier can make nothing of the second."""
    rows = [{"problem": "1+1=", "answer": "2"}, {"problem": "2+1=", "answer": "......"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_rewards.py").write_text(
        "def same(response, answer):\n    return float(len(answer))\n"
        "def unread(response):\n    return 1.0\n"
    )
    folder, metrics = run({**own("same", "unread"), "rollout": {**ROLLOUT}})
    found = {
        row["answer"]: (row["rewards"]["same"], row["correct"]) for row in completions_of(folder)
    }
    assert found == {"2": (1.0, False), "......": (6.0, None)}
    (step,) = [row for row in metrics if "verifier/graded" in row]
    assert step["verifier/graded"] == 2
    assert step["verifier/unparsable_golds"] == 0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("wants", "'wants' takes 'levle' (did you mean 'level'?)"),
        ("reads", "'reads' on problem"),
        ("reads", "no reference answer that can be graded; give the data one"),
        ("short", "'short' on problem"),
        ("short", "returned 1 values for 2 completions"),
        ("text", "returned 'good', of type str; it must return a number"),
        ("nan", "'nan' on problem"),
        ("chat", "text here, as the data are: set messages: true"),
        ("broken", "ZeroDivisionError: division by zero"),
        ({"function": "accuracy"}, "there is no field 'answer'"),
    ],
)
def test_a_fault_is_named_by_a_dry_run_and_leaves_no_folder(own, tmp_path, function, said):
    recipe = written(own(function), tmp_path)
    assert said in refused("train", recipe, "--dry-run")
    assert not Path(own()["output"]).exists()


def test_a_run_names_the_same_fault_before_it_loads_the_model(own, tmp_path):
    recipe = written(own("short"), tmp_path)
    line = refused("train", recipe, "model.path=nowhere/at/all")
    assert "nowhere" in line  # the tokenizer comes first
    line = refused("train", recipe)
    assert "'short'" in line
    assert not Path(own()["output"]).exists()


def test_a_file_with_a_syntax_error_is_named(own, tmp_path):
    (tmp_path / "bad.py").write_text("def f(item:\n")
    recipe = written(own(), tmp_path)
    line = refused("train", recipe, f"reward.functions=[{{function: '{tmp_path}/bad.py:f'}}]")
    assert "bad.py" in line
    assert "SyntaxError" in line


def test_messages_can_be_asked_for_where_the_data_are_text(own, tmp_path):
    values = own({"function": f"{tmp_path}/own_rewards.py:chat", "messages": True})
    done = call("train", written(values, tmp_path), "--dry-run")
    assert done.returncode == 0, done.stderr


def test_functions_beside_the_recipe_in_an_empty_folder(own, guessing_folder, tmp_path):
    """As its own process, with file names relative to the recipe."""
    folder = tmp_path / "empty"
    folder.mkdir()
    for name in ("own_rewards.py", "rows.jsonl"):
        own()
        shutil.copy(tmp_path / name, folder / name)
    values = own({"function": "own_rewards.py:judge"}, {"function": "own_rewards.py:shortest"})
    values |= {"output": "run"}
    values["data"]["source"] = {"name": "file", "path": "rows.jsonl"}
    values["reward"]["functions"][1] |= {"workers": 1, "timeout": 60}
    written(values, folder)
    done = subprocess.run(
        [sys.executable, "-m", "rlvr", "train", "recipe.yaml"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reward" in done.stdout
    assert all(
        set(row["rewards"]) == {"judge", "shortest"} for row in completions_of(folder / "run")
    )
