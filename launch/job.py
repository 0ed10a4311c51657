"""A job: a recipe and where it runs, as roles with a command each.

    learner   accelerate launch ... -m rlvr train RECIPE, once on every learner node
    server    rlvr serve MODEL ..., as many on every rollout node as its GPUs hold

Both run under ``python -m launch.node``, which passes a notice to stop on to the processes that can
act on it, and leaves no process behind. Under SLURM and on one machine the commands are the same.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

from launch.settings import LaunchSettings
from launch.words import REST, Late, Word, fill
from rlvr.rl.recipe import RLRecipe
from rlvr.runs.base_recipe import BaseRecipe
from rlvr.settings import load_settings
from rlvr.tasks.registry import task_of

FOLDER = "launch"
"""In the run's folder: scripts and logs of its jobs."""
_CONFIGS = Path(__file__).parent / "accelerate"
# Checked in place of addresses that only the job will know.
_STAND_IN = "http://rollout-node:8000"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a script or a local launch is made from.

    Attributes:
        settings: Sizes and limits.
        recipe: File of the recipe.
        overrides: The user's ``KEY=VALUE``.
        workdir: Folder that every role starts in; relative paths are seen from there.
        output: The run's folder, as the recipe has it.
        python: Python of every node.
        config: Accelerate's configuration file.
        distributed: Its ``distributed_type``.
        resume: Go on from a checkpoint at the first start, too.
        parent: ``RUN[@STEP]`` to branch from; None begins with the recipe's model.
        resolved: The whole recipe, as the job will read it but for addresses.
    """

    settings: LaunchSettings
    recipe: str
    overrides: tuple[str, ...]
    workdir: str
    output: str
    python: str
    config: str
    distributed: str
    resolved: BaseRecipe
    resume: bool = False
    parent: str | None = None

    @property
    def name(self) -> str:
        """Of the job."""
        return self.settings.name or "".join(
            letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-"
            for letter in Path(self.recipe).stem
        )

    @property
    def folder(self) -> str:
        """Scripts and logs, an absolute path."""
        return str(Path(self.workdir) / self.output / FOLDER)


def build_job(
    settings: LaunchSettings,
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    workdir: Path | None = None,
    resume: bool = False,
    parent: str | None = None,
    loopback: bool = False,
) -> Job:
    """See that a recipe can be launched so.

    Args:
        settings: Where it is to run.
        recipe: YAML file.
        overrides: ``KEY=VALUE`` as of ``rlvr train``.
        workdir: Folder that the roles start in; None is this one.
        resume: Go on from the newest checkpoint.
        parent: ``RUN[@STEP]`` to branch from.
        loopback: All roles are on this machine.

    Raises:
        ValueError: Recipe, configuration or their combination is impossible.
    """
    resolved = _resolve(settings, recipe, overrides)
    if isinstance(resolved, RLRecipe) and not loopback and not settings.rollout_nodes:
        _check_own_servers(resolved)
    config = find_config(settings)
    distributed = _distributed_type(config, settings)
    _check_recipe(resolved, config, settings)
    where = (workdir or Path.cwd()).absolute()
    _check_characters(where / str(resolved.output))
    container = settings.site.container is not None
    return Job(
        settings=settings,
        recipe=str(recipe),
        overrides=tuple(overrides),
        workdir=str(where),
        output=str(resolved.output),
        python=settings.site.python or ("python" if container else sys.executable),
        config=str(config),
        distributed=distributed,
        resolved=resolved,
        resume=resume,
        parent=parent,
    )


def _resolve(settings: LaunchSettings, recipe: Path, overrides: Sequence[str]) -> BaseRecipe:
    """The recipe as the job will read it, with stand-ins for what only the job will know."""
    task = task_of(recipe, overrides)
    added: list[str] = []
    if settings.rollout_nodes:
        if task.name != "rl":
            raise ValueError(
                f"rollout_nodes = {settings.rollout_nodes}, but a recipe of task {task.name!r} "
                "samples nothing; set it to 0"
            )
        added = fill(_engine(settings), {"servers": _STAND_IN, "weights": "."})
    return cast(BaseRecipe, load_settings(task.schema, recipe, [*overrides, *added]))


def learner_command(job: Job) -> list[Word]:
    """Of one learner node; late: ``rank``, ``main_address``, ``logs``, ``servers``, ``weights``."""
    settings = job.settings
    words: list[Word] = [job.python, "-m", "launch.node", "--stopped"]
    words += [Late("logs", after="/stopped"), "--", job.python]
    words += ["-m", "accelerate.commands.launch", "--config_file", job.config]
    words += ["--num_machines", str(settings.learner_nodes)]
    words += ["--num_processes", str(settings.learner_nodes * settings.processes)]
    words += ["--machine_rank", Late("rank"), "--main_process_ip", Late("main_address")]
    words += ["--main_process_port", str(settings.main_port)]
    if job.distributed == "DEEPSPEED":
        # Accelerate's default would log in to the other nodes by itself.
        words += ["--deepspeed_multinode_launcher", "standard"]
    words += ["-m", "rlvr", "train", job.recipe, *job.overrides]
    if job.parent is not None:
        words += ["--from", job.parent]
    if settings.rollout_nodes:
        words += _engine(settings)
    return [*words, REST]


def _engine(settings: LaunchSettings) -> list[Word]:
    """What is said to the training of servers that the launch starts."""
    words: list[Word] = ["rollout.engine.name=vllm_server"]
    if settings.weight_transfer == "nccl":
        words.append("rollout.engine.weight_transfer=nccl")
    words.append(f"rollout.engine.start_timeout_s={settings.start_timeout_s}.0")
    words.append("rollout.engine.api_key_variable=VLLM_API_KEY")
    words.append(Late("servers", "rollout.engine.addresses=[", "]"))
    words.append(Late("weights", "rollout.engine.weights_folder="))
    return words


def server_command(job: Job) -> list[Word]:
    """Of one server; late: ``host``, ``port`` and ``weights``."""
    settings, recipe = job.settings, job.resolved
    assert isinstance(recipe, RLRecipe), "only reinforcement learning samples"
    words: list[Word] = [job.python, "-m", "launch.node", "--"]
    words += [job.python, "-m", "rlvr", "serve", recipe.model.path]
    words += ["--host", Late("host"), "--port", Late("port"), "--dtype", recipe.model.precision]
    words += ["--max-model-len", str(max(16, recipe.longest_sequence))]
    words += ["--weights-folder", Late("weights")]
    if settings.server_threads is not None:
        words += ["--threads", str(settings.server_threads)]
    if settings.weight_transfer == "nccl":
        words.append("--nccl")
    if settings.tensor_parallel > 1:
        words += ["--tensor-parallel-size", str(settings.tensor_parallel)]
    return words


def find_config(settings: LaunchSettings) -> Path:
    """Accelerate's configuration file.

    Raises:
        ValueError: There is none of that name.
    """
    one = settings.learner_nodes * settings.processes == 1
    name = settings.accelerate
    if name is None:
        name = ("single_gpu" if settings.gpus_per_node else "cpu") if one else "zero2"
    if "/" in name or name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ValueError(f"accelerate {name!r} is not a file; give a YAML file of accelerate's")
        return Path(name).absolute()
    path = _CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in _CONFIGS.glob("*.yaml")))
        raise ValueError(
            f"accelerate {name!r} is no configuration of launch/accelerate; there are {known}"
        )
    return path


def _check_recipe(recipe: BaseRecipe, config: Path, settings: LaunchSettings) -> None:
    """Refuse what every process of the job would refuse when it starts.

    Raises:
        ValueError: The recipe does not go with the processes, or names an unknown reward function.
    """
    processes = settings.learner_nodes * settings.processes
    for fault in recipe.launch_faults(processes, _zero_stage(config)):
        raise ValueError(fault)
    if isinstance(recipe, RLRecipe):
        from rlvr.runs.function_calls import check_functions

        check_functions(recipe.reward.functions)


def _content(config: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"accelerate {str(config)!r} is not YAML: {error}") from None
    return content if isinstance(content, dict) else {"distributed_type": ""}


def _zero_stage(config: Path) -> int:
    """DeepSpeed's stage in a configuration that this launch reads; 0 where it has none."""
    content = _content(config)
    section = content.get("deepspeed_config")
    if content.get("distributed_type") != "DEEPSPEED" or not isinstance(section, dict):
        return 0
    stage = section.get("zero_stage", 0)
    return stage if isinstance(stage, int) else 0


