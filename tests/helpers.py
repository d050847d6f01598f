"""Models as ONNX text, weights from a dict, and the one comparison that tests of folding share.

In a model's text ``BN(x, n)`` stands for a BatchNormalization of x by n_g, n_b, n_m and n_v.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import numpy_helper

import bnpass
from bnpass.passes.fold import FoldPlan

SIZES = {"N": 2, "H": 7, "W": 5, "T": 4}
"""Sizes that symbolic dimensions get when a model runs; any other symbol gets 3."""

AFFINE = ("BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg")


@dataclass(frozen=True)
class Norm:
    """Parameters of a BatchNormalization; gamma is mixed (one 0), positive or nonnegative."""

    channels: int
    sign: str = "mixed"
    shift: bool = True
    dtype: Any = np.float32

    def arrays(self, name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        n = self.channels
        gamma = rng.uniform(0.5, 2.0, n)
        if self.sign == "mixed":
            gamma *= np.where(np.arange(n) % 2, 1.0, -1.0)
        if self.sign != "positive" and n > 2:
            gamma[2] = 0.0
        beta, mean = rng.normal(size=(2, n)) * self.shift
        found = {"g": gamma, "b": beta, "m": mean, "v": rng.uniform(0.3, 2.0, n)}
        return {f"{name}_{k}": a.astype(self.dtype) for k, a in found.items()}


def positive(channels: int, shift: bool = True) -> Norm:
    """A BatchNormalization whose gammas are all positive."""
    return Norm(channels, "positive", shift)


Weight = Norm | np.ndarray | tuple[int, ...] | list[int] | float
Weights = Mapping[str, Weight]


def build(
    text: str,
    weights: Weights | None = None,
    *,
    opset: int = 21,
    ir: int = 10,
    seed: int = 0,
    domains: str = "",
) -> onnx.ModelProto:
    """A checked model from its text and weights.

    A weight is an array, a shape (random float32), a list (int64) or a :class:`Norm`; the same
    ``seed`` gives the same numbers.
    """
    text = re.sub(r"BN\((\S+), (\w+)\)", r"BatchNormalization(\1, \2_g, \2_b, \2_m, \2_v)", text)
    head = f'<ir_version: {ir}, opset_import: ["": {opset}{domains}]>\ng '
    model = onnx.parser.parse_model(head + text)
    arrays = fill(weights or {}, np.random.default_rng(seed))
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        if ir < 4:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    _complete_outputs(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _complete_outputs(model: onnx.ModelProto) -> None:
    """Outputs written as ``float[] y`` get the shape that inference finds."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = {o.name: o for o in inferred.graph.output}
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            output.CopyFrom(known[output.name])


def fill(weights: Weights, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays that a dict of weights stands for."""
    found: dict[str, np.ndarray] = {}
    for name, what in weights.items():
        if isinstance(what, Norm):
            found.update(what.arrays(name, rng))
        elif isinstance(what, tuple):
            found[name] = rng.normal(size=what).astype(np.float32)
        elif isinstance(what, list):
            found[name] = np.array(what, np.int64)
        elif isinstance(what, np.ndarray):
            found[name] = what
        else:
            found[name] = np.array(what, np.float32)
    return found


def half(*shape: int, seed: int = 7, dtype: Any = np.float16) -> np.ndarray:
    """Random weights of another type."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# --- running


def feeds(model: onnx.ModelProto, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, integers in 0..2, booleans."""
    rng = np.random.default_rng(seed)
    known = {t.name for t in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        dims = [
            d.dim_value if d.HasField("dim_value") else {**SIZES, **sizes}.get(d.dim_param, 3)
            for d in tensor.shape.dim
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        integral = dtype.kind in "iub"
        array = rng.integers(0, 2 if dtype.kind == "b" else 3, dims) if integral else None
        found[value.name] = (rng.normal(size=dims) if array is None else array).astype(dtype)
    return found


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs on onnxruntime's CPU provider, graph optimizations disabled."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_reference(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs on onnx's reference evaluator, for what onnxruntime's CPU provider has no kernel."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    return dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True))


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, rtol: float = 2e-5, *,
                engine: Any = run, **sizes: int) -> None:  # fmt: skip
    """Equal outputs, relative to the largest entry of each; they do vary with the input."""
    inputs = feeds(before, **sizes)
    wanted, got = engine(before, inputs), engine(after, inputs)
    assert list(wanted) == list(got)
    for name, a in wanted.items():
        b = got[name]
        assert a.shape == b.shape and a.dtype == b.dtype, name
        a, b = (np.asarray(v).astype(np.float64) for v in (a, b))
        assert np.isfinite(a).all() and a.size, name
        scale = float(abs(a).max())
        error = float(abs(a - b).max())
        assert error <= rtol * max(scale, 1e-6), f"{name}: {error / scale:.2e} of {scale:.2e}"


def assert_equal_bytes(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Two models that are the same to the last byte."""
    a, b = (m.SerializeToString(deterministic=True) for m in (one, other))
    if a != b:
        assert onnx.printer.to_text(one) == onnx.printer.to_text(other)
        raise AssertionError("their texts are equal, their bytes are not")


# --- folding


@dataclass(frozen=True)
class Result:
    """A folded model beside its original, and the plan."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    plan: FoldPlan

    def count(self, *kinds: str) -> int:
        """How many operators of these kinds are left, bodies included."""
        return sum(node.op_type in kinds for node in nodes(self.after.graph))

    @property
    def reasons(self) -> str:
        """All reasons of what stays."""
        return "\n".join(e.reason for e in self.plan.refused)

    def weights(self) -> dict[str, np.ndarray]:
        """The initializers of the folded model."""
        return {t.name: numpy_helper.to_array(t) for t in self.after.graph.initializer}


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes of a graph and of the bodies in it."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                found += nodes(body)
    return found


def fold(
    model: onnx.ModelProto, rtol: float = 2e-5, *, engine: Any = run, **options: Any
) -> Result:
    """Fold, and check all that must hold of any fold: right, valid, the same twice, input whole.

    Maps are folded as if no branches collapsed, which ``tests/passes/test_collapse.py`` is about.
    """
    options.setdefault("collapse", "none")
    data = model.SerializeToString(deterministic=True)
    after = bnpass.fold(model, verify=False, **options)
    plan = bnpass.fold(model, plan_only=True, **options)
    assert model.SerializeToString(deterministic=True) == data, "the model given was changed"
    onnx.checker.check_model(after, full_check=True)
    assert_same(model, after, rtol, engine=engine)
    again = bnpass.fold(after, verify=False, **options)
    assert_equal_bytes(again, after)
    return Result(model, after, plan)


def assert_folds(model: onnx.ModelProto, rtol: float = 2e-5, **options: Any) -> Result:
    """Every map goes: no BatchNormalization is left, no entry is refused."""
    result = fold(model, rtol, **options)
    assert result.count("BatchNormalization") == 0, result.reasons
    assert not result.plan.refused, result.reasons
    return result


def assert_stays(model: onnx.ModelProto, *texts: str, rtol: float = 2e-5, **options: Any) -> Result:
    """The BatchNormalization stays, with a reason that has these texts in it."""
    result = fold(model, rtol, **options)
    norms = sum(node.op_type == "BatchNormalization" for node in nodes(model.graph))
    assert norms == 0 or result.count("BatchNormalization") > 0, "it was folded"
    for text in texts:
        assert text in result.reasons, result.reasons
    return result
