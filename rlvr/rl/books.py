"""What must hold among the rows of a ledger, each rule by itself (``rlvr audit``).

A check goes over the rows and says what it found wrong, each fault with the row and what was
expected. Nothing but the rows is read here; :mod:`rlvr.rl.audit` compares them with the other files
of the run.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from rlvr.data.sampler import ProblemSampler
from rlvr.files import Row, enumerate_
from rlvr.rollout.sampling import sample_seed
from rlvr.runs.ledger import FINAL, FORMAT, LedgerRows, chained, link


@dataclass(frozen=True)
class Check:
    """What was looked at, how much of it there was, and what is wrong."""

    name: str
    count: int
    what: str
    faults: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        state = f"{len(self.faults)} faults" if self.faults else "in order"
        note = f"; {self.note}" if self.note else ""
        return f"{self.name}: {self.count:,} {self.what}, {state}{note}"


@dataclass(frozen=True)
class Books:
    """A ledger, the settings it was written under, and what the checks look up.

    Attributes:
        ledger: Its rows.
        rollout: ``rollout`` of the recipe, as a mapping.
        updates: ``learner.updates_per_rollout``.
    """

    ledger: LedgerRows
    rollout: Mapping[str, Any]
    updates: int

    @cached_property
    def begin(self) -> Row:
        """The row that the ledger begins with."""
        begun = self.ledger.of("begin")
        return begun[0] if begun else {}

    @cached_property
    def prompts(self) -> list[Row]:
        """A row for each prompt that was drawn."""
        return self.ledger.of("prompt")

    @cached_property
    def by_draw(self) -> dict[int, Row]:
        """What was drawn, by its number; and what had been carried over when the ledger began."""
        early = {row["draw"]: {**row, "fate": "carried"} for row in self.begin.get("carried", [])}
        return early | {row["draw"]: row for row in self.prompts}

    @cached_property
    def completions(self) -> dict[int, list[Row]]:
        """The completions of each draw, in order."""
        found: dict[int, list[Row]] = {}
        draw = None
        for row in self.ledger.of("prompt", "completion"):
            if row["kind"] == "prompt":
                draw = row["draw"]
            elif draw is not None:
                found.setdefault(draw, []).append(row)
        return found

    def lengths(self, draw: int) -> list[int]:
        """Tokens of each completion of a draw."""
        early = self.by_draw.get(draw, {}).get("lengths")
        return early or [row["tokens"] for row in self.completions.get(draw, [])]

    def waiting(self, step: int) -> set[int]:
        """The draws that are carried over when a step has ended."""
        carried = {
            draw
            for draw, row in self.by_draw.items()
            if row["fate"] == "carried" and row.get("step", 0) <= step
        }
        return carried - {row["draw"] for row in self.ledger.of("fate") if row["step"] <= step}

    def at_step(self, step: int) -> list[Row]:
        """The rows of a step."""
        return self._steps.get(step, [])

    @cached_property
    def _steps(self) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = {}
        for row in self.ledger.rows:
            found.setdefault(row["step"], []).append(row)
        return found


def check_books(books: Books) -> list[Check]:
    """Every check of the rows alone.

    Where the rows are not the ones that were written, the others are still tried, because they say
    what a missing or altered row was about.
    """
    return [_tried(check, books) for check in CHECKS]


def _tried(check: Callable[[Books], Check], books: Books) -> Check:
    """A check, or that the rows cannot be read as it reads them."""
    try:
        return check(books)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        fault = f"rows lack what they should hold ({type(error).__name__}: {error})"
        return Check(check.__name__.replace("known_format", "beginning"), 0, "rows", (fault,))


def links(books: Books) -> Check:
    """Rows are numbered from 1 without gaps, in order, and each has the link of its content."""
    rows = [*books.ledger.rows, *books.ledger.cut]
    numbers = [row.get("row", 0) for row in rows]
    faults = [
        f"row {number} stands {times} times"
        for number, times in Counter(numbers).items()
        if times > 1
    ]
    missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    if missing:
        faults.append(f"missing: row {enumerate_(missing)}")
    for before, after in pairwise(numbers):
        if after < before:
            faults.append(f"row {after} stands behind row {before}")
    there = {row.get("row", 0): row for row in rows}
    for row in rows:
        number = row.get("row", 0)
        before = "0" * 16 if number == 1 else there.get(number - 1, {}).get("link")
        if before is not None and link(before, row) != row.get("link"):
            faults.append(
                f"row {number} ({row.get('kind')}, step {row.get('step')}) is not what was written"
            )
    return Check("links", len(rows), "rows", tuple(faults))


def weights(books: Books) -> Check:
    """A version for each step, in order, each chained to the one before."""
    rows, faults = books.ledger.of("weights"), []
    first = books.begin.get("step", 0)
    versions = [row["version"] for row in rows]
    wanted = list(range(first, first + len(rows)))
    if versions != wanted:
        missing = sorted(set(range(first, max([first, *books.ledger.steps]) + 1)) - set(versions))
        faults.append(
            f"versions of the weights are not consecutive from {first}: "
            + (f"missing {enumerate_(missing)}" if missing else "repeated or out of order")
        )
    chain = ""
    for row in rows:
        if row["chain"] != chained(chain, row["fingerprint"]):
            faults.append(
                f"row {row['row']}: version {row['version']} does not follow from the one before: "
                "its fingerprint or a chain was altered"
            )
        chain = row["chain"]
        if row["version"] != row["step"]:
            faults.append(
                f"row {row['row']}: version {row['version']} stands at step {row['step']}"
            )
    frozen = {row["frozen"] for row in books.ledger.of("engine")}
    if len(frozen) > 1:
        faults.append(f"the frozen weights changed: {len(frozen)} fingerprints in the engine rows")
    return Check("weights", len(rows), "versions", tuple(faults))


def draws(books: Books) -> Check:
    """Draws are numbered without gaps and are those that the sampler gives, once an epoch each."""
    rows, begin = books.prompts, books.begin
    numbers, first = [row["draw"] for row in rows], begin.get("first_draw", 0)
    faults = [
        f"draw {number} has {times} rows" for number, times in Counter(numbers).items() if times > 1
    ]
    missing = sorted(set(range(first, max(numbers, default=first - 1) + 1)) - set(numbers))
    faults += [f"draw {number} has no row" for number in missing]
    faults += [
        f"row {after['row']}: draw {after['draw']} stands behind draw {before['draw']}"
        for before, after in pairwise(rows)
        if after["draw"] < before["draw"]
    ]
    faults += _once_an_epoch(books)
    if not faults:
        faults += _order_of_the_sampler(books)
    return Check("draws", len(rows), "prompts drawn", tuple(faults))


def _once_an_epoch(books: Books) -> Iterator[str]:
    size = books.begin["sampler"]["size"]
    seen: dict[tuple[int, int], int] = {}
    names: dict[int, str] = {}
    for row in books.prompts:
        epoch, index = row["draw"] // size, row["index"]
        if row["epoch"] != epoch:
            yield f"row {row['row']}: draw {row['draw']} is of epoch {epoch}, not {row['epoch']}"
        if names.setdefault(index, row["problem"]) != row["problem"]:
            yield (
                f"row {row['row']}: problem {row['problem']!r} has the place {index} of "
                f"{names[index]!r}"
            )
        earlier = seen.setdefault((epoch, index), row["draw"])
        if earlier != row["draw"]:
            yield (
                f"row {row['row']}: problem {row['problem']!r} was drawn in epoch {epoch} before, "
                f"as draw {earlier}"
            )


def _order_of_the_sampler(books: Books) -> Iterator[str]:
    state = books.begin["sampler"]
    sampler = ProblemSampler(state["size"], state["seed"], state["shuffle"])
    sampler.load_state_dict(state)
    start = sampler.drawn  # earlier ones had been sampled when the ledger began
    rounds: dict[tuple[int, int], list[Row]] = {}
    for row in books.prompts:
        if row["draw"] >= start:
            rounds.setdefault((row["step"], row["round"]), []).append(row)
    for rows in rounds.values():
        for row, index in zip(rows, sampler.next(len(rows)), strict=True):
            if row["index"] != index:
                yield (
                    f"row {row['row']}: draw {row['draw']} is problem {row['index']} of the data, "
                    f"and the sampler gives {index}"
                )
                return


def fates(books: Books) -> Check:
    """Every draw has exactly one final fate, or is carried over."""
    final: dict[int, list[Row]] = {}
    faults = []
    for row in (*books.prompts, *books.ledger.of("fate")):
        if row["fate"] in FINAL:
            final.setdefault(row["draw"], []).append(row)
        elif row["fate"] != "carried" or row["kind"] == "fate":
            faults.append(f"row {row['row']}: {row['fate']!r} is no fate of a draw")
    for draw, rows in final.items():
        if len(rows) > 1:
            places = ", ".join(str(row["row"]) for row in rows)
            faults.append(f"draw {draw} has {len(rows)} final fates, in rows {places}")
        if draw not in books.by_draw:
            faults.append(f"row {rows[0]['row']}: draw {draw} has a fate and was not drawn")
    for row in books.ledger.of("fate"):
        drawn = books.by_draw.get(row["draw"])
        if drawn is not None and drawn["fate"] != "carried":
            faults.append(f"row {row['row']}: draw {row['draw']} was not carried over")
        elif drawn is not None and drawn["problem"] != row["problem"]:
            faults.append(f"row {row['row']}: draw {row['draw']} is of {drawn['problem']!r}")
    faults += [
        f"row {row['row']}: draw {row['draw']} is filtered by no rule"
        for row in books.prompts
        if row["fate"] == "filtered" and row.get("rule") not in _RULES
    ]
    return Check("fates", len(books.by_draw), "draws", tuple(faults))


_RULES = ("zero_variance", "accuracy_range")


def completions(books: Books) -> Check:
    """A group of completions for each prompt, with its id, its seed and weights that existed."""
    count, known = 0, books.ledger.weights
    faults: list[str] = []
    first = min(known, default=0)
    ahead, waits = (books.rollout.get(name, 0) for name in ("max_staleness", "carry_over_steps"))
    for prompt in books.prompts:
        rows, step, version = (
            books.completions.get(prompt["draw"], []),
            prompt["step"],
            prompt["version"],
        )
        count += len(rows)
        faults += _group_faults(books, prompt, rows)
        if version not in known and version >= first:
            faults.append(f"row {prompt['row']}: no weights of version {version} are known")
        if not step - 1 - ahead <= version <= step - 1:
            faults.append(
                f"row {prompt['row']}: sampled for step {step} with version {version}, which is "
                f"not one of the {ahead + 1} before it"
            )
    for row in books.ledger.of("fate"):
        drawn = books.by_draw.get(row["draw"])
        age = None if drawn is None else row["step"] - 1 - drawn["version"]
        if age is not None and row["fate"] == "trained" and age > ahead + waits:
            faults.append(f"row {row['row']}: trained {age} versions old; {ahead + waits} may be")
        if age is not None and row["fate"] == "stale" and age <= ahead + waits:
            faults.append(f"row {row['row']}: stale at {age} versions; {ahead + waits} may be")
    return Check("completions", count, "completions", tuple(faults))


def _group_faults(books: Books, prompt: Row, rows: Sequence[Row]) -> Iterator[str]:
    wanted = books.rollout["samples_per_prompt"]
    if len(rows) != wanted:
        yield (
            f"row {prompt['row']}: draw {prompt['draw']} has {len(rows)} completions, not {wanted}"
        )
    for row in rows:
        group, _, sample = row["id"].rpartition("/")
        if group != prompt["group"]:
            yield f"row {row['row']}: completion {row['id']!r} is not of group {prompt['group']!r}"
            continue
        seed = sample_seed(
            books.begin["seed"], int(group.partition("/")[0]), prompt["problem"], int(sample)
        )
        if row["seed"] != f"{seed:016x}":
            yield f"row {row['row']}: the seed is {row['seed']}, and its place gives {seed:016x}"


def sums(books: Books) -> Check:
    """The sums of each step are those of its rows, and updates go on from step to step."""
    steps, faults = books.ledger.of("step"), []
    first, before = books.begin.get("step", 0), books.begin.get("updates", 0)
    numbers = [row["step"] for row in steps]
    if numbers != list(range(first + 1, first + 1 + len(numbers))):
        faults.append(f"steps are not consecutive from {first + 1}: {enumerate_(numbers)}")
    for row in steps:
        prompts, tokens, update = _counted(books, row["step"])
        for name, found, told in (
            ("prompts", prompts, row["prompts"]),
            ("tokens", tokens, row["tokens"]),
            ("waiting", len(books.waiting(row["step"])), row["waiting"]),
        ):
            if found != told:
                faults.append(f"row {row['row']}: {name} are {told}, and the rows give {found}")
        wanted = min(books.updates, prompts.get("trained", 0))
        if row["updates"] - before != wanted or update != set(range(before, row["updates"])):
            faults.append(
                f"row {row['row']}: {row['updates']} updates after {before}, in which prompts of "
                f"the step are said to take part in {sorted(update)}"
            )
        before = row["updates"]
        if prompts.get("trained", 0) != books.rollout["prompts_per_step"]:
            faults.append(
                f"row {row['row']}: {prompts.get('trained', 0)} prompts were trained on, not "
                f"{books.rollout['prompts_per_step']}"
            )
    return Check("sums", len(steps), "steps", tuple(faults))


def _counted(books: Books, step: int) -> tuple[dict[str, int], dict[str, int], set[int]]:
    """Prompts and tokens of a step by fate, and the updates that learnt from them."""
    prompts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    updates = set()
    for row in books.at_step(step):
        if row["kind"] == "completion":
            tokens["generated"] += row["tokens"]
        if row["kind"] not in ("prompt", "fate"):
            continue
        lengths = books.lengths(row["draw"])
        prompts["drawn"] += row["kind"] == "prompt"
        prompts[row["fate"]] += 1
        for fate, length in zip(
            row.get("loss", [row["fate"]] * len(lengths)), lengths, strict=False
        ):
            tokens[fate] += length
        if row["fate"] == "trained":
            updates.add(row["update"])
    return dict(sorted(prompts.items())), dict(sorted(tokens.items())), updates


def known_format(books: Books) -> Check:
    """The ledger begins with one row of kind begin, in a format that is known."""
    begun, faults = books.ledger.of("begin"), []
    if len(begun) != 1 or books.ledger.rows[0].get("kind") != "begin":
        faults.append(f"the ledger has {len(begun)} rows of kind begin, not one at its start")
    elif begun[0]["format"] != FORMAT:
        faults.append(f"row 1: format {begun[0]['format']}, and this version knows {FORMAT}")
    return Check("beginning", len(begun), "ledger", tuple(faults), _beginning(books.begin))


def _beginning(begin: Row) -> str:
    refused = begin.get("refused") or {}
    parts = [f"{count} problems refused as {why}" for why, count in refused.items()]
    if begin.get("step"):
        parts.append(f"begins after step {begin['step']}")
    if begin.get("dropped"):
        parts.append(f"{len(begin['dropped'])} draws of the parent dropped")
    return ", ".join(parts)


CHECKS: tuple[Callable[[Books], Check], ...] = (
    known_format,
    links,
    weights,
    draws,
    fates,
    completions,
    sums,
)
