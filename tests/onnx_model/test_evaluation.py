"""Constants that are computed from others keep to a budget of memory and time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import bnpass as package
from bnpass.errors import InputError
from bnpass.frontends.onnx.read import read
from bnpass.limits import BudgetError
from tests.commands.helpers import add_norm, mlp


def scaled_by(nodes: list[onnx.NodeProto], result: str, **constants: object) -> onnx.ModelProto:
    """An MLP with a BatchNormalization, whose output is multiplied by a computed constant."""
    model = add_norm(mlp())
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    norm.output[0] = "before"
    position = list(model.graph.node).index(norm) + 1
    for node in [helper.make_node("Mul", ["before", result], ["h0_bn"], "scale"), *nodes[::-1]]:
        model.graph.node.insert(position, node)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return model


def doubling(count: int, kind: str = "Concat") -> onnx.ModelProto:
    attrs = {"axis": 0} if kind == "Concat" else {}
    nodes = [helper.make_node(kind, [f"k{i}", f"k{i}"], [f"k{i + 1}"], f"double{i}", **attrs)
             for i in range(count)]
    return scaled_by(nodes, f"k{count}", k0=np.full(8, 1.0, np.float32))


LARGE = np.array([1, 200_000, 200_000], np.int64)
MAKERS = {
    "Expand": (["one", "size"], {}), "ConstantOfShape": (["size"], {}),
    "Range": (["zero", "many", "one_"], {}), "Tile": (["one", "size"], {}),
    "Pad": (["vector", "widths"], {}), "OneHot": (["vector_", "depth", "pair"], {}),
}
CONSTANTS = {
    "one": np.ones((1, 1, 1), np.float32), "size": LARGE, "zero": np.float32(0),
    "many": np.float32(4e10), "one_": np.float32(1), "vector": np.ones(4, np.float32),
    "widths": np.array([0, 4 * 10**10], np.int64), "vector_": np.ones(4, np.int64),
    "depth": np.array(4 * 10**10, np.int64), "pair": np.array([0, 1], np.float32),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_node_that_makes_terabytes_is_refused_by_name(kind: str) -> None:
    inputs, attrs = MAKERS[kind]
    maker = helper.make_node(kind, inputs, ["huge"], "maker", **attrs)
    model = scaled_by([maker], "huge", **{name: CONSTANTS[name] for name in inputs})
    for call in (package.inspect, lambda m: package.fold(m, verify=False)):
        with pytest.raises(BudgetError, match="'maker'"):
            call(model)


def test_a_doubling_chain_is_refused_at_the_limit() -> None:
    with pytest.raises(BudgetError, match="'double") as caught:
        package.fold(doubling(60), verify=False)
    assert "constants that are computed" in caught.value.message


def test_many_that_are_small_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Expand", ["one", "size"], [f"e{i}"], f"expand{i}")
             for i in range(30)]
    nodes.append(helper.make_node("Max", [f"e{i}" for i in range(30)], ["k"], "max"))
    model = scaled_by(nodes, "k", one=np.ones(1, np.float32), size=np.array([1 << 12, 1 << 8]))
    monkeypatch.setenv("BNPASS_LIMITS", "constants=20M")
    with pytest.raises(BudgetError, match="'expand"):
        package.inspect(model)


def test_a_chain_that_reads_everything_twice_takes_no_time() -> None:
    """2**200 evaluations, if each were made as often as it is asked for."""
    nodes, names = [], ("p0", "q0")
    for i in range(1, 200):
        new = (f"p{i}", f"q{i}")
        nodes += [helper.make_node("Max", list(names), [new[0]], f"p{i}"),
                  helper.make_node("Min", list(names), [new[1]], f"q{i}")]
        names = new
    model = scaled_by(nodes, "p199", p0=np.full(8, 2.0, np.float32), q0=np.ones(8, np.float32))
    assert "BatchNormalization" not in {n.op_type for n in
                                        package.fold(model, verify=False).graph.node}
    assert read(doubling(300, "Max")).main.graph.constants["k300"].load().tolist() == [1.0] * 8


@pytest.mark.parametrize("kind", ["Identity", "Abs", "Transpose"])
def test_a_chain_may_be_deeper_than_pythons_stack(kind: str) -> None:
    attrs = {"perm": [0]} if kind == "Transpose" else {}
    nodes = [helper.make_node(kind, [f"k{i}"], [f"k{i + 1}"], **attrs) for i in range(3000)]
    found = read(scaled_by(nodes, "k3000", k0=np.full(8, 1.5, np.float32)))
    assert found.main.graph.constants["k3000"].load().tolist() == [1.5] * 8


def test_a_constant_that_cannot_be_computed_names_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["one", "shape"], ["k"], "impossible")
    model = scaled_by([node], "k", one=np.ones(8, np.float32), shape=np.array([3, 5]))
    with pytest.raises(InputError, match="'impossible'"):
        package.inspect(model)
