"""What people count of a model: BatchNorms, nodes, parameters, multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import TensorProto

from bnpass.onnx_model.attributes import attribute, is_onnx
from bnpass.onnx_model.inference import Known
from bnpass.onnx_model.model import OnnxModel
from bnpass.onnx_model.scopes import Place, all_nodes, graphs, nodes_within, placed_bodies

COUNTED = 5_000
"""Nodes up to which multiply-adds are counted: beyond, shapes cost more than a fold does."""

_SIZES = frozenset({TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING, TensorProto.UNDEFINED})
_WHOLE = frozenset({TensorProto.INT32, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32,
                    TensorProto.UINT64})  # fmt: skip
# Operators that read codes; the table's quantised ones write some, too.
_CODED = ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Facts:
    """What a model holds.

    Attributes:
        batch_norms: BatchNormalization nodes, in bodies and functions too.
        nodes: all nodes, likewise.
        parameters: numbers of weights; see :func:`parameters`.
        multiply_adds: of one run with free sizes at 1; None: shapes are not known, or the model
            has more than :data:`COUNTED` nodes.
    """

    batch_norms: int
    nodes: int
    parameters: int
    multiply_adds: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def facts_of(model: OnnxModel) -> Facts:
    """Count what a model holds, as it is now."""
    nodes = list(model.nodes())
    tensors = _tensors(model.proto, nodes)
    counted = multiply_adds(model) if len(nodes) <= COUNTED else None
    norms = sum(node.op_type == "BatchNormalization" for node in nodes)
    return Facts(norms, len(nodes), _weights(nodes, tensors), counted)


def parameters(model: onnx.ModelProto) -> int:
    """Numbers of weights: in initializers and Constant nodes, of bodies and functions too.

    Whole numbers count where a quantised layer reads them; sizes, axes and indices do not, nor do
    scalars, which exporters write for arithmetic.
    """
    nodes = list(all_nodes(model))
    return _weights(nodes, _tensors(model, nodes))


def _weights(
    nodes: Sequence[onnx.NodeProto], tensors: Sequence[tuple[str, TensorProto]]
) -> int:
    coded = {name for node in nodes if node.op_type in _CODED for name in node.input}
    return sum(
        math.prod(t.dims) for name, t in tensors
        if t.dims and t.data_type not in _SIZES and (t.data_type not in _WHOLE or name in coded)
    )  # fmt: skip


def _tensors(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]
) -> list[tuple[str, TensorProto]]:
    """Initializers and the values of Constant nodes, by the name of the value."""
    found = [(t.name, t) for graph in graphs(model.graph) for t in graph.initializer]
    found += [(s.values.name, s.values) for graph in graphs(model.graph)
              for s in graph.sparse_initializer]  # fmt: skip
    constants = (node for node in nodes if node.op_type == "Constant" and is_onnx(node))
    return found + [
        (n.output[0], held) for n in constants for a in n.attribute
        if (held := _held(a)) is not None
    ]  # fmt: skip


def _held(item: onnx.AttributeProto) -> TensorProto | None:
    """The tensor that an attribute of a Constant node is; None for text and sparse ones."""
    if item.name == "value":
        return item.t
    if item.name == "value_floats":
        return TensorProto(data_type=TensorProto.FLOAT, dims=[len(item.floats)])
    return None


# --- multiply-adds

_Shapes = Callable[[str], tuple[int, ...] | None]


class _UnknownShapeError(Exception):
    """A layer whose work cannot be told."""


def multiply_adds(model: OnnxModel) -> int | None:
    """Multiply-adds of convolutions, matrix products and recurrent layers in one run.

    Free sizes count as 1: with a free batch that is one sample. The branches of an If count
    together and the body of a loop once.

    Returns:
        The number, or None where a layer's shape is not known.
    """
    if any(node.op_type in _WORK for f in model.proto.functions for node in nodes_within(f.node)):
        return None
    try:
        return _work_of(model, model.proto.graph, (), {})
    except _UnknownShapeError:
        return None


def _work_of(
    model: OnnxModel, graph: onnx.GraphProto, place: Place, outer: dict[str, tuple[int, ...]]
) -> int:
    weights = {**outer, **{t.name: tuple(t.dims) for t in graph.initializer}}
    shapes = _shapes(model.known(place), weights)
    total = 0
    for node in graph.node:
        work = _WORK.get(node.op_type)
        if work is not None:
            total += work(node, lambda name: _known(shapes, name))
        for at, body in placed_bodies(node, place):
            total += _work_of(model, body, at, weights)
    return total


def _shapes(known: Callable[[], Known], weights: dict[str, tuple[int, ...]]) -> _Shapes:
    def shape(name: str) -> tuple[int, ...] | None:
        if name in weights:
            return weights[name]
        dims = known().dims(name)
        return None if dims is None else tuple(d if isinstance(d, int) else 1 for d in dims)

    return shape


def _known(shapes: _Shapes, name: str) -> tuple[int, ...]:
    found = shapes(name)
    if found is None:
        raise _UnknownShapeError(name)
    return found


_Shape = Callable[[str], tuple[int, ...]]


def _convolution(weight: int) -> Callable[[onnx.NodeProto, _Shape], int]:
    """Each output number takes the weights of one filter."""
    return lambda n, shape: math.prod(shape(n.output[0])) * math.prod(shape(n.input[weight])[1:])


def _transposed(node: onnx.NodeProto, shape: _Shape) -> int:
    """Each input number goes through the weights of one channel."""
    return math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])


def _product(node: onnx.NodeProto, shape: _Shape) -> int:
    axis = 0 if node.op_type == "Gemm" and attribute(node, "transA", 0) else -1
    rows = shape(node.input[0])
    return math.prod(shape(node.output[0])) * (rows[axis] if rows else 1)


def _recurrent(node: onnx.NodeProto, shape: _Shape) -> int:
    steps = math.prod(shape(node.input[0])[:2])
    return steps * sum(math.prod(shape(name)) for name in node.input[1:3])


def _einsum(node: onnx.NodeProto, shape: _Shape) -> int:
    """One multiply-add for every combination of indices."""
    terms = attribute(node, "equation", "").partition("->")[0].replace(" ", "").split(",")
    if any("." in term for term in terms):
        raise _UnknownShapeError(node.name)
    sizes = dict(_letters(zip(terms, map(shape, node.input), strict=False)))
    return math.prod(sizes.values())


def _letters(terms: Iterable[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, int]]:
    for term, dims in terms:
        yield from zip(term, dims, strict=False)


_WORK: dict[str, Callable[[onnx.NodeProto, _Shape], int]] = {
    "Conv": _convolution(1), "ConvInteger": _convolution(1), "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed, "Gemm": _product, "MatMul": _product,
    "MatMulInteger": _product, "QLinearMatMul": _product, "Einsum": _einsum,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip
