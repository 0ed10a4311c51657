"""``rlvr distill generate``: every trace on disk as it finishes; the same command resumes.

OUT/plan.json               what traces depend on; an array's jobs share it
OUT/recipe.yaml             the resolved recipe
OUT/parts/part_I_of_N.jsonl traces as they finish, one file a process
OUT/log.jsonl               when a process ran, how fast, where the time went
OUT/traces.jsonl            all traces, graded, in canonical order (by ``rlvr distill filter``)
OUT/kept.jsonl              those that survived the filter
OUT/filter.json             how many did not, and why

Which traces a part holds depends on its number alone, and random numbers on problem, number and
position alone: killed at any time and gone on with, the set of traces is the same.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.distill.job import Job, TraceEngine
from rlvr.distill.lane import LaneSource, ModelSource
from rlvr.distill.lockstep import LockstepEngine, TransformersTraceSettings
from rlvr.distill.models import Loaded, TraceModel, describe_trace_model, load_trace_model
from rlvr.distill.pieces import PieceEngine
from rlvr.distill.plan import Plan, make_plan, trace_of
from rlvr.distill.recipe import DistillRecipe
from rlvr.distill.trace import Trace, trace_id
from rlvr.distill.vllm_lane import VllmSource, VllmTraceSettings
from rlvr.jsonl import Appender, Row, differences, line, read_lines, write_atomically
from rlvr.progress import progress_bar
from rlvr.settings import to_yaml

PARTS, PLAN, RECIPE, LOG = "parts", "plan.json", "recipe.yaml", "log.jsonl"


def generate(
    recipe: DistillRecipe, *, resume: bool = False, console: Console | None = None
) -> Path:
    """Generate this process's part of the traces; returns the file it appends to.

    Raises:
        ValueError: Something cannot be done; the message says why and what to change.
    """
    console = console or Console()
    part, parts = recipe.shard.resolved()
    path = recipe.output / PARTS / f"part_{part:04d}_of_{parts:04d}.jsonl"
    if path.is_file() and not resume:
        raise ValueError(
            f"{str(path)!r} holds traces; go on with --resume, or choose another output"
        )
    teacher, student = load_models(recipe)
    plan = make_plan(recipe, teacher, student)
    if plan.notice:
        console.print(plan.notice)
    prepare_folder(recipe, plan)
    done = finished_ids(recipe.output)
    mine = plan.share(part, parts)
    missing = [job for job in mine if trace_id(job.problem_id, job.sample) not in done]
    engine = build_engine(recipe, plan, teacher, student)
    try:
        _write_traces(plan, missing, engine, student.tokenizer, path, console, len(mine))
    finally:
        engine.close()
    return path


def load_models(recipe: DistillRecipe) -> tuple[Loaded, Loaded]:
    """Teacher and student; one model under the same settings is loaded once.

    For vLLM, which loads them itself, without weights; likewise one that an arm does not run,
    unless text is exchanged.
    """
    elsewhere = isinstance(recipe.engine, VllmTraceSettings)

    text = recipe.vocabulary.matching == "text"

    def load(settings: TraceModel, used: bool) -> Loaded:
        used = used or text
        return (
            describe_trace_model(settings) if elsewhere or not used else load_trace_model(settings)
        )

    student = load(recipe.student, recipe.rule.uses_student)
    if recipe.teacher == recipe.student and recipe.rule.arm == "rsd":
        return student, student
    return load(recipe.teacher, recipe.rule.uses_teacher), student


def build_engine(
    recipe: DistillRecipe, plan: Plan, teacher: Loaded, student: Loaded
) -> TraceEngine:
    """The engine that the recipe names."""
    how = recipe.engine
    if plan.vocabulary.matching == "text":
        assert isinstance(how, TransformersTraceSettings), "the recipe refuses other engines"
        return PieceEngine(
            teacher,
            student,
            recipe.vocabulary,
            recipe.rule,
            plan.stop_ids,
            recipe.max_tokens,
            recipe.seed,
            how,
        )
    # One request in flight at each process: both work at the same time.
    together = (
        how
        if isinstance(how, TransformersTraceSettings)
        else TransformersTraceSettings(rows=how.rows, block=how.block, overlap=True)
    )
    with ExitStack() as stack:  # a second process that does not start takes the first with it
        sources: list[LaneSource | None] = []
        for loaded, settings, pool, used in (
            (teacher, recipe.teacher, recipe.rule.teacher, recipe.rule.uses_teacher),
            (student, recipe.student, recipe.rule.student, recipe.rule.uses_student),
        ):
            source = _source(recipe, plan, loaded, settings, pool.top_k) if used else None
            sources.append(source)
            if source is not None:
                stack.callback(source.close)
        stack.pop_all()
    return LockstepEngine(
        sources[0],
        sources[1],
        plan.vocabulary,
        recipe.rule,
        plan.stop_ids,
        recipe.max_tokens,
        recipe.seed,
        together,
    )


def _source(
    recipe: DistillRecipe, plan: Plan, loaded: Loaded, settings: TraceModel, top_k: int
) -> LaneSource:
    if isinstance(recipe.engine, VllmTraceSettings):
        return VllmSource(settings, recipe.engine, top_k, plan.longest(loaded.context))
    return ModelSource(loaded.model)


def prepare_folder(recipe: DistillRecipe, plan: Plan) -> None:
    """See that the folder is for traces of these settings, and note them.

    Raises:
        ValueError: It holds traces of other settings (the differences are named).
    """
    described = plan.describe()
    path = recipe.output / PLAN
    if path.is_file():
        found = read_lines(path).rows
        remedy = "choose another output, or the same settings"
        check_same(recipe.output, found[0] if found else {}, described, remedy)
        return
    recipe.output.mkdir(parents=True, exist_ok=True)
    write_atomically(recipe.output / RECIPE, to_yaml(recipe))
    write_atomically(path, line(described))


def check_same(folder: Path, found: Row, wanted: Row, remedy: str) -> None:
    """See that traces were made as is wanted.

    Raises:
        ValueError: They were not; the differences are named.
    """
    changes = list(differences(found, wanted))
    if changes:
        shown = "; ".join(changes[:4]) + ("; ..." if changes[4:] else "")
        raise ValueError(
            f"{str(folder)!r} holds traces made with other settings: {shown}; {remedy}"
        )


def part_rows(folder: Path) -> Iterator[Row]:
    """Every whole row of the parts; a line cut by a kill is as if it had not been written."""
    for path in sorted((folder / PARTS).glob("part_*.jsonl")):
        yield from read_lines(path).rows


def finished_ids(folder: Path) -> set[str]:
    """Ids of the traces that are on disk."""
    return {str(row["id"]) for row in part_rows(folder)}


def _write_traces(
    plan: Plan,
    jobs: list[Job],
    engine: TraceEngine,
    tokenizer: Any,  # noqa: ANN401
    path: Path,
    console: Console,
    total: int,
) -> None:
    began, round_trips, stopped = time.perf_counter(), 0, 0
    prompts = {prompt.problem.id: prompt for prompt in plan.prompts}
    with Appender(path) as file, progress_bar(console) as bar:
        done = total - len(jobs)
        bar.show("traces", done, total)
        for written in engine.generate(jobs):
            trace = trace_of(written, plan, prompts[written.job.problem_id], tokenizer)
            file.add(trace.model_dump(mode="json"))
            done += 1
            round_trips += _round_trips(trace, tokenizer)
            stopped += trace.finish_reason == "stop"
            bar.show("traces", done, total)
    count, seconds = max(1, len(jobs)), time.perf_counter() - began
    metrics = engine.metrics()
    row = {
        "time": time.time(),
        "part": path.name,
        "distill/traces": len(jobs),
        "distill/seconds": seconds,
        "distill/tokens_per_second": metrics.get("distill/tokens", 0) / max(seconds, 1e-9),
        "distill/stopped_rate": stopped / count,
        "distill/round_trip_rate": round_trips / count,
        **metrics,
    }
    _note(plan.recipe.output / LOG, row)
    console.print(
        f"{len(jobs)} traces, {row['distill/tokens_per_second']:.0f} tokens/s, "
        f"{row['distill/stopped_rate']:.0%} ended by themselves, "
        f"{row.get('distill/fallback_rate', 0):.1%} of tokens by the student",
        highlight=False,
    )


def _round_trips(trace: Trace, tokenizer: Any) -> bool:  # noqa: ANN401
    """Whether tokenising the trace's text again gives its ids."""
    text = tokenizer.decode(list(trace.token_ids))
    return tuple(tokenizer.encode(text, add_special_tokens=False)) == trace.token_ids


def _note(path: Path, row: Row) -> None:
    rounded = {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(line(rounded))
