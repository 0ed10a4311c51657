"""Adapters on their way to an engine, and what is noticed when something else arrives.

The engine here is peft in the same process: it knows nothing of how the adapter was written but the
folder. ``test_vllm_adapters.py`` has vLLM.
"""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlvr.policy.adapters import filled_adapters
from rlvr.policy.finite import NonFiniteWeightsError
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.rl.recipe import RLRecipe
from rlvr.rollout import adapter_sync
from rlvr.rollout.adapter_proof import distance, fingerprint, other_answer, tensor_fault
from rlvr.rollout.adapter_sync import AdapterStore, check_adapter, room_for_rank, write_adapter
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.rollout.weight_sync import StaleWeightsError, learner_logprobs
from rlvr.settings import load_settings
from tests.rollout.test_weight_sync import Sharding

_FILE = "adapter_model.safetensors"
Q, K = (f"base_model.model.model.layers.0.self_attn.{name}_proj" for name in "qk")


@pytest.fixture(scope="module")
def untrained(tiny_folder):
    model = ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=4, alpha=12))
    return load_policy(model, device=torch.device("cpu"))


@pytest.fixture
def policy(untrained):
    return copy.deepcopy(untrained)


@pytest.fixture
def store(policy, tmp_path):
    store = AdapterStore(policy, "float32", tmp_path, None, None)
    yield store
    store.close()


def move(policy, scale, seed=0):
    """An update of all matrices, B most of all, which starts at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


class PeftEngine:
    """What vLLM's process does with an adapter, by peft, and faults to be planted in it."""

    def __init__(self, store):
        self.store, self.base, self.model, self.kept = store, None, None, []
        self.deaf = False
        """Says that it took an adapter, and computes as before."""
        self.stuck = False
        """Keeps the adapter that it has."""
        self.cached = 0
        """Blocks of the prefix cache that it did not drop."""

    def call(self, method, **arguments):
        return getattr(self, f"on_{method}")(**arguments)

    def on_adapt(self, number, folder, names):
        if self.base is None:
            self.base = AutoModelForCausalLM.from_pretrained(self.store.folder.model).eval()
        taken = PeftModel.from_pretrained(copy.deepcopy(self.base), folder).eval()
        if self.model is None or not (self.deaf or self.stuck):
            self.model = self.base if self.deaf else taken
        held = self.held(self.model if self.stuck else taken)
        assert set(names) == set(held)
        self.kept = [number]
        found = {"held": held, "kept": self.kept, "cached": self.cached}
        return {"missing": [], "refused": None, **found}

    def held(self, model):
        found = {}
        for place, module in model.named_modules():
            if hasattr(module, "lora_B"):
                scale, a, b = (
                    module.scaling["default"],
                    module.lora_A["default"].weight,
                    module.lora_B["default"].weight,
                )
                found[f"{place}.lora_A.weight"] = list(fingerprint(a))
                found[f"{place}.lora_B.weight"] = list(fingerprint(b * scale))
        return found

    def on_score(self, tokens):
        with torch.no_grad():
            logprobs = self.model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        return {"logprobs": logprobs.gather(-1, torch.tensor(tokens)[1:, None])[:, 0].tolist()}

    def sync(self, policy, version):
        """What the engine does for every version."""
        self.store.write(policy, version)
        cached = self.store.install(self.call, fresh=not self.kept)
        logprobs = self.on_score(self.store.sequence)["logprobs"]
        return self.store.check(logprobs, cached=cached)


@pytest.fixture
def engine(store):
    return PeftEngine(store)


def plant(monkeypatch, change):
    """Have ``change`` alter the tensors between learner and folder."""

    def save(tensors, path, **more):
        save_file({name: t.clone() for name, t in change(dict(tensors)).items()}, path, **more)

    monkeypatch.setattr(adapter_sync, "save_file", save)


# What is sent


def test_base_and_adapter_are_the_learners(engine, policy, tiny_folder):
    move(policy, 0.3)
    assert engine.sync(policy, 0).largest < 1e-5
    base = AutoModelForCausalLM.from_pretrained(engine.store.folder.model).state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict().items():
        assert torch.equal(base[name], value)
    assert engine.store.metrics()["sync/adapter_effect"] > 0.01
    assert engine.store.metrics()["sync/adapter_seen"] == 1


