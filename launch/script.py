"""The sbatch script of a job, from a template, and what each node will run, for people."""

import shlex
from importlib.resources import files
from pathlib import Path

import jinja2

from launch.job import Job, learner_command, server_command
from launch.settings import Container
from launch.words import fill, shell_command

_TEMPLATE = "templates/job.sh.j2"
_AFTER_S = 15


def render_script(job: Job) -> str:
    """The script, to be handed to sbatch or read."""
    settings, site = job.settings, job.settings.site
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # not {#, which is the length of an array
        comment_end_string="#>",
        autoescape=False,  # a shell is no HTML: everything goes through q
    )
    environment.filters["q"] = shlex.quote
    template = environment.from_string(files("launch").joinpath(_TEMPLATE).read_text("utf-8"))
    gpus = settings.tensor_parallel if settings.gpus_per_node else 0
    return template.render(
        directives=directives(job),
        summary=summary(job),
        workdir=job.workdir,
        folder=job.folder,
        python=job.python,
        learner_nodes=settings.learner_nodes,
        rollout_nodes=settings.rollout_nodes,
        servers=settings.servers if settings.rollout_nodes else 0,
        server_port=settings.server_port,
        main_port=settings.main_port,
        deepspeed=job.distributed == "DEEPSPEED",
        shared_timeout=settings.shared_timeout_s,
        # After the other way of finding out, which names the node that does not share the folder.
        meeting_timeout=settings.shared_timeout_s + _AFTER_S,
        start_timeout=settings.start_timeout_s,
        learner=shell_command(learner_command(job), indent=" " * 8),
        server=shell_command(server_command(job), indent=" " * 8) if settings.rollout_nodes else "",
        gpus_per_server=gpus,
        all_gpus=",".join(map(str, range(settings.gpus_per_node))),
        environment=sorted(site.environment.items()),
        modules=site.modules,
        setup=site.setup,
        container=_container(site.container, job),
        resume=job.resume,
        requeue=settings.requeue,
        retries=settings.retries,
    )


def directives(job: Job) -> list[str]:
    """Options of sbatch; every value was held to harmless characters when it was read."""
    settings, site = job.settings, job.settings.site
    found = [f"--job-name={job.name}", f"--nodes={settings.nodes}", "--ntasks-per-node=1"]
    gpus = settings.gpus_per_node
    if gpus and site.gpu_request != "none":
        gres = site.gpu_request == "gres"
        found.append(f"--gres=gpu:{gpus}" if gres else f"--gpus-per-node={gpus}")
    if settings.cpus_per_node is not None:
        found.append(f"--cpus-per-task={settings.cpus_per_node}")
    for name in ("partition", "account", "qos", "constraint", "time"):
        value = getattr(site, name)
        if value is not None:
            found.append(f"--{name}={value}")
    if site.exclusive:
        found.append("--exclusive")
    found += [
        f"--output={job.folder}/job-%j.log",
        "--open-mode=append",
        f"--signal=B:USR1@{settings.notice_s}",
        "--requeue" if settings.requeue else "--no-requeue",
    ]
    return [*found, *site.sbatch]


def summary(job: Job) -> str:
    """Roles in one line."""
    settings = job.settings
    text = f"{_count(settings.learner_nodes, 'learner node')} x {settings.processes} processes"
    if not settings.rollout_nodes:
        return f"{text}; the recipe's own engine samples."
    return f"{text}; {_count(settings.rollout_nodes, 'rollout node')} x {settings.servers} servers."


def describe_nodes(job: Job) -> str:
    """Each node's commands, with NODE0, NODE1, ... for what only the job will know."""
    settings = job.settings
    lines = [summary(job)]
    servers = [
        f"http://NODE{number}:{settings.server_port + index}"
        for number in range(settings.learner_nodes, settings.nodes)
        for index in range(settings.servers)
    ]
    values = {
        "main_address": "NODE0",
        "servers": ", ".join(servers),
        "logs": "LOGS",
        "weights": f"{job.folder}/weights",
    }
    rest = ["--resume"] if job.resume else []
    for number in range(settings.learner_nodes):
        words = fill(learner_command(job), {**values, "rank": str(number)}, rest)
        lines.append(f"NODE{number} (learner {number}): {shlex.join(words)}")
    for number in range(settings.learner_nodes, settings.nodes):
        for index in range(settings.servers):
            late = {"host": f"NODE{number}", "port": str(settings.server_port + index)}
            words = fill(server_command(job), {**values, **late})
            lines.append(f"NODE{number} (server {index}): {shlex.join(words)}")
    return "\n".join(lines)


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _container(container: Container | None, job: Job) -> str:
    """What stands between srun's options and the command; ends in a space if anything."""
    if container is None:
        return ""
    mounts = [job.workdir, job.folder, str(Path(job.config).parent), *container.mounts]
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in dict.fromkeys(mounts)]
    if container.runtime == "pyxis":
        words = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
        words.append(f"--container-workdir={job.workdir}")
    else:
        nv = ["--nv"] if job.settings.gpus_per_node else []
        words = ["apptainer", "exec", *nv, "--bind", ",".join(mounts), container.image]
    return shlex.join(words) + " "
