"""Where torch, transformers and a few others are all there is, the learner runs all the same.

A machine that is lent with a GPU has its own packages and no network: every package of this
environment that they do not need is made unimportable, so that no import of ours asks for more.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THERE = ("torch", "transformers", "accelerate", "peft", "pydantic", "rich", "psutil", "triton")
"""They and what they need; pydantic is brought along (tests/gpu/prepare.py)."""

PROGRAM = """
import sys

blocked = {blocked!r}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, *more)

sys.meta_path[:] = map(Without, sys.meta_path)

import pathlib
import rlvr, reward, eval
from tests.gpu import correctness, generation, head, machine, part, profile, step, updates
from tests.gpu.kit import Setting

setting = Setting(tiny=True, out=pathlib.Path({out!r}), deadline=float("inf"))
case = updates.Case("Qwen3-0.6B", "groups", 64)
rows = [updates.one_update(setting, case), *step.measure(setting)]
assert not blocked & {{name.partition(".")[0] for name in sys.modules}}

import json
print(json.dumps(rows))
"""


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(names):
    """The distributions that these need, as far as they are installed, themselves included."""
    found, left = set(), [*names]
    while left:
        name = canonical(left.pop())
        if name in found:
            continue
        try:
            asked = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        left += [re.match(r"[\w.-]+", line)[0] for line in asked if "extra ==" not in line]
    return found


def blocked_modules():
    kept = needed(THERE)
    ours = {"rlvr", "reward", "eval", "launch"}
    return {
        module
        for module, owners in packages_distributions().items()
        if module not in ours and not kept & {canonical(owner) for owner in owners}
    }


@pytest.mark.slow
def test_two_updates_and_two_grpo_steps_need_no_more_than_a_bare_machine_has(tmp_path):
    blocked = blocked_modules()
    assert {"deepspeed", "trl", "datasets", "math_verify", "gguf", "matplotlib"} <= blocked
    assert not blocked & {"torch", "transformers", "pydantic", "numpy", "yaml", "safetensors"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    program = PROGRAM.format(blocked=blocked, out=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    update, *steps = json.loads(done.stdout.splitlines()[-1])
    assert update["tokens_per_second"] > 0
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["grad_norm"] > 0 and row["reward_std"] > 0 for row in steps)
