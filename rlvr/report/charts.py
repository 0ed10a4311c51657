"""The charts of a page: known metrics in a fixed order, all others under "More".

A chart whose metrics were not logged is omitted. A metric that no chart below uses gets a separate
chart under its prefix, so a method that logs a new metric needs no change here.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlvr.report.alarms import MARKS, marks_of

Format = Literal["number", "fraction", "count", "seconds", "scientific"]
Column = Sequence[float | None]


@dataclass(frozen=True)
class ChartTemplate:
    """One chart: its metrics are patterns, matched in order; ``*`` stands for any name.

    ``band`` is a metric drawn as a band of plus and minus its value around the first series;
    ``interval`` are two metrics, the lower and the upper end of a band around it.
    ``dashed`` are patterns of series that are extremes rather than averages; ``except_`` are
    metrics that a pattern matches but must not include. With ``each`` there is one chart for every
    name that the first ``*`` matches. The series of a ``histogram`` are shades in increasing order.
    """

    section: str
    title: str
    metrics: tuple[str, ...]
    help: str
    format: Format = "number"
    kind: Literal["lines", "stack", "histogram"] = "lines"
    band: str | None = None
    interval: tuple[str, str] | None = None
    dashed: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()
    each: bool = False


COUNTS = "eval/*/items"
"""Numbers of items in an evaluation; they get no chart."""

ONCE = ("time/start", "time/finish")
"""Seconds of a process rather than of a step; they get no chart."""

LEARNING, POLICY, LEARNER, TIME = "Learning", "Policy", "Learner", "Time and machine"
SECOND = "Second opinion"

TEMPLATES: tuple[ChartTemplate, ...] = (
    ChartTemplate(
        LEARNING,
        "Reward",
        ("reward/mean",),
        "Mean reward of the completions sampled in training; band: one standard deviation.",
        band="reward/std",
    ),
    ChartTemplate(
        LEARNING,
        "Accuracy",
        ("reward/correct", "eval/*/accuracy"),
        "Fraction of right answers among the completions sampled in training and on each "
        "held-out set. If training is at its limit and the others still rise, the policy "
        "generalises.",
        "fraction",
    ),
    ChartTemplate(
        LEARNING,
        "Response length",
        ("completion/length_mean", "eval/*/length", "completion/length_max"),
        "Tokens in a response, in training and in evaluation.",
        "count",
        dashed=("*max",),
    ),
    ChartTemplate(
        LEARNING,
        "Truncated responses",
        ("completion/truncated", "eval/*/truncated"),
        "Fraction cut at the length limit before an end token.",
        "fraction",
    ),
    ChartTemplate(
        LEARNING,
        "Watched words",
        ("words/any", "eval/*/words_any"),
        "Fraction of responses that contain any of the watched words, in training and in "
        "evaluation.",
        "fraction",
    ),
    ChartTemplate(
        LEARNING,
        "Watched words, one by one",
        ("words/*",),
        "Fraction of the sampled completions that contain each word.",
        "fraction",
        except_=("words/any",),
    ),
    ChartTemplate(
        LEARNING,
        "Watched words in",
        ("eval/*/words_*",),
        "Fraction of the responses to the evaluation set that contain each word.",
        "fraction",
        except_=("*/words_any",),
        each=True,
    ),
    ChartTemplate(
        LEARNING,
        "Groups without variance",
        ("reward/zero_variance_groups",),
        "Fraction of prompts whose samples all got the same reward and therefore teach nothing.",
        "fraction",
    ),
    ChartTemplate(
        LEARNING,
        "Verifier, cumulative",
        ("verifier/*",),
        "Verdicts since the run began, of training and evaluation, by what they say.",
        "count",
    ),
    ChartTemplate(
        LEARNING,
        "Chosen and rejected log-probabilities",
        ("preference/chosen_logps", "preference/rejected_logps"),
        "Mean log-probability of whole completions, in nats. If both fall while the margin "
        "grows, that is the classic failure of preference losses.",
    ),
    ChartTemplate(
        LEARNING,
        "Held-out log-probabilities",
        ("eval/*/chosen_logps", "eval/*/rejected_logps"),
        "The same on held-out pairs; dashed: rejected.",
        dashed=("*rejected_logps",),
    ),
    ChartTemplate(
        LEARNING,
        "Margin",
        ("preference/margin", "eval/*/margin"),
        "Mean of the chosen completion's log-ratio (or log-probability, without a reference) "
        "minus the rejected one's.",
    ),
    ChartTemplate(
        LEARNING,
        "Pairs ranked right",
        ("preference/reward_accuracy", "eval/*/reward_accuracy"),
        "Fraction of the pairs with a positive margin.",
        "fraction",
    ),
    ChartTemplate(
        LEARNING,
        "Log-ratios by label",
        ("preference/desirable_log_ratio", "preference/undesirable_log_ratio"),
        "Mean log-ratio to the reference of desirable and of undesirable completions.",
    ),
    ChartTemplate(
        LEARNING, "Preference loss", ("preference/loss", "eval/*/loss"), "The loss of the mixture."
    ),
    ChartTemplate(
        LEARNING,
        "Reward model: rewards by outcome",
        ("rm/reward_right", "rm/reward_wrong", "prm/reward_right", "prm/reward_wrong"),
        "Mean reward of the step's right and wrong responses.",
    ),
    ChartTemplate(
        LEARNING,
        "Reward model: ranked right",
        ("rm/accuracy", "eval/*/auc_within", "eval/*/pair_accuracy", "eval/*/best_of_n"),
        "Fraction of the step's pairs that rank the right response above the wrong one; on "
        "held-out prompts the same over all pairs, and how often the highest-scored response is "
        "right.",
        "fraction",
    ),
    ChartTemplate(
        LEARNING,
        "Reward model: spread of right responses",
        ("eval/*/pass_spread",),
        "Standard deviation of rewards among a prompt's right responses, divided by the distance "
        "between right and wrong ones.",
    ),
    ChartTemplate(
        LEARNING,
        "Reward model: calibration",
        ("eval/*/ece", "eval/*/ks", "eval/*/brier"),
        "Errors of held-out probabilities; the Brier score also includes unavoidable uncertainty.",
    ),
    ChartTemplate(LEARNING, "Reward model: loss", ("rm/loss",), "The loss that was minimised."),
    ChartTemplate(
        LEARNING,
        "Reward model: right or wrong",
        ("prm/accuracy", "prm/pair_accuracy", "prm/auc_within", "prm/accuracy_before"),
        "Share of the policy's completions whose reward has the sign of their outcome, and of "
        "pairs of right and wrong completions of a prompt in the right order. Below one half the "
        "reward misleads.",
        "fraction",
        dashed=("*before",),
    ),
    ChartTemplate(
        LEARNING,
        "Reward model: drift",
        ("prm/drift", "prm/log_ratio"),
        "Mean size, and mean, of a token's log-ratio between reward model and reference, in nats.",
    ),
    ChartTemplate(
        LEARNING,
        "Negative log-likelihood",
        ("sft/loss", "eval/*/nll"),
        "Mean of -log p in nats, of the response tokens in training and of held-out ones, or of "
        "a reward model's held-out outcomes. If the held-out curve rises again, the training "
        "data is being memorised.",
    ),
    ChartTemplate(
        LEARNING,
        "Likeliest token right",
        ("sft/token_accuracy",),
        "Fraction of the training tokens that the model finds likeliest.",
        "fraction",
    ),
    ChartTemplate(
        LEARNING,
        "Improbable tokens",
        ("eval/*/improbable",),
        "Fraction of held-out response tokens to which the model gives a probability below 1 %.",
        "fraction",
    ),
    ChartTemplate(
        POLICY,
        "Entropy",
        ("policy/entropy",),
        "Mean entropy of the next-token distribution, in nats.",
    ),
    ChartTemplate(
        POLICY,
        "KL divergence",
        ("policy/kl_reference", "policy/kl_old"),
        "Estimated divergence from the frozen reference and from the sampling policy, in nats.",
    ),
    ChartTemplate(
        POLICY,
        "Clip fraction",
        ("policy/clip_fraction",),
        "Fraction of tokens whose importance ratio the loss clipped.",
        "fraction",
    ),
    ChartTemplate(
        POLICY, "Largest ratio", ("policy/ratio_max",), "Largest importance ratio of any token."
    ),
    ChartTemplate(POLICY, "Loss", ("policy/loss",), "The loss that was minimised."),
    ChartTemplate(
        POLICY,
        "Watched tokens",
        ("watch/*/count",),
        "Number of sampled tokens of each set in a step.",
        "count",
    ),
    ChartTemplate(
        POLICY,
        "Probability of watched tokens",
        ("watch/*/probability",),
        "Mean probability with which tokens of each set were sampled.",
        "fraction",
    ),
    ChartTemplate(
        POLICY,
        "Probabilities of watched tokens:",
        ("watch/*/tenth_*",),
        "Share of the set's sampled tokens by probability, from below 0.1 (light) to above 0.9.",
        "fraction",
        kind="histogram",
        each=True,
    ),
    ChartTemplate(
        POLICY,
        "Lp-Reg: rare tokens",
        ("lp_reg/passed", "lp_reg/kept_mass"),
        "Fraction of the rare tokens that pass the noise filter, and mean mass Z that it keeps.",
        "fraction",
    ),
    ChartTemplate(
        POLICY,
        "Lp-Reg: kept mass",
        ("lp_reg/kept_mass/tenth_*",),
        "Share of the rare tokens by the mass Z kept, from below 0.1 (light) to above 0.9.",
        "fraction",
        kind="histogram",
    ),
    ChartTemplate(
        POLICY,
        "Lp-Reg: tokens",
        ("lp_reg/low", "lp_reg/regularised"),
        "Fraction of tokens that are rare, and fraction that are regularised.",
        "fraction",
    ),
    ChartTemplate(
        POLICY,
        "Lp-Reg: threshold",
        ("lp_reg/threshold",),
        "Probability below which a token counts as rare.",
        "scientific",
    ),
    ChartTemplate(
        POLICY,
        "Routers: load",
        ("router/load_max", "router/load_min"),
        "Tokens of the busiest and the idlest expert divided by an even share; 1 is balanced.",
    ),
    ChartTemplate(
        POLICY,
        "Pathway distance",
        ("eval/*/pathway_distance",),
        "Distance between the experts that different problems use, from 0 to 1, on a fixed set.",
    ),
    ChartTemplate(
        POLICY,
        "Pathway consistency",
        ("eval/*/pathway_consistency",),
        "Cosine similarity of the experts chosen in neighbouring layers, on the same set.",
    ),
    ChartTemplate(
        LEARNER, "Gradient norm", ("learner/grad_norm",), "Norm of the gradient before clipping."
    ),
    ChartTemplate(
        LEARNER,
        "Learning rate",
        ("learner/lr",),
        "Step size of the optimizer.",
        "scientific",
    ),
    ChartTemplate(
        LEARNER,
        "Skipped updates, cumulative",
        ("learner/skipped_updates",),
        "Updates since the run began that were skipped because the gradient was not finite.",
        "count",
    ),
    ChartTemplate(
        LEARNER,
        "Padding",
        ("learner/pad_fraction",),
        "Fraction of the computed positions that were padding.",
        "fraction",
    ),
    *(
        ChartTemplate(
            SECOND,
            title,
            (f"check/{error}", f"check/{error}_least", f"check/{error}_most"),
            f"Of the {kind} answers of the run so far, the share that the second judge would have "
            f"{other}; band: 95 % interval of the draw. At least and at most: whatever it had said "
            "where it could not tell.",
            "fraction",
            dashed=("*_least", "*_most"),
            interval=(f"check/{error}_low", f"check/{error}_high"),
        )
        for title, error, kind, other in (
            ("Wrongly accepted, estimated", "false_accepts", "accepted", "rejected"),
            ("Wrongly rejected, estimated", "false_rejects", "rejected", "accepted"),
        )
    ),
    ChartTemplate(
        SECOND,
        "Verdicts disputed, estimated",
        ("check/disputed",),
        "Share of all verdicts of the run so far, each drawn one counted by its inverse "
        "probability.",
        "fraction",
    ),
    ChartTemplate(
        SECOND,
        "Judged again, cumulative",
        ("check/*_judged", "check/*_disputed", "check/*_undecided", "check/timeouts"),
        "Verdicts that were drawn, those that the second judge contradicts, and those of which it "
        "says nothing.",
        "count",
    ),
    ChartTemplate(
        TIME,
        "Seconds per phase",
        (
            "time/generate",
            "time/verify",
            "time/statistics",
            "time/update",
            "time/evaluate",
            "time/checkpoint",
            "time/*",
        ),
        "Wall-clock seconds of a step by phase.",
        "seconds",
        kind="stack",
        except_=("time/step", *ONCE),
    ),
    ChartTemplate(
        TIME,
        "Tokens per second",
        (
            "throughput/generated_tokens_per_second",
            "throughput/trained_tokens_per_second",
            "throughput/*_tokens_per_second",
        ),
        "Tokens sampled per second of generation, and trained on per second of update.",
        "count",
    ),
    ChartTemplate(TIME, "Memory", ("memory/*_gib",), "GiB in use."),
)


def plan_charts(columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """The charts for which ``columns`` has data, in reading order.

    Returns:
        One mapping per chart: ``section``, ``group`` (heading inside "More"), ``title``, ``help``,
        ``format``, ``kind``, ``alarms`` (metrics that are 1 where an alarm about the chart held)
        and ``series``, a list of ``{"metric", "label", "color", "dashed",
        "band", "interval"}``.
    """
    there = [name for name, column in columns.items() if any(v is not None for v in column)]
    charts, used = [], set()
    for template in TEMPLATES:
        names = [name for name in _matches(template, there) if name not in used]
        used |= {*names, template.band, *(template.interval or ())}
        charts += [_chart(part, own, columns) for part, own in _parts(template, names)]
    total = {"time/step"} if "time/generate" in there else set()
    rest = sorted(
        name
        for name in there
        if name not in used | total
        and not any(fnmatch.fnmatch(name, p) for p in (COUNTS, MARKS, *ONCE))
    )
    return charts + [_chart(_own(name), [name], columns) for name in rest]


def plan_overlays(columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """A chart for each metric, in which the curves of several runs lie over each other.

    Returns:
        One mapping per metric, in the order of :func:`plan_charts`: ``section``, ``group``,
        ``title``, ``help``, ``format`` and ``metric``.
    """
    return [
        {
            "section": chart["section"],
            "group": chart["group"],
            "title": chart["title"]
            if len(chart["series"]) == 1
            else f"{chart['title']}: {series['label']}",
            "help": re.sub(r"; band: .*", ".", chart["help"]) if len(chart["series"]) == 1 else "",
            "format": chart["format"],
            "metric": series["metric"],
        }
        for chart in plan_charts(columns)
        for series in chart["series"]
    ]


def _matches(template: ChartTemplate, there: Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in template.metrics:
        for name in fnmatch.filter(there, pattern):
            excepted = any(fnmatch.fnmatch(name, other) for other in template.except_)
            if name not in found and not excepted:
                found.append(name)
    return found


def _parts(template: ChartTemplate, names: Sequence[str]) -> list[tuple[ChartTemplate, list[str]]]:
    """The charts of a template, each with its metrics."""
    if not template.each:
        return [(template, list(names))] if names else []
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault("/".join(name.split("/")[1:-1]), []).append(name)
    return [
        (replace(template, title=f"{template.title} {part}"), own) for part, own in parts.items()
    ]


def _own(name: str) -> ChartTemplate:
    title = _words(name.partition("/")[2] or name)
    return ChartTemplate("More", title[:1].upper() + title[1:], (name,), name)


def _chart(
    template: ChartTemplate, names: Sequence[str], columns: Mapping[str, Column]
) -> dict[str, Any]:
    band = template.band if template.band in columns else None
    ends = template.interval if template.interval and names[0] == template.metrics[0] else None
    shades = template.kind == "histogram"
    sets = list(dict.fromkeys(_label(name) for name in columns if _about_set(name)))
    return {
        "section": template.section,
        "group": _prefix(names[0]) if template.section == "More" else "",
        "title": template.title,
        "help": template.help,
        "format": template.format,
        "kind": "stack" if shades else template.kind,
        "shades": shades,
        "alarms": marks_of(names, columns),
        "series": [
            {
                "metric": name,
                "label": _label(name),
                "color": index + 1 if shades else _color(name, index, sets),
                "dashed": any(fnmatch.fnmatch(name, pattern) for pattern in template.dashed),
                "band": band if index == 0 else None,
                "interval": ends if index == 0 else None,
            }
            for index, name in enumerate(names)
        ],
    }


def _color(name: str, index: int, sets: Sequence[str]) -> int:
    """A colour from 1 to 8. An evaluation set has the same colour in all charts, never
    training's."""
    if _about_set(name):
        return sets.index(_label(name)) % 7 + 2
    return 1 if name in LABELS and LABELS[name].startswith("training") else index % 8 + 1


