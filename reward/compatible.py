r"""Graders that behave like published ones, to reproduce their numbers.

- ``one_shot_rlvr``: the training reward of the one-example RLVR experiments (arXiv 2504.20571):
  last box, then equality by the Hendrycks normalisation or by the stricter rules of the PRM800K
  grader (integers and fractions must be written alike, everything else may be equal in value).
- ``qwen``: the evaluation of Qwen2.5-Math: last box, else the announced answer, else the last
  number; relative tolerance 1e-4; a factor of 100 in either direction is ignored; so are brackets.
- ``exact``: the last box, character by character.
- ``math_verify``: the whole response is given to math-verify with its default settings.

The rules are theirs but the code is ours: values come from `reward.expression` and
`reward.numeric`, so nothing in a response is ever executed. Their known weaknesses are kept on
purpose. Training should use ``rlvr``.
"""

import re

from reward.exact import NotRational, Undefined, exact
from reward.expression import Tree, parse
from reward.extract import extract, last_box
from reward.library import math_verify
from reward.limits import MAX_ANSWER_CHARACTERS, TooHard
from reward.normalize import clean
from reward.numeric import approximate, symbols
from reward.tokens import NotAnExpression, number
from reward.values import same_value
from reward.verdict import DEFAULT, Grade, GradingPolicy
from reward.word_answers import number_in_words

QWEN_TOLERANCE = 1e-4

_UNIT_WORDS = (
    "degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week",
    "month", "year", "foot", "feet", "inch", "yard", "liter",
)  # fmt: skip
_PRM_UNIT = re.compile(rf"(?:{'|'.join(_UNIT_WORDS)})(?:es|s)?\s*(?:\^\s*\d+)?")


# -- one_shot_rlvr ----------------------------------------------------------------------------


def one_shot_rlvr(response: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
    """Grade like the training reward of one-example RLVR."""
    answer = last_box(response)
    if answer is None:
        return Grade(False, None, "unknown", "extract", "no box", "no_answer")
    wanted = last_box(gold) if "\\boxed" in gold else gold
    if wanted is None or not wanted.strip():
        return Grade(False, answer, "unknown", "gold", "empty reference", "unparsable_gold")
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return Grade(False, answer[:200], "unknown", "limit", "too long", "unparsable_pred")
    if hendrycks_equal(answer, wanted):
        return Grade(True, answer, "unknown", "hendrycks", "equal after normalisation")
    equal = prm800k_equal(answer, wanted)
    return Grade(equal, answer, "unknown", "prm800k", "equal" if equal else "different")


def hendrycks_equal(pred: str, gold: str) -> bool:
    """Compare two answers as text after the MATH data set's normalisation."""
    return hendrycks_normal(pred) == hendrycks_normal(gold)


def hendrycks_normal(text: str) -> str:
    r"""Normalise like the evaluation of the MATH data set.

    It removes line breaks, ``\!``, sizes, degree signs, dollar and percent signs, text after
    ``\text{ `` (a unit), and one ``k =`` with at most two characters before the sign. ``\frac`` and
    ``\sqrt`` get their braces; 0.5 and a/b become ``\frac``.
    """
    enclosed = re.fullmatch(r"\\text\{(.+)\}", text.strip())
    text = enclosed.group(1) if enclosed else text.strip()
    for old, new in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
        ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    if text.count("\\text{ ") == 1:
        text = text.split("\\text{ ")[0]
    text = text.replace("\\%", "").replace("%", "")
    text = re.sub(r"(?<=[ {])\.", "0.", text)
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0].strip()) <= 2:
        text = sides[1]
    text = re.sub(r"\\sqrt\s*([^\s{\\])", r"\\sqrt{\1}", text).replace(" ", "")
    text = _braced_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    ratio = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    return f"\\frac{{{ratio.group(1)}}}{{{ratio.group(2)}}}" if ratio else text


def _braced_fractions(text: str) -> str:
    r"""Give ``\frac`` the braces that TeX would: ``\frac1b`` is ``\frac{1}{b}``."""
    text = re.sub(r"\\frac([^{\\\s])([^{\\\s])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{\\\s])\{", r"\\frac{\1}{", text)
    return re.sub(r"(\\frac\{[^{}]*\})([^{\\\s])", r"\1{\2}", text)


