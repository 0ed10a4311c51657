"""Problems in: sources, chat and prompt templates, the resumable sampler.

Importing this package is light: readers (datasets, pyarrow, reasoning-gym) load when used.
"""

from rlvr.data.arithmetic import ArithmeticSource
from rlvr.data.encode import EncodedPrompts, Prompt, encode_prompts
from rlvr.data.files import FileSource
from rlvr.data.gym import GymSource
from rlvr.data.hub import HubSource
from rlvr.data.rows import Fields
from rlvr.data.sampler import ProblemSampler
from rlvr.data.selection import (
    Ranked,
    accuracy_counts,
    rank_by_variance,
    read_history,
    write_selection,
)
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
    "read_history",
    "template_names",
    "write_selection",
]
