r"""Instructions whose following can be checked: the 25 kinds of IFEval (arXiv 2311.07911).

The reference is what a row of the benchmark has:
``{"instruction_id_list": ["punctuation:no_comma", ...], "kwargs": [{}, ...]}``, with
``"loose": true`` for its loose accuracy. The score is the share of instructions that are followed,
and a response is right if all are. Loose counts an instruction as followed if it is after the first
line, the last line or both are left out, or asterisks are.

The rules are the paper's; three differ where its code depends on downloads or on chance: sentences
are counted by their stops, words in capitals are runs of letters, and a text whose language cannot
be told is in no language.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from reward.domains.base import Domain, Judgement, as_object, read_json
from reward.verdict import GradingPolicy

Check = Callable[..., bool]

INSTRUCTIONS: dict[str, tuple[Check, tuple[str, ...]]] = {}
"""Each instruction's check, which takes the response, and the names of its arguments."""


def instruction(name: str, *arguments: str) -> Callable[[Check], Check]:
    """Register the check of an instruction with the arguments that the benchmark gives it."""

    def register(check: Check) -> Check:
        INSTRUCTIONS[name] = (check, arguments)
        return check

    return register


@dataclass(frozen=True)
class Instructions:
    """A reference."""

    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]] = field(default_factory=list)
    loose: bool = False

    def __post_init__(self) -> None:
        names = self.instruction_id_list
        if not isinstance(names, list) or not names:
            raise ValueError("instruction_id_list is a list of instructions")
        kwargs = self.kwargs or [{}] * len(names)
        if len(kwargs) != len(names):
            raise ValueError(f"kwargs has {len(kwargs)} objects for {len(names)} instructions")
        for name, given in zip(names, kwargs, strict=True):
            if name not in INSTRUCTIONS:
                raise ValueError(f"unknown instruction {name!r}; known: {', '.join(INSTRUCTIONS)}")
            _check_arguments(name, given)
        object.__setattr__(self, "kwargs", kwargs)

    def checks(self) -> Iterator[Callable[[str], bool]]:
        """The check of each instruction."""
        for name, given in zip(self.instruction_id_list, self.kwargs, strict=True):
            check, arguments = INSTRUCTIONS[name]
            yield partial(check, **{key: given[key] for key in arguments})


def _check_arguments(name: str, given: object) -> None:
    _, arguments = INSTRUCTIONS[name]
    if not isinstance(given, Mapping):
        raise ValueError(f"the arguments of {name} are {given!r}, no object")
    for key in arguments:
        value = given.get(key)
        if value is None:
            raise ValueError(f"{name} needs {key!r}")
        kind: type = str
        if key.startswith(("num_", "nth_")) or key in _WHOLE:
            kind = int
        elif key in ("keywords", "forbidden_words"):
            kind = list
        if isinstance(value, float) and value.is_integer() and kind is int:
            continue  # a table of rows makes floats of whole numbers where others are absent
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}: {key} is {value!r}, no {kind.__name__}")
        if key.endswith("relation") and value not in ("at least", "less than"):
            raise ValueError(f'{name}: {key} is {value!r}; it is "at least" or "less than"')


_WHOLE = ("frequency", "let_frequency", "capital_frequency")


class InstructionsDomain(Domain):
    """Instructions about form."""

    name = "instructions"
    reads = "response"

    def reference(self, gold: str) -> Instructions:
        """An object."""
        return as_object(gold, Instructions)

    def judge(self, text: str, reference: Instructions, policy: GradingPolicy) -> Judgement:
        """The share of instructions that are followed."""
        versions = list(_loosened(text)) if reference.loose else [text]
        followed = [
            any(version.strip() and check(version) for version in versions)
            for check in reference.checks()
        ]
        names = zip(reference.instruction_id_list, followed, strict=True)
        missed = ", ".join(name for name, done in names if not done)
        return Judgement(
            sum(followed) / len(followed), f"not followed: {missed}" if missed else "all followed"
        )


def _loosened(text: str) -> Iterator[str]:
    lines = text.split("\n")
    for version in (lines, lines[1:], lines[:-1], lines[1:-1]):
        shortened = "\n".join(version).strip()
        yield shortened
        yield shortened.replace("*", "")


def _compared(count: int, relation: str, bound: float) -> bool:
    return count < bound if relation == "less than" else count >= bound


# -- keywords --------------------------------------------------------------------------------------


@instruction("keywords:existence", "keywords")
def _keywords(text: str, keywords: list[str]) -> bool:
    return all(str(word).lower() in text.lower() for word in keywords)


@instruction("keywords:frequency", "keyword", "frequency", "relation")
def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(text.lower().count(keyword.lower()), relation, frequency)


