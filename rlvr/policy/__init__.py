"""The model as a function: loading, token statistics, micro-batches."""

from rlvr.policy.batching import (
    ModelInputs,
    packed_inputs,
    padded_inputs,
    plan_packed,
    plan_padded,
)
from rlvr.policy.long import chunked_logprobs
from rlvr.policy.model import (
    LoraSettings,
    ModelSettings,
    Policy,
    Precision,
    default_device,
    end_token_ids,
    evaluating,
    export_policy,
    load_causal_lm,
    load_policy,
    load_tokenizer,
    packing_is_exact,
    policy_writer,
    save_policy,
    stop_token_ids,
)
from rlvr.policy.proxy import ProxyRequest, ProxyRows
from rlvr.policy.responses import response_logprobs
from rlvr.policy.routers import Routers, Routing, RoutingRequest, replayed, sequence_positions
from rlvr.policy.token_stats import TokenStats, token_stats
from rlvr.policy.value_head import Critic, critic_writer, load_critic, module_writer

__all__ = [
    "Critic",
    "LoraSettings",
    "ModelInputs",
    "ModelSettings",
    "Policy",
    "Precision",
    "ProxyRequest",
    "ProxyRows",
    "Routers",
    "Routing",
    "RoutingRequest",
    "TokenStats",
    "chunked_logprobs",
    "critic_writer",
    "default_device",
    "end_token_ids",
    "evaluating",
    "export_policy",
    "load_causal_lm",
    "load_critic",
    "load_policy",
    "load_tokenizer",
    "module_writer",
    "packed_inputs",
    "packing_is_exact",
    "padded_inputs",
    "plan_packed",
    "plan_padded",
    "policy_writer",
    "replayed",
    "response_logprobs",
    "save_policy",
    "sequence_positions",
    "stop_token_ids",
    "token_stats",
]
