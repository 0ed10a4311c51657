"""Supervised fine-tuning: the loss is what it says, packing changes nothing, a kill neither."""

import json
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from eval.targets import find_targets
from rlvr.learner.launch import Launch
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.responses import response_logprobs
from rlvr.policy.settings import ModelSettings
from rlvr.ranks import Ranks
from rlvr.report import write_report
from rlvr.runs import frame
from rlvr.runs.interrupt import Stopped
from rlvr.settings import load_settings, to_yaml
from rlvr.tasks.registry import task_of
from rlvr.tasks.sft import SftRecipe, SftSchedule, SftTask
from tests.tasks.trl_oracle import trl_step
from tests.training import column, run

SILENT = Console(quiet=True)


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
        "learner": {"lr": 3e-3, "tokens_per_micro_batch": 60},
        "evaluation": {
            "every": 3,
            "traces": {"held_out": [str(traces / "texts.jsonl")]},
            "sets": {"sums": {"name": "arithmetic", "digits": 1, "size": 20}},
            "sampling": {"max_tokens": 8, "temperature": 0.0},
        },
        "checkpoint": {"every": 2, "keep": 3},
    }


def load(values, tokenizer):
    return SftTask(load_settings(SftRecipe, values)).load(tokenizer, SILENT)


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
    _, held_out = load(values, tokenizer)
    found = held_out["held_out"]
    rows = response_logprobs(exported, found.prompt_ids, found.completion_ids)
    assert -torch.cat(rows).mean().item() == pytest.approx(kept, abs=1e-5)


def test_the_three_kinds_of_rows_are_the_same_tokens(values, traces, model_folder):
    tokenizer = load_tokenizer(ModelSettings(path=str(model_folder)))
    found = []
    for name in ("traces", "texts", "messages"):
        values["data"]["sources"] = [str(traces / f"{name}.jsonl")]
        training, _ = load(values, tokenizer)
        found.append((training.prompt_ids, training.completion_ids))
    assert found[0] == found[1] == found[2]


def test_ids_of_traces_are_not_encoded_again(values, traces, model_folder):
    """Two tokens that the tokenizer would join to one stay two."""
    tokenizer = load_tokenizer(ModelSettings(path=str(model_folder)))
    ids = tokenizer.convert_tokens_to_ids([*"\\boxed{", "7", "}"])
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) != ids
    (traces / "odd.jsonl").write_text(json.dumps({"prompt_ids": [1, 5], "token_ids": ids}) + "\n")
    values["data"]["sources"] = [str(traces / "odd.jsonl")]
    training, _ = load(values, tokenizer)
    assert (training.prompt_ids, training.completion_ids) == (((1, 5),), (tuple(ids),))
    values["data"]["learn"] = "all"
    training, _ = load(values, tokenizer)
    assert (training.prompt_ids, training.completion_ids) == (((1,),), ((5, *ids),))


def own_step(values, policy, demonstrations, *overrides):
    """The learner's metrics of one step over all demonstrations, and its gradients."""
    recipe = load_settings(SftRecipe, values, ["learner.max_grad_norm=null", *overrides])
    task = SftTask(recipe)
    learner = task.learner(policy, Launch(Ranks()), None)
    examples = demonstrations
    if recipe.data.learn == "all":
        both = zip(examples.prompt_ids, examples.completion_ids, strict=True)
        pairs = [(prompt[:1], (*prompt[1:], *ids)) for prompt, ids in both]
        examples = type(examples).of_one([p for p, _ in pairs], [ids for _, ids in pairs])
    gradients = {}
    take = learner.store.step

    def step(fraction):
        gradients.update({name: p.grad.clone() for name, p in policy.model.named_parameters()})
        return take(fraction)

    learner.store.step = step
    return learner.update(examples), gradients


@pytest.fixture
def few(values, model_folder):
    """Eight demonstrations of unequal lengths."""
    training, _ = load(values, load_tokenizer(ModelSettings(path=str(model_folder))))
    training = training.select(range(8))
    return replace(
        training,
        prompt_ids=tuple(ids + (5,) * n for n, ids in enumerate(training.prompt_ids)),
        completion_ids=tuple(ids[: 4 - n % 3] for n, ids in enumerate(training.completion_ids)),
    )


LOSSES = {
    "cross-entropy": {},
    "label smoothing": {"label_smoothing": 0.1},
    "tau 0.5": {"tau": 0.5},
    "tau 1.4": {"tau": 1.4},
    "tau 2": {"tau": 2.0},
}


