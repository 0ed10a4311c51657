"""The benchmarks by name: their place on the Hub, their columns, their number of problems.

A folder of files (``--data`` or ``RLVR_BENCHMARKS``) replaces the Hub: it contains
``math500.jsonl`` and so on, with one object per line that has ``problem``, ``answer`` and, if the
benchmark has them, ``id``, ``subject`` and ``level``. Any other file is also a benchmark:
``path.jsonl`` or ``name=path.jsonl``, or a folder that ``datasets`` saved. Columns of other names
are given as ``fields``.

Few-shot examples and grading by another model are not supported.
"""

import difflib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlvr.data import Fields, FileSource, HubSource, load_problems
from rlvr.data.consistency import Grader
from rlvr.data.hub import is_saved
from rlvr.data.local_file import read_rows
from rlvr.data.rows import Row
from rlvr.types import Problem

FOLDER_VARIABLE = "RLVR_BENCHMARKS"
_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One entry of the registry.

    ``typical_tokens`` is the mean length of a 1.5B reasoning model's responses (One-Shot RLVR,
    arXiv 2504.20571, table 19; GSM8K is an estimate); it orders generation, longest first.
    ``fingerprint`` is that of the problems and answers with which the entry was checked.
    """

    name: str
    title: str
    rows: int
    hub: HubSource
    typical_tokens: int
    fingerprint: str
    subject: str | None = None
    level: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedBenchmark:
    """A benchmark's problems and their origin.

    The problems' metadata contains ``subject`` and ``level`` if the benchmark has them.
    """

    name: str
    title: str
    problems: tuple[Problem, ...]
    origin: str
    fingerprint: str
    typical_tokens: int
    total: int
    """Number of problems before any limit."""


def _hub(path: str, split: str, fields: Fields, subset: str | None = None) -> HubSource:
    return HubSource(
        path=path, subset=subset, split=split, revision="main", fields=fields, duplicates="keep"
    )


BENCHMARKS: dict[str, Benchmark] = {
    item.name: item
    for item in (
        Benchmark(
            name="math500",
            title="MATH-500",
            rows=500,
            hub=_hub(
                "HuggingFaceH4/MATH-500",
                "test",
                Fields(id="unique_id", metadata=("subject", "level")),
            ),
            typical_tokens=740,
            fingerprint="fa5e48dc01d9bd25",
            subject="subject",
            level="level",
            aliases=("math-500", "math_500"),
        ),
        Benchmark(
            name="aime24",
            title="AIME 2024",
            rows=30,
            hub=_hub("HuggingFaceH4/aime_2024", "train", Fields()),
            typical_tokens=1352,
            fingerprint="7437f4fe0e1ccec5",
            aliases=("aime2024", "aime_2024"),
        ),
        Benchmark(
            name="aime25",
            title="AIME 2025",
            rows=30,
            hub=_hub("math-ai/aime25", "test", Fields()),
            typical_tokens=1251,
            fingerprint="80015374afc23c55",
            aliases=("aime2025", "aime_2025"),
        ),
        Benchmark(
            name="amc23",
            title="AMC 2023",
            rows=40,
            hub=_hub("math-ai/amc23", "test", Fields(problem="question", numbers_as_text=True)),
            typical_tokens=986,
            fingerprint="bb216b8346f24156",
            aliases=("amc2023", "amc_2023"),
        ),
        Benchmark(
            name="minerva",
            title="Minerva Math",
            rows=272,
            hub=_hub("math-ai/minervamath", "test", Fields(problem="question")),
            typical_tokens=905,
            fingerprint="6b168c63f66aca14",
            subject="subject",
            aliases=("minerva_math", "minervamath"),
        ),
        Benchmark(
            name="olympiadbench",
            title="OlympiadBench (English, text only)",
            rows=675,
            hub=_hub(
                "Hothan/OlympiadBench",
                "train",
                Fields(problem="question", answer="final_answer.0", metadata=("subfield",)),
                subset="OE_TO_maths_en_COMP",
            ),
            typical_tokens=1089,
            fingerprint="7ad600f1464b3baf",
            subject="subject",
            aliases=("olympiad", "olympiad_bench"),
        ),
        Benchmark(
            name="gsm8k",
            title="GSM8K",
            rows=1319,
            hub=_hub(
                "openai/gsm8k",
                "test",
                Fields(problem="question", answer_after="####"),
                subset="main",
            ),
            typical_tokens=300,
            fingerprint="cd70594300ac01b8",
            aliases=("gsm8k_test",),
        ),
    )
}

_FILES = {"minerva": "minerva_math", "gsm8k": "gsm8k_test"}


@dataclass(frozen=True, slots=True)
class FileRows:
    """How rows of files become problems."""

    fields: Fields = field(default_factory=Fields)
    bad_rows: Literal["error", "drop"] = "error"
    grader: Grader = "rlvr"


def load_benchmark(
    choice: str,
    folder: Path | None = None,
    limit: int | None = None,
    only: Sequence[str] = (),
    rows: FileRows = FileRows(),
) -> LoadedBenchmark:
    """Load a benchmark by name (``math500``, ``math500@REVISION``) or from a file
    (``[name=]path``).

    Args:
        choice: Name or file, as on the command line.
        folder: Files that replace the Hub; None reads ``RLVR_BENCHMARKS``.
        limit: Number of problems to use, evenly spread over the file.
        only: Ids of the problems to use instead.
        rows: How rows of files become problems; the Hub's benchmarks have their own columns.

    Raises:
        ValueError: The name is unknown (the message names the nearest), the data is unreadable, or
            fields are missing.
    """
    loaded = _load_file(choice, rows) if _is_file(choice) else _load_named(choice, folder, rows)
    if limit is None and not only:
        return loaded
    problems = _selected(loaded, limit, only)
    return LoadedBenchmark(
        name=loaded.name,
        title=loaded.title,
        problems=tuple(problems),
        origin=loaded.origin,
        fingerprint=fingerprint(problems),
        typical_tokens=loaded.typical_tokens,
        total=loaded.total,
    )


def fingerprint(problems: Iterable[Problem]) -> str:
    """16 hexadecimal digits that change with any problem, any answer, and their order."""
    digest = hashlib.sha256()
    for problem in problems:
        texts = [*(turn["content"].strip() for turn in problem.messages), problem.answer]
        digest.update(json.dumps(texts).encode())
    return digest.hexdigest()[:16]


def known_benchmark(name: str) -> Benchmark:
    """The registry's entry for a name or alias.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    key = name.lower()
    found = BENCHMARKS.get(key)
    found = found or next((item for item in BENCHMARKS.values() if key in item.aliases), None)
    if found is None:
        near = difflib.get_close_matches(key, BENCHMARKS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"unknown benchmark {name!r}; {hint}known: {', '.join(BENCHMARKS)} (or a file: "
            "problems.jsonl, or name=problems.jsonl)"
        )
    return found