def prm800k_equal(pred: str, gold: str) -> bool:
    """Compare two answers with the rules of the PRM800K grader.

    Texts are equal if they are equal after its normalisation. Tuples must have the same outer
    brackets and equal items in order. Two plain fractions must be written alike. If either side is
    an integer, both must be the same integer. Everything else is compared by value, unless it
    contains more than two letters or a power that the grader refuses to evaluate.
    """
    wanted, got = _prm_normal(gold), _prm_normal(pred)
    if wanted == got:
        return True
    if not got:
        return False
    left, right = _prm_items(wanted), _prm_items(got)
    if len(left) > 1 and (wanted[0] != got[0] or wanted[-1] != got[-1]):
        return False
    return len(left) == len(right) and all(map(_prm_item_equal, left, right))


def _prm_normal(text: str) -> str:
    enclosed = re.fullmatch(r"\\text\{(.+)\}", text.strip())
    text = enclosed.group(1) if enclosed else text
    text = re.sub(r"\\?[%$]", "", text)
    text = re.sub(r" (?:or|and) ", " , ", text)
    for word, zeros in (("million", 6), ("billion", 9), ("trillion", 12)):
        text = text.replace(word, f"*10^{zeros}")
    text = _PRM_UNIT.sub("", text)
    text = re.sub(r"\^\s*+\{?\s*+\\circ\s*+\}?", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\!\s*", "", text)
    text = re.sub(r"(?<=\d)[ ]+(?=\d)", "+", text)
    text = clean(text) if "\\" in text else text.strip()
    text = re.sub(r"(?<![\d.])(-?\d+)\.0*(?!\d)", r"\1", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|\Z))", "", text) if _is_one_number(text) else text
    return re.sub(r"[\s]", "", text).lower()


def _is_one_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d{1,3}(?:,\d{3})+\s*", text) is not None


def _prm_items(text: str) -> list[str]:
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and "(" not in text[1:-1]:
        return text[1:-1].split(",")
    return [text]


def _prm_item_equal(gold: str, pred: str) -> bool:
    if gold == pred:
        return True
    fractions = [_plain_fraction(item) for item in (gold, pred)]
    if all(fractions):
        return fractions[0] == fractions[1]
    whole = [number(item) for item in (gold, pred)]
    integers = [value is not None and value.denominator == 1 for value in whole]
    if any(integers):
        return all(integers) and whole[0] == whole[1]
    if any(not _prm_evaluates(item) for item in (gold, pred)):
        return False
    trees = [_tree(item) for item in (gold, pred)]
    if trees[0] is None or trees[1] is None:
        return False
    try:
        return same_value(trees[0], trees[1], DEFAULT)
    except TooHard:
        return False


def _plain_fraction(text: str) -> str | None:
    bare = re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text)
    bare = re.sub(r"[()]", "", bare)
    return bare if re.fullmatch(r"-?\d+/0*[1-9]\d*", bare) else None


def _prm_evaluates(text: str) -> bool:
    letters = set(re.sub(r"sqrt|frac|pi|\\[a-z]+", "", text))
    unknown = sum(character.isalpha() for character in letters)
    return unknown <= 2 and not re.search(r"\^\{|\^\(|\^\d+\^|\^\d\d+", text)


def _tree(text: str) -> Tree | None:
    try:
        return parse(clean(text))
    except NotAnExpression:
        return None


# -- qwen -------------------------------------------------------------------------------------


