"""Fixtures shared by all rooms."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# The tests' models are tiny: a second thread gains nothing and suffers on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports Triton: without a GPU, kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if TYPE_CHECKING:
    from rlvr.policy.model import Policy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A bound on a time holds in one of three tries: a busy machine is no fault of the code."""
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Each test begins as if it were the first: environment, accelerate's state, torch's draws."""
    before = dict(os.environ)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"]
        for kind in (state.PartialState, state.AcceleratorState, state.GradientState):
            kind._shared_state.clear()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of specifications and data that may stand beside the checkout."""
    folder = Path(
        os.environ.get("RLVR_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared")
    )
    if not folder.is_dir():
        pytest.skip("the folder of shared data is not beside this checkout (or at RLVR_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised tiny Llama with grouped-query attention, as a folder."""
    from rlvr.policy.tiny import TinySettings, write_tiny_model

    folder = tmp_path_factory.mktemp("tiny") / "model"
    shape = TinySettings(hidden_size=32, layers=2, heads=4, key_value_heads=2)
    write_tiny_model(folder, seed=0, settings=shape)
    return folder


@pytest.fixture(scope="session")
def exact_policy(tiny_folder: Path) -> "Policy":
    """The tiny model in float64 throughout.

    transformers' RMSNorm computes in float32 whatever the weights are, which would hide rounding
    of 1e-8 in gradients; torch's own computes in the dtype it is given.
    """
    import torch

    from rlvr.policy.loading import load_policy
    from rlvr.policy.settings import ModelSettings

    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    for parent in list(policy.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__ == "LlamaRMSNorm":
                exact = torch.nn.RMSNorm(norm.weight.shape[0], norm.variance_epsilon)
                exact.weight = norm.weight
                setattr(parent, name, exact)
    return policy.double()


@pytest.fixture(scope="session")
def mixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised tiny mixture of experts, as a folder."""
    from rlvr.policy.tiny import TinySettings, write_tiny_model

    folder = tmp_path_factory.mktemp("mixture") / "model"
    shape = TinySettings(
        hidden_size=32, layers=2, heads=4, key_value_heads=2, experts=6, expert_size=24
    )
    write_tiny_model(folder, seed=0, settings=shape)
    return folder


@pytest.fixture
def mixture(mixture_folder: Path) -> "Policy":
    """The tiny mixture in float64, its routers moved away from their small first weights."""
    import torch

    from rlvr.policy.loading import load_policy
    from rlvr.policy.routers import router_modules
    from rlvr.policy.settings import ModelSettings

    policy = load_policy(ModelSettings(path=str(mixture_folder))).double()
    policy.causal_lm.set_experts_implementation("eager")  # the grouped product has no float64
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for router in router_modules(policy.causal_lm.model):
            router.weight.copy_(0.5 * torch.randn(router.weight.shape, generator=generator))
    return policy


@pytest.fixture(scope="session")
def guessing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""A tiny model that answers every sum of digits with a box around a random digit or two."""
    import torch

    from rlvr.learner.learner import Learner
    from rlvr.learner.settings import LearnerSettings
    from rlvr.objective.objective import Objective
    from rlvr.objective.policy_losses.reinforce import Reinforce
    from rlvr.objective.reducers import TokenMean
    from rlvr.policy.loading import load_policy, load_tokenizer
    from rlvr.policy.saving import export_policy
    from rlvr.policy.settings import ModelSettings
    from rlvr.policy.tiny import TinySettings, write_tiny_model
    from rlvr.types import Batch

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
    from tests.training import small_recipe

    return small_recipe(guessing_folder, tmp_path / "run")


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
