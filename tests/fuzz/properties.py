"""What must hold of every fold and of every insertion, whatever the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bnpass.frontends.onnx.folding import FoldOptions, fold_model
from bnpass.frontends.onnx.inserting import InsertOptions, insert_model
from bnpass.passes.sites import Policy
from tests.fuzz.generator import generate
from tests.fuzz.reference import evaluate
from tests.helpers import assert_equal_bytes, feeds, nodes, run
from tests.helpers_insert import with_statistics

ROOM = FoldOptions(max_growth=1e6)  # graphs of a kilobyte grow by much when a weight is cloned
EXACT = 1e-9  # float64 against float64: rounding of a few dozen operators, cancellation included


@dataclass(frozen=True)
class Counts:
    """BatchNormalizations before and after a fold."""

    before: int
    after: int


def norms(model: onnx.ModelProto) -> int:
    """How many BatchNormalizations a model has."""
    return sum(node.op_type == "BatchNormalization" for node in nodes(model.graph))


def assert_exact(before: onnx.ModelProto, after: onnx.ModelProto, changed: frozenset[str]) -> None:
    """float64 models agree in every value that the plan does not call changed."""
    inputs = feeds(before)
    wanted, got = evaluate(before, inputs), evaluate(after, inputs)
    names = [o.name for o in before.graph.output]
    assert [o.name for o in after.graph.output] == names
    top = max(float(abs(a).max(initial=0)) for a in wanted.values() if a.dtype.kind == "f")
    for name in [*names, *(set(wanted) & set(got) - changed - set(names))]:
        a, b = wanted[name], got[name]
        if a.dtype.kind != "f" or name in {t.name for t in before.graph.initializer}:
            continue
        assert a.shape == b.shape, name
        error = float(abs(a - b).max(initial=0))
        assert error <= EXACT * max(1.0, top), f"{name}: {error:.1e}, largest value {top:.1e}"


def assert_tidy(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """No constant is left behind that nothing reads any more."""
    litter = _unread(after) - _unread(before)
    assert not litter, f"left behind: {sorted(litter)}"


def _unread(model: onnx.ModelProto) -> set[str]:
    made = {t.name for t in model.graph.initializer}
    made |= {n.output[0] for n in model.graph.node if n.op_type in ("Constant", "Identity")}
    read = {name for node in nodes(model.graph) for name in node.input}
    return made - read - {o.name for o in model.graph.output}


def assert_close(before: onnx.ModelProto, after: onnx.ModelProto, exact: onnx.ModelProto) -> None:
    """float32 outputs on onnxruntime are as near to the float64 ones as rounding lets them be.

    The bound is the error of the original itself, and what one rounding of each of the folded
    model's weights and inputs does to it, both measured in float64.
    """
    inputs = feeds(before)
    one, other = run(before, inputs), run(after, inputs)
    for name, a in one.items():
        scale = float(abs(a).max(initial=0))
        if not np.allclose(a, other[name], rtol=0, atol=1e-5 * max(scale, 1e-3)):
            break
    else:
        return
    wide = {k: v.astype(np.float64) for k, v in inputs.items()}
    truth = evaluate(exact, wide)
    rounding = _sensitivity(after, wide, 2.0**-24)
    for name, a in one.items():
        scale = float(abs(truth[name]).max(initial=0))
        own = float(abs(a - truth[name]).max(initial=0))
        error = float(abs(other[name] - truth[name]).max(initial=0))
        bound = 30 * (own + rounding[name] + 2.0**-24 * scale)
        assert error <= bound, f"{name}: {error:.1e}, bound {bound:.1e}, scale {scale:.1e}"


def assert_rounded(before: onnx.ModelProto, after: onnx.ModelProto, unit: float) -> None:
    """Both models, evaluated in float64, differ by the rounding of the folded weights alone."""
    inputs = {k: v.astype(np.float64) for k, v in feeds(before).items()}
    wanted, got = evaluate(widened(before), inputs), evaluate(widened(after), inputs)
    rounding = _sensitivity(after, inputs, unit)
    for name, moved in rounding.items():
        scale = float(abs(wanted[name]).max(initial=0))
        error = float(abs(got[name] - wanted[name]).max(initial=0))
        bound = 30 * moved + 4 * unit * scale
        assert error <= bound, f"{name}: {error:.1e}, bound {bound:.1e}, scale {scale:.1e}"


def _sensitivity(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray], unit: float
) -> dict[str, float]:
    """How far outputs move when every weight and input is off by half a unit in the last place."""
    plain = evaluate(widened(model), inputs)
    found = dict.fromkeys((o.name for o in model.graph.output), 0.0)
    for seed in range(4):
        rng = np.random.default_rng(seed)

        def nudged(a: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            return a * (1 + rng.choice([-1, 1], a.shape) * unit)

        moved = widened(model)
        for tensor in moved.graph.initializer:
            if tensor.data_type == onnx.TensorProto.DOUBLE:
                array = nudged(onnx.numpy_helper.to_array(tensor))
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        values = evaluate(moved, {k: nudged(v) for k, v in inputs.items()})
        for name in found:
            found[name] = max(found[name], float(abs(values[name] - plain[name]).max(initial=0)))
    return found


NARROW = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of a narrower type in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    resizes = [n for n in wide.graph.node if n.op_type == "Resize" and len(n.input) > 2]
    resized = {n.input[2].removesuffix("_same") for n in resizes}
    for info in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        if info.type.tensor_type.elem_type in NARROW:
            info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    held = [a.t for n in wide.graph.node for a in n.attribute if a.HasField("t")]
    for tensor in [*wide.graph.initializer, *held]:
        if tensor.data_type in NARROW and tensor.name not in resized:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = onnx.TensorProto.DOUBLE
    return wide


def check_fold(seed: int, **options: Any) -> Counts:
    """Fold the graph of a seed in float64 and in float32 and check all of the above."""
    model = generate(seed, **options)
    exact = widened(model)
    done = fold_model(exact, ROOM)
    onnx.checker.check_model(done.model, full_check=True)
    assert_exact(exact, done.model, done.changed)
    after = fold_model(model, ROOM).model
    onnx.checker.check_model(after, full_check=True)
    assert_close(model, after, exact)
    assert_tidy(model, after)
    assert_settled(after)
    assert norms(after) <= norms(model) + spelt(model)
    return Counts(norms(model), norms(after))


def check_type(seed: int, dtype: Any, unit: float) -> None:
    """Fold the graph of a seed in a type that engines hardly know."""
    model = generate(seed, dtype=dtype)
    after = fold_model(model, ROOM).model
    onnx.checker.check_model(after, full_check=True)
    assert_rounded(model, after, unit)
    kinds = {t.data_type for t in model.graph.initializer}
    assert {t.data_type for t in after.graph.initializer} <= kinds | {_type(model)}


def _type(model: onnx.ModelProto) -> int:
    return model.graph.input[0].type.tensor_type.elem_type


def assert_settled(after: onnx.ModelProto) -> None:
    """Folding twice is folding once."""
    assert_equal_bytes(fold_model(after, ROOM).model, after)


def spelt(model: onnx.ModelProto) -> int:
    """Chains of arithmetic that may become a BatchNormalization: one per three operators."""
    return sum(n.op_type in ("Mul", "Add", "Sub", "Div", "Neg") for n in nodes(model.graph)) // 3


# --- insertion


def check_insert(seed: int, **options: Any) -> int:
    """Insert into the graph of a seed, give the BatchNorms random statistics, fold them back.

    Returns:
        How many were inserted.
    """
    drawn = {"maps": 0.08, "nonlinear": 0.3, **options}
    model = widened(generate(seed, **drawn))
    done = insert_model(model, PRESERVE)
    names = {site.name for site in done.plan.sites}
    onnx.checker.check_model(done.model, full_check=True)
    assert_exact(model, done.model, frozenset(_outputs_of_all(model)))
    again = insert_model(done.model, PRESERVE)
    assert not again.plan.sites, again.plan.sites
    assert_equal_bytes(again.model, done.model)
    trained = with_statistics(done.model, names, seed)
    folded = fold_model(trained, ROOM)
    onnx.checker.check_model(folded.model, full_check=True)
    left = names & {n.name for n in folded.model.graph.node if n.op_type == "BatchNormalization"}
    assert not left, [e for e in folded.plan.refused if left & set(e.nodes)]
    assert_exact(trained, folded.model, folded.changed)
    return len(names)


PRESERVE = InsertOptions(Policy(gates=True, last=True), init="preserve")


def _outputs_of_all(model: onnx.ModelProto) -> set[str]:
    """Insertion keeps the meaning of outputs alone: a dropped bias moves behind a value."""
    return {name for node in model.graph.node for name in node.output}
