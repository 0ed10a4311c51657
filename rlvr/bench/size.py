"""What a benchmark is asked for: parts, workloads, and how much of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PARTS = ("generation", "update", "run")
WORKLOADS = ("uniform", "lognormal", "outlier")
ENGINES = ("transformers", "vllm")


@dataclass(frozen=True)
class Size:
    """How much is generated and trained on in a step."""

    prompts: int = 2
    samples: int = 8
    prompt_tokens: int = 32
    tokens: int = 64

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.prompts * self.samples


def check_names(
    parts: Sequence[str], workloads: Sequence[str], engine: str, recipe: Path | None
) -> None:
    """See that all there is to measure is known, before anything heavy loads.

    Raises:
        ValueError: An unknown part, workload or engine; a run without a recipe.
    """
    for what, given, known in (
        ("part", parts, PARTS),
        ("workload", workloads, WORKLOADS),
        ("engine", [engine], ENGINES),
    ):
        for name in given:
            if name not in known:
                names = ", ".join(known)
                raise ValueError(f"unknown {what} {name!r}; the known ones are {names}")
    if "run" in parts and recipe is None:
        raise ValueError("the part 'run' trains a recipe for a few steps; name it with --recipe")
    if recipe is not None and not recipe.is_file():
        raise ValueError(f"recipe {str(recipe)!r} is not a file; give the path of a YAML file")
