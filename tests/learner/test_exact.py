"""``learner.exact``: sums without an order, and the same bits however a step is split."""

import math
import random
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.adamw import adamw

from rlvr.files import write_lines
from rlvr.learner.deterministic import one_thread
from rlvr.learner.exact import NOT_FINITE, ExactSum, GradientSum, exact_norm, level_of
from rlvr.learner.exact_zero import ExactZeroStore
from rlvr.learner.launch import Launch
from rlvr.learner.optimizer import _adamw_evenly
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings
from tests.learner import exact_jobs, jobs
from tests.learner.launching import run_job
from tests.training import run, small_recipe

TIMES = ("time/", "throughput/", "memory/")


@pytest.fixture(autouse=True)
def as_in_a_run():
    """On a CPU each process has one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensors(count, size, spread, seed=0):
    """Numbers of very different sizes, in each of which the sum cancels in part."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, size, generator=generator)
    powers = torch.randint(-spread, spread + 1, (count, size), generator=generator)
    scale = torch.randint(-spread, spread + 1, (count, 1), generator=generator)
    found = numbers * 2.0**powers * 2.0**scale
    found[1::2] += -found[::2][: len(found[1::2])] * (1 + 2.0**-20)
    return found


def added(rows):
    total = ExactSum(rows[0])
    for row in rows:
        total.add(row)
    return total


@pytest.mark.parametrize("spread", [0, 3, 10, 25, 60])
def test_no_order_changes_a_bit_of_the_sum(spread):
    rows = tensors(37, 40, spread)
    expected = added(rows).total()
    for seed in range(20):
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        assert torch.equal(added(rows[order]).total(), expected), seed


def test_an_ordinary_sum_is_caught_by_the_same_permutations():
    rows = tensors(37, 40, 3)
    order = random.Random(0).sample(range(len(rows)), len(rows))
    assert not torch.equal(sum(rows[order]), sum(rows))


@pytest.mark.parametrize("spread", [0, 1, 3])
def test_the_sum_is_that_of_rational_numbers(spread):
    """Below 512 nothing is dropped of numbers above 2^-46."""
    rows = tensors(64, 30, spread)
    total = added(rows).total()
    for column in range(rows.shape[1]):
        right = sum((Fraction(x) for x in rows[:, column].tolist()), Fraction(0))
        assert total[column].item() == float(right)


def test_what_is_dropped_is_less_than_the_stated_bound():
    rows = tensors(64, 30, 60)
    total, largest = added(rows).total(), rows.abs().max().item()
    for column in range(rows.shape[1]):
        exact = sum((Fraction(x) for x in rows[:, column].tolist()), Fraction(0))
        error = abs(Fraction(total[column].item()) - exact)
        # Of 64 numbers, at most 2^-41 q of each; the largest is q / 2 at least.
        assert (
            error <= 64 * Fraction(largest) * Fraction(2) ** -40 + abs(exact) * Fraction(2) ** -53
        )


def test_sums_of_parts_are_the_sum_of_all():
    """What ranks do: raise both to the higher level, then add."""
    rows = tensors(24, 50, 40)
    expected = added(rows).total()
    for cut in (1, 5, 12, 23):
        left, right = added(rows[:cut]), added(rows[cut:])
        level = max(left.level, right.level)
        left.raise_to(level)
        right.raise_to(level)
        left.high_N += right.high_N
        left.low_N += right.low_N
        assert torch.equal(left.total(), expected), cut


def test_levels_bound_their_numbers():
    for largest in (2.0**-149, 1e-30, 1.0, 2.0**39, 2.0**40 - 1, 3.4e38):
        level = level_of(largest)
        assert largest < 2.0 ** (49 + 40 * level)
        assert largest >= 2.0 ** (49 + 40 * (level - 1))


def test_infinity_and_nan_stay_and_zeros_do_nothing():
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert added(rows).total().tolist() == [1.0, 2.0]
    assert added(torch.zeros(3, 2)).total().tolist() == [0.0, 0.0]
    for bad in (math.inf, -math.inf, math.nan):
        total = added(torch.tensor([[1.0, bad], [1.0, 1.0], [0.0, 0.0]]))
        assert total.level == NOT_FINITE
        assert total.total().isnan().all()
    assert ExactSum(rows[0]).total() is None


def test_as_many_as_are_allowed_do_not_round():
    """All of one sign, each as large as its level has them."""
    row = torch.tensor([2.0**49 - 2.0**25])
    total = ExactSum(row)
    total.add(row)
    total.high_N *= 2**14  # multiplied by a power of two, as if so many were added
    assert total.total().item() == float(row) * 2**14
    assert abs(float(total.high_N)) <= 2.0**63


def test_tensors_that_share_a_gradient_keep_their_own_sum():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in "ab")
    total = GradientSum({"a": a, "b": b}, jobs.Alone())
    total.add(((a + b) * torch.tensor([1.0, 2.0, 3.0])).sum())
    total.add((a * 10).sum())
    total.end_unit()
    found = total.take()
    assert found["a"].tolist() == [11.0, 12.0, 13.0]
    assert found["b"].tolist() == [1.0, 2.0, 3.0]


def test_the_norm_is_that_of_rational_numbers():
    rows = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0))
    right = math.sqrt(math.fsum(x * x for x in rows.flatten().tolist()))
    assert exact_norm(iter(rows)) == pytest.approx(right, rel=1e-14)
    assert exact_norm(iter([torch.tensor([1.0, math.nan])])) != exact_norm(iter([rows]))
    assert exact_norm(iter([torch.tensor([3e38, 3e38])])) == math.inf


def moved(size, step):
    """Numbers moved by AdamW in slices of this size, by a kernel."""
    generator = torch.Generator().manual_seed(1)
    weights, gradients, mean, square = torch.randn(4, 1000, generator=generator)
    square = square.square()
    group = {"betas": (0.9, 0.999), "lr": 1e-3, "eps": 1e-8, "weight_decay": 0.1}
    for start in range(0, 1000, size):
        own = slice(start, start + size)
        parts = (t[own] for t in (weights, gradients, mean, square))
        step(*parts, torch.tensor(3.0), group)
    return torch.stack([weights, mean, square])


def test_adamw_moves_a_number_alike_wherever_it_stands():
    expected = moved(1000, _adamw_evenly)
    for size in (1, 3, 17, 64, 100, 999):
        assert torch.equal(moved(size, _adamw_evenly), expected), size


def test_adamw_evenly_is_adamw():
    def one_by_one(weights, gradients, mean, square, step, group):
        tensors = ([weights], [gradients], [mean], [square])
        rates = dict(zip(("beta1", "beta2"), group["betas"], strict=True))
        rates |= {"lr": group["lr"], "eps": group["eps"], "weight_decay": group["weight_decay"]}
        adamw(*tensors, [], [step.clone()], fused=False, amsgrad=False, maximize=False, **rates)

    assert torch.allclose(moved(100, _adamw_evenly), moved(1000, one_by_one), rtol=1e-5, atol=1e-8)


def found_by(case, model, folder, **settings):
    folder.mkdir(exist_ok=True)
    exact_jobs.run_cases([case], model, folder, exact_jobs.alone(), **settings)
    return load_file(folder / f"{case}.safetensors")


def same(one, two):
    assert set(one) == set(two)
    return all(torch.equal(a, two[name]) or a.isnan().any() for name, a in one.items())


@pytest.mark.parametrize("case", ["train", "ppo", "outcome"])
def test_no_budget_and_no_layout_changes_a_bit(case, tiny_folder, tmp_path):
    one = found_by(case, tiny_folder, tmp_path / "one")
    for name, settings in {
        "packed": {"layout": "packed", "tokens_per_micro_batch": 10_000},
        "small": {"tokens_per_micro_batch": 17},
    }.items():
        assert same(one, found_by(case, tiny_folder, tmp_path / name, **settings)), name


def test_an_ordinary_learner_is_caught(tiny_folder, tmp_path):
    one = found_by("train", tiny_folder, tmp_path / "one", exact=False)
    two = found_by("train", tiny_folder, tmp_path / "two", exact=False, tokens_per_micro_batch=17)
    assert not same(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lp_reg_full", "prime", "adapters", "poisoned"])
def test_no_budget_changes_a_bit_of_other_methods(case, tiny_folder, tmp_path):
    one = found_by(case, tiny_folder, tmp_path / "one")
    other = {"layout": "packed", "tokens_per_micro_batch": 60}
    assert same(one, found_by(case, tiny_folder, tmp_path / "two", **other))


@pytest.mark.slow
def test_no_budget_changes_a_bit_of_a_mixture_with_balanced_routers(mixture_folder, tmp_path):
    one = found_by("mixture", mixture_folder, tmp_path / "one")
    other = {"layout": "padded", "tokens_per_micro_batch": 23}
    assert same(one, found_by("mixture", mixture_folder, tmp_path / "two", **other))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learner.in_backward=two_passes"], "learner.in_backward = 'two_passes'"),
        (["model.dropout=0.1"], "model.dropout"),
    ],
)
def test_what_cannot_be_exact_is_refused(overrides, said, tmp_path):
    recipe = small_recipe("nowhere", tmp_path / "run")
    with pytest.raises(ValueError, match=said):
        load_settings(RLRecipe, recipe, ["learner.exact=true", *overrides])


def test_a_run_has_one_thread_on_a_cpu_and_gives_the_others_back():
    torch.set_num_threads(2)
    with one_thread(True):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with one_thread(False):
        assert torch.get_num_threads() == 2


