r"""Published evaluation protocols by name: prompt, decoding, stop tokens, grader.

A protocol defines for every benchmark how a problem is worded and how completions are drawn and
graded. Prompts equal those of the sources byte for byte; ``purpose`` says what a source leaves open
(Lp-Reg names no prompt). Options of the command line (``--n``, ``--temperature``, ``--template``,
...) replace the protocol's values, and the manifest records the values used.

Few-shot examples of base-model protocols, tool loops and grading by another model are not
supported.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlvr.data import TemplateSettings

_BOX = "Please reason step by step, and put your final answer within \\boxed{}."
_CHATML_END = ("</s>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How completions are drawn; ``samples`` is per problem, temperature 0 is greedy."""

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 3072


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to evaluate.

    ``templates`` and ``decodings`` contain the values that differ for single benchmarks.
    ``truncated`` says whether a completion cut at the limit is graded like others or counts as
    wrong. ``strip`` removes white space around a problem.
    """

    name: str
    purpose: str
    source: str
    template: TemplateSettings
    decoding: Decoding
    grader: str
    templates: Mapping[str, TemplateSettings] = field(default_factory=dict)
    decodings: Mapping[str, Decoding] = field(default_factory=dict)
    stop_tokens: tuple[str, ...] = ()
    truncated: Literal["grade", "wrong"] = "grade"
    strip: bool = True

    def template_for(self, benchmark: str) -> TemplateSettings:
        """How the benchmark's problems are worded."""
        return self.templates.get(benchmark, self.template)

    def decoding_for(self, benchmark: str) -> Decoding:
        """How the benchmark's completions are drawn."""
        return self.decodings.get(benchmark, self.decoding)


def _chat(user: str = "{problem}", system: str | None = None) -> TemplateSettings:
    return TemplateSettings(mode="chat", system=system, user=user)


def _text(user: str) -> TemplateSettings:
    return TemplateSettings(mode="text", user=user)


