"""The estimate against closed forms, against tensors of a learner, and by how its parts move."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from rlvr.memory import (
    GIB,
    EngineWork,
    ExtraModel,
    Machine,
    ModelShape,
    Processes,
    Storage,
    Work,
    estimate,
    memory_lines,
)

SHAPE = ModelShape(
    parameters=1_000_000,
    trained=1_000_000,
    linear=800_000,
    plain=1_000_000,
    largest=100_000,
    hidden=64,
    intermediate=256,
    layers=10,
    key_value_width=32,
    vocabulary=1500,
    active=1_000_000,
    text="1,000,000 parameters",
)
LORA = replace(SHAPE, trained=10_000, largest=1_000)
CPU, GPU = Machine("cpu"), Machine("cuda")


def by_name(work, launched=None, machine=CPU):
    return {c.name: c.size for c in estimate(work, launched, machine).components}


def test_full_training_is_sixteen_bytes_a_weight_and_activations():
    work = Work(SHAPE, sequence=100, tokens=200, chunk=4, kept=10**9)
    found = by_name(work)
    assert found["weights, trained"] == found["gradients"] == 4e6
    assert found["AdamW's moments"] == 8e6
    assert found["activations"] == 200 * 10 * (14 * 64 + 4 * 256) * 4
    assert found["logits"] == 4 * (200 * 1500 + 3 * 4 * 1500)
    running = [size for name, size in found.items() if name != "weights as they are read"]
    assert estimate(work, None, CPU).total == sum(running)


@pytest.mark.parametrize("processes", [2, 4, 64])
def test_zero_shards_as_in_its_paper(processes):
    """Table 1 of arXiv:1910.02054 with weights, gradients and master weights of 4 bytes."""
    psi, n = 1e6, processes
    states = ("weights, trained", "gradients", "AdamW's moments", "master weights")
    sums = []
    for stage in (0, 1, 2, 3):
        found = by_name(Work(SHAPE), Processes(n, stage=stage))
        sums.append(sum(found.get(name, 0) for name in states))
    assert sums == pytest.approx(
        [16 * psi, 8 * psi + 12 * psi / n, 4 * psi + 16 * psi / n, 20 * psi / n]
    )


def test_offload_moves_states_to_the_host_of_all_gpus():
    launched = Processes(gpus=4, nodes=2, stage=3, offload=True)
    found = estimate(Work(SHAPE), launched, GPU)
    assert found.host == pytest.approx(4 * 20 * 1e6 / 8)
    here = estimate(Work(SHAPE), replace(launched, offload=False), GPU)
    assert here.host == 0
    moments, masters, weights = 8e6, 4e6, 4e6
    assert here.at("rollout") - found.at("rollout") == (moments + masters + weights) / 8


@pytest.mark.parametrize(
    ("shape", "storage", "name", "size"),
    [
        (SHAPE, {"weights": "bfloat16"}, "weights, trained", 2e6),
        (SHAPE, {"weights": "bfloat16"}, "gradients", 2e6),
        (SHAPE, {"states": "bfloat16"}, "AdamW's moments", 4e6),
        (SHAPE, {"states": "int8"}, "AdamW's moments", 2 * (1e6 + 4e6 / 256)),
        (LORA, {"frozen": "bfloat16"}, "weights, frozen", 2e6),
        (LORA, {"frozen": "int8"}, "weights, frozen", 8e5 * (1 + 4 / 64) + 2 * 2e5),
        (LORA, {"frozen": "nf4"}, "weights, frozen", 8e5 * (0.5 + 4 / 64) + 2 * 2e5),
    ],
)
def test_a_format_changes_its_own_component_alone(shape, storage, name, size):
    plain = by_name(Work(shape))
    found = by_name(Work(shape, Storage(**storage)))
    assert found[name] == pytest.approx(size)
    linked = {"weights, trained", "gradients"} if "weights" in storage else {name}
    # On a CPU they are read in float32, whatever they become.
    assert plain.pop("weights as they are read") == found.pop("weights as they are read")
    assert {key for key in plain if plain[key] != found[key]} == linked


def test_gradients_of_a_single_micro_batch_come_as_its_activations_go():
    one, several = (Work(SHAPE, tokens=1000, update=update) for update in (900, 1100))
    alone = estimate(one, None, CPU)
    names = {c.name: c for c in alone.components}
    assert names["gradients"].when == ("backward", "step")
    assert names["activations"].when == ("forward",)
    assert estimate(several, None, CPU).total > alone.total + 3.9e6


def test_gradients_applied_in_the_backward_pass_are_those_of_one_tensor():
    storage = Storage(in_backward="two_passes")
    assert by_name(Work(SHAPE, storage, tokens=1000, update=900))["gradients"] == 4e5
    assert by_name(Work(SHAPE, storage, tokens=1000, update=1100))["gradients"] == 4e6


def test_exact_sums_are_whole_in_every_process():
    for ordinary, exact in ((None, None), (2, 2), (2, 3)):  # under ZeRO 3 weights are whole, too
        plain, found = (
            by_name(Work(SHAPE, Storage(exact=own)), stage and Processes(gpus=4, stage=stage))
            for own, stage in ((False, ordinary), (True, exact))
        )
        assert found.pop("exact sums of gradients") == 2e7
        assert found == plain


def test_a_bfloat16_base_that_is_published_so_is_not_rounded_by_holding_it_so():
    published = replace(LORA, stored="bfloat16")
    mixed = Storage(compute="bfloat16")
    sizes = [
        by_name(Work(shape, storage), launched)["weights, frozen"]
        for shape, storage, launched in (
            (published, mixed, None),
            (published, Storage(), None),
            (LORA, mixed, None),
            (published, mixed, Processes(2, stage=2)),
        )
    ]
    assert sizes == [2e6, 4e6, 4e6, 4e6]


def test_generation_and_gradients_are_not_there_at_the_same_time():
    engine = EngineWork("own", rows=100, completions=150, prompt=100)
    work = Work(SHAPE, sequence=1000, tokens=1, engine=engine)
    found = estimate(work, None, CPU)
    assert found.peak == "rollout"
    states = 4e6 + 8e6
    cache, logits = 2 * 32 * 10 * 100 * 1000 * 4, 3 * 4 * 100 * 1500
    program = by_name(work)["the program"]
    assert found.total == states + cache + logits + program
    # On a GPU a buffer is as large as it was allocated: 132, 264, 528, 1056 places.
    on_gpu = by_name(work, machine=GPU)["keys and values"]
    assert on_gpu == cache * 1056 / 1000
    # Each of several processes samples its part.
    assert by_name(work, Processes(3))["keys and values"] == cache / 2


def test_extra_models_bring_their_weights_and_what_trains_them():
    work = Work(SHAPE, extra=(ExtraModel("the critic", 10**6, "int8"), ExtraModel("the reference")))
    found = by_name(work)
    assert found["the critic"] == found["the reference"] == 4e6
    assert found["gradients"] == 8e6
    assert found["AdamW's moments"] == 8e6
    assert found["moments of the critic"] == 2 * (1e6 + 4e6 / 256)


def test_a_sleeping_engine_is_there_while_it_generates():
    machine = Machine("cuda", 10 * GIB)
    awake, asleep = (
        estimate(Work(SHAPE, engine=EngineWork("vllm", share=0.5, sleeps=sleeps)), None, machine)
        for sleeps in (False, True)
    )
    assert awake.at("backward") - asleep.at("backward") == 5 * GIB
    assert awake.at("rollout") == asleep.at("rollout")


def test_an_engine_without_a_share_takes_what_the_learner_leaves():
    machine = Machine("cuda", 10 * GIB)
    for sleeps in (False, True):
        work = Work(SHAPE, engine=EngineWork("vllm", sleeps=sleeps))
        found = estimate(work, None, machine)
        engine = next(c.size for c in found.components if c.name == "vLLM")
        left = 10 * GIB - (found.at("rollout") - engine) - GIB  # the margin
        assert engine == pytest.approx(left if sleeps else left / 2)
    # Its weights, a cache and its process are the least that it takes.
    found = estimate(replace(work, shape=replace(SHAPE, parameters=10**9)), None, machine)
    assert next(c.size for c in found.components if c.name == "vLLM") == 4 * 10**9 + 2 * GIB


def test_autocast_copies_trained_weights_until_the_pass_is_over():
    mixed = Storage(compute="bfloat16", recompute=True)
    found = estimate(Work(SHAPE, mixed, tokens=1, sequence=1), None, CPU)
    copies = {c.when: c.size for c in found.components if c.name.startswith("bfloat16 copies")}
    head = 64 * 1500
    assert copies == {("forward",): 2 * (8e5 + head), ("backward",): 2 * (8e4 + head)}
    held = Storage(compute="bfloat16", recompute=True, weights="bfloat16")
    assert not [name for name in by_name(Work(SHAPE, held)) if name.startswith("bfloat16 copies")]


def test_the_table_adds_up_and_says_what_is_left_or_missing():
    work = Work(SHAPE, sequence=100, tokens=200, chunk=4)
    lines = memory_lines(estimate(work, None, Machine("cuda", 2 * GIB)))
    sizes = [float(re.search(r" {2}([\d.]+) {2}", line)[1]) for line in lines[1:-1]]
    assert "1.4 of 2.0 left" in lines[-1]
    total = float(lines[-1].split()[1])
    assert total == pytest.approx(sum(sizes), abs=0.005 * len(sizes) + 0.006)
    lines = memory_lines(estimate(work, None, Machine("cuda", GIB / 2)))
    assert "0.1 more than the 0.5 there are" in lines[-1]


def test_no_torch_is_imported():
    code = "import sys, rlvr.memory, rlvr.fit.asked, rlvr.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
