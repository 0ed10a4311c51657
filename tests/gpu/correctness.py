"""Every kernel and path of an update and of generation on the device, against float64 on the CPU.

A row is a check: the error, the most it may be, and whether it was less. Errors are relative in the
Euclidean norm, the largest of values and gradients. A check that fails does not end the others.

Not here: several processes, vLLM, DeepSpeed, which such a machine does not have.
"""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from rlvr.learner.learner import Learner
from rlvr.learner.optimizer import AdamW
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.objective.regularisers.entropy import Entropy
from rlvr.policy.adapters import add_adapters
from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.model import Policy
from rlvr.policy.settings import LoraSettings
from rlvr.policy.token_stats import token_stats
from rlvr.policy.value_head import Critic
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling, draw
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.types import Batch
from tests.gpu.forms import adamw_moves, gradients_of, head_statistics, relative, worst
from tests.gpu.head import head_kernel
from tests.gpu.kit import SEED, Row, Setting, attempt
from tests.gpu.shapes import QWEN2, QWEN3, config_of, device_of, random_model
from tests.learner.batches import make_batch, policy_losses, regularisers

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
_HEAD = {FLOAT32: 1e-4, BFLOAT16: 2e-2}
_MODEL = {FLOAT32: 1e-4, BFLOAT16: 1e-1}
"""The most that an error may be: rounding of the dtype, times what layers and sums make of it."""
_SHAPE = {
    "vocab_size": 2048,
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "initializer_range": 0.05,
}
"""With a range in which predictions are far from uniform."""


LAYOUTS = {"padded": padded_inputs, "packed": packed_inputs}


class Check(NamedTuple):
    """What is compared, what gives the error, and the most it may be."""

    name: str
    error: Callable[[], float]
    most: float


def measure(setting: Setting) -> Iterator[Row]:
    """A row for each check."""
    for check in checks(setting, device_of()):
        began = time.perf_counter()
        row = attempt({"check": check.name, "most": check.most}, partial(_judged, check))
        yield row | {"seconds": time.perf_counter() - began}


def _judged(check: Check) -> Row:
    error = check.error()
    return {"error": error, "passed": error <= check.most}


def checks(setting: Setting, device: torch.device) -> Iterator[Check]:
    """All checks, those of kernels first."""
    yield from _head_checks(setting, device)
    yield from _model_checks(setting, device)
    for layout in LAYOUTS:
        yield Check(
            f"qwen3-0.6b with LoRA, {layout}, float32",
            partial(adapters_error, layout, setting, device),
            _MODEL[FLOAT32],
        )
        yield Check(
            f"critic, {layout}, float32",
            partial(critic_error, layout, setting, device),
            _MODEL[FLOAT32],
        )
    yield Check("AdamW, three clipped steps", partial(adamw_error, device), 1e-4)
    for loss in policy_losses():
        objective = partial(Objective, loss, (Entropy(coefficient=0.01),), TokenMean())
        name = f"updates, policy loss {loss.name}"
        yield Check(name, partial(update_error, objective, setting, device), 1e-3)
    for term in regularisers():
        objective = partial(Objective, Clip(), (term,), TokenMean())
        name = f"updates, regulariser {term.name}"
        yield Check(name, partial(update_error, objective, setting, device), 1e-3)
    yield Check("tokens drawn", partial(drawing_error, setting, device), 1e-3)
    for dtype, most in ((FLOAT32, 1e-5), (BFLOAT16, 5e-2)):
        error = partial(generation_error, dtype, setting, device)
        yield Check(f"log-probabilities of generated tokens, {_name(dtype)}", error, most)
    if device.type == "cuda":  # minutes on a CPU; tests/learner has it there
        error = partial(model_error, QWEN3, "padded", FLOAT32, setting, device, compiled=True)
        yield Check("qwen3-0.6b, padded, float32, compiled", error, _MODEL[FLOAT32])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _head_checks(setting: Setting, device: torch.device) -> Iterator[Check]:
    kernel = head_kernel(device)
    ways = {"chunks": chunked} | ({} if kernel is None else {"kernel": partial(fused, kernel)})
    for dtype in (FLOAT32, BFLOAT16):
        for temperature, bias in ((1.0, False), (0.7, True)):
            for name, way in ways.items():
                case = f"{_name(dtype)}, temperature {temperature}{', bias' if bias else ''}"
                error = partial(head_error, way, dtype, temperature, bias, setting, device)
                yield Check(f"head by {name}, {case}", error, _HEAD[dtype])