def test_only_the_newest_adapter_is_kept(engine, policy):
    place = engine.store
    for version in range(5):
        move(policy, 0.01, version)
        engine.sync(policy, version)
        folders = {path.name for path in (place.folder.path / "adapters").iterdir()}
        assert folders == {"1", str(version + 2)}, "the probe, and the newest"
        assert place.adapter_number == version + 2


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_that_of_peft(tiny_folder, tmp_path, rslora):
    """Also with the scale alpha / sqrt(rank), and with layers of other ranks and alphas."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 9},
        alpha_pattern={"layers.1.self_attn.q_proj": 40},
    )
    policy = Policy(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config))
    move(policy, 0.3)
    store = AdapterStore(policy, "float32", tmp_path, None, None)
    assert store.engine_arguments["max_lora_rank"] == 16
    assert PeftEngine(store).sync(policy, 0).largest < 1e-5
    name = f"{Q}.lora_B.weight"
    weight = policy.get_parameter(f"model.{Q}.lora_B.default.weight")
    scale = 6 / math.sqrt(4) if rslora else 6 / 4
    assert store.newest.tensors[name] == pytest.approx(fingerprint(scale * weight))
    store.close()


def test_bfloat16_halves_the_bytes_and_is_what_the_engine_holds(policy, tmp_path):
    move(policy, 0.1)
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        found = write_adapter(policy, tmp_path / str(dtype), dtype)
        sizes.append((tmp_path / str(dtype) / _FILE).stat().st_size)
    weight = policy.get_parameter(f"model.{Q}.lora_B.default.weight")
    expected = fingerprint(weight.bfloat16() * 3.0)
    assert found[f"{Q}.lora_B.weight"] == expected
    assert sizes[1] < 0.75 * sizes[0]


def test_a_weight_that_is_no_number_is_not_sent(store, policy):
    with torch.no_grad():
        next(p for n, p in policy.named_parameters() if "lora_B" in n)[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match="lora_B"):
        store.write(policy, 1)


def test_filling_leaves_the_adapters_bit_for_bit(policy):
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with torch.no_grad(), filled_adapters(policy):
        assert all(bool(p.any()) for n, p in policy.named_parameters() if "lora_B" in n)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


# Planted faults: matrices


@pytest.mark.parametrize("scale", [1e-8, 0.1])
def test_a_stale_adapter_is_told_by_its_matrices(engine, policy, scale):
    """Even if the update is far below what log-probabilities can show."""
    move(policy, 0.1)
    engine.sync(policy, 0)
    move(policy, scale, 1)
    engine.stuck = True
    with pytest.raises(StaleWeightsError, match=r"version 1 .* still holds the version before"):
        engine.sync(policy, 1)


def test_a_prefix_cache_that_was_kept_is_told(engine, policy):
    engine.sync(policy, 0)
    engine.cached = 2
    with pytest.raises(StaleWeightsError, match=r"version 1 .*prefix cache still holds"):
        engine.sync(policy, 1)


def test_a_lost_layer_is_named(engine, policy, monkeypatch):
    move(policy, 1e-6)
    lost = (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight")
    plant(monkeypatch, lambda tensors: tensors | {n: 0 * tensors[n] for n in lost})
    with pytest.raises(StaleWeightsError, match=r"q_proj\.lora_A.weight, .*lora_B.* did not arr"):
        engine.sync(policy, 0)


def test_half_an_adapter_is_named(engine, store, policy):
    """The process says what its folder lacks, as vLLM would end with a traceback."""
    store.write(policy, 0)
    answer = {"missing": [f"{Q}.lora_B.weight"], "refused": None}
    with pytest.raises(StaleWeightsError, match=r"an adapter without .*q_proj\.lora_B"):
        store.install(lambda *_, **__: answer, fresh=False)


def test_swapped_matrices_are_named(engine, policy, monkeypatch):
    move(policy, 1e-6)
    one, other = f"{Q}.lora_A.weight", f"{K}.lora_A.weight"
    plant(monkeypatch, lambda tensors: tensors | {one: tensors[other], other: tensors[one]})
    with pytest.raises(
        StaleWeightsError, match=r"_proj\.lora_A\.weight holds the values of .*_proj"
    ):
        engine.sync(policy, 0)


def test_another_scale_is_named(engine, policy, monkeypatch):
    move(policy, 1e-6)
    right = adapter_sync.adapter_config
    wrong = {"lora_alpha": 4}
    monkeypatch.setattr(adapter_sync, "adapter_config", lambda policy: right(policy) | wrong)
    with pytest.raises(StaleWeightsError, match=r"multiplied by 0\.33333\d: alpha or rank"):
        engine.sync(policy, 0)


def test_an_adapter_too_many_is_told(engine, policy):
    take = engine.on_adapt
    engine.on_adapt = lambda **asked: take(**asked) | {"kept": [1, asked["number"]]}
    with pytest.raises(StaleWeightsError, match=r"holds the adapters \[1, 1\]"):
        engine.sync(policy, 0)


def test_a_refusal_by_vllm_has_a_remedy(store, policy):
    store.write(policy, 0)
    answer = {"missing": [], "refused": "expected target modules in {'o_proj'}"}
    with pytest.raises(ValueError, match=r"vLLM refuses .*o_proj.*rollout\.engine.lora=merged"):
        store.install(lambda *_, **__: answer, fresh=True)


# Planted faults: answers


def test_an_engine_without_adapters_is_found_before_there_is_anything_to_see(engine, policy):
    """B = 0, so that the base answers rightly: the probe is what tells."""
    engine.deaf = True
    with pytest.raises(StaleWeightsError, match="does not compute with adapters as the learner"):
        engine.sync(policy, 0)


def test_the_probe_does_more_than_rounding(policy, tmp_path):
    """Also in bfloat16, where a random model's answers are less apart than the tolerance."""
    store = AdapterStore(policy, "float32", tmp_path, None, None)
    store.write(policy, 0)
    assert distance(store._probe.logprobs, store._base) > 4 * store.tolerance
    assert store.newest.logprobs == store._base
    store.close()
    policy.precision = "bfloat16"
    store = AdapterStore(policy, "bfloat16", tmp_path, None, None)
    store.write(policy, 0)
    store._check_probe(store._probe, store._probe.logprobs)
    with pytest.raises(StaleWeightsError, match="does not compute with adapters"):
        store._check_probe(store._probe, store._base)
    store.close()


