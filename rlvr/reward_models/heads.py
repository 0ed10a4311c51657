"""Scalar heads: from a causal language model's hidden states to the reward of a whole completion.

    last_token      r = w . h(last token)

    layer_queries   q_i = MHA_i(Q = q_{i-1}, K = V = H_{l_i})    layers l_1 < ... < l_n, q_0 learned
                    o   = MHA_res(Q = q_res, K = V = H_last)     q_res learned
                    r   = w . dropout(SiLU(W (q_n + o) + c))

The second is the hierarchical query head of SoliReward (arXiv:2512.22170): each chosen
layer is asked in turn, over all tokens of prompt and completion, with its own attention. H_l is the
residual stream after layer l (after the final norm for the last), in the width of the model. Four
or five layers were best there.

A head has a bias only where the loss fixes the level of rewards (``RewardLoss.absolute``).
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from rlvr.policy.batching import ModelInputs
from rlvr.policy.finite import check_file
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.value_head import module_writer
from rlvr.reward_models.head_settings import HeadSettings, LastToken
from rlvr.settings import Settings, load_settings

WEIGHTS, CONFIG = "reward_head.safetensors", "reward_head.json"


class LastTokenHead(nn.Module):
    """See the module docstring."""

    all_layers = False

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.out = nn.Linear(width, 1, bias=bias)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_RLD: tuple[torch.Tensor, ...], inputs: ModelInputs) -> torch.Tensor:
        """Rewards [B] from the final hidden states (the last of the tuple)."""
        last_BD = hidden_RLD[-1].flatten(0, 1)[inputs.last_B]
        rewards_B: torch.Tensor = self.out(last_BD.to(self.out.weight.dtype))[:, 0]
        return rewards_B


class LayerQueryHead(nn.Module):
    """See the module docstring."""

    all_layers = True

    def __init__(
        self, width: int, layers: tuple[int, ...], heads: int, dropout: float, *, bias: bool
    ) -> None:
        super().__init__()
        self.layers = layers
        self.query_D = nn.Parameter(torch.randn(width) * width**-0.5)
        self.residual_query_D = nn.Parameter(torch.randn(width) * width**-0.5)
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(width, heads, batch_first=True) for _ in layers
        )
        self.residual_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 1, bias=bias)
        # The first rewards are 0, the losses' own starting point.
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_RLD: tuple[torch.Tensor, ...], inputs: ModelInputs) -> torch.Tensor:
        """Rewards [B]; ``hidden_RLD`` are the embeddings' and every layer's hidden states."""
        seen_BL = inputs.seen_BL
        query_B1D = self.query_D.expand(len(seen_BL), 1, -1)
        for layer, attention in zip(self.layers, self.attentions, strict=True):
            query_B1D = self._ask(attention, query_B1D, hidden_RLD[layer], seen_BL)
        residual_B1D = self.residual_query_D.expand(len(seen_BL), 1, -1)
        residual_B1D = self._ask(self.residual_attention, residual_B1D, hidden_RLD[-1], seen_BL)
        inner_BD = self.dropout(nn.functional.silu(self.inner(query_B1D + residual_B1D)))[:, 0]
        rewards_B: torch.Tensor = self.out(inner_BD)[:, 0]
        return rewards_B

    def _ask(
        self,
        attention: nn.Module,
        query_B1D: torch.Tensor,
        hidden_RLD: torch.Tensor,
        seen_BL: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of one query a completion to the positions of its own row that it may see."""
        keys_BLD = hidden_RLD.to(self.out.weight.dtype).expand(len(seen_BL), -1, -1)
        answer_B1D: torch.Tensor = attention(
            query_B1D, keys_BLD, keys_BLD, key_padding_mask=~seen_BL, need_weights=False
        )[0]
        return answer_B1D


def build_head(
    settings: HeadSettings, width: int, layers: int, *, bias: bool
) -> LastTokenHead | LayerQueryHead:
    """A fresh head, whose rewards are all 0.

    Args:
        settings: Which head.
        width: The model's hidden size.
        layers: How many layers it has.
        bias: Whether the head has one.

    Raises:
        ValueError: Layers that are not there, or a width that the heads do not divide.
    """
    if isinstance(settings, LastToken):
        return LastTokenHead(width, bias=bias)
    chosen = settings.layers_of(width, layers)
    return LayerQueryHead(width, chosen, settings.heads, settings.dropout, bias=bias)


