"""Traces as one HTML page: who wrote each token, and its probability under the student."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rlvr.page
from rlvr.data import load_template
from rlvr.data.demonstrations import Demonstration, load_demonstrations
from rlvr.distill.surprisal import ScoredTraces, score_traces, surprisal
from rlvr.page import embed, write_page
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.settings import parse_yaml

MAX_TRACES = 200
_SCRIPTS = ("tokens.js", "traces.js")


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Settings of the page.

    ``student`` scores the traces again. Without it, the page shows the probabilities in the traces,
    and ``tokenizer`` spells their tokens. If neither is given, the recipe next to the traces names
    the student whose tokenizer is used.
    """

    student: str | None = None
    tokenizer: str | None = None
    template: str = "raw"
    reencode: bool = False
    threshold: float = 0.01
    most: int = MAX_TRACES


def write_traces_page(sources: Sequence[Path], out: Path, settings: PageSettings) -> Path:
    """Write the page; it needs neither a network nor other files.

    Raises:
        ValueError: The traces are missing, there is no tokenizer to spell them, or ``out`` is a
            folder.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name the HTML file to write")
    if settings.student is not None:
        scored = score_traces(
            sources, settings.student, template=settings.template, reencode=settings.reencode
        )
        figures = asdict(surprisal(scored, threshold=settings.threshold))
    else:
        scored, figures = _as_stored(sources, settings), None
    name = ", ".join(source.name for source in sources)
    chosen = list(range(len(scored.traces)))[: settings.most]
    title, summary = f"Traces of {name}", _summary(scored, settings)
    index = {
        "title": title,
        "summary": summary,
        "threshold": settings.threshold,
        "figures": figures,
        "notes": _notes(scored, chosen, settings),
        "traces": [_row(scored, place) for place in chosen],
    }
    page = rlvr.page.render(
        "rlvr.report",
        _SCRIPTS,
        title,
        summary,
        {"page": embed(index)},
        shell="traces.html",
        styles=("style.css", "traces.css"),
    )
    write_page(out, page)
    return out


def token_pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:  # noqa: ANN401
    """The text of each token; a character that several tokens spell is put at the last of them."""
    pieces: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 4:  # UTF-8 has at most four bytes
            pieces.append("")
            continue
        pieces.append(text)
        waiting = []
    if waiting:
        pieces[-1] = tokenizer.decode(waiting)
    return pieces


def _as_stored(sources: Sequence[Path], settings: PageSettings) -> ScoredTraces:
    """The traces without new scores; their own probabilities are read row by row."""
    path = settings.tokenizer or _student_beside(sources)
    if path is None:
        raise ValueError(
            f"{sources[0]}: no recipe next to it names the student, so its tokens cannot be "
            "spelled; set --model STUDENT to score the traces, or --tokenizer FOLDER"
        )
    tokenizer = load_tokenizer(ModelSettings(path=path))
    found = load_demonstrations(sources, load_template(settings.template), tokenizer)
    return ScoredTraces(tuple(found), (), tokenizer)


def _student_beside(sources: Sequence[Path]) -> str | None:
    recipe = sources[0].parent / "recipe.yaml"
    if not recipe.is_file():
        return None
    data = parse_yaml(recipe.read_text(encoding="utf-8-sig"), str(recipe))
    student = data.get("student") if isinstance(data, dict) else None
    path = student.get("path") if isinstance(student, dict) else None
    return path if isinstance(path, str) else None


def _summary(scored: ScoredTraces, settings: PageSettings) -> str:
    tokens = sum(len(item.token_ids) for item in scored.traces)
    text = f"{len(scored.traces)} traces, {tokens:,} tokens"
    written = [w for w in map(_writer, scored.traces) if w is not None]
    if written:
        share = sum(w.count("s") for w in written) / sum(map(len, written))
        text += f", {100 * share:.1f} % of them written by the student"
    by = "the student while they were made" if settings.student is None else settings.student
    return f"{text}. Probabilities are those of {by}."


def _notes(scored: ScoredTraces, chosen: Sequence[int], settings: PageSettings) -> list[str]:
    notes = []
    if len(chosen) < len(scored.traces):
        notes.append(f"The page contains the first {len(chosen)} of {len(scored.traces)} traces.")
    if settings.student is None and any("student_prob" not in item.row for item in scored.traces):
        notes.append("Some rows have no probabilities; name a model to score them.")
    return notes


def _writer(item: Demonstration) -> str | None:
    text = item.row.get("writer")
    return text if isinstance(text, str) and len(text) == len(item.token_ids) else None


def _row(scored: ScoredTraces, place: int) -> dict[str, Any]:
    item = scored.traces[place]
    if scored.logprobs:
        student = [_number(math.exp(value)) for value in scored.logprobs[place].tolist()]
    else:
        student = _probabilities(item, "student_prob")
    reward = item.row.get("reward")
    return {
        "id": item.name,
        "prompt": scored.tokenizer.decode(list(item.prompt_ids)),
        "tokens": token_pieces(item.token_ids, scored.tokenizer),
        "ids": list(item.token_ids),
        "writer": _writer(item),
        "student": student,
        "teacher": _probabilities(item, "teacher_prob"),
        "reward": reward if isinstance(reward, int | float) else None,
        "answer": None if item.row.get("answer") is None else str(item.row["answer"]),
        "finish": str(item.row.get("finish_reason") or ""),
    }


def _probabilities(item: Demonstration, key: str) -> list[float | None]:
    values = item.row.get(key)
    if not isinstance(values, list) or len(values) != len(item.token_ids):
        return [None] * len(item.token_ids)
    return [_number(value) for value in values]


def _number(value: object) -> float | None:
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(f"{value:.3g}") if known else None
