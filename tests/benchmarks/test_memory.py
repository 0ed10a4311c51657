"""The estimate is within a tenth of what two updates take, for options that move it most."""

import pytest

from tests.benchmarks.memory import CASES, compare, in_child, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    in_child(write_model, folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", ["weights in bfloat16, moments in int8", "with a reference", "adapters, base in nf4"]
)
def test_an_estimate_is_within_a_tenth(model, name):
    predicted, measured = compare(model, CASES[name])
    assert predicted["running"] == pytest.approx(measured["running"], rel=0.1)
