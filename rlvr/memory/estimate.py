"""Bytes of a process by purpose, and of a node's own memory where DeepSpeed offloads.

A run goes through five moments, each of which may be its peak:

    load       without a GPU: weights are read in float32, and rounded then
    forward    the end of a forward pass: autocast's copies of the weights are all there
    backward   the activations of a micro-batch, or of one block of it where they are recomputed
    step       AdamW moves a tensor, whose weights before are kept to be counted
    rollout    keys and values of the completions; no gradient is there then

Where P weights are trained by n processes, DeepSpeed holds in each (arXiv:1910.02054, section 5)

    stage 1    w P + g P + (m + 4) P / n        w, g, m: bytes of a weight, gradient and moments;
    stage 2    w P + (g + m + 4) P / n          4: float32 master weights
    stage 3    (w + g + m + 4) P / n

and a bucket of gradients; stage 3 also the weights of the layers that it has gathered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rlvr.memory.shape import ModelShape
from rlvr.memory.work import GIB, EngineWork, Format, Machine, Processes, Work

Phase = Literal["load", "forward", "backward", "step", "rollout"]
UPDATE: tuple[Phase, ...] = ("forward", "backward")
GRADIENTS: tuple[Phase, ...] = (*UPDATE, "step")
RUNNING: tuple[Phase, ...] = (*GRADIENTS, "rollout")
EVER: tuple[Phase, ...] = ("load", *RUNNING)
DOING: Mapping[Phase, str] = {
    "load": "while loading",
    "forward": "in the update",
    "backward": "in the update",
    "step": "in the optimizer step",
    "rollout": "while generating",
}
"""The moments, for people."""

BYTES: Mapping[Format, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "int8": 1.0 + 4 / 256,
    "nf4": 0.5 + 4 / 64,
}
"""Of a number, with its share of a scale."""

PROGRAM = 0.55 * GIB
"""Python, torch and transformers, as measured on a CPU; on a GPU it stands for CUDA's context."""
ENGINE_PROGRAM = 1.0 * GIB
"""vLLM's own process without weights and cache: what is left of the difference between runs with
and without it (docs/benchmarks/cpu.md)."""
ENGINE = "vLLM"
"""Name of the component that is an engine in a process of its own."""
ENGINE_CACHE = 1.0 * GIB
"""vLLM's cache where nothing says how large it is, which is its default here on a CPU."""

# DeepSpeed's defaults, in numbers: reduce_bucket_size, and stage 3's max_live_parameters and
# prefetch_bucket_size. The launch configurations of this project leave them as they are.
_BUCKET, _LIVE, _PREFETCH = 500_000_000, 1_000_000_000, 50_000_000
# Of numbers that are rounded at random: how many at once, and bytes of each meanwhile.
_ROUNDED, _ROUNDING = 2**24, 44.0
# Free places of the transformers engine's buffers behind a prompt.
_FIRST_PLACES = 32
# Of a Llama-like block, kept a token for the backward pass: vectors of the residual stream's width
# and of the MLP's.
_HIDDEN_VECTORS, _MLP_VECTORS = 14, 4


@dataclass(frozen=True)
class Component:
    """What a purpose takes.

    Attributes:
        name: The purpose.
        size: Bytes.
        note: How it comes about.
        when: The moments in which it is there.
        host: Whether it is in the node's own memory, while weights are on a GPU.
    """

    name: str
    size: float
    note: str = ""
    when: tuple[Phase, ...] = RUNNING
    host: bool = False


@dataclass(frozen=True)
class Estimate:
    """All components of one process, and its node."""

    components: tuple[Component, ...]
    processes: Processes
    machine: Machine

    def at(self, phase: Phase) -> float:
        """Bytes of a process at a moment."""
        return sum(c.size for c in self.components if not c.host and phase in c.when)

    @property
    def peak(self) -> Phase:
        """The moment that takes most."""
        return max(DOING, key=self.at)

    @property
    def total(self) -> float:
        """Bytes of a process at its peak."""
        return self.at(self.peak)

    @property
    def host(self) -> float:
        """Bytes of a node's own memory for what is kept there instead of on its GPUs."""
        return self.processes.gpus * sum(c.size for c in self.components if c.host)

    @property
    def left(self) -> float | None:
        """Bytes that remain of a GPU, or of the machine without one; None where not known."""
        if self.machine.memory is None:
            return None
        several = self.processes.gpus if self.machine.device == "cpu" else 1
        return self.machine.memory - several * self.total

    @property
    def host_left(self) -> float | None:
        """Bytes that remain of a node's own memory; None where not known."""
        return None if self.machine.host is None else self.machine.host - self.host


