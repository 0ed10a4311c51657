"""Thoughts: whatever a family calls them, no answer is read inside of one."""

import pytest

from reward import GradingPolicy, VerifierPool, grade
from reward.command import grade_file
from reward.extract import extract
from reward.functions import RewardInput, resolve
from reward.thoughts import KNOWN, left_open, pairs_among, tags_in
from reward.verdict import Grade

BOX = "\\boxed{4}"
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(("opening", "closing"), [*KNOWN, (ANALYSIS, FINAL)])
def test_only_what_follows_a_thought_is_an_answer(opening, closing):
    assert grade(f"{opening}five{closing}{BOX}", "4").correct
    assert not grade(f"{opening}{BOX}{closing}\\boxed{{5}}", "4").correct
    for unfinished in (
        f"{opening}{BOX}",
        f"{opening}{BOX}{closing}",
        f"{opening}{BOX}{closing} so",
    ):
        assert grade(unfinished, "4").status == "no_answer"


@pytest.mark.parametrize(
    "response",
    [
        f"{ANALYSIS}{BOX}<|end|>",
        f"{ANALYSIS}{BOX}<|end|><|start|>assistant<|channel|>commentary<|message|>{BOX}",
        "<|channel|>anal",
        f"{BOX}<|channel|>analysis",
    ],
)
def test_only_the_final_channel_answers(response):
    assert extract(response).answer is None
    final = "<|channel|>final <|constrain|>json<|message|>\\boxed{5}<|return|>\\boxed{6}"
    assert extract(response + final).answer == "5"


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\nOkay, let me", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
        ("2+2?<\uff5cAssistant\uff5c><think>\n", "<think>"),
        ("[INST]2+2?[/INST][THINK]", "[THINK]"),
        ("assistant\n\u25c1think\u25b7", "\u25c1think\u25b7"),
        (f"<|start|>assistant{ANALYSIS}", ANALYSIS),
        ("<|start|>assistant<|channel|>final<|message|>", ""),
        ("User: 2+2?\nAssistant: <think>", "<think>"),
        ("Begin with <think> and end with </think>. 2+2?", ""),
        ("Begin with <think>.<|im_end|>\n<|im_start|>assistant\n", ""),
        ("What does <think> mean?", ""),
        ("Write\n<think>\nthoughts\nQuestion: 2+2?\nAnswer:", ""),
        ("<think>one</think>1\nQ: 2?\n<think>", "<think>"),
        ("", ""),
    ],
)
def test_a_prompt_opens_a_thought_only_where_it_ends_inside_one(prompt, opened):
    assert left_open(prompt) == opened
    assert grade(left_open(prompt) + BOX, "4").correct == (not opened)


def test_markers_are_recognised_by_their_names_or_given():
    tags = [
        "<|think_start|>", "<tool_call>", "</tool_call>", "<|think_end|>", "<|reasoning_effort|>",
        "<my:thoughts>", "</my:thoughts>", "[REASON]", "[/REASON]",
    ]  # fmt: skip
    pairs = pairs_among(tags)
    assert pairs == (
        ("<|think_start|>", "<|think_end|>"),
        ("<my:thoughts>", "</my:thoughts>"),
        ("[REASON]", "[/REASON]"),
    )
    assert pairs_among(tags_in("{{ '<deep_think>\\n' + m['thought'] }}</deep_think>")) == (
        ("<deep_think>", "</deep_think>"),
    )
    response = f"<plan>{BOX}</plan>"
    assert grade(response, "4").correct
    policy = GradingPolicy(thoughts=(("<plan>", "</plan>"),))
    assert not grade(response, "4", policy).correct
    with VerifierPool(policy=policy) as pool:
        assert not pool.submit(response, "4").result(timeout=30).correct
        assert pool.submit(f"<plan></plan>{BOX}", "4").result(timeout=30).correct


def test_format_rewards_know_how_the_prompt_ended():
    def given(name, response, **fields):
        found = Grade(True, "4", "integer", "string", "the same text")
        return resolve(name)(RewardInput(response, "4", found, **fields))

    assert given("format_boxed", BOX) == 1.0
    assert given("format_boxed", BOX, opened="<think>") == 0.0
    assert given("format_boxed", f"two</think>{BOX}", opened="<think>") == 1.0
    assert given("format_think", f"[THINK]two[/THINK]{BOX}") == 1.0
    assert given("format_think", f"<plan>two</plan>{BOX}") == 0.0
    assert given("format_think", f"<plan>a</plan>{BOX}", thoughts=(("<plan>", "</plan>"),)) == 1.0


def test_a_file_with_prompts_is_graded_with_regard_to_them(tmp_path):
    rows = tmp_path / "rows.jsonl"
    line = '{"prompt": "2+2?\\n%s", "response": "\\\\boxed{4}", "gold": "4"}\n'
    rows.write_text(line % "" + line % "<think>\\n")
    assert grade_file(rows, echo=lambda _: None).correct == 1
