"""A grid of runs: what is split, what is refused, what is skipped, and what is found."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from rlvr.runs.log import read_metrics
from rlvr.sweep.grid import plan_sweep, split_values
from rlvr.sweep.local import command_of
from rlvr.sweep.state import run_state
from tests.command import call, refused
from tests.training import column


@pytest.fixture
def recipe(recipe_values, tmp_path):
    """Two short steps; a model that is reached from everywhere."""
    values = {**recipe_values, "steps": 2, "output": "unused"}
    values["rollout"] = {**values["rollout"], "prompts_per_step": 2, "samples_per_prompt": 3}
    values["evaluation"]["sets"]["held_out"]["size"] = 4
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def compared(monkeypatch):
    """The folders that the comparison page was asked for; the page itself is the report's."""
    found = []

    def write_comparison(folders, out):
        found.append([folder.name for folder in folders])
        out.write_text("page")
        return out

    monkeypatch.setattr("rlvr.report.write_comparison", write_comparison, raising=False)
    return found


@pytest.fixture
def in_process(monkeypatch):
    """Have the runs trained in this process: interpreters take long to start."""

    def train(sweep, run, seen):
        log = run.folder / "launch" / "sweep.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        done = call(*command_of(sweep, run)[3:])
        log.write_text(done.stdout + done.stderr)
        return done.returncode

    monkeypatch.setattr("rlvr.sweep.local._train", train)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0,1,2", (0, 1, 2)),
        ("1e-5, 3e-5", (1e-5, 3e-5)),
        ("mean,sum", ("mean", "sum")),
        ("5", ("5",)),
        ("[{name: a}, {name: b}]", ("[{name: a}, {name: b}]",)),
        ("[{name: a}],[{name: b}]", ([{"name": "a"}], [{"name": "b"}])),
        ("null,{rank: 4, alpha: 8}", (None, {"rank": 4, "alpha": 8})),
        ('"a,b"', ('"a,b"',)),
        ("'a,b',c", ("a,b", "c")),
        ("true,false", (True, False)),
        ("", ("",)),
        ("{broken", ("{broken",)),
    ],
)
def test_commas_between_values_count(text, values):
    assert split_values(text) == values