def estimate(
    work: Work, processes: Processes | None = None, machine: Machine | None = None
) -> Estimate:
    """What a run takes at full lengths.

    Args:
        work: What it does.
        processes: How it is launched; one process by default.
        machine: What each process runs on; a GPU of unknown size by default.
    """
    launched, where = processes or Processes(), machine or Machine()
    if work.storage.exact:  # weights are whole beside the whole sums of their gradients
        launched = replace(launched, stage=min(launched.stage, 2))
    learner = (
        *_weights(work, launched),
        *_optimizer(work, launched, where),
        *_passes(work, launched),
        *_loading(work, launched, where),
        Component("the program", PROGRAM, "interpreter and libraries, or CUDA's context", EVER),
    )
    resident = Estimate(learner, launched, where).at("rollout")
    parts = (*learner, *_engine(work, launched, where, resident))
    return Estimate(tuple(part for part in parts if part.size > 0), launched, where)


def trained_weights(work: Work) -> int:
    """How many weights are trained, those of models beside the policy included."""
    return work.shape.trained + sum(model.trained for model in work.extra)


def frozen_format(work: Work, launched: Processes) -> Format:
    """How weights that are not trained are held; where nothing is said, without rounding any."""
    if work.storage.frozen is not None:
        return work.storage.frozen
    exact = work.storage.compute == work.shape.stored == "bfloat16" and not launched.stage
    return "bfloat16" if exact else "float32"


def _base(work: Work, launched: Processes) -> Format:
    """How the model that runs is held, whether it is trained or frozen."""
    return frozen_format(work, launched) if work.shape.adapted else work.storage.weights


def _bytes_of(shape: ModelShape, stored: Format) -> float:
    """Bytes of a model's weights; norms and other weights than plain layers' stay float32."""
    rest = 4.0 * (shape.parameters - shape.plain)
    if stored == "float32":
        return 4.0 * shape.plain + rest
    outside = 2.0 * (shape.plain - shape.linear)
    # int8 has a float32 scale a row of weights.
    each = {"bfloat16": 2.0, "int8": 1 + 4 / shape.hidden, "nf4": BYTES["nf4"]}[stored]
    return each * shape.linear + outside + rest


def _trained_bytes(shape: ModelShape, trained: int, stored: Format) -> float:
    """Bytes of so many trained weights, or of their gradients; adapters are float32."""
    return _bytes_of(shape, stored) if trained == shape.parameters else 4.0 * trained


def _weights(work: Work, launched: Processes) -> Iterator[Component]:
    shape, stored = work.shape, work.storage
    shards = launched.count if launched.stage == 3 else 1
    host = launched.stage == 3 and launched.offload
    frozen = frozen_format(work, launched)

    def part(name: str, size: float, note: str) -> Component:
        shared = f", over {shards} processes" if shards > 1 else ""
        return Component(name, size / shards, note + shared, host=host)

    def trained(name: str, count: int) -> Component:
        size = _trained_bytes(shape, count, stored.weights)
        return part(name, size, f"{count:,} {stored.weights}")

    yield trained("weights, trained", shape.trained)
    if shape.adapted:
        yield part("weights, frozen", _bytes_of(shape, frozen), f"{shape.parameters:,} {frozen}")
    for model in work.extra:
        if model.trained:
            yield trained(model.name, model.trained)
        if model.whole and model.trained < shape.parameters:
            name = f"{model.name}, frozen" if model.trained else model.name
            yield part(name, _bytes_of(shape, frozen), f"{shape.parameters:,} {frozen}")


