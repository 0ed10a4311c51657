"""Where the seconds of a step go, beside what this machine could do at best."""

from rlvr.bench.ceilings import Ceilings, measure_ceilings
from rlvr.bench.render import render, write_json
from rlvr.bench.workloads import WORKLOADS, completion_lengths, made_up_batch

__all__ = [
    "WORKLOADS",
    "Ceilings",
    "completion_lengths",
    "made_up_batch",
    "measure_ceilings",
    "render",
    "write_json",
]
