"""Adapters in vLLM itself: what it computes with them, and faults planted on their way.

A start of vLLM takes 10 to 20 seconds, so all tests but the runs share one engine.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlvr.policy.batching import padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.rollout.weight_sync import StaleWeightsError
from rlvr.runs.log import read_metrics

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SAMPLING = Sampling(max_tokens=24, temperature=1.3)
# So large that twenty adapters that are kept would be seen in the memory of the process.
RANK = 256
LAYER = "base_model.model.model.layers.1.self_attn"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny model whose heads are 32 wide, which vLLM's attention on a CPU takes."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shape = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    write_tiny_model(folder, 0, shape)
    return folder


@pytest.fixture(scope="module")
def policy(model_folder):
    lora = LoraSettings(rank=RANK, alpha=3 * RANK)
    return load_policy(ModelSettings(path=str(model_folder), lora=lora), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def shared_engine(policy, tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    settings = VllmEngineSettings(
        threads=1, kv_cache_gib=0.25, weights_folder=place, lora="adapter"
    )
    engine = VllmEngine(policy, [2, 7], settings, longest=128)
    yield engine
    engine.close()
    assert not list(place.iterdir())


@pytest.fixture
def engine(shared_engine, policy):
    """The shared engine with an adapter that does something."""
    set_adapters(policy, 0.02, 0)
    shared_engine.sync(policy, 0)
    return shared_engine


def set_adapters(policy, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def requests(seed=0, count=6):
    """Prompts of which some share whole blocks of the cache with themselves, sampled thrice."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 80, (count,), generator=generator).tolist()
    return [
        Request(
            tuple(torch.randint(3, 80, (length,), generator=generator).tolist()),
            tuple(torch.randint(2**62, (3,), generator=generator).tolist()),
        )
        for length in lengths
    ]


def largest_difference(policy, asked, outputs):
    """Between the samples' log-probabilities and the learner's, in nats."""
    prompts = [request.prompt_ids for request in asked for _ in request.seeds]
    samples = [sample for output in outputs for sample in output]
    inputs = padded_inputs(prompts, [s.token_ids for s in samples], range(len(prompts)))
    with torch.no_grad():
        expected = policy(inputs, temperature=1.3).logprobs_N
    found = torch.tensor([value for sample in samples for value in sample.logprobs])
    return float((found - expected).abs().max())


def tokens(outputs):
    return [sample.token_ids for output in outputs for sample in output]


def test_samples_have_the_learners_log_probabilities_before_and_after_an_update(engine, policy):
    asked = requests()
    before = engine.generate(asked, SAMPLING)
    assert largest_difference(policy, asked, before) < 1e-4
    set_adapters(policy, 0.04, 1)
    metrics = engine.sync(policy, 1)
    assert metrics["sync/difference_max"] < 1e-4
    assert metrics["sync/adapter_effect"] > 0.05
    after = engine.generate(asked, SAMPLING)
    assert largest_difference(policy, asked, after) < 1e-4
    assert tokens(before) != tokens(after)
    scored = engine.logprobs([[*request.prompt_ids, 5, 6] for request in asked])
    assert all(
        len(row) == len(request.prompt_ids) + 1 for row, request in zip(scored, asked, strict=True)
    )


def test_twenty_versions_leave_no_more_than_one(engine, policy):
    store, process = engine._weights, psutil.Process(engine.pid)
    used = []
    for version in range(1, 21):
        set_adapters(policy, 0.02, version)
        assert engine.sync(policy, version)["sync/difference_max"] < 1e-4
        assert len(list((store.folder.path / "adapters").iterdir())) == 2  # with the probe
        used.append(process.memory_info().rss)
    size = sum(p.stat().st_size for p in store.newest.folder.iterdir())
    assert used[-1] - used[4] < 5 * size, f"15 adapters of {size} bytes"


def altered(engine, policy, change, version=1):
    """Publish a version, and let ``change`` alter its tensors in the folder."""
    set_adapters(policy, 0.02, 9)
    engine._weights.write(policy, version)
    path = engine._weights.newest.folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def install(engine):
    engine._weights.install(engine._process.call, fresh=False)


