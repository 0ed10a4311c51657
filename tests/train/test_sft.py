"""Supervised fine-tuning: the loss is what it says, packing changes nothing, a kill neither."""

import json
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from eval.models import find_targets
from rlvr.policy import (
    ModelSettings,
    load_policy,
    load_tokenizer,
    padded_inputs,
    response_logprobs,
)
from rlvr.report import write_report
from rlvr.settings import load_settings, to_yaml
from rlvr.train.interrupt import Stopped
from rlvr.train.sft_data import IGNORED, dataset, load_training, render_plan
from rlvr.train.sft_recipe import SftRecipe, SftSchedule
from rlvr.train.tasks import task_of
from tests.train.runs import column, run


@pytest.fixture
def traces(tmp_path):
    """Sums of digits with the right box: as traces, as text and as messages."""
    tokenizer = load_tokenizer(ModelSettings(path=str(_model)))
    rows = {"traces": [], "texts": [], "messages": []}
    for a in range(10):
        for b in range(6):
            prompt, response = f"{a}+{b}=", f"\\boxed{{{a + b}}}"
            ids = {
                "prompt_ids": [1, *tokenizer.encode(prompt, add_special_tokens=False)],
                "token_ids": [*tokenizer.encode(response, add_special_tokens=False), 2],
            }
            rows["traces"].append({"id": f"{prompt}/0", **ids})
            rows["texts"].append({"prompt": prompt, "response": response})
            turns = [{"role": "user", "content": prompt}]
            turns.append({"role": "assistant", "content": response})
            rows["messages"].append({"messages": turns})
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    return tmp_path


_model = None


@pytest.fixture(autouse=True)
def model_folder(guessing_folder):
    global _model
    _model = guessing_folder
    return guessing_folder


@pytest.fixture
def values(traces, model_folder):
    """A recipe of six steps."""
    return {
        "task": "sft",
        "output": str(traces / "run"),
        "steps": 6,
        "model": {"path": str(model_folder)},
        "data": {"sources": [str(traces / "traces.jsonl")], "per_step": 8},
        "learner": {"lr": 3e-3, "rows_per_micro_batch": 4},
        "evaluation": {
            "every": 3,
            "traces": {"held_out": [str(traces / "texts.jsonl")]},
            "sets": {"sums": {"name": "arithmetic", "digits": 1, "size": 20}},
            "sampling": {"max_tokens": 8, "temperature": 0.0},
        },
        "checkpoint": {"every": 2, "keep": 3},
    }


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_learns_and_reports(values):
    folder, metrics = run(values, "steps=12")
    losses = column(metrics, "sft/loss")
    assert len(losses) == 12
    held_out = column(metrics, "eval/held_out/nll")
    assert len(held_out) == 5, "before, every third step, after"
    assert held_out[-1] < 0.9 * held_out[0]
    assert len(column(metrics, "eval/held_out/improbable")) == 5
    assert len(column(metrics, "eval/sums/accuracy")) == 5
    page = write_report(folder).read_text()
    assert "Negative log-likelihood" in page
    assert "Training loss fell from" in page or "training loss fell from" in page
    assert "on traces.jsonl" in page
    saved = find_targets(ModelSettings(path=str(folder)), all_checkpoints=True)
    last = saved[-1].load().model.state_dict()
    final = load_policy(ModelSettings(path=str(folder / "model"))).model.state_dict()
    assert all(torch.equal(last[name], final[name]) for name in final)
    exported = load_policy(ModelSettings(path=str(folder / "model")))
    kept = column(metrics, "eval/held_out/nll")[-1]
    tokenizer = load_tokenizer(ModelSettings(path=str(folder / "model")))
    _, found = load_training(load_settings(SftRecipe, values), tokenizer, Console(quiet=True))
    rows = response_logprobs(
        exported,
        [item.prompt_ids for item in found["held_out"]],
        [item.token_ids for item in found["held_out"]],
    )
    assert -torch.cat(rows).mean().item() == pytest.approx(kept, abs=1e-5)


def test_the_three_kinds_of_rows_are_the_same_tokens(values, traces, model_folder):
    tokenizer = load_tokenizer(ModelSettings(path=str(model_folder)))
    found = []
    for name in ("traces", "texts", "messages"):
        values["data"]["sources"] = [str(traces / f"{name}.jsonl")]
        training, _ = load_training(
            load_settings(SftRecipe, values), tokenizer, Console(quiet=True)
        )
        found.append([(item.prompt_ids, item.token_ids) for item in training])
    assert found[0] == found[1] == found[2]


