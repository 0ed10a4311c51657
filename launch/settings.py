"""What a launch may say: sizes and limits, and what a site says once in a YAML file.

Values that end up in ``#SBATCH`` lines are read by SLURM, not by a shell, and cannot be quoted
reliably there; so they are held to characters that mean nothing in either. All others are quoted
where the script is rendered.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from rlvr.settings import Settings, load_settings

SITE_VARIABLE = "RLVR_SITE"
_WORD = re.compile(r"[\w.,+:/@%=\[\]*&|~-]+", re.ASCII)
_TIME = re.compile(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise ValueError(
            "it goes into an #SBATCH line, which takes letters, digits and . , + : / @ % = [ ] * & "
            "| ~ - alone; leave out spaces, quotes and everything else"
        )
    return value


def _one_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("it is to be one line of printable characters")
    return value


def _time(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise ValueError("it is no time limit such as 90 (minutes), 24:00:00 or 2-12:00:00")
    return value


def _directive(value: str) -> str:
    if not value.startswith("--"):
        raise ValueError("an option of sbatch begins with --, such as --mem=0")
    return _word(value)


Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_one_line)]
TimeLimit = Annotated[str, AfterValidator(_time)]
Directive = Annotated[str, AfterValidator(_directive)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Container(Settings):
    """An image that every role runs in; bash and an installed rlvr have to be inside."""

    image: Line
    """Image, as the runtime names it."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis adds options to srun; apptainer starts every role under `apptainer exec`."""
    mounts: tuple[Line, ...] = ()
    """Folders to show inside, each as OUTSIDE or OUTSIDE:INSIDE. The folder that the job starts in
    is always there."""


