"""Tokenizers of the usual kinds."""

import pytest

from tests.data.byte_tokenizers import CHATML, WITH_BEGIN, build


@pytest.fixture
def chatml():
    """No begin token anywhere, as in Qwen and SmolLM2."""
    return build(CHATML)


@pytest.fixture
def llama_style():
    """The tokenizer begins texts with <s>, and the chat template writes it too."""
    return build(WITH_BEGIN, "<s> $A")


@pytest.fixture
def base():
    """Begins texts with <s>, and has no chat template."""
    return build(None, "<s> $A")
