"""Generation, resuming and scoring from end to end, with a tiny model."""

import json

import pytest
from rich.console import Console

import eval.run
from eval.evaluation_folder import LOCK, Appender, locked, read_lines
from eval.run import rescore
from eval.targets import find_targets
from rlvr.policy.settings import ModelSettings
from tests.eval.small import ENGINE, ROWS, files_of, run, settings_for


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_sample_is_there_once_in_canonical_order(undisturbed):
    found = [(r["problem"], r["greedy"], r["sample"]) for r in rows(undisturbed / "samples.jsonl")]
    draws = [(True, 0), (False, 0), (False, 1)]
    assert found == [(row["id"], *draw) for row in ROWS for draw in draws]
    assert not (undisturbed / "parts").exists()


def test_samples_of_a_problem_differ_and_problems_have_their_own_seeds(undisturbed):
    texts = [r["response"] for r in rows(undisturbed / "samples.jsonl") if not r["greedy"]]
    assert len(set(texts)) > 0.8 * len(texts)


@pytest.mark.parametrize("killed_after", [1, 17])
def test_a_killed_evaluation_ends_byte_for_byte_like_one_left_alone(
    tiny_folder, benchmark_file, tmp_path, undisturbed, monkeypatch, killed_after
):
    add, written = Appender.add, []

    def dying(self, row):
        add(self, row)
        written.append(row)
        if len(written) == killed_after:
            self._file.write('{"benchmark": "sums", "problem": "su')  # killed within a line
            raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(Appender, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_folder, benchmark_file, out, engine=ENGINE, greedy=True)
    part = read_lines(out / "parts" / "rank_0000.jsonl", ended=True)
    assert len(part.objects) == killed_after
    assert part.incomplete
    run(tiny_folder, benchmark_file, out, engine=ENGINE, greedy=True)
    assert files_of(out) == files_of(undisturbed)


def test_a_finished_evaluation_is_not_sampled_again(
    tiny_folder, benchmark_file, tmp_path, undisturbed, monkeypatch
):
    monkeypatch.setattr(eval.run, "build_engine", None)
    before = files_of(undisturbed)
    run(tiny_folder, benchmark_file, tmp_path / "whole", engine=ENGINE, greedy=True)
    assert files_of(undisturbed) == before


def test_samples_do_not_depend_on_what_else_is_evaluated(
    tiny_folder, benchmark_file, tmp_path, undisturbed
):
    """Half the problems, other batches: the same text for the same sample."""
    (part,) = run(tiny_folder, benchmark_file, tmp_path / "part", limit=5, engine=ENGINE)
    whole = {
        (r["problem"], r["greedy"], r["sample"]): r for r in rows(undisturbed / "samples.jsonl")
    }
    found = rows(part / "samples.jsonl")
    assert len(found) == 10
    assert all(whole[r["problem"], r["greedy"], r["sample"]] == r for r in found)


def test_a_folder_of_other_settings_is_refused_with_the_difference(
    tiny_folder, benchmark_file, tmp_path, undisturbed
):
    with pytest.raises(ValueError, match=r"temperature was 1.0 and is 0.5.*another --out"):
        run(tiny_folder, benchmark_file, undisturbed, engine=ENGINE, greedy=True, temperature=0.5)
    with pytest.raises(ValueError, match="seed was 0 and is 3"):
        run(tiny_folder, benchmark_file, undisturbed, engine=ENGINE, greedy=True, seed=3)


def test_a_folder_of_other_files_is_refused(tiny_folder, benchmark_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains other files"):
        run(tiny_folder, benchmark_file, tmp_path)


def test_changed_weights_or_data_are_refused(tiny_folder, benchmark_file, tmp_path, undisturbed):
    benchmark_file.write_text(benchmark_file.read_text().replace('"7"', '"8"'))
    with pytest.raises(ValueError, match=r"data_fingerprint was .* and is"):
        run(tiny_folder, benchmark_file, undisturbed, engine=ENGINE, greedy=True)


def test_scoring_needs_no_model_and_repeats_itself(undisturbed, monkeypatch):
    before = files_of(undisturbed)
    monkeypatch.setattr(eval.run, "load_tokenizer", None)
    rescore(undisturbed, settings_for("x", samples=None), console=Console(quiet=True))
    assert files_of(undisturbed) == before


def test_more_ks_than_samples_are_refused_before_anything_runs(
    tiny_folder, benchmark_file, tmp_path
):
    targets = find_targets(ModelSettings(path=str(tiny_folder)))
    with pytest.raises(ValueError, match=r"pass@8 of sums needs at least 8 samples.*n is 1"):
        eval.run.evaluate(
            settings_for(benchmark_file, samples=1), targets, tmp_path / "out", ks=[8]
        )
    assert not (tmp_path / "out").exists()


def test_a_model_that_never_stops_is_cut_and_said_so(tiny_folder, benchmark_file, tmp_path):
    (folder,) = run(tiny_folder, benchmark_file, tmp_path / "out", max_tokens=1)
    summary = json.loads((folder / "results.json").read_text())["benchmarks"]["sums"]
    assert summary["truncated"] > 0.5
    assert summary["tokens_mean"] == 1


def test_a_limit_that_the_context_cannot_hold_is_lowered_with_a_note(
    tiny_folder, benchmark_file, tmp_path
):
    with pytest.warns(UserWarning, match="max_tokens 5000 lowered to 251"):
        run(tiny_folder, benchmark_file, tmp_path / "out", max_tokens=5000, limit=1)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["benchmarks"]["sums"]["max_tokens"] == 251
    assert "lowered" in plan["notes"][0]


def test_an_evaluation_has_one_writer(tiny_folder, benchmark_file, tmp_path):
    out = tmp_path / "out"
    with locked(out / LOCK, "the first"), pytest.raises(ValueError, match="in use by process"):
        run(tiny_folder, benchmark_file, out)
    (folder,) = run(tiny_folder, benchmark_file, out)
    assert not (folder / LOCK).exists()


def test_a_file_of_another_domain_is_judged_by_its_grader(tiny_folder, tmp_path):
    """Its references are objects; nothing of mathematics is asked beside it."""
    reference = {"pattern": "[0-9]", "match": "search", "on": "response"}
    path = tmp_path / "digits.jsonl"
    rows = [{"problem": f"{n}+1=", "answer": reference} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder,) = run(tiny_folder, path, tmp_path / "out", grader="pattern", samples=3)
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(scores) == len(samples) == 18
    for row, sample in zip(scores, samples, strict=True):
        assert list(row["verdicts"]) == ["pattern"]
        cut = sample["finish_reason"] == "length"
        wanted = any(mark.isdigit() for mark in sample["response"])
        assert row["verdicts"]["pattern"]["correct"] is wanted or cut
