"""Fixtures shared by all rooms."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of specifications and data that may stand beside the checkout."""
    folder = Path(
        os.environ.get("RLVR_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared")
    )
    if not folder.is_dir():
        pytest.skip("the folder of shared data is not beside this checkout (or at RLVR_SHARED)")
    return folder
