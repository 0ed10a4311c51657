"""Grade a file of rows, or explain one verdict: the functions behind the command line.

Each row of a JSON-lines file has a reference answer and either a whole ``response`` or a bare
answer ``pred``. A text in ``prompt`` says whether the response begins inside a thought. The output
has the same rows in the same order, with ``correct``, ``extracted``, ``kind``, ``path``,
``reason``, ``status`` and ``certainty`` added. A reference may be a list of accepted answers.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from reward.answer_structure import read
from reward.certainty import MEANING, Evidence
from reward.domains import DOMAINS
from reward.extract import extract
from reward.graders import graded_text
from reward.grading import equivalent, grade
from reward.kinds import kind_of
from reward.nodes import Node, Text
from reward.normalize import clean
from reward.pool import VerifierPool
from reward.sandbox.ways import way_of
from reward.thoughts import all_pairs, left_open
from reward.verdict import DEFAULT, Grade, GradingPolicy

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """Results of a file: totals, per kind (graded, correct), and the pool's counters."""

    rows: int
    correct: int
    kinds: dict[str, tuple[int, int]]
    counters: dict[str, int]
    skipped: dict[int, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of correct answers among the rows with a readable reference (0 without any)."""
        graded = self.rows - len(self.skipped)
        return self.correct / graded if graded else 0.0

    def table(self) -> str:
        """Format totals and a line per kind as plain text."""
        lines = [f"{'kind':<12} {'rows':>7} {'correct':>8} {'share':>7}"]
        for kind, (count, correct) in sorted(self.kinds.items(), key=lambda item: -item[1][0]):
            lines.append(f"{kind:<12} {count:>7} {correct:>8} {correct / count:>7.3f}")
        graded = self.rows - len(self.skipped)
        lines.append(f"{'all':<12} {graded:>7} {self.correct:>8} {self.accuracy:>7.3f}")
        troubles = {
            name: count
            for name, count in self.counters.items()
            if count and name not in ("graded", "correct")
        }
        if troubles:
            lines.append(", ".join(f"{name}: {count}" for name, count in troubles.items()))
        for index, reason in list(self.skipped.items())[:10]:
            lines.append(f"row {index + 1} skipped: {reason}")
        return "\n".join(lines)


def grade_file(
    path: Path | str,
    out: Path | str | None = None,
    *,
    response_field: str = "response",
    pred_field: str | None = None,
    gold_field: str = "gold",
    grader: str = "rlvr",
    workers: int = 1,
    timeout: float = 5.0,
    policy: GradingPolicy = DEFAULT,
    echo: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Grade every row of a JSON-lines file.

    Args:
        path: the rows.
        out: where to write the graded rows (all at the end), or ``None``.
        response_field: field with the whole response.
        pred_field: field with a bare answer, which is used without extraction. By default, rows
            that have no response but a field ``pred`` are read that way.
        gold_field: field with the reference answer: a text, a number or a list of these, or what
            the grader's domain takes; rows without ``gold`` may have ``answer``.
        grader: name of the grader.
        workers: number of worker processes.
        timeout: maximum seconds for one answer.
        policy: what counts as equal.
        echo: receives the table.
        progress: told how many rows are graded, out of how many.

    Raises:
        ValueError: for a missing file, a line that is not a JSON object, a missing field, an
            unknown grader, an output that is the input, or programs without a sandbox.
    """
    source, target = Path(path), None if out is None else Path(out)
    if target is not None and source.exists() and target.resolve() == source.resolve():
        raise ValueError(f"{target} is the input; write the graded rows to another file")
    rows = read_rows(source)
    if gold_field == "gold" and "gold" not in rows[0] and "answer" in rows[0]:
        gold_field = "answer"
    if pred_field is None and response_field not in rows[0] and "pred" in rows[0]:
        pred_field = "pred"
    answers = [_text_field(rows, i, pred_field or response_field, source) for i in range(len(rows))]
    if pred_field is None:
        prompts = [row.get("prompt") for row in rows]
        opened = [left_open(p, policy.thoughts) if isinstance(p, str) else "" for p in prompts]
        pairs = zip(answers, opened, strict=True)
        answers = [graded_text(answer, marker, grader) for answer, marker in pairs]
    golds = [_gold_field(rows, index, gold_field, source, grader) for index in range(len(rows))]
    if grader == "code":
        way_of(policy.sandbox)
    with VerifierPool(workers, timeout, grader, policy) as pool:
        grades = _grade_all(pool, answers, golds, pred_field is not None, progress)
        counters = pool.counters
    if target is not None:
        graded = zip(rows, grades, strict=True)
        write_rows(target, [row | asdict(verdict) for row, verdict in graded])
    summary = summarise(grades, counters)
    echo(summary.table())
    return summary


def _grade_all(
    pool: VerifierPool,
    answers: Sequence[str],
    golds: Sequence[list[str]],
    bare: bool,
    progress: Callable[[int, int], None],
) -> list[Grade]:
    """Grade all rows; of several reference answers the first match decides."""
    submit = pool.submit_pair if bare else pool.submit
    futures = [
        [submit(answer, gold) for gold in alternatives]
        for answer, alternatives in zip(answers, golds, strict=True)
    ]
    chosen = []
    for row in futures:
        verdicts = [future.result() for future in row]
        chosen.append(next((verdict for verdict in verdicts if verdict.correct), verdicts[0]))
        progress(len(chosen), len(futures))
    return chosen


def summarise(grades: Sequence[Grade], counters: dict[str, int]) -> Summary:
    """Count verdicts per kind; rows without a usable reference are listed, not scored."""
    skipped = {
        index: verdict.reason
        for index, verdict in enumerate(grades)
        if verdict.status == "unparsable_gold"
    }
    counts: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for index, verdict in enumerate(grades):
        if index not in skipped:
            counts[verdict.kind] += 1
            right[verdict.kind] += verdict.correct
    kinds = {kind: (count, right[kind]) for kind, count in counts.items()}
    return Summary(len(grades), sum(right.values()), kinds, counters, skipped)


def read_rows(path: Path) -> list[Row]:
    """Read a JSON-lines file; blank lines are skipped.

    Raises:
        ValueError: with the line's number, for a file or line that cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a file of JSON lines")
    rows: list[Row] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a {type(row).__name__}, not an object")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows; give a file of JSON lines")
    return rows


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from error


def _text_field(rows: list[Row], index: int, name: str, source: Path) -> str:
    value = _field(rows, index, name, source)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{source}, row {index + 1}: {name!r} is {value!r}, not text")
    return str(value)


def _gold_field(rows: list[Row], index: int, name: str, source: Path, grader: str) -> list[str]:
    value = _field(rows, index, name, source)
    if grader in DOMAINS:  # where lists and objects are references themselves
        return [value if isinstance(value, str) else json.dumps(value)]
    values = value if isinstance(value, list) and value else [value]
    return ["" if item is None else str(item) for item in values]


def _field(rows: list[Row], index: int, name: str, source: Path) -> object:
    if name not in rows[index]:
        have = ", ".join(list(rows[index])[:12])
        raise ValueError(f"{source}, row {index + 1}: no field {name!r}; it has {have}")
    return rows[index][name]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON lines, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def explain(pred: str, gold: str, policy: GradingPolicy = DEFAULT) -> str:
    """Explain step by step how an answer (or a response with a box) compares with a reference.

    It grades in the calling process; use it for one trusted pair at a time.
    """
    closings = [closing for _, closing in all_pairs(policy.thoughts)]
    boxed = any(mark in pred for mark in ("\\boxed", "\\fbox", *closings))
    verdict = grade(pred, gold, policy) if boxed else equivalent(pred, gold, policy)
    lines = []
    if boxed:
        found = extract(pred, policy.extraction, policy.join_boxes, policy.thoughts)
        lines.append(f"extracted   {found.answer!r} ({found.reason})")
    answer = verdict.extracted if verdict.extracted is not None else ""
    for name, text in (("answer", answer), ("reference", gold)):
        cleaned = clean(text[:1000])
        lines.append(f"{name:<11} {text[:200]!r}")
        lines.append(f"  cleaned   {cleaned[:200]!r}")
        lines.append(f"  read as   {describe(read(cleaned))}")
    lines.append(f"kind        {kind_of(clean(gold[:1000]))[0]}")
    lines.append(f"decided by  {verdict.path}: {verdict.reason}")
    if verdict.certainty:
        lines.append(
            f"rests on    {verdict.certainty}: {MEANING[cast(Evidence, verdict.certainty)]}"
        )
    lines.append(f"verdict     {'correct' if verdict.correct else 'not correct'}")
    return "\n".join(lines)


def describe(node: Node) -> str:
    """Name a structure in a few words."""
    if isinstance(node, Text):
        return ("text" if node.is_words else "unsupported notation") + f" {node.text[:80]!r}"
    name = type(node).__name__.lower()
    items = getattr(node, "items", None) or getattr(node, "parts", None)
    if items:
        return f"{name} of {len(items)}: " + "; ".join(describe(item) for item in items[:6])
    if name == "value":
        unit = getattr(node, "unit", "")
        return f"value {getattr(node, 'text', '')!r}" + (f" with unit {unit!r}" if unit else "")
    return name
