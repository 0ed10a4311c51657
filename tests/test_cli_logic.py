"""The commands about preference losses."""

import json

import pytest

from tests.command import call


def test_decompile_names_the_loss():
    done = call("logic", "decompile", "Pw*(1-Pl) / (Pl*(1-Pw))", "--json")
    found = json.loads(done.stdout)
    assert (found["P"], found["P_C"], found["P_A"]) == ("l -> w", "w xor l", "false")
    assert found["loss"] == "ORPO"


def test_compile_gives_the_published_numbers():
    core = ("logic", "compile", "--P", "l -> w", "--P_C", "w | l", "--P_A", "false")
    done = call(*core, "--at", "Pw=.6,Pl=.3,Rw=.5,Rl=.4", "--reference")
    assert "rho = 1.386294, logistic loss at beta 1 = 0.223144" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["logic", "decompile", "Pw*(1-Pl) / (Pl + (1-Pw))"], "not disjoint"),
        (["logic", "compile", "--P", "true"], "Cross is empty"),
        (["logic", "compile", "--P", "l -> w", "--at", "Pw=.6"], "no weight is given for Pl"),
    ],
)
def test_what_is_no_loss_takes_one_line(arguments, part):
    done = call(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr
