"""Match two vocabularies: which teacher tokens the student has, and how the teacher reads tokens
that only the student has.

``same``    the same tokens with the same ids.
``shared``  ids agree except for special tokens: the teacher proposes only common tokens, and reads
            a student's special token as ordinary text, in as many tokens as it takes.
``common``  tokens are matched by spelling, whatever their ids; the rest is as in ``shared``. This
            works for any two vocabularies with enough tokens in common, but the teacher may see
            text split into unusual tokens.
``text``    no tokens are matched: text is exchanged in pieces (:mod:`rlvr.distill.pieces`).

A token's spelling is its string in the tokenizer's vocabulary, so that two ids that look alike when
decoded are not confused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from rlvr.distill.token_bytes import Speller, token_bytes
from rlvr.lazy import torch
from rlvr.settings import Settings

Matching = Literal["same", "shared", "common", "text"]


class VocabularySettings(Settings):
    """How tokens of the two models are matched."""

    matching: Literal["auto", "common", "text"] = "auto"
    """"auto": the same vocabulary, or one that differs only in special tokens; others are refused.
    "common": the teacher proposes only tokens that both spell alike. "text": vocabularies may
    differ; pieces of text are exchanged."""
    map: dict[str, str] = Field(default_factory=dict)
    """Tokens with different spellings that are treated as equal, the student's first:
    {"<|im_end|>": "<|eot_id|>"}."""
    piece: Literal["word", "character"] = "word"
    """For matching "text": a piece ends before white space ("word") or after any complete character
    ("character")."""
    piece_tokens: int = Field(16, ge=1)
    """For matching "text": maximum number of tokens in a piece; a longer word is split where a
    character ends."""


@dataclass(frozen=True)
class Vocabulary:
    """How the tokens of the two models correspond.

    ``student_ids`` [teacher's V] and ``teacher_ids`` [student's V] are -1 for a token that the
    other model lacks; None is the identity. ``spellings`` says how the teacher reads a token that
    only the student has.
    """

    matching: Matching
    student_ids: torch.Tensor | None
    teacher_ids: torch.Tensor | None
    spellings: dict[int, tuple[int, ...]]

    def spelled(self, token: int) -> tuple[int, ...]:
        """A student token in teacher tokens."""
        if self.teacher_ids is None:
            return (token,)
        found = int(self.teacher_ids[token])
        return (found,) if found >= 0 else self.spellings[token]

    def spelled_all(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """A sequence of student tokens in teacher tokens."""
        return tuple(part for token in tokens for part in self.spelled(token))


def match_vocabularies(
    teacher: Any,  # noqa: ANN401
    student: Any,  # noqa: ANN401
    settings: VocabularySettings,
    stop_ids: tuple[int, ...],
    sizes: tuple[int, int],
) -> Vocabulary:
    """Match the tokens of two tokenizers.

    Args:
        teacher: The teacher's tokenizer.
        student: The student's tokenizer.
        settings: How to match.
        stop_ids: Token ids of the student that end a trace.
        sizes: Number of rows of the teacher's and the student's output head, which may be padded.

    Raises:
        ValueError: The vocabularies differ and ``matching`` is "auto"; they have nothing in common;
            the teacher cannot produce an end token of the student.
    """
    theirs, own = teacher.get_vocab(), student.get_vocab()
    if settings.matching == "text":
        return Vocabulary("text", None, None, {})
    pairs = _pairs(theirs, own, settings.map)
    matching = _matching(theirs, own, pairs, teacher, student, settings)
    _check_ends(pairs, own, stop_ids, settings)
    if matching == "same" and sizes[0] == sizes[1]:
        return Vocabulary("same", None, None, {})
    student_ids = torch.full((sizes[0],), -1)
    teacher_ids = torch.full((sizes[1],), -1)
    for ours, other in pairs.items():
        student_ids[other], teacher_ids[ours] = ours, other
    return Vocabulary(
        matching, student_ids, teacher_ids, _spellings(teacher, student, pairs, sizes[1])
    )


def _pairs(theirs: dict[str, int], own: dict[str, int], mapped: dict[str, str]) -> dict[int, int]:
    """Map the student's id to the teacher's id for every token that both have."""
    for ours, other in mapped.items():
        for token, vocabulary, whose in ((ours, own, "student"), (other, theirs, "teacher")):
            if token not in vocabulary:
                raise ValueError(
                    f"vocabulary.map names {token!r}, which is not a token of the {whose}; write "
                    "tokens as the vocabulary spells them, the student's first"
                )
    pairs = {index: theirs[token] for token, index in own.items() if token in theirs}
    taken = {theirs[other] for other in mapped.values()}
    pairs = {ours: other for ours, other in pairs.items() if other not in taken}
    return pairs | {own[ours]: theirs[other] for ours, other in mapped.items()}


def _matching(
    theirs: dict[str, int],
    own: dict[str, int],
    pairs: dict[int, int],
    teacher: Any,  # noqa: ANN401
    student: Any,  # noqa: ANN401
    settings: VocabularySettings,
) -> Matching:
    if theirs == own and not settings.map:
        return "same"
    ordinary = [token for token in pairs if token not in _special_ids(student)]
    if not ordinary:
        raise ValueError(
            f"the vocabularies of the teacher ({len(theirs)} tokens) and the student ({len(own)}) "
            "have nothing in common; set vocabulary.matching=text to exchange pieces of text, or "
            "choose models of one family"
        )
    if settings.matching == "common":
        return "common"
    special_teacher, special_student = _special_ids(teacher), _special_ids(student)
    unshared = [
        token
        for token, index in own.items()
        if index not in special_student and theirs.get(token) != index
    ] + [
        token
        for token, index in theirs.items()
        if index not in special_teacher and own.get(token) != index
    ]
    if unshared:
        raise ValueError(
            f"the vocabularies differ in {len(unshared)} ordinary tokens, such as {unshared[0]!r} "
            f"({len(ordinary)} of the student's {len(own)} are common); set "
            "vocabulary.matching=common to propose only common tokens, or text to exchange pieces "
            "of text"
        )
    return "shared"


def _check_ends(
    pairs: dict[int, int],
    own: dict[str, int],
    stop_ids: tuple[int, ...],
    settings: VocabularySettings,
) -> None:
    if any(token in pairs for token in stop_ids):
        return
    names = {index: token for token, index in own.items()}
    shown = ", ".join(repr(names.get(token, token)) for token in stop_ids)
    raise ValueError(
        f"the student ends with {shown}, which the teacher cannot produce; name the teacher's end "
        'token in vocabulary.map, as {"STUDENT\'S": "TEACHER\'S"}, or choose '
        "vocabulary.matching=text"
    )


def _spellings(
    teacher: Any,  # noqa: ANN401
    student: Any,  # noqa: ANN401
    pairs: dict[int, int],
    size: int,
) -> dict[int, tuple[int, ...]]:
    """How the teacher reads tokens that only the student has; rows of padding are read as
    nothing."""
    lacking = [token for token in range(size) if token not in pairs]
    if all(token >= len(student) for token in lacking):
        return dict.fromkeys(lacking, ())
    speller, bytes_of = Speller(teacher), token_bytes(student)
    found = {}
    for token in lacking:
        data = bytes_of[token] if token < len(bytes_of) else b""
        if data is None:  # a special token has text instead of bytes
            data = student.convert_ids_to_tokens(token).encode()
        spelled = speller.spell(data)
        if spelled is None:
            raise ValueError(
                f"the student's token {student.convert_ids_to_tokens(token)!r} cannot be written "
                "in the teacher's tokens; map it to one of them in vocabulary.map"
            )
        found[token] = spelled
    return found


def _special_ids(tokenizer: Any) -> set[int]:  # noqa: ANN401
    """Ids of added tokens: special tokens and others outside the trained vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