def test_folders_are_named_by_what_differs(recipe, tmp_path):
    words = [
        "policy_loss.name=clip,gspo",
        "seed=0,1",
        "learner.lr=1e-4",
        "model.lora=null,{rank: 2}",
    ]
    sweep = plan_sweep(recipe, words, tmp_path / "out")
    names = [run.name for run in sweep.runs]
    assert names[:3] == [
        "policy_loss=clip,seed=0,lora=null",
        "policy_loss=clip,seed=1,lora=null",
        "policy_loss=clip,seed=0,lora=rank-2",
    ]
    assert len(set(names)) == 8
    last = sweep.runs[-1].recipe
    assert (last.policy_loss.name, last.seed, last.learner.lr) == ("gspo", 1, 1e-4)
    assert last.model.lora.rank == 2
    assert last.output == tmp_path / "out" / names[-1]
    two = plan_sweep(recipe, ["learner.schedule.shape=linear,cosine", "learner.lr=1,2"], tmp_path)
    assert two.runs[0].name == "shape=linear,lr=1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["learner.lr=1e-5,fast"], "lr=fast: "),
        (["learner.lt=1,2"], "did you mean 'lr'"),
        (["seed=0,0"], "holds 0 twice"),
        (["seed=0,1", "seed=2"], "'seed' is given twice"),
        (["output=a,b"], "a sweep gives every run a folder in --out"),
        (["seed"], "is not of the form key.sub=value"),
        (["policy_loss.name=clip,clop"], "unknown name 'clop'"),
        (["model.path=./no,./none"], "path=no: "),
        (["data.source.size=60,0"], "size=0: "),
    ],
)
def test_a_combination_that_cannot_be_is_refused_before_anything_starts(
    recipe, tmp_path, words, said
):
    line = refused("sweep", recipe, *words, "--out", "out", folder=tmp_path)
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_grid_is_run_skipped_and_summed_up(recipe, tmp_path, compared, in_process):
    """Also where one of the runs fails: the others go on."""
    (tmp_path / "mine.py").write_text(
        "import os\n\n\ndef broken(item):\n"
        "    if 'BREAK' in os.environ and item.max_tokens < 8 < 8 * item.step:\n"
        "        raise ValueError('mended later')\n"
        "    return 0.0\n"
    )
    words = [
        "seed=0,1",
        "rollout.sampling.max_tokens=8,7",
        "reward.functions=[{function: mine.py:broken}]",
    ]
    command = ["sweep", recipe, *words, "--out", "out"]
    listed = call(*command, "--dry-run", folder=tmp_path)
    assert listed.stdout.count(": 2 steps, new") == 4
    assert "4 runs, 8 steps altogether, 8 of them left" in listed.stdout
    assert not (tmp_path / "out").exists()
    done = call(*command, folder=tmp_path, environment={"BREAK": "1"})
    assert done.returncode == 1
    assert done.stdout.count("done in") == 2
    assert done.stdout.count("failed after") == 2
    assert "2 of 4 runs failed: seed=0,max_tokens=7, seed=1,max_tokens=7" in done.stdout
    assert "mended later" in (tmp_path / "out/seed=0,max_tokens=7/launch/sweep.log").read_text()
    good = tmp_path / "out" / "seed=0,max_tokens=8"
    before = (good / "metrics.jsonl").read_bytes()
    done = call(*command, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished before") == 2
    assert (good / "metrics.jsonl").read_bytes() == before
    # The failed ones have finished a step.
    assert compared == [[f"seed={s},max_tokens={m}" for m in (8, 7) for s in (0, 1)]] * 2
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())["combinations"]
    assert [item["settings"] for item in found] == [
        {"rollout.sampling.max_tokens": 8},
        {"rollout.sampling.max_tokens": 7},
    ]
    lengths = [
        column(read_metrics(tmp_path / "out" / name / "metrics.jsonl"), "completion/length_mean")[
            -1
        ]
        for name in found[0]["runs"]
    ]
    figure = found[0]["metrics"]["completion/length_mean"]
    assert figure == {"mean": mean(lengths), "std": stdev(lengths), "runs": 2}
    with (tmp_path / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    own = [row for row in rows if row["metric"] == "completion/length_mean"]
    assert [row["rollout.sampling.max_tokens"] for row in own] == ["8", "7"]
    assert float(own[0]["std"]) == stdev(lengths)
    assert "eval/held_out/accuracy" in done.stdout
    assert "±" in done.stdout
    collected = call(*command, "--collect", folder=tmp_path)
    assert collected.stdout.strip() in done.stdout
    # More steps go on from what is there; another setting is not the same sweep.
    listed = call(*command, "steps=4", "--dry-run", folder=tmp_path)
    assert listed.stdout.count("4 steps, goes on after step 2") == 4
    line = refused(*command, "learner.lr=1e-4", folder=tmp_path)
    assert "learner.lr was 0.003 and is 0.0001" in line


@pytest.mark.slow
def test_ctrl_c_saves_the_run_in_progress_for_the_same_command_to_go_on(recipe, tmp_path):
    """As a process of its own in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    program = Path(sys.executable).parent / "rlvr"
    command = ["sweep", str(recipe), "seed=0,1", "steps=400", "--out", "out"]
    process = subprocess.Popen(
        [program, *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = folder / "out" / "seed=0" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and not metrics.exists():
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "[1/2] seed=0: stopped; the same command goes on" in said
    assert not (folder / "out" / "seed=1").exists()
    sweep = plan_sweep(recipe, ["seed=0,1", "steps=400"], folder / "out")
    assert 0 < run_state(sweep.runs[0]).done < 400
    assert not (folder / "out" / "seed=0" / "run.lock").exists()


def test_epochs_are_counted(guessing_folder, tmp_path):
    rows = [{"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "sft",
        "output": "x",
        "epochs": 2,
        "model": {"path": str(guessing_folder)},
        "data": {"sources": [str(tmp_path / "rows.jsonl")], "per_step": 4},
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(values))
    done = call("sweep", "sft.yaml", "data.per_step=4,5", "--dry-run", folder=tmp_path)
    assert "sweeps/sft/per_step=4: 6 steps, new" in done.stdout
    assert "2 runs, 10 steps altogether, 10 of them left" in done.stdout


def test_nothing_to_collect_is_said(recipe, tmp_path):
    line = refused("sweep", recipe, "seed=0,1", "--collect", folder=tmp_path)
    assert "no run in 'sweeps/recipe' has begun" in line


def test_a_slurm_array_has_a_task_for_each_run_that_is_left(recipe, tmp_path, monkeypatch):
    from launch.settings import load_launch
    from rlvr.sweep.array import build_jobs, render_array

    monkeypatch.delenv("RLVR_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    sweep = plan_sweep(recipe, ["seed=0,1,2"], Path("out"))
    settings = load_launch({"gpus_per_node": 0}, None, {"partition": "p"})
    jobs = build_jobs(sweep, sweep.runs, settings)
    assert [job.settings.main_port for job in jobs] == [29500, 29501, 29502]
    script = render_array(jobs, tmp_path / "out" / "launch", 2)
    assert "#SBATCH --array=0-2%2\n" in script
    assert "#SBATCH --partition=p\n" in script
    assert f"#SBATCH --output={tmp_path}/out/launch/array-%A_%a.log\n" in script
    assert [f"{tmp_path}/out/seed={seed}/launch/job.sh" in script for seed in range(4)] == [
        True, True, True, False,
    ]  # fmt: skip
    assert 'exec bash "${scripts[SLURM_ARRAY_TASK_ID]}"' in script
    refusal = refused("sweep", recipe, "seed=0,1", "--slurm", environment={"PATH": ""})
    assert "sbatch is not on this machine" in refusal
    assert not (tmp_path / "sweeps").exists()
