"""The available benchmarks and protocols as text."""

import textwrap

from eval.benchmarks import BENCHMARKS
from eval.protocols import PROTOCOLS


def catalogue() -> str:
    """Names and their meanings, for ``rlvr eval --list``."""
    lines = ["benchmarks"]
    for item in BENCHMARKS.values():
        hub = f"{item.hub.path}{f' ({item.hub.subset})' if item.hub.subset else ''}"
        lines.append(f"  {item.name:<15} {item.title}, {item.rows} problems; {hub}")
    lines.append("protocols")
    for protocol in PROTOCOLS.values():
        text = f"{protocol.purpose} Grader {protocol.grader}. [{protocol.source}]"
        lines += textwrap.wrap(
            text, 96, initial_indent=f"  {protocol.name:<18} ", subsequent_indent=" " * 21
        )
    return "\n".join(lines)