@pytest.mark.parametrize("learn", ["response", "all"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_trl(
    values, few, model_folder, tmp_path, loss, layout, learn
):
    """On padded and packed rows, split by another rule than ours; and the metrics are its own."""
    model = ModelSettings(path=str(model_folder))
    settings = {name: value for name, value in LOSSES[loss].items() if name != "label_smoothing"}
    settings["label_smoothing_factor"] = LOSSES[loss].get("label_smoothing", 0.0)
    if layout == "packed":
        settings |= {"packing": True, "max_length": 200}
    expected, wanted, theirs = trl_step(
        load_policy(model),
        load_tokenizer(model),
        list(zip(few.prompt_ids, few.completion_ids, strict=True)),
        tmp_path,
        micro=8 if layout == "packed" else 4,
        learn=learn,
        **settings,
    )
    overrides = [f"{name}={value}" for name, value in LOSSES[loss].items()]
    metrics, gradients = own_step(
        values,
        load_policy(model),
        few,
        *overrides,
        f"learner.layout={layout}",
        f"data.learn={learn}",
    )
    assert metrics["sft/loss"] == pytest.approx(expected, rel=1e-5)
    assert wanted.keys() == gradients.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-6), name
    if layout == "packed":  # of padded rows TRL's are means of micro-batches' means
        assert metrics["policy/entropy"] == pytest.approx(theirs["entropy"], rel=1e-5)
        accuracy = theirs["mean_token_accuracy"]
        assert metrics["sft/token_accuracy"] == pytest.approx(accuracy, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_does_not_depend_on_the_split(values, few, exact_policy, loss):
    overrides = [f"{name}={value}" for name, value in LOSSES[loss].items()]
    expected = None
    for layout, budget in (("padded", 1000), ("padded", 1), ("padded", 30), ("packed", 40)):
        more = [f"learner.layout={layout}", f"learner.tokens_per_micro_batch={budget}"]
        _, gradients = own_step(values, deepcopy(exact_policy), few, *overrides, *more)
        expected = expected or gradients
        for name, gradient in expected.items():
            assert torch.allclose(gradients[name], gradient, rtol=1e-8, atol=1e-12), name


def test_label_smoothing_is_the_cross_entropy_of_the_smoothed_target(values, few, exact_policy):
    """In float64, against a softmax over the whole vocabulary."""
    policy = deepcopy(exact_policy)
    total, tokens = 0.0, 0
    for prompt, ids in zip(few.prompt_ids, few.completion_ids, strict=True):
        logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *ids]])).logits[0]
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
        target = torch.full_like(logp, 0.2 / logp.shape[1])
        target.scatter_add_(1, torch.tensor(ids)[:, None], torch.full_like(logp[:, :1], 0.8))
        total, tokens = total - (target * logp).sum(), tokens + len(ids)
    (total / tokens).backward()
    wanted = {name: p.grad.clone() for name, p in policy.model.named_parameters()}
    metrics, gradients = own_step(values, deepcopy(exact_policy), few, "label_smoothing=0.2")
    assert metrics["sft/loss"] == pytest.approx(float(total / tokens), rel=1e-12)
    for name, gradient in wanted.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-8, atol=1e-12), name


def test_prompt_tokens_are_not_learnt(values, few, model_folder):
    """The prompt's own likelihood enters neither the loss nor its gradient.

    The derivative of the loss by the last hidden state of positions that predict prompt tokens is
    zero, but for what later layers see of them: the head reads none.
    """
    policy = load_policy(ModelSettings(path=str(model_folder)))
    seen = []

    def keep(_module, _inputs, output):
        output.last_hidden_state.retain_grad()
        seen.append(output.last_hidden_state)

    policy.causal_lm.base_model.register_forward_hook(keep)
    own_step(values, policy, few, "learner.layout=padded", "learner.tokens_per_micro_batch=1000")
    norms = seen[0].grad.norm(dim=-1)
    assert int((norms > 0).sum()) == sum(map(len, few.completion_ids))