def test_ids_of_traces_are_not_encoded_again(values, traces, model_folder):
    """Two tokens that the tokenizer would join to one stay two."""
    tokenizer = load_tokenizer(ModelSettings(path=str(model_folder)))
    ids = tokenizer.convert_tokens_to_ids([*"\\boxed{", "7", "}"])
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) != ids
    (traces / "odd.jsonl").write_text(json.dumps({"prompt_ids": [1, 5], "token_ids": ids}) + "\n")
    values["data"]["sources"] = [str(traces / "odd.jsonl")]
    training, _ = load_training(load_settings(SftRecipe, values), tokenizer, Console(quiet=True))
    row = dataset(training)[0]
    assert row["input_ids"] == [1, 5, *ids]
    assert row["labels"] == [IGNORED, IGNORED, *ids]


def one_step(values, policy, demonstrations, *overrides):
    """The loss that TRL takes of all demonstrations in one step, and its gradients."""
    from rlvr.ranks import Ranks
    from rlvr.train.sft_trainer import Trainer

    recipe = load_settings(SftRecipe, values, ["learner.max_grad_norm=null", *overrides])
    tokenizer = load_tokenizer(recipe.model)
    trainer = Trainer(recipe, policy, tokenizer, Ranks(), dataset(demonstrations))
    loader = iter(trainer.get_train_dataloader())
    batches, count = trainer.get_batch_samples(
        loader, trainer.args.gradient_accumulation_steps, torch.device("cpu")
    )
    policy.model.train()
    policy.model.zero_grad()
    total = 0.0
    for inputs in batches:
        loss = trainer.compute_loss(
            policy.model, trainer._prepare_inputs(inputs), num_items_in_batch=count
        )
        loss.backward()
        total += loss.item()
    gradients = {
        name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None
    }
    return total, gradients, sum(inputs["input_ids"].numel() for inputs in batches)


def own_step(policy, demonstrations):
    """The masked mean over tokens, from this project's one place for log-probabilities."""
    policy.model.zero_grad()
    prompts = [item.prompt_ids for item in demonstrations]
    responses = [item.token_ids for item in demonstrations]
    stats = policy(padded_inputs(prompts, responses, range(len(prompts))))
    loss = -stats.logprobs_N.mean()
    loss.backward()
    gradients = {
        name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None
    }
    return loss.item(), gradients


@pytest.fixture
def few(values, model_folder):
    """Eight demonstrations of unequal lengths."""
    recipe = load_settings(SftRecipe, values)
    tokenizer = load_tokenizer(recipe.model)
    training, _ = load_training(recipe, tokenizer, Console(quiet=True))
    from dataclasses import replace

    return [
        replace(item, prompt_ids=item.prompt_ids + (5,) * n, token_ids=item.token_ids[: 4 - n % 3])
        for n, item in enumerate(training[:8])
    ]


@pytest.mark.parametrize("micro", [1, 4, 8])
def test_the_loss_is_the_masked_mean_over_tokens(values, few, model_folder, micro):
    policy = load_policy(ModelSettings(path=str(model_folder)))
    expected, own = own_step(policy, few)
    loss, gradients, _ = one_step(values, policy, few, f"learner.rows_per_micro_batch={micro}")
    assert loss == pytest.approx(expected, abs=1e-6)
    assert own.keys() == gradients.keys()
    for name, gradient in own.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-6), name


