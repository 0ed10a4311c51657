"""Answers that are not one mathematical value, each kind in a file of its own.

A domain says what a reference looks like, which part of a response it reads, and how much of the
credit an answer gets. Its checks run in the worker processes of `VerifierPool`, under the same time
limits and with the same counters as mathematics. No domain executes what a model wrote, but for
``code``, which does so in a sandbox (`reward.sandbox`).

``FILES`` names them all; a module is imported when its domain is used.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module

from reward.domains.base import Domain

FILES = {
    "choice": "choice",
    "text": "text",
    "quantity": "quantity",
    "json_schema": "json_schema",
    "pattern": "pattern",
    "instructions": "instructions",
    "sorting": "puzzles",
    "sudoku": "puzzles",
    "countdown": "puzzles",
    "n_queens": "puzzles",
    "reasoning_gym": "gym",
    "code": "code",
}
"""The file of each domain."""


class _Domains(Mapping[str, Domain]):
    """The domains by name; whoever looks one up imports its file."""

    def __getitem__(self, name: str) -> Domain:
        module = import_module(f"reward.domains.{FILES[name]}")
        found: Domain = module.DOMAINS[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(FILES)

    def __len__(self) -> int:
        return len(FILES)


DOMAINS: Mapping[str, Domain] = _Domains()
