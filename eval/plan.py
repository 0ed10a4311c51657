"""What is to be sampled: benchmarks, prompts, decoding and seeds, fixed before anything runs.

The plan names every sample there will be. A sample's seed is a function of (seed, benchmark,
problem id, sample index), so neither the order nor what else is sampled can change it.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field

from eval.benchmarks import Loaded, load_benchmark
from eval.files import Key, Row
from eval.protocols import Decoding, Protocol, protocol_by_name
from reward.graders import grader_by_name
from rlvr.data import Template, TemplateChoice, load_template
from rlvr.remedies import VLLM_PACKAGES
from rlvr.rollout import EngineSettings, Request, Sampling, TransformersEngineSettings, sample_seed
from rlvr.settings import Settings
from rlvr.types import Message, Problem

_STACK = ("rlvr", "torch", "transformers", "tokenizers", "math-verify", *VLLM_PACKAGES)
# Sampling seeds of evaluations; training steps count from 1.
_STEP = -1


class EvalSettings(Settings):
    """What ``rlvr eval`` does, apart from the model."""

    benchmarks: tuple[str, ...] = ("math500",)
    """Names, NAME@REVISION, or files of your own ([NAME=]PATH)."""
    protocol: str = "rlvr"
    """Prompt, decoding and grader of a published evaluation, by name."""
    template: TemplateChoice | None = None
    """Prompt template instead of the protocol's: a built-in name or a YAML file."""
    samples: int | None = Field(None, ge=1)
    """Samples of each problem, instead of the protocol's number."""
    temperature: float | None = Field(None, ge=0)
    """Instead of the protocol's; 0 is greedy."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Instead of the protocol's."""
    top_k: int | None = Field(None, ge=0)
    """Instead of the protocol's; 0 keeps all tokens."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of a completion, instead of the protocol's."""
    greedy: bool = False
    """One greedy completion of each problem beside the samples."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Of all sampling."""
    limit: int | None = Field(None, ge=1)
    """Only so many problems of each benchmark, evenly spread: a trial, and marked as one."""
    problems: tuple[str, ...] = ()
    """Only problems with these ids."""
    data: Path | None = None
    """Folder of benchmark files instead of the Hub; null looks at RLVR_BENCHMARKS."""
    engine: EngineSettings = TransformersEngineSettings()
    """What generates."""
    task_loss: bool = False
    """Also the bits that the model needs for each reference answer."""
    grader: str | None = None
    """Instead of the protocol's: rlvr, one_shot_rlvr, qwen, exact or math_verify."""
    workers: int = Field(2, ge=1)
    """Grading processes."""
    timeout: float = Field(5.0, gt=0)
    """Seconds a verdict may take."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sample to be drawn; ``row`` is the problem's place in its task."""

    task: "Task"
    row: int
    greedy: bool
    sample: int

    @property
    def key(self) -> Key:
        """What the sample is called in files."""
        return self.task.name, self.task.problems[self.row].id, self.greedy, self.sample

    def request(self, seed: int) -> Request:
        """What the engine is asked for."""
        name, problem_id, _, sample = self.key
        identity = f"{name}\x1f{problem_id}"
        return Request(self.task.prompts[self.row], (sample_seed(seed, _STEP, identity, sample),))


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One benchmark as it will be sampled; ``prompts`` are token ids, ``texts`` their text."""

    loaded: Loaded
    template: Template
    decoding: Decoding
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    extra_greedy: bool

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.loaded.name

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems, in order."""
        return self.loaded.problems

    def jobs(self) -> Iterator[Job]:
        """Every sample, in canonical order."""
        decoding = self.decoding
        for row in range(len(self.problems)):
            if decoding.temperature == 0 or self.extra_greedy:
                yield Job(self, row, True, 0)
            if decoding.temperature > 0:
                for sample in range(decoding.samples):
                    yield Job(self, row, False, sample)

    def sampling(self, greedy: bool) -> Sampling:
        """How the engine draws."""
        decoding = self.decoding
        if greedy:
            return Sampling(max_tokens=decoding.max_tokens, temperature=0.0)
        return Sampling(
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
        )

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt) for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be sampled."""

    settings: EvalSettings
    protocol: Protocol
    tasks: tuple[Task, ...]
    stop_ids: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def jobs(self) -> list[Job]:
        """Every sample, in canonical order: by benchmark, problem, greedy first, sample."""
        return [job for task in self.tasks for job in task.jobs()]

    @property
    def longest(self) -> int:
        """Longest sequence, prompt and completion, that may come about."""
        return max(task.longest_prompt + task.decoding.max_tokens for task in self.tasks)

    def rounds(self, jobs: Sequence[Job]) -> Iterator[tuple[Sampling, list[Job]]]:
        """The jobs by how they are drawn, each round longest first, the longest round first.

        What is expected to be long starts first, so that no straggler runs alone at the end: by
        the limit, by the benchmark's typical length, then by the prompt's length.
        """
        groups: dict[str, tuple[Sampling, list[Job]]] = {}
        for job in jobs:
            sampling = job.task.sampling(job.greedy)
            groups.setdefault(sampling.model_dump_json(), (sampling, []))[1].append(job)
        ordered = sorted(groups.values(), key=lambda item: -item[0].max_tokens)
        for sampling, members in ordered:
            yield sampling, sorted(members, key=_expected_length, reverse=True)

    @property
    def grader(self) -> str:
        """Name of the grader whose verdict counts."""
        return self.settings.grader or self.protocol.grader

    def describe(self) -> Row:
        """The plan as it is recorded and compared on resuming; without the model."""
        return {
            "protocol": self.protocol.name,
            "grader": self.grader,
            "truncated": self.protocol.truncated,
            "seed": self.settings.seed,
            "limit": self.settings.limit,
            "only": list(self.settings.problems),
            "stop_ids": list(self.stop_ids),
            "benchmarks": {task.name: _describe(task) for task in self.tasks},
        }


def _expected_length(job: Job) -> tuple[int, int]:
    return job.task.loaded.typical_tokens, len(job.task.prompts[job.row])


def _describe(task: Task) -> Row:
    settings = task.template.settings.model_dump(mode="json", exclude_defaults=True)
    decoding = task.decoding
    return {
        "title": task.loaded.title,
        "data": task.loaded.origin,
        "data_fingerprint": task.loaded.fingerprint,
        "problems": len(task.problems),
        "of": task.loaded.total,
        "samples": decoding.samples if decoding.temperature else 0,
        "greedy": task.extra_greedy or decoding.temperature == 0,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "max_tokens": decoding.max_tokens,
        "template": settings,
        "template_sha256": _sha256(settings),
        "prompts_sha256": _sha256(task.prompts),
    }


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def make_plan(
    settings: EvalSettings,
    tokenizer: Any,  # noqa: ANN401
    stop_ids: Sequence[int],
    context: int | None,
) -> Plan:
    """Load the benchmarks and encode every prompt.

    Args:
        settings: What is wanted.
        tokenizer: The model's.
        stop_ids: Tokens that end a completion anyway.
        context: Longest sequence of the model; a completion limit that does not fit is lowered,
            with a note.

    Raises:
        ValueError: Something that is asked for is unknown, missing or cannot go together.
    """
    protocol = protocol_by_name(settings.protocol)
    grader_by_name(settings.grader or protocol.grader)
    tasks: list[Task] = []
    notes: list[str] = []
    for choice in settings.benchmarks:
        loaded = load_benchmark(choice, settings.data, settings.limit, settings.problems)
        if any(task.name == loaded.name for task in tasks):
            raise ValueError(f"benchmark {loaded.name!r} is asked for twice; name it once")
        if not loaded.problems:
            continue
        task = _task(loaded, settings, protocol, tokenizer)
        fitted, note = _fitted(task, context)
        tasks.append(fitted)
        notes += [note] if note else []
    if not tasks:
        raise ValueError(f"no benchmark has problems with the ids {list(settings.problems)}")
    extra = [tokenizer.convert_tokens_to_ids(token) for token in protocol.stop_tokens]
    known = [index for index in extra if index is not None and index != tokenizer.unk_token_id]
    return Plan(settings, protocol, tuple(tasks), tuple(sorted({*stop_ids, *known})), tuple(notes))


def _task(
    loaded: Loaded,
    settings: EvalSettings,
    protocol: Protocol,
    tokenizer: Any,  # noqa: ANN401
) -> Task:
    chosen = settings.template or protocol.template_for(loaded.name)
    template = load_template(chosen)
    template.check(tokenizer)
    decoding = _decoding(protocol.decoding_for(loaded.name), settings, loaded.name)
    texts, prompts = [], []
    for problem in loaded.problems:
        messages = _stripped(problem.messages) if protocol.strip else problem.messages
        texts.append(template.render(messages, tokenizer))
        prompts.append(tuple(template.encode(messages, tokenizer)))
    extra = settings.greedy and decoding.temperature > 0
    return Task(loaded, template, decoding, tuple(prompts), tuple(texts), extra)


def _stripped(messages: Sequence[Message]) -> list[Message]:
    return [Message(role=turn["role"], content=turn["content"].strip()) for turn in messages]


def _decoding(decoding: Decoding, settings: EvalSettings, name: str) -> Decoding:
    """The protocol's decoding with what the settings say in its place."""
    names = ("samples", "temperature", "top_p", "top_k", "max_tokens")
    given = {item: getattr(settings, item) for item in names if getattr(settings, item) is not None}
    if given.get("temperature") == 0:
        given = {"top_p": 1.0, "top_k": 0, **given}
    chosen = replace(decoding, **given)
    if chosen.temperature == 0 and (chosen.samples > 1 or chosen.top_p < 1 or chosen.top_k):
        if settings.samples is None or settings.samples == 1:
            return replace(chosen, samples=1)
        raise ValueError(
            f"{name}: {chosen.samples} samples at temperature 0 would all be the same; ask for one "
            "(n = 1), or set a temperature above 0"
        )
    return chosen


