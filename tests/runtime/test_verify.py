from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnpass.errors import InputError, MissingDependencyError, VerificationError
from bnpass.runtime.verify import verify
from tests.runtime.conftest import array, edit, text


def fold_by_hand(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold bn1 of the convnet into conv1 with numpy; c1 keeps its name and changes its meaning."""
    s, t, m, v = (array(model, n).astype(np.float64) for n in ("s1", "t1", "m1", "v1"))
    scale = s / np.sqrt(v + 0.001)
    folded = edit(model, "K1", lambda k: (k * scale[:, None, None, None]).astype(np.float32))
    bias = numpy_helper.from_array((t - m * scale).astype(np.float32), "b1")
    folded.graph.initializer.append(bias)
    folded.graph.node[0].input.append("b1")
    folded.graph.node[1].CopyFrom(helper.make_node("Identity", ["c1"], ["n1"], name="bn1"))
    return folded


def test_equal_models_pass(convnet):
    report = verify(convnet, convnet)
    assert report.passed
    assert report.reference_engine == report.candidate_engine == "onnxruntime"
    found = report.outputs["y"]
    assert found.max_rel < 1e-5 and found.cosine > 0.999999 and found.top1 == 1.0
    assert found.varies and not report.notes
    assert len(report.draws) == 6
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_right_fold_passes(convnet):
    report = verify(convnet, fold_by_hand(convnet))
    assert report.passed, report.to_dict()
    assert report.outputs["y"].max_abs > 0
    report.raise_if_failed()


@pytest.mark.parametrize(
    ("name", "node"), [("K2", "conv2"), ("W", "y"), ("t2", "bn2"), ("K1", "conv1")]
)
def test_a_weight_changed_by_a_thousandth_fails_and_is_located(convnet, name, node):
    wrong = edit(convnet, name, lambda w: w * np.float32(1.001))
    report = verify(convnet, wrong)
    assert not report.passed
    assert report.first_difference.node == node
    assert 1e-5 < report.outputs["y"].tolerance < 1e-2
    with pytest.raises(VerificationError, match=f"'{node}'"):
        report.raise_if_failed()
    json.dumps(report.to_dict(), allow_nan=False)


def test_one_element_changed_by_a_thousandth(convnet):
    def change(w):
        w.flat[np.abs(w).argmax()] *= np.float32(1.001)
        return w

    report = verify(convnet, edit(convnet, "W", change))
    assert not report.passed and report.first_difference.value == "y"


def test_a_fold_is_not_blamed_for_what_it_changed(convnet):
    """c1 differs in a right fold, but its effect is undone: the fault is behind it."""
    wrong = edit(fold_by_hand(convnet), "K2", lambda w: w + np.float32(1e-2))
    assert verify(convnet, wrong).first_difference.node == "conv2"


def test_changed_values_are_left_out(convnet):
    wrong = edit(fold_by_hand(convnet), "b1", lambda b: b + np.float32(1e-2))
    assert verify(convnet, wrong).first_difference.value == "c1"
    assert verify(convnet, wrong, changed={"c1"}).first_difference.value == "n1"


def test_the_smallest_tolerance_passes_and_less_does_not(convnet):
    wrong = edit(convnet, "W", lambda w: w * np.float32(1.01))
    needed = verify(convnet, wrong).outputs["y"].tolerance
    assert verify(convnet, wrong, rtol=needed * 1.0001).passed
    assert not verify(convnet, wrong, rtol=needed * 0.999).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_fail(mlp, bad):
    def change(b):
        b[1] = bad
        return b

    report = verify(mlp, edit(mlp, "b2", change))
    assert not report.passed
    assert report.outputs["y"].nonfinite > 0
    assert report.to_dict()["outputs"]["y"]["tolerance"] == "inf"
    json.dumps(report.to_dict(), allow_nan=False)


def test_nan_that_the_reference_has_too_is_no_failure():
    model = text(" g (float[N, 50] x) => (float[N, 50] y) { y = Log(x) }")
    assert verify(model, model).passed
    hidden = text(" g (float[N, 50] x) => (float[N, 50] y) { a = Abs(x) y = Log(a) }")
    assert not verify(model, hidden).passed
    assert not verify(hidden, model).passed


def test_a_missing_output_is_an_error(mlp):
    two = onnx.ModelProto()
    two.CopyFrom(mlp)
    two.graph.output.append(onnx.ValueInfoProto(name="h"))
    two.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(InputError, match="no output 'h'"):
        verify(two, mlp)
    with pytest.raises(InputError, match="output more"):
        verify(mlp, two)


def test_renamed_outputs_are_mapped(mlp):
    other = onnx.ModelProto()
    other.CopyFrom(mlp)
    other.graph.output[0].name = other.graph.node[2].output[0] = "logits"
    report = verify(mlp, other)
    assert report.passed and report.mapping == {"y": "logits"}
    assert verify(mlp, other, mapping={"y": "logits"}).passed
    with pytest.raises(InputError, match="did you mean 'logits'"):
        verify(mlp, other, mapping={"y": "logit"})


def test_another_shape_is_an_error(mlp, convnet):
    other = edit(edit(mlp, "W2", lambda w: w[:, :3]), "b2", lambda b: b[:3])
    with pytest.raises(InputError, match="shape"):
        verify(mlp, other)
    with pytest.raises(InputError, match=r"wants|Invalid|rank|invalid"):
        verify(mlp, convnet)


def test_wrong_provider_is_an_environment_error(mlp, monkeypatch):
    from bnpass.runtime import ort

    monkeypatch.setattr(ort.onnxruntime(), "get_available_providers", list)
    with pytest.raises(MissingDependencyError) as caught:
        verify(mlp, mlp, provider="cuda")
    assert caught.value.exit_code == 3


def test_given_data(convnet, rng):
    batches = [(rng.normal(size=(3, 3, 8, 8)).astype(np.float32), np.zeros(3))] * 2
    report = verify(convnet, fold_by_hand(convnet), data=batches)
    assert report.passed and report.draws == ["data, batch 0", "data, batch 1"]
    batches[1][0][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="batch 0 of the data has NaN"):
        verify(convnet, convnet, data=batches)
    with pytest.raises(InputError, match="no batch"):
        verify(convnet, convnet, data=[])


def test_data_is_cut_to_a_fixed_batch(rng):
    model = text(" g (float[1, 3] x) => (float[1, 3] y) { y = Relu(x) }")
    report = verify(model, model, data=[rng.normal(size=(5, 3))])
    assert report.passed and len(report.draws) == 5


def test_symbolic_sizes_are_searched():
    """H and W must be 64: 8 * 8 pixels a channel go into the Gemm."""
    model = text(
        """ g (float[N, 2, H, W] x) => (float[N, 3] y) {
            p = MaxPool<kernel_shape = [8, 8], strides = [8, 8]>(x)
            f = Flatten(p)
            y = Gemm(f, w)
        }""",
        w=np.ones((128, 3), np.float32),
    )
    report = verify(model, model)
    assert report.passed and "[2, 2, 64, 64]" in report.draws[0]
    wrong = edit(model, "w", lambda w: w[:127])
    with pytest.raises(InputError, match="no legal size") as caught:
        verify(wrong, wrong)
    assert "--dims" in caught.value.hint


def test_float64_convolution_has_a_stand_in():
    model = text(
        " g (double[N,3,4,4] x) => (double[N,2,4,4] y) { y = Conv(x, w) }",
        w=np.random.default_rng(0).normal(size=(2, 3, 1, 1)),
    )
    report = verify(model, model)
    assert report.passed and report.reference_engine == "bnpass float64"
    assert "stands in" in report.notes[0]
    assert report.rule.dtype == "float64"
    assert not verify(model, edit(model, "w", lambda w: w * (1 + 1e-6))).passed


def test_bfloat16_convolution_has_a_stand_in():
    model = text(" g (bfloat16[N,3,4,4] x) => (bfloat16[N,2,4,4] y) { y = Conv(x, w) }")
    model.ir_version, model.opset_import[0].version = 10, 22
    w = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(ml_dtypes.bfloat16)
    model.graph.initializer.append(
        helper.make_tensor("w", TensorProto.BFLOAT16, w.shape, w.tobytes(), raw=True)
    )
    report = verify(model, model)
    assert report.passed and report.reference_engine != "onnxruntime"
    assert report.rule.dtype == "bfloat16"


def test_half_precision_candidate(mlp):
    half = onnx.ModelProto()
    half.CopyFrom(mlp)
    for tensor in half.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (half.graph.input[0], half.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    report = verify(mlp, half)
    assert report.passed and report.rule.dtype == "float16"
    assert not verify(mlp, half, rtol=1e-5, atol=0).passed


def test_integer_outputs_must_be_equal():
    model = text(" g (float[N, 9] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }")
    other = text(" g (float[N, 9] x) => (int64[N] y) { y = ArgMin<axis = 1, keepdims = 0>(x) }")
    assert verify(model, model).passed
    assert not verify(model, other).passed


def test_external_data_and_subgraphs(tmp_path, rng):
    model = text(
        """ g (float[N, 4] x, bool c) => (float[N, 3] y) {
            h = MatMul(x, w)
            y = If (c) <
                then_branch = t () => (float[N, 3] a) { a = Relu(h) },
                else_branch = e () => (float[N, 3] b) { b = Neg(h) }
            >
        }""",
        w=rng.normal(size=(4, 3)).astype(np.float32),
    )
    path = tmp_path / "m.onnx"
    wrong = edit(model, "w", lambda w: w * np.float32(1.01))
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="m.data")
    assert verify(path, onnx.load(path)).passed
    report = verify(path, wrong)
    assert report.first_difference.value == "h"
    assert verify(path, path, changed={"h"}).passed


def test_local_functions():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N, 3] x) => (float[N, 3] y) { h = own.twice(x) y = Relu(h) }
        <domain: "own", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    assert verify(model, model).passed


def test_constant_output_is_noted():
    model = text(" g (float[N, 3] x) => (float[N, 3] y) { z = Sub(x, x) y = Relu(z) }")
    assert "does not vary" in verify(model, model).notes[0]


def test_random_reference_is_noted():
    model = text(" g (float[N, 3] x) => (float[N, 3] y) { r = RandomNormalLike(x) y = Add(x, r) }")
    report = verify(model, model)
    assert any("not deterministic" in note for note in report.notes)


def test_without_names_in_common_nothing_is_blamed(mlp):
    other = edit(mlp, "W1", lambda w: w * np.float32(1.5))
    for node in other.graph.node:
        node.input[0] = node.input[0].replace("a", "aa").replace("h", "hh")
        node.output[0] = node.output[0].replace("a", "aa").replace("h", "hh")
    report = verify(mlp, other)
    assert report.first_difference.value == "y"
    assert verify(mlp, other, changed={"y"}).first_difference is None


class TestTorch:
    @pytest.fixture
    def module(self, mlp):
        torch = pytest.importorskip("torch")
        layers = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 4), torch.nn.Dropout(0.5)
        )
        with torch.no_grad():
            for layer, index in ((layers[0], 1), (layers[2], 2)):
                layer.weight.copy_(torch.from_numpy(array(mlp, f"W{index}").T.copy()))
                layer.bias.copy_(torch.from_numpy(array(mlp, f"b{index}").copy()))
        return layers

    def test_module_against_model_both_ways(self, module, mlp):
        assert verify(module, mlp).passed
        report = verify(mlp, module)
        assert report.passed and report.candidate_engine == "torch"
        assert module.training and module[3].training

    def test_wrong_module_fails(self, module, mlp):
        module[0].weight.data *= 1.001
        report = verify(module, mlp)
        assert not report.passed and report.first_difference is None

    def test_two_modules_need_data(self, module, rng):
        with pytest.raises(InputError, match="data="):
            verify(module, module)
        assert verify(module, module, data=[rng.normal(size=(3, 6)).astype(np.float32)]).passed


def test_large_tensors_are_located_in_several_runs(monkeypatch, rng):
    """Only a few values are held at once; the first difference is still the right one."""
    import bnpass.runtime.difference as module

    monkeypatch.setattr(module, "_FIRST", 3)
    monkeypatch.setattr(module, "_HELD", 200)
    nodes = "\n".join(f"v{i + 1} = Add(v{i}, w{i})" for i in range(20))
    weights = {f"w{i}": rng.normal(size=8).astype(np.float32) for i in range(20)}
    model = text(
        f" g (float[N, 8] v0) => (float[N, 8] v20) {{ {nodes} }}".replace("\n", " "), **weights
    )
    wrong = edit(model, "w13", lambda w: w + np.float32(0.1))
    assert verify(model, wrong).first_difference.value == "v14"
