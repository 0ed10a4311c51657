"""Traces on disk: complete, resumable to the same set, shared among parts without overlap."""

import json
import signal
import subprocess
import sys
import time

import pytest

from rlvr.distill.generate import PARTS, generate, part_rows
from rlvr.distill.plan import make_trace_plan
from rlvr.distill.recipe import ShardSettings
from rlvr.distill.trace import read_traces
from rlvr.distill.trace_model import load_trace_model
from rlvr.files import locked, read_lines
from rlvr.settings import to_yaml
from tests.command import call, refused


def traces_of(recipe):
    files = sorted((recipe.output / PARTS).glob("*.jsonl"))
    return {trace.id: trace for trace in read_traces(files)}


def assert_same(found, expected):
    """The same traces; probabilities up to what another batch rounds otherwise in float32."""
    assert found.keys() == expected.keys()
    near = {"teacher_prob", "student_prob"}
    for name, trace in expected.items():
        other = found[name]
        assert other.model_dump(exclude=near) == trace.model_dump(exclude=near)
        assert other.student_prob == pytest.approx(trace.student_prob, rel=1e-4)
        assert other.teacher_prob == pytest.approx(trace.teacher_prob, rel=1e-4)


def test_every_trace_is_there_with_its_record(recipe):
    settings = recipe()
    generate(settings)
    found = traces_of(settings)
    assert len(found) == 5 * 4
    student = load_trace_model(settings.student)
    teacher = load_trace_model(settings.teacher)
    plan = make_trace_plan(settings, teacher, student)
    prompts = {prompt.problem.id: prompt for prompt in plan.prompts}
    for trace in found.values():
        prompt = prompts[trace.problem_id]
        assert (trace.prompt_ids, trace.answer) == (prompt.ids, prompt.problem.answer)
        assert trace.text == student.tokenizer.decode(
            list(trace.token_ids), skip_special_tokens=True
        )
        assert trace.settings == settings.fingerprint
        for writer, probability in zip(trace.writer, trace.student_prob, strict=True):
            assert writer == "s" or probability >= 0.012
    assert {writer for trace in found.values() for writer in trace.writer} == {"t", "s"}
    (row,) = read_lines(settings.output / "log.jsonl", ended=True).objects
    tokens = sum(len(trace.token_ids) for trace in found.values())
    assert (row["distill/traces"], row["distill/tokens"]) == (20, tokens)
    written = sum(trace.writer.count("s") for trace in found.values())
    assert row["distill/fallback_rate"] == pytest.approx(written / tokens, abs=1e-4)


def test_existing_traces_need_resume_and_the_same_settings(recipe):
    settings = recipe()
    generate(settings)
    before = traces_of(settings)
    with pytest.raises(ValueError, match="--resume"):
        generate(settings)
    generate(settings, resume=True)
    assert traces_of(settings) == before
    with pytest.raises(ValueError, match=r"acceptance_rule.threshold was 0.012 and is 0.02"):
        generate(recipe(acceptance_rule={"threshold": 0.02, "draws": 2}), resume=True)
    # How many run side by side, and how many samples there are, changes no trace.
    generate(recipe(samples=6, engine={"name": "transformers", "rows": 3}), resume=True)
    after = traces_of(settings)
    assert len(after) == 30
    assert all(after[name] == trace for name, trace in before.items())


