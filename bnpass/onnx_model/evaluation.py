"""Constants that nodes compute from other constants, within a budget.

A few bytes of Expand, Range or a chain of Concat declare terabytes, and a chain in which every node
reads the one before twice takes for ever. So the size of a result is inferred before anything is
computed, all results of a model together keep to a limit, and each is computed once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx

from bnpass import limits
from bnpass.errors import BnpassError, InputError
from bnpass.ir.graph import Constant
from bnpass.onnx_model.attributes import attribute, node_name
from bnpass.onnx_model.storage import external

_SHAPES = 4096  # elements up to which an input may be a shape that inference needs

_DEEP = 64
"""Constants computed one from the other without a result in between: Python's stack is finite."""


class Evaluations:
    """What the computed constants of one model cost.

    Args:
        model: its size, data files too, decides what it may cost.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._bytes = 0
        self._size: int | None = None
        self.depth: dict[str, int] = {}

    def charge(self, node: onnx.NodeProto, amount: int) -> None:
        """Count the bytes of a node's results, before they are computed.

        Raises:
            BudgetError: all results together are beyond the limit.
        """
        self._bytes += amount
        if self._bytes <= limits.LIMITS["constants"].amount and not limits.is_set():
            return
        if self._size is None:
            self._size = sum(external.nbytes(t) or 0 for t in external.tensors(self._model))
        try:
            limits.check("constants", self._bytes, f"node {node_name(node)!r} ({node.op_type})",
                         self._size)
        except limits.BudgetError:
            self._bytes -= amount
            raise


def evaluated(
    node: onnx.NodeProto, known: Callable[[str], Constant | None], opset: int, costs: Evaluations
) -> list[Constant]:
    """The results of a node whose inputs are all constants; computed when first asked for."""
    work = _Work(node, known, opset, costs)
    made = [Constant(name, work.result(index)) for index, name in enumerate(node.output) if name]
    depth = 1 + max((costs.depth.get(name, 0) for name in node.input), default=0)
    if depth >= _DEEP:
        work.keep()
        depth = 0
    costs.depth.update((constant.name, depth) for constant in made)
    return made


def tried(
    node: onnx.NodeProto, known: Callable[[str], Constant | None], opset: int, costs: Evaluations
) -> list[Constant]:
    """The same of an operator that few models compute weights with, computed at once.

    What cannot be computed is no constant, but what is too large is refused.

    Raises:
        BudgetError: it is.
    """
    made = evaluated(node, known, opset, costs)
    try:
        for constant in made:
            constant.load()
    except limits.BudgetError:
        raise
    except InputError:
        return []
    return made


class _Work:
    """A node's results: only where it moves its one input about are they computed afresh."""

    def __init__(
        self, node: onnx.NodeProto, known: Callable[[str], Constant | None], opset: int,
        costs: Evaluations,
    ) -> None:
        self._node, self._known, self._opset, self._costs = node, known, opset, costs
        self._kept: list[np.ndarray] | None = None
        self._charged = False

    def keep(self) -> None:
        """Compute the results now."""
        self._kept = self.results()

    def result(self, index: int) -> Callable[[], np.ndarray]:
        """A function that returns one of them."""
        return lambda: self.results()[index]

    def results(self) -> list[np.ndarray]:
        """All of them.

        Raises:
            InputError: they cannot be computed.
            BudgetError: they would be too large.
        """
        if self._kept is not None:
            return self._kept
        feeds = {}
        for name in dict.fromkeys(self._node.input):
            constant = self._known(name) if name else None
            if constant is not None:
                feeds[name] = np.asarray(constant.load())
        try:
            return self._computed(feeds)
        except (BnpassError, MemoryError):
            raise
        except Exception as error:
            line = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"the constant that node {node_name(self._node)!r} ({self._node.op_type}) makes "
                f"cannot be computed: {line}", "check the node's inputs and attributes; export it "
                "again") from error

    def _computed(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        simple = _SIMPLE.get(self._node.op_type)
        if simple is not None:
            made = simple(self._node, [feeds[name] for name in self._node.input if name])
            self._charge(made.nbytes)
            return [made]
        model = _model_of(self._node, feeds, self._opset)
        self._charge(_declared_bytes(model, feeds))
        self._kept = _reference(self._node, model, feeds)
        return self._kept

    def _charge(self, amount: int) -> None:
        if not self._charged:
            self._costs.charge(self._node, amount)
            self._charged = True


def _cast(node: onnx.NodeProto, inputs: list[np.ndarray]) -> np.ndarray:
    return inputs[0].astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _batch_norm(node: onnx.NodeProto, inputs: list[np.ndarray]) -> np.ndarray:
    """At inference, in float64 and rounded once: onnx's own sums are in the data's type."""
    x, *numbers = (np.asarray(array).astype(np.float64) for array in inputs)
    shape = (-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    scale, bias, mean, var = (array.reshape(shape) for array in numbers)
    epsilon = float(np.float32(attribute(node, "epsilon", 1e-5)))
    exact = (x - mean) / np.sqrt(var + epsilon) * scale + bias
    return np.asarray(exact.astype(inputs[0].dtype))


def _transpose(node: onnx.NodeProto, inputs: list[np.ndarray]) -> np.ndarray:
    return inputs[0].transpose(attribute(node, "perm"))


# What exporters put behind weights; onnx's reference evaluator does the rest.
_SIMPLE: dict[str, Callable[[onnx.NodeProto, list[np.ndarray]], np.ndarray]] = {
    "Identity": lambda _, inputs: inputs[0],
    "Cast": _cast,
    "Transpose": _transpose,
    "BatchNormalization": _batch_norm,
}


def _model_of(
    node: onnx.NodeProto, feeds: dict[str, np.ndarray], opset: int
) -> onnx.ModelProto:
    """A model of the node alone; small inputs are in it, where inference can read them."""
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def _declared_bytes(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> int:
    """Bytes of a node's results as inference finds them; those of its inputs where it does not."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    reads = Counter(model.graph.node[0].input)
    for name, array in feeds.items():
        if array.size * reads[name] <= _SHAPES:
            known.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph = onnx.shape_inference.infer_shapes(known).graph
    total = 0
    for info in graph.output:
        shape = info.type.tensor_type.shape
        sizes = [dim.dim_value for dim in shape.dim if dim.HasField("dim_value")]
        if info.type.tensor_type.HasField("shape") and len(sizes) == len(shape.dim):
            width = external.bits(info.type.tensor_type.elem_type) or 64
            total += math.prod(max(0, size) for size in sizes) * width // 8
        else:
            total += sum(array.nbytes for array in feeds.values())
    return total


def _reference(
    node: onnx.NodeProto, model: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    results = iter(ReferenceEvaluator(model).run(None, feeds))
    return [np.asarray(next(results)) if name else np.empty(0) for name in node.output]
