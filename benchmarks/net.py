"""Writes small ONNX models node by node, with seeded random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]


class Net:
    """An ONNX model that grows: every method adds nodes and returns the value they make.

    Args:
        shape: of the input ``x``; a string is a symbolic size.
        opset: of ONNX's own operators.
        dtype: of all weights and values.
        ir_version: of the file.
    """

    def __init__(self, shape: Sequence[int | str], *, opset: int = 17, dtype: Any = np.float32,
                 ir_version: int = 8) -> None:
        self.rng = np.random.default_rng(0)
        self.dtype = np.dtype(dtype)
        self.shape, self.opset, self.ir_version = list(shape), opset, ir_version
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self._count = 0

    # --- constants

    def const(self, array: Any, dtype: Any = None, name: str = "") -> str:
        """An initializer."""
        name = name or self._name("c")
        array = np.asarray(array)
        kind = dtype or (self.dtype if array.dtype.kind == "f" else array.dtype)
        self.initializers.append(numpy_helper.from_array(array.astype(kind), name))
        return name

    def weight(self, *shape: int, name: str = "") -> str:
        """Normal numbers of standard deviation 1/sqrt(fan in): outputs stay near 1."""
        fan = max(int(np.prod(shape[1:])), 1)
        return self.const(self.rng.standard_normal(shape) / np.sqrt(fan), name=name)

    def channels(self, c: int, *, positive: bool = False, rank: int = 1) -> Array:
        """A vector of c numbers off 0, some negative; rank 4 makes it (c, 1, 1) and so on."""
        values = self.rng.uniform(0.5, 1.5, c)
        if not positive:
            values *= np.where(np.arange(c) % 3 == 1, -1, 1)
        return values.reshape(c, *(1,) * (rank - 2)) if rank > 1 else values

    # --- nodes

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Any node; returns its value, or a list of them."""
        names = [self._name("v") for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, list(inputs), names, self._name(kind), **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, cin: int, cout: int, *, kernel: int = 3, rank: int = 4, group: int = 1,
             bias: bool = True, w: str = "", kind: str = "Conv", **attributes: Any) -> str:
        """Conv or ConvTranspose; pads keep the size unless pads or auto_pad is given."""
        window = (kernel,) * (rank - 2)
        first, second = (cin, cout) if kind == "ConvTranspose" else (cout, cin)
        w = w or self.weight(first, second // group, *window)
        if "pads" not in attributes and "auto_pad" not in attributes:
            attributes["pads"] = [kernel // 2] * 2 * (rank - 2)
        given = [x, w] + ([self.const(self.rng.standard_normal(cout))] if bias else [])
        return str(self.op(kind, *given, kernel_shape=window, group=group, **attributes))

    def gemm(self, x: str, cin: int, cout: int, *, bias: bool = True, **attributes: Any) -> str:
        """Gemm with transB=1."""
        given = [x, self.weight(cout, cin)]
        given += [self.const(self.rng.standard_normal(cout))] if bias else []
        return str(self.op("Gemm", *given, transB=1, **attributes))

    def matmul(self, x: str, cin: int, cout: int) -> str:
        """MatMul with a constant on the right."""
        w = self.const(self.rng.standard_normal((cin, cout)) / np.sqrt(cin))
        return str(self.op("MatMul", x, w))

    def bn(self, x: str, c: int, *, positive: bool = False, dtype: Any = None,
           params: Sequence[str] = (), **attributes: Any) -> str:
        """BatchNormalization with every third gamma negative, unless ``positive``."""
        names = list(params) or self.statistics(c, positive=positive, dtype=dtype)
        return str(self.op("BatchNormalization", x, *names, **attributes))

    def statistics(self, c: int, *, positive: bool = False, dtype: Any = None) -> list[str]:
        """Names of gamma, beta, mean and variance."""
        rng = self.rng
        arrays = (self.channels(c, positive=positive), rng.standard_normal(c) * 0.5,
                  rng.standard_normal(c) * 0.5, rng.uniform(0.5, 1.5, c))
        return [self.const(array, dtype) for array in arrays]

    def per_channel(self, kind: str, x: str, c: int, *, rank: int = 4, left: bool = False) -> str:
        """Mul, Add, Sub or Div with a constant of one number a channel."""
        constant = self.const(self.channels(c, rank=rank))
        return str(self.op(kind, *((constant, x) if left else (x, constant))))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape to a constant shape."""
        return str(self.op("Reshape", x, self.const(np.array(shape, np.int64))))

    def overridable(self, name: str) -> str:
        """List an initializer as an input: callers may then give another value."""
        tensor = next(t for t in self.initializers if t.name == name)
        self.inputs.append(
            helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        return name

    def _name(self, base: str) -> str:
        self._count += 1
        return f"{base}{self._count}"

    # --- the model

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The model with these outputs; their shapes are left to inference."""
        elem = helper.np_dtype_to_tensor_dtype(self.dtype)
        x = helper.make_tensor_value_info("x", elem, self.shape)
        results = [helper.make_tensor_value_info(name, elem, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", [x, *self.inputs], results, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(d, 1) for d in sorted({f.domain for f in self.functions})]
        made = helper.make_model(graph, opset_imports=opsets, functions=self.functions,
                                 ir_version=self.ir_version)
        return onnx.shape_inference.infer_shapes(made)
