"""How much memory a run takes, in bytes, from its settings and its model's configuration.

No torch here: a table of it is printed before anything is loaded. docs/memory.md says what is
counted, and holds it against measurements.
"""

from rlvr.memory.estimate import ENGINE, Component, Estimate, estimate
from rlvr.memory.shape import ModelShape
from rlvr.memory.table import memory_lines
from rlvr.memory.work import (
    GIB,
    EngineWork,
    ExtraModel,
    Machine,
    Processes,
    Storage,
    Work,
)

__all__ = [
    "ENGINE",
    "GIB",
    "Component",
    "EngineWork",
    "Estimate",
    "ExtraModel",
    "Machine",
    "ModelShape",
    "Processes",
    "Storage",
    "Work",
    "estimate",
    "memory_lines",
]
