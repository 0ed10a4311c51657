"""Rounding at random: a neighbour each time, and the number itself on average."""

import pytest
import torch

from rlvr.learner.moments import Moments, empty_moments
from rlvr.learner.rounding import (
    BLOCK,
    from_codes,
    largest_gap,
    noise_for,
    to_bfloat16,
    to_codes,
)

CPU = torch.device("cpu")


def noise(name="weight", seed=0, step=0):
    return noise_for(seed, step, name, CPU)


@pytest.mark.parametrize("value", [1.003, -0.7519, 3.3e-5, 1e-41])
def test_bfloat16_is_a_neighbour_and_right_on_average(value):
    values = torch.full((100_000,), value)
    rounded = to_bfloat16(values, noise()).double()
    near = torch.tensor(value).bfloat16()
    step = max(abs(float(near)) * 2**-7, 2.0**-133)
    assert float((rounded - values.double()).abs().max()) < step
    assert len(rounded.unique()) == 2
    # The standard error of the mean of a coin's two sides is at most half a step / sqrt(n).
    assert abs(float(rounded.mean()) - float(values[0])) < 5 * step / 2 / 100_000**0.5


def test_what_is_no_number_stays_so_and_what_is_bfloat16_stays_what_it_is():
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -1.5, 3.0e38])
    odd[2:3].view(torch.int32).fill_(0x7FFFFFFF)  # all bits set: noise would make it -0
    rounded = to_bfloat16(odd, noise())
    assert rounded[:2].tolist() == [float("inf"), -float("inf")]
    assert bool(rounded[2].isnan())
    assert rounded[3:5].tolist() == [0.0, -1.5]


def test_the_bits_depend_on_seed_step_and_name_alone():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    first = to_bfloat16(values, noise())
    torch.manual_seed(9)
    torch.rand(7)
    assert torch.equal(first, to_bfloat16(values, noise()))
    for other in (noise("bias"), noise(seed=1), noise(step=1)):
        assert not torch.equal(first, to_bfloat16(values, other))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, BLOCK, 3 * BLOCK + 17])
def test_codes_are_within_a_gap_of_the_number(signed, count):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, generator=generator) * torch.rand(count, generator=generator) ** 9
    values = values if signed else values.abs()
    for random in (noise(), None):
        codes, scales = to_codes(values, random, signed=signed)
        assert (codes.dtype, codes.shape, len(scales)) == (
            torch.uint8,
            (count,),
            -(-count // BLOCK),
        )
        off = (from_codes(codes, scales, signed=signed).double() - values.double()).abs()
        blocks = torch.arange(count) // BLOCK
        largest = torch.stack([values[blocks == b].abs().max() for b in range(len(scales))])
        bound = largest[blocks].double() * largest_gap(signed) * (0.5 if random is None else 1.0)
        assert bool((off <= bound * 1.0001).all())
        again = from_codes(codes, scales, signed=signed)
        places = torch.stack([values[blocks == b].abs().argmax() for b in range(len(scales))])
        assert torch.allclose(again[places + BLOCK * torch.arange(len(scales))].abs(), largest)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_right_on_average(signed):
    values = torch.rand(BLOCK, generator=torch.Generator().manual_seed(0)).square()
    values = values * (1 if not signed else torch.tensor([1.0, -1.0]).repeat(BLOCK // 2))
    draws = 4000
    codes, scales = to_codes(values.repeat(draws), noise(), signed=signed)
    mean = from_codes(codes, scales, signed=signed).double().view(draws, BLOCK).mean(0)
    gap = float(values.abs().max()) * largest_gap(signed)
    assert float((mean - values.double()).abs().max()) < 5 * gap / 2 / draws**0.5
    codes, scales = to_codes(values, None, signed=signed)
    near = from_codes(codes, scales, signed=signed).double()
    assert float((near - values.double()).abs().max()) > 5 * gap / 2 / draws**0.5, (
        "or it shows little"
    )


def test_the_second_moment_does_not_vanish_beside_a_large_one():
    """A root of 1e-4 beside 1 is held, where its square, 1e-8, is below the smallest code."""
    state = empty_moments(torch.zeros(BLOCK), "int8")
    square = torch.full((BLOCK,), 1e-8)
    square[0] = 1.0
    moments = Moments(state, 0, BLOCK)
    moments.write(torch.zeros(BLOCK), square, noise())
    _, held = moments.read()
    assert bool((held[1:] > 0).all())
    assert torch.allclose(held[1:].sqrt().mean(), torch.tensor(1e-4), rtol=0.02)
    codes, scales = to_codes(square, None, signed=False)
    assert bool((from_codes(codes, scales, signed=False)[1:] == 0).all())
