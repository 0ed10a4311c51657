"""Surprisal of traces: against plain softmax, by writer, along the trace; what it refuses."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.data import load_template
from rlvr.data.demonstrations import Demonstration, load_demonstrations
from rlvr.distill.acceptance_rule import AcceptanceRule
from rlvr.distill.decode_batch import TransformersDecodeModel
from rlvr.distill.lockstep import LockstepEngine
from rlvr.distill.surprisal import (
    ScoredTraces,
    score_traces,
    surprisal,
    surprisal_table,
    write_surprisal,
)
from rlvr.distill.trace import Trace, write_traces
from rlvr.distill.vocabulary_match import Vocabulary
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from tests.command import call, refused

THRESHOLD = 0.02


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher and a student with strong opinions, in float32, as folders."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("teacher", 1), ("student", 2)):
        shape = TinySettings(hidden_size=32, layers=2, heads=4, key_value_heads=2)
        write_tiny_model(folder / name, seed, shape)
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(6.0)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def traces(folders, tmp_path_factory, request):
    """Traces that the rule made of the two, with their per-token record."""
    from transformers import AutoModelForCausalLM

    from rlvr.distill.trace_request import TraceRequest

    models = [
        TransformersDecodeModel(AutoModelForCausalLM.from_pretrained(folders / name).eval())
        for name in ("teacher", "student")
    ]
    rule = AcceptanceRule(threshold=THRESHOLD, draws=2)
    engine = LockstepEngine(*models, Vocabulary("same", None, None, {}), rule, (2,), 40, 3)
    generator = torch.Generator().manual_seed(0)
    prompts = [
        tuple(torch.randint(5, 60, (2 + n % 5,), generator=generator).tolist()) for n in range(6)
    ]
    requests = [
        TraceRequest(f"p{n}", s, prompts[n], prompts[n]) for n in range(6) for s in range(4)
    ]
    tokenizer = load_tokenizer(ModelSettings(path=str(folders / "student")))
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    write_traces(
        path,
        (
            Trace(
                id=f"{item.request.problem_id}/{item.request.sample}",
                problem_id=item.request.problem_id,
                sample=item.request.sample,
                prompt=tokenizer.decode(list(item.request.student_prompt)),
                prompt_ids=item.request.student_prompt,
                token_ids=item.token_ids,
                text=tokenizer.decode(list(item.token_ids), skip_special_tokens=True),
                finish_reason=item.finish_reason,
                writer="".join("t" if draw else "s" for draw in item.draws),
                teacher_prob=item.teacher_prob,
                student_prob=item.student_prob,
                settings="x",
            )
            for item in engine.generate(requests)
        ),
    )
    return path


def test_it_is_the_softmax_of_the_student(folders, traces):
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(folders / "student").eval().double()
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    nll = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["prompt_ids"] + row["token_ids"]])
            logprobs = student(ids).logits[0, :-1].log_softmax(-1)
            own = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
            nll += (-own[len(row["prompt_ids"]) - 1 :]).tolist()
    scored = score_traces([traces], str(folders / "student"))
    found = surprisal(scored, threshold=THRESHOLD)
    assert found.all.tokens == len(nll)
    assert found.all.nll == pytest.approx(sum(nll) / len(nll), abs=1e-5)
    assert found.all.most == pytest.approx(max(nll), abs=1e-4)
    below = sum(value > -math.log(THRESHOLD) for value in nll)
    assert found.all.improbable == pytest.approx(below / len(nll), abs=1.5 / len(nll))
    assert found.all.quantiles["0.5"] == pytest.approx(sorted(nll)[len(nll) // 2], abs=1e-4)


def test_accepted_tokens_scored_again_are_never_below_the_threshold(folders, traces):
    """The rule's promise; what the student wrote itself may be below, and the teacher's own is."""
    own = surprisal(score_traces([traces], str(folders / "student")), threshold=THRESHOLD)
    assert own.by_writer["teacher"].tokens > 50
    # The threshold was held against a pass of another shape: a float's rounding apart.
    just_below = surprisal(
        score_traces([traces], str(folders / "student")), threshold=THRESHOLD * (1 - 1e-5)
    )
    assert just_below.by_writer["teacher"].improbable == 0
    assert own.by_writer["teacher"].most <= -math.log(THRESHOLD) + 1e-4
    other = surprisal(score_traces([traces], str(folders / "teacher")), threshold=THRESHOLD)
    assert other.by_writer["teacher"].improbable > 0
    assert sum(part.tokens for part in own.by_writer.values()) == own.all.tokens


def scored_of(rows, folder):
    traces = tuple(
        Demonstration(str(n), (5,), tuple(5 + i % 40 for i in range(len(row))), {})
        for n, row in enumerate(rows)
    )
    tokenizer = load_tokenizer(ModelSettings(path=str(folder / "student")))
    return ScoredTraces(traces, tuple(torch.tensor(row) for row in rows), tokenizer)


@settings(max_examples=30)
@given(
    rows=st.lists(
        st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=40), min_size=1, max_size=5
    ),
    bins=st.integers(1, 30),
)
def test_the_curve_and_the_words_add_up_to_the_whole(folders, rows, bins):
    found = surprisal(scored_of(rows, folders), bins=bins, top=100)
    total = found.all.tokens
    assert sum(at.tokens for at in found.positions) == total == sum(map(len, rows))
    mean = sum(at.tokens * at.nll for at in found.positions) / total
    assert mean == pytest.approx(found.all.nll, abs=1e-6)
    low = sum(at.tokens * at.improbable for at in found.positions)
    assert low == pytest.approx(found.all.improbable * total, abs=1e-6)
    assert sum(token.improbable for token in found.most_improbable) == round(low)
    assert len(found.positions) <= bins
    assert [at.start for at in found.positions][1:] == [at.stop for at in found.positions][:-1]
    assert list(found.all.quantiles.values()) == sorted(found.all.quantiles.values())


def test_a_uniform_student_finds_everything_equally_probable(folders):
    rows = [[-math.log(80)] * 7, [-math.log(80)] * 3]
    found = surprisal(scored_of(rows, folders), threshold=0.01)
    assert found.all.improbable == 0
    assert found.all.nll == pytest.approx(math.log(80), abs=1e-6)
    assert surprisal(scored_of(rows, folders), threshold=0.02).all.improbable == 1


def test_the_table_and_the_file_say_the_same(folders, traces, tmp_path):
    found = surprisal(score_traces([traces], str(folders / "student")), threshold=THRESHOLD)
    table = surprisal_table(found)
    assert f"{found.all.nll:.4f}" in table
    assert "teacher" in table
    assert "below 0.02" in table
    write_surprisal(found, tmp_path / "a" / "b.json", {"student": "x"})
    kept = json.loads((tmp_path / "a" / "b.json").read_text())
    assert kept["student"] == "x"
    assert kept["all"]["nll"] == found.all.nll
    assert kept["by_writer"]["teacher"]["improbable"] == found.by_writer["teacher"].improbable


def test_text_encoded_again_gives_what_the_ids_give(folders, traces):
    """With the tokenizer that made them, for traces whose text spells their ids."""
    tokenizer = load_tokenizer(ModelSettings(path=str(folders / "student")))
    template = load_template("raw")
    ids = load_demonstrations([traces], template, tokenizer)
    again = load_demonstrations([traces], template, tokenizer, reencode=True)
    same = [
        (a.prompt_ids, a.token_ids) == (b.prompt_ids, b.token_ids)
        for a, b in zip(ids, again, strict=True)
    ]
    assert any(same)


@pytest.mark.parametrize(
    ("threshold", "part"),
    [(0.0, "not between 0 and 1"), (1.0, "not between 0 and 1"), (-1.0, "try 0.01")],
)
def test_thresholds_outside_the_interval_are_refused(folders, threshold, part):
    with pytest.raises(ValueError, match=part):
        surprisal(scored_of([[-1.0]], folders), threshold=threshold)


def test_traces_of_another_vocabulary_are_refused(folders, tmp_path):
    path = tmp_path / "foreign.jsonl"
    path.write_text(json.dumps({"prompt_ids": [1], "token_ids": [70000]}) + "\n")
    with pytest.raises(ValueError, match=r"holds token 70000.*--reencode"):
        score_traces([path], str(folders / "student"))
    path.write_text(json.dumps({"prompt_ids": [1], "token_ids": [5] * 400}) + "\n")
    with pytest.raises(ValueError, match="context of 256"):
        score_traces([path], str(folders / "student"))


def test_the_command_line(folders, traces, tmp_path):
    out = tmp_path / "found.json"
    done = call("distill", "surprisal", traces, "--model", folders / "student", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "along the trace" in done.stdout
    assert json.loads(out.read_text())["sources"] == [str(traces)]
    page = ("distill", "page", traces, "--out", tmp_path / "p.html")
    done = call(*page, "--tokenizer", folders / "student")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.html").stat().st_size > 10_000
    assert "--model STUDENT" in refused(*page)
