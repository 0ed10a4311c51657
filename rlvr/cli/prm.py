"""The verbs of reward models: ``rlvr prm rank``, ``score``, ``prefixes`` and ``locate``."""

from pathlib import Path
from typing import Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

prm_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help=(
        "Reward models: score the tokens and steps of sampled responses by an implicit process "
        "reward model, or whole responses by an explicit outcome model; rank responses by either "
        "(best of N), and locate first errors. Train one with rlvr train and task: prm or "
        "reward_model; a PRIME run leaves one in RUN/prm."
    ),
)

app = typer.Typer(rich_markup_mode=None)
app.add_typer(prm_app, name="prm")

_Responses = Annotated[
    list[Path],
    typer.Argument(
        exists=True, help="JSONL files of responses (prompt, response, correct), or run folders."
    ),
]
_Reference = Annotated[
    str | None,
    typer.Option(
        help="The model that its training started from; an explicit reward model has none."
    ),
]
_NoReference = Annotated[bool, typer.Option("--no-reference", help="Take log-probabilities alone.")]
_PromptTemplate = Annotated[
    str,
    typer.Option(help="How a prompt becomes tokens: a name or a YAML file; raw as it stands."),
]
_Steps = Annotated[
    str,
    typer.Option(help="blank_lines, numbered, lines, or a pattern at whose matches steps begin."),
]
_MicroBatch = Annotated[
    int,
    typer.Option(
        min=1,
        help="Most input positions run at once; a longer response is run in chunks of so many.",
    ),
]
_Engine = Annotated[
    str,
    typer.Option(
        help="What takes log-probabilities: learner (the model itself), or vllm (those of a "
        "prompt; model and reference one after the other)."
    ),
]
_ReferenceEngine = Annotated[
    str | None, typer.Option(help="The reference's, where it is another: learner or vllm.")
]
_EngineSettings = Annotated[
    list[str] | None,
    typer.Option("--engine-set", help="A setting of vLLM, as in rollout.engine: dtype=bfloat16."),
]


