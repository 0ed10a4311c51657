"""The logic of losses: the published tables, and what must hold for any structure."""

import itertools
import math
import random
import re

import pytest
import torch

from rlvr.preference.compile import PROBABILITIES, equation, log_ratio, log_wmc, loss_of, polynomial
from rlvr.preference.decompile import decompile
from rlvr.preference.explain import compile_formulas
from rlvr.preference.formulas import ATOMS, formula_of, full, mask_of, parse_formula, to_text
from rlvr.preference.lattice import (
    covers,
    find,
    known_losses,
    name_of,
    neighbours,
    order,
    single_model_losses,
)
from rlvr.preference.numerics import log1mexp
from rlvr.preference.structure import Structure, count_structures

POINT = {"w": 0.6, "l": 0.3, "rw": 0.5, "rl": 0.4}

# name, rho_t, rho_b, P, P_C, P_A, rho, loss, reference rho, reference loss: Table and vectors of
# arXiv:2412.17696 (structures from its slides and lattice; numbers at the point above, beta 1).
TABLE = """
CEUnl | Pw*(1-Pl) | 1-Pw*(1-Pl) | w & ~l | true | false | -0.322773 .867501 -0.545917 1.002905
l20 | 1-Pl | 1-Pw*(1-Pl) | ~l | true | ~w & ~l | 0.188052 .603535 -0.035091 .710847
cUNL | Pw*(1-Pl) | Pl | ~l | w | l | false | 0.336472 .538997 0.113329 .638087
fUnl | 1-Pl | Pl | ~l | true | false | 0.847298 .356675 0.624154 .428996
sCE | Pw | 1-Pw*(1-Pl) | w | true | w & l | 0.033902 .676340 -0.189242 .792238
l3 | Pw*(1-Pl) | 1-Pw | w | ~(w & l) | false | 0.048790 .669050 -0.174353 .784119
CE | Pw | 1-Pw | w | true | false | 0.405465 .510826 0.182322 .606136
qfUnl | 1-Pl | 1-Pw | l -> w | ~(w & l) | ~w & ~l | 0.559616 .451985 0.336472 .538997
bCPO | 1-Pl*(1-Pw) | 1-Pw | l -> w | true | ~w & ~l | 0.788457 .374693 0.565314 .449917
ORPO | Pw*(1-Pl) | Pl*(1-Pw) | l -> w | w xor l | false | 1.252763 .251314 1.029619 .305382
cfUnl | 1-Pl | Pl*(1-Pw) | l -> w | ~(w & l) | false | 1.763589 .158224 1.540445 .194156
CPO | Pw | Pl | l -> w | w | l | w & l | 0.693147 .405465 0.470004 .485508
l14 | 1-Pl*(1-Pw) | Pl | l -> w | true | w & l | 1.076139 .293348 0.852996 .354969
cCPO | Pw | Pl*(1-Pw) | l -> w | w | l | false | 1.609438 .182322 1.386294 .223144
unCPO | Pl*Pw+(1-Pl) | Pl*(1-Pw) | l -> w | true | false | 1.992430 .127833 1.769287 .157392
l5 | 1-Pl*(1-Pw) | 1-Pw*(1-Pl) | l -> w | true | w <-> l | 0.416894 .506270 0.193750 .600957
"""


def rows():
    for line in TABLE.strip().splitlines():
        # "w | l" is the one formula with a bar in it.
        cells = line.replace(" w | l |", " w @ l |").split("|")
        yield [cell.strip().replace("@", "|") for cell in cells]


ROWS = {row[0]: row[1:] for row in rows()}

