"""The least harmful settings that fit (:mod:`rlvr.fit.levels`), or what comes nearest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from rlvr.fit.asked import Asked, Trained
from rlvr.fit.levels import Level, checkpointing, engines, levels, micro_batches
from rlvr.memory import Estimate, ModelShape, Processes, Work, estimate

ShapeOf = Callable[[Any], ModelShape]
"""Gives the shape of the model that a recipe names."""
Choice = Sequence[Mapping[str, Any]]
"""Settings of which one is chosen."""


@dataclass(frozen=True)
class Candidate:
    """Settings, and what they take.

    Attributes:
        changes: What they change in the recipe that was given.
        recipe: With the changes.
        level: How much harm they do.
        found: What they take.
        asked: For whom.
    """

    changes: Mapping[str, Any]
    recipe: Any
    level: Level
    found: Estimate
    asked: Asked

    @property
    def missing(self) -> float:
        """Bytes of a process beyond the room there is, or of the host; at most 0 where it fits."""
        host = self.found.host_left
        return max(self.found.total - _room(self), 0.0 if host is None else -host)

    @property
    def fits(self) -> bool:
        """Whether the room is enough, on GPU and host."""
        return self.missing <= 0


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        asked: The question.
        given: The recipe without any change.
        best: The least harmful settings that fit, or those that miss least.
        tried: Names of the levels that did not fit, with what each takes at the least.
    """

    asked: Asked
    given: Candidate
    best: Candidate
    tried: tuple[tuple[str, float], ...]

    @property
    def fits(self) -> bool:
        """Whether anything does."""
        return self.best.fits


def _room(candidate: Candidate) -> float:
    several = candidate.asked.gpus if candidate.asked.machine.device == "cpu" else 1
    return candidate.asked.room / several


def search(asked: Asked, shape_of: ShapeOf) -> Answer:
    """Try level by level; what changes no number is used as far as a level needs it.

    Raises:
        ValueError: The recipe is wrong as it is, or the model has no room for its sequences.
    """
    recipe = asked.own
    shape = shape_of(recipe)
    work = work_for(asked, recipe, shape)
    if shape.context is not None and work.sequence > shape.context:
        raise ValueError(
            f"prompt and completion of {work.sequence:,} tokens exceed the context of "
            f"{asked.model!r}, {shape.context:,}; lower --prompt or --completion"
        )
    unchanged = _candidate(asked, {}, Level("as given", {}), shape_of)
    if unchanged is None:
        raise ValueError("; ".join(recipe.launch_faults(asked.gpus * asked.nodes, 0)))
    nearest, tried = unchanged, [("as given", unchanged.found.total)]
    if asked.train is None and unchanged.fits:
        return Answer(asked, unchanged, unchanged, ())
    for level in levels(asked, recipe):
        choices = _choices(level, recipe, work.sequence)
        smallest = {key: value for choice in choices for key, value in choice[-1].items()}
        least = _candidate(asked, smallest, level, shape_of)
        if least is None:
            continue
        if least.fits:
            best = _relaxed(asked, least, choices, shape_of)
            return Answer(asked, unchanged, best, tuple(tried))
        tried.append((level.name, least.found.total))
        if least.missing < nearest.missing or not _allowed(asked, nearest):
            nearest = least
    return Answer(asked, unchanged, nearest, tuple(tried))


def _allowed(asked: Asked, candidate: Candidate) -> bool:
    """Whether a candidate trains what it may."""
    wanted = {"full": False, "lora": True}.get(asked.train or "")
    return wanted is None or (candidate.recipe.model.lora is not None) == wanted


def alternatives(asked: Asked, shape_of: ShapeOf) -> Iterator[tuple[str, Answer]]:
    """The nearest questions with an answer, where this one has none: words for it, and the answer.

    More GPUs, a shorter completion, adapters.
    """
    questions = [_more_gpus(asked), _shorter(asked)]
    if asked.train == "full":
        lora: Trained = "lora"
        questions.append(iter([("--lora", replace(asked, train=lora))]))
    for question in questions:
        for words, other in question:
            answer = search(other, shape_of)
            if answer.fits:
                yield words, answer
                break


