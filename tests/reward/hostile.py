r"""How long the verifier takes, at most, for strings made to hang it.

    python -m tests.reward.hostile --strings 20000 [--seed 0]

Each string is drawn from one of several kinds: pieces of notation repeated or nested to a random
depth, towers of powers and factorials, long chains, lists and words, formulas with much to
compare, random bytes and unicode, and answers of test cases with parts repeated. Each is graded in
this process under the alarm of a worker, against a reference of its own kind. The command prints
the slowest strings, the quantiles of processor time, and how many needed the alarm.
"""

import argparse
import random
import time
from collections.abc import Callable

from reward import grade
from reward.limits import Expired, alarm

Draw = random.Random
Case = tuple[str, str]  # response, reference

PIECES = [
    "{", "}", "(", ")", "[", "]", "\\left(", "\\right)", "\\{", "\\}", "|", "\\frac", "\\frac{1}",
    "\\sqrt", "\\sqrt[3]", "^", "_", "^{2}", "!", "+", "-", "--", "=", "\\le", "<", ",", ";", ".",
    "1", "9", "12", "0.1", "1,000", "x", "n", "xy", "\\pi", "e", "i", "\\sin", "\\ln x", "\\log_2",
    "\\binom{n}{2}", "\\gcd(n,7)", "\\lfloor x\\rfloor", "\\max(x,1)", "\\text{", "\\text{ cm}",
    "\\text{or}", " and ", " or ", " the ", " is ", " not ", "approx", "\\approx", "where", "%",
    "\\$", "\\boxed{", "\\begin{cases}", "\\end{cases}", "&", "\\\\", "\\cdot", "\\times", "\\in",
    "\\cup", "\\infty", "\\pm", "\\mathbb{R}", "\\circ", "°", "'", "\"", "\t", "\n", "\u0338",
    "\u202e", "\u200b", "\uff11", "\u2460", "\u00b2", "\u221a", "\u2211", "\x00",
    "<think>", "</think>",
]  # fmt: skip
GOLDS = ["5", "\\frac{1}{2}", "x+1", "(n-1)!", "\\sqrt{2}", "[0,1)", "(1,2)", "\\{1,2\\}", "B",
         "east", "12:05", "x=1,y=2", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "x^2+y^2=1",
         "n!", "\\lfloor\\frac{n}{7}\\rfloor", "\\max(x,|y|)", "10^{100}", "5 cm",
         "\\sin(2x)"]  # fmt: skip


def repeated(draw: Draw) -> str:
    """One to three pieces, many times."""
    block = "".join(draw.choices(PIECES, k=draw.randint(1, 3)))
    return (block * 2000)[: draw.choice((30, 300, 999, 3000))]


def nested(draw: Draw) -> str:
    """Brackets, roots or fractions within each other."""
    left, right = draw.choice(
        (("(", ")"), ("{", "}"), ("\\sqrt{", "}"), ("\\frac{1}{1+", "}"), ("|", "|"), ("-(", ")"),
         ("\\left(", "\\right)"), ("x^{", "}"), ("\\sin(", ")"), ("\\lfloor ", "\\rfloor"),
         ("\\text{", "}"), ("(1+", ")^2"), ("\\binom{n}{", "}"), ("\\max(x,", ")"))
    )  # fmt: skip
    depth = draw.choice((5, 20, 59, 60, 61, 200, 400))
    return left * depth + draw.choice(("x", "2", "n", "")) + right * (depth + draw.randint(-1, 1))


def towers(draw: Draw) -> str:
    """Numbers that are too large to write."""
    base = str(draw.choice((2, 9, 10, 99, 10**9, 0.5)))
    return draw.choice(
        (
            "^{".join([base] * draw.randint(2, 9)) + "}" * 8,
            base + "!" * draw.randint(1, 6),
            f"{base}^{{{draw.randint(1, 10**9)}}}",
            f"\\binom{{{10 ** draw.randint(2, 9)}}}{{{10 ** draw.randint(1, 5)}}}",
            f"(1+\\frac{{1}}{{{base}}})^{{{10 ** draw.randint(1, 8)}}}",
            f"\\sqrt[{draw.randint(2, 10**6)}]{{{base}}}",
            "9" * draw.choice((50, 400, 990)),
            "0." + "9" * draw.choice((50, 400, 990)),
            f"{base}_{{{draw.randint(2, 36)}}}",
            f"\\gcd({'9' * 300},{'7' * 300})",
        )
    )


