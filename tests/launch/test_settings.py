"""What a launch may say: faults by name, sites from a file, and what the numbers come to."""

import pytest
import yaml

from launch.settings import LaunchSettings, Site, load_launch
from rlvr.settings import describe


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"nodes": 0}, "'nodes' = 0"),
        ({"nodes": 2, "rollout_nodes": 2}, "leave none to learn"),
        ({"nodes": 2, "rollout_nodes": 1, "tensor_parallel": 16}, "are more than gpus_per_node"),
        ({"processes_per_node": 9}, "every learner process needs a GPU"),
        ({"gpus_per_node": 0, "weight_transfer": "nccl"}, "goes from GPU to GPU"),
        ({"weight_transfer": "pickle"}, "'weight_transfer' = 'pickle'"),
        ({"main_port": 70000}, "'main_port' = 70000"),
        ({"nodes": 2, "rollout_nodes": 1, "server_port": 65535}, "leaves no room"),
        ({"notice_s": 1}, "'notice_s' = 1"),
        ({"requeue": False, "retries": 1}, "retries = 1 queue again what requeue"),
        ({"name": "a b"}, "goes into an #SBATCH line"),
        ({"gpu_per_node": 8}, "did you mean 'gpus_per_node'"),
        ({"accelerate": "zero4"}, "accelerate 'zero4' is no configuration"),
        ({"accelerate": "./none.yaml"}, "accelerate './none.yaml' is not a file"),
        ({"accelerate": "cpu"}, "runs one process and the launch asks for 8"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make_job, options, part):
    with pytest.raises(ValueError, match=part.replace("(", r"\(")):
        make_job(**options)


@pytest.mark.parametrize(
    ("recipe", "overrides", "options", "part"),
    [
        (
            "preference_dpo",
            (),
            {"nodes": 2, "rollout_nodes": 1},
            "task 'preference' samples nothing",
        ),
        ("smollm2_arithmetic_vllm_server", (), {}, "where a job starts no server"),
        ("smollm2_arithmetic", ("output=runs/a b",), {}, "holds ' '"),
        ("smollm2_arithmetic", ("output=runs/100%j",), {}, "holds '%'"),
        ("smollm2_arithmetic", ("lerner.lr=1",), {}, "did you mean 'learner'"),
        (
            "smollm2_arithmetic",
            ("rollout.max_staleness=1",),
            {"nodes": 2, "rollout_nodes": 1, "weight_transfer": "nccl"},
            "has no weights of its own then",
        ),
    ],
)
def test_what_a_recipe_cannot_be_launched_as_is_refused(make_job, recipe, overrides, options, part):
    from tests.launch.conftest import ROOT

    with pytest.raises(ValueError, match=part):
        make_job(*overrides, recipe=ROOT / "recipes" / f"{recipe}.yaml", **options)


def test_a_site_is_read_once_and_options_win(tmp_path, monkeypatch):
    site = tmp_path / "site.yaml"
    container = {"image": "a.sqsh", "mounts": ["/data"]}
    site.write_text(yaml.safe_dump({"partition": "gpu", "time": "1:00:00", "container": container}))
    monkeypatch.setenv("RLVR_SITE", str(site))
    found = load_launch({}, None, {"time": "2:00:00", "account": None}, "b.sqsh").site
    assert (found.partition, found.time, found.account) == ("gpu", "2:00:00", None)
    assert found.container.image == "b.sqsh"
    assert found.container.mounts == ("/data",)


def test_a_site_that_is_not_there_or_not_right_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RLVR_SITE", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match=r"none.yaml' is not a file; .*RLVR_SITE"):
        load_launch({})
    wrong = tmp_path / "site.yaml"
    wrong.write_text("partion: gpu\n")
    with pytest.raises(ValueError, match=r"site.yaml: unknown setting 'partion'.*'partition'"):
        load_launch({}, wrong)


def test_numbers_follow_from_gpus():
    settings = load_launch({"nodes": 4, "rollout_nodes": 1, "tensor_parallel": 2})
    assert (settings.learner_nodes, settings.processes, settings.servers) == (3, 8, 4)
    on_cpus = load_launch({"gpus_per_node": 0})
    assert (on_cpus.processes, on_cpus.servers) == (1, 1)


@pytest.mark.parametrize("schema", [LaunchSettings, Site])
def test_every_setting_has_a_help_text(schema):
    assert not [item.key for item in describe(schema) if not item.help]
