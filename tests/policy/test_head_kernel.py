"""The kernel's log-probabilities, entropies and gradients, in Triton's interpreter or on a GPU."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rlvr.policy.head_kernel as head_kernel
from rlvr.objective.proxy import Proxy, ProxyStatistic
from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.head_choice import difference
from rlvr.policy.head_kernel import TILES, Tile, head_logprobs_and_entropy
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.token_stats import TokenHead, token_stats
from tests.import_graph import files, imports

# Rows beyond the last token and tiles of impossible tokens hold infinities, whose sums are unused.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Tile(16, 32, 16, warps=4)


def problem(tokens, words, width, dtype=torch.float64, *, bias=False, scale=1.0):
    """Hidden states, head, targets and, where there is one, the bias."""
    generator = torch.Generator().manual_seed(tokens)

    def random(*shape):
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(DEVICE, dtype).requires_grad_()

    targets = torch.randint(words, (tokens,), generator=generator).to(DEVICE)
    return random(tokens, width), random(words, width), targets, random(words) if bias else None


def plain(hidden, weight, targets, bias=None, temperature=1.0):
    """All of it in float64, with the logits in memory; impossible tokens have p log p = 0."""
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = torch.nn.functional.linear(*exact) + (0 if bias is None else bias.detach().double())
    logp = (logits / temperature).log_softmax(-1)
    finite = logp.clamp_min(-1e9)
    return exact, logp.gather(-1, targets[:, None])[:, 0], -(finite.exp() * finite).sum(-1)


def upstream(count):
    """Gradients by log-probability and entropy; some tokens have none, as behind a loss mask."""
    generator = torch.Generator().manual_seed(count)
    gradients = torch.randn(2, count, generator=generator, dtype=torch.float64)
    gradients[:, ::4] = 0.0
    return gradients.to(DEVICE)


def assert_as_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().max().clamp_min(1e-12)
        assert float(((a.double() - b.double()).abs().max() / scale).detach()) < tolerance


@pytest.mark.parametrize(
    ("dtype", "shape", "temperature", "bias", "tolerance"),
    [
        (torch.float64, (37, 101, 23), 0.7, True, 1e-12),
        (torch.float64, (1, 5, 16), 1.0, False, 1e-12),
        (torch.float32, (32, 64, 32), 1.0, False, 1e-5),
        (torch.bfloat16, (19, 70, 40), 1.3, True, 1e-2),
    ],
)
def test_values_and_gradients_are_those_of_float64(
    monkeypatch, dtype, shape, temperature, bias, tolerance
):
    monkeypatch.setattr(head_kernel, "_STRIP", shape[0] * 32)  # a tile to a strip
    hidden, weight, targets, bias_V = problem(*shape, dtype, bias=bias)
    logprobs, entropy = head_logprobs_and_entropy(
        hidden, weight, targets, temperature=temperature, bias_V=bias_V, tile=SMALL
    )
    exact, logprobs_64, entropy_64 = plain(hidden, weight, targets, bias_V, temperature)
    # Of bfloat16 the inputs are rounded, and the gradients by z, but no sum.
    assert_as_close((logprobs, entropy), (logprobs_64, entropy_64), min(tolerance, 1e-5))
    g_l, g_h = upstream(shape[0])
    found = torch.autograd.grad((g_l * logprobs + g_h * entropy).sum(), (hidden, weight))
    expected = torch.autograd.grad((g_l * logprobs_64 + g_h * entropy_64).sum(), exact)
    assert_as_close(found, expected, tolerance)


def test_the_gradient_of_a_bias_and_of_one_of_the_outputs():
    hidden, weight, targets, bias = problem(18, 40, 16, bias=True)
    logprobs, entropy = head_logprobs_and_entropy(hidden, weight, targets, bias_V=bias, tile=SMALL)
    logp = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    taken = logp.gather(-1, targets[:, None])[:, 0]
    for found, expected in ((logprobs, taken), (entropy, -(logp.exp() * logp).sum(-1))):
        assert_as_close(
            torch.autograd.grad(found.sum(), (hidden, weight, bias), retain_graph=True),
            torch.autograd.grad(expected.sum(), (hidden, weight, bias), retain_graph=True),
            1e-11,
        )


def test_impossible_tokens_and_huge_logits():
    """Words of minus infinity, a whole tile of them too, and logits of ten thousand."""
    hidden, weight, targets, _ = problem(20, 100, 16, torch.float32, scale=50.0)
    bias = torch.zeros(100, device=DEVICE)
    bias[32:64] = bias[3] = float("-inf")
    targets[:4] = torch.tensor([3, 40, 5, 99])
    logprobs, entropy = head_logprobs_and_entropy(hidden, weight, targets, bias_V=bias, tile=SMALL)
    assert (hidden @ weight.T).abs().max() > 1e4
    exact, logprobs_64, entropy_64 = plain(hidden, weight, targets, bias)
    possible = logprobs_64.isfinite()
    assert not possible[0]
    assert not possible[1]
    assert bool((logprobs[~possible] == float("-inf")).all())
    assert torch.allclose(logprobs[possible].double(), logprobs_64[possible], rtol=1e-5, atol=1e-2)
    assert torch.allclose(entropy.double(), entropy_64, atol=1e-2)
    weights = possible.double() * upstream(20)[0]
    loss = (weights * logprobs.where(possible, 0.0)).sum() + entropy.sum()
    found = torch.autograd.grad(loss, (hidden, weight))
    loss = (weights * logprobs_64.where(possible, 0.0)).sum() + entropy_64.sum()
    assert_as_close(found, torch.autograd.grad(loss, exact), 1e-2)


def test_a_token_has_the_same_bits_whatever_is_computed_with_it():
    hidden, weight, targets, _ = problem(37, 70, 24, torch.float32)
    with torch.no_grad():
        # Quarters, whose products are exact: the interpreter's are the CPU's library's.
        hidden, weight = (4 * hidden).round() / 4, (4 * weight).round() / 4
        together = head_logprobs_and_entropy(hidden, weight, targets, tile=SMALL)
        order = torch.tensor([30, 2, 17, 36, 5], device=DEVICE)
        few = head_logprobs_and_entropy(hidden[order], weight, targets[order], tile=SMALL)
        alone = head_logprobs_and_entropy(hidden[36:], weight, targets[36:], tile=SMALL)
    for all_N, few_N, one_N in zip(together, few, alone, strict=True):
        assert torch.equal(all_N[order], few_N)
        assert torch.equal(all_N[36:], one_N)


def test_logits_of_all_tokens_are_never_in_memory(monkeypatch):
    monkeypatch.setattr(head_kernel, "_STRIP", 48 * 32)
    hidden, weight, targets, _ = problem(48, 96, 16, torch.float32)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype == torch.float32:
                sizes.append(found.numel())
            return found

    with Sizes():
        logprobs, entropy = head_logprobs_and_entropy(hidden, weight, targets, tile=SMALL)
        (logprobs + entropy).sum().backward()
    # A strip of gradients, or the gradient of the weights.
    assert max(sizes) == 48 * 32 == 96 * 16 < 48 * 96


def test_no_tokens_and_tokens_outside_of_the_vocabulary():
    hidden, weight, targets, _ = problem(0, 30, 16)
    logprobs, entropy = head_logprobs_and_entropy(hidden, weight, targets, tile=SMALL)
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, 16)
    assert not weight.grad.any()
    hidden, weight, targets, _ = problem(3, 30, 16)
    targets[1] = 30
    logprobs, _ = head_logprobs_and_entropy(hidden, weight, targets, tile=SMALL)
    assert logprobs.isnan().tolist() == [False, True, False]


def test_nothing_but_the_kernel_needs_triton_when_it_is_imported():
    kernel = {"rlvr.policy.head_kernel", "rlvr.policy.head_tiles"}
    needs = {"triton", "triton.language", *kernel}
    assert {module for module in files() if imports(module) & needs} == kernel


def test_temperature_must_be_positive():
    hidden, weight, targets, _ = problem(2, 4, 16)
    with pytest.raises(ValueError, match="temperature 0"):
        head_logprobs_and_entropy(hidden, weight, targets, temperature=0.0)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(head_kernel, "_default_tile", lambda hidden_ND: SMALL)


@pytest.mark.usefixtures("small_tiles")
def test_under_autocast_a_head_of_float32_is_read_as_the_chunks_read_it():
    hidden, weight, targets, _ = problem(21, 60, 32, torch.float32, scale=0.3)
    results = {}
    for way in ("chunked", "kernel"):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            stats = token_stats(hidden, weight, targets, entropy=True, temperature=0.8, logits=way)
        assert stats.logprobs_N.dtype == torch.float32
        loss = (stats.logprobs_N + 0.1 * stats.entropy_N).sum()
        results[way] = (stats.logprobs_N, *torch.autograd.grad(loss, (hidden, weight)))
    assert [x.dtype for x in results["kernel"]] == [torch.float32] * 3
    assert_as_close(results["kernel"], results["chunked"], 2e-2)
    with torch.no_grad():
        assert token_stats(hidden, weight, targets, logits="kernel").entropy_N is None


@pytest.mark.usefixtures("small_tiles")
def test_statistics_and_given_chunks_stay_with_the_chunks(monkeypatch):
    hidden, weight, targets, _ = problem(5, 12, 16)

    def kernel(*_, **__):
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(head_kernel, "head_logprobs_and_entropy", kernel)
    found = token_stats(
        hidden, weight, targets, statistics=[ProxyStatistic(Proxy())], logits="kernel"
    )
    assert "kept" in found.columns
    token_stats(hidden, weight, targets, chunk_tokens=2, logits="kernel")
    with pytest.raises(AssertionError, match="was called"):
        token_stats(hidden, weight, targets, logits="kernel")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("lay_out", [packed_inputs, padded_inputs])
def test_a_policy_with_tied_embeddings_has_the_same_gradient(exact_policy, lay_out, monkeypatch):
    head = exact_policy.head
    assert head.weight is exact_policy.causal_lm.get_input_embeddings().weight
    prompts, completions = [[5, 6, 7], [5, 6, 7], [8, 9]], [[4, 3, 9, 11], [6], [10, 12]]
    inputs = lay_out(prompts, completions, (0, 1, 2)).to(exact_policy.device)
    found = {}
    for way in ("chunked", "kernel"):
        monkeypatch.setattr(head, "logits", way)
        exact_policy.zero_grad()
        stats = exact_policy(inputs, entropy=True, temperature=0.9)
        (stats.logprobs_N.square() + stats.entropy_N).sum().backward()
        found[way] = [stats.logprobs_N, *(p.grad.clone() for p in exact_policy.parameters())]
    assert_as_close(found["kernel"], found["chunked"], 1e-9)


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_the_kernel_without_a_gpu_is_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"model\.logits=kernel needs a GPU; set it to auto"):
        load_policy(ModelSettings(path=str(tiny_folder), logits="kernel"))
    for way in ("auto", "chunked"):
        policy = load_policy(ModelSettings(path=str(tiny_folder), logits=way))
        assert policy.head.logits == "chunked"


def test_the_trial_finds_a_kernel_that_is_off(monkeypatch):
    monkeypatch.setattr(head_kernel, "_default_tile", lambda hidden_ND: Tile(32, 64, 32, warps=4))
    torch.manual_seed(0)
    head = TokenHead(torch.nn.Linear(32, 100)).to(DEVICE)
    assert difference(head, torch.bfloat16) < 0.01
    multiply = head_kernel._multiply

    def half(left, right, out):
        multiply(left, right, out)
        out /= 2

    monkeypatch.setattr(head_kernel, "_multiply", half)
    assert difference(head, torch.bfloat16) > 0.4
    monkeypatch.undo()
    monkeypatch.setattr(
        head_kernel,
        "head_logprobs_and_entropy",
        lambda hidden, weight, targets, **_: (float("nan") * (hidden @ weight.T).sum(-1),) * 2,
    )
    assert not difference(head, torch.bfloat16) < 1e9


COMPILE = """
    import sys
    import triton, triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from rlvr.policy import head_tiles
    from rlvr.policy.head_kernel import TILES

    def compiled(kernel, tile, constants, half):
        numbers = {"N": "i32", "V": "i32", "first": "i32", "width": "i32", "targets": "*i64"}
        types = {name: f"*{half}" for name in ("hidden", "weight", "gradient")} | numbers
        names = kernel.arg_names
        kinds = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in names}
        aligned = [i for i, n in enumerate(names) if kinds[n] != "constexpr" and n != "N"]
        hints = {(i,): [["tt.divisibility", 16]] for i in aligned}
        source = ASTSource(kernel, kinds, constants, hints)
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    for name in sys.argv[1:]:
        tile = TILES[name]
        half, operand = ("fp32", tl.float32) if name == "float32" else ("bf16", tl.bfloat16)
        constants = {
            "D": 4096, "HAS_BIAS": False, "bias": None, "TOKENS": tile.tokens, "WORDS": tile.words,
            "DEPTH": tile.depth, "GROUP": tile.group, "OPERAND": operand, "WIDE": tl.float32,
        }
        for kernel in (head_tiles.forward, head_tiles.backward):
            more = {} if kernel is head_tiles.forward else {"HAS_ENTROPY": True}
            made = compiled(kernel, tile, constants | more, half)
            assert made.metadata.shared <= 227 * 1024, made.metadata.shared
            assert half == "fp32" or "wgmma.mma_async" in made.asm["ptx"], name
        compiled(head_tiles.combine, tile, {"K": 594, "TOKENS": 16, "TILES": 64}, half)
        print(name)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_hopper_gpu(monkeypatch, tmp_path):
    """To its tensor cores' instructions and within its shared memory; no GPU is needed for that."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILE), *TILES],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == list(TILES), done.stderr
