"""Protocols against the strings of the specification, to the byte."""

import re

import pytest

from eval.benchmarks import BENCHMARKS
from eval.protocols import PROTOCOLS, protocol_by_name
from rlvr.data import load_template
from rlvr.policy.tiny import character_tokenizer
from rlvr.types import Message

QUESTION = "What is $\\frac{1}{2} + \\{1\\}$?"


class Plain:
    """A tokenizer that frames nothing: the prompt is what the protocol itself says."""

    bos_token_id = None
    chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    name_or_path = "plain"

    @staticmethod
    def apply_chat_template(turns, **_):
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)


def prompt(name, benchmark="math500", question=QUESTION):
    template = load_template(PROTOCOLS[name].template_for(benchmark))
    return template.render([Message(role="user", content=question)], Plain())


BOX = "Please reason step by step, and put your final answer within \\boxed{}."
CHATML = (
    "<|im_start|>system\n" + BOX + "<|im_end|>\n<|im_start|>user\n" + QUESTION + "<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.mark.parametrize("name", ["one_shot_rlvr", "qwen25_math", "dr_grpo", "lp_reg"])
def test_qwen_prompts(name):
    assert prompt(name) == CHATML


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "one_shot_rlvr_r1",
            f"<｜begin▁of▁sentence｜><｜User｜>{QUESTION}<｜Assistant｜><think>\n",
        ),
        ("qwen25_math_base", f"Question: {QUESTION}\nAnswer: "),
        ("deepseek_r1", f"<user>{QUESTION}\n{BOX}"),
        (
            "qwen_boxed",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"{QUESTION}\n{BOX}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "matharena",
            "<user>Put your final answer within \\boxed{}.\nThe answer is an integer between 0 and "
            f"999 inclusive.\n\n{QUESTION}",
        ),
    ],
)
def test_other_prompts(name, expected):
    assert prompt(name) == expected


def test_the_prompts_are_those_of_the_specification_itself(shared):
    """Read them out of the file, so that both sides cannot share a typing error."""
    text = (shared / "spec" / "one_shot_rlvr.md").read_text()
    ((line,),) = [re.findall(r"`(<\|im_start\|>system.+?)`", text)]
    written = line.replace("\\n", "\n")
    suffix = " Let's think step by step and output the final answer within \\boxed{}."
    evaluation = written.replace(suffix, "").replace("{problem}", QUESTION)
    assert evaluation != written
    assert prompt("one_shot_rlvr") == evaluation
    (r1,) = re.findall(r"`(<｜begin▁of▁sentence｜>.+?)`", text)
    assert prompt("one_shot_rlvr_r1") == r1.replace("\\n", "\n").replace("{problem}", QUESTION)
    table = (shared / "spec" / "eval_protocols.md").read_text()
    (base,) = re.findall(r"base `cot` \| `(.+?)` few-shot", table)
    assert prompt("qwen25_math_base") == base.replace("\\n", "\n").replace("{q}", QUESTION)
    (aime,) = re.findall(r'lighteval \| AIME: "(.+?)"; MATH-500', table)
    position, whole = 0, prompt("lighteval", "aime24").removeprefix("<user>").replace("  ", " ")
    for piece in aime.replace("\\n", "\n").replace("{q}", QUESTION).split("..."):
        position = whole.index(piece.strip(" "), position)
    assert whole.endswith(QUESTION)


@pytest.mark.parametrize(
    ("name", "benchmark", "expected"),
    [
        ("one_shot_rlvr", "math500", (1, 0.0, 1.0, 3072)),
        ("one_shot_rlvr", "minerva", (1, 0.0, 1.0, 3072)),
        ("one_shot_rlvr", "aime25", (8, 0.6, 1.0, 3072)),
        ("one_shot_rlvr", "amc23", (8, 0.6, 1.0, 3072)),
        ("one_shot_rlvr_r1", "olympiadbench", (16, 0.6, 0.95, 32768)),
        ("one_shot_rlvr_r1", "aime24", (64, 0.6, 0.95, 32768)),
        ("lp_reg", "aime24", (16, 0.6, 1.0, 8192)),
        ("lp_reg", "olympiadbench", (1, 0.0, 1.0, 8192)),
        ("qwen25_math", "gsm8k", (1, 0.0, 1.0, 2048)),
        ("dr_grpo", "minerva", (1, 0.0, 1.0, 3000)),
    ],
)
def test_decoding(name, benchmark, expected):
    decoding = PROTOCOLS[name].decoding_for(benchmark)
    found = (decoding.samples, decoding.temperature, decoding.top_p, decoding.max_tokens)
    assert found == expected


def test_single_benchmarks_are_spelt_as_in_the_registry():
    for protocol in PROTOCOLS.values():
        assert {*protocol.templates, *protocol.decodings} <= set(BENCHMARKS)


def test_chat_protocols_go_through_the_models_own_template():
    template = load_template(PROTOCOLS["rlvr"].template)
    rendered = template.render([Message(role="user", content="2+2")], character_tokenizer())
    assert rendered == f"<bos>{BOX}2+2"


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown protocol 'one_shot_rlrv'; did you mean 'one_s"):
        protocol_by_name("one_shot_rlrv")
