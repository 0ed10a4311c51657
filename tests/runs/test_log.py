"""Records that survive a kill."""

import io
import json
import os

from rich.console import Console

from rlvr.runs.log import RunLog, read_metrics

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115


def test_lines_of_one_step_add_up_and_a_cut_line_is_left_out(tmp_path):
    with RunLog(tmp_path, 2, console=SILENT) as log:
        log.step(1, {"reward/mean": 0.1})
        assert not log.evaluated(1)
        log.step(1, {"eval/held_out/accuracy": 0.2})
        assert log.evaluated(1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 1]


def test_going_on_drops_what_comes_after_the_checkpoint(tmp_path):
    (tmp_path / "completions").mkdir()
    for step in (1, 2, 3):
        (tmp_path / "completions" / f"step_{step:06d}.jsonl").write_text("{}\n")
    rows = [{"step": step, "reward/mean": 0.1} for step in (0, 1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with RunLog(tmp_path, 4, resumed_step=2, console=SILENT):
        pass
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    names = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert names == ["step_000001.jsonl", "step_000002.jsonl"]
    with RunLog(tmp_path, 4, resumed_step=0, console=SILENT):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_what_is_no_record_is_dropped_with_a_line_and_the_user_s_files_are_left_alone(tmp_path):
    rows = ['{"step": 1, "a": 1}', "[]", "nonsense", '{"a": 1}', '{"step": "x"}', '{"step": 2}']
    for name in ("metrics.jsonl", "accuracy.jsonl", "mine.jsonl"):
        (tmp_path / name).write_text("\n".join([*rows, '{"step": 1', ""]))
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "step_final.jsonl").write_text("mine")
    console = Console(file=io.StringIO(), width=200)
    with RunLog(tmp_path, 4, resumed_step=1, console=console) as log:
        assert not log.evaluated(1)
    for name in ("metrics.jsonl", "accuracy.jsonl"):
        assert read_metrics(tmp_path / name) == [{"step": 1, "a": 1}]
        assert f"{name}: 4 lines that are no records" in console.file.getvalue()
    assert (tmp_path / "mine.jsonl").read_text().startswith("\n".join(rows))
    assert (tmp_path / "completions" / "step_final.jsonl").read_text() == "mine"
