"""Spectral index formulas compiled from text to tensor arithmetic that stays finite and bounded.

A formula may come from an ``adapter_config.json`` that somebody published, so nothing of it is ever executed: its
syntax tree is checked against a whitelist (``+ - * / **``, numbers, band codes) and turned into a list of steps. Many
formulas compile into one :class:`Program`, in which a shared subexpression is computed once.

What differs from plain arithmetic, so that every value and every gradient is finite:

* division keeps the sign of the denominator and keeps it away from 0 by ``SMALLEST_DENOMINATOR``;
* an inner quotient is limited to ``+-LARGEST_QUOTIENT``;
* a power with a fractional exponent of a negative base, which has no real value, is 0;
* the result is limited to the formula's bound, see :mod:`deflect_hf.spectral.probe`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deflect_hf.errors import IndexFormulaError, listing, nearest

SMALLEST_DENOMINATOR = 1e-15
LARGEST_QUOTIENT = 1e6
_SMALLEST_BASE = 1e-20  # its cube root, 2e-7, still counts as 0
_BELOW_ZERO = 1e-30  # makes the sign of 0 positive

# The longest catalogue formula has 270 characters, 79 nodes, 12 levels and exponents up to 4.
MAX_CHARACTERS = 2000
MAX_NODES = 400
MAX_DEPTH = 60
MAX_EXPONENT = 8.0
MAX_NUMBER = 1e6

KEEP_STEPS = 6  # how long a shared value is kept for a later formula

# by their names in the module `operator`
_OPERATORS: dict[type, str] = dict(zip((ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow),
                                       ("add", "sub", "mul", "truediv", "pow"), strict=True))  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A band, a number, or an operation on nodes; equal expressions are equal nodes."""

    op: str
    args: tuple[Node, ...] = ()
    band: str = ""
    number: float = 0.0