def test_nothing_to_tell_apart_is_said(engine, policy):
    engine.sync(policy, 0)
    assert engine.store.metrics() == {"sync/adapter_effect": 0, "sync/adapter_seen": 0}


def test_a_base_that_answers_is_named_within_the_tolerance(engine, policy):
    """The matrices are there, but requests do not use them."""
    engine.sync(policy, 0)
    engine.deaf = True  # what it computes with has B = 0, and so is the base
    while engine.store.metrics()["sync/adapter_effect"] < 2e-4:
        move(policy, 2e-4)
        engine.store.write(policy, 1)
    assert engine.store.metrics()["sync/adapter_effect"] < engine.store.tolerance
    with pytest.raises(StaleWeightsError, match="answers as the base without its adapter"):
        engine.sync(policy, 1)


def test_an_older_version_that_answers_is_named_within_the_tolerance(engine, policy):
    move(policy, 0.1)
    engine.sync(policy, 6)
    before = learner_logprobs(policy, engine.store.sequence)
    while distance(before, learner_logprobs(policy, engine.store.sequence)) < 2e-4:
        move(policy, 2e-4, 1)
    engine.deaf = True
    with pytest.raises(StaleWeightsError, match="version 7 the engine answers as version 6"):
        engine.sync(policy, 7)


def test_rounding_is_mistaken_for_nobody():
    """Noise of an engine in bfloat16, whose last update is far below it."""
    generator = torch.Generator().manual_seed(0)
    learner = -4 + torch.randn(63, generator=generator).double()
    for trial in range(200):
        step = 0.5 * trial / 200 * torch.randn(63, generator=generator)
        noise = 0.1 * torch.randn(63, generator=generator)
        others = {"version 3": (learner + step).tolist()}
        assert other_answer((learner + noise).tolist(), learner.tolist(), others, 0.25) is None


# Fingerprints


def test_a_fingerprint_is_that_of_its_definition():
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    norm = math.sqrt(sum(float(x) ** 2 for x in matrix.flatten()))
    product = sum(
        math.cos(i) * float(matrix[i, j]) * math.cos(j) for i in range(3) for j in range(5)
    )
    assert fingerprint(matrix) == pytest.approx((norm, product), rel=1e-12)
    assert fingerprint(matrix.flip(0)) != pytest.approx((norm, product), rel=1e-3)
    padded = torch.nn.functional.pad(matrix, (0, 3, 0, 2))
    assert fingerprint(padded) == pytest.approx((norm, product), rel=1e-12)


def test_what_holds_what_was_sent_has_no_fault():
    sent = {"a": (1.0, 0.5), "b": (0.0, 0.0)}
    assert tensor_fault(sent, {**sent}) is None
    assert tensor_fault(sent, {"b": (0.0, 0.0)}) == "a did not arrive"
    assert tensor_fault(sent, sent | {"a": (1.0, 0.4)}) == "a arrived with other values"


# The engine around it


