"""Commands whose words are partly known only on the node: one description, for script and people.

A word is a string, or a :class:`Late` that stands for a shell variable. In the script every string
is quoted; for people, and for ``--local``, the late words are filled in.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Late:
    """``before$name`` and ``after``; the script sets the variable, the texts are ours alone."""

    name: str
    before: str = ""
    after: str = ""

    def shell(self) -> str:
        """As a quoted word of bash."""
        return f'"{self.before}${{{self.name}}}{self.after}"'


REST = Late("@")
"""What the role was started with in addition: as many words as there are."""

Word = str | Late


def shell_command(words: Sequence[Word], indent: str = "    ", width: int = 96) -> str:
    """The command for bash, quoted, in lines that go on with a backslash."""
    lines, line = [], ""
    for text in (_quoted(word) for word in words):
        if line and len(line) + len(text) + 3 > width:
            lines.append(line)
            line = indent
        line += text if line in ("", indent) else f" {text}"
    return " \\\n".join([*lines, line])


def _quoted(word: Word) -> str:
    if word == REST:
        return '"$@"'
    return word.shell() if isinstance(word, Late) else shlex.quote(word)


def fill(words: Sequence[Word], values: Mapping[str, str], rest: Sequence[str] = ()) -> list[str]:
    """The command with its late words known."""
    found: list[str] = []
    for word in words:
        if word == REST:
            found += rest
        elif isinstance(word, Late):
            found.append(f"{word.before}{values[word.name]}{word.after}")
        else:
            found.append(word)
    return found
