"""The problems of a run, encoded, without those that cannot be graded or are too long."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from reward.sandbox.ways import way_of
from rlvr.data import (
    Prompt,
    Source,
    Template,
    TemplateSettings,
    encode_prompts,
    load_problems,
    load_template,
)
from rlvr.runs.log import notify
from rlvr.runs.rewards import RewardSettings
from rlvr.runs.scoring import Scorer
from rlvr.types import Problem


def held_out_prompts(
    sets: Mapping[str, Source],
    template: TemplateSettings,
    limit: int,
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer | None,
    console: Console,
) -> dict[str, list[Prompt]]:
    """Evaluation prompts by the name of their set; none without a scorer.

    Raises:
        ValueError: They cannot be read, or none can be graded.
    """
    if scorer is None:
        return {}
    loaded = load_template(template)
    return {
        name: usable_prompts(name, load_problems(source), loaded, tokenizer, limit, scorer, console)
        for name, source in sets.items()
    }


def check_sandbox(settings: RewardSettings, problems: Sequence[Problem]) -> None:
    """See that programs can be run, where problems are judged by running them.

    Raises:
        ValueError: No sandbox can be made here, and the settings ask for one.
    """
    if any(problem.grader == "code" for problem in problems):
        try:
            way_of(settings.code.sandbox)
        except ValueError as error:
            raise ValueError(f"reward.code.sandbox={settings.code.sandbox}: {error}") from error


def usable_prompts(
    name: str,
    problems: Sequence[Problem],
    template: Template,
    tokenizer: Any,  # noqa: ANN401
    limit: int,
    scorer: Scorer,
    console: Console,
    refused: Counter[str] | None = None,
) -> list[Prompt]:
    """The encoded prompts of one set, without problems that cannot be graded.

    Where nothing reads verdicts, such problems stay, and get none. ``refused`` is told how many
    were left out: ``ungradable`` and ``too_long``.

    Raises:
        ValueError: No problem is left.
    """
    check_sandbox(scorer.settings, problems)
    answered = [problem for problem in problems if problem.answer]
    golds = scorer.pool.check_golds(
        [problem.answer for problem in answered], [problem.grader for problem in answered]
    )
    bad = {answered[index].id: reason for index, reason in golds}
    if scorer.needs_verdicts:
        scorer.rejected_golds += len(bad)
        for problem_id, reason in bad.items():
            notify(console, f"{name}: problem {problem_id!r} is skipped: {reason}")
        usable = [problem for problem in problems if problem.id not in bad]
    else:
        usable = list(problems)
        scorer.ungradable |= {answered[index].answer for index, _ in golds}
    if not usable:
        raise ValueError(f"{name}: none of {len(problems)} reference answers can be graded")
    encoded = encode_prompts(usable, template, tokenizer, limit)
    if refused is not None:
        left_out = {"ungradable": len(problems) - len(usable), "too_long": encoded.dropped}
        refused.update({why: count for why, count in left_out.items() if count})
    if encoded.notice:
        notify(console, f"{name}: {encoded.notice}")
    return list(encoded.prompts)
