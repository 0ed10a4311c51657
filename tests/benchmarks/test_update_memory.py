"""Chunked statistics must at least halve the peak memory of an update of SmolLM2-135M's shape."""

import pytest

from tests.benchmarks.update_memory import compare


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_chunked_statistics_halve_the_peak_of_an_update():
    results = compare("smollm2-135m", checkpointing=True)
    assert results["chunked"]["loss"] == pytest.approx(results["plain"]["loss"], rel=1e-5)
    assert results["chunked"]["peak_gib"] <= 0.5 * results["plain"]["peak_gib"]