def formulas(draw: Draw) -> str:
    """Long sums and products of names, which are compared at many points."""
    names = draw.sample("abcdefghjklmnopqrstuvwxyz", draw.randint(1, 24))
    atoms = [
        *(f"{name}^{{{draw.randint(1, 30)}}}" for name in names),
        *(f"\\sin({name})" for name in names),
        f"\\binom{{{names[0]}}}{{{draw.randint(1, 9)}}}",
        f"{names[-1]}!",
        f"\\lfloor\\frac{{{names[0]}}}{{{draw.randint(2, 99)}}}\\rfloor",
    ]
    parts = draw.choices(atoms, k=draw.randint(2, 60))
    return draw.choice(("+", " ", "", "-", "\\cdot ")).join(parts)[:999]


def listings(draw: Draw) -> str:
    """Lists, sets, matrices and chains with many members."""
    count = draw.choice((10, 60, 200, 400))
    items = [draw.choice(("1", "x", "\\frac12", "(1,2)", "-3", "a")) for _ in range(count)]
    joint = draw.choice(
        (",", ";", " or ", "&", "\\\\", "=", "<", "\\text{ and }", "\\cup ", "\\pm")
    )
    return joint.join(items)[:999]


def noise(draw: Draw) -> str:
    """Random characters of all planes."""
    ranges = ((0, 128), (128, 0x3000), (0x300, 0x370), (0x2000, 0x2C00), (0xD800, 0xE000),
              (0x1D400, 0x1D800), (0xFF00, 0xFFF0))  # fmt: skip
    low, high = draw.choice(ranges)
    return "".join(chr(draw.randrange(low, high)) for _ in range(draw.choice((10, 200, 999))))


def mixtures(draw: Draw) -> str:
    """Pieces in any order."""
    return "".join(draw.choices(PIECES, k=draw.choice((5, 30, 200))))


KINDS: dict[str, Callable[[Draw], str]] = {
    kind.__name__: kind for kind in (repeated, nested, towers, formulas, listings, noise, mixtures)
}


Timed = tuple[float, str, Case, str]


def cases(count: int, seed: int) -> list[tuple[str, Case]]:
    """Draw hostile strings, each with a reference: a usual one, or one as hostile."""
    draw, found = random.Random(seed), []
    for index in range(count):
        name = list(KINDS)[index % len(KINDS)]
        answer = KINDS[name](draw)
        gold = draw.choice(GOLDS) if draw.random() < 0.7 else KINDS[name](draw)
        response = answer if draw.random() < 0.1 else f"\\boxed{{{answer}}}"
        found.append((name, (response, gold)))
    return found


def measure(found: list[tuple[str, Case]], limit: int = 5) -> list[Timed]:
    """Grade each; processor seconds, kind, the case, and the name of the error, if any."""
    times = []
    for name, case in found:
        began, fault = time.process_time(), ""
        try:
            with alarm(limit):
                grade(*case)
        except (Expired, Exception) as error:  # what a worker turns into a refusal
            fault = type(error).__name__
        times.append((time.process_time() - began, name, case, fault))
    return times


def main() -> None:
    """Print quantiles by kind, and the slowest strings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strings", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    times = measure(cases(arguments.strings, arguments.seed))
    print("| kind | strings | median ms | 99 % ms | longest ms | alarms | errors |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in [*KINDS, "all"]:
        own = sorted((row for row in times if name in (row[1], "all")), key=lambda row: row[0])
        marks = [own[int(part * (len(own) - 1))][0] * 1000 for part in (0.5, 0.99, 1)]
        alarms = sum(row[3] == Expired.__name__ for row in own)
        errors = sum(bool(row[3]) for row in own) - alarms
        shown = " | ".join(f"{mark:.1f}" for mark in marks)
        print(f"| {name} | {len(own)} | {shown} | {alarms} | {errors} |")
    slowest = sorted(times, key=lambda row: -row[0])[:10]
    for seconds, name, (response, gold), fault in [*slowest, *(row for row in times if row[3])][
        :40
    ]:
        print(f"{seconds * 1000:.0f} ms, {name} {fault}: {response[:90]!r} for {gold[:60]!r}")


if __name__ == "__main__":
    main()