class Recorder(PeftEngine):
    """An engine process that answers with the adapter ``number``."""

    number = 2

    def on_generate(self):
        return {"event": "sample", "job": 0, "tokens": [3], "logprobs": [-1.0], "finish": "length"}

    def stream(self, method, **_):
        yield {**self.on_generate(), "adapter": self.number}

    def kill(self):
        pass


@pytest.fixture
def vllm_engine(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    settings = VllmEngineSettings(weights_folder=tmp_path, lora="adapter")
    engine = VllmEngine(policy, [2], settings, longest=64)
    engine._process = process = Recorder(engine._weights)
    process.close = process.kill
    yield engine
    engine.close()


def test_every_sample_names_the_adapter_that_was_proven(vllm_engine, policy):
    asked, sampling = [Request((1, 5), (7,))], Sampling(max_tokens=1)
    metrics = vllm_engine.sync(policy, 0)
    assert metrics["sync/adapter_seen"] == 0
    assert vllm_engine.generate(asked, sampling)[0][0].token_ids == (3,)
    move(policy, 0.1)
    assert vllm_engine.sync(policy, 1)["sync/adapter_seen"] == 1
    with pytest.raises(StaleWeightsError, match="answered with adapter 2 instead of 3"):
        vllm_engine.generate(asked, sampling)
    assert vllm_engine.pid is None


def test_vllm_starts_with_the_base_and_room_for_one_adapter(vllm_engine, policy):
    vllm_engine._weights.write(policy, 0)
    arguments = vllm_engine._arguments(vllm_engine._weights.folder)
    assert arguments["model"].endswith("/model")
    assert arguments["enable_lora"] is True
    assert [arguments[f"max_{name}"] for name in ("loras", "cpu_loras", "lora_rank")] == [1, 1, 8]
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(arguments["lora_target_modules"]) == names


def test_sharded_adapters_come_out_whole(policy, tmp_path):
    move(policy, 0.1)
    expected = write_adapter(policy, tmp_path / "whole", torch.float32)
    Sharding(policy)
    assert write_adapter(policy, tmp_path / "sharded", torch.float32) == expected
    whole, sharded = (load_file(tmp_path / n / _FILE) for n in ("whole", "sharded"))
    assert all(torch.equal(whole[name], sharded[name]) for name in whole | sharded)


# What is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, r"\['lm_head'\] are trained whole"),
        ({"use_dora": True}, "use_dora, which vLLM does not run"),
        ({"bias": "lora_only"}, "bias = 'lora_only' trains them"),
        ({"r": 513}, "at most 512, but the adapter's is 513; lower model.lora.rank"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens is adapted; name other"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head is adapted; name other layers"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_what_vllm_cannot_run_is_refused_with_a_remedy(tiny_folder, config, message):
    values = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), LoraConfig(**values))
    with pytest.raises(ValueError, match=message) as caught:
        check_adapter(Policy(model))
    assert "rollout.engine.lora=merged" in str(caught.value)


def test_a_mixtures_experts_are_refused(mixture_folder):
    policy = load_policy(ModelSettings(path=str(mixture_folder), lora=LoraSettings(rank=2)))
    with pytest.raises(ValueError, match="the experts of a mixture are adapted"):
        check_adapter(policy)


def test_a_policy_without_adapters_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="the policy has none; set model"):
        check_adapter(load_policy(ModelSettings(path=str(tiny_folder))))


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (2, 8), (16, 16), (129, 256), (512, 512)])
def test_room_is_made_for_the_rank(tiny_folder, rank, room):
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=["q_proj"])
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert room_for_rank(Policy(get_peft_model(model, config))) == room


@pytest.mark.parametrize(
    "other", [{"weight_transfer": "ipc"}, {"sleep": 1}, {"tensor_parallel_size": 2}]
)
def test_settings_that_do_not_go_together_are_refused(other):
    with pytest.raises(ValueError, match=f"does not go with {next(iter(other))}"):
        VllmEngineSettings(lora="adapter", **other)


def test_a_recipe_without_adapters_is_refused_before_anything_loads(tmp_path):
    values = {
        "output": str(tmp_path / "run"),
        "steps": 1,
        "model": {"path": "x/y"},
        "data": {"source": {"name": "arithmetic"}},
        "rollout": {"engine": {"name": "vllm", "lora": "adapter"}},
    }
    with pytest.raises(ValueError, match="sends adapters, but the policy has none"):
        load_settings(RLRecipe, values)
    assert load_settings(RLRecipe, values, ["model.lora.rank=4"]).model.lora.rank == 4
