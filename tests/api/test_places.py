"""Where programs run that call rlvr.train: notebooks, pipes, scripts without a guard, threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

import rlvr

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.ipynb"))
SETUP = """
import rlvr

rows = [{"problem": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
small = {
    "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "sampling.max_tokens": 6},
    "learner": {"lr": 1e-3},
}


def digits(item):
    return sum(letter.isdigit() for letter in item.response) / max(1, len(item.response))
"""
PROGRAM = f"""
import sys
import rlvr

assert "torch" not in sys.modules
{SETUP}
run = rlvr.train("model", rows, rewards=[digits], steps=1, **small)
print("done", len(run.completions()))
"""


def outputs(cell):
    """Of a cell, as text; HTML where there is some."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        found.append(output.get("text") or data.get("text/html") or data.get("text/plain", ""))
    return "\n".join(found)


def execute(cells, folder):
    """Run a notebook in a kernel of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=path).execute()
    return [outputs(cell) for cell in notebook.cells]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_kernel_trains_is_interrupted_and_goes_on(guessing_folder, folder):
    train = "rlvr.train(model, rows, rewards=[digits], output='out', **small, {})"
    found = execute(
        [
            SETUP + f"model = {str(guessing_folder)!r}",
            "import asyncio, os, signal\n"
            "assert asyncio.get_running_loop().is_running()\n"
            "def press(step, metrics):\n    if step == 2: os.kill(os.getpid(), signal.SIGINT)\n"
            f"try:\n    {train.format('steps=9, callbacks=[press]')}\n"
            "except KeyboardInterrupt as stop:\n    print('interrupted:', stop)",
            train.format("steps=3, resume=True"),
            "run = rlvr.load('out')\n"
            "print(run.metrics.index.tolist(), rlvr.grade(['\\\\boxed{4}'], ['4'])[0].correct)\n"
            "run.report()",
            "import threading\n"
            "thread = threading.Thread(target=lambda: rlvr.train(model, rows, steps=1, **small))\n"
            "thread.start(); thread.join()\n"
            "print(rlvr.load('runs/model-rl'))",
        ],
        folder,
    )
    assert "<progress" in found[1]
    assert "interrupted: the run in 'out' was interrupted; go on with resume=True" in found[1]
    assert "resuming after step 2" in found[2]
    assert "3 steps, finished" in found[2]
    assert "[1, 2, 3] True" in found[3]
    assert "<iframe srcdoc=" in found[3]
    assert "1 steps, finished" in found[4]


@pytest.mark.parametrize(
    ("start", "command"),
    [
        ("-", "python -"),
        pytest.param("-c", "rlvr.train(...)", marks=pytest.mark.slow),
        pytest.param("go.py", "python go.py", marks=pytest.mark.slow),
    ],
)
def test_programs_from_a_pipe_a_line_and_a_file_without_a_guard(
    start, command, guessing_folder, folder
):
    (folder / "model").symlink_to(guessing_folder)
    (folder / "go.py").write_text(PROGRAM)
    words = [start, PROGRAM] if start == "-c" else [start]
    done = subprocess.run(
        [sys.executable, *words],
        input=PROGRAM if start == "-" else None,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 1/1  reward" in done.stdout
    assert done.stdout.endswith("done 16\n")
    written = json.loads((folder / "runs" / "model-rl" / "run.json").read_text())["command"]
    assert " ".join(written) == command


@pytest.mark.parametrize(
    "path",
    TUTORIALS,
    ids=lambda path: path.stem,
)
@pytest.mark.slow
def test_a_tutorial_runs_and_holds_its_outputs(path, folder):
    notebook = nbformat.read(path, as_version=4)
    assert len(path.read_bytes()) < 100_000
    held = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert len(held) >= 4
    execute([cell.source for cell in notebook.cells if cell.cell_type == "code"], folder)


def test_there_are_tutorials():
    assert [path.stem for path in TUTORIALS] == ["first_run", "own_loss", "own_reward"]


@pytest.mark.slow
def test_two_processes_make_one_run(guessing_folder, folder):
    (folder / "model").symlink_to(guessing_folder)
    ended = "callbacks=[lambda step, metrics: print('rank', os.environ['RANK']) or step == 2]"
    program = PROGRAM.replace("steps=1", f"steps=9, output='out', {ended}")
    (folder / "go.py").write_text(f"import os\n{program}")
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "go.py"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rank 0\n") == 2
    assert "rank 1" not in done.stdout
    assert done.stdout.count("done 32\n") == 2


def test_a_class_of_the_notebook_itself_is_refused_with_what_to_do(guessing_folder, rows):
    from rlvr.objective.policy_losses.cispo import Cispo

    own = type("Own", (Cispo,), {"__module__": "__main__"})()
    with pytest.raises(ValueError, match=r"%%writefile mine.py\) and give .*mine.py:Own"):
        rlvr.train(guessing_folder, rows, policy_loss=own, steps=1)
