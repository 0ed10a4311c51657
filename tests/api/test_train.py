"""rlvr.train leaves what the command line leaves, and refuses what it refuses."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlvr
from rlvr.runs.log import read_metrics
from rlvr.settings import to_yaml
from rlvr.tasks.registry import Task
from tests.command import call
from tests.training import column, run


def digits(item):
    return sum(letter.isdigit() for letter in item.response) / max(1, len(item.response))


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_rows_and_a_function_become_a_run(guessing_folder, rows, small):
    seen = []

    def first(item):
        seen.append(item.metadata["first"])
        return float(item.gold == "3")

    done = rlvr.train(str(guessing_folder), rows, rewards=[digits, first], steps=2, **small)
    assert str(done.folder) == "runs/model-rl"
    assert done.metrics.index.tolist() == [1, 2]
    assert done.metrics["reward/mean"].between(0, 2).all()
    kept = done.completions(2)
    assert set(kept["step"]) == {2}
    assert set(kept["rewards"].iloc[0]) == {"digits", "first"}
    assert len(done.completions()) == 32
    assert set(seen) <= set(range(5))
    assert done.recipe.learner.lr == 3e-3
    assert done.recipe.steps == 2
    assert done.model.config.model_type == "llama"
    assert done.tokenizer.decode(done.tokenizer("1+1=")["input_ids"]) == "1+1="
    page = done.report()
    assert page == done.folder / "report.html"
    assert "<iframe srcdoc=" in page._repr_html_()
    assert page.parent._repr_html_() is None


def test_rows_stand_in_the_run_folder_and_the_command_line_goes_on(guessing_folder, rows, small):
    done = rlvr.train(guessing_folder, rows, steps=2, output="runs/mine", **small)
    recipe = done.folder / "recipe.yaml"
    held = (done.folder / "inputs" / "data.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in held] == rows
    assert call("train", recipe, "steps=3", "--resume").returncode == 0
    assert call("report", done.folder).returncode == 0
    assert call("train", recipe, "output=runs/again").returncode == 0
    assert equal(
        weights(done.folder / "checkpoints/step_000002/model"), weights("runs/again/model")
    )
    more = rlvr.train(guessing_folder, rows, steps=4, output="runs/mine", resume=True, **small)
    assert more.metrics.index.tolist() == [1, 2, 3, 4]
    assert rlvr.load("runs/mine").metrics.equals(more.metrics)


def test_a_recipe_gives_the_same_numbers_as_the_command_line(recipe_values, folder):
    import yaml

    del recipe_values["evaluation"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    _, rows = run({**recipe_values, "output": "by_command"}, "learner.lr=1e-3", "steps=2")
    more = {"learner.lr": 1e-3, "learner": {"updates_per_rollout": 2}}
    rlvr.train("recipe.yaml", output="by_python", steps=2, progress=False, **more)
    found = read_metrics(folder / "by_python" / "metrics.jsonl")
    for name in ("reward/mean", "policy/loss"):
        assert column(found, name) == column(rows, name)
    assert equal(weights("by_command/model"), weights("by_python/model"))


@pytest.fixture
def untrained(monkeypatch):
    """Runs that record their recipe and do nothing else."""

    def train(task, recipe, **options):
        recipe.output.mkdir(parents=True, exist_ok=True)
        (recipe.output / "recipe.yaml").write_text(to_yaml(recipe))
        return recipe.output

    monkeypatch.setattr(Task, "train", train)


def test_a_mapping_is_a_recipe_too(recipe_values, untrained):
    given = rlvr.train(recipe=recipe_values, steps=1, **{"policy_loss": {"high": 0.3}}).recipe
    assert (given.steps, given.policy_loss.name, given.policy_loss.high) == (1, "clip", 0.3)
    assert given.seed == 0
    assert given.data.template.mode == "chat"


def test_settings_are_merged_as_on_the_command_line(tiny_folder, untrained):
    from rlvr.objective.policy_losses.cispo import Cispo

    given = rlvr.train(
        tiny_folder,
        {"relabel": {"x.y": "4"}, "source": {"name": "arithmetic"}, "template": "raw"},
        rollout={"sampling.max_tokens": 9, "sampling": {"temperature": 0.5}},
        policy_loss=Cispo(),
        steps=3,
        evaluation={"sets": {"a.b": {"name": "arithmetic", "size": 3}}},
        **{"log.track": (), "checkpoint": {"every": 3}},
    )
    recipe = given.recipe
    assert recipe.rollout.sampling.max_tokens == 9
    assert recipe.rollout.sampling.temperature == 0.5
    assert recipe.policy_loss.name == "cispo"
    assert set(recipe.evaluation.sets) == {"a.b"}
    assert recipe.data.relabel == {"x.y": "4"}
    assert recipe.data.template.mode == "text"
    assert recipe.checkpoint.every == 3


def test_a_model_in_memory_is_trained_in_place(guessing_folder, rows, small):
    more = {"steps": 3, "learner.updates_per_rollout": 2, "regularisers": [{"name": "kl"}]}
    rlvr.train(guessing_folder, rows, rewards=digits, output="by_path", **small, **more)
    model = AutoModelForCausalLM.from_pretrained(guessing_folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = rlvr.train(model, rows, rewards=digits, output="in_memory", **small, **more)
    assert done.model is model
    assert type(model.get_input_embeddings()) is torch.nn.Embedding
    assert not equal(before, model.state_dict())
    assert equal(before, weights("in_memory/inputs/model"))
    assert equal(model.state_dict(), weights("in_memory/model"))
    assert equal(model.state_dict(), weights("by_path/model"))
    tokens = done.tokenizer("<bos>1+1=", return_tensors="pt")["input_ids"]
    assert model.generate(tokens, max_new_tokens=2).shape[1] > tokens.shape[1]


def test_a_model_in_memory_that_is_resumed_ends_where_the_run_ends(guessing_folder, rows, small):
    tokenizer = AutoTokenizer.from_pretrained(guessing_folder)

    def go(steps, **more):
        model = AutoModelForCausalLM.from_pretrained(guessing_folder)
        with torch.no_grad():
            model.lm_head.weight.mul_(1.5)
        rlvr.train(model, rows, tokenizer=tokenizer, rewards=digits, steps=steps, **small, **more)
        return model.state_dict()

    whole = go(4, output="whole")
    go(2, output="parts")
    assert equal(go(4, output="parts", resume=True), whole)


@pytest.mark.parametrize(
    ("task", "row", "more"),
    [
        ("sft", {"prompt": "1+1=", "response": "2"}, {}),
        ("preference", {"prompt": "1+1=", "chosen": "2", "rejected": "3"}, {}),
        ("prm", {"prompt": "1+1=", "response": "2", "correct": True}, {}),
        ("reward_model", {"prompt": "1+1=", "response": "2", "correct": True}, {}),
    ],
)
def test_every_task_takes_rows(task, row, more, guessing_folder):
    other = {**row, **({"response": "3", "correct": False} if "correct" in row else {})}
    seen = []
    done = rlvr.train(
        guessing_folder,
        [row, other] * 4,
        task=task,
        eval_data=[{**row, "prompt": "2+2="}, {**other, "prompt": "2+2="}],
        callbacks=[lambda step, metrics: seen.append((step, metrics))],
        progress=False,
        **{"data.per_step": 4, "learner.lr": 1e-3},
        **more,
    )
    assert done.task == task
    assert done.metrics.index.max() == 2
    assert [step for step, _ in seen] == [1, 2]
    assert any(name.startswith("eval/held_out/") for name in seen[-1][1])


def test_data_sets_and_tables_and_files_hold_rows(guessing_folder, rows, small, untrained):
    import datasets
    import pandas as pd

    given = [datasets.Dataset.from_list(rows), pd.DataFrame(rows), iter(rows)]
    for number, data in enumerate(given):
        done = rlvr.train(guessing_folder, data, output=f"run{number}", **small)
        assert done.recipe.steps == 5
        lines = (done.folder / "inputs" / "data.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows
    done = rlvr.train(
        guessing_folder, "run0/inputs/data.jsonl", eval_data={"own": rows}, steps=1, **small
    )
    assert done.recipe.evaluation.sets["own"].path.is_file()
    assert done.recipe.data.source.path.name == "data.jsonl"
    done = rlvr.train(guessing_folder, "openai/gsm8k", steps=1, output="hub", **small)
    assert done.recipe.data.source.name == "hub"
    with pytest.raises(ValueError, match=r"data holds splits \(train\); choose one"):
        rlvr.train(guessing_folder, datasets.DatasetDict(train=given[0]), steps=1, **small)


def test_output_folders_are_numbered_and_never_written_over(tiny_folder, rows, small, untrained):
    folders = [rlvr.train(tiny_folder, rows, steps=1, **small).folder.name for _ in range(2)]
    assert folders == ["model-rl", "model-rl-2"]
    with pytest.raises(ValueError, match=r"already contains a run; .*resume=True"):
        rlvr.train(tiny_folder, rows, steps=1, output="runs/model-rl", **small)
    other = [{**row, "answer": "7"} for row in rows]
    with pytest.raises(ValueError, match="the rows given as data are not those with which the run"):
        rlvr.train(tiny_folder, other, steps=2, output="runs/model-rl", resume=True, **small)


def test_what_differs_from_a_recipe_is_chosen_by_model_and_rewards(tiny_folder, rows):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = None
    quick = {"steps": 1, "progress": False, "rollout.sampling.max_tokens": 4}
    found = {}
    for name, more in {
        "own": {"rewards": digits},
        "own, no chat": {"rewards": digits, "tokenizer": tokenizer},
        "verifier, no chat": {"tokenizer": tokenizer},
        "verifier": {},
    }.items():
        found[name] = rlvr.train(tiny_folder, rows, **quick, **more).recipe.data.template
    assert found["own"].mode == "chat"
    assert found["own"].system is None
    assert found["own, no chat"].user == "{problem}"
    assert found["own, no chat"].mode == "text"
    assert found["verifier, no chat"].user.startswith("Question: ")
    assert "boxed" in found["verifier"].system


def test_few_rows_make_small_steps(guessing_folder, rows, untrained):
    recipe = rlvr.train(guessing_folder, rows[:3], progress=False).recipe
    assert (recipe.steps, recipe.rollout.prompts_per_step) == (1, 3)
    assert recipe.data.max_prompt_tokens + recipe.rollout.sampling.max_tokens == 256


def test_two_runs_in_one_process_do_not_see_each_other(guessing_folder, rows, small):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = rlvr.train(guessing_folder, rows, rewards=digits, steps=2, **small)
    assert torch.equal(torch.rand(3), expected)
    second = rlvr.train(guessing_folder, rows, rewards=digits, steps=2, **small)
    assert (first.metrics["reward/mean"] == second.metrics["reward/mean"]).all()
    assert equal(first.model.state_dict(), second.model.state_dict())


class Odd:
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1, "learner": {"lrr": 1}}, "unknown setting 'learner.lrr'.*did you mean 'lr'"),
        ({"steps": 1, "stepz": 1}, "unknown setting 'stepz'"),
        ({"steps": "many"}, "'steps' = 'many'"),
        ({"reward_funcs": digits}, "reward_funcs is TRL's name of what is called rewards here"),
        ({"task": "rll"}, "unknown task 'rll'; the tasks are rl, "),
        ({"data": []}, "data has no rows"),
        ({"data": [3]}, "data, row 1: 3 is a int; a row is a mapping"),
        ({"data": 5}, "data = 5 is a int; give a list of mappings"),
        ({"data": [{"problem": "1", "answer": "1", "x": Odd}]}, "data, row 1: column 'x'"),
        ({"data": [{"question": "1", "answer": "1"}]}, "there is no field 'problem'"),
        ({"data": "nowhere.jsonl", "steps": 1}, "'nowhere.jsonl' does not exist"),
        ({"rewards": "acuracy", "steps": 1}, "did you mean 'accuracy'"),
        ({"rewards": [3], "steps": 1}, "rewards = .*name of a function"),
        ({"rewards": [digits, digits], "steps": 1}, "different name"),
        ({"task": "sft", "rewards": digits, "steps": 1}, "task 'sft' learns from its data alone"),
        ({"reward": {"functions": [{"function": digits}]}}, r"given as rewards=\[...\]"),
        ({"learner": Odd}, "setting learner = .*which no recipe can hold"),
        ({"model": "./nowhere", "steps": 1}, "model folder './nowhere' does not exist"),
        ({"model": torch.nn.Linear(2, 2), "steps": 1}, "is a Linear, no model of transformers"),
        ({"model": None}, "nothing to train: give a model and data, or a recipe"),
        ({"model": "nowhere.yaml"}, "recipe 'nowhere.yaml' is not a file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(arguments, message, tiny_folder, rows, folder):
    given = {"model": tiny_folder, "data": rows, "output": "out", "progress": False, **arguments}
    with pytest.raises(ValueError, match=message):
        rlvr.train(**given)
    assert list(folder.iterdir()) == []


def test_models_in_memory_that_cannot_be_trained_as_they_are(tiny_folder, rows, folder):
    def refuse(model, message):
        with pytest.raises(ValueError, match=message):
            rlvr.train(model, rows, steps=1, progress=False)
        assert list(folder.iterdir()) == []

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.lm_head.weight.requires_grad_(False)
    refuse(model, "is frozen; call requires_grad_")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.name_or_path = "/nowhere/else"
    refuse(model, "no tokenizer is found for the model given")
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_folder), LoraConfig(target_modules="all-linear")
    )
    refuse(adapted, "with adapters; give merge_and_unload")


def test_adapters_on_a_model_in_memory(guessing_folder, rows, small):
    model = AutoModelForCausalLM.from_pretrained(guessing_folder)
    lora = {"model.lora": {"rank": 2}}
    done = rlvr.train(model, rows, rewards=digits, steps=1, **small, **lora)
    assert done.model is not model
    assert not hasattr(done.model, "peft_config")