REFERENCE_CORES = {
    "rw -> (w & ~l)": ["CEUnl"],
    "rw -> ~l": ["cUNL", "fUnl"],
    "rw -> w": ["CE", "l3"],
    "rw & (l | ~rl) -> (w & ~l)": ["l20"],
    "rw & (~w | ~rl) -> (w & ~l)": ["sCE"],
    "rw & l -> w & rl": ["CPO", "l14"],
    "l & rw -> w": ["ORPO", "cfUnl", "cCPO", "unCPO"],
    "rw & (l | ~rl) -> w": ["qfUnl", "bCPO"],
    "rw & (l | ~rl) & (~w | ~rl) -> (w & ~l)": ["l5"],
}
EDGES = """
CEUnl > l20 cUNL sCE l3; l20 > qfUnl fUnl l5; cUNL > fUnl ORPO CPO; fUnl > cfUnl l14
l3 > qfUnl ORPO CE; sCE > CE CPO l5; CE > bCPO cCPO; qfUnl > bCPO cfUnl; l5 > bCPO l14
ORPO > cfUnl cCPO; CPO > cCPO l14; cCPO > unCPO; cfUnl > unCPO; bCPO > unCPO; l14 > unCPO
"""
EDGES_DRAWN = """
CEUnl > l20 cUNL sCE; l20 > qfUnl fUnl; cUNL > fUnl ORPO CPO; fUnl > cfUnl; sCE > CPO CE
CE > cCPO; qfUnl > cfUnl; ORPO > cfUnl cCPO; CPO > cCPO; cCPO > unCPO; cfUnl > unCPO
"""


def edges(text):
    found = set()
    for part in text.strip().replace("\n", ";").split(";"):
        upper, lowers = part.split(">")
        found |= {(upper.strip(), lower) for lower in lowers.split()}
    return found


def weights_at(point):
    return {k: torch.tensor(math.log(v), dtype=torch.float64) for k, v in point.items()}


def random_weights(generator, atoms=ATOMS):
    return {
        atom: torch.tensor(math.log(generator.uniform(1e-4, 1 - 1e-4)), dtype=torch.float64)
        for atom in atoms
    }


def random_structure(generator, atoms):
    whole = full(len(atoms))
    return Structure(atoms, generator.randint(1, whole), generator.randint(1, whole))


STRUCTURES = [
    random_structure(generator, tuple(ATOMS[: generator.choice([1, 2, 2, 3, 4])]))
    for generator in [random.Random(11)]
    for _ in range(200)
]


# The published sixteen.


@pytest.mark.parametrize("name", list(ROWS))
def test_the_sixteen_compile_to_their_published_values(name):
    structure = single_model_losses()[name]
    values = list(map(float, ROWS[name][5].split()))
    rho, rho_reference = (
        log_ratio(s, weights_at(POINT)) for s in (structure, structure.referenced())
    )
    found = [rho, loss_of(rho), rho_reference, loss_of(rho_reference)]
    assert [float(value) for value in found] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("name", list(ROWS))
def test_the_sixteen_decompile_to_their_published_formulas(name):
    top, bottom, core, condition, added, _ = ROWS[name]
    found = decompile(f"({top}) / ({bottom})").structure
    assert found.same_as(single_model_losses()[name])
    assert found.same_as(Structure.of(core, condition, added))
    atoms = ("w", "l")
    for mine, published in ((found.core, core), (found.condition, condition), (found.added, added)):
        assert mask_of(mine, atoms) == mask_of(parse_formula(published), atoms)
    assert name_of(found).name == name


@pytest.mark.parametrize(("core", "names"), REFERENCE_CORES.items())
def test_reference_forms_have_their_published_core(core, names):
    atoms = ("w", "l", "rw", "rl")
    for name in names:
        found = single_model_losses()[name].referenced()
        assert mask_of(found.core, atoms) == mask_of(parse_formula(core), atoms)
    assert sum(len(names) for names in REFERENCE_CORES.values()) == 16


def test_dpo_is_the_reference_form_of_cpo_and_reads_as_published():
    dpo = Structure.of("l & rw -> w & rl", "(w & rl) | (l & rw)", "w & l & rw & rl")
    assert dpo.same_as(single_model_losses()["CPO"].referenced())
    assert dpo.same_as(decompile("Pw * Rl / (Rw * Pl)").structure)
    assert name_of(dpo).name == "DPO"
    rho = log_ratio(dpo, weights_at(POINT))
    assert float(rho) == pytest.approx(0.470004, abs=1e-6)
    expected = {"logistic": 0.669923, "squared": 20.520867, "hinge": 0.0}
    for form, value in expected.items():
        assert float(loss_of(rho, form, 0.1)) == pytest.approx(value, abs=1e-6)


