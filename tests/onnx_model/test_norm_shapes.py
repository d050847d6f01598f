"""BatchNormalizations whose parameters fit neither each other nor the data: named, by every door.

``onnx.checker`` lets them pass; onnxruntime refuses them only when it runs them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import bnpass as package
from bnpass.errors import InputError
from tests.commands.helpers import Run

Shape = int | tuple[int, ...]


def network(
    shapes: tuple[Shape, Shape, Shape, Shape], held: str, dims: tuple[int | str, ...] = ("N", 4, 5)
) -> onnx.ModelProto:
    """Relu, BatchNormalization ``bn``, Tanh; parameters are held as named."""
    rng = np.random.default_rng(0)
    nodes, tensors = [helper.make_node("Relu", ["x"], ["r"])], []
    for name, shape in zip("sbmv", shapes, strict=True):
        source = f"{name}_abs" if held == "computed" else name
        tensor = numpy_helper.from_array(rng.uniform(0.5, 1.5, shape).astype("f"), source)
        if held == "constant":
            nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            continue
        tensors.append(tensor)
        if held == "computed":
            nodes.append(helper.make_node("Abs", [source], [name]))
    nodes.append(helper.make_node("BatchNormalization", ["r", *"sbmv"], ["y"], name="bn"))
    nodes.append(helper.make_node("Tanh", ["y"], ["z"]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, dims)],
                              [helper.make_tensor_value_info("z", 1, dims)], tensors)  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def in_a_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The whole of a model's nodes in both branches of an If."""
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    del inner.input[:]
    flag = helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    node = helper.make_node("If", ["flag"], ["out"], then_branch=inner, else_branch=inner)
    out = helper.make_tensor_value_info("out", 1, None)
    graph = helper.make_graph([node], "g", [*model.graph.input, flag], [out])
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)


MISFITS = [(4, 4, 4, 5), (4, 4, 1, 1), (5, 5, 5, 5), (1, 1, 1, 1), (4, 4, (4, 1), 4), (4, (), 4, 4),
           ((1, 4), (1, 4), (1, 4), (1, 4))]  # fmt: skip


def runs(model: onnx.ModelProto) -> bool:
    """Whether onnxruntime computes it."""
    feeds = {"x": np.ones((2, 4, 5), np.float32)}
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        session.run(None, feeds)
    except Exception:  # noqa: BLE001 - it raises types of its own
        return False
    return True


@pytest.mark.parametrize("held", ["initializer", "constant", "computed"])
@pytest.mark.parametrize("shapes", MISFITS, ids=str)
def test_is_an_input_error_that_names_node_and_shapes(
    bnpass: Run, tmp_path: Path, shapes: tuple[Shape, ...], held: str
) -> None:
    model = network(shapes, held)
    assert not runs(model), "nothing is refused that a runtime takes"
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    for words in (["inspect"], ["fold", "--dry-run"], ["insert", "--dry-run"]):
        done = bnpass(*words, path)
        said = done.err
        assert done.code == 2
        assert "'bn'" in said and "internal" not in said
        assert all(str(list(np.zeros(s).shape)) in said for s in shapes)
    for door in (package.fold, package.insert):
        with pytest.raises(InputError, match="Dimension mismatch in node 'bn'"):
            door(path, out)
    assert not out.exists()


@pytest.mark.parametrize("shapes", MISFITS, ids=str)
def test_in_the_body_of_a_branch(shapes: tuple[Shape, Shape, Shape, Shape]) -> None:
    with pytest.raises(InputError, match="Dimension mismatch in node 'bn'"):
        package.fold(in_a_branch(network(shapes, "initializer")))


def in_a_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """The BatchNormalization and its parameters in a local function, behind the Relu."""
    relu, *inner, tanh = model.graph.node
    body = helper.make_function("own", "Norm", ["r"], ["y"], inner, model.opset_import)
    call = helper.make_node("Norm", ["r"], ["y"], domain="own")
    graph = helper.make_graph([relu, call, tanh], "g", model.graph.input, model.graph.output)
    sets = [*model.opset_import, helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=8, functions=[body])


@pytest.mark.parametrize("shapes", MISFITS, ids=str)
def test_in_a_function(
    bnpass: Run, tmp_path: Path, shapes: tuple[Shape, Shape, Shape, Shape]
) -> None:
    onnx.save(in_a_function(network(shapes, "constant")), tmp_path / "m.onnx")
    for words in (["inspect"], ["fold", "--dry-run"], ["insert", "--dry-run"]):
        done = bnpass(*words, tmp_path / "m.onnx")
        assert done.code == 2
        assert "'bn__1'" in done.err and "Dimension mismatch" in done.err


def test_in_a_function_that_fits() -> None:
    model = in_a_function(network((4, 4, 4, 4), "constant"))
    assert "Relu" in [node.op_type for node in package.fold(model).graph.node]


@pytest.mark.parametrize("held", ["initializer", "constant", "computed"])
@pytest.mark.parametrize("dims", [("N", 4, 5), ("N", "C", 5), ("N", 4), (2, 4, 5, 5)], ids=str)
def test_what_fits_is_read(dims: tuple[int | str, ...], held: str) -> None:
    model = network((4, 4, 4, 4), held, dims)
    kinds_left = [node.op_type for node in package.fold(model).graph.node]
    assert {"Relu", "Tanh"} <= set(kinds_left)


def test_a_parameter_for_every_place_is_none_of_these() -> None:
    """Until opset 9 ``spatial=0`` has parameters of the shape of one image."""
    model = network(((4, 5), (4, 5), (4, 5), (4, 5)), "initializer")
    model.opset_import[0].version = 7
    next(n for n in model.graph.node if n.name == "bn").attribute.append(
        helper.make_attribute("spatial", 0)
    )
    kinds = [node.op_type for node in package.fold(model).graph.node]
    assert kinds == ["Relu", "BatchNormalization", "Tanh"]


def test_a_word_of_the_file_alone_refuses_nothing() -> None:
    """What a value_info says of an unknown operator's output may be wrong."""
    model = network((4, 4, 4, 4), "initializer", ("N", "C", 5))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Odd", "some.where"
    model.opset_import.append(helper.make_opsetid("some.where", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("r", 1, ("N", 6, 5)))
    assert "BatchNormalization" in [n.op_type for n in package.fold(model).graph.node]
