"""Data: sources of problems, chat and prompt templates, and the resumable sampler.

Importing this package is cheap: readers (datasets, pyarrow, reasoning-gym) are loaded when used.
"""

from rlvr.data.accuracy_ranking import (
    Ranked,
    accuracy_counts,
    rank_by_variance,
    read_accuracy_history,
    write_selection,
)
from rlvr.data.arithmetic import ArithmeticSource
from rlvr.data.encode import EncodedPrompts, Prompt, encode_prompts
from rlvr.data.gym import GymSource
from rlvr.data.hub import HubSource
from rlvr.data.local_file import FileSource
from rlvr.data.rows import Fields, RowsWanted
from rlvr.data.sampler import ProblemSampler
from rlvr.data.sources import Source, load_problems, overlap
from rlvr.data.templates import (
    Example,
    Template,
    TemplateChoice,
    TemplateSettings,
    load_template,
    template_names,
)

__all__ = [
    "ArithmeticSource",
    "EncodedPrompts",
    "Example",
    "Fields",
    "FileSource",
    "GymSource",
    "HubSource",
    "ProblemSampler",
    "Prompt",
    "Ranked",
    "RowsWanted",
    "Source",
    "Template",
    "TemplateChoice",
    "TemplateSettings",
    "accuracy_counts",
    "encode_prompts",
    "load_problems",
    "load_template",
    "overlap",
    "rank_by_variance",
    "read_accuracy_history",
    "template_names",
    "write_selection",
]
