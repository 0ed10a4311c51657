"""A day on a GPU: its page, its time limits, its checks, and all of it with tiny shapes."""

import json
import os
from functools import partial

import psutil
import pytest
import torch

from tests.gpu import correctness, day, kit
from tests.gpu.forms import relative
from tests.gpu.kit import PARTS, Part, Setting
from tests.gpu.render import page, shown
from tests.gpu.shapes import QWEN2, QWEN3, config_of, random_model
from tests.gpu.updates import training_flops

CPU = torch.device("cpu")
TINY = Setting(tiny=True, out=None, deadline=float("inf"))

HANGS = """
import os, subprocess, sys, time
from pathlib import Path

def measure(setting):
    yield {"value": 1.5}
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(600)"
    subprocess.run([sys.executable, "-c", code])  # its child is nobody's any more
    yield {"value": 2.5}
    time.sleep(600)
"""
SOUND = """
def measure(setting):
    yield {"value": float("nan")}
"""
FAILS = """
def measure(setting):
    yield {"value": 3.5}
    raise ValueError("no such thing")
"""


@pytest.fixture
def parts_folder(tmp_path, monkeypatch):
    """Modules of planted parts, where the day's processes find them."""
    for name, text in {"hangs": HANGS, "sound": SOUND, "fails": FAILS}.items():
        (tmp_path / f"planted_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    return out


def planted(*names, share=1):
    return [Part(name, f"planted_{name}", share) for name in names]


def rows_of(out, part):
    return [row for row in kit.read_rows(out) if row["part"] == part]


def waits(mark):
    """Processes that a planted part left behind."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("os.setsid(); time.sleep(600)" in word for word in process.info["cmdline"] or []):
            found.append(process)
    return [p for p in found if p.environ().get("PYTHONPATH", "").find(mark) >= 0]


def test_a_part_that_hangs_is_killed_with_all_it_started_and_the_rest_goes_on(parts_folder):
    parts = [*planted("hangs", share=6), *planted("fails", "sound", share=15)]
    environment = day.environment_of(None)
    sound = day.run_day(parts, 36.0, parts_folder, tiny=True, environment=environment)
    assert not sound
    hangs, fails, last = (rows_of(parts_folder, name) for name in ("hangs", "fails", "sound"))
    assert [row.get("value") for row in hangs] == [1.5, 2.5, None], "what it had found is there"
    assert hangs[-1]["ended"] == "killed at its limit of 6 s"
    assert waits(str(parts_folder.parent)) == []
    assert fails[0]["value"] == 3.5
    assert fails[-1]["ended"] == "failed: ValueError: no such thing"
    assert [row.get("value") for row in last] == ["nan", None]
    assert last[-1]["ended"] == "done"


def test_a_part_for_which_no_time_is_left_is_not_begun(parts_folder):
    parts = planted("sound", "fails")
    assert not day.run_day(parts, 0.5, parts_folder, tiny=True, environment=dict(os.environ))
    ends = [row["ended"] for row in kit.read_rows(parts_folder)]
    assert ends == ["not begun: no time was left"] * 2


def test_shares_leave_ten_minutes_for_the_command_that_runs_the_day():
    assert sum(part.share for part in PARTS) == 540
    names = ["machine", "correctness", "head", "updates", "generation", "step", "profile"]
    assert [part.name for part in PARTS] == names


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
    for value in (1, 2):
        kit.append(tmp_path, {"part": "a", "value": value})
    with (tmp_path / kit.RESULTS).open("a") as file:
        file.write('{"part": "a", "val')
    assert [row["value"] for row in kit.read_rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--out"),
        (["--out", "new", "--minutes", "0"], "--minutes 0"),
        (["--out", "full", "--tiny"], "'full' is not empty"),
        (["--out", "new", "--parts", "update"], "'update' is none of machine,correctness"),
        (["--out", "new", "--site", "nowhere"], "tests.gpu.prepare nowhere"),
        (["--out", "new"], "--tiny"),
        (["--render", "nowhere"], "nowhere/results.jsonl"),
    ],
)
def test_mistakes_are_named_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(day, "has_gpu", lambda environment: False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert day.main(words) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "new").exists()


ROWS = [
    {"part": "day", "command": "python -m tests.gpu.day --out x", "commit": "abc+", "seed": 0},
    {"part": "machine", "device": "NVIDIA H200", "memory_gib": 139.8, "cores": 16, "versions": "v"},
    {"part": "machine", "matmul_tflops": 788.123, "copy_gb_per_second": 2150.0},
    {"part": "machine", "ended": "done", "seconds": 9.0},
    {"part": "updates", "model": "Q", "tokens": 16384, "seconds": 0.51234, "times_published": 2.04},
    {"part": "updates", "model": "Q", "tokens": 65536, "note": "out of memory"},
    {"part": "updates", "ended": "killed at its limit of 9 s", "seconds": 9.1},
    {"part": "correctness", "check": "a|b", "error": 1.23e-7, "most": 1e-4, "passed": True},
    {"part": "correctness", "check": "c", "error": 0.5, "most": 1e-4, "passed": False},
]


def test_the_page_has_machine_ends_and_results():
    lines = page(ROWS).splitlines()
    assert lines[0] == "# Measured on a GPU"
    assert "commit `abc+`, seed 0. Device: NVIDIA H200, 140 GiB, 16 CPU cores. v." in lines[2]
    assert "788 TFLOP/s, copying 2,150 GB/s written." in lines[2]
    assert "python -m tests.gpu.day --out x" in lines
    assert "| updates | killed at its limit of 9 s | 9.1 |" in lines
    assert "| a\\|b | 1.2e-07 | 1.0e-04 | yes |" in lines
    assert "| c | 0.5 | 1.0e-04 | **no** |" in lines
    at = lines.index("## Updates")
    assert lines[at + 4] == "| shape | tokens | s | times the published rate | note |"
    assert lines[at + 6] == "| Q | 16,384 | 0.512 | 2.04 |  |"
    assert lines[at + 7] == "| Q | 65,536 |  |  | out of memory |"
    assert "## Profile" not in lines
    assert page([{**ROWS[0], "tiny": True}]).startswith("# Dry run with tiny shapes")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (0.0, "0"),
        (12_345.6, "12,346"),
        (1e-9, "1.0e-09"),
    ],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(("name", "weights"), [(QWEN3, 596_049_920), (QWEN2, 1_543_714_304)])
def test_shapes_have_as_many_weights_as_the_published_models(name, weights):
    model = random_model(config_of(name, tiny=False), torch.device("meta"))
    assert sum(weight.numel() for weight in model.parameters()) == weights


def test_operations_are_six_a_weight_and_token_and_causal_attention():
    model = random_model(config_of(QWEN3, tiny=True), CPU)
    policy = correctness.Policy(model)
    weights = sum(weight.numel() for weight in model.parameters())
    # 2 layers of 4 heads of 8: two products of 2 x 8 operations a pair, thrice with the backward.
    pairs = 100 * 100 / 2
    assert training_flops(policy, 100, "one") == 6 * weights * 100 + 3 * 2 * 4 * 2 * 2 * 8 * pairs


def test_a_head_of_another_temperature_is_found():
    def wrong(*arguments):
        *rest, temperature, bias, dtype = arguments
        return correctness.chunked(*rest, temperature * 1.01, bias, dtype)

    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        error = partial(correctness.head_error, dtype=dtype, temperature=0.7, bias=True)
        assert error(correctness.chunked, setting=TINY, device=CPU) < most
        assert error(wrong, setting=TINY, device=CPU) > 1e-3


def test_faults_of_model_optimizer_and_update_are_found(monkeypatch):
    assert correctness.adamw_error(CPU) < 1e-4
    true_pair = correctness._pair

    def pair_with_a_fault(*arguments):
        exact, own = true_pair(*arguments)
        with torch.no_grad():
            own.causal_lm.model.layers[0].mlp.up_proj.weight[0] *= 1.5
        return exact, own

    clip = partial(correctness.Objective, correctness.Clip(), (), correctness.TokenMean())
    errors = {
        "model": (
            partial(correctness.model_error, QWEN3, "packed", torch.float32, TINY, CPU),
            1e-4,
        ),
        "update": (partial(correctness.update_error, clip, TINY, CPU), 1e-3),
        "generation": (partial(correctness.generation_error, torch.float32, TINY, CPU), 1e-5),
    }
    for name, (error, most) in errors.items():
        assert error() < most, name
    monkeypatch.setattr(correctness, "_pair", pair_with_a_fault)
    for name, (error, most) in errors.items():
        assert error() > most, name


def test_a_check_that_fails_does_not_end_the_others(monkeypatch):
    def broken():
        raise RuntimeError("no kernel")

    planted_checks = [
        correctness.Check("a", broken, 1.0),
        correctness.Check("b", lambda: float("inf"), 1.0),
        correctness.Check("c", lambda: 0.5, 1.0),
    ]
    monkeypatch.setattr(correctness, "checks", lambda setting, device: planted_checks)
    rows = list(correctness.measure(TINY))
    assert [row["passed"] for row in rows] == [False, False, True]
    assert rows[0]["note"] == "RuntimeError: no kernel"


def test_no_number_is_no_agreement():
    assert relative(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_day_with_tiny_shapes(tmp_path, capsys):
    out = tmp_path / "day"
    code = day.main(["--tiny", "--minutes", "20", "--out", str(out)])
    rows = kit.read_rows(out)
    ends = {row["part"]: row["ended"] for row in rows if "ended" in row}
    assert ends == {part.name: "done" for part in PARTS}, (out / day.LOG).read_text()[-3000:]
    failed = [row for row in rows if row.get("passed") is False]
    assert failed == []
    assert code == 0
    found = {row["part"] for row in rows if "ended" not in row}
    assert found == {"day", *(part.name for part in PARTS)}
    assert len([row for row in rows if "check" in row]) > 40
    assert json.dumps(rows).count("note") == 0
    text = (out / "summary.md").read_text()
    assert day.main(["--render", str(out)]) == 0
    assert capsys.readouterr().out.endswith(text)
    files = {path.name for path in out.iterdir()}
    assert files == {"results.jsonl", "summary.md", "log.txt", "profile.txt"}
