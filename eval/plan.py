"""The samples to draw: benchmarks, prompts, decoding and seeds, fixed before anything runs.

The plan lists every sample. A sample's seed is a function of (seed, benchmark, problem id, sample
index), so neither the order nor other samples can change it.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from eval.benchmarks import FileRows, LoadedBenchmark, load_benchmark
from eval.evaluation_folder import Key, Row
from eval.protocols import Decoding, Protocol, protocol_by_name
from eval.settings import EvalSettings
from reward.graders import grader_by_name
from rlvr.data import Template, load_template
from rlvr.data.consistency import Grader
from rlvr.data.decoding import thought_markers
from rlvr.data.templates import ends_of
from rlvr.install_hints import VLLM_PACKAGES, installed_versions
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling, sample_seed
from rlvr.types import Message, Problem

_STACK = ("rlvr", "torch", "transformers", "tokenizers", "math-verify", *VLLM_PACKAGES)
# The step in sampling seeds of evaluations; training steps count from 1.
_STEP = -1


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One sample to draw; ``row`` is the index of the problem in its benchmark."""

    benchmark: "PlannedBenchmark"
    row: int
    greedy: bool
    sample: int

    @property
    def key(self) -> Key:
        """The key of the sample in files."""
        return self.benchmark.name, self.benchmark.problems[self.row].id, self.greedy, self.sample

    def request(self, seed: int) -> Request:
        """The request to the engine."""
        name, problem_id, _, sample = self.key
        identity = f"{name}\x1f{problem_id}"
        return Request(
            self.benchmark.prompts[self.row], (sample_seed(seed, _STEP, identity, sample),)
        )


