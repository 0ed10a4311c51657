"""The verb of clusters: launch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlvr.cli.options import From, RecipeFile, Resume, grouped, option

if TYPE_CHECKING:
    from launch.job import Job

app = typer.Typer(rich_markup_mode=None)

_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as of rlvr train.")
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the script and each node's command, then stop.")
]


@dataclass(frozen=True)
class JobOptions:
    """Fields of :class:`launch.settings.LaunchSettings`."""

    nodes: int | None = option("Nodes altogether; 1 by default.")
    gpus_per_node: int | None = option("GPUs of a node; 8 by default, 0 runs on CPUs.")
    rollout_nodes: int | None = option(
        "Nodes out of them that run rlvr serve; 0: the recipe's own engine."
    )
    processes_per_node: int | None = option("Learner processes of a node; by default one a GPU.")
    accelerate: str | None = option(
        "Name of launch/accelerate, such as zero3, or a file; zero2 by default."
    )
    tensor_parallel: int | None = option("GPUs that a server spreads the model over; 1 by default.")
    servers_per_node: int | None = option("Servers of a rollout node; as many as its GPUs hold.")
    server_threads: int | None = option("Threads of a server on a CPU.")
    cpus_per_node: int | None = option("Processor cores to ask for.")
    weight_transfer: str | None = option("folder (on shared storage) or nccl (GPU to GPU).")
    requeue: bool | None = option(
        "Queue again, and go on from the newest checkpoint, after pre-emption, the time limit or "
        "the loss of a node; by default yes.",
        "--requeue/--no-requeue",
    )
    retries: int | None = option("How often a job that fails may queue again, too; 0 by default.")
    notice_s: int | None = option(
        "Seconds before the time limit at which the learner saves; 300.", "--notice"
    )
    start_timeout_s: int | None = option(
        "Seconds until all servers have to be healthy; 900.", "--start-timeout"
    )
    shared_timeout_s: int | None = option(
        "Seconds for a file to be seen on all nodes; 60.", "--shared-timeout"
    )
    main_port: int | None = option("Port where the learner's processes meet; 29500.")
    server_port: int | None = option("Port of a node's first server; 8000.")
    name: str | None = option("Name of the job; the recipe's.")


@dataclass(frozen=True)
class SiteOptions:
    """Fields of :class:`launch.settings.Site` that win over the site's file."""

    partition: str | None = option("Partition.")
    account: str | None = option("Account to charge.")
    qos: str | None = option("Quality of service.")
    constraint: str | None = option("Features that nodes need.")
    time: str | None = option("Time limit, such as 24:00:00.")


SiteFile = Annotated[
    Path | None,
    typer.Option(
        help="The cluster's YAML file: partition, account, modules, container, ...; by default "
        "that of RLVR_SITE."
    ),
]
Container = Annotated[str | None, typer.Option(help="Image that every role runs in.")]


@app.command()
@grouped
def launch(
    recipe: RecipeFile,
    overrides: _Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Queue a SLURM job.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Start the same roles on this machine.")
    ] = False,
    dry_run: _DryRun = False,
    resume: Resume = False,
    from_: From = None,
    *,
    of_job: JobOptions,
    site: SiteFile = None,
    of_site: SiteOptions,
    container: Container = None,
) -> None:
    """Train on a cluster: learner nodes under accelerate, rollout nodes serving with vLLM.

    A job that is pre-empted or runs out of time saves, queues again and goes on by itself; where a
    role fails the whole job does, and says which. docs/cluster.md leads from nothing to four nodes.

    Example: rlvr launch recipes/smollm2_arithmetic.yaml --slurm --nodes 4 --gpus-per-node 8
    --rollout-nodes 1 --time 12:00:00 --dry-run
    """
    if slurm == local:
        raise ValueError("give --slurm, to queue a job, or --local, to start the roles here")
    from launch.job import build_job
    from launch.settings import load_launch

    options: dict[str, Any] = vars(of_job)
    if local and of_job.gpus_per_node is None:
        options = options | {"gpus_per_node": _gpus_here() // (of_job.nodes or 1)}
    settings = load_launch(options, site, vars(of_site), container)
    words = overrides or []
    job = build_job(settings, recipe, words, resume=resume, parent=from_, loopback=local)
    if from_ is not None:
        _check_parent(job, from_)
    if dry_run:
        _show(job, local)
        return
    from rlvr.runs.run_folder import check_folder

    check_folder(job.resolved, resume)
    if local:
        from launch.local import LocalRun

        raise typer.Exit(LocalRun(job).run())
    _submit(job)


def _check_parent(job: "Job", text: str) -> None:
    """Refuse here what every process of the job would refuse.

    Raises:
        ValueError: The job cannot branch from that run.
    """
    from rlvr.runs.parent import Branch, Parent
    from rlvr.runs.run_folder import check_other_folder

    parent = Parent.parse(text)
    check_other_folder(job.resolved.output, parent)
    Branch.of(parent).check(job.resolved)


def _submit(job: "Job") -> None:
    from launch.submit import submit

    queued = submit(job)
    typer.echo(
        f"job {queued.number} is queued\nscript: {queued.script}\nlog:    {queued.log}\n"
        f"state:  squeue --job {queued.number}\nsave and queue again: "
        f"scancel --batch --signal=USR1 {queued.number}\nend:    scancel {queued.number}"
    )


def _show(job: "Job", local: bool) -> None:
    from launch.local import describe_roles
    from launch.script import describe_nodes, render_script

    if local:
        typer.echo(describe_roles(job))
    else:
        typer.echo(f"{render_script(job)}\n# -- each node's command: {describe_nodes(job)}")


def _gpus_here() -> int:
    drivers = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd")
    if not any(Path(place).exists() for place in drivers):
        return 0  # torch would say the same, seconds later
    import torch

    return torch.cuda.device_count()
