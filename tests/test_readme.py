"""What README.md says runs: blocks marked for CI in .ci/run, others here, with a small model."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import call

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^(?:<!-- ci: (\w+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = (
    "steps=1",
    "data.template=plain",
    "data.source.size=8",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "rollout.sampling.max_tokens=4",
    "evaluation.sets={}",
)


def commands():
    """Of blocks that .ci/run leaves out, in order, word by word."""
    texts = [
        text for mark, language, text in BLOCK.findall(README) if language == "bash" and not mark
    ]
    lines = "".join(texts).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: the recipes, and problems of their own."""
    for name in ("recipes", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    row = {"problem": "2+2=", "answer": "4"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ci_runs_the_marked_blocks():
    script = (ROOT / ".ci" / "run").read_text()
    marks = {mark for mark, *_ in BLOCK.findall(README) if mark}
    assert marks == {"install", "quickstart", "python", "tests"}
    assert all(re.search(rf"\brun {mark}\b", script) for mark in marks)


def test_every_command_of_rlvr_runs(folder, guessing_folder):
    ran = 0
    for words in commands():
        if words[0] != "rlvr":
            continue
        small = SMALL if words[1] == "train" and "--dry-run" not in words else ()
        model = [f"model.path={guessing_folder}"] if words[1] == "train" else []
        done = call(*words[1:], *model, *small)
        assert done.returncode == 0, (words, done.stderr)
        ran += 1
    assert ran == 3
    assert (folder / "runs" / "smollm2-arithmetic" / "report.html").is_file()


def test_nothing_else_is_left_out():
    assert {words[0] for words in commands()} == {"rlvr", "accelerate"}


@pytest.mark.deepspeed
def test_the_launch_with_zero2_trains(folder, guessing_folder):
    (words,) = [words for words in commands() if words[0] == "accelerate"]
    program = str(Path(sys.executable).parent / words[0])
    command = [program, *words[1:], f"model.path={guessing_folder}", *SMALL]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "runs" / "smollm2-arithmetic" / "model").is_dir()


def test_python_is_python():
    (text,) = [text for _, language, text in BLOCK.findall(README) if language == "python"]
    compile(text, "README.md", "exec")