def _chatml(system: str, user: str = "{problem}") -> TemplateSettings:
    """ChatML written out, so that the bytes do not depend on a tokenizer's chat template."""
    return _text(
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def _each(names: tuple[str, ...], decoding: Decoding) -> dict[str, Decoding]:
    return dict.fromkeys(names, decoding)


# The model spells its own tokens with full-width bars.
_R1_PROMPT = "<｜begin▁of▁sentence｜><｜User｜>{problem}<｜Assistant｜><think>\n"  # noqa: RUF001
_AIME = ("aime24", "aime25")
_LIGHTEVAL_AIME = (
    "Solve the following math problem efficiently and clearly.  The last line of your response "
    "should be of the following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope "
    "it is correct' (without quotes) where ANSWER is just the final number or expression that "
    "solves the problem. Think step by step before answering.\n\n{problem}"
)
_LIGHTEVAL_MATH = (
    "Solve the following problem. The final line of your response MUST be of the following "
    'format:\n"ANSWER: $ANSWER" (without quotes) where $ANSWER is the final answer. Think step by '
    "step before answering.\n\n{problem}"
)
_ONE_SHOT_SOURCE = "Wang et al., One-Shot RLVR, arXiv 2504.20571, and its released evaluation"

PROTOCOLS: dict[str, Protocol] = {
    item.name: item
    for item in (
        Protocol(
            name="rlvr",
            purpose="Ours: the model's chat template with the boxed-answer instruction, our "
            "verifier, truncated completions count as wrong.",
            source="this project",
            template=_chat(system=_BOX),
            decoding=Decoding(samples=1, temperature=0.6, max_tokens=3072),
            grader="rlvr",
            truncated="wrong",
            strip=False,
        ),
        Protocol(
            name="one_shot_rlvr",
            purpose=(
                "Qwen models: MATH-500, Minerva and OlympiadBench greedily, AIME and AMC avg@8 at "
                "temperature 0.6; last number if there is no box."
            ),
            source=_ONE_SHOT_SOURCE,
            template=_chatml(_BOX),
            decoding=Decoding(),
            decodings=_each((*_AIME, "amc23"), Decoding(samples=8, temperature=0.6)),
            grader="qwen",
            stop_tokens=_CHATML_END,
        ),
        Protocol(
            name="one_shot_rlvr_r1",
            purpose="R1-Distill models: temperature 0.6, top-p 0.95; avg@16, on AIME and AMC "
            "avg@64; 32768 tokens (the paper also gives 8192).",
            source=_ONE_SHOT_SOURCE,
            template=_text(_R1_PROMPT),
            decoding=Decoding(samples=16, temperature=0.6, top_p=0.95, max_tokens=32768),
            decodings=_each(
                (*_AIME, "amc23"),
                Decoding(samples=64, temperature=0.6, top_p=0.95, max_tokens=32768),
            ),
            grader="qwen",
        ),
        Protocol(
            name="lp_reg",
            purpose="AIME avg@16 at temperature 0.6, the others greedily, 8192 tokens. The paper "
            "names no prompt; this is the Qwen one.",
            source="Huang et al., Lp-Reg, arXiv 2510.03222, section 5.1.3",
            template=_chatml(_BOX),
            decoding=Decoding(max_tokens=8192),
            decodings=_each(_AIME, Decoding(samples=16, temperature=0.6, max_tokens=8192)),
            grader="rlvr",
            stop_tokens=_CHATML_END,
        ),
        Protocol(
            name="qwen25_math",
            purpose="Qwen2.5-Math harness, instruct models (qwen25-math-cot): greedy, 2048 tokens.",
            source="QwenLM/Qwen2.5-Math, evaluation",
            template=_chatml(_BOX),
            decoding=Decoding(max_tokens=2048),
            grader="qwen",
            stop_tokens=_CHATML_END,
        ),
        Protocol(
            name="qwen_boxed",
            purpose="Qwen2.5-Math harness, qwen-boxed: the instruction follows the problem.",
            source="QwenLM/Qwen2.5-Math, evaluation",
            template=_chatml("You are a helpful assistant.", f"{{problem}}\n{_BOX}"),
            decoding=Decoding(max_tokens=2048),
            grader="qwen",
            stop_tokens=_CHATML_END,
        ),
        Protocol(
            name="qwen25_math_base",
            purpose="Qwen2.5-Math harness, base models (cot), without its few-shot examples.",
            source="QwenLM/Qwen2.5-Math, evaluation",
            template=_text("Question: {problem}\nAnswer: "),
            decoding=Decoding(max_tokens=2048),
            grader="qwen",
            stop_tokens=_CHATML_END,
        ),
        Protocol(
            name="lighteval",
            purpose="lighteval style through the chat template, as open-r1 runs it: temperature "
            "0.6, top-p 0.95, 32768 tokens; AIME avg@64, MATH-500 avg@4.",
            source="huggingface/lighteval and open-r1",
            template=_chat(_LIGHTEVAL_AIME),
            templates={"math500": _chat(_LIGHTEVAL_MATH)},
            decoding=Decoding(samples=4, temperature=0.6, top_p=0.95, max_tokens=32768),
            decodings=_each(
                _AIME, Decoding(samples=64, temperature=0.6, top_p=0.95, max_tokens=32768)
            ),
            grader="math_verify",
        ),
        Protocol(
            name="dr_grpo",
            purpose="understand-r1-zero with the Qwen template: greedy, 3000 tokens. Its AMC is "
            "another set (83 problems).",
            source="Liu et al., Dr.GRPO, arXiv 2503.20783",
            template=_chatml(_BOX),
            decoding=Decoding(max_tokens=3000),
            grader="math_verify",
            stop_tokens=_CHATML_END,
        ),
        Protocol(
            name="deepseek_r1",
            purpose="No system message, the box sentence in the user turn: temperature 0.6, top-p "
            "0.95, 32768 tokens, avg@64 on AIME and avg@4 elsewhere.",
            source="DeepSeek-R1 report",
            template=_chat(f"{{problem}}\n{_BOX}"),
            decoding=Decoding(samples=4, temperature=0.6, top_p=0.95, max_tokens=32768),
            decodings=_each(
                _AIME, Decoding(samples=64, temperature=0.6, top_p=0.95, max_tokens=32768)
            ),
            grader="rlvr",
        ),
        Protocol(
            name="matharena",
            purpose=(
                "MathArena's AIME prompt; four runs, temperature as the model's authors advise."
            ),
            source="eth-sri/matharena",
            template=_chat(
                "Put your final answer within \\boxed{}.\nThe answer is an integer between 0 and "
                "999 inclusive.\n\n{problem}"
            ),
            decoding=Decoding(samples=4, temperature=0.6, top_p=0.95, max_tokens=32768),
            grader="rlvr",
        ),
    )
}


def protocol_by_name(name: str) -> Protocol:
    """Return a protocol.

    Raises:
        ValueError: There is none of that name; the message names the nearest.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"unknown protocol {name!r}; {hint}known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
