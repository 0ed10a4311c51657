"""The model as a function: load it, run it, read its tokens' statistics.

``Policy`` is the one module that an engine wraps, trains and shards. Its forward runs the backbone
and reads the completion tokens' statistics off the hidden states; the full logits never exist.
That is exact only for models whose logits are their output head applied to the last hidden state,
or a multiple of that; ``load_policy`` compares the two (:mod:`rlvr.policy.model_check`) and refuses
models that transform their logits otherwise.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from rlvr.objective.token_statistic import TokenStatistic
from rlvr.policy.batching import ModelInputs, packed_inputs, padded_inputs
from rlvr.policy.embedding import add_rows_in_place
from rlvr.policy.routers import Routers, RoutingRequest
from rlvr.policy.settings import Precision
from rlvr.policy.token_stats import TokenHead, TokenStats
from rlvr.policy.tree_attention import Block, piecewise

MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model of transformers raises at inputs, caches or adapters that it does not support."""


class Policy(nn.Module):
    """A causal language model with completion-token statistics as its output.

    Args:
        model: A transformers causal LM, bare or wrapped by peft.
        precision: Compute precision of :meth:`forward` and :meth:`compute`.

    Attributes:
        gathered: Context in which the parameters it is given are whole on this process, to be
            read and not written; a learner that shards them puts its own here, and every process
            then has to enter it with the same parameters. Outside of it a sharded parameter is
            empty.
        keeps_copies: Whether autocast keeps the bfloat16 copy of each weight until a pass ends;
            otherwise it makes one whenever a weight is used, and the numbers are the same.
        stays_in_evaluation: Whether training mode is kept from the model, which would draw at
            random in it.
        routers: Reads and replays the choices of a mixture of experts; None until
            :meth:`watch_routers`.
        logit_scale: What the head's output is multiplied by to give logits.
        unused: Names of inputs that the transformer does not take, such as position ids where it
            counts positions itself.
    """

    gathered: Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]

    def __init__(self, model: nn.Module, precision: Precision = "float32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        head = self.causal_lm.get_output_embeddings()
        self.head = None if head is None else TokenHead(head)
        self.gathered = nullcontext
        self.stays_in_evaluation = False
        self.keeps_copies = True
        self.routers: Routers | None = None
        self.logit_scale = 1.0
        self.unused = {"position_ids"} - names_taken(self._transformer)
        # In a tuple: as a submodule it would double every name.
        self._compiled: tuple[Callable[..., Any], ...] = ()

    @property
    def causal_lm(self) -> Any:  # noqa: ANN401  (transformers' classes are untyped)
        """The transformers model inside peft's wrapper, or the model itself."""
        model: Any = self.model
        return model.get_base_model() if self.has_adapters else model

    @property
    def has_adapters(self) -> bool:
        """Whether peft wraps the model."""
        return hasattr(self.model, "peft_config")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """What weights are rounded to when they are used."""
        held: torch.dtype = next(self.model.parameters()).dtype
        whole = torch.promote_types(held, torch.float32)
        return torch.bfloat16 if self.precision == "bfloat16" else whole

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model was configured for, in tokens."""
        return getattr(self.causal_lm.config, "max_position_embeddings", None)

    def train(self, mode: bool = True) -> "Policy":
        """Training or evaluation mode, which differ by dropout alone."""
        super().train(mode)
        if mode and self.stays_in_evaluation:
            for module in self.model.modules():
                # Checkpointing of activations looks at the mode too.
                module.training = bool(getattr(module, "gradient_checkpointing", False))
        return self

    def compute(self) -> AbstractContextManager[Any]:
        """Autocast to the compute precision, or nothing in float32."""
        if self.precision == "bfloat16":
            return torch.autocast(
                self.device.type, dtype=torch.bfloat16, cache_enabled=self.keeps_copies
            )
        return nullcontext()

    def add_embedding_rows(self) -> None:
        """Where the output head is the embedding, add a lookup's gradient to the head's in place.

        For engines that look at gradients only when the backward pass is over
        (:mod:`rlvr.policy.embedding`).
        """
        embedding, head = self.causal_lm.get_input_embeddings(), self.head
        tied = head is not None and getattr(embedding, "weight", None) is head.weight
        if tied and not self._compiled:
            add_rows_in_place(embedding)

    def reference(self) -> AbstractContextManager[Any]:
        """The policy with its adapters off: the frozen base model."""
        assert self.has_adapters, "only a policy with adapters holds its own reference"
        context: AbstractContextManager[Any] = self.model.disable_adapter()  # type: ignore[operator]
        return context

    def backbone(self, blocks: Sequence[Block] = (), **inputs: Any) -> Any:  # noqa: ANN401
        """Run the transformer without its output head; transformers' output object.

        ``blocks`` are what stands on a packed row, which is attended to piece by piece.
        """
        inputs = {name: value for name, value in inputs.items() if name not in self.unused}
        if self._compiled:
            return self._compiled[0](**inputs)
        with piecewise(self._transformer, blocks, inputs.get("attention_mask")) as mask:
            return self._transformer(
                **(inputs if mask is None else inputs | {"attention_mask": mask})
            )

    def plain_logits(self, ids_L: torch.Tensor) -> torch.Tensor:
        """The output head's product [L, V] for a sequence alone, before any scale."""
        head = self.causal_lm.get_output_embeddings()
        logits: torch.Tensor = head(self.backbone(input_ids=ids_L[None]).last_hidden_state)[0]
        return logits

    @property
    def _transformer(self) -> nn.Module:
        return transformer_of(self.causal_lm)

    def compile_backbone(self) -> None:
        """Have :meth:`backbone` compiled when it is called next."""
        self._compiled = (torch.compile(self._transformer, dynamic=True),)

    def watch_routers(self) -> Routers:
        """Have :meth:`forward` able to read and replay the choices of a mixture of experts.

        Raises:
            ValueError: The model is none, its routers are of an unknown kind, or it is compiled.
        """
        if self._compiled:
            raise ValueError(
                "routers are read by hooks, which model.compile drops; set it to false"
            )
        if self.routers is None:
            self.routers = Routers(self._transformer, self.device)
        return self.routers

    def forward(
        self,
        inputs: ModelInputs,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        statistics: Sequence[TokenStatistic] = (),
        chunk_tokens: int | None = None,
        routing: RoutingRequest | None = None,
    ) -> TokenStats:
        """Statistics [N] of the micro-batch's completion tokens; see :func:`token_stats`.

        ``routing`` asks for a mixture's routing too, after :meth:`watch_routers`.
        """
        assert self.head is not None, "load_policy refuses models without an output head"
        if self.routers is not None:
            self.routers.begin(routing)
        with self.compute():
            hidden_RLD = self.backbone(
                input_ids=inputs.input_ids_RL,
                attention_mask=inputs.attention_mask,
                position_ids=inputs.position_ids_RL,
                blocks=inputs.blocks,
                use_cache=False,
            ).last_hidden_state
            stats: TokenStats = self.head(
                hidden_RLD.flatten(0, 1)[inputs.predict_N],
                inputs.targets_N,
                temperature=temperature / self.logit_scale,
                entropy=entropy,
                statistics=statistics,
                chunk_tokens=chunk_tokens,
            )
        if routing is None or self.routers is None:
            return stats
        where = None if routing.everywhere else inputs.predict_N
        return stats._replace(routing=self.routers.read(where))


def packing_is_exact(policy: Policy) -> bool:
    """Whether packed rows give this model's numbers, by its configuration and by trial.

    Layers that look at the row rather than at the mask (sliding windows, state-space layers,
    convolutions) would let packed completions see each other.
    """
    config = policy.causal_lm.config
    layer_types = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in layer_types):
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    if getattr(config, "_attn_implementation", "sdpa") not in ("sdpa", "eager", "flex_attention"):
        return False
    prompts, completions = [[1, 2, 3], [1, 2, 3], [2, 1]], [[2, 3, 1], [1, 1], [3, 2, 2, 1]]
    vocabulary = config.get_text_config().vocab_size
    prompts = [[token % vocabulary for token in prompt] for prompt in prompts]
    completions = [[token % vocabulary for token in completion] for completion in completions]
    padded, packed = (
        lay_out(prompts, completions, (0, 1, 2)) for lay_out in (padded_inputs, packed_inputs)
    )
    with torch.no_grad(), evaluating(policy):
        expected = policy(padded.to(policy.device)).logprobs_N
        try:
            found = policy(packed.to(policy.device)).logprobs_N
        except MODEL_ERRORS:  # a model that takes no block mask
            return False
    tolerance = 0.05 if policy.precision == "bfloat16" else 1e-3
    return bool((expected - found).abs().max() < tolerance)


