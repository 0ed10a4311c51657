"""The comparison of runs as a file: which runs, what tells them apart, what is refused."""

import json
import shutil

import pytest
import yaml

from rlvr.report import write_comparison
from tests.command import call, refused
from tests.report.conftest import RECIPE, RunMaker, embedded


def make(folder, name, steps=6, seed=0, **settings):
    maker = RunMaker(folder / name, steps=steps, seed=seed)
    run = maker.write(prompts=2, samples=2)
    recipe = {**RECIPE, "output": str(run), "seed": seed, **settings}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return run


@pytest.fixture
def sweep(tmp_path):
    """Two learning rates with two seeds each."""
    return [
        make(tmp_path, f"lr{lr}-seed{seed}", seed=seed, learner={"lr": lr})
        for lr in (0.001, 0.01)
        for seed in (0, 1)
    ]


def test_runs_that_differ_only_in_their_seed_form_a_group(sweep, tmp_path):
    page = embedded(write_comparison(sweep, tmp_path / "page.html"))
    assert [run["name"] for run in page["runs"]] == [path.name for path in sweep]
    assert page["groups"] == [
        {"label": "lr 0.001", "runs": [0, 1]},
        {"label": "lr 0.01", "runs": [2, 3]},
    ]
    assert page["differences"] == {
        "seed": ["0", "1", "0", "1"],
        "learner.lr": ["0.001", "0.001", "0.01", "0.01"],
    }


def test_a_run_that_was_started_from_another_says_so(sweep, tmp_path):
    info = json.loads((sweep[1] / "run.json").read_text())
    info["parent"] = {"run": "runs/warm", "step": 40}
    (sweep[1] / "run.json").write_text(json.dumps(info))
    page = embedded(write_comparison(sweep, tmp_path / "page.html"))
    assert page["differences"]["started from"] == [None, "runs/warm, step 40", None, None]
    assert len(page["groups"]) == 3, "it did not start where its twin did"


def test_a_folder_of_runs_stands_for_the_runs_in_it(sweep, tmp_path):
    page = embedded(write_comparison([tmp_path, sweep[0]], tmp_path / "page.html"))
    assert len(page["runs"]) == 4


def test_each_metric_has_a_chart_though_only_one_run_has_it(sweep, tmp_path):
    with (sweep[2] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "only/here": 1.0, "policy/loss": NaN}\n')
    page = embedded(write_comparison(sweep, tmp_path / "page.html"))
    metrics = [chart["metric"] for chart in page["charts"]]
    assert "only/here" in metrics
    assert len(metrics) == len(set(metrics))
    assert page["runs"][2]["notFinite"] == {"policy/loss": [7]}


def test_the_completions_of_all_runs_share_the_room_of_one_page(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("rlvr.report.recorded_run.MAX_ROWS", 40)
    page = embedded(write_comparison(sweep, tmp_path / "page.html"))
    assert page["completionNotes"][0].startswith("The page contains ")
    rows = [sum(f["rows"] for f in page["completions"] if f["run"] == i) for i in range(4)]
    assert all(0 < count <= 10 for count in rows)
    assert any(
        "omitted" in note or "keep the page small" in note for note in page["completionNotes"]
    )


def test_the_verb_compares_several_runs_beside_them(sweep, tmp_path):
    done = call("report", *sweep)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(tmp_path / "comparison.html")
    assert len(embedded(tmp_path / "comparison.html")["runs"]) == 4
    assert call("report", tmp_path, "--out", tmp_path / "a" / "b.html").returncode == 0
    assert (tmp_path / "a" / "b.html").is_file()
    assert call("report", sweep[0]).stdout.strip() == str(sweep[0] / "report.html")


def test_what_is_no_run_is_refused_in_one_line(sweep, tmp_path):
    empty = tmp_path / "nothing"
    empty.mkdir()
    assert "contains no run" in refused("report", empty)
    assert "contains no run" in refused("report", sweep[0], empty)
    assert "nowhere is not a folder" in refused("report", sweep[0], "nowhere")
    assert "is a folder" in refused("report", *sweep, "--out", tmp_path)
    shutil.rmtree(sweep[0] / "completions")
    (sweep[0] / "recipe.yaml").write_text("- a list\n")
    assert "contains no settings" in refused("report", *sweep)


def test_the_curves_of_many_runs_are_thinned_and_that_is_said(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("rlvr.report.comparison.ALL_STEPS", 16)
    monkeypatch.setattr("rlvr.report.comparison.LEAST_STEPS", 4)
    page = embedded(write_comparison(sweep, tmp_path / "page.html"))
    assert all(len(run["steps"]) <= 5 for run in page["runs"])
    assert any("7 steps were logged" in note for note in page["notes"])


def test_tokens_and_seconds_add_up_over_thinned_and_resumed_steps(tmp_path):
    from rlvr.report.history import read_history

    rows = [
        {
            "step": step,
            "time/generate": 2.0,
            "throughput/generated_tokens_per_second": 50.0,
            "time/step": 3.0,
        }
        for step in range(1, 101)
    ]
    rows[9]["time/evaluate"] = 5.0
    lines = [*rows[:60], *rows[50:]]  # killed after step 60, resumed after step 50
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    history = read_history(path, max_steps=10)
    assert len(history.steps) < 15
    assert history.tokens[-1] == 100 * 100
    assert history.seconds[-1] == 100 * 3 + 5


def test_one_run_can_be_looked_at_like_several_and_none_cannot(sweep, tmp_path):
    page = embedded(write_comparison(sweep[:1], tmp_path / "page.html"))
    assert (page["title"], len(page["groups"])) == (sweep[0].name, 1)
    with pytest.raises(ValueError, match="no run was named"):
        write_comparison([], tmp_path / "page.html")