def test_the_loss_is_the_masked_mean_in_double_precision(values, few, exact_policy):
    """All but TRL's softmax, which is float32, in float64: no token is missed or counted twice."""
    policy = deepcopy(exact_policy)  # TRL puts a forward of its own into the model
    expected, own = own_step(policy, few)
    loss, gradients, _ = one_step(values, policy, few, "learner.rows_per_micro_batch=4")
    assert loss == pytest.approx(expected, rel=1e-7)
    for name, gradient in own.items():
        assert torch.allclose(gradients[name], gradient, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("tau", [0.5, 1.4, 2.0])
def test_tau_bends_the_loss_of_every_token(values, few, model_folder, tau):
    """Against the formula over this project's own log-probabilities, split into micro-batches."""
    policy = load_policy(ModelSettings(path=str(model_folder)))
    stats = policy(
        padded_inputs([i.prompt_ids for i in few], [i.token_ids for i in few], range(len(few)))
    )
    policy.model.zero_grad()
    expected = ((1 - stats.logprobs_N.exp() ** (tau - 1)) / (tau - 1)).mean()
    expected.backward()
    own = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    loss, gradients, _ = one_step(
        values, policy, few, f"tau={tau}", "learner.rows_per_micro_batch=4"
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in own.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-6), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_gives_the_same_loss_and_gradients_on_fewer_positions(
    values, few, model_folder, attention
):
    model = ModelSettings(path=str(model_folder), attention=attention)
    packed = ["data.packing=true", "data.max_tokens=40", "learner.rows_per_micro_batch=8"]
    policy = load_policy(model)
    expected, own, padded = one_step(values, policy, few, "learner.rows_per_micro_batch=8")
    policy = load_policy(model)  # TRL wraps the model's forward each time
    loss, gradients, positions = one_step(values, policy, few, *packed)
    assert positions == sum(map(len, few)) < padded
    assert loss == pytest.approx(expected, abs=1e-6)
    for name, gradient in own.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-6), name


def test_packing_is_refused_where_packed_sequences_see_each_other(values, model_folder):
    """An attention that ignores positions, as one that is not told of packing would."""
    from rlvr.train.sft_trainer import check_packing

    policy = load_policy(ModelSettings(path=str(model_folder)))
    check_packing(policy)
    plain = policy.model.forward

    def blind(*arguments, position_ids=None, **more):
        length = more["input_ids"].shape[1] if "input_ids" in more else arguments[0].shape[1]
        return plain(*arguments, position_ids=torch.arange(length)[None], **more)

    policy.model.forward = blind
    with pytest.raises(ValueError, match=r"data\.packing to false"):
        check_packing(policy)


def test_prompt_tokens_are_not_learnt(values, few, model_folder):
    """The prompt's own likelihood enters neither the loss nor its gradient.

    The derivative of the loss by the logits of positions that predict prompt tokens is zero.
    """
    from rlvr.ranks import Ranks
    from rlvr.train.sft_trainer import Trainer

    recipe = load_settings(SftRecipe, values, ["learner.rows_per_micro_batch=8"])
    policy = load_policy(recipe.model)
    tokenizer = load_tokenizer(recipe.model)
    trainer = Trainer(recipe, policy, tokenizer, Ranks(), dataset(few))
    seen = []

    def keep(_module, _inputs, output):
        output.last_hidden_state.retain_grad()
        seen.append(output.last_hidden_state)

    policy.causal_lm.base_model.register_forward_hook(keep)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(policy.model, dict(inputs)).backward()
    predicts = torch.zeros_like(inputs["labels"], dtype=torch.bool)
    predicts[:, :-1] = inputs["labels"][:, 1:] != IGNORED
    norms = seen[0].grad.norm(dim=-1)
    assert (norms[~predicts] == 0).all()
    assert (norms[predicts] > 0).all()
    assert predicts.sum() == sum(len(item.token_ids) for item in few)


@pytest.mark.parametrize("case", ["weights", "adapters", "packed"])
def test_a_run_stopped_and_resumed_ends_where_it_would_have_ended(values, tmp_path, case):
    if case == "adapters":
        values["model"]["lora"] = {"rank": 2, "dropout": 0.1}
    if case == "packed":
        values["data"] |= {"packing": True, "max_tokens": 40, "per_step": 4}
    folder, metrics = run(values)
    other = {**values, "output": str(tmp_path / "other")}
    run(other, "steps=6", "checkpoint.every=2")
    for step in (4, 6):  # a kill that lost the newest, and half of what came after it
        path = tmp_path / "other" / "checkpoints" / f"step_{step:06d}"
        if step == 6:
            path.rename(path.with_name("checkpoint-6"))
        else:
            (path / "optimizer.pt").write_bytes(b"cut")
    again, metrics_again = run(other, resume=True)
    assert column(metrics, "sft/loss") == column(metrics_again, "sft/loss")
    first, second = weights(folder), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list((again / "checkpoints").glob("checkpoint-*"))