def chunked(hidden_ND, weight_VD, targets_N, temperature, bias_V, dtype):
    """The head in chunks, under autocast where the dtype is bfloat16."""
    with torch.autocast(hidden_ND.device.type, dtype=BFLOAT16, enabled=dtype == BFLOAT16):
        options = {"temperature": temperature, "bias_V": bias_V, "entropy": True}
        stats = token_stats(hidden_ND, weight_VD, targets_N, **options)
    return stats.logprobs_N, stats.entropy_N


def fused(kernel, hidden_ND, weight_VD, targets_N, temperature, bias_V, dtype):
    """The head by the kernel of ``rlvr/policy/head_kernel.py``."""
    return kernel.head_logprobs_and_entropy(
        hidden_ND.to(dtype), weight_VD, targets_N, temperature=temperature, bias_V=bias_V
    )


def head_error(way, dtype, temperature, bias, setting: Setting, device) -> float:
    """Log-probabilities, entropies and gradients of a head of a real model's size."""
    shape = setting.pick((40, 32, 300), (192, 1024, 151_936))
    leaves, targets, upstream, wanted = _head_case(dtype, temperature, bias, shape)
    own = {n: x.to(device).requires_grad_() for n, x in leaves.items() if x is not None}
    logprobs, entropy = way(
        own["hidden"], own["weight"], targets.to(device), temperature, own.get("bias"), dtype
    )
    upstream = upstream.to(device)
    loss = (upstream[0] * logprobs).sum() + (upstream[1] * entropy).sum()
    gradients = torch.autograd.grad(loss, list(own.values()))
    found = {"logprobs": logprobs, "entropy": entropy} | {
        f"gradient of {name}": gradient for name, gradient in zip(own, gradients, strict=True)
    }
    return worst(found, wanted)


@lru_cache(maxsize=1)  # one case serves all ways
def _head_case(dtype, temperature, bias, shape):
    """Inputs that the dtype holds exactly, and what float64 makes of them."""
    tokens, width, words = shape
    generator = torch.Generator().manual_seed(SEED)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).float()
    weight = torch.randn(words, width, generator=generator).mul_(2 / width**0.5).to(dtype).float()
    bias_V = torch.randn(words, generator=generator).to(dtype).float() if bias else None
    targets = torch.randint(words, (tokens,), generator=generator)
    upstream = torch.randn(2, tokens, generator=generator)
    wanted = head_statistics(hidden, weight, bias_V, targets, temperature, (*upstream,))
    leaves = {"hidden": hidden, "weight": weight, "bias": bias_V}
    return leaves, targets, upstream, {name: value.detach() for name, value in wanted.items()}


def _model_checks(setting: Setting, device: torch.device) -> Iterator[Check]:
    for family in (QWEN3, QWEN2, "qwen3_moe"):
        for layout in LAYOUTS:
            for dtype in (FLOAT32, BFLOAT16):
                if family == "qwen3_moe" and dtype == BFLOAT16:
                    continue  # rounding sends tokens to other experts
                for recompute in (False, True):
                    name = f"{family.lower()}, {layout}, {_name(dtype)}"
                    error = partial(model_error, family, layout, dtype, setting, device)
                    yield Check(
                        f"{name}, recomputed" if recompute else name,
                        partial(error, recompute=recompute),
                        _MODEL[dtype],
                    )


def _config(family: str, setting: Setting):
    changes = setting.pick({"initializer_range": 0.2}, _SHAPE)
    if family != "qwen3_moe":
        return config_of(family, tiny=setting.tiny, **changes)
    dense = config_of(QWEN3, tiny=setting.tiny, **changes).to_dict()
    from transformers import AutoConfig

    dense |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    kept = {k: v for k, v in dense.items() if k not in ("model_type", "architectures")}
    return AutoConfig.for_model("qwen3_moe", **kept, norm_topk_prob=True)


