"""math-verify, imported when the first answer needs it: the verifier does without it otherwise."""

import logging
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def math_verify() -> Any:  # noqa: ANN401
    """The package, which is imported when the first answer needs it.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import math_verify as package
    except ModuleNotFoundError as error:
        raise ImportError(
            "the answer needs math-verify, which is not installed; run: "
            "pip install math-verify==0.9.0"
        ) from error
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return package


@lru_cache(maxsize=1)
def latex_alone() -> list[Any]:
    """What math-verify extracts here: LaTeX, never a number inside other text."""
    config = math_verify().LatexExtractionConfig
    return [config(boxed_match_priority=0, try_extract_without_anchor=True)]
