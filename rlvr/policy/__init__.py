"""The model as a function: loading, token statistics, micro-batches."""

from rlvr.policy.batching import (
    ModelInputs,
    packed_inputs,
    padded_inputs,
    plan_packed,
    plan_padded,
)
from rlvr.policy.model import (
    LoraSettings,
    ModelSettings,
    Policy,
    Precision,
    default_device,
    end_token_ids,
    evaluating,
    export_policy,
    load_policy,
    load_tokenizer,
    packing_is_exact,
    policy_writer,
    save_policy,
    stop_token_ids,
)
from rlvr.policy.proxy import ProxyRequest, ProxyRows
from rlvr.policy.token_stats import TokenStats, token_stats
from rlvr.policy.value_head import Critic, critic_writer, load_critic

__all__ = [
    "Critic",
    "LoraSettings",
    "ModelInputs",
    "ModelSettings",
    "Policy",
    "Precision",
    "ProxyRequest",
    "ProxyRows",
    "TokenStats",
    "critic_writer",
    "default_device",
    "end_token_ids",
    "evaluating",
    "export_policy",
    "load_critic",
    "load_policy",
    "load_tokenizer",
    "packed_inputs",
    "packing_is_exact",
    "padded_inputs",
    "plan_packed",
    "plan_padded",
    "policy_writer",
    "save_policy",
    "stop_token_ids",
    "token_stats",
]
