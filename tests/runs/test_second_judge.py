"""How wrong verdicts are, estimated: draws, estimates, planted errors, faults of the judge."""

import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

import reward
from eval.statistics import wilson
from reward import VerifierPool
from rlvr.learner.learner import Learner
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.runs.rewards import CheckSettings, RewardSettings
from rlvr.runs.scoring import Scorer, scored_from_state, scored_state
from rlvr.runs.second_judge import Asked, SecondJudge, check_problems, drawn_number
from rlvr.runs.verdict_errors import check_metrics, counted_opinions
from rlvr.settings import load_settings
from rlvr.types import Completion, Group, Message, Problem
from tests.training import run, small_recipe


def test_draws_depend_on_the_place_alone_and_hit_their_share():
    places = [(step, f"p{problem}", sample) for step in range(20) for problem in range(50)
              for sample in range(20)]  # fmt: skip
    numbers = [drawn_number(3, *place) for place in places]
    assert numbers == [drawn_number(3, *place) for place in places]
    for share in (0.05, 0.5):
        hits = sum(number < share for number in numbers)
        assert abs(hits - share * len(numbers)) < 4 * (share * (1 - share) * len(numbers)) ** 0.5
    other = [drawn_number(4, *place) < 0.5 for place in places]
    same = sum(one == (number < 0.5) for one, number in zip(other, numbers, strict=True))
    assert abs(same - len(numbers) / 2) < 2 * len(numbers) ** 0.5


def counts(**given):
    return Counter(given)


def test_estimates_are_those_of_their_formulas():
    found = check_metrics(
        counts(accepted=1000, accepted_judged=100, accepted_disputed=6, accepted_undecided=20,
               rejected=200, rejected_judged=50, rejected_disputed=3, timeouts=2),
        CheckSettings(accepted=0.1, rejected=0.25),
    )  # fmt: skip
    assert found["check/false_accepts"] == pytest.approx(6 / 80)
    low, high = wilson(6 / 80, 80 / 0.9)
    assert (found["check/false_accepts_low"], found["check/false_accepts_high"]) == (low, high)
    assert found["check/false_accepts_least"] == pytest.approx(0.06)
    assert found["check/false_accepts_most"] == pytest.approx(0.26)
    assert found["check/false_rejects"] == pytest.approx(3 / 50)
    assert found["check/disputed"] == pytest.approx((6 * 10 + 3 * 4) / (80 * 10 + 50 * 4))
    assert (found["check/timeouts"], found["check/faults"]) == (2, 0)


def test_what_is_judged_in_full_is_known_and_what_is_not_judged_is_left_out():
    settings = CheckSettings(accepted=1.0, rejected=0.0)
    whole = counts(accepted=20, accepted_judged=20, accepted_disputed=5, rejected=7)
    found = check_metrics(whole, settings)
    ends = [found[f"check/false_accepts{end}"] for end in ("", "_low", "_high")]
    assert ends == [0.25, 0.25, 0.25]
    assert "check/false_rejects" not in found
    assert "check/disputed" not in found, "nothing is known of the rejected"
    mute = check_metrics(counts(accepted=9, accepted_judged=4, accepted_undecided=4), settings)
    assert "check/false_accepts" not in mute
    assert (mute["check/false_accepts_least"], mute["check/false_accepts_most"]) == (0, 1)
    assert {*check_metrics(Counter(), settings).values()} == {0.0}