def transformer_of(causal_lm: Any) -> Any:  # noqa: ANN401
    """A causal LM without its output head."""
    # Some name the part of another class, which they have not.
    return getattr(causal_lm, causal_lm.base_model_prefix, None) or causal_lm.model


def names_taken(module: nn.Module) -> set[str]:
    """Inputs that a model's forward takes, of those that not all take."""
    parameters = inspect.signature(module.forward).parameters
    names = set(parameters)
    if "kwargs" in names:  # handed on to layers, unlike ``deprecated_arguments``
        names |= {"position_ids", "logits_to_keep"}
    return names


def first_line(error: BaseException) -> str:
    """The first line of what an error says, for a message of one line."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def in_float32(policy: Policy) -> Iterator[float]:
    """Run trials of a policy without rounding; gives the difference in nats that rounding explains.

    Where its attention has no float32, they are run as the policy computes.
    """
    precision = policy.precision
    attention = getattr(policy.causal_lm.config, "_attn_implementation", None) or "eager"
    if half_only(attention):
        with policy.compute():
            yield 0.5
        return
    policy.precision = "float32"
    try:
        yield 1e-3 if attention in ("eager", "sdpa") else 0.05
    finally:
        policy.precision = precision


def half_only(attention: str) -> bool:
    """Whether an attention implementation of transformers has no float32: FlashAttention's."""
    return "flash" in attention


class evaluating:
    """Switch a module to evaluation mode for a block."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.training = self.module.training
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.training)