@instruction("keywords:forbidden_words", "forbidden_words")
def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(
        re.search(rf"\b{re.escape(str(word))}\b", text, re.IGNORECASE) for word in forbidden_words
    )


@instruction("keywords:letter_frequency", "letter", "let_frequency", "let_relation")
def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


# -- language --------------------------------------------------------------------------------------


@instruction("language:response_language", "language")
def _language(text: str, language: str) -> bool:
    return detected_language(text) == language


def detected_language(text: str) -> str | None:
    """The language of a text by langdetect, the same every time; None if it cannot be told.

    Raises:
        ValueError: langdetect is not installed.
    """
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ModuleNotFoundError:
        raise ValueError(
            "telling languages needs the package langdetect: pip install langdetect"
        ) from None
    DetectorFactory.seed = 0  # it samples
    try:
        return str(detect(text))
    except LangDetectException:
        return None


# -- length ----------------------------------------------------------------------------------------


@instruction("length_constraints:number_sentences", "num_sentences", "relation")
def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compared(count_sentences(text), relation, num_sentences)


_ABBREVIATIONS = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|Inc|Ltd|Co|Fig|No|[A-Z])\.(?=\s)|\b(?:e\.g|i\.e)\.",
    re.IGNORECASE,
)


def count_sentences(text: str) -> int:
    """Sentences that end with a stop before a space or the end; a line's rest counts as one."""
    text = _ABBREVIATIONS.sub(lambda found: found.group().replace(".", ""), text)
    parts = re.split(r"(?<=[.!?…])[\"')\]]?\s+|\n+", text)
    return sum(bool(re.search(r"\w", part)) for part in parts)


@instruction("length_constraints:number_words", "num_words", "relation")
def _number_of_words(text: str, num_words: int, relation: str) -> bool:
    return _compared(len(re.findall(r"\w+", text)), relation, num_words)


@instruction("length_constraints:number_paragraphs", "num_paragraphs")
def _paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in text.split("***")]
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return all(parts) and len(parts) == num_paragraphs


@instruction(
    "length_constraints:nth_paragraph_first_word", "num_paragraphs", "nth_paragraph", "first_word"
)
def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    said = parts[int(nth_paragraph) - 1].split()[0].lstrip("'\"").lower()
    return re.split(r"[.,?!'\"]", said)[0] == first_word.lower()


# -- content and format ----------------------------------------------------------------------------


@instruction("detectable_content:number_placeholders", "num_placeholders")
def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


@instruction("detectable_content:postscript", "postscript_marker")
def _postscript(text: str, postscript_marker: str) -> bool:
    letters = re.sub(r"[.\s]", "", postscript_marker).lower()
    spaced = r"\.?\s?".join(map(re.escape, letters))
    return re.search(rf"(?<!\w){spaced}(?!\w)", text.lower()) is not None


@instruction("detectable_format:number_bullet_lists", "num_bullets")
def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s{0,99}(?:\*[^*\n]|-)", text, re.MULTILINE)) == num_bullets


@instruction("detectable_format:constrained_response")
def _constrained(text: str) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


@instruction("detectable_format:number_highlighted_sections", "num_highlights")
def _highlights(text: str, num_highlights: int) -> bool:
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool((double or single).strip()) for double, single in found) >= num_highlights


@instruction("detectable_format:multiple_sections", "section_spliter", "num_sections")
def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


@instruction("detectable_format:json_format")
def _json(text: str) -> bool:
    bare = re.sub(r"\A```(?:json)?|```\Z", "", text.strip(), flags=re.IGNORECASE)
    try:
        read_json(bare)
    except ValueError:
        return False
    return True


@instruction("detectable_format:title")
def _title(text: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n<>]+)>>", text))


# -- combinations, beginnings and ends -------------------------------------------------------------


@instruction("combination:two_responses")
def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    if len(parts) > 2 and not parts[0]:
        parts = parts[1:]
    if len(parts) > 2 and not parts[-1]:
        parts = parts[:-1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


@instruction("combination:repeat_prompt", "prompt_to_repeat")
def _repeated(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@instruction("startend:end_checker", "end_phrase")
def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@instruction("startend:quotation")
def _quoted(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


# -- case and punctuation --------------------------------------------------------------------------


@instruction("change_case:capital_word_frequency", "capital_frequency", "capital_relation")
def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text))
    return _compared(count, capital_relation, capital_frequency)


@instruction("change_case:english_capital")
def _capitals(text: str) -> bool:
    return text.isupper() and detected_language(text) == "en"


@instruction("change_case:english_lowercase")
def _lower_case(text: str) -> bool:
    return text.islower() and detected_language(text) == "en"


@instruction("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text


DOMAINS = {"instructions": InstructionsDomain()}
