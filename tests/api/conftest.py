"""A folder of its own for each test, as programs write to runs/ of where they stand."""

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rows():
    """Sums of digits, with a column for the reward functions."""
    return [
        {"problem": f"{a}+{b}=", "answer": str(a + b), "first": a}
        for a in range(5)
        for b in range(4)
    ]


@pytest.fixture
def small():
    """Settings of a run that takes a second."""
    return {
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "sampling": {"max_tokens": 6}},
        "learner": {"lr": 3e-3},
        "progress": False,
    }