class Site(Settings):
    """What is the same for every job of a cluster: one YAML file, written once."""

    partition: Word | None = None
    """Partition; null is the cluster's default."""
    account: Word | None = None
    """Account to charge."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Features that nodes need, such as a100|h100."""
    time: TimeLimit | None = None
    """Time limit, such as 24:00:00; null is the partition's."""
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How GPUs are asked for: --gpus-per-node=N, --gres=gpu:N, or not at all."""
    exclusive: bool = True
    """Whether nodes are asked for whole."""
    sbatch: tuple[Directive, ...] = ()
    """Further options of sbatch, such as --mem=0."""
    modules: tuple[Line, ...] = ()
    """Environment modules to load, such as cuda/12.8."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every role, such as NCCL_SOCKET_IFNAME: ib0. No secrets: they stand
    in the script."""
    setup: tuple[Line, ...] = ()
    """Lines of shell that the script runs as they are, such as source /shared/venv/bin/activate."""
    python: Line | None = None
    """Python that has rlvr installed, on every node; null is the one that renders the script, or
    `python` in a container."""
    container: Container | None = None
    """Image that the roles run in."""

    @model_validator(mode="after")
    def _variables_are_variables(self) -> "Site":
        for name, value in self.environment.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"environment names {name!r}, which no shell takes for a variable")
            if "\0" in value or "\n" in value:
                raise ValueError(f"environment.{name} has a line break in it; give one line")
        return self


class LaunchSettings(Settings):
    """How large a job is and how it behaves."""

    nodes: int = Field(1, ge=1, le=4096)
    """Nodes altogether."""
    gpus_per_node: int = Field(8, ge=0, le=64)
    """GPUs of a node; 0 runs on CPUs."""
    rollout_nodes: int = Field(0, ge=0)
    """Nodes out of them that serve completions with vLLM; 0 leaves the recipe's own engine."""
    processes_per_node: int | None = Field(None, ge=1)
    """Learner processes of a node; null is one a GPU."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one server spreads the model over."""
    servers_per_node: int | None = Field(None, ge=1)
    """Servers of a rollout node; null is as many as its GPUs hold."""
    server_threads: int | None = Field(None, ge=1)
    """Threads of a server on a CPU."""
    cpus_per_node: int | None = Field(None, ge=1)
    """Processor cores to ask for; null leaves it to SLURM."""
    accelerate: str | None = None
    """Accelerate's configuration: a file, or a name in launch/accelerate such as zero3; null is
    zero2 for several processes, cpu or single_gpu for one."""
    weight_transfer: Literal["folder", "nccl"] = "folder"
    """How new weights reach the servers: through a folder on shared storage, or GPU to GPU."""
    name: Word | None = None
    """Name of the job; null is the recipe's."""
    requeue: bool = True
    """Whether a job that was pre-empted, ran out of time or lost a node queues again and goes on
    from its newest checkpoint."""
    retries: int = Field(0, ge=0, le=100)
    """A job that fails queues again, too, as long as it was started anew fewer times than this."""
    notice_s: int = Field(300, ge=10, le=65535)
    """Seconds before the time limit at which the learner is told to save and stop. It has to cover
    an update and a checkpoint."""
    main_port: Port = 29500
    """Port of the first learner node at which all processes meet."""
    server_port: Port = 8000
    """Port of a node's first server; the next ones count up."""
    start_timeout_s: int = Field(900, ge=1)
    """Seconds within which all servers have to be healthy."""
    shared_timeout_s: int = Field(60, ge=1)
    """Seconds within which what one node writes has to be seen by all."""
    site: Site = Site()
    """The cluster."""

    @model_validator(mode="after")
    def _possible(self) -> "LaunchSettings":
        for fault in _impossible(self):
            raise ValueError(fault)
        return self

    @property
    def learner_nodes(self) -> int:
        """Nodes that learn."""
        return self.nodes - self.rollout_nodes

    @property
    def processes(self) -> int:
        """Learner processes of a node."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def servers(self) -> int:
        """Servers of a rollout node."""
        return self.servers_per_node or max(1, self.gpus_per_node // self.tensor_parallel)


def _impossible(settings: LaunchSettings) -> list[str]:
    faults = []
    if settings.rollout_nodes >= settings.nodes:
        faults.append(
            f"rollout_nodes = {settings.rollout_nodes} of nodes = {settings.nodes} leave none to "
            "learn; give one node more"
        )
    gpus, wanted = settings.gpus_per_node, settings.servers * settings.tensor_parallel
    if gpus and settings.rollout_nodes and wanted > gpus:
        faults.append(
            f"servers_per_node x tensor_parallel = {wanted} GPUs are more than gpus_per_node = "
            f"{gpus}; lower one"
        )
    if gpus and settings.processes > gpus:
        faults.append(
            f"processes_per_node = {settings.processes} are more than gpus_per_node = {gpus}; "
            "every learner process needs a GPU of its own"
        )
    if settings.weight_transfer == "nccl" and not gpus:
        faults.append(
            "weight_transfer = 'nccl' goes from GPU to GPU, and gpus_per_node is 0; use folder"
        )
    if settings.retries and not settings.requeue:
        faults.append(f"retries = {settings.retries} queue again what requeue = false does not")
    last = settings.server_port + settings.servers - 1
    if settings.rollout_nodes and last > 65535:
        faults.append(f"server_port = {settings.server_port} leaves no room for {last}; lower it")
    return faults


def load_launch(
    options: Mapping[str, Any],
    site: Path | None = None,
    site_options: Mapping[str, Any] | None = None,
    image: str | None = None,
) -> LaunchSettings:
    """Options of the command line over a site's file.

    Args:
        options: Fields of :class:`LaunchSettings`; None is left out.
        site: The site's YAML file; None is that of ``RLVR_SITE``, or no file.
        site_options: Fields of :class:`Site` that win over the file's; None is left out.
        image: Container image that wins over the file's; runtime and mounts stay.

    Raises:
        ValueError: A field that is not as it has to be, by name; a file that is not there.
    """
    named = os.environ.get(SITE_VARIABLE)
    site = site or (Path(named) if named else None)
    if site is not None and not site.is_file():
        raise ValueError(
            f"site {str(site)!r} is not a file; give a YAML file with --site or {SITE_VARIABLE} "
            "(docs/cluster.md)"
        )
    read = load_settings(Site, site if site is not None else {})
    fields = read.model_dump(mode="json") | _given(site_options or {})
    if image is not None:
        fields["container"] = {**(fields["container"] or {}), "image": image}
    return load_settings(LaunchSettings, {**_given(options), "site": fields})


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
