"""Two tiny models that disagree, in float64 throughout."""

import pytest
import torch

from rlvr.distill.job import Job
from rlvr.policy.tiny import TinySettings, build_tiny_model, character_tokenizer


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
def jobs():
    generator = torch.Generator().manual_seed(0)
    found = []
    for problem in range(6):
        length = int(torch.randint(1, 9, (), generator=generator))
        prompt = tuple(torch.randint(5, 60, (length,), generator=generator).tolist())
        found += [Job(f"p{problem}", sample, prompt, prompt) for sample in range(4)]
    return found