def _is_file(choice: str) -> bool:
    if "=" in choice or choice.lower().endswith(_ENDINGS):
        return True
    names = {name for item in BENCHMARKS.values() for name in (item.name, *item.aliases)}
    return choice.lower() not in names and is_saved(Path(choice))


def _load_named(choice: str, folder: Path | None, rows: FileRows) -> LoadedBenchmark:
    name, _, revision = choice.partition("@")
    benchmark = known_benchmark(name)
    given = folder or (Path(os.environ[FOLDER_VARIABLE]) if FOLDER_VARIABLE in os.environ else None)
    if given is None:
        source = benchmark.hub
        if revision:
            source = source.model_copy(update={"revision": revision})
        problems = load_problems(source)
        origin = f"Hub {source.path}@{source.revision} {source.subset or ''}".rstrip()
    else:
        if revision:
            raise ValueError(
                f"{choice!r} names a revision on the Hub, but a folder is set: {given}"
            )
        path = _file_in(given, benchmark)
        problems = load_problems(_file_source(path, rows, benchmark.subject, benchmark.level))
        origin = f"file {path.name}"
    found = [_tagged(problem) for problem in problems]
    if len(found) != benchmark.rows:
        warnings.warn(
            f"{benchmark.name} has {len(found)} problems instead of {benchmark.rows} ({origin}); "
            "its scores are not comparable with published ones",
            stacklevel=3,
        )
    return LoadedBenchmark(
        name=benchmark.name,
        title=benchmark.title,
        problems=tuple(found),
        origin=origin,
        fingerprint=fingerprint(found),
        typical_tokens=benchmark.typical_tokens,
        total=len(found),
    )


def _file_in(folder: Path, benchmark: Benchmark) -> Path:
    names = (_FILES.get(benchmark.name, benchmark.name), benchmark.name, *benchmark.aliases)
    for name in names:
        for ending in _ENDINGS:
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    raise ValueError(
        f"folder {str(folder)!r} contains no file for {benchmark.name}: {names[0]}.jsonl is missing"
    )


def _load_file(choice: str, rows: FileRows) -> LoadedBenchmark:
    name, mark, rest = choice.partition("=")
    path = Path(rest if mark else choice)
    name = name if mark else path.stem
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"benchmark name {name!r}: only letters, digits, dots, underscores and hyphens are "
            "allowed; write name=path"
        )
    if path.is_dir() and not is_saved(path):
        raise ValueError(f"{str(path)!r} is a folder; name a file in it")
    columns = _columns(path)
    source = _file_source(
        path,
        rows,
        "subject" if "subject" in columns else None,
        "level" if "level" in columns else None,
    )
    problems = tuple(_tagged(problem) for problem in load_problems(source))
    return LoadedBenchmark(
        name=name,
        title=name,
        problems=problems,
        origin=f"file {path.name}",
        fingerprint=fingerprint(problems),
        typical_tokens=1000,
        total=len(problems),
    )


def _file_source(path: Path, rows: FileRows, subject: str | None, level: str | None) -> FileSource:
    metadata = tuple(name for name in (subject, level) if name)
    fields = rows.fields.model_copy(
        update={"metadata": (*rows.fields.metadata, *metadata), "numbers_as_text": True}
    )
    return FileSource(
        path=path, fields=fields, duplicates="keep", bad_rows=rows.bad_rows, grader=rows.grader
    )


def _columns(path: Path) -> set[str]:
    """Fields of a file's first row; none if it is unreadable, which the reader then reports."""
    if path.suffix.lower() != ".jsonl":
        try:
            return set(next(iter(read_rows(path)), Row("", {})).values)
        except ValueError:
            return set()
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except (json.JSONDecodeError, RecursionError):
        return set()
    return set(row) if isinstance(row, dict) else set()


def _tagged(problem: Problem) -> Problem:
    """The problem with ``subject`` and ``level`` as text, whatever the names of their columns."""
    values = {
        "subject": problem.metadata.get("subject", problem.metadata.get("subfield")),
        "level": problem.metadata.get("level"),
    }
    metadata = {name: str(value) for name, value in values.items() if value is not None}
    return Problem(problem.id, problem.messages, problem.answer, problem.source, metadata)


def _selected(loaded: LoadedBenchmark, limit: int | None, only: Sequence[str]) -> list[Problem]:
    if only:
        wanted = set(only)
        return [problem for problem in loaded.problems if problem.id in wanted]
    count = len(loaded.problems)
    taken = min(limit or count, count)
    return [loaded.problems[index * count // taken] for index in range(taken)]