def _distributed_type(config: Path, settings: LaunchSettings) -> str:
    found = str(_content(config).get("distributed_type", "NO"))
    count = settings.learner_nodes * settings.processes
    if found not in ("NO", "MULTI_GPU", "DEEPSPEED"):
        raise ValueError(
            f"accelerate {str(config)!r} has distributed_type {found!r}; the learner knows NO, "
            "MULTI_GPU and DEEPSPEED"
        )
    if found == "NO" and count > 1:
        raise ValueError(
            f"accelerate {config.stem!r} runs one process and the launch asks for {count}; use "
            "zero2, or multi_gpu"
        )
    return found


def _check_own_servers(recipe: RLRecipe) -> None:
    engine = recipe.rollout.engine
    if engine.name != "vllm_server":
        return
    hosts = [urlsplit(address).hostname or "" for address in engine.addresses]
    if all(host.startswith("127.") or host in ("localhost", "::1") for host in hosts):
        raise ValueError(
            f"rollout.engine.addresses = {list(engine.addresses)} are on the learner's own node, "
            "where a job starts no server; give rollout_nodes (--rollout-nodes 1)"
        )


def _check_characters(folder: Path) -> None:
    """SLURM reads the path of the log without a shell's quoting, and expands % and \\."""
    for letter in str(folder):
        if letter in " %\\\"'#$`" or not letter.isprintable():
            raise ValueError(
                f"output {str(folder)!r} holds {letter!r}, which SLURM does not take in the path "
                "of a log; choose another output"
            )
