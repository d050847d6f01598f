"""Models that are no valid ONNX: refused with the name of the place, by every door."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import bnpass as package
from bnpass.errors import BnpassError, InputError
from bnpass.frontends.onnx.read import read
from bnpass.limits import BudgetError
from bnpass.onnx_model.faults import blame
from bnpass.onnx_model.validity import check_functions, cycle, first_fault
from tests.commands.helpers import Run, add_norm, mlp, write

Damage = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind)


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def circle(model: onnx.ModelProto) -> None:
    node(model, "Gemm").input[0] = model.graph.output[0].name


def twice(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.node[0].output[0]


def strings(model: onnx.ModelProto) -> None:
    gamma = tensor(model, "h0_gamma")
    gamma.ClearField("raw_data")
    gamma.data_type = onnx.TensorProto.STRING
    gamma.string_data.extend([b"a"] * 8)


def unknown_type(model: onnx.ModelProto) -> None:
    tensor(model, "w0").data_type = 99


def negative(model: onnx.ModelProto) -> None:
    tensor(model, "w0").dims[0] = -6


def too_long(model: onnx.ModelProto) -> None:
    tensor(model, "w0").raw_data += b"\0\0\0\0"


def empty(model: onnx.ModelProto) -> None:
    tensor(model, "w0").ClearField("raw_data")


def text_for_a_number(model: onnx.ModelProto) -> None:
    node(model, "BatchNormalization").attribute.append(helper.make_attribute("epsilon", "small"))


def no_inputs(model: onnx.ModelProto) -> None:
    del node(model, "BatchNormalization").input[:]


def no_outputs(model: onnx.ModelProto) -> None:
    del node(model, "BatchNormalization").output[:]


def other_lengths(model: onnx.ModelProto) -> None:
    variance = tensor(model, "h0_var")
    variance.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), variance.name))


DAMAGES = {
    circle: ("bn", "fc0", "act0"), twice: ("h0",), strings: ("gamma", "bn"),
    unknown_type: ("w0",), negative: ("w0",), too_long: ("w0",), empty: ("w0",),
    text_for_a_number: ("bn", "epsilon"), no_inputs: ("bn",), no_outputs: ("bn",),
    other_lengths: ("h0_var", "bn"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_no_command_calls_a_bad_file_a_bug(bnpass: Run, tmp_path: Path, damage: Damage) -> None:
    model = add_norm(mlp())
    damage(model)
    path = write(model, tmp_path / "m.onnx")
    for words in (("fold", "-o", "f.onnx", "--no-verify"), ("insert", "-o", "i.onnx"),
                  ("strip", "-o", "s.onnx"), ("inspect",), ("draw", "-o", "d.dot"),
                  ("fold", "--dry-run", "--explain")):
        target = [tmp_path / word if "." in word else word for word in words[1:]]
        result = bnpass(words[0], path, *target)
        assert "internal" not in result.err, (words, result.err)
        assert result.code in {0, 2}
        if result.code:
            assert any(name in result.errors[0] for name in DAMAGES[damage]), result.err


def group_of_none(model: onnx.ModelProto) -> None:
    layer(model, group=0)


def group_of_five(model: onnx.ModelProto) -> None:
    layer(model, group=5)


def layer(model: onnx.ModelProto, group: int) -> None:
    """A convolution of 8 channels in place of everything else."""
    made = helper.make_node("Conv", ["x", "w"], ["y"], "conv", group=group)
    weight = onnx.numpy_helper.from_array(np.zeros((8, 3, 1, 1), np.float32), "w")
    model.graph.CopyFrom(helper.make_graph(
        [made], "g", [helper.make_tensor_value_info("x", 1, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", 1, None)], [weight]))


def few_numbers(model: onnx.ModelProto) -> None:
    weight = tensor(model, "w0")
    weight.ClearField("raw_data")
    weight.float_data.extend([1.0, 2.0, 3.0])


@pytest.mark.parametrize("damage", [circle, twice, unknown_type, negative, too_long, empty,
                                    few_numbers, text_for_a_number, group_of_none,
                                    group_of_five], ids=lambda d: d.__name__)
def test_what_steers_the_work_is_checked_when_it_is_read(damage: Damage) -> None:
    model = add_norm(mlp())
    damage(model)
    for door in (read, package.inspect, package.to_torch):
        with pytest.raises(InputError, match="not a valid ONNX model") as caught:
            door(model)
        assert caught.value.__cause__ is None, "it failed first, and was explained after that"


@pytest.mark.parametrize("damage", [circle, no_outputs, too_long, negative],
                         ids=lambda d: d.__name__)
def test_python_callers_get_the_same_errors(damage: Damage) -> None:
    model = add_norm(mlp())
    damage(model)
    for call in (package.fold, package.insert, package.strip, package.inspect):
        with contextlib.suppress(BnpassError):
            call(model)


def test_a_valid_model_is_not_blamed() -> None:
    model = add_norm(mlp())
    assert first_fault(model) is None
    assert blame(ValueError("a bug"), [model, None, 3, "no such file"]) is None
    assert blame(InputError("known"), [model]) is None


def test_names_that_are_not_utf8(bnpass: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(add_norm(mlp()).SerializeToString().replace(b"act0", b"ac\xff0"))
    for words in (("inspect",), ("draw", "-o", tmp_path / "d.mmd"),
                  ("fold", "-o", tmp_path / "o.onnx")):
        bnpass(words[0], path, *words[1:]).assert_refused(2, "is not UTF-8")


def test_any_text_that_is_not_utf8_is_named() -> None:
    content = add_norm(mlp()).SerializeToString()
    model = onnx.ModelProto.FromString(content.replace(b"producer", b"pr\xffducer"))
    assert first_fault(model) is None  # there is no such text in it
    model.metadata_props.add(key="abc", value="d")
    broken = onnx.ModelProto.FromString(model.SerializeToString().replace(b"abc", b"a\xffc"))
    fault = first_fault(broken)
    assert fault is not None and "the key b'a\\xffc' is not UTF-8" in fault


def test_unsorted_nodes_are_no_cycle() -> None:
    model = add_norm(mlp())
    model.graph.node.sort(key=lambda n: n.name, reverse=True)
    assert cycle(model.graph.node) == []
    assert package.inspect(model).operators["BatchNormalization"] == 1


# -- functions


def calling(bodies: dict[str, list[str]]) -> onnx.ModelProto:
    """A model whose functions (the first is called) call what is listed, one behind another."""
    def body(calls: list[str]) -> list[onnx.NodeProto]:
        if not calls:
            return [helper.make_node("Relu", ["x"], ["y"])]
        names = ["x", *(f"t{i}" for i in range(len(calls) - 1)), "y"]
        return [helper.make_node(call, [names[i]], [names[i + 1]], domain="loc")
                for i, call in enumerate(calls)]

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]
    functions = [helper.make_function("loc", name, ["x"], ["y"], body(calls), opsets)
                 for name, calls in bodies.items()]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(next(iter(bodies)), ["x"], ["y"], "call", domain="loc")], "g",
        [info("x", 1, [1, 4])], [info("y", 1, [1, 4])])
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)


def bomb(depth: int) -> onnx.ModelProto:
    levels = {f"f{k}": [f"f{k + 1}"] * 2 for k in range(depth)}
    return calling({**levels, f"f{depth}": []})


@pytest.mark.parametrize("bodies", [{"f": ["f"]}, {"f": ["g"], "g": ["h", "f"], "h": []}])
def test_functions_that_call_themselves(
    bnpass: Run, tmp_path: Path, bodies: dict[str, list[str]]
) -> None:
    path = write(calling(bodies), tmp_path / "m.onnx")
    bnpass("inspect", path).assert_refused(2, "functions call themselves: 'f'")
    with pytest.raises(InputError, match="call themselves"):
        package.fold(calling(bodies))


def test_functions_that_are_too_much_work(
    bnpass: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(bomb(40), tmp_path / "m.onnx")
    for words in (("inspect",), ("fold", "-o", tmp_path / "o.onnx"), ("verify", path)):
        bnpass(words[0], path, *words[1:]).assert_refused(2, "'call'", "BNPASS_LIMITS=nodes=")
    with pytest.raises(BudgetError, match="call"):
        package.insert(bomb(40))
    check_functions(bomb(12))
    monkeypatch.setenv("BNPASS_LIMITS", "nodes=1k")
    with pytest.raises(BudgetError):
        check_functions(bomb(12))


def test_long_names_of_functions_count_once_a_call() -> None:
    model = calling({"A": []})
    model.functions[0].node[0].name = "N" * (1 << 20)
    call = model.graph.node[0]
    check_functions(model)
    for number in range(300):
        again = model.graph.node.add()
        again.CopyFrom(call)
        again.output[0] = f"more{number}"
    with pytest.raises(BudgetError, match=r"bytes of names after functions .* 256 MiB"):
        check_functions(model)


def test_many_nodes_of_one_name_are_told_apart_at_once() -> None:
    model = mlp()
    for number in range(3000):
        model.graph.node.add(op_type="Relu", name="same", input=["x"], output=[f"r{number}"])
    names = set(read(model).main.nodes)
    assert {"same", "same#2", "same#3000"} <= names
