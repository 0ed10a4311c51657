"""Fixtures shared by all rooms."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The tests' models are tiny: a second thread gains nothing and suffers on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from rlvr.policy import Policy


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

    from rlvr.policy import ModelSettings, load_policy

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

    from rlvr.policy import ModelSettings, load_policy
    from rlvr.policy.routers import router_modules

    policy = load_policy(ModelSettings(path=str(mixture_folder))).double()
    policy.causal_lm.set_experts_implementation("eager")  # the grouped product has no float64
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for router in router_modules(policy.causal_lm.model):
            router.weight.copy_(0.5 * torch.randn(router.weight.shape, generator=generator))
    return policy
