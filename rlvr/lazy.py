"""torch, numpy, sympy and aiohttp, imported when they are first used.

Settings stand next to the mathematics that they belong to. Whoever reads a recipe, or asks
for ``--help``, needs the settings alone, and importing torch would cost seconds. So a module that a
recipe's schema reaches says::

    from __future__ import annotations

    from rlvr.lazy import torch

and touches ``torch.`` inside functions only. tests/settings/test_light.py holds the rooms to it.
aiohttp is for servers that generate: without it a machine trains with the engine ``transformers``.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["aiohttp", "np", "sympy", "torch"]


class _Lazy:
    """A module that is imported when an attribute of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)  # the next time it is found without asking
        return value


if TYPE_CHECKING:
    import aiohttp as aiohttp
    import numpy as np
    import sympy as sympy
    import torch as torch
else:
    aiohttp, np, sympy, torch = map(_Lazy, ("aiohttp", "numpy", "sympy", "torch"))


def working_directory_last() -> None:
    """Have modules of the working directory found, after ours and all that is installed.

    ``python -m`` looks there first, where a user's own reward.py or eval.py would be taken for our
    package; a checkout that is run from its root has our packages there.
    """
    ours, here = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), os.getcwd()
    if here == ours:
        return
    sys.path[:] = [path for path in sys.path if path not in ("", here)]
    if ours not in sys.path:  # an editable install is found by a hook that is asked last
        sys.path.append(ours)
    sys.path.append(here)
