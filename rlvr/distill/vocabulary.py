"""Two vocabularies side by side: which of the teacher's tokens the student has, and how the teacher
reads those that only the student has.

``same``    the same tokens under the same ids.
``shared``  ids agree but for special tokens: the teacher proposes common tokens only, and reads a
            student's special token as ordinary text, in as many tokens as that takes.
``common``  tokens are matched by their spelling, whatever their ids; everything else is as above.
            Any two vocabularies with enough words in common will do, at the price that the teacher
            may meet text cut into unusual tokens.
``text``    nothing is matched: text is exchanged in pieces (:mod:`rlvr.distill.pieces`).

A token's spelling is the string that the tokenizer's vocabulary lists, so that two ids are never
confused for one because they look alike when decoded.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from rlvr.distill.token_bytes import Speller, token_bytes
from rlvr.settings import Settings

Matching = Literal["same", "shared", "common", "text"]


class VocabularySettings(Settings):
    """How tokens of the two models are matched."""

    matching: Literal["auto", "common", "text"] = "auto"
    """"auto": the same vocabulary, or one that agrees but for special tokens, and anything else is
    refused; "common": the teacher proposes tokens of the same spelling only; "text": vocabularies
    may differ, pieces of text are exchanged."""
    map: dict[str, str] = Field(default_factory=dict)
    """Tokens that stand for each other although they are spelled differently, the student's first:
    {"<|im_end|>": "<|eot_id|>"}."""
    piece: Literal["word", "character"] = "word"
    """matching "text": a piece ends before white space ("word"), or wherever a character is
    complete ("character")."""
    piece_tokens: int = Field(16, ge=1)
    """matching "text": most tokens of a piece; a longer word is parted where a character ends."""


@dataclass(frozen=True)
class Vocabulary:
    """How tokens of the two models belong together.

    ``student_ids`` [teacher's V] and ``teacher_ids`` [student's V] hold -1 where the other has no
    such token; None is the identity. ``spellings`` is how the teacher reads a token that only the
    student has.
    """

    matching: Matching
    student_ids: torch.Tensor | None
    teacher_ids: torch.Tensor | None
    spellings: dict[int, tuple[int, ...]]

    def spelled(self, token: int) -> tuple[int, ...]:
        """A student's token in the teacher's."""
        if self.teacher_ids is None:
            return (token,)
        found = int(self.teacher_ids[token])
        return (found,) if found >= 0 else self.spellings[token]

    def spelled_all(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """A sequence of the student's tokens in the teacher's."""
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
        settings: How.
        stop_ids: The student's tokens that end a trace.
        sizes: Rows of the teacher's and of the student's output head, which may be padded.

    Raises:
        ValueError: The vocabularies do not match and no way of matching was chosen; they have
            nothing in common; the student's end token is none that the teacher can produce.
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
    """Student's id -> teacher's id of every token that both have."""
    for ours, other in mapped.items():
        for token, vocabulary, whose in ((ours, own, "student"), (other, theirs, "teacher")):
            if token not in vocabulary:
                raise ValueError(
                    f"vocabulary.map names {token!r}, which is no token of the {whose}; write "
                    "tokens as the vocabulary lists them, the student's first"
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
            f"({len(ordinary)} of the student's {len(own)} are common); choose "
            "vocabulary.matching=common to propose common tokens only, or text to exchange pieces "
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
    """How the teacher reads what only the student has; rows of padding read as nothing."""
    lacking = [token for token in range(size) if token not in pairs]
    if all(token >= len(student) for token in lacking):
        return dict.fromkeys(lacking, ())
    speller, bytes_of = Speller(teacher), token_bytes(student)
    found = {}
    for token in lacking:
        data = bytes_of[token] if token < len(bytes_of) else b""
        if data is None:  # a special token, which has no bytes but a text
            data = student.convert_ids_to_tokens(token).encode()
        spelled = speller.spell(data)
        if spelled is None:
            raise ValueError(
                f"the student's token {student.convert_ids_to_tokens(token)!r} cannot be written "
                "in the teacher's; map it to one of the teacher's in vocabulary.map"
            )
        found[token] = spelled
    return found


def _special_ids(tokenizer: Any) -> set[int]:  # noqa: ANN401
    """Ids of added tokens: special ones, and others that stand outside the trained vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
