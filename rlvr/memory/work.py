"""What a run does and on what, in the numbers and choices that its memory depends on."""

from dataclasses import dataclass, field
from typing import Literal

from rlvr.memory.shape import ModelShape

GIB = 2**30

Format = Literal["float32", "bfloat16", "int8", "nf4"]
"""How numbers are stored; the last two with a scale for every few of them."""

EngineKind = Literal["none", "own", "vllm", "server"]


@dataclass(frozen=True)
class Storage:
    """How a run stores its numbers: the settings that trade memory for something.

    Attributes:
        weights: Of what is trained (``model.weights``).
        frozen: Of a frozen base and of a reference (``model.frozen_weights``); None rounds nothing.
        states: Of the policy's moments in AdamW (``learner.optimizer_states``).
        in_backward: Whether gradients are applied as they come (``learner.in_backward``).
        compute: Precision of the passes (``model.precision``).
        recompute: Whether activations are recomputed (``model.gradient_checkpointing``).
        exact: Whether gradients are added up exactly (``learner.exact``).
    """

    weights: Format = "float32"
    frozen: Format | None = None
    states: Format = "float32"
    in_backward: Literal["per_tensor", "two_passes"] | None = None
    compute: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    exact: bool = False


@dataclass(frozen=True)
class ExtraModel:
    """A model of the policy's size beside the policy.

    Attributes:
        name: What it is for.
        trained: How many of its weights are trained.
        states: How their moments are stored.
        whole: Whether it brings weights of its own; a frozen base with adapters off does not.
    """

    name: str
    trained: int = 0
    states: Format = "float32"
    whole: bool = True


@dataclass(frozen=True)
class EngineWork:
    """What generates.

    Attributes:
        kind: Nothing, the learner's own weights, vLLM beside the learner, or servers elsewhere.
        rows: Most completions at the same time, with the learner's own weights.
        completions: Of a step, over all processes.
        prompt: Tokens of the longest prompt.
        cache: Bytes of vLLM's cache of keys and values; None is vLLM's own choice.
        share: Of a GPU's memory, what vLLM takes where ``cache`` is None; None is what the learner
            leaves.
        devices: GPUs that vLLM spreads its weights over.
        sleeps: Whether vLLM gives its memory back during the update.
    """

    kind: EngineKind = "none"
    rows: int = 0
    completions: int = 0
    prompt: int = 0
    cache: float | None = None
    share: float | None = None
    devices: int = 1
    sleeps: bool = False


@dataclass(frozen=True)
class Work:
    """A run on some model.

    Attributes:
        shape: The policy.
        storage: How numbers are stored.
        sequence: Longest prompt and completion together, in tokens.
        tokens: Most tokens of a micro-batch.
        update: Tokens of an update at full lengths, over all processes; None is not known.
        chunk: Tokens whose logits are formed at once.
        kept: Most log-probabilities over the vocabulary that are kept for the backward pass.
        packed: Whether rows are packed behind a mask of a row's square.
        extra: Models beside the policy.
        engine: What generates.
    """

    shape: ModelShape
    storage: Storage = Storage()
    sequence: int = 1024
    tokens: int = 4096
    update: int | None = None
    chunk: int = 1
    kept: int = 0
    packed: bool = False
    extra: tuple[ExtraModel, ...] = ()
    engine: EngineWork = field(default_factory=EngineWork)

    @property
    def micro_batch(self) -> int:
        """Tokens of the largest micro-batch: a sequence is never split, and an update may be
        less."""
        largest = max(self.tokens, self.sequence)
        return largest if self.update is None else min(largest, max(self.update, self.sequence))

    @property
    def at_once(self) -> bool:
        """Whether an update is one micro-batch, so that its gradients need not be added up."""
        return self.update is not None and self.update <= self.micro_batch


@dataclass(frozen=True)
class Processes:
    """How a run is launched.

    Attributes:
        gpus: Learner processes of a node, each with a GPU of its own.
        nodes: Machines that learn.
        stage: DeepSpeed's ZeRO stage; 0 is none of it.
        offload: Whether moments and master weights, under stage 3 weights too, are in the memory of
            the host.
    """

    gpus: int = 1
    nodes: int = 1
    stage: int = 0
    offload: bool = False

    @property
    def count(self) -> int:
        """Learner processes altogether."""
        return self.gpus * self.nodes

    @property
    def text(self) -> str:
        """For people."""
        if self.stage == 0:
            return "one process" if self.count == 1 else f"data parallel x {self.count}"
        return f"ZeRO {self.stage}{' with offload' if self.offload else ''} x {self.count}"


@dataclass(frozen=True)
class Machine:
    """What a process runs on.

    Attributes:
        device: Where weights are.
        memory: Bytes of a GPU, or of the whole machine on a CPU; None is not known.
        host: Bytes of a node's own memory; None is not known.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    memory: float | None = None
    host: float | None = None
