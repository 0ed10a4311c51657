"""The run's ledger: what was drawn, sampled, judged and trained, and with which weights.

``ledger.jsonl`` has a line (a *row*) for each fact, in the order in which steps were finished. All
rows of a step are appended at once and the disk holds them before the next step begins; the last
is of kind ``step``, so rows after the last such row are those of a step that was cut short.

Every row has its number (``row``, from 1) and a ``link``: the beginning of SHA-256 over the link of
the row before and the row's own content. So a row that is altered, missing, repeated or in another
place is found, and named. It tells accidents and careless edits; whoever rewrites the whole file
can make new links, which is why a checkpoint's state holds the ledger's last link, too.

docs/audit.md lists the kinds of rows and their columns.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from rlvr.files import Row, line, read_lines, write_lines

LEDGER = "ledger.jsonl"
FORMAT = 1
Fate = Literal["trained", "filtered", "surplus", "carried", "stale", "dropped"]
"""What became of a drawn prompt; all but ``carried`` are final.

trained: an update learnt from its completions. filtered: set aside by a rule, which ``rule`` names.
surplus: informative, but its step had no room and it could not wait. carried: waits for a later
step. stale: waited until its weights were too old. dropped: a branch changed what it comes from.
"""
FINAL: tuple[Fate, ...] = ("trained", "filtered", "surplus", "stale", "dropped")
Loss = Literal["trained", "skipped", "masked"]
"""What became of a completion's tokens in an update.

trained: they were in the loss. skipped: their advantage was zero and the completion was not run.
masked: the completion was cut at its limit, and ``reward.truncated: mask`` left it out.
"""
_HEX = 16
_FIRST = "0" * _HEX


def token_hash(ids: Sequence[int]) -> str:
    """The first 128 bits of SHA-256 over token ids as 32-bit little-endian integers."""
    return _hash(array("i", ids).tobytes())


def logprob_hash(logprobs: Sequence[float]) -> str:
    """The first 128 bits of SHA-256 over log-probabilities as float32, little-endian."""
    return _hash(array("f", logprobs).tobytes())


def certificate_hash(parts: Sequence[object]) -> str:
    """The first 64 bits of SHA-256 over JSON values: what a verdict rests on."""
    return hashlib.sha256(line({"certificate": list(parts)}).encode()).hexdigest()[:_HEX]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[: 2 * _HEX]


def chained(before: str, fingerprint: str) -> str:
    """The chain of a weights row: SHA-256 over the chain before and the weights' fingerprint."""
    return hashlib.sha256(f"{before} {fingerprint}".encode()).hexdigest()


def link(before: str, row: Row) -> str:
    """A row's link, from that of the row before; its own, if it has one, does not count."""
    content = {name: value for name, value in row.items() if name != "link"}
    return hashlib.sha256((before + line(content)).encode()).hexdigest()[:_HEX]