def test_killed_and_resumed_generation_yields_the_same_traces(recipe, tmp_path):
    whole = recipe(samples=30, max_tokens=60)
    generate(whole)
    expected = traces_of(whole)
    killed = whole.model_copy(update={"output": tmp_path / "killed"})
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(killed))
    command = [sys.executable, "-m", "rlvr", "distill", "generate", str(path), "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while sum(1 for _ in part_rows(killed.output)) < 20:
        assert time.monotonic() < deadline, "no traces came"
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(traces_of(killed)) < len(expected)
    (part,) = (killed.output / PARTS).glob("*.jsonl")
    with part.open("a") as file:
        file.write('{"id": "cut')  # as a kill in the middle of a line leaves it
    generate(killed, resume=True)
    assert_same(traces_of(killed), expected)


def test_parts_hold_every_trace_once(recipe, tmp_path):
    whole = recipe()
    generate(whole)
    expected = traces_of(whole)
    sharded = whole.model_copy(update={"output": tmp_path / "sharded"})
    for index in (2, 0, 1):
        shard = ShardSettings(index=index, count=3)
        generate(sharded.model_copy(update={"shard": shard}))
    rows = list(part_rows(sharded.output))
    assert len(rows) == len(expected)
    assert_same(traces_of(sharded), expected)
    # Another number of parts generates nothing twice.
    generate(sharded, resume=True)
    assert len(list(part_rows(sharded.output))) == len(expected)


def test_a_slurm_array_and_a_launcher_say_which_part(monkeypatch):
    assert ShardSettings().resolved() == (0, 1)
    for name, value in {"ID": 7, "MIN": 3, "STEP": 2, "COUNT": 5}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert ShardSettings().resolved() == (2, 5)
    assert ShardSettings(index=1, count=2).resolved() == (1, 2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ShardSettings().resolved() == (9, 20)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "99")
    with pytest.raises(ValueError, match="outside an array of 5"):
        ShardSettings().resolved()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"acceptance_rule": {"threshold": 0}}, "outside (0, 1]"),
        ({"acceptance_rule": {"threshold": 1.5}}, "acceptance_rule.arm=student"),
        ({"max_tokens": 300}, "exceeds the student's context of 256"),
        ({"stop": ["stop here"]}, "'stop here', which is not a single token"),
        ({"shard": {"index": 3, "count": 3}}, "must be below shard.count"),
        ({"shard": {"index": 0}}, "belong together"),
        ({"student": {"path": "./nowhere"}}, "does not exist"),
    ],
)
def test_what_cannot_work_is_refused_with_its_remedy(recipe, changes, said):
    with pytest.raises(ValueError, match=r".") as fault:
        generate(recipe(**changes))
    assert said in str(fault.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"acceptance_rule": {"teacher": {"top_k": 0}}},
            "acceptance_rule.teacher.top_k must be at least 1",
        ),
        ({"acceptance_rule": {"student": {"top_p": 0.9}}}, "top_p 1 (is 0.9)"),
        ({"vocabulary": {"matching": "text"}}, "needs engine transformers"),
    ],
)
def test_what_vllm_cannot_say_is_refused(recipe, changes, said):
    with pytest.raises(ValueError, match=r"vllm") as fault:
        recipe(engine={"name": "vllm"}, **changes)
    assert said in str(fault.value)


def test_the_command_line_generates_filters_and_speaks_in_one_line(recipe, tmp_path):
    settings = recipe(filter={"require_stop": False, "correctness": "none"})
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(settings))
    plan = call("distill", "generate", path, "samples=2", "--dry-run")
    assert "5 problems x 2 samples = 10 traces" in plan.stdout
    assert not settings.output.exists()
    fault = refused("distill", "generate", path, "acceptance_rule.threshold=0")
    assert "outside (0, 1]" in fault
    assert "generate first" in refused("distill", "filter", path)
    made = call("distill", "generate", path)
    assert made.returncode == 0, made.stderr
    kept = call("distill", "filter", path)
    assert kept.returncode == 0, kept.stderr
    assert "20 traces of 5 problems" in kept.stdout
    assert len(read_traces(settings.output / "kept.jsonl")) == 5
    summary = json.loads((settings.output / "filter.json").read_text())
    assert (summary["kept"], summary["problems"]) == (5, 5)


def test_a_part_has_one_writer(recipe):
    settings = recipe()
    path = settings.output / PARTS / "part_0000_of_0001"
    with (
        locked(path.with_suffix(".lock"), "the first"),
        pytest.raises(ValueError, match=r"part_0000_of_0001.jsonl.* in use by process"),
    ):
        generate(settings)
