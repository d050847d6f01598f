"""Means and variances of values as nodes that are added to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnpass.onnx_model.attributes import opset_of
from bnpass.onnx_model.messages import replace_nodes
from bnpass.onnx_model.names import Names
from bnpass.onnx_model.scopes import captured_by


class Builder:
    """Collects nodes with fresh names, in a model's own opset.

    Attributes:
        head: constants, which belong in front of the model's nodes.
        nodes: the others, in order.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.opset = opset_of(model)
        self.nodes: list[onnx.NodeProto] = []
        self.head: list[onnx.NodeProto] = []
        self._constants: dict[bytes, str] = {}
        self._names = Names(model)

    def fresh(self) -> str:
        """Return a value name that the model does not use."""
        return self._names.fresh("bnpass_moments")

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        output = output or self.fresh()
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Return a constant; equal ones are one Constant node, which goes in front of all others.

        (Thousands of Constant nodes would make onnxruntime's loading time quadratic.)
        """
        tensor = numpy_helper.from_array(np.asarray(values, dtype=dtype))
        key = tensor.SerializeToString()
        if key not in self._constants:
            name = self._constants[key] = self.fresh()
            self.head.append(helper.make_node("Constant", [], [name], name=name, value=tensor))
        return self._constants[key]

    def mean(self, value: str, axis: int) -> str:
        """Append a ReduceMean that keeps its axis."""
        if self.opset < 18:  # the axes became an input
            return self.add("ReduceMean", value, axes=[axis], keepdims=1)
        return self.add("ReduceMean", value, self.constant([axis]), keepdims=1)

    def cast(self, value: str, kind: int, have: int = 0) -> str:
        """Append a Cast, unless the value is known to ``have`` that type.

        (onnxruntime takes needless Casts out one by one, in quadratic time.)
        """
        return value if have == kind else self.add("Cast", value, to=kind)


@dataclass(frozen=True)
class MomentNodes:
    """Names of what :func:`add_moments` adds.

    Attributes:
        mean: float64 (1, C, 1), the batch mean.
        var: float64 (1, C, 1), the biased batch variance.
        size: int64 (3,), the shape (P, C, S) of the grouped value: P * S elements a channel.
        centred: (P, C, S), the value less its mean, in ``kind``.
        kind: float32, or float64 for a float64 value.
    """

    mean: str
    var: str
    size: str
    centred: str
    kind: int

    @property
    def outputs(self) -> tuple[str, str, str]:
        """What a run must return."""
        return self.mean, self.var, self.size


def add_moments(
    build: Builder, value: str, axis: int, kind: int, chosen: str = ""
) -> MomentNodes:
    """Add nodes that compute a value's mean and biased variance along every axis but one.

    Two passes (first the mean, then the squares of what is left), inner axes in the value's width
    and the outer one in float64: a plain float32 sum of a million elements would lose three digits.

    Args:
        build: where the nodes go.
        value: its name; any rank of at least 1.
        axis: the channel axis.
        kind: the value's ONNX element type.
        chosen: of :func:`add_chosen`, where only a part of the value counts.
    """
    wide = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
    source = build.cast(value, wide, kind)
    grouped = _grouped(build, build.cast(chosen, wide, kind), 1) if chosen else \
        _grouped(build, source, axis)
    mean = _mean(build, grouped)
    centred = build.add("Sub", grouped, build.cast(mean, wide))
    var = _mean(build, build.add("Mul", centred, centred))
    if chosen:
        centred = build.add("Sub", _grouped(build, source, axis), build.cast(mean, wide))
    return MomentNodes(mean, var, build.add("Shape", grouped), centred, wide)


def add_chosen(build: Builder, value: str, axis: int, rank: int, mask: str, over: int) -> str:
    """Add nodes that take the positions of a value that count: ``(m, c)``.

    Args:
        build: where the nodes go.
        value: its name.
        axis: the channel axis.
        rank: of the value.
        mask: name of a bool ``(k,)``, one for each entry of the first ``over`` axes but that one.
        over: how many axes the mask is for.
    """
    order = [d for d in range(rank) if d != axis]
    rows = build.add("Transpose", value, perm=[*order, axis])
    kept = build.add("Compress", build.add("Flatten", rows, axis=over), mask, axis=0)
    channels = build.add("Gather", build.add("Shape", value), build.constant([axis]), axis=0)
    return build.add("Reshape", kept,
                     build.add("Concat", build.constant([-1]), channels, axis=0))


def _mean(build: Builder, grouped: str) -> str:
    return build.mean(build.cast(build.mean(grouped, 2), TensorProto.DOUBLE), 0)


def _grouped(build: Builder, value: str, axis: int) -> str:
    """Reshape to (P, C, S): everything before the channel axis, the axis, everything behind."""
    if axis == 1:
        return build.add("Reshape", value, build.constant([0, 0, -1]))
    channels = build.add("Gather", build.add("Shape", value), build.constant([axis]), axis=0)
    shape = build.add("Concat", build.constant([0]), channels, build.constant([-1]), axis=0)
    return build.add("Reshape", build.add("Flatten", value, axis=axis), shape)


def prune(model: onnx.ModelProto) -> None:
    """Take out, in place, the nodes of the main graph that no output needs."""
    needed = {o.name for o in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= {n for n in (*node.input, *captured_by(node)) if n}
            kept.append(node)
    replace_nodes(model.graph, reversed(kept))