@prm_app.command("score")
def prm_score(
    responses: _Responses,
    model: Annotated[str, typer.Option(help="Folder or Hub id of the reward model.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    reference: _Reference = None,
    no_reference: _NoReference = False,
    template: _PromptTemplate = "raw",
    steps: _Steps = "blank_lines",
    tokens: _MicroBatch = 4096,
    engine: _Engine = "learner",
    reference_engine: _ReferenceEngine = None,
    engine_set: _EngineSettings = None,
) -> None:
    """Score responses: log-ratio of the reward model to its reference, by token and by step.

    Every row is written again with reward (their sum, in nats; times beta it is the reward),
    step_rewards, step_ends and token_rewards. An explicit model (task: reward_model) needs no
    reference and gives one reward. Labels are not needed. Example:
    rlvr prm score samples.jsonl --model runs/prm/model --reference tiny --out scored.jsonl
    """
    quiet_libraries()
    from rlvr.tasks.tools.score import Scoring, score_file

    options = (tokens, engine, reference_engine, tuple(engine_set or ()))
    how = Scoring(model, reference, no_reference, template, steps, *options)
    typer.echo(f"{score_file(responses, how, out)} responses: {out}")


@prm_app.command("rank")
def prm_rank(
    responses: _Responses,
    model: Annotated[
        str | None, typer.Option(help="Reward model; rows that are scored need none.")
    ] = None,
    reference: _Reference = None,
    no_reference: _NoReference = False,
    template: _PromptTemplate = "raw",
    steps: _Steps = "blank_lines",
    tokens: _MicroBatch = 4096,
    engine: _Engine = "learner",
    reference_engine: _ReferenceEngine = None,
    engine_set: _EngineSettings = None,
    values: Annotated[
        str, typer.Option(help="diff: rewards of steps; cumulative: values at their ends.")
    ] = "diff",
    aggregate: Annotated[str, typer.Option(help="A response's score: min, sum or last.")] = "min",
    vote_coefficient: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="The vote weighs an answer by sigmoid(this x score); by default 0.05, or 1 for "
            "an explicit model.",
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(min=0, help="Scale of rewards, for calibration; by default likewise."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="HTML file for the curves and the reliability plot.")
    ] = None,
) -> None:
    """Best of N by a reward model, next to majority vote, pass@N and a random choice.

    Works on any JSONL of several labelled responses to each problem: columns prompt, response and
    correct (or answer, a reference that the verifier judges by); extracted for votes; problem_id
    where prompts repeat. Rows that rlvr prm score has scored need no model. Example:
    rlvr prm rank samples.jsonl --model runs/prm/model --reference tiny
    """
    quiet_libraries()
    from rlvr.report.ranking import write_ranking_page
    from rlvr.tasks.tools.rank import method_labels, rank, rank_table, write_figures
    from rlvr.tasks.tools.score import Scoring, read_scored

    options = (tokens, engine, reference_engine, tuple(engine_set or ()))
    how = Scoring(model, reference, no_reference, template, steps, *options) if model else None
    found = rank(
        read_scored(responses, how),
        values=values,
        aggregate=aggregate,
        vote_coefficient=vote_coefficient,
        beta=beta,
    )
    typer.echo(rank_table(found))
    if out is not None:
        write_figures(found, out)
    if page is not None:
        typer.echo(f"page: {write_ranking_page(found, method_labels(found), page)}")


@prm_app.command("locate")
def prm_locate(
    solutions: Annotated[
        list[Path],
        typer.Argument(
            exists=True, help="JSONL files of solutions (prompt or problem, steps, label)."
        ),
    ],
    model: Annotated[str, typer.Option(help="Folder or Hub id of the reward model.")],
    reference: _Reference = None,
    no_reference: _NoReference = False,
    template: _PromptTemplate = "raw",
    steps: _Steps = "blank_lines",
    tokens: _MicroBatch = 4096,
    engine: _Engine = "learner",
    reference_engine: _ReferenceEngine = None,
    engine_set: _EngineSettings = None,
    tune: Annotated[
        list[Path] | None,
        typer.Option(help="Solutions to choose the threshold on; without, half of those given."),
    ] = None,
    values: Annotated[
        str, typer.Option(help="cumulative: prefix values at the ends of steps; diff: rewards.")
    ] = "cumulative",
    coefficient: Annotated[
        float, typer.Option(min=0, help="A step's score is sigmoid(this x its value in nats).")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Which half the threshold is chosen on.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
) -> None:
    """Locate the first wrong step of solutions, as ProcessBench does.

    A row holds the prompt (or problem), the steps as a list of texts (or a response, which --steps
    parts), and label: the index of the first wrong step from 0, or -1 where none is wrong. The
    prediction is the first step whose score falls below a threshold. The threshold is chosen on one
    half, and F1 (the harmonic mean of the accuracies on solutions with and without an error) is
    measured on the other. Example:
    rlvr prm locate solutions.jsonl --model runs/prm/model --reference tiny
    """
    quiet_libraries()
    from rlvr.tasks.tools.locate import locate, locate_table
    from rlvr.tasks.tools.rank import write_figures
    from rlvr.tasks.tools.score import Scoring

    options = (tokens, engine, reference_engine, tuple(engine_set or ()))
    how = Scoring(model, reference, no_reference, template, steps, *options)
    found = locate(
        solutions, how, tune=tune or (), values=values, coefficient=coefficient, seed=seed
    )
    typer.echo(locate_table(found))
    if out is not None:
        write_figures(found, out)


@prm_app.command("prefixes")
def prm_prefixes(
    responses: _Responses,
    model: Annotated[str, typer.Option(help="Folder or Hub id of the reward model.")],
    policy: Annotated[str, typer.Option(help="The model that completes the prefixes.")],
    reference: _Reference = None,
    no_reference: _NoReference = False,
    template: _PromptTemplate = "raw",
    steps: _Steps = "blank_lines",
    tokens: _MicroBatch = 4096,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prefix.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a completion.")] = 512,
    limit: Annotated[int, typer.Option(min=1, help="Responses whose prefixes are taken.")] = 100,
    beta: Annotated[
        float | None,
        typer.Option(min=0, help="Scale of rewards; by default 0.05, or 1 for an explicit model."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which completions are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG file for the reliability diagram.")] = None,
) -> None:
    """Does the value of a prefix say how often it is completed to a right answer?

    Cuts responses where steps end, has the policy complete every prefix, and holds the share that
    the verifier finds right (column answer) against sigmoid(beta x value). Example:
    rlvr prm prefixes samples.jsonl --model runs/prm/model --reference tiny --policy tiny
    """
    quiet_libraries()
    from rlvr.data.labelled_responses import load_responses
    from rlvr.tasks.tools.prefixes import (
        completion_rates,
        measure,
        prefixes_of,
        summary,
        write_figures,
    )
    from rlvr.tasks.tools.score import Scoring

    how = Scoring(model, reference, no_reference, template, steps, tokens)
    prefixes = prefixes_of(load_responses(responses, labelled=False), how, limit)
    rates = completion_rates(prefixes, policy, samples, max_tokens, seed)
    scale = beta if beta is not None else 1.0 if how.explicit else 0.05
    found = measure(prefixes, rates, samples, scale)
    typer.echo(summary(found))
    write_figures(found, prefixes, rates, out, plot)
