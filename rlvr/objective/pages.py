"""The table of the parts of an objective in docs/papers.md, printed from their classes.

python -m rlvr.objective.pages .
"""

import sys
from pathlib import Path

from rlvr.objective.corrections import Correction
from rlvr.objective.parts import Advantage, PolicyLoss, Regulariser, TokenFilter
from rlvr.objective.reducers import Reducer
from rlvr.settings import Registered
from rlvr.settings.index import write_index

KINDS: tuple[type[Registered], ...] = (
    Advantage, PolicyLoss, Correction, TokenFilter, Regulariser, Reducer,
)  # fmt: skip
"""The kinds of parts, in the order in which rewards pass through them."""

if __name__ == "__main__":
    write_index("parts", KINDS, Path(sys.argv[1]).absolute())