@pytest.mark.parametrize(("rate", "share"), [(0.02, 0.1), (0.15, 0.1), (0.15, 0.6)])
def test_intervals_hold_the_runs_own_share_in_about_95_of_100_draws(rate, share):
    """The truth is fixed and the completions of a prompt are alike; only the draw is random."""
    total, seeds = 600, 200
    wrong = {place for place in range(total) if (place // 8) % round(1 / rate) == 0}
    held = 0
    for seed in range(seeds):
        drawn = [p for p in range(total) if drawn_number(seed, 1, f"p{p // 8}", p % 8) < share]
        disputed = len(wrong & {*drawn})
        known = counts(accepted=total, accepted_judged=len(drawn), accepted_disputed=disputed)
        found = check_metrics(known, CheckSettings(accepted=share))
        ends = found["check/false_accepts_low"], found["check/false_accepts_high"]
        held += ends[0] <= len(wrong) / total <= ends[1]
    assert 0.90 <= held / seeds <= 0.995


PROBLEM = Problem("sum", (Message(role="user", content="1+1="),), "12", "test")


def group_of(tokenizer, texts, step=1):
    ids = [tuple(tokenizer(text)["input_ids"]) for text in texts]
    rows = (
        Completion("sum", f"{step}/0", sample, (1,), own, (0.0,) * len(own), "stop", 0)
        for sample, own in enumerate(ids)
    )
    return Group(PROBLEM, tuple(rows))


@pytest.fixture(scope="module")
def tokenizer(guessing_folder):
    return load_tokenizer(ModelSettings(path=str(guessing_folder)))


@pytest.fixture(scope="module")
def started(tokenizer):
    """A scorer with a judge, whose processes all tests share."""
    with Scorer(RewardSettings(check=patient(0.1, 0.1)), tokenizer, 8, seed=5) as scorer:
        yield scorer


@pytest.fixture
def checking(started, tokenizer, monkeypatch):
    """Scores texts as the answers of one prompt, with settings of the judge."""

    def score(settings, texts, **more):
        monkeypatch.setattr(started.judge, "settings", settings)
        begun = started.begin([group_of(tokenizer, texts)], step=1, check=True)
        (scored,) = started.finish([begun], **more)
        return scored

    return score


def patient(accepted, rejected):
    return CheckSettings(accepted=accepted, rejected=rejected, timeout=120.0)


def test_the_interval_covers_the_rate_of_a_verifier_that_accepts_wrong_answers(
    started, checking, monkeypatch
):
    """A quarter of 300 wrong answers are accepted, and a tenth of 200 right ones are refused."""
    texts = ["\\boxed{7}"] * 300 + ["\\boxed{12}"] * 200
    grade_many = started.pool.grade_many

    def wrong(pairs, *more):
        found = enumerate(grade_many(pairs, *more))
        return [
            replace(one, correct=one.correct != (n % 4 == 0 if n < 300 else n % 10 == 0))
            for n, one in found
        ]

    monkeypatch.setattr(started.pool, "grade_many", wrong)
    check = patient(0.4, 0.3)
    scored = checking(check, texts)
    assert sum(item.reward for item in scored) == 75 + 180
    found = check_metrics(counted_opinions([scored]), check)
    assert (found["check/accepted"], found["check/rejected"]) == (75 + 180, 225 + 20)
    assert found["check/accepted_undecided"] == found["check/rejected_undecided"] == 0
    for error, truth in (("false_accepts", 75 / 255), ("false_rejects", 20 / 245)):
        low, high = found[f"check/{error}_low"], found[f"check/{error}_high"]
        assert 0 < low < truth < high < 0.5
    asked = [item for item in scored if item.second.grade]
    assert all(item.disputed == (item.second.says != item.correct) for item in asked)


def test_an_opinion_survives_the_way_through_a_checkpoint(started, checking, tokenizer):
    texts = ["\\boxed{12}", "\\boxed{7}", "12"]
    scored = checking(patient(1.0, 0.0), texts)
    plain = started.score([group_of(tokenizer, texts)])
    restored = [scored_from_state(json.loads(json.dumps(scored_state(one)))) for one in scored]
    assert restored == scored
    right, wrong, mute = scored
    assert right.second.says is True
    assert wrong.second.grade is None, "could be drawn, and was not"
    assert mute.second is None, "there is no answer to judge"
    assert [item.second for item in plain[0]] == [None] * 3, "evaluation is not checked"


TEXTS = ["\\boxed{12}", "\\boxed{7}"] * 4


def nothing_said(scored, settings):
    assert [item.reward for item in scored] == [1.0, 0.0] * 4
    assert not any(item.disputed for item in scored)
    found = check_metrics(counted_opinions([scored]), settings)
    assert found["check/accepted_undecided"] == found["check/rejected_undecided"] == 4
    assert "check/false_accepts" not in found
    return found


def test_a_judge_that_hangs_delays_no_step_beyond_the_limit(started, checking):
    check, ticks = CheckSettings(accepted=1.0, rejected=1.0, timeout=1.0), []
    pid = started.judge.pool._slots[0].worker.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        scored = checking(check, TEXTS, tick=lambda: ticks.append(1))
        assert time.monotonic() - began > 0.9
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(ticks) >= 2, "a person can still stop the run"
    assert nothing_said(scored, check)["check/timeouts"] == 8


def test_a_judge_that_cannot_be_started_changes_no_reward(started, checking, monkeypatch):
    check = patient(1.0, 1.0)
    monkeypatch.setattr(started.judge.pool, "_failure", RuntimeError("no process can be started"))
    assert nothing_said(checking(check, TEXTS), check)["check/faults"] == 8


def test_a_killed_judge_costs_one_verdict_at_most(started, checking):
    item = SimpleNamespace(
        grader="rlvr", problem_id="a", gold="12", response="\\boxed{12}", opened=""
    )
    right, judge = reward.grade("\\boxed{12}", "12"), started.judge
    checking(patient(1.0, 1.0), TEXTS[:1])  # whatever an earlier test left running has ended
    pid = judge.pool._slots[0].worker.pid
    os.kill(pid, signal.SIGSTOP)
    asked = judge.ask([item] * 3, [right] * 3, range(3), 1)
    os.kill(pid, signal.SIGKILL)
    (found,) = judge.answers([asked])
    # None at all if it was killed before it had one of them.
    assert [one.says for one in found].count(True) >= 2
    assert {one.grade.status for one in found if one.says is None} <= {"crash"}


def test_what_other_graders_extract_is_what_is_judged():
    asked = []
    judge = SecondJudge(CheckSettings(accepted=1.0, rejected=1.0), 0)
    judge.pool.submit_pair = lambda *pair: asked.append(pair) or Future()
    item = SimpleNamespace(grader="qwen", problem_id="a", gold="12", response="so 12", opened="")
    verdict = reward.Grade(True, "12", "unknown", "string", "equal")
    assert isinstance(judge.ask([item], [verdict], [0], 1), Asked)
    assert asked == [("12", "12")]
    domain = SimpleNamespace(**{**vars(item), "grader": "choice"})
    assert judge.ask([domain], [verdict], [0], 1).futures == [None]


def test_other_domains_are_refused_with_a_remedy_and_a_mixture_is_told_of():
    def problem(grader, answer="1"):
        return Problem("a", (Message(role="user", content="?"),), answer, "test", grader=grader)

    check = CheckSettings()
    assert check_problems(None, [problem("choice")]) == []
    assert check_problems(check, [problem("qwen")]) == []
    with pytest.raises(ValueError, match=r"the grader is choice; set reward\.check to null"):
        check_problems(check, [problem("choice")])
    with pytest.raises(ValueError, match="there are no answers; set"):
        check_problems(check, [problem("rlvr", "")])
    (line,) = check_problems(check, [problem("rlvr"), problem("choice"), problem("text")])
    assert line.startswith("reward.check judges 1 of 3 problems; those of choice, text")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("check=often", "'often' is no way to check verdicts; give 'sample', null, or shares"),
        ("check.accepted=2", "less than or equal to 1"),
        ("check={accepted: 0, rejected: 0}", "nothing would be judged again; raise one"),
    ],
)
def test_settings_that_check_nothing_are_refused(override, words):
    assert load_settings(RewardSettings, {}, ["check=sample"]).check == CheckSettings()
    assert load_settings(RewardSettings, {}).check is None
    with pytest.raises(ValueError, match=words):
        load_settings(RewardSettings, {}, [override])