def qwen(response: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
    """Grade like the Qwen2.5-Math evaluation."""
    answer = qwen_answer(response)
    if not answer:
        return Grade(False, None, "unknown", "extract", "no answer", "no_answer")
    wanted = qwen_normal(last_box(gold) or gold)
    if not wanted:
        return Grade(False, answer, "unknown", "gold", "empty reference", "unparsable_gold")
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return Grade(False, answer[:200], "unknown", "limit", "too long", "unparsable_pred")
    equal, path = qwen_equal(answer, wanted)
    return Grade(equal, answer, "unknown", path, "equal" if equal else "different")


def qwen_answer(response: str) -> str:
    """Extract the announced answer, the last box (even unclosed), "answer is", or the last
    number."""
    hope = re.search(r"final answer is \$([^$]{1,1000})\$\. I hope", response[-20_000:])
    if hope:
        return qwen_normal(hope.group(1))
    if "boxed" in response:
        return qwen_normal(_open_box(response))
    cut = response.rfind("he answer is")
    if cut >= 0:
        return qwen_normal(response[cut + len("he answer is") :].split("\n")[0].strip())
    found = extract(response, "last_number").answer
    return qwen_normal(found or "")


def _open_box(response: str) -> str:
    closed = last_box(response)
    if closed is not None:
        return closed
    rest = response[response.rfind("boxed") + len("boxed") :]
    return rest[1:].split("$")[0].strip() if rest.startswith("{") else rest.split("$")[0].strip()


def qwen_normal(text: str) -> str:
    """Normalise: remove units, percent and currency signs and sizes of brackets; convert number
    words."""
    text = clean(str(text)[: 2 * MAX_ANSWER_CHARACTERS])
    text = re.sub(r"\\text\{\s*(\(?[A-E]\)?|[a-z]+)\s*\}\Z", r" \1", text).strip()
    value = number_in_words(text)
    if value is not None:
        return str(value)
    text = text.replace("%", "").replace("°", "").strip()
    text = re.sub(r"(?<=\d)\s*\\?[a-z]{1,12}(?:\s?\^\{?\d\}?)?\Z", _unit_gone, text)
    text = re.sub(r"\A[A-Za-z]{1,2}\s*=\s*", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text) if _is_one_number(text) else text
    text = re.sub(r"(?<=\d)\.0+\Z", "", text)
    text = re.sub(r"\s+", "", text)
    return (text.lstrip("0") or "0") if text.isdecimal() else text


def _unit_gone(match: re.Match[str]) -> str:
    return "" if len(match.group().strip()) > 1 and "\\" not in match.group() else match.group()


def qwen_equal(pred: str, gold: str) -> tuple[bool, str]:
    """Compare two normalised answers; return the verdict and the rule that gave it."""
    if pred.lower() == gold.lower():
        return True, "string"
    if gold in ("A", "B", "C", "D", "E"):
        letters = re.findall(r"(?<![A-Za-z])[A-E](?![A-Za-z])", pred.upper())
        return bool(letters) and letters[-1] == gold, "choice"
    numbers = [number(item) for item in (gold, pred)]
    if numbers[0] is not None and numbers[1] is not None:
        wanted = [numbers[0] / 100, numbers[0], numbers[0] * 100]
        return any(_near(float(value), float(numbers[1])) for value in wanted), "number"
    bare = [re.sub(r"[{}()\[\]\\]", "", item).lower() for item in (pred, gold)]
    if pred[:1] in "([" and gold[:1] in "([" and bare[0] == bare[1]:
        return True, "brackets"
    if "," in gold and gold[:1] in "([" and pred[:1] in "([":
        parts = [item[1:-1].split(",") for item in (pred, gold)]
        same = len(parts[0]) == len(parts[1])
        return same and all(qwen_equal(p, g)[0] for p, g in zip(*parts, strict=False)), "tuple"
    return _qwen_values(pred, gold), "symbolic"


def _near(wanted: float, got: float) -> bool:
    return abs(wanted - got) <= QWEN_TOLERANCE * max(abs(wanted), abs(got))


def _qwen_values(pred: str, gold: str) -> bool:
    """Compare by value. As in the original, pi is a symbol: it equals itself, but not 3.1416."""
    trees = [_tree(re.sub(r"\A.{1,2}=", "", item)) for item in (pred, gold)]
    if trees[0] is None or trees[1] is None:
        return False
    if _has_pi(trees[0]) != _has_pi(trees[1]):
        return False
    try:
        if same_value(trees[1], trees[0], DEFAULT):
            return True
        if symbols(trees[0]) or symbols(trees[1]):
            return False
        values = [_constant(tree) for tree in trees if tree is not None]
    except (TooHard, Undefined):
        return False
    return _near(values[1], values[0])


def _constant(tree: Tree) -> float:
    try:
        return float(exact(tree, {}))
    except NotRational:
        value, _ = approximate(tree, {})
        return value.real if abs(value.imag) < 1e-12 else float("inf")


def _has_pi(tree: Tree) -> bool:
    return "pi" in str(tree)


def exact_match(response: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
    """Compare the last box with the reference character by character, except for outer space."""
    found = extract(response, policy.extraction, policy.join_boxes, policy.thoughts)
    if found.answer is None:
        return Grade(False, None, "unknown", "extract", found.reason, "no_answer")
    equal = found.answer.strip() == gold.strip()
    return Grade(equal, found.answer, "unknown", "string", "equal" if equal else "different")


def math_verify_alone(response: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
    """Grade with math-verify's extraction and comparison, to compare with it.

    It joins neighbouring boxes and falls back to the last number. Its timeouts are off, because the
    worker has an alarm.
    """
    package = math_verify()
    wanted = package.parse(f"${gold}$", parsing_timeout=None)
    got = package.parse(response, parsing_timeout=None)
    if not got:
        return Grade(False, None, "unknown", "extract", "nothing parsed", "no_answer")
    equal = bool(package.verify(wanted, got, timeout_seconds=None))
    return Grade(equal, str(got[-1])[:200], "unknown", "math_verify", "as math-verify says")
