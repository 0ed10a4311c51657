r"""Decide whether an answer equals the reference answer. The checks, in order:

1. the same text after cleaning (`reward.normalize`), or the same plain integer;
2. kinds that are not mathematics: choice letters, numerals in a base, times
    (`reward.word_answers`);
3. structure and values (`reward.answer_structure`, `reward.comparer`), which decides nearly
    everything;
4. math-verify for leaves that step 3 cannot read (`reward.symbolic`), after a lexical screen.

An answer longer than `MAX_ANSWER_CHARACTERS` is compared only as text. These functions have no
overall time limit; `reward.pool` has one, and training runs should use it.
"""

import re
from dataclasses import replace
from functools import lru_cache

from reward.answer_structure import read
from reward.certainty import LEVELS, collect, note, weakest
from reward.characters import repair
from reward.comparer import Comparer
from reward.congruence import same_congruence
from reward.extract import extract, sentence_answer
from reward.kinds import kind_of
from reward.limits import MAX_ANSWER_CHARACTERS, TooHard
from reward.nodes import BareList, Matrix, Node, Relation, Text, Value
from reward.normalize import clean, squeeze
from reward.symbolic import symbolic_equal
from reward.units import other_currency
from reward.verdict import DEFAULT, Grade, GradingPolicy
from reward.word_answers import (
    same_base,
    same_choice,
    same_enumeration,
    same_time,
    same_words,
    stated_choice,
)

_INTEGER = re.compile(r"[+-]?[0-9]{1,400}")
_GROUPED = re.compile(r"(?<![\d.,])([1-9][0-9]{0,2}(?:,[0-9]{3})+)(?![\d]|,\d)")
_SPACED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+")
_NOTHING = re.compile(r"[\s.,;:!?{}()\[\]$_^&*'\"-]*")


