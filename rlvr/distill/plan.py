"""The traces to generate: one for each problem and sample number, with both models' prompts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlvr.data import Prompt, encode_prompts, load_problems, load_template
from rlvr.data.decoding import ResponseDecoder
from rlvr.distill.recipe import DistillRecipe
from rlvr.distill.trace import STUDENT, TEACHER, Trace, trace_id
from rlvr.distill.trace_model import LoadedModel
from rlvr.distill.trace_request import TraceRequest, Written
from rlvr.distill.vocabulary_match import Vocabulary, match_vocabularies
from rlvr.settings import to_yaml


@dataclass(frozen=True)
class TracePlan:
    """All traces to generate, in canonical order: by problem, then by sample number."""

    recipe: DistillRecipe
    prompts: tuple[Prompt, ...]
    teacher_prompts: tuple[tuple[int, ...], ...]
    vocabulary: Vocabulary
    stop_ids: tuple[int, ...]
    notice: str | None

    @property
    def requests(self) -> list[TraceRequest]:
        """All traces to generate."""
        return [
            TraceRequest(prompt.problem.id, sample, prompt.ids, teacher_ids)
            for prompt, teacher_ids in zip(self.prompts, self.teacher_prompts, strict=True)
            for sample in range(self.recipe.samples)
        ]

    def share(self, part: int, parts: int) -> list[TraceRequest]:
        """One contiguous part of the traces, so that traces of a problem share their prompt."""
        requests = self.requests
        return requests[len(requests) * part // parts : len(requests) * (part + 1) // parts]

    def longest(self, context: int | None) -> int:
        """Length in tokens of the longest sequence that a model may run; its whole context if some
        tokens are spelled out, because that makes traces longer."""
        longest = max(
            len(ids)
            for request in self.requests
            for ids in (request.student_prompt, request.teacher_prompt)
        )
        needed = longest + self.recipe.max_tokens + self.recipe.engine.block
        if self.vocabulary.spellings and context is not None:
            return context
        return needed if context is None else min(needed, context)

    def describe(self) -> dict[str, Any]:
        """What traces depend on: it is recorded and compared on resuming."""
        ids = [(prompt.problem.id, prompt.ids) for prompt in self.prompts]
        content = json.dumps([ids, self.teacher_prompts])
        return {
            "format": 1,
            "fingerprint": self.recipe.fingerprint,
            "settings": self.recipe.identity,
            "matching": self.vocabulary.matching,
            "stop_ids": list(self.stop_ids),
            "problems": [prompt.problem.id for prompt in self.prompts],
            "prompts_sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
        }


def make_trace_plan(recipe: DistillRecipe, teacher: LoadedModel, student: LoadedModel) -> TracePlan:
    """Load the problems, match the vocabularies and encode every prompt.

    Raises:
        ValueError: The vocabularies do not match; a prompt plus ``max_tokens`` exceeds a model's
            context; a stop token is unknown; the data cannot be used.
    """
    stop_ids = tuple(sorted({*student.stop_ids, *_stop_ids(recipe.stop, student.tokenizer)}))
    vocabulary = match_vocabularies(
        teacher.tokenizer,
        student.tokenizer,
        recipe.vocabulary,
        stop_ids,
        (teacher.vocab_size, student.vocab_size),
    )
    template = load_template(recipe.data.template)
    encoded = encode_prompts(
        load_problems(recipe.data.source),
        template,
        student.tokenizer,
        recipe.data.max_prompt_tokens,
    )
    for prompt in encoded.prompts:
        if not prompt.ids:
            raise ValueError(
                f"problem {prompt.problem.id!r} has an empty prompt; set data.template"
            )
    plan = TracePlan(
        recipe,
        encoded.prompts,
        _teacher_prompts(recipe, encoded.prompts, vocabulary, teacher),
        vocabulary,
        stop_ids,
        encoded.notice,
    )
    _check_context(plan, teacher, student)
    return plan


def _stop_ids(tokens: Sequence[str], tokenizer: Any) -> list[int]:  # noqa: ANN401
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if token not in vocabulary:
            raise ValueError(
                f"stop names {token!r}, which is not a single token of the student; name one from "
                "its vocabulary"
            )
    return [vocabulary[token] for token in tokens]


def _teacher_prompts(
    recipe: DistillRecipe, prompts: Sequence[Prompt], vocabulary: Vocabulary, teacher: LoadedModel
) -> tuple[tuple[int, ...], ...]:
    own = recipe.data.teacher_template
    if own is None and vocabulary.matching != "text":
        return tuple(vocabulary.spelled_all(prompt.ids) for prompt in prompts)
    template = load_template(recipe.data.template if own is None else own)
    template.check(teacher.tokenizer)
    return tuple(
        tuple(template.encode(prompt.problem.messages, teacher.tokenizer)) for prompt in prompts
    )


def _check_context(plan: TracePlan, teacher: LoadedModel, student: LoadedModel) -> None:
    sides = (
        (
            "student",
            student,
            [prompt.ids for prompt in plan.prompts],
            plan.recipe.acceptance_rule.uses_student,
        ),
        ("teacher", teacher, plan.teacher_prompts, plan.recipe.acceptance_rule.uses_teacher),
    )
    engine = plan.recipe.engine
    ahead = engine.block - 1 if engine.name == "vllm" else 0  # drafts need room in the context
    for whose, loaded, prompts, used in sides:
        longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
        needed = len(prompts[longest]) + plan.recipe.max_tokens + ahead
        if used and loaded.context is not None and needed > loaded.context:
            block = f" and engine.block {engine.block}" if ahead else ""
            raise ValueError(
                f"the prompt of problem {plan.prompts[longest].problem.id!r} has "
                f"{len(prompts[longest])} tokens; with max_tokens {plan.recipe.max_tokens}{block} "
                f"that exceeds the {whose}'s context of {loaded.context}; lower max_tokens or "
                "data.max_prompt_tokens"
            )


def trace_of(written: Written, plan: TracePlan, prompt: Prompt, tokenizer: Any) -> Trace:  # noqa: ANN401
    """The row of a finished trace; its text is decoded only here."""
    return Trace(
        id=trace_id(written.request.problem_id, written.request.sample),
        problem_id=written.request.problem_id,
        sample=written.request.sample,
        prompt=tokenizer.decode(list(prompt.ids)),
        prompt_ids=prompt.ids,
        token_ids=written.token_ids,
        text=ResponseDecoder(tokenizer)(
            written.token_ids, finished=written.finish_reason == "stop"
        ),
        finish_reason=written.finish_reason,
        answer=prompt.problem.answer,
        writer="".join(TEACHER if draw else STUDENT for draw in written.draws),
        teacher_prob=written.teacher_prob,
        student_prob=written.student_prob,
        settings=plan.recipe.fingerprint,
    )


def render_plan(recipe: DistillRecipe) -> str:
    """What ``--dry-run`` prints: the resolved recipe and what follows from it.

    Raises:
        ValueError: The problems cannot be loaded.
    """
    problems = load_problems(recipe.data.source)
    part, parts = recipe.shard.resolved()
    total = len(problems) * recipe.samples
    mine = total * (part + 1) // parts - total * part // parts
    lines = [
        to_yaml(recipe).rstrip(),
        "",
        f"# {len(problems)} problems x {recipe.samples} samples = {total} traces, at most "
        f"{total * recipe.max_tokens:,} tokens",
        f"# part {part} of {parts}: {mine} traces; fingerprint {recipe.fingerprint}",
    ]
    return "\n".join(lines)
