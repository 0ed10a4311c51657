"""Real tokenizers, built here: with and without a begin token, an end token, a chat template."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BEGIN = "{{ bos_token }}" + CHATML
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BEGIN, END = 0, 1


def build(chat_template=None, post=None, bos="<s>", **settings):
    """A byte-level tokenizer; ``post`` is what its post-processor makes of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if post:
        backend.post_processor = processors.TemplateProcessing(
            single=post, special_tokens=[("<s>", BEGIN), ("</s>", END)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="</s>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=chat_template,
        **settings,
    )
