"""Two tiny models that disagree, in float64 throughout."""

import pytest
import torch

from rlvr.distill.recipe import DistillRecipe
from rlvr.distill.trace_request import TraceRequest
from rlvr.policy.tiny import (
    TinySettings,
    build_tiny_model,
    character_tokenizer,
    write_tiny_model,
)
from rlvr.settings import load_settings


def exact_model(seed, vocabulary, sharpness=6.0, **shape):
    """A tiny Llama in float64; ``sharpness`` makes its random opinions strong."""
    settings = TinySettings(
        **{"hidden_size": 32, "layers": 2, "heads": 4, "key_value_heads": 2} | shape
    )
    model = build_tiny_model(seed, vocabulary, settings).eval()
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__ == "LlamaRMSNorm":
                exact = torch.nn.RMSNorm(norm.weight.shape[0], norm.variance_epsilon)
                exact.weight = norm.weight
                setattr(parent, name, exact)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(sharpness)
    return model.double()


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="session")
def teacher(tokenizer):
    return exact_model(1, len(tokenizer))


@pytest.fixture(scope="session")
def student(tokenizer):
    return exact_model(2, len(tokenizer), hidden_size=24, layers=1)


@pytest.fixture(scope="session")
def requests():
    generator = torch.Generator().manual_seed(0)
    found = []
    for problem in range(6):
        length = int(torch.randint(1, 9, (), generator=generator))
        prompt = tuple(torch.randint(5, 60, (length,), generator=generator).tolist())
        found += [TraceRequest(f"p{problem}", sample, prompt, prompt) for sample in range(4)]
    return found


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of a teacher and a student, random and small."""
    root = tmp_path_factory.mktemp("models")
    shapes = {"teacher": (1, {}), "student": (2, {"hidden_size": 24, "layers": 1})}
    for name, (seed, shape) in shapes.items():
        settings = TinySettings(
            **{"hidden_size": 32, "layers": 2, "heads": 4, "key_value_heads": 2} | shape
        )
        write_tiny_model(root / name, seed, settings)
    return root


@pytest.fixture
def recipe(models, tmp_path):
    """The values of a small recipe; a function takes what differs."""

    def make(**changes):
        values = {
            "task": "distill",
            "output": str(tmp_path / "traces"),
            "seed": 3,
            "teacher": {"path": str(models / "teacher")},
            "student": {"path": str(models / "student")},
            "data": {
                "source": {"name": "arithmetic", "digits": 1, "size": 5},
                "template": "plain",
            },
            "samples": 4,
            "max_tokens": 24,
            "acceptance_rule": {"threshold": 0.012, "draws": 2},
            "engine": {"name": "transformers", "rows": 8},
        }
        return load_settings(DistillRecipe, {**values, **changes})

    return make