@dataclass(frozen=True, slots=True, eq=False)
class PlannedBenchmark:
    """One benchmark to sample; ``prompts`` are token ids, ``texts`` their text."""

    loaded: LoadedBenchmark
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

    def planned(self) -> Iterator[PlannedSample]:
        """Every sample, in canonical order."""
        decoding = self.decoding
        for row in range(len(self.problems)):
            if decoding.temperature == 0 or self.extra_greedy:
                yield PlannedSample(self, row, True, 0)
            if decoding.temperature > 0:
                for sample in range(decoding.samples):
                    yield PlannedSample(self, row, False, sample)

    def sampling(self, greedy: bool) -> Sampling:
        """The engine's sampling settings."""
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
        """Number of tokens of the longest prompt."""
        return max(len(prompt) for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Everything that will be sampled."""

    settings: EvalSettings
    protocol: Protocol
    benchmarks: tuple[PlannedBenchmark, ...]
    stop_ids: tuple[int, ...]
    notes: tuple[str, ...]
    thoughts: tuple[tuple[str, str], ...] = ()
    """Markers of thoughts that the verifier does not know by itself."""

    @property
    def planned(self) -> list[PlannedSample]:
        """Every sample, in canonical order: by benchmark, problem, greedy first, sample."""
        return [item for benchmark in self.benchmarks for item in benchmark.planned()]

    @property
    def longest(self) -> int:
        """Longest possible sequence (prompt and completion) in tokens."""
        return max(
            benchmark.longest_prompt + benchmark.decoding.max_tokens
            for benchmark in self.benchmarks
        )

    def rounds(
        self, planned: Sequence[PlannedSample]
    ) -> Iterator[tuple[Sampling, list[PlannedSample]]]:
        """Group samples into rounds with equal sampling settings, the longest round and sample
        first.

        Samples that are expected to be long start first, so that none runs alone at the end: they
            are sorted by the limit, by the benchmark's typical length, then by the prompt's length.
        """
        groups: dict[str, tuple[Sampling, list[PlannedSample]]] = {}
        for item in planned:
            sampling = item.benchmark.sampling(item.greedy)
            groups.setdefault(sampling.model_dump_json(), (sampling, []))[1].append(item)
        ordered = sorted(groups.values(), key=lambda item: -item[0].max_tokens)
        for sampling, members in ordered:
            yield sampling, sorted(members, key=_expected_length, reverse=True)

    @property
    def grader(self) -> str:
        """Name of the grader whose verdict counts."""
        return self.settings.grader or self.protocol.grader

    def describe(self) -> Row:
        """The plan as recorded and compared on resuming, without the model."""
        return {
            "protocol": self.protocol.name,
            "grader": self.grader,
            "truncated": self.protocol.truncated,
            "seed": self.settings.seed,
            "limit": self.settings.limit,
            "only": list(self.settings.problems),
            "stop_ids": list(self.stop_ids),
            **({"thoughts": [list(pair) for pair in self.thoughts]} if self.thoughts else {}),
            "benchmarks": {benchmark.name: _describe(benchmark) for benchmark in self.benchmarks},
        }


def _expected_length(item: PlannedSample) -> tuple[int, int]:
    return item.benchmark.loaded.typical_tokens, len(item.benchmark.prompts[item.row])


def _describe(benchmark: PlannedBenchmark) -> Row:
    settings = benchmark.template.settings.model_dump(mode="json", exclude_defaults=True)
    decoding = benchmark.decoding
    return {
        "title": benchmark.loaded.title,
        "data": benchmark.loaded.origin,
        "data_fingerprint": benchmark.loaded.fingerprint,
        "problems": len(benchmark.problems),
        "of": benchmark.loaded.total,
        "samples": decoding.samples if decoding.temperature else 0,
        "greedy": benchmark.extra_greedy or decoding.temperature == 0,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "max_tokens": decoding.max_tokens,
        "template": settings,
        "template_sha256": _sha256(settings),
        "prompts_sha256": _sha256(benchmark.prompts),
    }


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def make_evaluation_plan(
    settings: EvalSettings,
    tokenizer: Any,  # noqa: ANN401
    stop_ids: Sequence[int],
    context: int | None,
) -> EvaluationPlan:
    """Load the benchmarks and encode every prompt.

    Args:
        settings: Settings of the evaluation.
        tokenizer: The model's tokenizer.
        stop_ids: Tokens that always end a completion.
        context: Longest sequence of the model in tokens; a larger completion limit is lowered,
            with a note.

    Raises:
        ValueError: A setting names something unknown or missing, or settings do not fit together.
    """
    protocol = protocol_by_name(settings.protocol)
    grader = settings.grader or protocol.grader
    grader_by_name(grader)
    benchmarks: list[PlannedBenchmark] = []
    notes: list[str] = []
    for choice in settings.benchmarks:
        rows = FileRows(settings.fields, settings.bad_rows, cast(Grader, grader))
        loaded = load_benchmark(choice, settings.data, settings.limit, settings.problems, rows)
        if any(benchmark.name == loaded.name for benchmark in benchmarks):
            raise ValueError(f"benchmark {loaded.name!r} is named twice; name it once")
        if not loaded.problems:
            continue
        benchmark = _plan_benchmark(loaded, settings, protocol, tokenizer)
        fitted, note = _fitted(benchmark, context)
        benchmarks.append(fitted)
        notes += [note] if note else []
    if not benchmarks:
        raise ValueError(f"no benchmark has problems with the ids {list(settings.problems)}")
    extra = [tokenizer.convert_tokens_to_ids(token) for token in protocol.stop_tokens]
    known = [index for index in extra if index is not None and index != tokenizer.unk_token_id]
    for benchmark in benchmarks:
        known += ends_of(benchmark.template, tokenizer, benchmark.prompts)
    return EvaluationPlan(
        settings,
        protocol,
        tuple(benchmarks),
        tuple(sorted({*stop_ids, *known})),
        tuple(notes),
        thought_markers(tokenizer, settings.thoughts),
    )


def _plan_benchmark(
    loaded: LoadedBenchmark,
    settings: EvalSettings,
    protocol: Protocol,
    tokenizer: Any,  # noqa: ANN401
) -> PlannedBenchmark:
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
    return PlannedBenchmark(loaded, template, decoding, tuple(prompts), tuple(texts), extra)


def _stripped(messages: Sequence[Message]) -> list[Message]:
    return [Message(role=turn["role"], content=turn["content"].strip()) for turn in messages]


def _decoding(decoding: Decoding, settings: EvalSettings, name: str) -> Decoding:
    """The protocol's decoding with the values that the settings replace."""
    names = ("samples", "temperature", "top_p", "top_k", "max_tokens")
    given = {item: getattr(settings, item) for item in names if getattr(settings, item) is not None}
    if given.get("temperature") == 0:
        given = {"top_p": 1.0, "top_k": 0, **given}
    chosen = replace(decoding, **given)
    if chosen.temperature == 0 and (chosen.samples > 1 or chosen.top_p < 1 or chosen.top_k):
        if settings.samples is None or settings.samples == 1:
            return replace(chosen, samples=1)
        raise ValueError(
            f"{name}: {chosen.samples} samples at temperature 0 would all be equal; draw one (n = "
            "1), or set a temperature above 0"
        )
    return chosen


def _fitted(
    benchmark: PlannedBenchmark, context: int | None
) -> tuple[PlannedBenchmark, str | None]:
    """The benchmark with a completion limit that fits into the model's context."""
    if context is None or benchmark.longest_prompt + benchmark.decoding.max_tokens <= context:
        return benchmark, None
    room = context - benchmark.longest_prompt
    if room < 1:
        longest = max(range(len(benchmark.prompts)), key=lambda row: len(benchmark.prompts[row]))
        raise ValueError(
            f"{benchmark.name}: the prompt of problem {benchmark.problems[longest].id!r} has "
            f"{benchmark.longest_prompt} tokens, which leaves no room in the model's context of "
            f"{context}; use a shorter template"
        )
    note = (
        f"{benchmark.name}: max_tokens {benchmark.decoding.max_tokens} lowered to {room}: the "
        f"model's context of {context} must also hold prompts of up to {benchmark.longest_prompt} "
        "tokens"
    )
    warnings.warn(note, stacklevel=4)
    return replace(benchmark, decoding=replace(benchmark.decoding, max_tokens=room)), note


def versions() -> dict[str, str]:
    """Installed versions of the packages on which samples and verdicts depend."""
    return installed_versions(_STACK)


def problem_rows(plan: EvaluationPlan) -> list[Row]:
    """The data of the problems for scoring and the report, so that these need no benchmark."""
    return [
        {
            "benchmark": benchmark.name,
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
        for benchmark in plan.benchmarks
        for problem, text in zip(benchmark.problems, benchmark.texts, strict=True)
    ]
