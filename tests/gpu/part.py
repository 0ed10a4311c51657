"""One part of the day, in a process of its own: ``python -m tests.gpu.part NAME MODULE OUT ...``.

Every row that the part yields is on the disk before it goes on.
"""

import argparse
import time
from importlib import import_module
from pathlib import Path

from tests.gpu.kit import Setting, append


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("module")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    setting = Setting(options.tiny, options.out, deadline)
    for row in import_module(options.module).measure(setting):
        append(options.out, {"part": options.name, **row})


if __name__ == "__main__":
    main()