class Ledger:
    """Appends rows to a run's ledger.

    Args:
        path: The file; what is there must end with the last step that is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        last = read_lines(path).objects[-1:]
        self.row: int = last[0].get("row", 0) if last else 0
        self.link: str = last[0].get("link", _FIRST) if last else _FIRST
        self.chain = ""
        """Of the last weights row."""

    @property
    def head(self) -> Row:
        """Number and link of the last row."""
        return {"row": self.row, "link": self.link}

    def append(self, step: int, rows: Iterable[Row]) -> None:
        """Append the rows of a step, at once; the disk holds them when this returns.

        Args:
            step: Number of finished steps.
            rows: Each with its ``kind``.
        """
        lines = []
        for content in rows:
            self.row += 1
            row = {"row": self.row, "step": step, **content}
            self.link = link(self.link, row)
            lines.append(line({**row, "link": self.link}))
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def restart(self) -> None:
        """Begin anew: what is there does not belong to the state that the run goes on from."""
        write_lines(self.path, [])
        self.row, self.link, self.chain = 0, _FIRST, ""


@dataclass(frozen=True, slots=True)
class LedgerCompletion:
    """A completion, as the ledger knows it.

    Attributes:
        id: ``STEP/POSITION/SAMPLE``: the step it was sampled for, the prompt's place in it, and
            the sample's index.
        prompt: Row of its prompt (problem, prompt_hash, version of the weights, fate).
        row: Its own row (hashes, seed, reward, verdict).
        trained: The row that says that an update learnt from its prompt; None if none did.
        place: Among the completions of its prompt.
    """

    id: str
    prompt: Row
    row: Row
    trained: Row | None
    place: int

    @property
    def sampled_for(self) -> int:
        """The step it was sampled for, which with seed, problem and sample index decides its random
        numbers."""
        return int(self.id.partition("/")[0])

    @property
    def version(self) -> int:
        """The version of the weights (number of finished steps) that sampled it."""
        return int(self.prompt["version"])

    @property
    def update(self) -> int | None:
        """The optimizer step, counted from 0 over the run, that learnt from its prompt."""
        return None if self.trained is None else self.trained["update"]

    @property
    def loss(self) -> Loss | None:
        """What became of its tokens in that update."""
        return None if self.trained is None else self.trained["loss"][self.place]


@dataclass(frozen=True)
class LedgerRows:
    """The rows of a ledger, in order, up to the last whole step.

    Attributes:
        rows: Of all kinds.
        cut: Rows after the last whole step, of one that was cut short.
        notes: What could not be read.
    """

    rows: tuple[Row, ...]
    cut: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, *kinds: str) -> list[Row]:
        """The rows of some kinds, in order."""
        return [row for row in self.rows if row.get("kind") in kinds]

    @property
    def steps(self) -> list[int]:
        """The steps that are told whole."""
        return [row["step"] for row in self.of("step")]

    @cached_property
    def weights(self) -> dict[int, Row]:
        """Rows of weights by version."""
        return {row["version"]: row for row in self.of("weights")}

    def engine(self, step: int) -> Row | None:
        """The engine row that holds for what was sampled for a step."""
        begun = [row for row in self.of("engine") if row["step"] < step]
        return begun[-1] if begun else None

    def completion(self, completion_id: str) -> LedgerCompletion:
        """One completion.

        Raises:
            ValueError: There is none of that id.
        """
        ids = []
        for found in self.completions():
            if found.id == completion_id:
                return found
            ids.append(found.id)
        there = f"it has {ids[0]} to {ids[-1]}" if ids else "it has none yet"
        raise ValueError(
            f"the ledger has no completion {completion_id!r}; {there} (STEP/POSITION/SAMPLE, the "
            "column id of its rows of kind completion)"
        )

    def completions(self) -> Iterator[LedgerCompletion]:
        """Every completion, in order."""
        final = {row["draw"]: row for row in self.of("fate")}
        prompt: Row = {}
        place = 0
        for row in self.of("prompt", "completion"):
            if row["kind"] == "prompt":
                prompt, place = row, 0
                continue
            last = final.get(prompt["draw"], prompt)
            trained = last if last["fate"] == "trained" else None
            yield LedgerCompletion(row["id"], prompt, row, trained, place)
            place += 1


def read_ledger(run: Path) -> LedgerRows:
    """The ledger of a run folder.

    Raises:
        ValueError: There is none.
    """
    path = run / LEDGER
    if not path.is_file():
        raise ValueError(
            f"{str(run)!r} has no {LEDGER}: it is the folder of no run of reinforcement learning, "
            "or log.ledger is none in its recipe, or an earlier version of rlvr wrote it"
        )
    lines = read_lines(path)
    ends = [place for place, row in enumerate(lines.objects) if row.get("kind") in _CLOSING]
    whole = ends[-1] + 1 if ends else 0
    return LedgerRows(lines.objects[:whole], lines.objects[whole:], tuple(lines.notes(LEDGER)))


_CLOSING = ("engine", "step")
"""Kinds of the last row that is appended at once."""
