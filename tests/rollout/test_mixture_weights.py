"""Experts of a mixture are sent under the names of published checkpoints, as vLLM wants them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlvr.policy.loading import load_policy
from rlvr.policy.merging import merged_weights
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.vllm_child import child_environment
from rlvr.rollout.weight_transfer import PolicySource

# Names of an expert's matrices in the checkpoints that their authors published.
EXPERTS = {
    "qwen3_moe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj"), "mlp.gate.weight"),
    "olmoe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj"), "mlp.gate.weight"),
    "mixtral": ("block_sparse_moe.experts", ("w1", "w3", "w2"), "block_sparse_moe.gate.weight"),
}
SIZES = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32},
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}


@pytest.fixture(params=sorted(EXPERTS))
def family(request):
    return request.param


@pytest.fixture
def policy(family, tmp_path):
    config = type(AutoConfig.for_model(family))(**SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    return load_policy(ModelSettings(path=str(tmp_path / "model")), device=torch.device("cpu"))


def test_each_expert_is_sent_by_its_own_name(family, policy):
    prefix, (gate, up, down), router = EXPERTS[family]
    sent = dict(PolicySource(policy, torch.float32))
    held = dict(merged_weights(policy, torch.float32))
    assert not any(name.endswith(("gate_up_proj", "down_proj")) for name in sent)
    for layer in range(2):
        at = f"model.layers.{layer}"
        fused = held[f"{at}.mlp.experts.gate_up_proj"]
        downs = held[f"{at}.mlp.experts.down_proj"]
        assert f"{at}.{router}" in sent
        for expert in range(4):
            own = f"{at}.{prefix}.{expert}"
            both = torch.cat([sent[f"{own}.{gate}.weight"], sent[f"{own}.{up}.weight"]])
            assert torch.equal(both, fused[expert])
            assert torch.equal(sent[f"{own}.{down}.weight"], downs[expert])


def test_shapes_are_those_of_what_is_sent(policy):
    source = PolicySource(policy, torch.bfloat16)
    told = [(name, t.dtype, t.shape) for name, t in source.shapes().items()]
    assert told == [(name, t.dtype, t.shape) for name, t in source]
    assert all(tensor.is_contiguous() for _, tensor in source)
    assert source.largest() == max(tensor.nbytes for _, tensor in source)


SENDING = """
import sys
import torch
from rlvr.policy.loading import load_policy
from rlvr.policy.merging import merged_weights
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.vllm_process import prompt_logprobs, scoring_parameters
from rlvr.rollout.weight_sync import learner_logprobs, measure_difference, proof_sequence
from rlvr.rollout.weight_transfer import PolicySource

def main():
    from vllm import LLM
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload, initialize_layerwise_reload)

    policy = load_policy(ModelSettings(path=sys.argv[1]), device=torch.device("cpu"))
    llm = LLM(
        model=sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
        max_model_len=128, max_num_seqs=8, kv_cache_memory_bytes=2**28, block_size=32,
        enable_chunked_prefill=False, generation_config="vllm", seed=0,
        logprobs_mode="processed_logprobs",
        worker_extension_cls="rlvr.rollout.vllm_worker.WeightRepair")
    worker = llm.llm_engine.model_executor.driver_worker.worker
    model, sequence = worker.model_runner.get_model(), proof_sequence(96, 127)

    def difference():
        prompt = [{"prompt_token_ids": sequence}]
        (output,) = llm.generate(prompt, scoring_parameters(), use_tqdm=False)
        learner = learner_logprobs(policy, sequence)
        return measure_difference(prompt_logprobs(output), learner).mean

    def send(pairs):  # what the worker's side of vLLM's transfer engines does
        with set_current_vllm_config(worker.vllm_config):
            initialize_layerwise_reload(model)
            model.load_weights(iter(pairs))
            finalize_layerwise_reload(model, worker.model_config)
        llm.collective_rpc("repack_output_heads")
        assert llm.reset_prefix_cache()

    found = [difference()]
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    found.append(difference())
    send(PolicySource(policy, torch.float32))
    found.append(difference())
    print("found", found, flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_computes_with_what_is_sent(policy, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SENDING, str(tmp_path / "model")],
        env=child_environment(os.environ, 1),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("found"))
    before, stale, after = json.loads(line.removeprefix("found"))
    assert before < 1e-5, (before, stale, after)
    assert stale > 1e-2, (before, stale, after)
    assert after < 1e-5, (before, stale, after)
