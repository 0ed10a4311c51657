"""Look at a node before anything starts there, and name it where something is missing.

    python -m launch.preflight --folder SHARED --nodes 4 --ports 29500 --need rlvr --need accelerate

Every node writes its name into the folder and waits until it sees as many as there are nodes: where
it does not, the folder is not on storage that all of them share, and weights, logs and checkpoints
would not arrive. Imports nothing that takes long.
"""

import argparse
import importlib.util
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launch.node import node_name


def missing_packages(needed: Sequence[str]) -> list[str]:
    """Which of the packages cannot be found; ``a|b`` asks for either distribution."""
    return [name for name in needed if not any(_installed(part) for part in name.split("|"))]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True


def taken_ports(ports: Sequence[int], host: str = "") -> list[int]:
    """Which of the ports nobody can listen on here."""
    taken = []
    for port in ports:
        with socket.socket() as probe:
            # As servers do: a port that was left a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                taken.append(port)
    return taken


def meet(folder: Path, name: str, count: int, timeout_s: float) -> None:
    """Write our name into the folder and wait for the others'.

    Raises:
        ValueError: Fewer than ``count`` are seen in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    deadline = time.monotonic() + timeout_s
    # Storage may show files of its own there, with names such as .nfs0001.
    while len(seen := sorted(path.name for path in folder.glob("[!.]*"))) < count:
        if time.monotonic() > deadline:
            raise ValueError(
                f"sees {len(seen)} of {count} nodes in {folder} within {timeout_s:g} s "
                f"({', '.join(seen)}): the run's folder has to be on storage that all nodes share; "
                "choose another output, or raise --shared-timeout for slow storage"
            )
        time.sleep(0.2)


def examine(needed: Sequence[str], ports: Sequence[int], host: str = "") -> list[str]:
    """What is wrong with this node, each with its remedy."""
    faults = []
    if missing := missing_packages(needed):
        faults.append(
            f"{sys.executable} lacks {', '.join(missing)}; install it there, or give an "
            "environment that all nodes share (site: python, setup, container)"
        )
    if taken := taken_ports(ports, host):
        faults.append(
            f"port {', '.join(map(str, taken))} is taken; end what listens there, or choose others "
            "with --main-port and --server-port"
        )
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m launch.preflight")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--need", action="append", default=[])
    parser.add_argument("--ports", type=int, nargs="*", default=[])
    parser.add_argument("--host", default="")
    chosen = parser.parse_args(arguments)
    faults = examine(chosen.need, chosen.ports, chosen.host)
    try:
        if not faults:
            meet(chosen.folder, node_name(), chosen.nodes, chosen.timeout)
    except (ValueError, OSError) as error:
        faults.append(str(error))
    for fault in faults:
        print(f"rlvr launch: node {node_name()}: {fault}", file=sys.stderr, flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
