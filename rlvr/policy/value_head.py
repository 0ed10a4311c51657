"""The critic: a transformer of its own with a linear head that reads a value off every position.

V(s_t) = w · h(s_t) + b, h(s_t) being the final hidden state at the position that predicts token t,
so the value is that of the state before the token is drawn. The head starts at zero: the first
values are 0 and the first advantages the returns, instead of noise. The transformer starts as the
policy's and shares no weights with it.

Schulman et al., arXiv:1707.06347; one model each for policy and value as in Ouyang et al.,
arXiv:2203.02155, section 3.5.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlvr.policy.batching import ModelInputs
from rlvr.policy.finite import check_file, check_writable, first_bad
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy, transformer_of
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tree_attention import piecewise

CRITIC = "critic.safetensors"
"""A critic's weights in a checkpoint."""


class Critic(nn.Module):
    """Values of the states before the completion tokens of a micro-batch.

    Args:
        policy: Gives the transformer (and keeps it: hand over a policy of its own).
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        causal_lm = policy.causal_lm
        self.backbone: Any = transformer_of(causal_lm)
        self.precision = policy.precision
        self.unused = policy.unused
        width = causal_lm.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # On the backbone's device and in its dtype, or float32 where that is less.
        weight = next(self.backbone.parameters())
        self.head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))

    def forward(self, inputs: ModelInputs) -> torch.Tensor:
        """Values [N], in at least float32, of the states that ``inputs.targets_N`` follow."""
        device = self.head.weight.device.type
        mixed = torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")
        with mixed, piecewise(self.backbone, inputs.blocks, inputs.attention_mask) as mask:
            positions = {"position_ids": inputs.position_ids_RL}
            hidden_RLD = self.backbone(
                input_ids=inputs.input_ids_RL,
                attention_mask=mask,
                use_cache=False,
                **{name: value for name, value in positions.items() if name not in self.unused},
            ).last_hidden_state
        hidden_ND = hidden_RLD.flatten(0, 1)[inputs.predict_N]
        # The head outside autocast: values differ by less than bfloat16 resolves.
        values_N: torch.Tensor = self.head(hidden_ND.to(self.head.weight.dtype))[:, 0]
        return values_N


def load_critic(
    settings: ModelSettings, *, saved: Path | None = None, device: torch.device | None = None
) -> Critic:
    """A fresh critic that starts as the policy's model, or one that :func:`critic_writer` wrote.

    Raises:
        ValueError: No such model.
    """
    whole = settings.model_copy(update={"lora": None})
    critic = Critic(load_policy(whole, device=device))
    if saved is not None:
        file = saved / CRITIC
        weights = load_file(file)
        check_file(weights, file)
        critic.load_state_dict(weights)
    return critic


def critic_writer(
    critic: nn.Module, policy: Policy, *, keep: bool = True, copy: bool = False
) -> Callable[[Path], None]:
    """:func:`module_writer` to the file that :func:`load_critic` reads."""
    return module_writer(critic, policy, CRITIC, keep=keep, copy=copy)


def module_writer(
    module: nn.Module, policy: Policy, name: str, *, keep: bool = True, copy: bool = False
) -> Callable[[Path], None]:
    """What writes a module's weights to ``folder/name``; they are gathered now.

    Args:
        module: Trained with the policy.
        policy: Says how sharded parameters are gathered.
        name: Of the safetensors file.
        keep: Hold on to them; only the process that is to write needs to.
        copy: Hold copies, which training does not change.
    """
    state: dict[str, torch.Tensor] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        with policy.gathered([tensor] if isinstance(tensor, nn.Parameter) else []):
            if keep:
                must_copy = copy or hasattr(tensor, "ds_id")
                state[key] = tensor.detach().to("cpu", copy=must_copy).contiguous()

    def write(folder: Path) -> None:
        if state:
            check_writable(first_bad(state.items()), folder)
            save_file(state, folder / name)

    return write
