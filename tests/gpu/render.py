"""The results of a day as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.gpu.kit import Row

Column = tuple[str, str]
"""Key of a row, and heading."""


class Table(NamedTuple):
    """How a part's rows are shown; ``about`` is the sentence above them."""

    title: str
    about: str
    columns: tuple[Column, ...]


_SECONDS = (
    ("seconds", "s"),
    ("seconds_least", "least"),
    ("seconds_most", "most"),
)
TABLES = {
    "correctness": Table(
        "Correctness",
        "The device against float64 on the CPU: relative errors, the largest of values and "
        "gradients.",
        (("check", "check"), ("error", "error"), ("most", "at most"), ("passed", "passed")),
    ),
    "head": Table(
        "The output head",
        "Log-probability and entropy, forward and backward, in bfloat16. TFLOP/s count four "
        "products; the error is the largest of log-probabilities, in nats, against float64.",
        (
            ("way", "way"),
            ("tokens", "tokens"),
            ("width", "width"),
            ("words", "words"),
            ("forward_ms", "forward, ms"),
            ("both_ms", "both, ms"),
            ("tflops", "TFLOP/s"),
            ("peak_gib", "peak GiB"),
            ("error", "error"),
        ),
    ),
    "updates": Table(
        "Updates",
        "The learner's update, so many tokens in a micro-batch, activations recomputed, bfloat16 "
        "autocast over float32 weights and moments. TFLOP/s do not count what is recomputed.",
        (
            ("model", "shape"),
            ("workload", "workload"),
            ("variant", "settings"),
            ("head", "head"),
            ("tokens", "tokens"),
            ("micro_batches", "times"),
            *_SECONDS,
            ("repeats", "of"),
            ("tokens_per_second", "tokens/s"),
            ("tflops", "TFLOP/s"),
            ("peak_gib", "peak GiB"),
            ("times_published", "times the published rate"),
        ),
    ),
    "generation": Table(
        "Generation",
        "Engine transformers, bfloat16, completions of equal length.",
        (
            ("model", "shape"),
            ("rows", "rows"),
            ("prompt", "prompt"),
            ("tokens", "tokens"),
            ("seconds", "s"),
            ("tokens_per_second", "tokens/s"),
            ("peak_gib", "peak GiB"),
        ),
    ),
    "step": Table(
        "Whole GRPO steps",
        "Qwen3-0.6B's shape, 64 prompts x 8 completions x 512 tokens; the first step warms up.",
        (
            ("step", "step"),
            ("completions", "completions"),
            ("length", "mean length"),
            ("seconds", "s"),
            ("generate", "generate"),
            ("verify", "verify"),
            ("update", "update"),
            ("sync", "sync"),
            ("generated_tokens_per_second", "generated tokens/s"),
            ("trained_tokens_per_second", "trained tokens/s"),
            ("peak_gib", "peak GiB"),
        ),
    ),
    "profile": Table(
        "Profile",
        "The operators that take most time; the share is of all.",
        (
            ("of", "of"),
            ("operator", "operator"),
            ("calls", "calls"),
            ("ms", "ms"),
            ("share", "share"),
        ),
    ),
}


def page(rows: Sequence[Row]) -> str:
    """All results; sections in the order of their parts.

    Args:
        rows: As ``kit.read_rows`` gives them.
    """
    day = merged(rows, "day")
    title = "Dry run with tiny shapes" if day.get("tiny") else "Measured on a GPU"
    parts = [f"# {title}", *_head(day, merged(rows, "machine")), _ends(rows)]
    for name, table in TABLES.items():
        own = [row for row in rows if row["part"] == name and "ended" not in row]
        if own:
            parts += [f"## {table.title}", table.about, table_of(own, table.columns)]
    return "\n\n".join(parts) + "\n"


def merged(rows: Sequence[Row], part: str) -> Row:
    """All that the rows of a part say."""
    found: Row = {}
    for row in rows:
        if row["part"] == part and "ended" not in row:
            found |= row
    return found


def _head(day: Row, machine: Row) -> list[str]:
    lines = [
        f"{day.get('date', '')}, commit `{day.get('commit', 'unknown')}`, seed {day.get('seed')}."
    ]
    if machine:
        lines.append(
            f"Device: {machine['device']}, {shown(machine['memory_gib'])} GiB, "
            f"{machine['cores']} CPU cores. {machine['versions']}."
        )
    if "matmul_tflops" in machine:
        lines.append(
            f"Its limits, measured: products of bfloat16 matrices "
            f"{shown(machine['matmul_tflops'])} TFLOP/s, copying "
            f"{shown(machine['copy_gb_per_second'])} GB/s written."
        )
    return [" ".join(lines), f"```bash\n{day.get('command', '')}\n```"]


def _ends(rows: Sequence[Row]) -> str:
    ends = [row for row in rows if "ended" in row]
    return table_of(ends, (("part", "part"), ("ended", "end"), ("seconds", "s")))


def table_of(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table; columns that no row fills are left out, and notes come last."""
    used = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    if any("note" in row for row in rows):
        used.append(("note", "note"))
    lines = [_line(heading for _, heading in used), _line("---" for _ in used)]
    lines += [_line(_cell(row, key) for key, _ in used) for row in rows]
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(row: Mapping[str, Any], key: str) -> str:
    return shown(row.get(key)).replace("|", "\\|")


def shown(value: object) -> str:
    """A value for people: three significant digits, thousands with commas."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.1e}"
