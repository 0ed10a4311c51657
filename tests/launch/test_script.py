"""The rendered script: what it was, that bash and shellcheck take it, and that values stay values.

To renew a golden file, delete it and run the tests twice: the first writes it and fails.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.script import describe_nodes, render_script
from tests.launch.conftest import ROOT

GOLDEN = Path(__file__).parent / "golden"
SIZES = {
    1: {"gpus_per_node": 1},
    2: {"rollout_nodes": 1, "cpus_per_node": 96},
    4: {"rollout_nodes": 1, "accelerate": "zero3", "retries": 2},
    16: {
        "rollout_nodes": 8,
        "tensor_parallel": 4,
        "accelerate": "zero2",
        "weight_transfer": "nccl",
        "requeue": False,
    },
}
SITES = {
    2: {"partition": "gpu", "account": "ml-research", "time": "12:00:00"},
    4: {
        "partition": "gpu",
        "time": "2-00:00:00",
        "modules": ["cuda/12.8"],
        "setup": ["source /shared/venv/bin/activate"],
        "environment": {"NCCL_SOCKET_IFNAME": "ib0", "WORDS": "a 'quoted' $HOME"},
    },
    16: {
        "qos": "long",
        "constraint": "h100|h200",
        "gpu_request": "gres",
        "sbatch": ["--mem=0"],
        "container": {"image": "/shared/images/rlvr 1.sqsh", "mounts": ["/data", "/a:/b"]},
    },
}


def script_of(make_job, nodes):
    job = make_job(nodes=nodes, site=SITES.get(nodes), **SIZES[nodes])
    # The checkout is somewhere else on every machine.
    return render_script(replace(job, config=job.config.replace(str(ROOT), "/shared/rlvr")))


def check_with(tool, script, *options):
    # shellcheck is installed with the tests' other tools, in the environment of this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    tool = shutil.which(tool, path=path) or tool
    done = subprocess.run(
        [tool, *options, "/dev/stdin"], input=script, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("nodes", SIZES)
def test_the_script_is_the_golden_one(make_job, nodes):
    golden, script = GOLDEN / f"{nodes}_nodes.sh", script_of(make_job, nodes)
    if not golden.exists():
        golden.write_text(script)
        pytest.fail(f"{golden.name} was missing and is written; look at it and keep it")
    assert script == golden.read_text(), f"if that is meant, delete golden/{golden.name} and rerun"


@pytest.mark.parametrize("nodes", SIZES)
def test_bash_reads_the_script(make_job, nodes):
    check_with("bash", script_of(make_job, nodes), "-n")


@pytest.mark.parametrize("nodes", SIZES)
def test_shellcheck_finds_nothing(make_job, nodes):
    check_with("shellcheck", script_of(make_job, nodes), "--shell=bash", "--severity=style")


HOSTILE = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "'; touch PWNED; '",
    '"; touch PWNED; "',
    "a\\'b\n touch PWNED",
    "{{ 7 * 7 }} ${HOME} && touch PWNED",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_is_taken_for_shell(make_job, value, tmp_path):
    """The learner's role is run with a Python that only prints what it was given."""
    show = tmp_path / "show me"
    show.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\nprintf "env:%s\\0" "$CUSTOM"\n')
    show.chmod(0o755)
    line = value.replace("\n", " ")
    job = make_job(
        f"model.path={repr_yaml(value)}",
        nodes=2,
        rollout_nodes=1,
        site={"python": str(show), "environment": {"CUSTOM": line}},
    )
    script = render_script(job).replace("/shared/project", str(tmp_path))
    path = tmp_path / "job.sh"
    path.write_text(script)
    logs = tmp_path / "logs"
    logs.mkdir()
    for role, log in (("learner", "learner-node7.log"), ("server", "server-node7-0.log")):
        done = subprocess.run(
            ["bash", str(path), role],
            capture_output=True,
            cwd=tmp_path,
            timeout=20,
            env={
                "PATH": "/usr/bin:/bin",
                "SLURM_NODEID": "0",
                "SLURM_LOCALID": "0",
                "RLVR_ADDRESSES": "a b",
                "SLURMD_NODENAME": "node7",
                "RLVR_LOGS": str(logs),
                "RLVR_SERVERS": "http://b:8000",
                "CUSTOM": line,
            },
        )
        assert done.returncode == 0, done.stderr
        words = (logs / log).read_bytes().decode().split("\0")
        wanted = value if role == "server" else f"model.path={repr_yaml(value)}"
        assert wanted in words
    assert f"export CUSTOM={shlex.quote(line)}\n" in script
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.sh", "logs", "show me"]


def repr_yaml(value):
    """As YAML in one line, in double quotes."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def test_setup_lines_are_shell_and_values_in_directives_are_held_to_harmless_ones(make_job):
    script = render_script(make_job(site={"setup": ["source '/shared/my env'/activate"]}))
    assert "\nsource '/shared/my env'/activate\n" in script
    for name, value in [
        ("partition", "a\n#SBATCH --uid=0"),
        ("partition", "gpu --uid=0"),
        ("account", '"x"'),
        ("time", "1;2"),
        ("setup", ["one\ntwo"]),
        ("sbatch", ["-p x"]),
        ("environment", {"A B": "1"}),
        ("environment", {"A": "1\n2"}),
    ]:
        with pytest.raises(ValueError, match=f"site.*{name}|{name}"):
            make_job(site={name: value})


def test_every_node_has_its_command(make_job):
    text = describe_nodes(make_job(nodes=3, rollout_nodes=1, gpus_per_node=2))
    lines = text.splitlines()
    assert lines[0].startswith("2 learner nodes x 2 processes; 1 rollout node x 2 servers")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "NODE0 (learner 0)",
        "NODE1 (learner 1)",
        "NODE2 (server 0)",
        "NODE2 (server 1)",
    ]
    assert "--num_machines 2 --num_processes 4 --machine_rank 1 --main_process_ip NODE0" in lines[2]
    assert "rlvr serve HuggingFaceTB/SmolLM2-135M-Instruct --host NODE2 --port 8001" in lines[4]


def test_a_recipe_is_served_as_it_trains(make_job):
    job = make_job("model.precision=bfloat16", nodes=2, rollout_nodes=1, tensor_parallel=2)
    text = describe_nodes(job)
    assert "--dtype bfloat16 --max-model-len 1064 --weights-folder " in text
    assert text.count("/launch/weights --tensor-parallel-size 2") == 4
    assert text.count("(server ") == 4
    assert "weight_transfer=nccl" not in text
    nccl = describe_nodes(make_job(nodes=2, rollout_nodes=1, weight_transfer="nccl"))
    assert "--nccl" in nccl
    assert "rollout.engine.weight_transfer=nccl" in nccl