def test_a_launch_that_shards_weights_keeps_them_whole(tmp_path):
    section = {"stage": 3, "offload_param": {"device": "cpu"}, "reduce_bucket_size": 5}
    whole = Launch(jobs.Alone(), section).whole()
    assert whole.zero == {"stage": 2, "reduce_bucket_size": 5}
    assert whole.whole() is whole
    recipe = small_recipe("nowhere", tmp_path / "run")
    for exact, stage in ((True, 2), (False, 3)):
        found = load_settings(RLRecipe, recipe, [f"learner.exact={exact}"])
        assert found.zero_stage(3) == stage
        assert bool(found.launch_faults(2, found.zero_stage(3))) != exact


def test_an_offloaded_optimizer_is_refused():
    with pytest.raises(ValueError, match="offload_optimizer"):
        ExactZeroStore(None, {}, jobs.Alone(), {"stage": 2, "offload_optimizer": {"device": "cpu"}})


@pytest.mark.slow
def test_a_run_logs_and_leaves_the_same_bits_in_another_layout(tiny_folder, tmp_path):
    """Through the command's own path; the engine's batches are the same in both."""
    one, two = in_two_layouts(small_recipe(tiny_folder, tmp_path / "run"), tmp_path)
    assert one[0] == two[0]
    assert same(one[1], two[1])


def in_two_layouts(recipe, folder, *overrides):
    """Metrics and weights of two steps, packed and in micro-batches of one completion."""
    for name, own in {"a": "layout=packed", "b": "tokens_per_micro_batch=9"}.items():
        recipe["output"] = str(folder / name)
        run_folder, rows = run(recipe, "learner.exact=true", f"learner.{own}", *overrides)
        kept = [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]
        yield kept, load_file(run_folder / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "precision"),
    [
        ("rl", "bfloat16"),
        ("sft", "float32"),
        ("preference", "float32"),
        ("preference", "bfloat16"),
        ("prm", "float32"),
        ("reward_model", "float32"),
    ],
)
def test_every_task_gives_the_same_bits_in_another_layout(task, precision, tiny_folder, tmp_path):
    recipe = small_recipe(tiny_folder, tmp_path / "run") if task == "rl" else {
        "task": task,
        "steps": 2,
        "model": {"path": str(tiny_folder)},
        "data": rows_of(task, tmp_path / "rows.jsonl"),
        "learner": {"lr": 3e-3},
    }  # fmt: skip
    recipe["steps"] = 2
    if task == "preference":
        recipe["losses"] = [{"name": "sigmoid"}]
    one, two = in_two_layouts(recipe, tmp_path, f"model.precision={precision}")
    assert one[0] == two[0]
    assert same(one[1], two[1])


def rows_of(task, path):
    """Answers to sums, right and wrong, of several lengths."""
    sums = [(a, b) for a in range(6) for b in range(4)]
    if task == "sft":
        rows = [{"prompt": f"{a}+{b}=", "response": str(a + b) * (1 + a % 3)} for a, b in sums]
    elif task == "preference":
        rows = [
            {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1) * (1 + a % 3)}
            for a, b in sums
        ]
    else:
        rows = [
            {"prompt": f"{a}+{b}=", "response": str(a + b + wrong) * (1 + a % 3),
             "label": not wrong}
            for a, b in sums for wrong in (0, 1)
        ]  # fmt: skip
    write_lines(path, rows)
    if task == "preference":
        return {"source": {"name": "file", "path": str(path)}, "template": "plain", "per_step": 10}
    return {"sources": [str(path)], "per_step": 10}


CASES = "train,ppo,outcome,onwards"


@pytest.fixture(scope="module")
def alone(tiny_folder, tmp_path_factory):
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    names = ["halfway", *CASES.split(",")]
    exact_jobs.run_cases(names, tiny_folder, folder, exact_jobs.alone())
    return folder


@pytest.mark.deepspeed
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("config", "processes"),
    [("multi_cpu", 2), ("multi_cpu", 4), ("zero1", 4), ("zero2", 2), ("zero3", 2)],
)
def test_processes_give_the_bits_of_one(alone, tiny_folder, tmp_path, config, processes):
    """Also those that go on from its checkpoint."""
    arguments = ("padded", 30) if processes == 2 else ("packed", 100)
    (tmp_path / "checkpoints").symlink_to(alone / "checkpoints")
    own = {"processes": processes, "jobs": "exact_jobs.py", "timeout": 800}
    run_job(config, CASES, tiny_folder, tmp_path, *arguments, **own)
    for case in CASES.split(","):
        one, two = (load_file(folder / f"{case}.safetensors") for folder in (alone, tmp_path))
        assert same(one, two), case