class OutcomeRewardModel(nn.Module):
    """A causal LM's transformer read by a scalar head.

    Args:
        policy: Gives the transformer. It is no submodule: an engine holds it beside this module, so
            that its parameters are known once, and by the names that a policy's have.
        settings: Which head.
        bias: Whether the head has one.

    Raises:
        ValueError: The head does not go with the model.
    """

    def __init__(self, policy: Policy, settings: HeadSettings, *, bias: bool) -> None:
        super().__init__()
        self.settings, self.bias = settings, bias
        self._policy = (policy,)
        config = policy.causal_lm.config.get_text_config()
        self.head = build_head(settings, config.hidden_size, config.num_hidden_layers, bias=bias)
        # On the transformer's device and in its dtype, or float32 where that is less.
        weight = next(policy.model.parameters())
        self.head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))

    @property
    def policy(self) -> Policy:
        """The language model."""
        return self._policy[0]

    def forward(self, inputs: ModelInputs) -> torch.Tensor:
        """Rewards [B], in at least float32, of the micro-batch's completions."""
        with self.policy.compute():
            output = self.policy.backbone(
                input_ids=inputs.input_ids_RL,
                attention_mask=inputs.attention_mask,
                position_ids=inputs.position_ids_RL,
                blocks=inputs.blocks,
                use_cache=False,
                output_hidden_states=self.head.all_layers,
            )
        hidden_RLD = output.hidden_states if self.head.all_layers else (output.last_hidden_state,)
        # The head outside autocast: rewards differ by less than bfloat16 resolves.
        rewards_B: torch.Tensor = self.head(hidden_RLD, inputs)
        return rewards_B


def head_writer(
    model: OutcomeRewardModel, *, keep: bool = True, copy: bool = False
) -> Callable[[Path], None]:
    """What writes the head beside a model's weights; sharded parameters are gathered now.

    Args:
        model: The head's.
        keep: Hold on to the weights; only the process that is to write needs to.
        copy: Hold copies, which training does not change.
    """
    write_weights = module_writer(model.head, model.policy, WEIGHTS, keep=keep, copy=copy)
    config = {"head": model.settings.model_dump(mode="json"), "bias": model.bias}

    def write(folder: Path) -> None:
        write_weights(folder)
        (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")

    return write


class _Saved(Settings):
    head: HeadSettings
    bias: bool


def has_head(folder: str | Path) -> bool:
    """Whether a model folder is one of an explicit reward model."""
    return (Path(folder).expanduser() / CONFIG).is_file()


def load_head(policy: Policy, folder: Path, *, bias: bool = False) -> OutcomeRewardModel:
    """The reward model of a language model and a head that :func:`head_writer` wrote.

    Args:
        policy: The language model.
        folder: Where the head is.
        bias: Give it a bias of 0 if it has none.

    Raises:
        ValueError: There is no head, or it is another model's.
    """
    if not has_head(folder):
        raise ValueError(
            f"{str(folder)!r} holds no reward model's head ({CONFIG}); give the model folder of a "
            "run with task: reward_model"
        )
    saved = load_settings(_Saved, json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    model = OutcomeRewardModel(policy, saved.head, bias=saved.bias or bias)
    weights = load_file(folder / WEIGHTS)
    check_file(weights, folder / WEIGHTS)
    if model.bias and not saved.bias:
        weights["out.bias"] = torch.zeros_like(model.head.out.bias)
    try:
        model.head.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the head in {str(folder)!r} is for a model of another shape; give it the model that "
            "it was trained with"
        ) from error
    return model


def load_reward_model(
    settings: ModelSettings, *, device: torch.device | None = None
) -> OutcomeRewardModel:
    """A trained reward model, language model and head, from one folder, frozen.

    Raises:
        ValueError: No such model, or no head beside it.
    """
    folder = Path(settings.path).expanduser()
    policy = load_policy(settings, device=device)
    return load_head(policy, folder).requires_grad_(False).eval()
