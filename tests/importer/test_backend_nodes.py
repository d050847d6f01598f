"""onnx's own node tests, run through the importer: every operator of the table."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from bnpass.errors import UnsupportedError  # noqa: E402
from bnpass.importer import known_ops, to_torch  # noqa: E402
from bnpass.importer.values import from_array, to_tensor, torch_dtype  # noqa: E402

NAMED = frozenset(
    """
    Conv Reshape Add Concat Mul Gemm Relu Transpose ReduceMean Shape Constant MaxPool Slice
    GlobalAveragePool Unsqueeze BatchNormalization ConstantOfShape Softmax Div Flatten Identity
    MatMul Sigmoid Gather Cast Squeeze Expand Sub AveragePool Sqrt Erf HardSigmoid Gelu Resize Split
    CastLike Clip LayerNormalization Pad Pow Tanh Equal HardSwish Range ReduceMax Where
    ConvTranspose Dropout GRU LRN LSTM LeakyRelu Log Max Not ReduceSum Cos Sin Exp Mod PRelu
    ReduceL2 Softplus Sum And ArgMax CumSum DepthToSpace Elu GatherElements GatherND GlobalMaxPool
    Greater GreaterOrEqual GroupNormalization If InstanceNormalization LessOrEqual LogSoftmax Mish
    Neg RNN Reciprocal ReduceMin ScatterElements ScatterND Selu Size
    """.split()  # noqa: SIM905 - reads better than 88 quoted names
)
"""The operators that float models were found to use."""

NO_SUCH_TYPE = ("INT4", "INT2", "FLOAT4", "E8M0", "string")
"""Element types that torch has no tensors of; as part of a case's name."""

REFUSED = {
    "test_identity_sequence": "sequences are no tensors",
    "test_identity_opt": "optionals are no tensors",
    "test_if": "the condition is an input",
    "test_if_seq": "the condition is an input",
    "test_if_opt": "the condition is an input",
}
"""Cases that must raise UnsupportedError."""

DIFFERENT = {
    "test_training_dropout_default": "random",
    "test_training_dropout_default_mask": "random",
    "test_training_dropout": "random",
    "test_training_dropout_mask": "random",
    "test_resize_downsample_scales_linear_align_corners": "onnxruntime rounds the size first",
    "test_resize_downsample_scales_cubic_align_corners": "onnxruntime rounds the size first",
}
"""Cases whose expected values are not what is wanted here."""


@lru_cache(maxsize=1)
def all_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


@lru_cache(maxsize=1)
def cases() -> dict[str, list[Any]]:
    """Operator -> the cases that consist of one node of it."""
    grouped = defaultdict(list)
    for case in all_cases():
        nodes = case.model.graph.node
        if len(nodes) == 1 and not nodes[0].domain:
            grouped[nodes[0].op_type].append(case)
    return grouped


def reason_to_refuse(name: str) -> str:
    """Why a case cannot be imported; empty if it can."""
    if name in REFUSED:
        return REFUSED[name]
    return next((f"torch has no {t}" for t in NO_SUCH_TYPE if t in name.replace("_to_", "_")), "")


def run(case: Any) -> bool:
    """Whether the importer's outputs are the expected ones; raises as the importer does."""
    gm = to_torch(case.model, batch="keep").eval()
    for inputs, outputs in case.data_sets:
        infos = zip(inputs, case.model.graph.input, strict=True)
        feeds = [as_tensor(value, info) for value, info in infos]
        with torch.no_grad():
            made = gm(*feeds)
        made = made if isinstance(made, tuple) else (made,)
        if not same(made, outputs, case):
            return False
    return True


def as_tensor(value: Any, info: onnx.ValueInfoProto) -> Any:
    if isinstance(value, onnx.TensorProto):
        return to_tensor(value)
    dtype = torch_dtype(info.type.tensor_type.elem_type)
    assert dtype is not None
    return from_array(np.asarray(value), dtype)


def same(made: Sequence[Any], wanted: Sequence[Any], case: Any) -> bool:
    assert len(made) == len(wanted)
    for tensor, value, info in zip(made, wanted, case.model.graph.output, strict=True):
        right = as_tensor(value, info)
        if tensor.dtype != right.dtype or tensor.shape != right.shape:
            return False
        if tensor.dtype.is_floating_point:
            pair = tensor.detach().double().numpy(), right.double().numpy()
            eps = torch.finfo(right.dtype).eps if right.element_size() == 2 else 0.0
            tolerance = {"rtol": max(case.rtol, 1e-4, 4 * eps), "atol": max(1e-6, eps)}
            if not np.allclose(*pair, **tolerance, equal_nan=True):
                return False
        elif not torch.equal(tensor, right):
            return False
    return True


OPS = sorted({*known_ops(), "Constant", "If"})


@pytest.mark.parametrize("op_type", OPS)
def test_every_case_of_an_operator_passes_or_is_refused(op_type: str) -> None:
    for case in cases().get(op_type, []):
        if case.name in DIFFERENT:
            continue
        if reason_to_refuse(case.name):
            with pytest.raises(UnsupportedError):
                to_torch(case.model, batch="keep")
        else:
            assert run(case), case.name


def test_the_operators_that_models_use_pass() -> None:
    """The best other reader passed 631 of the 673 cases of an earlier onnx."""
    named = [c for op in sorted(NAMED) for c in cases().get(op, [])]
    left_out = [c for c in named if c.name in DIFFERENT or reason_to_refuse(c.name)]
    missing = NAMED - set(OPS)
    assert not missing
    assert len(named) - len(left_out) >= 660


def test_no_case_of_several_nodes_is_wrong() -> None:
    """Operators written out in others: each passes or is refused."""
    passed = 0
    for case in all_cases():
        if len(case.model.graph.node) == 1:
            continue
        try:
            assert run(case), case.name
        except UnsupportedError:
            continue
        passed += 1
    assert passed >= 350


@pytest.mark.parametrize("name", [n for n, why in DIFFERENT.items() if "onnxruntime" in why])
def test_where_onnxruntime_differs_from_the_standard_it_is_followed(name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    case = next(c for c in cases()["Resize"] if c.name == name)
    (inputs, _), *_ = case.data_sets
    session = ort.InferenceSession(
        case.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: v for i, v in zip(case.model.graph.input, inputs, strict=True)}
    wanted = session.run(None, feeds)[0]
    gm = to_torch(case.model, batch="keep").eval()
    made = gm(*[torch.from_numpy(np.asarray(v)) for v in inputs])
    np.testing.assert_allclose(made.numpy(), wanted, rtol=1e-4, atol=1e-5)
