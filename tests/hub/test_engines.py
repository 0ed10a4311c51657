"""Runs that ZeRO 3 parted over processes, and vLLM: both load the export and agree with training.

The trainer's own greedy answers are those that it kept of its evaluations.
"""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlvr.hub.export import Wanted, export_run
from rlvr.hub.source import find_source
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.rollout.vllm_child import child_environment
from tests.hub.runs import (
    ROOT,
    answers,
    environment,
    generated,
    preference_values,
    rl_values,
    train,
)
from tests.learner.launching import command

_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
model, prompts = json.loads(sys.stdin.read())
llm = LLM(model=model, dtype="float32", max_model_len=128, max_num_seqs=4, seed=0,
          kv_cache_memory_bytes=2**26, enforce_eager=True)
greedy = SamplingParams(temperature=0, max_tokens=24)
tokens = llm.get_tokenizer()
asked = [{"prompt_token_ids": tokens.encode(p, add_special_tokens=False)} for p in prompts]
found = llm.generate(asked, greedy, use_tqdm=False)
print(json.dumps([[tokens.decode([t]) for t in f.outputs[0].token_ids] for f in found]))
"""


def vllm_answers(folder, prompts):
    """What vLLM continues greedily, loading the folder as any user would."""
    done = subprocess.run(
        [sys.executable, "-c", _VLLM],
        input=json.dumps([str(folder), list(prompts)]),
        env={**child_environment(environment(), 1), "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def launch(config, values, tmp_path):
    """Two processes, as a user starts them."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        command(config, "-m", "rlvr", "train", recipe),
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["run", "lora_run"])
def test_vllm_answers_token_by_token_as_the_trainer_did(which, request, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    source = request.getfixturevalue(which)
    export_run(source, Wanted(to=tmp_path / "model"))
    prompts, tokens = zip(*answers(source, 4), strict=True)
    assert vllm_answers(tmp_path / "model", prompts) == list(tokens)


def trainers_greedy(run, prompts):
    """What the trainer's own engine continues greedily with the checkpoint's weights."""
    source = find_source(run)
    tokenizer = load_tokenizer(source.tokenizer)
    policy = load_policy(source.model, saved=source.saved)
    engine = TransformersEngine(policy, (tokenizer.eos_token_id,))
    ids = [tuple(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts]
    found = engine.generate(
        [Request(prompt, (0,)) for prompt in ids], Sampling(max_tokens=24, temperature=0.0)
    )
    return [[tokenizer.decode([t]) for t in samples[0].token_ids] for samples in found]


@pytest.mark.deepspeed
@pytest.mark.timeout(900)
@pytest.mark.parametrize("adapters", [False, True])
def test_weights_parted_by_zero_3_are_whole_and_those_of_one_process(adapters, tiny, tmp_path):
    preferences = preference_values(tiny, tmp_path, steps=3)
    if adapters:
        preferences["model"]["lora"] = {"rank": 4}
        preferences["learner"]["lr"] = 3e-3
    launch("zero3", preferences, tmp_path)
    train({**preferences, "output": str(tmp_path / "alone")})
    for step in (2, 3):
        for name in ("run", "alone"):
            export_run(tmp_path / name, Wanted(to=tmp_path / f"{name}-{step}"), step=step)
        parted, whole = (
            load_file(tmp_path / f"{name}-{step}" / "model.safetensors")
            for name in ("run", "alone")
        )
        assert set(parted) == set(whole)
        assert max(float((parted[n] - whole[n]).abs().max()) for n in whole) < 1e-5
    # The final model was gathered from the ranks in another way than checkpoints are.
    final = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.allclose(final[name], parted[name], atol=1e-7) for name in parted)
    prompts = [f"<bos>{a}+{b}=" for a in range(3) for b in range(3)]
    tokens = trainers_greedy(tmp_path / "run", prompts)
    assert len({token for row in tokens for token in row}) > 20
    assert generated(tmp_path / "run-3", prompts) == tokens
    assert trainers_greedy(tmp_path / "alone", prompts) == tokens


@pytest.mark.deepspeed
@pytest.mark.vllm
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("adapters", [False, True])
def test_a_run_under_zero_3_answers_everywhere_as_its_trainer_did(adapters, tiny, tmp_path):
    """Reinforcement learning in two processes; vLLM answers with the weights they send it."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    values = rl_values(tiny, tmp_path / "run")
    engine = {"name": "vllm", "threads": 1, "kv_cache_gib": 0.25}
    values["rollout"]["engine"] = engine
    if adapters:
        values["model"]["lora"] = {"rank": 4}
        values["learner"]["lr"] = 3e-3
    launch("zero3", values, tmp_path)
    export_run(tmp_path / "run", Wanted(to=tmp_path / "model"))
    prompts, tokens = zip(*answers(tmp_path / "run", 4), strict=True)
    assert len({token for row in tokens for token in row}) > 20
    assert [row for _, row in answers(tmp_path / "run", 0)] != list(tokens)
    assert generated(tmp_path / "model", prompts) == list(tokens)
    assert vllm_answers(tmp_path / "model", prompts) == list(tokens)