def check(engine):
    answer = engine._process.call("score", tokens=engine._weights.sequence)
    return engine._weights.check(answer["logprobs"])


def believe(engine):
    """An ``adapt`` whose answer is what it should be, whatever arrived."""

    def call(method, **asked):
        answer = engine._process.call(method, **asked)
        if method == "adapt":
            answer["held"] = dict(engine._weights.newest.tensors)
        return answer

    engine._weights.install(call, fresh=False)


def test_a_stale_adapter_is_caught(engine, policy):
    old = load_file(engine._weights.newest.folder / "adapter_model.safetensors")
    altered(engine, policy, lambda _: old)
    with pytest.raises(StaleWeightsError, match="it still holds the version before"):
        install(engine)
    believe(engine)
    with pytest.raises(StaleWeightsError, match="version 1 the engine answers as version 0"):
        check(engine)


def test_a_base_that_answers_is_caught(engine, policy):
    altered(engine, policy, lambda tensors: {n: 0 * t for n, t in tensors.items()})
    with pytest.raises(StaleWeightsError, match="did not arrive"):
        install(engine)
    believe(engine)
    with pytest.raises(StaleWeightsError, match="answers as the base without its adapter"):
        check(engine)


def test_a_lost_tensor_is_caught(engine, policy):
    name = f"{LAYER}.v_proj.lora_B.weight"
    altered(engine, policy, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(StaleWeightsError, match=r"an adapter without .*v_proj\.lora_B"):
        install(engine)


def test_a_lost_layer_is_caught(engine, policy):
    def drop(tensors):
        return {n: t * (".v_proj." not in n or ".layers.1." not in n) for n, t in tensors.items()}

    altered(engine, policy, drop)
    with pytest.raises(StaleWeightsError, match=r"layers\.1\.self_attn\.v_proj.* did not arrive"):
        install(engine)
    believe(engine)
    with pytest.raises(StaleWeightsError, match=r"above the 0\.001 that float32 explains"):
        check(engine)


def test_swapped_tensors_are_caught(engine, policy):
    one, other = f"{LAYER}.k_proj.lora_B.weight", f"{LAYER}.v_proj.lora_B.weight"
    altered(engine, policy, lambda tensors: tensors | {one: tensors[other], other: tensors[one]})
    with pytest.raises(StaleWeightsError, match=r"[kv]_proj.* holds the values of .*[kv]_proj"):
        install(engine)
    believe(engine)
    with pytest.raises(StaleWeightsError, match=r"above the 0\.001 that float32 explains"):
        check(engine)


def test_another_scale_is_caught(engine, policy):
    altered(engine, policy, lambda tensors: tensors)
    path = engine._weights.newest.folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": RANK}))
    with pytest.raises(StaleWeightsError, match=r"multiplied by 0\.3333.*alpha or rank"):
        install(engine)
    believe(engine)
    with pytest.raises(StaleWeightsError, match=r"above the 0\.001 that float32 explains"):
        check(engine)


def test_a_layer_that_vllm_does_not_adapt_is_refused_with_a_remedy(engine, policy):
    more = {f"{LAYER}.z_proj.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    altered(engine, policy, lambda tensors: tensors | more)
    with pytest.raises(ValueError, match=r"vLLM refuses .*z_proj.*rollout\.engine\.lora=merged"):
        install(engine)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_that_of_peft(engine, model_folder, rslora):
    """Also alpha / sqrt(rank), and layers of other ranks and alphas than the rest."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=9,
        lora_alpha=20,
        use_rslora=rslora,
        target_modules=["q_proj", "o_proj", "up_proj"],
        rank_pattern={"up_proj": 4},
        alpha_pattern={"layers.1.self_attn.q_proj": 3},
    )
    other = Policy(get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config))
    set_adapters(other, 0.3, 0)
    metrics = engine.sync(other, 4)
    assert metrics["sync/difference_max"] < 1e-4
    assert metrics["sync/adapter_effect"] > 0.05


def test_an_engine_lost_in_the_midst_comes_back_with_the_newest_adapter(engine, policy):
    set_adapters(policy, 0.03, 5)
    engine.sync(policy, 5)
    asked = requests(seed=1)
    expected = engine.generate(asked, SAMPLING)
    set_adapters(policy, 0.03, 5)
    victim, restarts = engine.pid, engine.restarts

    def strike(done, _):
        if engine.pid == victim and done == 1:
            os.kill(victim, signal.SIGKILL)

    again = engine.generate(asked, SAMPLING, strike)
    assert engine.restarts in (restarts, restarts + 1)
    if engine.pid == victim:  # it was done already
        os.kill(victim, signal.SIGKILL)
        again = engine.generate(asked, SAMPLING)
    assert engine.pid != victim
    assert tokens(again) == tokens(expected)
    assert largest_difference(policy, asked, again) < 1e-4


def test_bfloat16_arrives_as_it_is_rounded(model_folder, tmp_path):
    """Another engine: matrices are compared as bfloat16 rounds them, scaled after rounding."""
    model = ModelSettings(
        path=str(model_folder), precision="bfloat16", lora=LoraSettings(rank=6, alpha=5)
    )
    policy = load_policy(model, device=torch.device("cpu"))
    settings = VllmEngineSettings(
        threads=1, kv_cache_gib=0.25, weights_folder=tmp_path, lora="adapter"
    )
    engine = VllmEngine(policy, [2, 7], settings, longest=128)
    try:
        for version in range(3):
            set_adapters(policy, 0.3 * version, version)
            assert engine.sync(policy, version)["sync/difference"] < 0.05
        altered(engine, policy, lambda tensors: {n: 1.01 * t for n, t in tensors.items()})
        with pytest.raises(StaleWeightsError, match="does not hold the learner's adapter"):
            install(engine)
    finally:
        engine.close()


@pytest.mark.timeout(1800)  # two runs, each of which starts vLLM
def test_a_run_gives_the_same_on_both_routes(model_folder, tmp_path):
    """Two steps of GRPO: the engine agrees with the learner, and both routes with each other."""
    kept = {}
    for route in ("merged", "adapter"):
        run = tmp_path / route
        (run / "weights").mkdir(parents=True)
        path = run / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(model_folder, run, route)))
        done = subprocess.run(
            [sys.executable, "-m", "rlvr", "train", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = read_metrics(run / "run" / "metrics.jsonl")
        steps = [row for row in rows if "reward/mean" in row]
        assert len(steps) == 2
        assert all(row["sync/difference_max"] < 1e-4 for row in steps)
        assert all(row["mismatch/kl"] < 1e-4 for row in steps)
        assert [row["step"] for row in rows if "eval/held_out/accuracy" in row] == [0, 2]
        assert not list((run / "weights").iterdir())
        lines = [
            json.loads(line)
            for file in sorted((run / "run" / "completions").iterdir())
            for line in file.read_text().splitlines()
        ]
        kept[route] = [line for line in lines if line["policy_version"] == 0]
        if route == "adapter":
            assert all(row["sync/adapter_seen"] == 1 for row in steps)
            shutil.rmtree(run)
    assert len(kept["merged"]) == 16
    assert kept["merged"] == kept["adapter"]


def recipe(model_folder, run, route):
    source = {"name": "arithmetic", "digits": 1, "size": 40}
    engine = {"name": "vllm", "threads": 1, "kv_cache_gib": 0.25, "lora": route}
    return {
        "output": str(run / "run"),
        "steps": 2,
        "model": {"path": str(model_folder), "lora": {"rank": 4}},
        "data": {"source": source, "template": "plain", "max_prompt_tokens": 16},
        "rollout": {
            "engine": engine | {"weights_folder": str(run / "weights")},
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "sampling": {"max_tokens": 8},
        },
        # A random model earns no reward; the bonus is what moves its adapters.
        "regularisers": [{"name": "entropy", "coefficient": -1.0}],
        "learner": {"lr": 0.01},
        "evaluation": {
            "every": 2,
            "sets": {"held_out": {**source, "size": 8, "split": "held_out"}},
        },
    }