def _optimizer(work: Work, launched: Processes, where: Machine) -> Iterator[Component]:
    """Gradients, moments, and what DeepSpeed adds."""
    stored, trained = work.storage, trained_weights(work)
    sharded, gradients_sharded = launched.stage >= 1, launched.stage >= 2
    mine = trained / launched.count if sharded else float(trained)
    host = sharded and launched.offload
    over = f", over {launched.count} processes" if sharded and launched.count > 1 else ""
    each = (
        sum(
            _trained_bytes(work.shape, count, stored.weights)
            for count in (work.shape.trained, *(model.trained for model in work.extra))
        )
        / trained
    )
    if stored.in_backward and work.at_once:
        largest = work.shape.largest
        yield Component("gradients", each * largest, "of the largest tensor", GRADIENTS)
    elif gradients_sharded:
        yield Component("gradients", each * mine, stored.weights + over, GRADIENTS, host)
    else:
        # Those of a single micro-batch come as its activations go.
        when = ("backward", "step") if work.at_once and not sharded else GRADIENTS
        yield Component("gradients", each * trained, stored.weights, when)
        if sharded:
            yield Component("gradients, own part", each * mine, "copied" + over, GRADIENTS, host)
    if stored.exact:  # of all weights in every process, whatever is sharded
        note = "16 bytes a weight, 4 of a unit's gradient"
        yield Component("exact sums of gradients", 20.0 * trained, note, GRADIENTS)
    share = mine / trained
    moments = 2 * share * BYTES[stored.states] * work.shape.trained
    yield Component("AdamW's moments", moments, stored.states + over, host=host)
    for model in work.extra:
        size = 2 * share * BYTES[model.states] * model.trained
        yield Component(f"moments of {model.name}", size, model.states + over, host=host)
    if sharded:
        yield Component("master weights", 4 * mine, "float32, DeepSpeed's" + over, host=host)
        yield from _buffers(work, launched, where)
    if where.device == "cuda" and not host:
        # The weights before, and masks of what moved; of one tensor, or of DeepSpeed's flat one.
        moved = min(mine, _LIVE) if sharded else float(work.shape.largest)
        size = (each + 2) * moved
        if not (stored.states == stored.weights == "float32"):
            size = _ROUNDING * min(moved, _ROUNDED)
        yield Component("weights before the step", size, "of the tensor that moves", ("step",))


def _buffers(work: Work, launched: Processes, where: Machine) -> Iterator[Component]:
    """What DeepSpeed communicates through; on a CPU memory counts when it is written to."""
    each, trained = BYTES[work.storage.weights], trained_weights(work)
    used = min(_BUCKET, trained) if where.device == "cpu" else _BUCKET
    when = RUNNING if launched.stage == 3 else UPDATE
    yield Component("DeepSpeed's bucket", each * used, "gradients on their way", when)
    if launched.stage == 3:
        gathered = min(_LIVE, work.shape.parameters) + min(_PREFETCH, work.shape.parameters)
        yield Component("gathered weights", each * gathered, "by ZeRO 3, for a while", UPDATE)


def _loading(work: Work, launched: Processes, where: Machine) -> Iterator[Component]:
    """Models are read in float32 on the CPU, one after the other, and rounded when they are whole.

    The last is the largest together with what the others are held in; without a GPU that is in the
    same memory.
    """
    if where.device == "cpu":
        shape = work.shape
        held = sum(part.size for part in _weights(work, launched))
        last = next((m.trained for m in reversed(work.extra) if m.whole), shape.trained)
        stored = work.storage.weights if last == shape.parameters else frozen_format(work, launched)
        size = held - _bytes_of(shape, stored) + 4.0 * shape.parameters
        yield Component("weights as they are read", size, "float32", ("load",))


def _passes(work: Work, launched: Processes) -> Iterator[Component]:
    """Activations of a micro-batch, its logits, and autocast's copies of weights."""
    shape, stored, tokens = work.shape, work.storage, work.micro_batch
    width = BYTES[stored.compute]
    block = (_HIDDEN_VECTORS * shape.hidden + _MLP_VECTORS * shape.intermediate) * width
    note = f"{tokens:,} tokens"
    if stored.recompute:
        inputs = 4.0 * shape.hidden * shape.layers  # the residual stream is never rounded
        yield Component("activations", tokens * inputs, f"{note}, between blocks", UPDATE)
        yield Component("activations of a block", tokens * block, "recomputed", ("backward",))
    else:
        when = ("forward",) if work.at_once and not launched.stage else UPDATE
        yield Component("activations", tokens * block * shape.layers, note, when)
    if work.packed:
        yield Component("attention mask", (1 + width) * tokens**2, f"{tokens:,} squared", UPDATE)
    logits = 4 * (min(work.kept, tokens * shape.vocabulary) + 3 * work.chunk * shape.vocabulary)
    yield Component("logits", logits, f"{work.chunk} tokens at once, and those kept", UPDATE)
    yield from _copies(work, launched)


