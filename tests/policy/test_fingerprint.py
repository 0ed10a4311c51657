"""The fingerprint of a policy: what changes it, and what must not."""

import hashlib

import pytest
import torch

from rlvr.policy.fingerprint import (
    _ROW,
    _multipliers,
    _row_sums,
    _row_sums_on_cpu,
    checksum,
    fingerprint,
)
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings


def slow_checksum(tensor):
    """The sum of the docstring in Python's own integers."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    data += bytes(-len(data) % 8)
    words = [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, len(data), 8)]
    total = 0
    for place, word in enumerate(words):
        row, column = divmod(place, _ROW)
        total += splitmix(row, 1) * splitmix(column, 0) * (word + (word >> 32))
    return total % 2**64


def splitmix(place, stream):
    mask = 2**64 - 1
    mixed = (place + (stream << 40) + 1) * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    return (mixed ^ mixed >> 31) | 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0),
        torch.tensor(3.0),
        torch.randn(7, 5, generator=torch.Generator().manual_seed(0)),
        torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
        torch.arange(11, dtype=torch.uint8),
        torch.arange(40.0)[1:],
        torch.arange(40.0).view(8, 5).T,
        torch.arange(2 * _ROW + 2 * _ROW + 3, dtype=torch.float32),
    ],
    ids=["none", "scalar", "float32", "bfloat16", "bytes", "offset", "transposed", "rows"],
)
def test_it_is_the_sum_that_the_docstring_says(tensor):
    assert checksum(tensor) == slow_checksum(tensor)


def test_several_rows_at_once_as_on_other_devices_add_up_to_the_same():
    generator = torch.Generator().manual_seed(0)
    rows_IJ = torch.randint(-(2**62), 2**62, (5, _ROW), generator=generator)
    multipliers_J = _multipliers(_ROW, 0)
    sums_I = _row_sums(rows_IJ, multipliers_J)
    assert torch.equal(_row_sums_on_cpu(rows_IJ, multipliers_J), sums_I)


def test_what_changes_places_or_signs_changes_it():
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    seen = {checksum(numbers)}
    for one, other in [(0, 1), (1, 3), (5, 999), (2, 4)]:
        swapped, signs = numbers.clone(), numbers.clone()
        swapped[one], swapped[other] = numbers[other], numbers[one]
        signs[[one, other]] *= -1  # the highest bits, where a plain weighted sum is blind
        seen |= {checksum(swapped), checksum(signs)}
    assert len(seen) == 9


def test_every_single_bit_counts():
    numbers = torch.randn(6, generator=torch.Generator().manual_seed(0))
    seen = {checksum(numbers)}
    for place in range(6):
        for bit in range(32):
            changed = numbers.clone()
            changed.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
            seen.add(checksum(changed))
    assert len(seen) == 1 + 6 * 32


@pytest.fixture
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


def test_buckets_do_not_matter_and_names_do(policy):
    whole = fingerprint(policy)
    assert len(bytes.fromhex(whole)) == hashlib.sha256().digest_size
    assert fingerprint(policy, most=1) == whole
    layer = policy.causal_lm.model.layers[0]
    names = [name for name, p in layer.named_parameters() if p.dim() == 1]
    one, other = (dict(layer.named_parameters())[name] for name in names[:2])
    with torch.no_grad():
        one += 0.5
    changed = fingerprint(policy)
    with torch.no_grad():
        one.copy_(other.clone()), other.add_(0.5)
    assert len({whole, changed, fingerprint(policy)}) == 3, "two tensors of one shape swapped"


def test_adapters_and_the_frozen_base_have_their_own(tiny_folder):
    settings = ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2))
    torch.manual_seed(0)
    policy = load_policy(settings)
    trained, frozen = fingerprint(policy), fingerprint(policy, trained=False)
    for name, parameter in policy.causal_lm.named_parameters():
        if ".lora_B" in name:
            parameter.data += 1
            break
    assert fingerprint(policy) != trained
    assert fingerprint(policy, trained=False) == frozen
    policy.causal_lm.get_input_embeddings().weight.data[0, 0] += 1
    assert fingerprint(policy, trained=False) != frozen
