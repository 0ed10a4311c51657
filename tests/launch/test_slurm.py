"""The rendered script on the real scheduler: it trains, is pre-empted, goes on, and fails clearly.

Two nodes on loopback: one learns (two ranks, ZeRO 2 over gloo), the other serves (vLLM on the CPU).
"""

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.runs.log import read_metrics
from tests.launch.cluster import Cluster, free_ports, missing
from tests.rl.test_processes import furthest
from tests.rl.test_train import run_in_process, weights

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def cluster():
    if absent := missing():
        pytest.skip(f"{', '.join(absent)} not installed; on Debian: slurm-wlm, munge")
    # Short, for a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rlvr-slurm-"))
    cluster = Cluster(folder)
    yield cluster
    cluster.close()
    left = cluster.left()
    shutil.rmtree(folder)
    assert not left, "something outlived the daemons"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_model(folder, 0, TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1))
    return folder


@pytest.fixture
def launch(cluster, model, tmp_path):
    """Submit a run of the tiny recipe through the command line."""

    def submit(name, *arguments, steps=STEPS, served=True, python=sys.executable, place=tmp_path):
        values = {
            "output": str(place / name),
            "steps": steps,
            "model": {"path": str(model)},
            "data": {
                "source": {"name": "arithmetic", "digits": 1, "size": 80},
                "template": "plain",
                "max_prompt_tokens": 16,
            },
            "rollout": {
                "prompts_per_step": 8,
                "samples_per_prompt": 4,
                "sampling": {"max_tokens": 64},
            },
            # A random model earns no reward; the bonus is what moves its weights.
            "regularisers": [{"name": "entropy", "coefficient": -1.0}],
            "learner": {"lr": 0.001},
            "checkpoint": {"every": 100},
        }
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(values))
        site = tmp_path / "site.yaml"
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        site.write_text(yaml.safe_dump({"environment": environment, "python": python}))
        ports = free_ports(2)
        line = [sys.executable, "-m", "rlvr", "launch", recipe, "--slurm"]
        line += ["--nodes", 2, "--gpus-per-node", 0, "--main-port", ports[0]]
        if served:
            pytest.importorskip("vllm", reason="vLLM is not installed")
            line += ["--rollout-nodes", 1, "--server-port", ports[1], "--server-threads", 1]
            line += ["--processes-per-node", 2]
        done = subprocess.run(
            [*map(str, [*line, *arguments]), "--accelerate", "zero2", "--site", str(site)],
            cwd=ROOT,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return Submitted(cluster, place / name, done.stdout)

    return submit


class Submitted:
    """A job that was queued."""

    def __init__(self, cluster, folder, output):
        self.cluster, self.folder = cluster, folder
        self.number = re.match(r"job (\d+) is queued", output)[1]
        self.log = folder / "launch" / f"job-{self.number}.log"

    def said(self):
        """Its log, and those of its roles."""
        paths = [self.log, *sorted(self.folder.glob("launch/*/*.log"))]
        return "\n".join(f"== {p}\n{p.read_text()[-3000:]}" for p in paths if p.exists())

    def steps(self):
        rows = read_metrics(self.folder / "metrics.jsonl")
        return [row["step"] for row in rows if "reward/mean" in row]

    def reach(self, step, seconds=240):
        deadline = time.monotonic() + seconds
        while step not in self.steps():
            assert self.cluster.state(self.number) in ("PENDING", "RUNNING"), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def end(self, seconds=300):
        """Wait for the end; its state."""
        deadline = time.monotonic() + seconds
        while (state := self.cluster.state(self.number)) in ("PENDING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.3)
        return state

    def killed(self, node):
        """Kill what a node's daemon started for the job's step."""
        for process in self.cluster.tasks(node):
            with contextlib.suppress(psutil.NoSuchProcess):  # others may have ended meanwhile
                if "slurm_script" not in " ".join(process.cmdline()):
                    process.kill()


@pytest.mark.vllm
def test_two_nodes_train_and_after_a_notice_the_job_goes_on_to_the_same_end(launch, cluster):
    """The only checkpoints are those of the notice and of the end."""
    whole = launch("whole")
    assert whole.end() == "COMPLETED", whole.said()
    assert whole.steps() == list(range(1, STEPS + 1))
    rows = [row for row in read_metrics(whole.folder / "metrics.jsonl") if "reward/mean" in row]
    assert all(row["sync/difference_max"] < 1e-3 and row["engine/servers"] == 1 for row in rows)
    assert "ZeRO 2 x 2" in whole.said()

    cut = launch("cut")
    cut.reach(2)
    cluster.ask("scancel", "--batch", "--signal=USR1", cut.number)
    assert cut.end() == "COMPLETED", cut.said()
    said = cut.said()
    assert cluster.job(cut.number)["Restarts"] == "1", said
    assert "notice to stop (SIGUSR1)" in said
    stopped = int(re.search(r"stopped after step (\d+); saving", said)[1])
    assert 2 <= stopped < STEPS, said
    assert f"resuming after step {stopped} from" in said
    assert cut.steps() == list(range(1, STEPS + 1))
    # Same seeds, same samples; how requests share a batch decides how a sum is rounded.
    assert furthest(weights(cut.folder), weights(whole.folder)) < 1e-4
    assert not list((cut.folder / "launch" / "weights").iterdir())


@pytest.mark.vllm
def test_a_server_that_is_killed_fails_the_job_and_is_named(launch):
    job = launch("server", steps=100000)
    job.reach(1)
    began = time.monotonic()
    job.killed("node2")
    assert job.end(60) == "FAILED", job.said()
    assert time.monotonic() - began < 60
    said = job.log.read_text()
    assert "node2: task 0: Killed" in said
    assert "a server ended with exit code 137" in said
    assert "last lines of" in said
    assert "server-node2-0.log" in said
    assert not list((job.folder / "launch" / "weights").iterdir()), "the learner ended in order"
    assert job.cluster.job(job.number)["Restarts"] == "0"


@pytest.fixture
def spread():
    """What makes a run learn on both nodes: no servers, the learner's own engine."""
    return {"served": False}


def test_two_learner_nodes_meet_and_do_the_run_of_one_process(launch, spread, tmp_path):
    job = launch("spread", **spread)
    assert job.end() == "COMPLETED", job.said()
    values = yaml.safe_load((tmp_path / "spread.yaml").read_text())
    alone = run_in_process({**values, "output": str(tmp_path / "alone")})
    assert "ZeRO 2 x 2" in job.said()
    assert furthest(weights(job.folder), weights(alone)) < 1e-4


def test_a_learner_node_that_is_killed_fails_the_job_and_is_named(launch, spread, cluster):
    job = launch("learner", steps=100000, **spread)
    job.reach(1)
    began = time.monotonic()
    job.killed("node2")
    assert job.end(60) == "FAILED", job.said()
    assert time.monotonic() - began < 60
    said = job.log.read_text()
    assert "node2: task 1: Killed" in said
    assert "the learner ended with exit code 137" in said
    deadline = time.monotonic() + 40
    while left := [*cluster.tasks("node1"), *cluster.tasks("node2")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_a_job_that_failed_is_tried_again_where_that_was_asked_for(launch, spread, cluster):
    job = launch("again", "--retries", 1, steps=40, **spread)
    job.reach(1)
    job.killed("node2")
    assert job.end(240) == "COMPLETED", job.said()
    assert cluster.job(job.number)["Restarts"] == "1"
    assert job.steps() == list(range(1, 41))


def test_faults_of_nodes_are_named_before_anything_starts(launch, cluster):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job = launch("port", "--main-port", port, served=False)
        assert job.end(60) == "FAILED"
    assert f"node node1: port {port} is taken" in job.log.read_text()

    job = launch("environment", python="/no/such/python", served=False)
    assert job.end(60) == "FAILED"
    assert re.search(r"node node[12] has no /no/such/python", job.log.read_text())
    assert "a node is not fit" in job.log.read_text()

    if not cluster.apart:
        pytest.skip("mounts are not allowed here, so no node can have a disk of its own")
    options = ["--partition", "apart", "--shared-timeout", 3]
    job = launch("apart", *options, place=cluster.own, served=False)
    assert job.end(60) == "FAILED"
    said = job.log.read_text()
    assert re.search(r"node node3 does not see .*job.sh within 3 s: the folder", said), said


@pytest.mark.vllm
def test_a_server_that_is_not_healthy_in_time_is_named_with_its_log(launch):
    job = launch("slow", "--start-timeout", 1)
    assert job.end(90) == "FAILED"
    said = job.log.read_text()
    assert "1 of 1 servers are not healthy after 1 s: http://127.0.0.1:" in said
    assert "server-node2-0.log" in said
    assert "waiting for the servers ended with exit code 1" in said
