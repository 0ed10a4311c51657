"""Tokenizers of related and unrelated vocabularies, built here."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "the sum of two numbers is the number of things in both",
    "wait, let me think about the thing again: añade ocho, naïve façade",
    "日本語の数 日本 数える 日本語, 🙂🙂 and 🙃",
]


def byte_level(size, specials=("<eos>",), corpus=TEXT):
    """A byte-level BPE of ``size`` ordinary tokens, its special tokens behind them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"eos_token": specials[0]})
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials[1:])})
    return tokenizer


def letters(tokens, merges=()):
    """A vocabulary of plain strings, cut by the merges given; the end token comes first."""
    vocabulary = {token: index for index, token in enumerate(["<eos>", *tokens])}
    backend = Tokenizer(models.BPE(vocabulary, list(merges), fuse_unk=False))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False
    )
