"""What may be changed, by how much harm it does.

First what changes no number but its rounding, whatever else there is:

    gradient checkpointing    a third more time
    smaller micro-batches     less at once, the same gradient
    fewer rows, or a smaller share of the GPU for vLLM    slower generation

Then, one after the other, with as much of the above as is needed:

    1   the recipe's own precision
    2   ZeRO 2, then 3: over GPUs that there are; the same sums in another order
    3   passes in bfloat16
    4   AdamW's moments in bfloat16, then int8
    5   a reference in bfloat16, int8, nf4
    6   trained weights in bfloat16, with stochastic rounding
    7   ZeRO 3 with offload, where the memory of the host is known: float32 again, but slow
    8   LoRA: another experiment; its base as it was published, then bfloat16, then over the GPUs
        by ZeRO 3, then int8, then nf4 (QLoRA)

DeepSpeed shards float32 alone here, so 4 to 6 go without ZeRO, and 2 and 7 without them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlvr.fit.asked import Asked

_LORA = {"rank": 16, "alpha": 32.0}
_MIXED = {"model.precision": "bfloat16"}
_MOMENTS = {"learner.optimizer_states": "int8"}
_LEAST_ROWS = 8
_SHARES = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Level:
    """A step of harm.

    Attributes:
        name: For people.
        settings: What it changes in a recipe.
        stage: Its ZeRO stage.
        offload: Whether ZeRO offloads.
    """

    name: str
    settings: Mapping[str, Any]
    stage: int = 0
    offload: bool = False


def levels(asked: Asked, recipe: Any) -> Iterator[Level]:  # noqa: ANN401  (of any task)
    """Every level that may be tried, the least harmful first.

    Args:
        asked: What may be trained, and on how many GPUs.
        recipe: As it is without changes.
    """
    adapted = recipe.model.lora is not None
    if asked.train != "lora" and not (adapted and asked.train is None):
        yield from _full(asked, {"model.lora": None} if adapted else {}, recipe)
    if asked.train != "full":
        yield from _lora(asked, {} if adapted else {"model.lora": _LORA})


def _sharded(asked: Asked) -> Iterator[int]:
    if asked.gpus * asked.nodes > 1 and asked.machine.device == "cuda":
        yield from (2, 3)


def _full(asked: Asked, own: Mapping[str, Any], recipe: Any) -> Iterator[Level]:  # noqa: ANN401
    yield Level("the recipe's own precision", own)
    for stage in _sharded(asked):
        yield Level(f"ZeRO {stage}", own, stage)
    mixed = {**own, **_MIXED}
    yield Level("bfloat16 passes", mixed)
    for stage in _sharded(asked):
        yield Level(f"bfloat16 passes, ZeRO {stage}", mixed, stage)
    for states in ("bfloat16", "int8"):
        yield Level(f"moments in {states}", {**mixed, "learner.optimizer_states": states})
    mixed |= _MOMENTS
    if recipe.holds_frozen_weights and not own:
        for frozen in ("bfloat16", "int8", "nf4"):
            frozen_too = {**mixed, "model.frozen_weights": frozen}
            yield Level(f"moments in int8, reference in {frozen}", frozen_too)
        mixed["model.frozen_weights"] = "nf4"
    mixed["model.weights"] = "bfloat16"
    yield Level("moments in int8, trained weights in bfloat16", mixed)
    if asked.machine.device == "cuda" and asked.machine.host is not None:
        yield Level("ZeRO 3 with offload", {**own, **_MIXED}, 3, offload=True)


def _lora(asked: Asked, own: Mapping[str, Any]) -> Iterator[Level]:
    yield Level("LoRA", own)
    mixed = {**own, **_MIXED}
    yield Level("LoRA, bfloat16 passes", mixed)
    yield Level("LoRA, base in bfloat16", {**mixed, "model.frozen_weights": "bfloat16"})
    if 3 in _sharded(asked):
        yield Level("LoRA, ZeRO 3", {**mixed, "model.frozen_weights": None}, 3)
    yield Level("LoRA, base in int8", {**mixed, "model.frozen_weights": "int8"})
    yield Level("QLoRA: LoRA, base in nf4", {**mixed, "model.frozen_weights": "nf4"})


def checkpointing(recipe: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Whether activations are recomputed, the faster choice first."""
    key = "model.gradient_checkpointing"
    return [{key: True}] if recipe.model.gradient_checkpointing else [{key: False}, {key: True}]


def micro_batches(recipe: Any, sequence: int) -> list[dict[str, Any]]:  # noqa: ANN401
    """Sizes of a micro-batch, the largest first; one that holds no whole sequence saves nothing."""
    found = [recipe.learner.tokens_per_micro_batch]
    while found[-1] > sequence:
        found.append(max(sequence, found[-1] // 2))
    return [{"learner.tokens_per_micro_batch": tokens} for tokens in found]


def engines(recipe: Any, stage: int) -> list[dict[str, Any]]:  # noqa: ANN401
    """Ways of generating, the fastest first."""
    rollout = getattr(recipe, "rollout", None)
    if rollout is None:
        return [{}]
    if rollout.engine.name == "transformers":
        return _rows(rollout.engine.max_rows) if stage < 3 else _other_engine()
    if rollout.engine.name == "vllm" and rollout.engine.kv_cache_gib is None:
        own = rollout.engine.memory_share
        shares = [own, *(share for share in _SHARES if own is None or share < own)]
        return [{"rollout.engine.memory_share": share} for share in shares]
    return [{}]


def _rows(most: int) -> list[dict[str, Any]]:
    found = [most]
    while found[-1] > _LEAST_ROWS:
        found.append(max(_LEAST_ROWS, found[-1] // 2))
    return [{"rollout.engine.max_rows": rows} for rows in found]


def _other_engine() -> list[dict[str, Any]]:
    """ZeRO 3 shards the weights that the transformers engine generates with."""
    return [
        {"rollout.engine": {"name": "vllm", "sleep": 1, "memory_share": share}} for share in _SHARES
    ]