def test_a_gradient_that_is_no_number_is_never_applied(values, few, model_folder):
    policy = load_policy(ModelSettings(path=str(model_folder)))
    task = SftTask(load_settings(SftRecipe, values))
    learner = task.learner(policy, Launch(Ranks()), None)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    backward = learner.store.backward
    learner.store.backward = lambda loss, **options: backward(loss * float("nan"), **options)
    assert learner.update(few)["learner/skipped_updates"] == 1
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    learner.store.backward = backward
    assert learner.update(few)["learner/skipped_updates"] == 1
    assert any(not torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


@pytest.mark.parametrize("case", ["weights", "adapters", "packed"])
def test_a_run_stopped_and_resumed_ends_where_it_would_have_ended(values, tmp_path, case):
    if case == "adapters":
        values["model"]["lora"] = {"rank": 2, "dropout": 0.1}
    values["learner"]["layout"] = "packed" if case == "packed" else "padded"
    folder, metrics = run(values)
    other = {**values, "output": str(tmp_path / "other")}
    run(other, "steps=6", "checkpoint.every=2")
    for step in (4, 6):  # a kill that cut the newest two
        path = tmp_path / "other" / "checkpoints" / f"step_{step:06d}"
        (path / "trainer.safetensors").write_bytes(b"cut")
    again, metrics_again = run(other, resume=True)
    assert column(metrics, "sft/loss") == column(metrics_again, "sft/loss")
    first, second = weights(folder), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_resumed_is_finished(values):
    folder, metrics = run(values)
    before = weights(folder)
    again, metrics_again = run(values, resume=True)
    assert metrics == metrics_again
    after = weights(again)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_process_killed_anywhere_goes_on(values, tmp_path):
    """SIGKILL in the middle, from outside; the weights are those of the run let be."""
    values["steps"] = 20
    folder, _ = run(values)
    values["output"] = str(tmp_path / "killed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(load_settings(SftRecipe, values)))
    command = [sys.executable, "-m", "rlvr", "train", str(recipe)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    saved = tmp_path / "killed" / "checkpoints" / "step_000002"
    while not saved.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    run(values, resume=True)
    first, second = weights(folder), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_signal_leaves_a_checkpoint(values, monkeypatch):
    whole = frame.train_step

    def step_and_signal(task, run):
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(task, run)

    monkeypatch.setattr(frame, "train_step", step_and_signal)
    with pytest.raises(Stopped) as stopped:
        run(values)
    assert stopped.value.signal_number == signal.SIGTERM
    monkeypatch.setattr(frame, "train_step", whole)
    folder, metrics = run(values, resume=True)
    assert len(column(metrics, "sft/loss")) == 6
    assert len(column(metrics, "eval/sums/accuracy")) == 3
    _, untouched = run({**values, "output": str(folder) + "-2"})
    assert column(metrics, "sft/loss") == column(untouched, "sft/loss")


def test_epochs_count_steps_over_rows(values):
    recipe = load_settings(SftRecipe, values, ["steps=null", "epochs=3"])
    assert SftTask(recipe).total_steps(60) == 3 * 8
    plan = SftTask.plan(recipe)
    assert "# sequences: 60" in plan
    assert "24 steps of 8" in plan


def test_the_last_step_of_an_epoch_is_what_is_left(values, tmp_path):
    """60 sequences in steps of 25: 25, 25, 10, and again; each is trained on once an epoch."""
    _, metrics = run(values, "steps=null", "epochs=2", "data.per_step=25", "evaluation.sets={}")
    tokens = column(metrics, "sft/target_tokens")
    assert len(tokens) == 6
    assert sum(tokens[:3]) == sum(tokens[3:])
    assert tokens[2] < tokens[1]
    epochs = column(metrics, "sft/epoch")
    assert epochs == pytest.approx([25 / 60, 50 / 60, 1, 85 / 60, 110 / 60, 2])
    _, parted = run({**values, "output": str(tmp_path / "parted")}, "steps=4", "data.per_step=25")
    assert column(parted, "sft/target_tokens") == tokens[:4]


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
        (["tau=1.4", "label_smoothing=0.1"], "leave one out"),
        (["learner.layout=packed", "model.attention=flash_attention_2"], "needs a block mask"),
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
        ({"prompt_ids": [1], "token_ids": []}, "token_ids is empty"),
        ({"prompt_ids": [1], "token_ids": ["a"]}, "not a list of token ids"),
        ({"token_ids": [4]}, "prompt_ids = None is not a list"),
        ({"prompt_ids": [1], "token_ids": [4000]}, "holds token 4000"),
        ({"prompt_ids": [1], "token_ids": [4] * 300}, "none of 1 sequences"),
        ({"prompt": "1+1="}, "a row needs prompt_ids and token_ids"),
        ({"messages": [{"role": "user", "content": "1+1="}]}, "must end with an assistant"),
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