def test_the_printed_novel_loss_is_the_reference_form_of_orpo():
    found = decompile("Pw*Rl*(1-Pl) / (Pl*Rw*(1-Pw))").structure
    assert name_of(found).name == "ORPO with reference"
    assert to_text(found.core) == "l & rw -> w"


def test_the_lattice_has_the_published_edges():
    losses = single_model_losses()
    assert covers(losses) == edges(EDGES)
    assert len(edges(EDGES)) == 32
    drawn = {name: losses[name] for name in losses if name not in ("l3", "l5", "l14", "bCPO")}
    assert covers(drawn) == edges(EDGES_DRAWN)
    assert len(edges(EDGES_DRAWN)) == 18
    referenced = {name: structure.referenced() for name, structure in losses.items()}
    assert covers(referenced) == edges(EDGES)
    ranks = order(losses)
    assert [len(rank) for rank in ranks] == [1, 4, 6, 4, 1]
    assert (ranks[0], ranks[-1]) == (["CEUnl"], ["unCPO"])


def test_counts():
    assert count_structures(2) == 256
    assert count_structures(4) == 4_294_967_296
    sets = range(full(2) + 1)
    assert len(set(itertools.product(sets, sets))) == count_structures(2)


def test_printed_names_and_extra_atoms():
    assert name_of(decompile("Pw*Ml / (Mw*Pl)").structure).name == "SimPO"
    assert name_of(decompile("Pw*P2w*Rl / (Rw*R2w*Pl)").structure).name == "DPOP"
    dpop = find("DPOP")
    atoms = dpop.atoms
    published = parse_formula("l & rw & rw2 -> w & w2 & rl")
    assert mask_of(dpop.core, atoms) == mask_of(published, atoms)


# Any structure.


def test_decompile_undoes_compile():
    for structure in STRUCTURES:
        assert decompile(equation(structure)).structure.same_as(structure), equation(structure)


def test_compile_undoes_decompile():
    """The equation's own value, by plain arithmetic, is the compiled value of its structure."""
    generator = random.Random(3)
    for structure in STRUCTURES[:300]:
        weights = random_weights(generator)
        top, bottom = (polynomial(m, structure.atoms) for m in (structure.check, structure.cross))
        expected = math.log(arithmetic(top, weights) / arithmetic(bottom, weights))
        again = decompile(equation(structure)).structure
        assert float(log_ratio(again, weights)) == pytest.approx(expected, abs=1e-9)


def arithmetic(text, weights):
    """The value of a polynomial: only names, 1, + - * and parentheses stand in it."""
    values = {PROBABILITIES[atom]: math.exp(float(value)) for atom, value in weights.items()}
    assert set(text) <= set("PRMwl2-+*()1 0")
    return eval(text, {"__builtins__": {}}, values)


def test_formulas_describe_their_structure():
    for structure in STRUCTURES[:150]:
        assert Structure.of(**structure.formulas).same_as(structure)


def test_formulas_survive_printing_and_reading():
    generator = random.Random(5)
    for _ in range(300):
        atoms = ATOMS[: generator.choice([1, 2, 3, 4])]
        mask = generator.randint(0, full(len(atoms)))
        formula = formula_of(mask, atoms)
        assert mask_of(parse_formula(to_text(formula)), atoms) == mask


def test_wmc_is_the_sum_over_all_rows():
    generator = random.Random(7)
    for structure in STRUCTURES[:200]:
        weights = random_weights(generator)
        total = 0.0
        for row in range(1 << len(structure.atoms)):
            if structure.check >> row & 1:
                p = [math.exp(float(weights[atom])) for atom in structure.atoms]
                total += math.prod(x if row >> k & 1 else 1 - x for k, x in enumerate(p))
        found = log_wmc(structure.check, structure.atoms, weights)
        assert float(found) == pytest.approx(math.log(total), abs=1e-9)


def test_the_semantic_loss_and_the_conditional():
    """P_C true, P_A false: -log WMC(P). P_A false: -log Pr(P | P_C)."""
    generator = random.Random(9)
    tried = 0
    while tried < 200:
        atoms = tuple(ATOMS[: generator.choice([2, 3, 4])])
        whole = full(len(atoms))
        core, condition = generator.randint(1, whole - 1), generator.randint(1, whole)
        weights = random_weights(generator)
        plain = Structure(atoms, core, whole & ~core)
        loss = loss_of(log_ratio(plain, weights))
        assert float(loss) == pytest.approx(-float(log_wmc(core, atoms, weights)), abs=1e-9)
        if not (core & condition and condition & ~core):
            continue
        tried += 1
        held = Structure(atoms, core & condition, condition & ~core)
        loss = loss_of(log_ratio(held, weights))
        joint, given = (log_wmc(m, atoms, weights) for m in (core & condition, condition))
        assert float(loss) == pytest.approx(float(given - joint), abs=1e-9)


