"""Families of models: which class trains a configuration, and what is known to be refused.

A vision-language checkpoint holds a text model. Where transformers has a causal language model of
that text model's kind it is taken out and trained alone; images have no place in prompts here.
"""

from dataclasses import dataclass
from typing import Any

import torch

from rlvr.policy.folders import find_model
from rlvr.policy.model import MODEL_ERRORS, first_line, transformer_of
from rlvr.policy.settings import ModelSettings


@dataclass(frozen=True)
class Family:
    """How a configuration becomes a causal language model.

    Attributes:
        config: Of the causal language model itself.
        loader: transformers' class that reads the checkpoint.
        within: Whether it reads a larger model, of which the text model is a part.
        refusal: Why the model cannot be trained; it goes on after the model's name.
    """

    config: Any
    loader: Any
    within: bool = False
    refusal: str | None = None

    @property
    def note(self) -> str | None:
        """What is to be said of a model that is not taken whole."""
        if not self.within:
            return None
        return f"its text model ({self.config.model_type}) is trained, without images"


def load_config(settings: ModelSettings) -> Any:  # noqa: ANN401
    """The configuration of the weights that ``model.path`` names.

    Raises:
        ValueError: There is none.
    """
    from transformers import AutoConfig

    source = find_model(settings)
    try:
        return AutoConfig.from_pretrained(
            source.path,
            revision=source.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"no causal language model at {settings.path!r} ({first_line(error)}); give "
            "model.path a folder with config.json and safetensors weights, or a Hub id"
        ) from error


def family_of(config: Any) -> Family:  # noqa: ANN401
    """How a configuration becomes a causal language model."""
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    text = config.get_text_config(decoder=True)
    if type(text) is type(config):
        return Family(config, AutoModelForCausalLM, refusal=_known_refusal(config))
    if type(text) not in CAUSAL:
        return Family(
            text,
            None,
            refusal=f"is a larger model around a {text.model_type!r} model, which transformers "
            "cannot take out as a causal language model; give a text model",
        )
    if type(config) in CAUSAL and CAUSAL[type(config)].config_class is type(text):
        return Family(text, AutoModelForCausalLM, refusal=_known_refusal(text))
    for name in ("ImageTextToText", "MultimodalLM", "CausalLM"):
        loader = getattr(transformers, f"AutoModelFor{name}", None)
        if loader is not None and type(config) in loader._model_mapping:
            return Family(text, loader, within=True, refusal=_known_refusal(text))
    return Family(text, None, refusal="is no language model; give a causal language model")


def _known_refusal(config: Any) -> str | None:  # noqa: ANN401
    if getattr(config, "final_logit_softcapping", None) is not None:
        return (
            "transforms its logits after the output head (soft cap), which the chunked statistics "
            "do not; use another model family"
        )
    return None


def text_model(whole: Any, settings: ModelSettings) -> Any:  # noqa: ANN401
    """The text model of a vision-language model, which gives up its weights.

    Raises:
        ValueError: Its parts have other names than the causal language model's.
    """
    from transformers import AutoModelForCausalLM

    config = whole.config.get_text_config(decoder=True)
    config.tie_word_embeddings = whole.config.tie_word_embeddings
    model = AutoModelForCausalLM.from_config(
        config, dtype=whole.dtype, attn_implementation=settings.attention
    )
    try:
        with torch.no_grad():
            decoder, body = whole.get_decoder(), transformer_of(model)
            body.load_state_dict(decoder.state_dict(), strict=True, assign=True)
            head = whole.get_output_embeddings()
            model.get_output_embeddings().load_state_dict(head.state_dict(), assign=True)
    except MODEL_ERRORS as error:
        raise ValueError(
            f"the text model of {settings.path!r} ({whole.config.model_type}) cannot be taken out "
            f"({first_line(error)}); give model.path a text model"
        ) from error
    model.tie_weights()
    model.generation_config = whole.generation_config
    return model.eval()
