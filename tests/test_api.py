"""The public functions: arguments, files, and what comes back."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest

import bnpass
from bnpass.errors import InputError, OutputError, UsageError
from tests import processes
from tests.helpers import Norm, assert_same, build

CONV = """(float[N,3,8,8] x) => (float[] y) {
  c = Conv(x, w, b)
  s = BN(c, n)
  r = Relu(s)
  y = Conv(r, v)
}"""


@pytest.fixture
def model():
    return build(CONV, {"w": (4, 3, 3, 3), "b": (4,), "v": (2, 4, 1, 1), "n": Norm(4)})


@pytest.fixture
def plain():
    text = CONV.replace("s = BN(c, n)\n", "").replace("Relu(s)", "Relu(c)")
    return build(text, {"w": (4, 3, 3, 3), "b": (4,), "v": (2, 4, 1, 1)})


def test_a_path_in_and_a_path_out(model, plain, tmp_path):
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    before = source.read_bytes()
    assert bnpass.fold(source, output=target) == target
    assert [n.op_type for n in onnx.load(target).graph.node] == ["Conv", "Relu", "Conv"]
    assert source.read_bytes() == before
    onnx.save(plain, source)
    assert bnpass.insert(source, output=target, force=True) == target
    assert "BatchNormalization" in [n.op_type for n in onnx.load(target).graph.node]


def test_a_model_in_and_a_model_out(model):
    data = model.SerializeToString()
    after = bnpass.fold(model)
    assert isinstance(after, onnx.ModelProto) and model.SerializeToString() == data
    assert_same(model, after)


def test_an_output_that_exists_is_not_replaced(model, tmp_path):
    target = tmp_path / "out.onnx"
    target.write_bytes(b"mine")
    for function in (bnpass.fold, bnpass.insert):
        with pytest.raises(OutputError):
            function(model, output=target)
        assert target.read_bytes() == b"mine"
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    before = source.read_bytes()
    with pytest.raises(OutputError):
        bnpass.fold(source, output=source, force=True)
    assert source.read_bytes() == before


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "no.onnx"
    path.write_bytes(b"\x00\x01not a model")
    for function in (bnpass.fold, bnpass.insert, bnpass.inspect):
        with pytest.raises(InputError):
            function(path)
        with pytest.raises(InputError):
            function(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("function", "options"),
    [(bnpass.fold, {"leftover": "none"}), (bnpass.fold, {"training_mode": "eval"}),
     (bnpass.insert, {"init": "preserved"})],
)  # fmt: skip
def test_wrong_choices_are_usage_errors(function, options, model):
    with pytest.raises(UsageError) as caught:
        function(model, **options)
    assert next(iter(options)) in str(caught.value) and caught.value.hint


def test_a_plan_changes_nothing(model, plain):
    plan = bnpass.fold(model, plan_only=True)
    assert [e.how for e in plan.entries] == ["backward"]
    plan = bnpass.insert(plain, plan_only=True)
    assert [s.value for s in plan.sites] == ["c"] and plan.to_dict()["biases_dropped"] == 1


def test_nothing_to_do_gives_an_equal_copy(plain):
    after = bnpass.fold(plain)
    assert after is not plain and after == plain


def test_insert_then_fold_is_the_original(plain):
    for init in ("preserve", "calibrated"):
        data = [np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)]
        trainable = bnpass.insert(plain, init=init, data=data if init == "calibrated" else None)
        assert_same(plain, trainable)
        deployed = bnpass.fold(trainable)
        assert_same(plain, deployed)
        assert [n.op_type for n in deployed.graph.node] == ["Conv", "Relu", "Conv"]


def test_folding_and_inserting_import_no_torch(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    code = (
        "import sys, bnpass; assert 'onnx' not in sys.modules;"
        f"bnpass.fold({str(path)!r}, verify=False); bnpass.insert({str(path)!r});"
        "assert 'torch' not in sys.modules"
    )
    processes.run([sys.executable, "-c", code], check=True)
