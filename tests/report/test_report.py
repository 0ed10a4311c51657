"""The page as a file: what it says, what it never holds, and what is refused."""

import base64
import hashlib
import json
import re
import shutil

import pytest

from rlvr.report import write_report
from tests.report.conftest import embedded


def test_the_head_names_the_run_and_its_change(run):
    head = embedded(write_report(run))
    assert head["title"] == "SmolLM2-135M-Instruct on arithmetic"
    facts = dict(head["facts"])
    assert facts["Task"] == "arithmetic (operation add, digits 2)"
    assert facts["Seed"] == "3"
    assert facts["Steps"] == "60 of 60"
    assert facts["Started"] == "2026-03-05T14:07:31+00:00"
    assert "torch 2.13.0" in facts["Versions"]
    assert "policy loss: clip (low 0.2, high 0.28)" in facts["Method"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (row["eval/addition/accuracy"] for row in (rows[0], rows[-1]))
    assert (
        f"rose from {100 * first:.1f} % (before training) to {100 * last:.1f} %" in head["summary"]
    )
    reward = next(item for item in head["figures"] if item["metric"] == "reward/mean")
    assert (reward["first_step"], reward["last_step"]) == (1, 60)
    assert reward["last"] == pytest.approx(rows[-1]["reward/mean"], rel=1e-5)
    assert head["notes"] == []


def test_default_and_chosen_place(run, tmp_path):
    assert write_report(run) == run / "report.html"
    chosen = tmp_path / "pages" / "a.html"
    assert write_report(run, chosen) == chosen
    assert chosen.read_text() == (run / "report.html").read_text()


def test_the_page_asks_no_host_for_anything(run):
    page = write_report(run).read_text()
    outside_data = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+", outside_data))
    assert addresses <= {"http://www.w3.org"}, "the SVG namespace is a name, not an address"
    assert not re.search(
        r"<(?:link(?! rel=\"icon\" href=\"data:)|iframe|img|object)|@import|url\(", outside_data
    )


def test_the_policy_lists_the_hashes_of_the_inline_script_and_style(run):
    page = write_report(run).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    for element in ("script", "style"):
        text = re.search(rf"<{element}>(.*?)</{element}>", page, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


def test_markup_in_model_text_recipe_and_metric_names_stays_inside_json(run, maker):
    nasty = "</script><img src=x onerror=alert(1)>"
    row = maker.completion(61, 0, 0, 1, 2) | {"response": nasty, "prompt": nasty, "answer": nasty}
    maker.write_lines("completions/step_000061.jsonl", [row])
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, nasty: 1}) + "\n")
    (run / "recipe.yaml").write_text(json.dumps({"model": {"path": nasty}, "data": "{{script}}"}))
    page = write_report(run)
    assert "<img" not in page.read_text()
    assert page.read_text().count("<script>") == 1
    assert embedded(page, "completions-training-61")["rows"][0]["response"] == nasty
    assert "{{script}}" in embedded(page)["title"]


def test_a_run_that_is_still_going_says_so(run):
    shutil.rmtree(run / "model")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "reward/m')
    notes = embedded(write_report(run))["notes"]
    assert any("still running or was stopped after step 60 of 60" in note for note in notes)
    assert any("incomplete" in note for note in notes)


def test_a_run_that_has_logged_nothing_yet_has_a_page(tmp_path):
    (tmp_path / "recipe.yaml").write_text("steps: 5\n")
    (tmp_path / "metrics.jsonl").write_text("")
    head = embedded(write_report(tmp_path))
    assert head["summary"] == "Nothing has been logged yet."
    assert head["charts"] == []
    assert head["completions"] == []


def test_one_row_is_a_page_without_a_change(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: tiny\nsteps: 5\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/sums/accuracy": 0.25}\n')
    assert embedded(write_report(tmp_path))["summary"] == (
        "Held-out accuracy was 25.0 % (before training)."
    )


def test_saturation_is_when_training_stays_at_its_limit(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: tiny\n")
    training = (0.5, 0.995, 0.9, 0.99, 1.0)

    def facts():
        return dict(embedded(write_report(tmp_path))["facts"])

    def write(accuracies):
        rows = [
            {"step": s, "reward/correct": a, "eval/a/accuracy": s / 10}
            for s, a in enumerate(accuracies, 1)
        ]
        (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

    write(training)
    assert facts()["Saturation"] == (
        "training accuracy at 99 % or more from step 4 on; a since then 40.0 % to 50.0 %"
    )
    write((*training, 0.98))
    assert "Saturation" not in facts()


def test_an_unchanged_and_a_falling_figure_are_called_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: tiny\n")
    rows = [{"step": s, "eval/a/accuracy": 0.5, "reward/mean": 0.5 - s / 10} for s in (0, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary = embedded(write_report(tmp_path))["summary"]
    assert "accuracy stayed at 50.0 % to step 2" in summary
    assert "reward fell from 0.5 (before training) to 0.3 (step 2)" in summary


def test_broken_run_json_is_told_and_survived(run):
    (run / "run.json").write_text('{"versions": ')
    head = embedded(write_report(run))
    assert dict(head["facts"])["Seed"] == "3", "the recipe knows the seed as well"
    assert any("run.json could not be read" in note for note in head["notes"])


@pytest.mark.parametrize("missing", ["recipe.yaml", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_refused_with_the_remedy(run, missing):
    (run / missing).unlink()
    with pytest.raises(
        ValueError, match=f"contains no {missing}.*name the recipe's output"
    ) as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_a_missing_folder_and_a_folder_as_page_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder; name the output folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder; name the HTML file"):
        write_report(run, tmp_path)


def test_a_failed_write_keeps_the_old_page_and_leaves_nothing_behind(run, monkeypatch):
    page = write_report(run)
    before, files = page.read_text(), set(run.iterdir())

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlvr.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert page.read_text() == before
    assert set(run.iterdir()) == files


def test_a_reward_model_is_summed_up_by_ranking_and_log_loss(tmp_path):
    rows = [
        {"step": step, "rm/loss": loss, "eval/held_out/auc_within": auc, "eval/held_out/nll": nll}
        for step, loss, auc, nll in ((0, 0.7, 0.5, 0.69), (20, 0.3, 0.9, 0.31))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text("task: reward_model\nsteps: 20\n")
    summary = embedded(write_report(tmp_path))["summary"]
    assert "AUC within prompts on held_out rose from 50.0 % (before training) to 90.0 %" in summary
    assert "log-loss on held_out fell from 0.69 (before training) to 0.31 (step 20)" in summary
