"""Composites: regions of operators that are one operation spelt out, found by their dataflow.

1. Activations (GELU, SiLU, Mish, hard-swish ...): elementwise operators that read one value, the
   entry, besides scalar constants, and end in a product of two of its values. They are told apart
   by what they compute at sample points, whatever their spelling.
2. Norms (LayerNorm, RMSNorm, InstanceNorm, GroupNorm): the same with a mean and a root in it, and
   the gamma and beta that follow.
3. Softmax with the scale and the mask in front of it.
4. Layers quantised at run time: MatMulInteger or ConvInteger, Cast, Mul and Add.

Runtimes fuse such regions by their text; a constant that leaves one, or that a map enters, costs
the fused kernel. Insert takes the activations for nonlinearities; fold leaves all constants alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bnpass.ir.formulas import sigmoid
from bnpass.ir.graph import Graph, Op
from bnpass.ir.operators import kinds
from bnpass.ir.ranks import rank_of
from bnpass.passes.sampling import POINTS, factor_of, sampled

_ELEMENTWISE = kinds(lambda row: row.formula is not None)
_BENDS = kinds(lambda row: row.bends)
_NORM_KINDS = _ELEMENTWISE - _BENDS | {"ReduceMean"}
_THROUGH = kinds(lambda row: row.repeats or row.moves)
_INTEGER_LAYERS = frozenset({"MatMulInteger", "ConvInteger"})  # whose result an operator scales
_REGION = 32  # operators: the longest spelling of a known activation has 9
_FIXED = frozenset({"Gelu", "QuickGelu", "Softmax"})  # composites, whose numbers runtimes match
_TOLERANCE = 2e-3  # of the constants of a float16 file, and between the two formulas of GELU


@dataclass(frozen=True)
class Composite:
    """One operation that several operators spell out.

    Attributes:
        name: what it is (``Gelu``, ``LayerNormalization``, ``Softmax``); ``composite``: an
            activation without a name of its own.
        entry: the value that it reads.
        end: the operator that makes its result.
        region: names of all its operators.
        affine: names of those that hold a norm's gamma and beta.
        scales: of a quantised layer: the operator that multiplies by the weight's scale.
        axis: of its channels; 0: it is no such layer.
    """

    name: str
    entry: str
    end: Op
    region: frozenset[str]
    affine: frozenset[str] = frozenset()
    scales: Op | None = None
    axis: int = 0

    @property
    def is_fixed(self) -> bool:
        """Whether runtimes know it by the numbers in it: another constant and it is none."""
        return self.name in _FIXED


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


_ACTIVATIONS = {
    "Gelu": _gelu(POINTS),
    "QuickGelu": POINTS * sigmoid(1.702 * POINTS),
    "SiLU": POINTS * sigmoid(POINTS),
    "HardSwish": POINTS * np.clip(POINTS + 3, 0, 6) / 6,
    "Mish": POINTS * np.tanh(np.logaddexp(POINTS, 0)),
}


def find_composites(graph: Graph) -> list[Composite]:
    """All composites, the activations in topological order first."""
    taken: set[str] = set()
    found: list[Composite] = []
    for finder in (_activations, _norms, _softmaxes, _quantised_layers):
        for one in finder(graph, taken):
            taken |= one.region
            found.append(one)
    return found


def find_activations(graph: Graph) -> list[Composite]:
    """The activations among the composites."""
    taken: set[str] = set()
    found = []
    for one in _activations(graph, taken):
        taken |= one.region
        found.append(one)
    return found


# --- 1. activations


def _activations(graph: Graph, taken: set[str]) -> Iterator[Composite]:
    for entry in _entries(graph):
        one = _activation(entry, graph, taken)
        if one is not None:
            yield one


def _entries(graph: Graph) -> Iterator[str]:
    """Values that more than one operator reads."""
    for value in graph.inputs:
        if len(graph.uses(value)) > 1:
            yield value
    for op in graph.ops_in_order:
        for value in op.outputs:
            if value and len(graph.uses(value)) > 1:
                yield value


def _activation(entry: str, graph: Graph, taken: set[str]) -> Composite | None:
    """The largest region behind ``entry`` that ends in a product and leaks nothing."""
    members = _closure(entry, _ELEMENTWISE, graph, taken)
    for end in reversed([op for op in members if _joins(op, ("Mul", "Div"), graph)]):
        region = _region(end, entry, members, graph)
        if region is None or not any(op.kind in _BENDS for op in region if op is not end):
            continue
        one = _named(entry, end, region, graph)
        if one.name != "composite" or end.kind == "Mul":
            return one
    return None


def _named(entry: str, end: Op, region: list[Op], graph: Graph) -> Composite:
    """The activation with its name, and with the constant factor behind that belongs to it."""
    names = frozenset(op.name for op in region)
    values = sampled(region, entry, graph)
    if values is None:
        return Composite("composite", entry, end, names)
    for name, reference in _ACTIVATIONS.items():
        factor = factor_of(values[end.outputs[0]], reference, _TOLERANCE)
        if factor is None:
            continue
        if abs(factor - 1) < _TOLERANCE:
            return Composite(name, entry, end, names)
        last = _only_reader(end.outputs[0], graph)
        scale = None if last is None else _scalar_factor(last, end.outputs[0], graph)
        if last is not None and scale is not None and abs(factor * scale - 1) < _TOLERANCE:
            return Composite(name, entry, last, names | {last.name})
    return Composite("composite", entry, end, names)


def _scalar_factor(op: Op, value: str, graph: Graph) -> float | None:
    """c where an operator computes c times ``value``."""
    if op.kind not in ("Mul", "Div") or len(op.inputs) != 2:
        return None
    index = op.inputs.index(value)
    constant = graph.constant(op.inputs[1 - index])
    if constant is None or not _scalar(constant.shape) or (op.kind == "Div" and index == 1):
        return None
    number = float(np.asarray(constant.small, np.float64).reshape(-1)[0])
    if op.kind == "Mul":
        return number
    return 1 / number if number else None


# --- regions


def _closure(entry: str, kinds: frozenset[str], graph: Graph, taken: set[str]) -> list[Op]:
    """Operators of some kinds that read nothing but ``entry``, each other and scalars, in order."""
    values = {entry}
    members: list[Op] = []
    front = [use.op for use in graph.uses(entry)]
    seen: set[str] = set()
    while front and len(members) < _REGION:
        front.sort(key=lambda op: graph.order[op.name], reverse=True)
        op = front.pop()
        if op.name in seen:
            continue
        if op.kind not in kinds or op.name in taken or not _reads_only(op, values, graph):
            continue
        seen.add(op.name)
        members.append(op)
        values.update(op.outputs)
        front += [use.op for name in op.outputs for use in graph.uses(name)]
    return members


def _reads_only(op: Op, values: set[str], graph: Graph) -> bool:
    for index, name in enumerate(op.inputs):
        if not name or name in values:
            continue
        constant = graph.constant(name)
        axes = op.kind == "ReduceMean" and index == 1
        if constant is None or not (_scalar(constant.shape) or axes):
            return False
    return True


def _joins(op: Op, kinds: tuple[str, ...], graph: Graph) -> bool:
    """Whether an operator joins two computed values."""
    return op.kind in kinds and len({v for v in op.inputs if graph.constant(v) is None}) == 2


def _region(end: Op, entry: str, members: list[Op], graph: Graph) -> list[Op] | None:
    """The members that lead from ``entry`` to ``end``, in order; None where one is read outside."""
    names, stack = {end.name}, [end]
    inside = {op.name for op in members}
    while stack:
        for name in stack.pop().inputs:
            maker = graph.producer(name)
            if name != entry and maker is not None and maker.name in inside - names:
                names.add(maker.name)
                stack.append(maker)
    if not any(use.op.name in names for use in graph.uses(entry)):
        return None
    region = [op for op in members if op.name in names]
    if all(_read_inside(op, names, graph) for op in region if op is not end):
        return region
    return None


def _read_inside(op: Op, region: set[str], graph: Graph) -> bool:
    return all(
        not graph.is_output(name) and all(use.op.name in region for use in graph.uses(name))
        for name in op.outputs
        if name
    )


def _only_reader(value: str, graph: Graph) -> Op | None:
    uses = graph.uses(value)
    if len(uses) != 1 or uses[0].index < 0 or graph.is_output(value):
        return None
    return uses[0].op


def _scalar(shape: tuple[int, ...]) -> bool:
    return all(n == 1 for n in shape)


# --- 2. norms


def _norms(graph: Graph, taken: set[str]) -> Iterator[Composite]:
    if any(op.kind == "ReduceMean" for op in graph.ops_in_order):
        for entry in _entries(graph):
            one = _norm(entry, graph, taken)
            if one is not None:
                yield one
    for op in graph.ops_in_order:
        if op.kind == "InstanceNormalization" and op.name not in taken:
            yield from _group_norm(op, graph)


def _norm(entry: str, graph: Graph, taken: set[str]) -> Composite | None:
    """The largest region with a mean and a root in it that ends where two values meet."""
    if not any(use.op.kind in _NORM_KINDS for use in graph.uses(entry)):
        return None
    members = _closure(entry, _NORM_KINDS, graph, taken)
    kinds = {op.kind for op in members}
    if "ReduceMean" not in kinds or not kinds & {"Sqrt", "Pow"}:
        return None
    for end in reversed([op for op in members if _joins(op, ("Mul", "Div"), graph)]):
        region = _region(end, entry, members, graph)
        if region is not None and _is_norm(region, graph):
            affine = _affine_tail(end, graph)
            names = frozenset(op.name for op in (*region, *affine))
            held = frozenset(op.name for op in affine if op.kind not in _THROUGH)
            last = affine[-1] if affine else end
            return Composite(_norm_name(region, entry, graph), entry, last, names, held)
    return None


def _is_norm(region: list[Op], graph: Graph) -> bool:
    """Whether the root of a mean of squares is in it: nothing else reads it, so it divides."""
    kinds = [op.kind for op in region]
    root = "Sqrt" in kinds or any(_power(op, graph) in (0.5, -0.5) for op in region)
    square = any(_power(op, graph) == 2 or _squares(op) for op in region)
    return root and square and "ReduceMean" in kinds


def _power(op: Op, graph: Graph) -> float | None:
    constant = graph.constant(op.input(1)) if op.kind == "Pow" else None
    if constant is None or not _scalar(constant.shape):
        return None
    return float(np.asarray(constant.small, np.float64).reshape(-1)[0])


def _squares(op: Op) -> bool:
    return op.kind == "Mul" and op.inputs[0] == op.inputs[1]


def _norm_name(region: list[Op], entry: str, graph: Graph) -> str:
    if not any(op.kind == "Sub" for op in region):
        return "RMSNormalization"
    mean = next(op for op in region if op.kind == "ReduceMean")
    axes, rank = graph.constant(mean.input(1)), rank_of(graph, entry)
    found = [] if axes is None else [int(a) for a in np.asarray(axes.small).reshape(-1)]
    last = rank is not None and [a % rank for a in found] == list(range(rank - len(found), rank))
    spatial = last and rank == len(found) + 2
    return "InstanceNormalization" if spatial and len(found) > 1 else "LayerNormalization"


def _affine_tail(end: Op, graph: Graph) -> list[Op]:
    """Gamma and beta behind a norm, with the casts and reshapings in front of them."""
    tail: list[Op] = []
    passed: list[Op] = []
    wanted = ["Mul", "Add"]
    value = end.outputs[0]
    while wanted and (op := _only_reader(value, graph)) is not None:
        if op.kind in _THROUGH and op.inputs[0] == value:
            passed.append(op)
        elif op.kind in wanted and _parameter(op, value, graph):
            tail += [*passed, op]
            passed = []
            del wanted[: wanted.index(op.kind) + 1]
        else:
            break
        value = op.outputs[0]
    return tail


def _parameter(op: Op, value: str, graph: Graph) -> bool:
    """Whether the other operand is a constant with more than one entry along one axis."""
    others = [graph.constant(name) for name in op.inputs if name != value]
    if len(others) != 1 or others[0] is None:
        return False
    return sum(n != 1 for n in others[0].shape) == 1


def _group_norm(op: Op, graph: Graph) -> Iterator[Composite]:
    """An InstanceNormalization over groups, then a reshaping back, gamma and beta."""
    tail = _affine_tail(op, graph)
    if tail and any(t.kind in ("Reshape", "Flatten") for t in tail):
        names = frozenset([op.name, *(t.name for t in tail)])
        held = frozenset(t.name for t in tail if t.kind not in _THROUGH)
        yield Composite("GroupNormalization", op.inputs[0], tail[-1], names, held)


# --- 3. softmax


def _softmaxes(graph: Graph, taken: set[str]) -> Iterator[Composite]:
    for op in graph.ops_in_order:
        if op.kind == "Softmax":
            region = {op.name}
            _scores(op.inputs[0], region, graph, taken)
            if len(region) > 1:
                yield Composite("Softmax", op.inputs[0], op, frozenset(region))


def _scores(value: str, region: set[str], graph: Graph, taken: set[str]) -> None:
    """The mask and the scale that lead to a softmax, from the product of queries and keys on."""
    op = graph.producer(value)
    if op is None or op.name in taken or op.name in region or _only_reader(value, graph) is None:
        return
    if op.kind == "MatMul" and _joins(op, ("MatMul",), graph):
        for name in op.inputs:
            maker = graph.producer(name)
            if maker is not None and _scales(maker, graph) and _only_reader(name, graph) is op:
                region.add(maker.name)
    elif _scales(op, graph) or op.kind in ("Add", "Where"):
        region.add(op.name)
        for name in op.inputs:
            if name and graph.constant(name) is None:
                _scores(name, region, graph, taken)


def _scales(op: Op, graph: Graph) -> bool:
    free = [name for name in op.inputs if graph.constant(name) is None]
    return len(free) == 1 and _scalar_factor(op, free[0], graph) is not None


# --- 4. layers quantised at run time


def _quantised_layers(graph: Graph, taken: set[str]) -> Iterator[Composite]:
    for op in graph.ops_in_order:
        if op.kind in _INTEGER_LAYERS:
            one = _quantised_layer(op, graph)
            if one is not None and not one.region & taken:
                yield one


def _quantised_layer(op: Op, graph: Graph) -> Composite | None:
    cast = _only_reader(op.outputs[0], graph)
    if cast is None or cast.kind != "Cast":
        return None
    end = _only_reader(cast.outputs[0], graph)
    if end is None or end.kind != "Mul":
        return None
    region = {op.name, cast.name, end.name}
    other = next((name for name in end.inputs if name != cast.outputs[0]), "")
    scales = graph.producer(other)
    if graph.constant(other) is not None:
        scales = end
    elif scales is not None and scales.kind == "Mul" and _only_reader(other, graph) is end:
        region.add(scales.name)
        if all(graph.constant(name) is None for name in scales.inputs):
            scales = None
    else:
        scales = None
    add = _only_reader(end.outputs[0], graph)
    if add is not None and add.kind == "Add" and _has_constant(add, graph):
        region.add(add.name)
        end = add
    name = f"dynamically quantised {op.kind.removesuffix('Integer')}"
    axis = 1 if op.kind == "ConvInteger" else -1
    return Composite(name, op.inputs[0], end, frozenset(region), scales=scales, axis=axis)


def _has_constant(op: Op, graph: Graph) -> bool:
    return any(graph.constant(name) is not None for name in op.inputs)