def _fitted(task: Task, context: int | None) -> tuple[Task, str | None]:
    """The task with a completion limit that the model's context holds."""
    if context is None or task.longest_prompt + task.decoding.max_tokens <= context:
        return task, None
    room = context - task.longest_prompt
    if room < 1:
        longest = max(range(len(task.prompts)), key=lambda row: len(task.prompts[row]))
        raise ValueError(
            f"{task.name}: the prompt of problem {task.problems[longest].id!r} has "
            f"{task.longest_prompt} tokens, which leaves no room in the model's context of "
            f"{context}; use a shorter template"
        )
    note = (
        f"{task.name}: max_tokens {task.decoding.max_tokens} lowered to {room}: the model's "
        f"context of {context} must also hold prompts of up to {task.longest_prompt} tokens"
    )
    warnings.warn(note, stacklevel=4)
    return replace(task, decoding=replace(task.decoding, max_tokens=room)), note


def versions() -> dict[str, str]:
    """Installed versions of the packages that samples and verdicts depend on."""
    found = {}
    for name in _STACK:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def problem_rows(plan: Plan) -> list[Row]:
    """What scoring and the report need of the problems, so that they need no benchmark."""
    return [
        {
            "benchmark": task.name,
            "problem": problem.id,
            "prompt": text,
            "question": problem.messages[-1]["content"],
            "answer": problem.answer,
            **{
                name: problem.metadata[name]
                for name in ("level", "subject")
                if name in problem.metadata
            },
        }
        for task in plan.tasks
        for problem, text in zip(task.problems, task.texts, strict=True)
    ]