def _copies(work: Work, launched: Processes) -> Iterator[Component]:
    """Copies of weights in the precision of the passes, where they are held in another one.

    A weight of fewer bits is whole while its layer runs, and the output head's is the largest. Of
    float32 weights autocast makes bfloat16 copies, and keeps those of trained ones until the pass
    is over. The backward pass needs those of all layers, or those of a block where it is
    recomputed, and the output head's.
    """
    shape, stored = work.shape, work.storage
    if stored.compute == "float32" and _base(work, launched) != "float32":
        whole = 4.0 * shape.hidden * shape.vocabulary
        yield Component("a weight made whole", whole, "the output head's", (*UPDATE, "rollout"))
    if stored.compute != "bfloat16" or _base(work, launched) != "float32":
        return
    head = shape.hidden * shape.vocabulary
    one, every = (2.0 * (linear + head) for linear in (shape.linear / shape.layers, shape.linear))
    forward = one if stored.recompute and shape.adapted else every
    backward = one if stored.recompute else every
    name = "bfloat16 copies of weights"
    if forward == backward:
        yield Component(name, forward, "autocast's", UPDATE)
        return
    yield Component(name, forward, "autocast's, of all layers", ("forward",))
    yield Component(name, backward, "of a block and the head", ("backward",))


def _engine(
    work: Work, launched: Processes, where: Machine, resident: float
) -> Iterator[Component]:
    """What generates; ``resident`` bytes of its GPU are the learner's meanwhile."""
    engine, shape = work.engine, work.shape
    width = BYTES[work.storage.compute]
    model = width * shape.parameters
    on_gpu = where.device == "cuda"
    if engine.kind == "own":
        yield from _own_cache(work, launched, where)
    elif engine.kind == "vllm":
        when: tuple[Phase, ...] = ("rollout",) if engine.sleeps and on_gpu else RUNNING
        cache = ENGINE_CACHE if engine.cache is None else engine.cache
        size, note = model / engine.devices + cache + ENGINE_PROGRAM, "weights, cache and process"
        if on_gpu and engine.cache is None and where.memory is not None:
            asked = engine.share
            share = _share_left(engine, where.memory, resident) if asked is None else asked
            if asked is not None or share * where.memory > size:
                size, note = share * where.memory, f"its share {share:.3g} of the GPU"
        yield Component(ENGINE, size, note, when)
    if engine.kind in ("vllm", "server"):
        yield Component("weights for vLLM", model, "on their way, in shared memory", host=on_gpu)


def _share_left(engine: EngineWork, memory: float, resident: float) -> float:
    """What vLLM takes of a GPU where nothing is said: what the learner leaves, without a margin.

    Half of it where the engine does not sleep during updates.
    """
    margin = max(GIB, memory / 50)
    left = max(0.0, memory - resident - margin) / memory
    return left if engine.sleeps else left / 2


def _own_cache(work: Work, launched: Processes, where: Machine) -> Iterator[Component]:
    """Keys and values of the transformers engine, in buffers that double when they are full."""
    engine, shape = work.engine, work.shape
    width = BYTES[work.storage.compute]
    if width < 4:
        width = 3.0  # keys are turned by positions in float32, values are not
    places = engine.prompt + _FIRST_PLACES
    while places < work.sequence:
        places *= 2
    # On a CPU memory counts when it is written to.
    places = places if where.device == "cuda" else work.sequence
    rows = min(engine.rows, -(-engine.completions // launched.count))
    size = 2 * shape.key_value_width * shape.layers * rows * places * width
    note = f"{rows} completions of {work.sequence:,} tokens"
    yield Component("keys and values", size, note, ("rollout",))
    logits = 3 * 4 * rows * shape.vocabulary
    yield Component("next token's logits", logits, f"{rows} rows", ("rollout",))
