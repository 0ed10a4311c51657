"""What ``rlvr fit`` says: the settings that fit and their table, or what is missing."""

from collections.abc import Iterable
from pathlib import Path

from rlvr.fit.asked import as_words
from rlvr.fit.recipe_file import launch_command
from rlvr.fit.search import Answer, Candidate
from rlvr.memory import GIB, ModelShape, memory_lines


def heading(answer: Answer, shape: ModelShape) -> str:
    """The question in a line."""
    asked = answer.asked
    return (
        f"{asked.model} ({shape.text}) on {asked.text}, {asked.spare:.0%} of it kept free: "
        f"room for {asked.room / GIB:,.1f} GiB a process"
    )


def found_lines(answer: Answer, place: Path) -> list[str]:
    """What fits, what it took to get there, and how to start it.

    Args:
        answer: One that fits.
        place: The recipe's file.
    """
    best = answer.best
    lines = [f"does not fit: {name}, {size / GIB:,.1f}" for name, size in answer.tried]
    lines.append(f"fits: {best.level.name}, {best.found.total / GIB:,.1f}")
    lines += changes(best)
    return [*lines, "", *memory_lines(best.found), "", f"start:  {launch_command(best, place)}"]


def missing_lines(answer: Answer, others: Iterable[tuple[str, Answer]]) -> list[str]:
    """What is missing with the settings that come nearest, and what would do.

    Args:
        answer: One that does not fit.
        others: Words for other questions that have an answer, with it.
    """
    best = answer.best
    lines = [f"does not fit: {name}, {size / GIB:,.1f}" for name, size in answer.tried]
    lines.append(
        f"nothing fits; {best.level.name} comes nearest, {best.missing / GIB:,.1f} GiB too much"
    )
    lines += [*changes(best), "", *memory_lines(best.found), ""]
    would = [
        f"would fit: {words} ({other.best.level.name}, {other.best.found.total / GIB:,.1f} GiB of "
        f"{other.asked.room / GIB:,.1f})"
        for words, other in others
    ]
    return lines + (would or ["no number of GPUs of this size, nor shorter completions, would do"])


def changes(best: Candidate) -> list[str]:
    """The settings that were changed, one a line."""
    return [f"  {word}" for word in as_words(best.changes)]