def _more_gpus(asked: Asked) -> Iterator[tuple[str, Asked]]:
    if asked.machine.device != "cuda" or asked.machine.memory is None:
        return
    gpus, nodes = asked.gpus, asked.nodes
    for _ in range(8):
        gpus, nodes = (gpus * 2, nodes) if gpus < 8 else (gpus, nodes * 2)
        words = f"--gpus {gpus}x{asked.machine.memory / 2**30:g}"
        words += f" --nodes {nodes}" if nodes > 1 else ""
        yield words, replace(asked, gpus=gpus, nodes=nodes)


def _shorter(asked: Asked) -> Iterator[tuple[str, Asked]]:
    if asked.task.name != "rl":
        return
    tokens = asked.own.rollout.sampling.max_tokens // 2
    while tokens >= 64:
        yield f"--completion {tokens}", replace(asked, completion=tokens)
        tokens //= 2


def work_for(asked: Asked, recipe: Any, shape: ModelShape) -> Work:  # noqa: ANN401
    """What a recipe of any task does."""
    from rlvr.rl.memory import rl_work
    from rlvr.rl.recipe import RLRecipe
    from rlvr.runs.memory import offline_work

    device = asked.machine.device
    if isinstance(recipe, RLRecipe):
        return rl_work(recipe, shape, device)
    return offline_work(recipe, shape, device)


def _candidate(
    asked: Asked, neutral: Mapping[str, Any], level: Level, shape_of: ShapeOf
) -> Candidate | None:
    """Settings with what they take; None where they do not go together."""
    processes = Processes(asked.gpus, asked.nodes, level.stage, level.offload)
    said = {word.partition("=")[0].strip() for word in asked.words}
    wanted = {**level.settings, **neutral}
    changes = {
        key: value
        for key, value in wanted.items()
        if key not in said and _value(asked.own, key) != value
    }
    try:
        recipe = asked.build(changes)
    except ValueError:
        if not changes:
            raise
        return None
    if recipe.launch_faults(processes.count, level.stage):
        return None
    work = work_for(asked, recipe, shape_of(recipe))
    found = estimate(work, processes, asked.machine)
    return Candidate(changes, recipe, level, found, asked)


def _value(recipe: Any, key: str) -> Any:  # noqa: ANN401
    """What a recipe has there."""
    return reduce(lambda settings, name: getattr(settings, name, None), key.split("."), recipe)


def _choices(level: Level, recipe: Any, sequence: int) -> list[Choice]:  # noqa: ANN401
    """What changes no number, each kind from the fastest to the smallest."""
    return [
        checkpointing(recipe),
        micro_batches(recipe, sequence),
        engines(recipe, level.stage),
    ]


def _relaxed(
    asked: Asked, least: Candidate, choices: Sequence[Choice], shape_of: ShapeOf
) -> Candidate:
    """The fastest choices that still fit, one kind after the other; the rest as small as it was."""
    best = least
    kept: dict[str, Any] = {}
    for place, choice in enumerate(choices):
        rest = {key: value for later in choices[place + 1 :] for key, value in later[-1].items()}
        for option in choice:
            found = _candidate(asked, {**kept, **option, **rest}, least.level, shape_of)
            if found is not None and found.fits:
                best, kept = found, {**kept, **option}
                break
    return best


def shapes() -> ShapeOf:
    """Reads the shape of a recipe's model, once for every way of adapting it."""
    known: dict[str, ModelShape] = {}

    def shape_of(recipe: Any) -> ModelShape:  # noqa: ANN401
        from rlvr.policy.shape import read_shape

        model = recipe.model
        key = f"{model.path} {model.revision} {model.lora}"
        if key not in known:
            known[key] = read_shape(model)
        return known[key]

    return shape_of
