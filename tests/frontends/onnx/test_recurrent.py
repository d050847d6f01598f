"""Recurrent layers: the input's contribution gets a BatchNorm, and fold puts everything back."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnpass
from bnpass.frontends.onnx.apply import apply_edits
from bnpass.frontends.onnx.numbers import Calculation
from bnpass.frontends.onnx.read import read
from bnpass.onnx_model.model import OnnxModel
from bnpass.passes.recurrent import plan_join, plan_split

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN, WIDTH = 5, 7


def network(kind, directions=1, bias=True, lengths=False):
    rng = np.random.default_rng(0)
    rows = GATES[kind] * HIDDEN
    shapes = {
        "W": (directions, rows, WIDTH),
        "R": (directions, rows, HIDDEN),
        "B": (directions, 2 * rows),
        "V": (HIDDEN, 3),
    }
    arrays = {n: (0.4 * rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()}
    if not bias:
        del arrays["B"]
    inputs = [helper.make_tensor_value_info("x", 1, ["T", "N", WIDTH])]
    reads = ["x", "W", "R", "B" if bias else ""]
    if lengths:
        inputs.append(helper.make_tensor_value_info("lengths", 6, ["N"]))
        reads.append("lengths")
    direction = "bidirectional" if directions == 2 else "forward"
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        helper.make_node(
            kind, reads, ["h"], "layer", hidden_size=HIDDEN, direction=direction, **options
        ),
        helper.make_node("MatMul", ["h", "V"], ["y"], "head"),
    ]
    outputs = [helper.make_tensor_value_info("y", 1, ["T", directions, "N", 3])]
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_random_statistics(model):
    rng = np.random.default_rng(1)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        shape = tuple(tensor.dims)
        if tensor.name.endswith(("running_mean", "_bn.bias", "_bn.weight")):
            new = rng.normal(size=shape)
        elif tensor.name.endswith("running_var"):
            new = rng.uniform(0.5, 2, shape)
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(new.astype(np.float32), tensor.name))
    return copy


def kinds(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", list(GATES))
def test_inserted_preserved_and_folded_into_the_layer_again(kind, directions, bias):
    model = network(kind, directions, bias)
    inserted = bnpass.insert(model, init="preserve")
    assert kinds(inserted).count("BatchNormalization") == 1
    assert bnpass.verify(model, inserted).passed
    trained = with_random_statistics(inserted)
    assert not bnpass.verify(model, trained).passed
    folded = bnpass.fold(trained, verify=False)
    assert bnpass.verify(trained, folded).passed
    assert kinds(folded) == [kind, "MatMul"]
    weight = next(t for t in folded.graph.initializer if t.name == folded.graph.node[0].input[1])
    assert tuple(weight.dims) == (directions, GATES[kind] * HIDDEN, WIDTH)


def test_the_input_bias_goes_and_a_second_insert_changes_nothing():
    plan = bnpass.insert(network("LSTM"), plan_only=True)
    assert [len(site.drops) for site in plan.sites] == [1]
    inserted = bnpass.insert(network("LSTM"))
    assert bnpass.insert(inserted) == inserted


def test_calibrated_keeps_the_function():
    model = network("GRU", 2)
    rng = np.random.default_rng(2)
    data = [rng.normal(size=(4, 8, WIDTH)).astype(np.float32) for _ in range(3)]
    inserted = bnpass.insert(model, init="calibrated", data=data)
    assert bnpass.verify(model, inserted).passed


def test_padded_steps_are_pointed_out():
    plan = bnpass.insert(network("LSTM", lengths=True), plan_only=True)
    assert any("sequence_lens" in note for note in plan.notes)


def test_a_layer_that_is_skipped_stays_as_it_is():
    model = network("LSTM")
    assert bnpass.insert(model, skip=["layer"]) == model


def test_a_layer_as_wide_as_its_input_is_split_too():
    """RNN(H, H): the width alone does not tell that the input is a contribution."""
    rng = np.random.default_rng(0)
    arrays = {"W": (1, 5, 5), "R": (1, 5, 5), "V": (5, 3)}
    nodes = [
        helper.make_node("RNN", ["x", "W", "R"], ["h"], "layer", hidden_size=5),
        helper.make_node("MatMul", ["h", "V"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["T", "N", 5])],
        [helper.make_tensor_value_info("y", 1, ["T", 1, "N", 3])],
        [
            numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n)
            for n, s in arrays.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inserted = bnpass.insert(model, init="preserve")
    assert kinds(inserted).count("BatchNormalization") == 1
    assert bnpass.insert(inserted) == inserted
    assert kinds(bnpass.fold(inserted)) == ["RNN", "MatMul"]


def test_a_matmul_that_the_model_has_in_front_of_a_layer_stays():
    """It is as wide as what insertion makes: 4 gates times the hidden size."""
    rng = np.random.default_rng(0)
    gates = 4 * HIDDEN
    shapes = {"P": (WIDTH, gates), "W": (1, gates, gates), "R": (1, gates, HIDDEN)}
    nodes = [
        helper.make_node("MatMul", ["x", "P"], ["p"], "projection"),
        helper.make_node("LSTM", ["p", "W", "R"], ["y"], "layer", hidden_size=HIDDEN),
    ]
    tensors = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["T", "N", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", 1, ["T", 1, "N", HIDDEN])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    after = bnpass.fold(model, verify=False)
    assert after.SerializeToString() == model.SerializeToString()


def test_a_contribution_that_overflows_stays_in_front_of_its_layer():
    model = bnpass.insert(network("LSTM", bias=False))
    half = onnx.ModelProto()
    half.CopyFrom(with_random_statistics(model))
    for tensor in half.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            if tensor.name in ("layer.input_weight", "layer.identity"):
                array = np.full_like(array, 3e2)  # a product of 20 * 9e4
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        if value.type.tensor_type.elem_type == 1:
            value.type.tensor_type.elem_type = 10
    after = bnpass.fold(half, verify=False)
    kinds = [n.op_type for n in after.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("MatMul") == 2
    for tensor in after.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all(), tensor.name


def test_the_split_is_in_the_plan():
    model = network("LSTM")
    plan = bnpass.insert(model, plan_only=True)
    assert plan.to_dict()["split"] == ["layer"]
    assert [(e.node, e.kind) for e in plan.entries if e in plan.split] == [("layer", "LSTM")]
    split = plan_split(read(model).main.graph, lambda op: True)
    assert str(split) == "LSTM layer is split"
    assert [one.op.kind for one in split.edits.added] == ["MatMul", "Add"]
    assert [(new.index, new.name) for new in split.edits.constants] == [
        (3, "layer.state_bias"), (1, "layer.identity")]  # fmt: skip
    assert [(new.op.name, new.value) for new in split.edits.inputs] == [("layer", "layer_biased")]
    assert not split.edits.changed


def test_a_layer_whose_weights_are_computed_is_not_split():
    model = network("GRU")
    weight = next(t for t in model.graph.initializer if t.name == "W")
    model.graph.initializer.remove(weight)
    model.graph.input.append(helper.make_tensor_value_info("W", 1, list(weight.dims)))
    split = plan_split(read(model).main.graph, lambda op: True)
    assert str(split) == "GRU layer stays: its weights are no constants"
    assert split.edits.empty


def applied(model, make):
    """A copy of a model with a plan's edits."""
    edited = OnnxModel.of(model).copy()
    reading = read(edited)
    plan = make(reading.main.graph)
    numbers = Calculation(reading).numbers(reading.main, plan.edits)
    apply_edits(edited, reading.main, plan.edits, numbers)
    return edited.proto


@pytest.mark.parametrize("first", [True, False])
def test_a_split_goes_back_from_either_side_of_its_add(first):
    model = network("LSTM", 2)
    split = applied(model, lambda graph: plan_split(graph, lambda op: True))
    assert bnpass.verify(model, split).passed
    assert kinds(split) == ["MatMul", "Add", "LSTM", "MatMul"]
    if first:
        split.graph.node[1].input[:] = reversed(split.graph.node[1].input)
    joined = applied(split, plan_join)
    assert kinds(joined) == ["LSTM", "MatMul"]
    assert bnpass.verify(model, joined).passed