def test_entailment_orders_losses_at_any_weights():
    generator = random.Random(13)
    for upper, lower in edges(EDGES):
        asks_more, asks_less = (single_model_losses()[name] for name in (upper, lower))
        for _ in range(20):
            weights = random_weights(generator)
            assert log_ratio(asks_more, weights) < log_ratio(asks_less, weights)
    strict = 0
    for structure in STRUCTURES[:200]:
        for other in neighbours(structure, "up"):
            weights = random_weights(generator)
            assert structure.below(other)
            assert not other.below(structure)
            loss, less = (loss_of(log_ratio(s, weights)) for s in (structure, other))
            assert loss > less
            strict += 1
    assert strict > 200


def test_plain_formulas_that_entail_each_other_order_their_losses():
    generator = random.Random(15)
    for _ in range(200):
        atoms = tuple(ATOMS[: generator.choice([2, 3])])
        whole = full(len(atoms))
        weaker = generator.randint(1, whole - 1)
        stronger = weaker & generator.randint(1, whole)
        if not stronger or stronger == weaker:
            continue
        weights = random_weights(generator)
        losses = [-log_wmc(m, atoms, weights) for m in (stronger, weaker)]
        assert losses[0] > losses[1]


def test_neighbours_are_covers_and_come_in_pairs():
    for structure in STRUCTURES[:100]:
        for other in neighbours(structure, "up"):
            assert any(back.same_as(structure) for back in neighbours(other, "down"))
    losses = single_model_losses()
    for name, structure in losses.items():
        found = {name_of(s).name for s in neighbours(structure, "up") if name_of(s)}
        assert {b for a, b in edges(EDGES) if a == name} <= found


def test_the_reference_form_shifts_rho_by_log_rl_over_rw():
    generator = random.Random(17)
    for structure in single_model_losses().values():
        for _ in range(10):
            weights = random_weights(generator)
            shift = log_ratio(structure.referenced(), weights) - log_ratio(structure, weights)
            assert float(shift) == pytest.approx(float(weights["rl"] - weights["rw"]), abs=1e-9)


# Numbers at the edges.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_finite_down_to_probabilities_of_1e_300(dtype):
    values = [-math.log(10) * 300, -690.0, -80.0, -1.0, -1e-3, -1e-6, -1e-12, 0.0]
    a, b = torch.tensor(list(itertools.product(values, values)), dtype=dtype).T
    for known in known_losses():
        weights = {
            atom: (a if "w" in atom else b).clone().requires_grad_()
            for atom in known.structure.used_atoms
        }
        rho = log_ratio(known.structure, weights)
        assert rho.isfinite().all(), known.name
        for form in ("logistic", "squared", "hinge"):
            loss = loss_of(rho, form).sum()
            gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
            assert loss.isfinite()
            assert all(g.isfinite().all() for g in gradients), known.name


def test_log1mexp_against_exact_values():
    for x in (-1e-5, -1e-3, -0.5, -math.log(2), -0.7, -5.0, -40.0, -700.0):
        found = float(log1mexp(torch.tensor(x, dtype=torch.float64)))
        expected = math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x))
        assert found == pytest.approx(expected, rel=1e-12)


def test_gradients_of_rho_against_finite_differences():
    generator = random.Random(19)
    for structure in STRUCTURES[:20]:
        weights = random_weights(generator)
        names = list(structure.used_atoms)
        if not names:
            continue
        values = torch.stack([weights[name] for name in names]).requires_grad_()

        def rho(x, names=names, structure=structure):
            return log_ratio(structure, dict(zip(names, x, strict=True)))

        assert torch.autograd.gradcheck(rho, values)