def grade(response: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
    """Extract the answer of a response and compare it with the reference.

    Args:
        response: what the model wrote; if the prompt left a thought open
            (`reward.thoughts.left_open`), with the marker that opened it in front.
        gold: the reference answer; it may be in a box or in dollar signs.
        policy: what counts as equal.
    """
    found = extract(response, policy.extraction, policy.join_boxes, policy.thoughts)
    if found.answer is None:
        return Grade(False, None, "unknown", "extract", found.reason, "no_answer")
    return _compare(found.answer, gold, policy)


def equivalent(pred: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
    """Compare an answer that was not extracted from a response with the reference.

    It compares bare answers like `grade`. It also accepts a sentence: if the sentence itself does
    not equal the reference, its last box, or else its last formula or number, is compared. Never
    use it on text on which a policy is trained: "I tried 1, 2 and 3" equals 3 here.
    """
    bare = _compare(pred, gold, policy)
    if bare.correct or bare.status == "unparsable_gold":
        return bare
    wanted: str | None = gold
    answer = pred
    if _is_sentence(gold):
        wanted = sentence_answer(repair(gold)) if "boxed" in gold or "hope" in gold else gold
    prose = _is_sentence(pred)
    if prose:
        answer = sentence_answer(repair(pred)) or pred
    letter = stated_choice(clean(gold), pred) if prose or not pred.isascii() else None
    if letter is not None:
        return replace(bare, correct=letter, path="choice", reason="the stated letter")
    if wanted is None or (wanted is gold and answer is pred):
        return bare
    sentence = _compare(answer, wanted, policy)
    return sentence if sentence.correct else bare


_PROSE = re.compile(
    r"(?<![A-Za-z'\u00c0-\u024f])[A-Za-z'\u00c0-\u024f]{2,}+[,:]?[ \n]++[A-Za-z'\u00c0-\u024f]++"
    r"[,:]?[ \n]++[A-Za-z'\u00c0-\u024f]{2}"  # three words in a row
    r"|\A\s*+[A-Z][a-z]++(?: [a-z]++)*+:?\s++(?:\$|\\[(\[])"  # "Answer $9$"
    r"|[\u3040-\u30ff\u4e00-\u9fff\u0600-\u06ff]{2}"
)


def _is_sentence(text: str) -> bool:
    """Tell whether an answer is prose: a box inside more text, or words around the formula."""
    if "\\boxed{" in text and not text.startswith("\\boxed{"):
        return True
    return _PROSE.search(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)) is not None


def _compare(pred: str, gold: str, policy: GradingPolicy) -> Grade:
    with collect() as evidence:
        verdict = _decide(pred, gold, policy)
    if not verdict.correct:
        return verdict
    found = weakest(evidence)
    if LEVELS.index(found) > LEVELS.index(policy.certainty):
        reason = f"equal, but only by {found}: the policy asks for {policy.certainty}"
        return replace(verdict, correct=False, reason=reason, status="uncertain")
    return replace(verdict, certainty=found)


def _decide(pred: str, gold: str, policy: GradingPolicy) -> Grade:
    plain = _plain_integers(pred, gold)
    if plain is not None:
        reason = "the same integer" if plain else "different integers"
        return Grade(plain, pred, "integer", "integer", reason)
    problem = check_gold(gold)
    if problem is not None:
        return Grade(False, pred, "unknown", "gold", problem, "unparsable_gold")
    if len(pred) > MAX_ANSWER_CHARACTERS:
        return _overlong(pred, gold)
    if other_currency(gold, pred):
        return Grade(False, pred, "unit", "currency", "another currency")
    return _judge(pred, clean(pred), _reference(gold), policy)


@lru_cache(maxsize=2048)
def _reference(gold: str) -> tuple[str, str, Node]:
    """Return a cleaned reference, its kind and its structure; cached, because a group shares it."""
    wanted = clean(gold)
    return wanted, *kind_of(wanted)


def check_gold(gold: str) -> str | None:
    """Say why no answer could be compared with ``gold``, or ``None`` if answers can be."""
    if not isinstance(gold, str):
        return f"the reference answer is a {type(gold).__name__}, not text"
    if len(gold) > 100 * MAX_ANSWER_CHARACTERS:
        return f"the reference answer has {len(gold)} characters"
    if _NOTHING.fullmatch(clean(gold[:MAX_ANSWER_CHARACTERS])):
        return "the reference answer is empty"
    return None


def _plain_integers(pred: str, gold: str) -> bool | None:
    """Compare two plain integers directly, because most answers are integers."""
    if _INTEGER.fullmatch(pred) and _INTEGER.fullmatch(gold):
        return int(pred) == int(gold)
    return None


def _overlong(pred: str, gold: str) -> Grade:
    same = re.sub(r"\s", "", pred) == re.sub(r"\s", "", gold)
    if same:
        return Grade(True, pred[:200], "text", "string", "the same text")
    reason = f"the answer has {len(pred)} characters; at most {MAX_ANSWER_CHARACTERS} are compared"
    return Grade(False, pred[:200], "unknown", "limit", reason, "unparsable_pred")


def _judge(pred: str, got: str, reference: tuple[str, str, Node], policy: GradingPolicy) -> Grade:
    wanted, kind, node = reference
    if got == wanted or squeeze(got) == squeeze(wanted):
        return Grade(True, pred, kind, "string", "the same after cleaning")
    if _NOTHING.fullmatch(got):
        return Grade(False, pred, kind, "string", "the answer is empty", "unparsable_pred")
    special = _special(wanted, got, policy)
    if special is not None:
        path, equal = special
        return Grade(equal, pred, kind, path, "equal" if equal else "different")
    try:
        verdict, path = _structured(wanted, got, node, policy)
    except TooHard as hard:
        return Grade(False, pred, kind, "limit", f"refused: {hard}", "unparsable_pred")
    if verdict is None:
        return Grade(False, pred, kind, path, "cannot be compared", "unparsable_pred")
    return Grade(verdict, pred, kind, path, "equal" if verdict else "different")


def _special(wanted: str, got: str, policy: GradingPolicy) -> tuple[str, bool] | None:
    for path, verdict in (
        ("choice", same_choice(wanted, got)),
        ("base", same_base(wanted, got, policy.base_required)),
        ("time", same_time(wanted, got)),
        ("congruence", same_congruence(wanted, got)),
    ):
        if verdict is not None:
            return path, verdict
    return None


def _structured(
    wanted: str, got: str, node: Node, policy: GradingPolicy
) -> tuple[bool | None, str]:
    """Compare as structures, for each way of reading digit groups."""
    used: list[str] = []

    def symbolic(one: str, other: str) -> bool | None:
        used.append("symbolic")
        equal = symbolic_equal(one, other)
        return equal and note("library")

    comparer = Comparer(policy, symbolic)
    verdict: bool | None = False
    for gold_node in _readings(wanted, node, policy):
        for pred_node in _readings(got, None, policy):
            verdict = comparer.same(gold_node, pred_node)
            if verdict:
                return True, "symbolic" if used else "structure"
    if not verdict and same_text(wanted, got, node):
        return True, "text"
    if verdict is None and isinstance(node, Value | Matrix | Text | Relation):
        return symbolic(wanted, got), "symbolic"
    return verdict, "symbolic" if used else "structure"


def same_text(wanted: str, got: str, node: Node) -> bool:
    """Compare as text: words with words, and broken-up notation without its separators."""
    if isinstance(node, Text) and node.is_words:
        if same_enumeration(wanted, got):
            return True
        if same_words(wanted, got):
            return "," in wanted or not re.search(r"[,;]| or ", got)
    if "matrix}" not in got or "matrix}" in wanted:
        return False
    pieces = _RENDERING.sub("", got)
    return bool(pieces) and pieces == _RENDERING.sub("", wanted) and "\\frac" in pieces


_RENDERING = re.compile(r"\\begin\{[a-z]*matrix\}|\\end\{[a-z]*matrix\}|\\\\|[\s,&]")


def _readings(text: str, node: Node | None, policy: GradingPolicy) -> list[Node]:
    """Read ``1,234`` as a number and as a list; ``1 234`` as a number."""
    if policy.decimal_comma:
        text = re.sub(r"(?<=\d),(?=\d)", ".", text)
        return [read(text)]
    if _SPACED.fullmatch(text):
        return [read(text.replace(" ", ""))]
    readings = []
    if _GROUPED.search(text):
        readings.append(read(_GROUPED.sub(lambda match: match.group(1).replace(",", ""), text)))
    if node is None:
        node = read(text)
    if not readings or isinstance(node, BareList) or "(" in text or "{" in text or "[" in text:
        readings.append(node)
    return readings
