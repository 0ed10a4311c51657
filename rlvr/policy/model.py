"""The model as a function: load it, run it, read its tokens' statistics.

``Policy`` is the one module that an engine wraps, trains and shards. Its forward runs the backbone
and reads the completion tokens' statistics off the hidden states; the full logits never exist.
That is exact only for models whose logits are their output head applied to the last hidden state,
so ``load_policy`` compares the two on a probe and refuses models that transform their logits.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from rlvr.policy.batching import ModelInputs, packed_inputs, padded_inputs
from rlvr.policy.embedding import add_rows_in_place
from rlvr.policy.proxy import ProxyRequest
from rlvr.policy.routers import Routers, RoutingRequest
from rlvr.policy.token_stats import TokenHead, TokenStats
from rlvr.policy.tree_attention import Block, piecewise
from rlvr.settings import Settings

Precision = Literal["float32", "bfloat16"]


class LoraSettings(Settings):
    """Low-rank adapters through peft; the base stays frozen and serves as the reference."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the adapters' product is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input while training."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers to adapt."""


class ModelSettings(Settings):
    """Which causal language model to train, and how it is held."""

    path: str
    """Local folder or Hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    tokenizer: str | None = None
    """Folder or Hub id of the tokenizer; null takes the model's."""
    precision: Precision = "float32"
    """Compute precision. Weights, gradients and optimizer state stay float32 either way:
    an update of 1e-6 vanishes in the rounding of bfloat16 weights."""
    attention: str = "sdpa"
    """transformers' attention implementation (sdpa, eager, flash_attention_2, ...)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the transformer for the update with torch.compile; the first steps then take longer.
    Generation is left as it is."""
    liger: bool = False
    """Use liger-kernel's fused norms, rotary embedding and MLP on a GPU (package liger-kernel)."""
    lora: LoraSettings | None = None
    """Train adapters instead of all weights."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for repositories you have read."""


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
        routers: Reads and replays the choices of a mixture of experts; None until
            :meth:`watch_routers`.
    """

    gathered: Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]

    def __init__(self, model: nn.Module, precision: Precision = "float32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        head = self.causal_lm.get_output_embeddings()
        self.head = None if head is None else TokenHead(head)
        self.gathered = nullcontext
        self.routers: Routers | None = None
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
        return torch.bfloat16 if self.precision == "bfloat16" else held

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model was configured for, in tokens."""
        return getattr(self.causal_lm.config, "max_position_embeddings", None)

    def compute(self) -> AbstractContextManager[Any]:
        """Autocast to the compute precision, or nothing in float32."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
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
        if self._compiled:
            return self._compiled[0](**inputs)
        with piecewise(self._transformer, blocks, inputs.get("attention_mask")):
            return self._transformer(**inputs)

    @property
    def _transformer(self) -> nn.Module:
        causal_lm = self.causal_lm
        module: nn.Module = getattr(causal_lm, causal_lm.base_model_prefix)
        return module

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
        proxy: ProxyRequest | None = None,
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
                temperature=temperature,
                entropy=entropy,
                proxy=proxy,
                chunk_tokens=chunk_tokens,
            )
        if routing is None or self.routers is None:
            return stats
        where = None if routing.everywhere else inputs.predict_N
        return stats._replace(routing=self.routers.read(where))


def load_policy(
    settings: ModelSettings, *, saved: Path | None = None, device: torch.device | None = None
) -> Policy:
    """Load a causal LM in float32, add adapters if asked, and check that its head is plain.

    Args:
        settings: Which model.
        saved: A folder that :func:`save_policy` wrote, to take the weights from instead.
        device: Where to put it; None takes the first GPU or the CPU.

    Raises:
        ValueError: No such model, no causal LM, or logits that are not head(hidden state).
    """
    full_weights = saved is not None and settings.lora is None
    model = load_causal_lm(
        settings.model_copy(update={"path": str(saved / "model"), "revision": None})
        if saved is not None and full_weights
        else settings
    )
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.lora is not None:
        model = (
            add_adapters(model, settings.lora)
            if saved is None
            else _saved_adapters(model, saved / "adapter")
        )
        _check_head_is_not_adapted(model)
    policy = Policy(model, settings.precision).to(device or default_device())
    _check_plain_head(policy, settings.path)
    if settings.liger:
        _use_liger(policy)
    if settings.compile:
        policy.compile_backbone()
    return policy


def _use_liger(policy: Policy) -> None:
    """Replace norms, rotary embedding and MLP by fused kernels; the head's loss stays ours.

    Raises:
        ValueError: No GPU, no package, or a family that it does not know.
    """
    if policy.device.type != "cuda":
        raise ValueError("model.liger needs a GPU; set it to false")
    if find_spec("liger_kernel") is None:
        raise ValueError("model.liger needs liger-kernel; run: pip install liger-kernel")
    from liger_kernel.transformers import (  # type: ignore[import-not-found]
        _apply_liger_kernel_to_instance,
    )
    from liger_kernel.transformers.monkey_patch import (  # type: ignore[import-not-found]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    family = policy.causal_lm.config.model_type
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"liger-kernel has no kernels for {family!r}; set model.liger to false")
    _apply_liger_kernel_to_instance(
        model=policy.causal_lm, fused_linear_cross_entropy=False, cross_entropy=False
    )


def save_policy(policy: Policy, folder: Path) -> None:
    """Write ``folder/model`` (all weights, float32) or ``folder/adapter``, as safetensors."""
    policy_writer(policy)(folder)


def policy_writer(
    policy: Policy, *, keep: bool = True, copy: bool = False
) -> Callable[[Path], None]:
    """What :func:`save_policy` does, in two halves: weights are gathered now, and written later.

    Args:
        policy: Its sharded parameters are gathered one after the other, on every process.
        keep: Hold on to them; only the process that is to write needs to.
        copy: Hold copies, which training does not change.
    """
    name = "adapter" if policy.has_adapters else "model"
    state = _gathered_state(policy, keep=keep, copy=copy)

    def write(folder: Path) -> None:
        policy.model.save_pretrained(folder / name, state_dict=state)  # type: ignore[operator]

    return write


def _gathered_state(policy: Policy, *, keep: bool, copy: bool) -> dict[str, torch.Tensor]:
    """The state dictionary with whole tensors; of a policy with adapters theirs alone."""
    state: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}  # tied tensors stay one, and are gathered once everywhere
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        if policy.has_adapters and "lora_" not in name:
            continue
        if id(tensor) not in seen:
            sharded = hasattr(tensor, "ds_id")
            with policy.gathered([tensor] if isinstance(tensor, nn.Parameter) else []):
                held = tensor.detach() if keep else tensor
                seen[id(tensor)] = held.to("cpu", copy=True) if keep and (copy or sharded) else held
        if keep:
            state[name] = seen[id(tensor)]
    return state


def export_policy(policy: Policy, folder: Path) -> None:
    """Write a Hugging Face model folder; adapters are merged, which ends their training."""
    model: Any = policy.model
    if policy.has_adapters:
        model = policy.model = model.merge_and_unload()
    model.save_pretrained(folder)


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(settings: ModelSettings) -> Any:  # noqa: ANN401
    """The tokenizer of the model, or the one named beside it.

    Raises:
        ValueError: It cannot be loaded, or it names no end token.
    """
    from transformers import AutoTokenizer

    source = settings.tokenizer or settings.path
    source = check_local(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=settings.revision if settings.tokenizer is None else None,
            trust_remote_code=settings.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer at {source!r} ({_first_line(error)}); give model.tokenizer a folder or "
            "Hub id that holds one"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {source!r} names no end token (eos_token), so no completion could "
            "ever stop; set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def stop_token_ids(policy: Policy, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Every id that ends a completion: the tokenizer's end token and the generation config's."""
    return end_token_ids(getattr(policy.causal_lm, "generation_config", None), tokenizer)


