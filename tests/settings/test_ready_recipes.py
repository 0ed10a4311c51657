"""The ready recipes of GSM8K and MATH: data in the Hub's layout, method, memory, commands."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from rlvr.cli import app
from rlvr.data import load_problems
from rlvr.files import read_lines
from rlvr.memory import GIB, estimate
from rlvr.policy.shape import read_shape
from rlvr.rl.memory import rl_work
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings
from tests.command import call

ROOT = Path(__file__).parents[2]
READY = sorted([*ROOT.glob("recipes/gsm8k/*.yaml"), *ROOT.glob("recipes/math/*.yaml")])
EVERY = sorted((ROOT / "recipes").rglob("*.yaml"))
GSM8K = {"question": "2+2?", "answer": "Two and two are <<2+2=4>>4.\n#### 1,004"}
MATH = {
    "problem": "What is half of one?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "It is $\\boxed{1}$ over two: $\\boxed{\\frac{1}{2}}$.",
}
SIZES = {  # of Qwen2.5's configurations
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}
NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)


def folder(place, subset, **splits):
    """A data set as a repository of the Hub holds it."""
    files = []
    for split, rows in splits.items():
        path = place / subset / f"{split}-00000-of-00001.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append({"split": split, "path": f"{subset}/{split}-*"})
    configs = json.dumps([{"config_name": subset, "data_files": files}])
    (place / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    return place


@pytest.fixture
def local(tmp_path):
    """Settings that read the data sets from copies."""
    rows = [{**GSM8K, "question": f"{at}+2?"} for at in range(4)]
    gsm8k = folder(tmp_path / "gsm8k", "main", train=rows, test=rows)
    problems = [{**MATH, "problem": f"What is {at} halves?"} for at in range(4)]
    empty = {**MATH, "problem": "Nothing?", "solution": "No box."}
    math = folder(tmp_path / "math", "default", train=[*problems, empty])
    tested = [{"problem": "1/2?", "answer": "\\frac{1}{2}", "solution": "-"}]
    math500 = folder(tmp_path / "math500", "default", test=tested)

    def overrides(path):
        own = [f"evaluation.sets.gsm8k.path={gsm8k}"]
        if path.parent.name == "math":
            return [*own, f"data.source.path={math}", f"evaluation.sets.math500.path={math500}"]
        return [*own, f"data.source.path={gsm8k}"]

    return overrides


@pytest.mark.parametrize("path", READY, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_data_of_the_hub_is_read(path, local, tiny_folder, tmp_path):
    overrides = [*local(path), f"model.path={tiny_folder}", f"output={tmp_path / 'run'}"]
    recipe = load_settings(RLRecipe, path, overrides)
    if path.parent.name == "math":
        with pytest.warns(UserWarning, match="dropped 1 unusable rows of 5"):
            problems = load_problems(recipe.data.source)
        assert {item.answer for item in problems} == {"\\frac{1}{2}"}
    else:
        problems = load_problems(recipe.data.source)
        assert {item.answer for item in problems} == {"1,004"}
    assert len(problems) == 4
    plain = ["data.template=plain", "rollout.engine={name: transformers}"]
    done = call("train", path, *overrides, *plain, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "prompt of problem" in done.stdout


@pytest.mark.parametrize("path", READY, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_method_is_the_paper_s(path):
    recipe = load_settings(RLRecipe, path)
    limit = recipe.rollout.sampling.max_tokens
    loss, terms = recipe.policy_loss, [term.name for term in recipe.regularisers]
    functions = [term.function for term in recipe.reward.functions]
    assert (loss.name, loss.low) == ("clip", 0.2)
    sizes = recipe.rollout.prompts_per_step, recipe.rollout.samples_per_prompt
    updates = recipe.learner.updates_per_rollout
    found = (loss.high, recipe.reducer.name, recipe.advantage.scale, terms, functions)
    if path.stem == "grpo":
        assert found == (0.2, "sequence_mean", "std", ["kl"], ["accuracy"])
        assert (sizes, updates, recipe.regularisers[0].coefficient) == ((16, 64), 1, 0.04)
    elif path.stem == "dapo":
        assert found == (0.28, "token_mean", "std", [], ["accuracy", "overlong"])
        assert (sizes, updates) == ((512, 16), 16)
        assert recipe.rollout.dynamic_sampling_rounds > 0
        assert recipe.reward.functions[1].parameters["buffer"] < limit
        low, high = recipe.rollout.accuracy_range
        assert 0 < low < 1 / 16
        assert 15 / 16 < high < 1
    else:
        assert found == (0.2, "constant", "none", [], ["accuracy"])
        assert (sizes, updates, recipe.reducer.denominator) == ((128, 8), 8, limit)


@pytest.mark.parametrize("path", READY, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_memory_in_the_comment_is_that_of_the_dry_run(path, tmp_path):
    shown = []
    for name, values in SIZES.items():
        shape = dict(zip(NAMES, values, strict=True))
        config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **shape}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        recipe = load_settings(RLRecipe, path, [f"model.path={tmp_path / name}"])
        found = estimate(rl_work(recipe, read_shape(recipe.model), "cuda"))
        shown.append(f"{name} {found.total / GIB:.0f}")
    assert ", ".join(shown) in path.read_text()


def test_gsm8k_s_real_questions_go_through_the_recipe(shared, tmp_path):
    given = read_lines(shared / "data" / "gsm8k_train.jsonl").objects
    rows = [{"question": row["problem"], "answer": f"#### {row['answer']}"} for row in given]
    place = folder(tmp_path / "gsm8k", "main", train=rows)
    recipe = load_settings(RLRecipe, READY[2], [f"data.source.path={place}"])
    assert recipe.output.name == "grpo"
    problems = load_problems(recipe.data.source)
    assert len(problems) > 7400
    assert {item.answer for item in problems} == {row["answer"] for row in given}


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_recipe_s_first_comment_are_commands(path):
    """Each verb exists, takes the options, and names files that are there."""
    comment = "\n".join(
        line[1:] for line in path.read_text().split("\n\n")[0].splitlines() if line[:1] == "#"
    )
    comment = comment.replace("\\\n", " ")
    lines = re.findall(r"^   +((?:accelerate launch -m )?rlvr .*)$", comment, re.MULTILINE)
    assert lines, "it begins with its command"
    command = typer.main.get_command(app)
    for line in lines:
        words = shlex.split(line.removeprefix("accelerate launch -m "))[1:]
        inner = command
        while hasattr(inner, "commands"):
            inner = inner.commands[words.pop(0)]
        context = inner.make_context("rlvr", words, resilient_parsing=False)
        named = context.params.get("recipe")
        assert named is None or (ROOT / named).is_file(), line