def figures(rows):
    """What has nothing to do with time and the second judge, by step."""
    skipped = ("time/", "throughput/", "memory/", "check/", "alarm/disputed")
    steps = {}
    for row in rows:
        own = {key: value for key, value in row.items() if not key.startswith(skipped)}
        steps.setdefault(row["step"], {}).update(own)
    return steps


def opinions(rows):
    found = [
        {k: v for k, v in row.items() if k.startswith("check/") or k == "step"} for row in rows
    ]
    return [row for row in found if len(row) > 1]


def fail_in_update(number, monkeypatch):
    """Have the n-th update fail when its rollout is there: nothing of its step is kept."""
    update, calls = Learner.update, iter(range(1, 100))

    def fail(self, batch):
        if next(calls) == number:
            raise KeyError("stopped here")
        return update(self, batch)

    monkeypatch.setattr(Learner, "update", fail)


def test_a_run_is_bitwise_the_same_with_and_without_and_ends_the_same_if_resumed(
    guessing_folder, tmp_path, monkeypatch
):
    grade_many = VerifierPool.grade_many

    def wrong(pool, pairs, *more):
        """A verifier that is wrong about every answer with a 1."""
        found = grade_many(pool, pairs, *more)
        return [
            replace(one, correct=one.correct != ("1" in pair[0]))
            for pair, one in zip(pairs, found, strict=True)
        ]

    monkeypatch.setattr(VerifierPool, "grade_many", wrong)
    values = partial(small_recipe, guessing_folder)
    short = ["steps=4", "evaluation.sets={}"]
    check = [*short, "reward.check={accepted: 0.5, rejected: 0.5, timeout: 60}"]
    without, plain = run(values(tmp_path / "without"), *short)
    checked, rows = run(values(tmp_path / "with"), *check)
    assert figures(plain) == figures(rows)
    assert opinions(plain) == []
    model = "model/model.safetensors"
    assert (without / model).read_bytes() == (checked / model).read_bytes()
    assert not (without / "disputed.jsonl").exists()
    state = json.loads((without / "checkpoints/step_000004/state.json").read_text())
    assert "check" not in state

    last = opinions(rows)[-1]
    assert last["check/accepted_disputed"] > 3
    assert last["check/false_accepts_low"] > 0
    assert last["check/rejected"] > last["check/rejected_judged"] > 0

    with monkeypatch.context() as patch:
        fail_in_update(4, patch)
        with pytest.raises(KeyError):
            run(values(tmp_path / "again"), *check)
    assert sorted(path.name for path in (tmp_path / "again/checkpoints").iterdir()) == [
        "step_000002"
    ]
    again, resumed = run(values(tmp_path / "again"), *check, resume=True)
    assert opinions(resumed) == opinions(rows)
    assert (again / "disputed.jsonl").read_bytes() == (checked / "disputed.jsonl").read_bytes()

    disputed = [json.loads(line) for line in (checked / "disputed.jsonl").read_text().splitlines()]
    row = disputed[0]
    assert row["verdict"]["correct"] != row["second"]["correct"]
    assert {"extracted", "path", "reason", "certainty"} <= row["verdict"].keys()
    kept = [json.loads(line) for path in sorted((checked / "completions").iterdir())
            for line in path.read_text().splitlines()]  # fmt: skip
    assert {"agrees", "contradicts"} <= {row.get("second_opinion") for row in kept}


def test_a_recipe_of_another_domain_is_refused_before_there_is_a_folder(recipe_values, tmp_path):
    from rlvr.rl.plan import render_plan
    from rlvr.rl.recipe import RLRecipe

    path = tmp_path / "choice.jsonl"
    path.write_text(json.dumps({"problem": "Which?", "answer": "B"}) + "\n")
    source = {"name": "file", "path": str(path), "grader": "choice"}
    overrides = [f"data.source={source}", "reward.check=sample"]
    recipe = load_settings(RLRecipe, recipe_values, overrides)
    with pytest.raises(ValueError, match=r"reward\.check judges only verdicts of mathematics"):
        render_plan(recipe)
    with pytest.raises(ValueError, match=r"reward\.check judges only verdicts of mathematics"):
        run(recipe_values, *overrides)
    assert not recipe.output.exists()
