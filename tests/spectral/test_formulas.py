import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deflect_hf.errors import IndexFormulaError
from deflect_hf.spectral.formulas import Program, compile_program
from deflect_hf.spectral.probe import bound_of, has_additive_constant

BANDS = ("B", "G", "R", "N")
HOSTILE = {
    "call": "__import__('os').system('true')",
    "attribute": "N.__class__",
    "subscript": "N[0]",
    "lambda": "(lambda: N)()",
    "comprehension": "[N for _ in R]",
    "condition": "N if R else G",
    "comparison": "N > R",
    "boolean": "N and True",
    "true": "N + True",
    "text": "N * 'a'",
    "complex": "N * 1j",
    "assignment": "(N := R)",
    "statement": "import os",
    "matrix product": "N @ R",
    "floor division": "N // R",
    "huge exponent": "N ** 1e9",
    "exponent tower": "N ** 9 ** 9 ** 9 ** 9",
    "huge folded number": "N * 1000000 ** 8",
    "exponent that is a band": "N ** R",
    "huge number": "N * " + "9" * 1000,
    "infinite number": "N * 1e400",
    "division by zero": "N / 0",
    "division by folded zero": "N / (1 - 1)",
    "no value": "N * (0 - 2) ** 0.5",
    "deep brackets": "(" * 900 + "N" + ")" * 900,
    "deep signs": "-" * 1500 + "N",
    "deep operators": "N" + "+(N" * 300 + ")" * 300,
    "many terms": "+".join(["N"] * 999),
    "too long": "N" + " " * 3000,
    "null character": "N\0",
    "nothing": "",
    "no band": "1 + 2",
    "unfinished": "N +",
    "unknown band": "N - X",
    "grows beyond numbers": "((((N*1e6)**8)**8)**8)**8 - ((((N*1e6)**8)**8)**8)**8",
}


def bounded(formula: str, bands: Sequence[str]) -> Program:
    """The program of one formula, limited to its bound."""
    return compile_program([formula], bands, [bound_of(formula)])


@pytest.mark.parametrize("formula", HOSTILE.values(), ids=HOSTILE)
def test_anything_but_arithmetic_on_bands_is_refused(formula):
    with pytest.raises(IndexFormulaError):
        bounded(formula, BANDS)


def test_an_unknown_name_is_named_with_the_bands_and_the_nearest():
    with pytest.raises(IndexFormulaError, match=r"uses 'RE1', which is not one of the bands 'N', 'R1'\. Did you mean"):
        bounded("N - RE1", ["N", "R1"])


@pytest.mark.parametrize(
    ("formula", "bands", "expected"),
    [
        ("N - 2 * -R", {"N": 0.5, "R": 0.2}, 0.9),
        ("+N / R ** 2", {"N": 0.5, "R": 0.5}, 2.0),
        ("(N - R) / (N + R)", {"N": 0.0, "R": 0.0}, 0.0),
        ("(N - R) / (N + R)", {"N": 0.3, "R": -0.1}, 1.0),  # 2, limited to 1
        ("(N - R) / (N + R)", {"N": 0.1, "R": -0.3}, -1.0),  # -2: the sign of the denominator counts
        ("N / R", {"N": 0.3, "R": 0.0}, 10.0),
        ("N / R", {"N": 0.3, "R": -1e-15}, -10.0),
        ("(N - R) ** 0.5", {"N": 0.1, "R": 0.3}, 0.0),  # no real value
        ("(N - R) ** (1/3)", {"N": 0.225, "R": 0.1}, 0.5),
        ("(N * R) ** -0.5", {"N": 1.0, "R": 0.25}, 2.0),
        ("N ** -2", {"N": 0.5}, 4.0),
        ("N ** 3", {"N": -0.5}, -0.125),
    ],
)
def test_values(formula, bands, expected):
    planes = [torch.tensor([value], dtype=torch.float64) for value in bands.values()]
    (value,) = bounded(formula, list(bands)).values(planes)
    assert value.item() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        ["N/R", "N/(R-G)", "(N/R)/(G/B)", "1/(1/N-1/R)", "(N-R)**0.5/(G*B)**(1/3)", "(N/R)*(G/R)**1.16", "R**2/G**4"]
    ),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    st.booleans(),
)
def test_values_and_gradients_are_finite_wherever(formula, reflectances, alike):
    planes = [torch.tensor([reflectances[0] if alike else value], requires_grad=True) for value in reflectances]
    (index,) = bounded(formula, BANDS).values(planes)
    index.sum().backward()
    assert abs(index.item()) <= bound_of(formula)
    assert all(plane.grad is None or math.isfinite(plane.grad.item()) for plane in planes)


def test_a_program_computes_shared_parts_once():
    program = compile_program(["(N-R)/(N+R)", "(N-R)/(R+N)*N", "(N-R)"], BANDS)
    assert [step.op for step in program.steps].count("sub") == 1
    assert [step.op for step in program.steps].count("add") == 1


def test_a_program_gives_each_formula_its_own_value_and_takes_no_number_for_a_band():
    formulas = ["N", "N-R", "N", "R", "(N-R)*2", "G/N", "N-R", "G + R", "G + 2", "(1 - R) * (G - R)"]
    planes = [torch.tensor([value]) for value in (0.1, 0.2, 0.3, 0.4)]
    found: dict[int, float] = {}
    compile_program(formulas, BANDS).run(planes, lambda i, value: found.update({i: value.item()}))
    expected = [0.4, 0.1, 0.4, 0.3, 0.2, 0.5, 0.1, 0.5, 2.2, -0.07]
    assert [found[i] for i in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("formula", "bound", "constant"),
    [
        ("(N - R) / (N + R)", 1, False),
        ("N / (N + R + G)", 1, False),
        ("1.5 * (N - R) / (N + R + 0.5)", 1, True),
        ("N - R", 10, False),
        ("N / R", 10, False),
        ("(N*R)/(G**2.0)", 100, False),
        ("1/((0.1-R)**2+(0.06-N)**2)", 10000, True),
        ("2.5 * (N - R) / (N + 6 * R - 7.5 * B + 1)", 10, True),
    ],
)
def test_bounds_and_additive_constants(formula, bound, constant):
    assert bound_of(formula) == bound
    assert has_additive_constant(formula) is constant
