"""``rlvr distill generate``: write every trace to disk as it finishes; --resume continues.

OUT/plan.json               what the traces depend on; the tasks of a SLURM array share it
OUT/recipe.yaml             the resolved recipe
OUT/parts/part_I_of_N.jsonl traces as they finish, one file per process
OUT/log.jsonl               when a process ran, how fast it was, where the time went
OUT/traces.jsonl            all traces, graded, in canonical order (by ``rlvr distill filter``)
OUT/kept.jsonl              the traces that survived the filter
OUT/filter.json             how many were dropped, and why

Which traces a part holds depends only on its number, and random numbers depend only on problem,
sample number and position: a run that is killed and resumed gives the same set of traces.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.distill.decode_batch import DecodeModel, TransformersDecodeModel
from rlvr.distill.lockstep import LockstepEngine
from rlvr.distill.pieces import PieceEngine
from rlvr.distill.plan import TracePlan, make_trace_plan, trace_of
from rlvr.distill.recipe import DistillRecipe
from rlvr.distill.settings import TraceModel, TransformersTraceSettings, VllmTraceSettings
from rlvr.distill.trace import Trace, trace_id
from rlvr.distill.trace_model import LoadedModel, describe_trace_model, load_trace_model
from rlvr.distill.trace_request import TraceEngine, TraceRequest
from rlvr.distill.vllm_decode_batch import VllmDecodeModel
from rlvr.files import (
    Appender,
    Row,
    append_line,
    differences,
    line,
    locked,
    read_lines,
    remove_leftovers,
    write_atomically,
)
from rlvr.progress import progress_bar, watching
from rlvr.settings import to_yaml

PARTS, PLAN, RECIPE, LOG = "parts", "plan.json", "recipe.yaml", "log.jsonl"


def generate(
    recipe: DistillRecipe, *, resume: bool = False, console: Console | None = None
) -> Path:
    """Generate this process's part of the traces; return the file to which it appends.

    Raises:
        ValueError: The recipe cannot be run; the message says why and what to change.
    """
    console = console or Console()
    part, parts = recipe.shard.resolved()
    path = recipe.output / PARTS / f"part_{part:04d}_of_{parts:04d}.jsonl"
    if path.is_file() and not resume:
        raise ValueError(
            f"{str(path)!r} already holds traces; continue with --resume, or choose another output"
        )
    with watching("loading the models", console):
        teacher, student = load_models(recipe)
    plan = make_trace_plan(recipe, teacher, student)
    if plan.notice:
        console.print(plan.notice)
    prepare_folder(recipe, plan)
    with locked(path.with_suffix(".lock"), f"{str(path)!r}"):
        done = finished_ids(recipe.output)
        mine = plan.share(part, parts)
        missing = [
            request for request in mine if trace_id(request.problem_id, request.sample) not in done
        ]
        with watching(f"starting {recipe.engine.name}", console):
            engine = build_trace_engine(recipe, plan, teacher, student)
        with closing(engine):
            _write_traces(plan, missing, engine, student.tokenizer, path, console, len(mine))
    return path


def load_models(recipe: DistillRecipe) -> tuple[LoadedModel, LoadedModel]:
    """Teacher and student; if both are the same model with the same settings, it is loaded once.

    Weights are not loaded for vLLM, which loads them itself, nor for a model that the arm does not
    run, unless text is exchanged.
    """
    elsewhere = isinstance(recipe.engine, VllmTraceSettings)

    text = recipe.vocabulary.matching == "text"

    def load(settings: TraceModel, used: bool) -> LoadedModel:
        used = used or text
        return (
            describe_trace_model(settings) if elsewhere or not used else load_trace_model(settings)
        )

    student = load(recipe.student, recipe.acceptance_rule.uses_student)
    if recipe.teacher == recipe.student and recipe.acceptance_rule.arm == "rsd":
        return student, student
    return load(recipe.teacher, recipe.acceptance_rule.uses_teacher), student


def build_trace_engine(
    recipe: DistillRecipe, plan: TracePlan, teacher: LoadedModel, student: LoadedModel
) -> TraceEngine:
    """Build the trace engine that the recipe names."""
    how, rule = recipe.engine, recipe.acceptance_rule
    if plan.vocabulary.matching == "text":
        assert isinstance(how, TransformersTraceSettings), "the recipe refuses other engines"
        return PieceEngine(
            teacher,
            student,
            recipe.vocabulary,
            rule,
            plan.stop_ids,
            recipe.max_tokens,
            recipe.seed,
            how,
        )
    # Each process has one request in flight, so both work at the same time.
    together = (
        how
        if isinstance(how, TransformersTraceSettings)
        else TransformersTraceSettings(rows=how.rows, block=how.block, overlap=True)
    )
    with ExitStack() as stack:  # if the second process does not start, the first is closed
        sources: list[DecodeModel | None] = []
        for loaded, settings, pool, used in (
            (teacher, recipe.teacher, rule.teacher, rule.uses_teacher),
            (student, recipe.student, rule.student, rule.uses_student),
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
        rule,
        plan.stop_ids,
        recipe.max_tokens,
        recipe.seed,
        together,
    )


def _source(
    recipe: DistillRecipe, plan: TracePlan, loaded: LoadedModel, settings: TraceModel, top_k: int
) -> DecodeModel:
    if isinstance(recipe.engine, VllmTraceSettings):
        return VllmDecodeModel(settings, recipe.engine, top_k, plan.longest(loaded.context))
    return TransformersDecodeModel(loaded.model)


def prepare_folder(recipe: DistillRecipe, plan: TracePlan) -> None:
    """Check that the folder is for traces of these settings, and record the settings.

    Raises:
        ValueError: It holds traces of other settings; the message names the differences.
    """
    described = plan.describe()
    remove_leftovers(recipe.output)
    path = recipe.output / PLAN
    if path.is_file():
        found = read_lines(path, ended=True).objects
        remedy = "choose another output, or use the same settings"
        check_same(recipe.output, found[0] if found else {}, described, remedy)
        return
    recipe.output.mkdir(parents=True, exist_ok=True)
    write_atomically(recipe.output / RECIPE, to_yaml(recipe))
    write_atomically(path, line(described))


def check_same(folder: Path, found: Row, wanted: Row, remedy: str) -> None:
    """Check that existing traces were made with the settings wanted now.

    Raises:
        ValueError: They were not; the message names the differences.
    """
    changes = list(differences(found, wanted))
    if changes:
        shown = "; ".join(changes[:4]) + ("; ..." if changes[4:] else "")
        raise ValueError(
            f"{str(folder)!r} holds traces made with other settings: {shown}; {remedy}"
        )


def part_rows(folder: Path) -> Iterator[Row]:
    """Every complete row of the parts; a last line that was cut off by a kill is ignored."""
    for path in sorted((folder / PARTS).glob("part_*.jsonl")):
        yield from read_lines(path, ended=True).objects


def finished_ids(folder: Path) -> set[str]:
    """Ids of the traces on disk."""
    return {str(row["id"]) for row in part_rows(folder)}


def _write_traces(
    plan: TracePlan,
    requests: list[TraceRequest],
    engine: TraceEngine,
    tokenizer: Any,  # noqa: ANN401
    path: Path,
    console: Console,
    total: int,
) -> None:
    began, round_trips, stopped = time.perf_counter(), 0, 0
    prompts = {prompt.problem.id: prompt for prompt in plan.prompts}
    with Appender(path) as file, progress_bar(console) as bar:
        done = total - len(requests)
        bar.show("traces", done, total)
        for written in engine.generate(requests):
            trace = trace_of(written, plan, prompts[written.request.problem_id], tokenizer)
            file.add(trace.model_dump(mode="json"))
            done += 1
            round_trips += _round_trips(trace, tokenizer)
            stopped += trace.finish_reason == "stop"
            bar.show("traces", done, total)
    count, seconds = max(1, len(requests)), time.perf_counter() - began
    metrics = engine.metrics()
    row = {
        "time": time.time(),
        "part": path.name,
        "distill/traces": len(requests),
        "distill/seconds": seconds,
        "distill/tokens_per_second": metrics.get("distill/tokens", 0) / max(seconds, 1e-9),
        "distill/stopped_rate": stopped / count,
        "distill/round_trip_rate": round_trips / count,
        **metrics,
    }
    _note(plan.recipe.output / LOG, row)
    console.print(
        f"{len(requests)} traces, {row['distill/tokens_per_second']:.0f} tokens/s, "
        f"{row['distill/stopped_rate']:.0%} stopped at an end token, "
        f"{row.get('distill/fallback_rate', 0):.1%} of tokens written by the student",
        highlight=False,
    )


def _round_trips(trace: Trace, tokenizer: Any) -> bool:  # noqa: ANN401
    """Whether encoding the trace's text again gives its ids."""
    text = tokenizer.decode(list(trace.token_ids))
    return tuple(tokenizer.encode(text, add_special_tokens=False)) == trace.token_ids


def _note(path: Path, row: Row) -> None:
    rounded = {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}
    append_line(path, rounded)