# What is refused.


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Pw*(1-Pl) / (Pl + (1-Pw))", "Pl and 1-Pw are not disjoint: both hold where w is false"),
        ("Pw^2 / Pl", "Pw^2 is a power"),
        ("Pw**2 / Pl", "Pw^2 is a power"),
        ("Pw*Pw / Pl", "Pw and Pw both hold Pw"),
        ("Pw*(1-Pw) / Pl", "both hold Pw"),
        ("Pw*(1-Pl*(1-Pw)) / Pl", "both hold Pw"),
        ("Pw / Pl + Pw", "'+' stands after the denominator"),
        ("Pq / Pl", "'Pq' is no probability"),
        ("0.5*Pw / Pl", "0.5 is no prediction"),
        ("Pw / Pl / Rw", "stands after the denominator"),
        ("(Pw / Pl", "a parenthesis is not closed"),
        ("Pw", "no denominator"),
        ("Pw / ", "ends too early"),
        ("Pw & Pl / Pw", "'&' is not understood"),
        ("(Pw-Pl) / Pl", "Pl cannot be taken from Pw: it also holds where w is false"),
        ("0 / Pl", "Check is empty"),
    ],
)  # fmt: skip
def test_equations_that_count_no_formula_are_refused(text, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        decompile(text)


def test_the_misprinted_denominator_has_another_value():
    """With Pl + (1 - Pw) = 0.7 the loss would be 0.980829 instead of 0.867501."""
    wrong = -math.log(1 / (1 + 0.7 / 0.42))
    assert wrong == pytest.approx(0.980829, abs=1e-6)
    right = loss_of(log_ratio(find("CEUnl"), weights_at(POINT)))
    assert float(right) == pytest.approx(0.867501, abs=1e-6)
    assert float(right) == pytest.approx(-math.log(0.6 * 0.7), abs=1e-9)


def test_common_factors_are_pointed_out():
    found = decompile("Pw*Rw / (Pl*Rw)")
    assert "Rw divides both sides" in found.notes[0]
    assert not decompile("Pw*Rl / (Pl*Rw)").notes
    assert not found.structure.same_as(decompile("Pw / Pl").structure)
    weights = weights_at(POINT)
    same = log_ratio(decompile("Pw / Pl").structure, weights)
    assert float(log_ratio(found.structure, weights)) == pytest.approx(float(same))


@pytest.mark.parametrize(
    ("formulas", "part"),
    [
        (("l -> ", "true", "false"), "ends too early"),
        (("l => q", "true", "false"), "'q' is no atom"),
        (("l w", "true", "false"), "left over"),
        (("l $ w", "true", "false"), "'$' is not understood"),
        (("(l", "true", "false"), "parenthesis"),
        (("true", "true", "false"), "Cross is empty"),
        (("false", "true", "false"), "Check is empty"),
        (("w", "false", "false"), "Check is empty"),
        (("w", "w", "false"), "Cross is empty"),
    ],
)
def test_formulas_that_give_no_loss_are_refused(formulas, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        Structure.of(*formulas)


def test_the_erratum_of_the_poster():
    """P_C := bottom, as the poster prints for CE, would leave both counts empty."""
    with pytest.raises(ValueError, match="Check is empty"):
        Structure.of("w", "false", "false")


def test_other_refusals():
    with pytest.raises(ValueError, match="speaks of the reference already"):
        find("DPO").referenced()
    with pytest.raises(ValueError, match="no loss is named 'DPP'"):
        find("DPP")
    with pytest.raises(ValueError, match=r"no weight is given for Pl \(l\)"):
        log_ratio(find("CPO"), {"w": torch.tensor(-1.0)})


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"form": "cubic"}, "'cubic' is unknown"),
        ({"beta": 0.0}, "beta = 0.0 is not above 0"),
        ({"at": "Pw:.6"}, "is not of the form Pw=.6"),
        ({"at": "Pq=.6"}, "'Pq' is no probability"),
        ({"at": "Pw=.6,Pl=1"}, r"Pl = 1.0 is not within \(0, 1\)"),
    ],
)
def test_points_and_functions_that_cannot_be(given, part):
    settings = {"at": None, "form": "logistic", "beta": 1.0, "reference": False, **given}
    with pytest.raises(ValueError, match=part):
        compile_formulas("l -> w", "true", "false", **settings)
