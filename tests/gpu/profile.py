"""Where the time of an update and of generation goes, operator by operator.

The rows are the dearest operators; DIR/profile.txt has more of them.
"""

from collections.abc import Callable, Iterator

from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from rlvr.bench.generation import requests_of
from rlvr.bench.size import Size
from rlvr.policy.vocabulary import vocab_size
from rlvr.rollout.build import build_engine
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import TransformersEngineSettings
from tests.gpu.kit import Row, Setting
from tests.gpu.shapes import QWEN3, device_of, forget, policy_of, synchronize
from tests.gpu.updates import LAYOUTS, batch_of, learner_of

_ROWS = 12
_LINES = 60


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of an update on one sequence and on groups, then of generation."""
    tokens = setting.pick(64, 16_384)
    for workload in LAYOUTS:
        policy = policy_of(QWEN3, setting, gradient_checkpointing=True)
        learner = learner_of(policy, workload, tokens)
        batch = batch_of(workload, tokens, vocab_size(policy), setting)
        learner.update(batch)
        name = f"update of {tokens} tokens, {workload}"
        yield from profiled(name, lambda work=learner, data=batch: work.update(data), setting)
        del policy, learner
        forget()
    yield from _generation(setting)


def _generation(setting: Setting) -> Iterator[Row]:
    policy = policy_of(QWEN3, setting)
    size = Size(*setting.pick((1, 4, 4, 4), (8, 8, 128, 16)))
    settings = TransformersEngineSettings(max_rows=size.completions)
    engine = build_engine(settings, policy, [], size.prompt_tokens + size.tokens)
    engine.sync(policy, 0)
    requests, sampling = requests_of(size, vocab_size(policy), 0), Sampling(max_tokens=size.tokens)
    engine.generate(requests, sampling)
    name = f"generation, {size.completions} rows x {size.tokens} tokens"
    yield from profiled(name, lambda: engine.generate(requests, sampling), setting)


def profiled(name: str, work: Callable[[], object], setting: Setting) -> Iterator[Row]:
    """The dearest operators of a call, by their kernels' time on the GPU, else on the CPU."""
    gpu = device_of().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profiler(activities=activities) as found:
        work()
        synchronize()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    averages = found.key_averages()
    with (setting.out / "profile.txt").open("a", encoding="utf-8") as file:
        table = averages.table(sort_by=key, row_limit=_LINES, max_name_column_width=80)
        file.write(f"{name}\n{table}\n")
    # An operator's own entry repeats the time of its kernels: only kernels are summed.
    kernels = [e for e in averages if not gpu or e.device_type.name == "CUDA"]
    times = {event.key: float(getattr(event, key)) for event in kernels}
    calls = {event.key: event.count for event in kernels}
    total = sum(times.values())
    for operator in sorted(times, key=lambda k: -times[k])[:_ROWS]:
        yield {
            "of": name,
            "operator": operator[:100],
            "calls": calls[operator],
            "ms": times[operator] / 1e3,
            "share": times[operator] / total,
        }
