"""Small recipes on a tiny model that has mixed groups from the start."""

import json
from pathlib import Path

import pytest
import torch

from rlvr.learner import Learner, LearnerSettings
from rlvr.objective import Objective, Reinforce, TokenMean
from rlvr.policy import ModelSettings, export_policy, load_policy, load_tokenizer
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.types import Batch


@pytest.fixture(scope="session")
def guessing_folder(tmp_path_factory) -> Path:
    r"""A tiny model that answers every sum of digits with a box around a random digit or two."""
    folder = tmp_path_factory.mktemp("guessing") / "model"
    write_tiny_model(folder, 0, TinySettings(hidden_size=32, layers=1, heads=2, key_value_heads=2))
    model = ModelSettings(path=str(folder))
    policy, tokenizer = load_policy(model), load_tokenizer(model)
    learner = Learner(policy, Objective(Reinforce(), (), TokenMean()), LearnerSettings(lr=5e-3))
    texts = [f"\\boxed{{{value}}}" for value in range(19)]
    completions = tuple((*ids, 2) for ids in tokenizer(texts)["input_ids"])
    prompts = [(1, *tokenizer(f"{v % 10}+{v // 2}=")["input_ids"]) for v in range(19)]
    mask = torch.zeros(19, max(map(len, completions)))
    for row, ids in enumerate(completions):
        mask[row, : len(ids)] = 1
    batch = Batch(
        prompt_ids=tuple(prompts),
        completion_ids=completions,
        group_index_B=torch.arange(19),
        rewards_B=torch.ones(19),
        advantages_BT=mask,
        mask_BT=mask,
        rollout_logprobs_BT=mask * 0,
    )
    for _ in range(40):
        learner.update(batch)
    export_policy(policy, folder)
    return folder


@pytest.fixture
def recipe_values(guessing_folder, tmp_path) -> dict:
    """A recipe of six steps, as a mapping."""
    source = {"name": "arithmetic", "digits": 1, "size": 60}
    return {
        "output": str(tmp_path / "run"),
        "steps": 6,
        "model": {"path": str(guessing_folder)},
        "data": {"source": source, "template": "plain", "max_prompt_tokens": 16},
        "rollout": {
            "prompts_per_step": 6,
            "samples_per_prompt": 6,
            "sampling": {"max_tokens": 8},
        },
        "learner": {"lr": 3e-3, "updates_per_rollout": 2},
        "regularisers": [{"name": "kl", "coefficient": 0.01}],
        "evaluation": {
            "every": 2,
            "sets": {"held_out": {**source, "size": 12, "split": "held_out"}},
        },
        "checkpoint": {"every": 2, "keep": 2},
    }


@pytest.fixture
def preference_values(guessing_folder, tmp_path):
    """Single digit sums: the right box against the box of another number."""
    rows = [
        {
            "prompt": f"{a}+{b}=",
            "chosen": f"\\boxed{{{a + b}}}",
            "rejected": f"\\boxed{{{(a + b + 3) % 19}}}",
        }
        for a in range(10)
        for b in range(10)
    ]
    labelled = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    for name, content in (("pairs", rows), ("labelled", labelled)):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{name}.jsonl").write_text(text)
    pairs = {"name": "file", "path": str(tmp_path / "pairs.jsonl")}
    problems = {"name": "arithmetic", "digits": 1, "size": 20}
    return {
        "task": "preference",
        "output": str(tmp_path / "run"),
        "steps": 6,
        "model": {"path": str(guessing_folder)},
        "data": {"source": pairs, "per_step": 20},
        "losses": [{"name": "sigmoid"}],
        "learner": {"lr": 3e-3},
        "evaluation": {
            "every": 3,
            "pairs": {"held_out": {**pairs, "limit": 30}},
            "sets": {"sums": problems},
            "sampling": {"max_tokens": 8, "temperature": 0.0},
        },
        "checkpoint": {"every": 2, "keep": 4},
    }