def end_token_ids(generation: Any, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Every id that ends a text: the tokenizer's end token, and those of a generation config."""
    ids = getattr(generation, "eos_token_id", None)
    listed = ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids]
    return tuple(sorted({int(tokenizer.eos_token_id), *(int(item) for item in listed)}))


def add_adapters(model: nn.Module, settings: LoraSettings) -> nn.Module:
    """Wrap ``model`` with freshly initialised LoRA adapters; its own weights are frozen."""
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    return get_peft_model(model, config)


def _saved_adapters(model: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder, is_trainable=True)


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
    if getattr(config, "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
        return False
    prompts, completions = [[1, 2, 3], [1, 2, 3], [2, 1]], [[2, 3, 1], [1, 1], [3, 2, 2, 1]]
    vocabulary = config.get_text_config().vocab_size
    prompts = [[token % vocabulary for token in prompt] for prompt in prompts]
    completions = [[token % vocabulary for token in completion] for completion in completions]
    with torch.no_grad(), evaluating(policy):
        stats = [
            policy(inputs.to(policy.device)).logprobs_N
            for inputs in (
                padded_inputs(prompts, completions, (0, 1, 2)),
                packed_inputs(prompts, completions, (0, 1, 2)),
            )
        ]
    tolerance = 0.05 if policy.precision == "bfloat16" else 1e-3
    return bool((stats[0] - stats[1]).abs().max() < tolerance)


def load_causal_lm(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> Any:  # noqa: ANN401
    """A bare causal LM of transformers, on the CPU.

    Raises:
        ValueError: There is none.
    """
    from transformers import AutoModelForCausalLM

    source = check_local(settings.path)
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            revision=settings.revision,
            dtype=dtype,
            attn_implementation=settings.attention,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"no causal language model at {settings.path!r} ({_first_line(error)}); give "
            "model.path a folder with config.json and safetensors weights, or a Hub id"
        ) from error


def check_local(path: str) -> str:
    """The path with ``~`` written out; one that looks local and is not there is a typo, no Hub id.

    Raises:
        ValueError: It is a file, or looks local and is not there.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        raise ValueError(f"model path {path!r} is a file; give a folder or a Hub id")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ValueError(f"model folder {path!r} does not exist; give a folder or a Hub id")
    return str(folder) if path.startswith("~") else path


def _check_plain_head(policy: Policy, path: str) -> None:
    ids = torch.arange(1, 5, device=policy.device)[None] % policy.causal_lm.config.vocab_size
    head = policy.causal_lm.get_output_embeddings()
    if head is None:
        raise ValueError(f"model {path!r} has no output head; give a causal language model")
    with torch.no_grad(), evaluating(policy):
        logits = policy.causal_lm(input_ids=ids).logits
        plain = head(policy.backbone(input_ids=ids).last_hidden_state)
    if not torch.allclose(logits, plain, rtol=1e-3, atol=1e-3):
        family = policy.causal_lm.config.model_type
        raise ValueError(
            f"model {path!r} ({family}) transforms its logits after the output head (soft cap or "
            "scale), which the chunked statistics do not; use another model family"
        )


def _check_head_is_not_adapted(model: Any) -> None:  # noqa: ANN401
    """The chunked statistics read the head's own weight, which an adapter leaves as it is."""
    if hasattr(model.get_base_model().get_output_embeddings(), "lora_A"):
        raise ValueError(
            "model.lora.target_modules names the output head, whose adapter would not be trained; "
            "leave it out"
        )


class evaluating:
    """Switch a module to evaluation mode for a block."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.training = self.module.training
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        self.module.train(self.training)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