def parse(formula: str, names: Collection[str] | None) -> Node:
    """Check a formula over the bands ``names`` (None: any); its expression, with constants folded."""
    if not isinstance(formula, str) or len(formula) > MAX_CHARACTERS:
        raise IndexFormulaError(f"a formula is a text of at most {MAX_CHARACTERS} characters, not {formula!r:.60}.")
    try:
        body = ast.parse(formula, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise IndexFormulaError(f"formula {formula!r:.80} cannot be read: {error}.") from None
    _refuse_large(body, formula)
    node = _convert(body, formula, names)
    if not bands_of(node):
        raise IndexFormulaError(f"formula {formula!r:.80} uses no band.")
    return node


def _refuse_large(body: ast.expr, formula: str) -> None:
    """Level by level, without recursion: the depth is what is being checked."""
    level: list[ast.AST] = [body]
    nodes = depth = 0
    while level:
        nodes += len(level)
        depth += 1
        if depth > MAX_DEPTH or nodes > 3 * MAX_NODES:
            raise IndexFormulaError(
                f"formula {formula!r:.80} is too large: at most {MAX_NODES} terms and {MAX_DEPTH} levels."
            )
        level = [child for parent in level for child in ast.iter_child_nodes(parent)]


def _convert(expression: ast.expr, formula: str, names: Collection[str] | None) -> Node:
    match expression:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _number(value, formula)
        case ast.Name(id=name):
            if names is not None and name not in names:
                raise IndexFormulaError(
                    f"formula {formula!r:.80} uses {name!r}, which is not one of the bands {listing(names)}."
                    f"{nearest(name, names)}"
                )
            return Node("band", band=name)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _convert(operand, formula, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _operation("sub", _number(0.0, formula), _convert(operand, formula, names), formula)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            op = _OPERATORS[type(operator)]
            return _operation(op, _convert(left, formula, names), _convert(right, formula, names), formula)
    raise IndexFormulaError(
        f"formula {formula!r:.80} holds {type(expression).__name__}: only + - * / **, numbers and band codes may occur."
    )


def _number(value: float, formula: str) -> Node:
    if not abs(value) <= MAX_NUMBER:
        raise IndexFormulaError(f"formula {formula!r:.80} holds a number beyond {MAX_NUMBER:g}.")
    return Node("number", number=float(value))


def _operation(op: str, left: Node, right: Node, formula: str) -> Node:
    if op == "pow" and (right.op != "number" or not abs(right.number) <= MAX_EXPONENT):
        raise IndexFormulaError(f"formula {formula!r:.80}: an exponent must be a number of at most {MAX_EXPONENT:g}.")
    if op == "truediv" and right.op == "number" and abs(right.number) < SMALLEST_DENOMINATOR:
        raise IndexFormulaError(f"formula {formula!r:.80} divides by {right.number:g}.")
    if left.op == right.op == "number":
        try:
            value = getattr(operator, op)(left.number, right.number)
        except (ZeroDivisionError, OverflowError):
            value = math.nan
        if isinstance(value, complex) or not math.isfinite(value):
            raise IndexFormulaError(f"formula {formula!r:.80}: a part made of numbers only has no value.")
        return _number(value, formula)
    return Node(op, (left, right))


def bands_of(node: Node) -> frozenset[str]:
    """The bands an expression depends on."""
    if node.op == "band":
        return frozenset([node.band])
    return frozenset().union(*(bands_of(arg) for arg in node.args))


@dataclass(frozen=True)
class Step:
    """One operation on slots. ``operands`` are slot numbers, or plain numbers; ``release`` the slots not needed later.

    ``outputs`` are the formulas whose value this step's result is.
    """

    op: str
    operands: tuple[int | float, ...]
    release: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Formulas compiled into one list of steps; the first slots are the bands, each step fills the next slot."""

    bands: tuple[str, ...]
    steps: tuple[Step, ...]
    bounds: tuple[float, ...]
    bands_used: tuple[frozenset[str], ...]

    def run(self, planes: Sequence[Tensor], consume: Callable[[int, Tensor], None]) -> None:
        """Evaluate all formulas on ``planes``, one tensor per band, all of one shape.

        ``consume(i, value)`` gets the bounded value of formula i at once; nothing is kept longer than needed later.
        """
        slots: dict[int, Tensor] = dict(enumerate(planes))
        for slot, step in enumerate(self.steps, start=len(self.bands)):
            operands = (slots[item] if isinstance(item, int) else item for item in step.operands)
            slots[slot] = value = _EXECUTE[step.op](*operands)
            for released in step.release:  # before the result is limited, which takes one more plane
                del slots[released]
            bounds = [self.bounds[output] for output in step.outputs]
            limited = [*map(value.clamp, [-bound for bound in bounds], bounds)]
            del value
            for output in step.outputs:
                consume(output, limited.pop(0))

    def values(self, planes: Sequence[Tensor]) -> list[Tensor]:
        """The bounded value of each formula on ``planes``."""
        found: dict[int, Tensor] = {}
        self.run(planes, found.__setitem__)
        return [found[number] for number in range(len(self.bounds))]


def _safe(denominator: Tensor) -> Tensor:
    return torch.add(denominator, torch.sign(denominator + _BELOW_ZERO), alpha=SMALLEST_DENOMINATOR)


def _quotient(numerator: Tensor | float, safe_denominator: Tensor) -> Tensor:
    return (numerator / safe_denominator).clamp(-LARGEST_QUOTIENT, LARGEST_QUOTIENT)


def _root(base: Tensor, exponent: float) -> Tensor:
    """A fractional power: 0 where the base is not positive, with gradient 0 there."""
    return torch.where(base > _SMALLEST_BASE, base.clamp(min=_SMALLEST_BASE) ** exponent, 0.0)


def _integer_power(base: Tensor, exponent: float) -> Tensor:
    return base * base if exponent == 2.0 else base ** int(exponent)


_EXECUTE: dict[str, Callable[..., Tensor]] = {
    **{op: getattr(operator, op) for op in ("add", "sub", "mul", "truediv")},
    "safe": _safe,
    "quotient": _quotient,
    "root": _root,
    "power": _integer_power,
    "copy": lambda a: a,
}


def compile_program(formulas: Sequence[str], bands: Sequence[str], bounds: Sequence[float] | None = None) -> Program:
    """Compile formulas over ``bands`` into one program.

    ``bounds`` limit the values; None leaves them without limit, which only the search for bounds wants.
    """
    nodes = [parse(formula, bands) for formula in formulas]
    order = sorted(range(len(nodes)), key=lambda i: sorted(bands.index(band) for band in bands_of(nodes[i])))
    builder = _Builder(bands)
    results = {i: builder.add(nodes[i], outermost=True) for i in order}
    return builder.finish(results, bounds or [math.inf] * len(nodes), [bands_of(node) for node in nodes])


class _Builder:
    """Assigns each distinct operation one slot."""

    def __init__(self, bands: Sequence[str]) -> None:
        self.bands = tuple(bands)
        self.slots: dict[str, tuple[int, int]] = {}  # text of an operation: slot, step of its last use
        self.steps: list[tuple[str, tuple[int | float, ...]]] = []

    def emit(self, op: str, *operands: int | float) -> int:
        if op in ("add", "mul"):
            operands = tuple(sorted(operands, key=lambda operand: (isinstance(operand, float), operand)))
        text = f"{op} {operands}"  # slot 1 and the number 1.0 are equal as numbers, not as texts
        now = len(self.bands) + len(self.steps)
        slot, last_use = self.slots.get(text, (now, now))
        if now - last_use > KEEP_STEPS:
            slot = now  # computed again: all shared values of a large set together would be several times the input
        if slot == now:
            self.steps.append((op, operands))
        self.slots[text] = (slot, now)
        return slot

    def add(self, node: Node, outermost: bool = False) -> int | float:
        """Return the slot of a node's value, or the number that it is."""
        if node.op == "number":
            return node.number
        if node.op == "band":
            slot = self.bands.index(node.band)
            return self.emit("copy", slot) if outermost else slot
        if node.op == "pow":
            return self.power(self.add(node.args[0]), node.args[1].number, outermost)
        left, right = (self.add(arg) for arg in node.args)
        if node.op == "truediv":
            return self.divide(left, right, outermost)
        return self.emit(node.op, left, right)

    def divide(self, left: int | float, right: int | float, outermost: bool) -> int:
        if isinstance(right, float):
            return self.emit("truediv", left, right)
        # the outermost quotient is limited to the formula's own bound
        return self.emit("truediv" if outermost else "quotient", left, self.emit("safe", right))

    def power(self, base: int | float, exponent: float, outermost: bool) -> int:
        if exponent < 0:
            return self.divide(1.0, self.power(base, -exponent, False), outermost)
        return self.emit("power" if exponent.is_integer() else "root", base, exponent)

    def finish(
        self, results: Mapping[int, int | float], bounds: Sequence[float], bands_used: Sequence[frozenset[str]]
    ) -> Program:
        last_use: dict[int, int] = {}
        for number, (_, operands) in enumerate(self.steps):
            slot = len(self.bands) + number
            last_use[slot] = number
            last_use.update({operand: number for operand in operands if isinstance(operand, int)})
        steps = [
            Step(
                op,
                operands,
                tuple(s for s, last in last_use.items() if last == number and s >= len(self.bands)),
                tuple(i for i, slot in results.items() if slot == len(self.bands) + number),
            )
            for number, (op, operands) in enumerate(self.steps)
        ]
        return Program(self.bands, tuple(steps), tuple(bounds), tuple(bands_used))
