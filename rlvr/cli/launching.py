"""The verb of clusters: launch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.job import Job

app = typer.Typer(rich_markup_mode=None)


@app.command()
def launch(
    recipe: Annotated[Path, typer.Argument(help="YAML file (see recipes/).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as of rlvr train."),
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Queue a SLURM job.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Start the same roles on this machine.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script and each node's command, then stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    nodes: Annotated[int | None, typer.Option(help="Nodes altogether; 1 by default.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of a node; 8 by default, 0 runs on CPUs.")
    ] = None,
    rollout_nodes: Annotated[
        int | None,
        typer.Option(help="Nodes out of them that run rlvr serve; 0: the recipe's own engine."),
    ] = None,
    processes_per_node: Annotated[
        int | None, typer.Option(help="Learner processes of a node; by default one a GPU.")
    ] = None,
    accelerate: Annotated[
        str | None,
        typer.Option(
            help="Name of recipes/accelerate, such as zero3, or a file; zero2 by default."
        ),
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(help="GPUs that a server spreads the model over; 1 by default.")
    ] = None,
    servers_per_node: Annotated[
        int | None, typer.Option(help="Servers of a rollout node; as many as its GPUs hold.")
    ] = None,
    server_threads: Annotated[
        int | None, typer.Option(help="Threads of a server on a CPU.")
    ] = None,
    cpus_per_node: Annotated[int | None, typer.Option(help="Processor cores to ask for.")] = None,
    weight_transfer: Annotated[
        str | None, typer.Option(help="folder (on shared storage) or nccl (GPU to GPU).")
    ] = None,
    requeue: Annotated[
        bool | None,
        typer.Option(
            "--requeue/--no-requeue",
            help="Queue again, and go on from the newest checkpoint, after pre-emption, the time "
            "limit or the loss of a node; by default yes.",
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(help="How often a job that fails may queue again, too; 0 by default."),
    ] = None,
    notice: Annotated[
        int | None,
        typer.Option(help="Seconds before the time limit at which the learner saves; 300."),
    ] = None,
    start_timeout: Annotated[
        int | None, typer.Option(help="Seconds until all servers have to be healthy; 900.")
    ] = None,
    shared_timeout: Annotated[
        int | None, typer.Option(help="Seconds for a file to be seen on all nodes; 60.")
    ] = None,
    main_port: Annotated[
        int | None, typer.Option(help="Port where the learner's processes meet; 29500.")
    ] = None,
    server_port: Annotated[
        int | None, typer.Option(help="Port of a node's first server; 8000.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job; the recipe's.")] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            help="The cluster's YAML file: partition, account, modules, container, ...; "
            "by default that of RLVR_SITE."
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features that nodes need.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit, such as 24:00:00.")] = None,
    container: Annotated[str | None, typer.Option(help="Image that every role runs in.")] = None,
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

    if local and gpus_per_node is None:
        gpus_per_node = _gpus_here() // (nodes or 1)
    options = {
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "rollout_nodes": rollout_nodes,
        "processes_per_node": processes_per_node,
        "accelerate": accelerate,
        "tensor_parallel": tensor_parallel,
        "servers_per_node": servers_per_node,
        "server_threads": server_threads,
        "cpus_per_node": cpus_per_node,
        "weight_transfer": weight_transfer,
        "requeue": requeue,
        "retries": retries,
        "notice_s": notice,
        "start_timeout_s": start_timeout,
        "shared_timeout_s": shared_timeout,
        "main_port": main_port,
        "server_port": server_port,
        "name": name,
    }
    of_site = {
        "partition": partition,
        "account": account,
        "qos": qos,
        "constraint": constraint,
        "time": time,
    }
    settings = load_launch(options, site, of_site, container)
    job = build_job(settings, recipe, overrides or [], resume=resume, loopback=local)
    if dry_run:
        _show(job, local)
        return
    from rlvr.train.run_folder import check_folder

    check_folder(job.resolved, resume)
    if local:
        from launch.local import LocalRun

        raise typer.Exit(LocalRun(job).run())
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
    import torch

    return torch.cuda.device_count()