def test_a_finished_run_resumed_is_finished(values):
    folder, metrics = run(values)
    before = weights(folder)
    again, metrics_again = run(values, resume=True)
    assert metrics == metrics_again
    after = weights(again)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_process_killed_anywhere_goes_on(values, tmp_path):
    """SIGKILL in the middle, twice, from outside; the weights are those of the run let be."""
    folder, _ = run(values)
    values["output"] = str(tmp_path / "killed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(load_settings(SftRecipe, values)))
    command = [sys.executable, "-m", "rlvr", "train", str(recipe), "--resume"]
    for wanted in (2, 4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        path = tmp_path / "killed" / "checkpoints" / f"step_{wanted:06d}"
        while not path.exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "resuming after step" in finished.stdout
    first, second = weights(folder), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_signal_leaves_a_checkpoint(values, monkeypatch):
    from rlvr.train import sft

    plain = sft.record

    def record_and_signal(run, logs, seconds):
        plain(run, logs, seconds)
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sft, "record", record_and_signal)
    with pytest.raises(Stopped) as stopped:
        run(values)
    assert stopped.value.signal_number == signal.SIGTERM
    monkeypatch.setattr(sft, "record", plain)
    folder, metrics = run(values, resume=True)
    assert len(column(metrics, "sft/loss")) == 6
    assert len(column(metrics, "eval/sums/accuracy")) == 3
    _, untouched = run({**values, "output": str(folder) + "-2"})
    assert column(metrics, "sft/loss") == column(untouched, "sft/loss")


def test_epochs_count_steps_over_rows(values):
    recipe = load_settings(SftRecipe, values, ["steps=null", "epochs=3"])
    assert recipe.total_steps(60) == 3 * 8
    plan = render_plan(recipe)
    assert "# sequences: 60" in plan
    assert "24 steps of 8" in plan
    packed = load_settings(
        SftRecipe, values, ["steps=null", "epochs=1", "data.packing=true", "data.max_tokens=44"]
    )
    assert "packed on" in render_plan(packed)


def test_the_schedule_warms_up_and_ends_at_zero():
    schedule = SftSchedule(warmup_fraction=0.05)
    rates = [schedule.fraction(update, 100) for update in range(101)]
    assert rates[0] == pytest.approx(1 / 6)
    assert rates[5] == 1
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert all(a >= b for a, b in pairwise(rates[5:]))
    assert SftSchedule(warmup_updates=10).fraction(4, 100) == pytest.approx(5 / 11)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["epochs=2"], "give one of the two"),
        (["steps=null"], "give one of the two"),
        (["data.packing=true"], "say how long a row is"),
        (["learner.rows_per_micro_batch=3"], "no multiple of"),
        (["model.compile=true"], "not used by task sft"),
        (["checkpoint.background=true"], "not done by task sft"),
        (["data.sources=[none.jsonl]"], "does not exist"),
        (["data.sources=[]"], "at least 1 item"),
        (["data.max_tokens=5"], "none of 60 sequences"),
        (["evaluation.traces.sums=[x.jsonl]"], "both name 'sums'"),
        (["learner.updates_per_rollout=2"], "unknown setting"),
    ],
)
def test_what_cannot_work_is_refused(values, overrides, part, tmp_path):
    with pytest.raises(ValueError, match=part):
        run(values, *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt_ids": [1], "token_ids": []}, "token_ids holds no token"),
        ({"prompt_ids": [1], "token_ids": ["a"]}, "no list of token ids"),
        ({"token_ids": [4]}, "prompt_ids = None is no list"),
        ({"prompt_ids": [1], "token_ids": [4000]}, "holds token 4000"),
        ({"prompt_ids": [1], "token_ids": [4] * 300}, "none of 1 sequences"),
        ({"prompt": "1+1="}, "a row has prompt_ids and token_ids"),
        ({"messages": [{"role": "user", "content": "1+1="}]}, "must end with the assistant"),
        ({"prompt": 3, "response": "x"}, "neither text nor a list of messages"),
    ],
)
def test_a_row_that_is_no_demonstration_is_named(values, traces, row, part):
    (traces / "bad.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=part) as caught:
        run(values, f"data.sources=[{traces / 'bad.jsonl'}]")
    assert "bad.jsonl, line 1" in str(caught.value) or "data:" in str(caught.value)


def test_the_task_is_read_from_the_recipe(values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(load_settings(SftRecipe, values)))
    assert task_of(path).schema is SftRecipe
