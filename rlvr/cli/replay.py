"""The verb that samples recorded completions again: replay."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from rlvr.rl.replay import Replayed

app = typer.Typer(rich_markup_mode=None)


@app.command()
def replay(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)
    ],
    completion: Annotated[
        list[str],
        typer.Option(
            metavar="ID",
            help="STEP/POSITION/SAMPLE, as in RUN/ledger.jsonl; may be given several times.",
            show_default=False,
        ),
    ],
) -> None:
    """Sample completions of a run again, and compare them with its ledger.

    The nearest checkpoint at or before the weights that sampled them is loaded and, where it is an
    earlier one, trained forward in a temporary folder; RUN itself is only read. The weights are
    compared with the ledger's fingerprint before anything is sampled.

    Exit code 1 says that a completion came out otherwise, or could not be sampled again. Ids and
    log-probabilities are the same bits with the transformers engine on the same machine and
    versions; vLLM gives the same ids only mostly (docs/rollout.md). log.ledger=tokens in the
    recipe lets a replay say where a difference begins.

    Example: rlvr replay runs/smollm2-arithmetic --completion 12/3/0
    """
    quiet_libraries()
    from rlvr.rl.replay import replay_completions

    found = replay_completions(run, completion)
    for result in found:
        typer.echo(described(result))
    if not all(result.same for result in found):
        raise typer.Exit(1)


def described(result: "Replayed") -> str:
    """One line about a completion that was sampled again."""
    start = f"{result.id} (weights of version {result.version}): "
    if result.fault is not None:
        return f"{start}not sampled again: {result.fault}"
    if result.same:
        return f"{start}the same ids and log-probabilities"
    what = "log-probabilities differ" if result.same_ids else "ids differ"
    where = "" if result.first_difference is None else f" from token {result.first_difference} on"
    apart = result.of_sum if result.largest is None else result.largest
    which = "in sum" if result.largest is None else "at most, where ids are the same"
    by = "" if apart is None else f"; log-probabilities are {apart:.3g} nats apart {which}"
    return f"{start}{what}{where}{by}"
