"""``write_page``."""

from collections.abc import Sequence
from pathlib import Path


def write_page(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page."""
    return out or folders[0] / "report.html"