def _pair(config, device: torch.device, precision: str = "float32") -> tuple[Policy, Policy]:
    """The same random weights in float64 on the CPU, and on the device."""
    exact = random_model(config, torch.device("cpu"), torch.float64)
    if hasattr(config, "num_experts"):
        exact.set_experts_implementation("eager")  # the grouped product has no float64
    own = random_model(config, device)
    own.load_state_dict(exact.state_dict())
    return Policy(exact), Policy(own, precision)


def model_error(
    family, layout, dtype, setting: Setting, device, *, recompute=False, compiled=False
) -> float:
    """Log-probabilities, entropies and all gradients of a model."""
    exact, own = _pair(_config(family, setting), device, _name(dtype))
    if recompute:
        own.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    if compiled:
        own.compile_backbone()
    batch = make_batch([1.0, 0.0] * 6, seed=SEED, longest=setting.pick(9, 90))
    found = _statistics(own.train(), LAYOUTS[layout], batch)
    return worst(found, _statistics(exact, padded_inputs, batch))


def _statistics(policy: Policy, lay_out, batch: Batch) -> dict[str, torch.Tensor]:
    """By column, since layouts list tokens in orders of their own."""
    completions = batch.completion_ids
    inputs = lay_out(batch.prompt_ids, completions, range(len(batch))).to(policy.device)
    stats = policy(inputs, entropy=True)
    width = max(map(len, completions))
    logprobs_BT = inputs.scatter(stats.logprobs_N, width)
    entropy_BT = inputs.scatter(stats.entropy_N, width)
    generator = torch.Generator().manual_seed(SEED)
    weights = torch.randn(2, *logprobs_BT.shape, generator=generator).to(logprobs_BT)
    (weights[0] * logprobs_BT + weights[1] * entropy_BT).sum().backward()
    return {"logprobs": logprobs_BT, "entropy": entropy_BT, **gradients_of(policy.model)}


def adapters_error(layout: str, setting: Setting, device: torch.device) -> float:
    """The same with LoRA adapters that are not zero, whose gradients alone are taken."""
    batch = make_batch([1.0, 0.0] * 6, seed=SEED, longest=setting.pick(9, 90))
    pair = [_adapted(policy) for policy in _pair(_config(QWEN3, setting), device)]
    exact, own = (
        _statistics(policy, lay_out, batch)
        for policy, lay_out in zip(pair, (padded_inputs, LAYOUTS[layout]), strict=True)
    )
    return worst(own, exact)


def _adapted(policy: Policy) -> Policy:
    model = add_adapters(policy.causal_lm, LoraSettings(rank=4))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return Policy(model)


def critic_error(layout: str, setting: Setting, device: torch.device) -> float:
    """Values of a critic whose head is not zero, and all gradients."""
    batch = make_batch([1.0, 0.0] * 6, seed=SEED, longest=setting.pick(9, 90))
    prompts, completions = batch.prompt_ids, batch.completion_ids
    found = []
    layouts = (padded_inputs, LAYOUTS[layout])
    for policy, lay_out in zip(_pair(_config(QWEN3, setting), device), layouts, strict=True):
        critic = Critic(policy)
        with torch.no_grad():
            critic.head.weight.copy_(torch.linspace(-1, 1, critic.head.in_features)[None])
        inputs = lay_out(prompts, completions, range(len(batch))).to(device_of_module(critic))
        values_BT = inputs.scatter(critic(inputs), max(map(len, completions)))
        values_BT.square().sum().backward()
        found.append({"values": values_BT, **gradients_of(critic)})
    return worst(found[1], found[0])


def device_of_module(module: torch.nn.Module) -> torch.device:
    """Where its weights are."""
    return next(module.parameters()).device