def _about_set(name: str) -> bool:
    """Whether a metric is about an evaluation set as a whole and not about one word in it."""
    return name.startswith("eval/") and "/words_" not in name.removesuffix("_any")


def _prefix(name: str) -> str:
    return name.partition("/")[0] if "/" in name else "other"


LABELS = {
    "completion/length_mean": "training, mean",
    "completion/length_max": "training, longest",
    "completion/truncated": "training",
    "reward/correct": "training",
    "words/any": "training",
    **{
        f"check/false_{error}{end}": label
        for error in ("accepts", "rejects")
        for end, label in (("", "estimate"), ("_least", "at least"), ("_most", "at most"))
    },
    "lp_reg/passed": "pass the noise filter",
    "lp_reg/kept_mass": "mean kept mass",
    "policy/kl_reference": "to the reference",
    "policy/kl_old": "to the sampling policy",
    "throughput/generated_tokens_per_second": "generated",
    "throughput/trained_tokens_per_second": "trained",
    "preference/chosen_logps": "chosen",
    "preference/rejected_logps": "rejected",
    "preference/margin": "training",
    "preference/reward_accuracy": "training",
    "preference/loss": "training",
    "prm/accuracy": "sign",
    "prm/pair_accuracy": "pairs of a prompt",
    "prm/auc_within": "mean over prompts",
    "prm/accuracy_before": "sign, before its step",
    "prm/reward_right": "right",
    "prm/reward_wrong": "wrong",
    "prm/drift": "size",
    "prm/log_ratio": "mean",
    "sft/loss": "training",
    "sft/token_accuracy": "training",
    "memory/rss_gib": "resident",
}


def _label(name: str) -> str:
    """The label of a series in its chart: the name of a set, or the words of the metric."""
    if name in LABELS:
        return LABELS[name]
    *parts, last = name.split("/")
    if re.fullmatch(r"tenth_\d", last):
        return f"{int(last[-1]) / 10:.1f}"
    if parts[:1] == ["eval"] and last.startswith("words_") and last != "words_any":
        return _words(last.removeprefix("words_"))
    if parts[:1] == ["watch"] or (parts[:1] == ["eval"] and len(parts) > 1):
        return "/".join(parts[1:])
    return _words(last)


def _words(name: str) -> str:
    return name.replace("_", " ").strip() or name