def adamw_error(device: torch.device) -> float:
    """Weights after three steps of the learner's optimizer."""
    generator = torch.Generator().manual_seed(SEED)
    first = torch.randn(300, 200, generator=generator)
    gradients = [torch.randn(300, 200, generator=generator) for _ in range(3)]
    group = {"model": "policy", "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    weight = torch.nn.Parameter(first.clone().to(device))
    optimizer = AdamW([{**group, "params": [weight]}], FLOAT32)
    optimizer.factors["policy"] = 0.3
    for gradient in gradients:
        weight.grad = gradient.clone().to(device)
        optimizer.step()
    moved = adamw_moves(first, gradients, 0.3, group)
    return relative(weight.cpu() - first, moved - first.double())


def update_error(objective, setting: Setting, device: torch.device) -> float:
    """Metrics of the last of four steps of a tiny model, and how far its weights moved."""
    exact, own = (_updated(policy, objective()) for policy in _pair(_small(), device))
    return worst(own, exact)


def _small():
    return config_of(QWEN3, tiny=True, num_hidden_layers=1, initializer_range=0.1)


def _updated(policy: Policy, objective: Objective) -> dict[str, torch.Tensor]:
    """Two rollouts of two updates each: in the second the ratio to the old policy is not 1.

    AdamW's epsilon is large beside rounding, which would decide the sign of a step otherwise.
    """
    before = _weights(policy)
    rates = {"lr": 1e-2, "epsilon": 1e-3, "updates_per_rollout": 2}
    settings = LearnerSettings.model_validate(rates)
    reference = _reference(policy) if objective.needs_reference else None
    learner = Learner(policy, objective, settings, temperature=0.9, reference=reference)
    for step in range(2):
        batch = make_batch([1.0, 0.0, 0.3, 0.8] * 3, seed=step, dtype=policy.compute_dtype)
        metrics = learner.update(batch)
    names = ("policy/loss", "policy/entropy", "learner/grad_norm")
    found = {name: torch.tensor(metrics[name], dtype=torch.float64) for name in names}
    return found | {"moved": _weights(policy) - before}


def _reference(policy: Policy) -> Policy:
    """A frozen model that is near the policy's first weights."""
    model = random_model(_small(), torch.device("cpu"), torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    return Policy(model.to(policy.device, policy.compute_dtype)).requires_grad_(False)


def _weights(policy: Policy) -> torch.Tensor:
    weights = policy.model.parameters()
    return torch.cat([weight.detach().double().flatten().cpu() for weight in weights])


def drawing_error(setting: Setting, device: torch.device) -> float:
    """The share of rows in which another token is drawn than in float64 from the same numbers."""
    rows, words = setting.pick((64, 500), (512, 151_936))
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(rows, words, generator=generator) * 2
    uniforms = torch.rand(rows, generator=generator, dtype=torch.float64)
    sampling = Sampling(temperature=0.8)
    tokens, _ = draw(logits.to(device), uniforms.to(device), sampling)
    cumulative = torch.softmax(logits.double() / 0.8, -1).cumsum(-1)
    wanted = torch.searchsorted(cumulative, uniforms[:, None], right=True)[:, 0]
    return float((tokens.cpu() != wanted).double().mean())


def generation_error(dtype: torch.dtype, setting: Setting, device: torch.device) -> float:
    """Log-probabilities that the engine records of what it samples."""
    exact, own = _pair(_config(QWEN3, setting), device, _name(dtype))
    requests = [Request(tuple(range(3, 5 + 7 * n)), (n, n + 100)) for n in range(1, 5)]
    engine = TransformersEngine(own, [])
    engine.sync(own, 0)
    samples = engine.generate(requests, Sampling(max_tokens=setting.pick(6, 48), temperature=0.9))
    prompts = [request.prompt_ids for request in requests for _ in request.seeds]
    flat = [sample for group in samples for sample in group]
    inputs = padded_inputs(prompts, [sample.token_ids for sample in flat], range(len(flat)))
    with torch.no_grad():
        stats = exact(inputs, temperature=0.9)
    width = max(len(sample.token_ids) for sample in flat)
    found = torch.tensor([sample.logprobs for sample in flat], dtype=torch.float64)
    return relative(found, inputs.scatter(stats.logprobs_N, width))
