"""free_batch: what is provably the batch becomes symbolic, everything else is named."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from bnpass.errors import InputError
from bnpass.frontends.onnx.free_batch import free_batch, plan_batch
from tests import processes

RNG = np.random.default_rng(0)


def parse(text: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> agraph {text}')
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in weights.items())
    return model


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def check(model: onnx.ModelProto, *shape: int) -> onnx.ModelProto:
    """The freed model on 5 samples gives what the original gives on each of them."""
    before = model.SerializeToString()
    freed = free_batch(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(freed, full_check=True)
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    x = normal(3 * size, *shape)
    each = [run(model, part) for part in np.split(x, 3)]
    np.testing.assert_allclose(run(freed, x), np.concatenate(each), rtol=1e-4, atol=1e-5)
    assert freed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert freed.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    return freed


def test_conv_reshape_gemm() -> None:
    model = parse(
        """(float[1, 3, 8, 8] x) => (float[1, 5] y)
        <int64[2] shape = {1, 256}, float[1, 4, 8, 8] hidden> {
        hidden = Conv <pads = [1, 1, 1, 1]> (x, W)  r = Relu(hidden)  f = Reshape(r, shape)
        y = Gemm(f, V) }""",
        W=normal(4, 3, 3, 3), V=normal(256, 5),
    )  # fmt: skip
    freed = check(model, 3, 8, 8)
    assert "shape" not in {t.name for t in freed.graph.initializer}


def test_one_shape_constant_for_two_meanings() -> None:
    """[2, 6] is a batch of 2 once; the other use of the same constant is a weight's shape."""
    model = parse(
        """(float[2, 2, 3] x) => (float[2, 2] y) <int64[2] shape = {2, 6}> {
        f = Reshape(x, shape)  w = Reshape(W, shape)  t = Transpose <perm = [1, 0]> (w)
        y = MatMul(f, t) }""",
        W=normal(12),
    )
    freed = check(model, 2, 3)
    assert "shape" in {t.name for t in freed.graph.initializer}


def test_shuffle_and_attention_shapes() -> None:
    check(
        parse(
            """(float[1, 6, 4, 4] x) => (float[1, 6, 4, 4] y)
            <int64[5] split = {1, 2, 3, 4, 4}, int64[4] back = {1, 6, 4, 4}> {
            a = Reshape(x, split)  b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
            y = Reshape(b, back) }"""
        ),
        6, 4, 4,
    )  # fmt: skip
    check(
        parse(
            """(float[1, 4, 6] x) => (float[1, 4, 6] y)
            <int64[3] heads = {4, 2, 3}, int64[3] back = {1, 4, 6}, int64[2] flat = {-1, 6}> {
            f = Reshape(x, flat)  m = MatMul(f, W)  h = Reshape(m, back)
            y = Add(h, x) }""",
            W=normal(6, 6),
        ),
        4, 6,
    )  # fmt: skip


def test_softmax_before_opset_13_and_a_recurrent_layer() -> None:
    check(
        parse("(float[1, 6] x) => (float[1, 6] y) { y = Softmax <axis = 1> (x) }", opset=11), 6
    )
    model = parse(
        """(float[1, 4, 3] x) => (float[1, 4, 5] y) <int64[1] axis = {1}> {
        t = Transpose <perm = [1, 0, 2]> (x)
        r = GRU <hidden_size = 5> (t, W, R, , , h0)  s = Squeeze(r, axis)
        y = Transpose <perm = [1, 0, 2]> (s) }""",
        W=normal(1, 15, 3), R=normal(1, 15, 5), h0=np.zeros((1, 1, 5), np.float32),
    )  # fmt: skip
    freed = check(model, 4, 3)
    assert freed.graph.node[1].input[5] == ""


def test_computed_shapes_and_constants_of_shape() -> None:
    check(
        parse(
            """(float[1, 4, 3] x) => (float[1, 12] y)
            <int64 zero = {0}, int64[1] axes = {0}, int64[1] rest = {-1}> {
            s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axes)
            shape = Concat <axis = 0> (u, rest)  y = Reshape(x, shape) }"""
        ),
        4, 3,
    )  # fmt: skip


def test_a_symbolic_model_comes_back_equal() -> None:
    model = parse("(float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }")
    freed = free_batch(model)
    assert freed is not model
    assert freed.SerializeToString() == model.SerializeToString()


REFUSED = {
    "ReduceMean 'y'": "(float[4, 3] x) => (float[1, 3] y) { y = ReduceMean <axes = [0]> (x) }",
    "Squeeze 'y'": "(float[1, 4] x) => (float[4] y) <int64[1] a = {0}> { y = Squeeze(x, a) }",
    "Concat 'y'": "(float[2, 4] x) => (float[4, 4] y) { y = Concat <axis = 0> (x, x) }",
    "Add 'y'": "(float[2, 3] x) => (float[2, 3] y) <float[2, 1] c = {1.0, 2.0}> { y = Add(x, c) }",
    "Split 'y'": "(float[2, 6] x, int64[2] s) => (float[2, 2] y, float[2, 4] z)"
    "  { y, z = Split <axis = 1> (x, s) }",
    "Softmax 'y'": "(float[2, 3] x) => (float[2, 3] y) { y = Softmax <axis = 0> (x) }",
    "Reshape 'y'": "(float[2, 3] x) => (float[3, 2] y) <int64[2] s = {3, 2}> { y = Reshape(x, s) }",
    "MatMul 'y'": "(float[3, 3] x) => (float[3, 3] y) { t = Transpose(x)  y = MatMul(t, x) }",
    "Mul 'y'": "(float[2, 3] x) => (float[2, 3] y) { t = Shape(x) c = Cast <to = 1> (t)"
    "  i = ReduceSum <keepdims = 0> (c)  y = Mul(x, i) }",
}


@pytest.mark.parametrize("node", [n for n in REFUSED if not n.startswith("Mul")])
def test_what_mixes_samples_is_refused_by_name(node: str) -> None:
    with pytest.raises(InputError, match=node) as caught:
        free_batch(parse(REFUSED[node]))
    assert caught.value.hint


def test_a_number_that_holds_the_batch_size_is_refused() -> None:
    with pytest.raises(InputError, match="ReduceSum 'i'"):
        free_batch(parse(REFUSED["Mul 'y'"]))


def test_torch_is_not_imported() -> None:
    code = "import sys, bnpass.frontends.onnx.free_batch; sys.exit('torch' in sys.modules)"
    assert processes.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("opset", [7, 13, 20])
def test_a_class_token_goes_to_every_sample(opset: int) -> None:
    model = parse(
        """(float[1, 4, 6] x) => (float[1, 5, 6] y) {
        a = MatMul(x, W)  c = Concat <axis = 1> (token, a)  y = Add(c, position) }""",
        opset, W=normal(6, 6), token=normal(1, 1, 6), position=normal(1, 5, 6),
    )  # fmt: skip
    freed = check(model, 4, 6)
    assert freed.graph.node[-2].op_type == "Concat"


def test_a_token_behind_a_transposed_batch() -> None:
    model = parse(
        """(float[1, 4, 6] x) => (float[1, 5, 6] y) <int64[3] shape = {1, 1, 6}> {
        t = Transpose <perm = [1, 0, 2]> (x)  e = Expand(token, shape)
        c = Concat <axis = 0> (t, e)  y = Transpose <perm = [1, 0, 2]> (c) }""",
        token=normal(6),
    )
    check(model, 4, 6)


def test_the_batch_size_on_another_axis_is_refused() -> None:
    model = parse(
        """(float[1, 1] x) => (float[1, 1] y) <int64[1] zero = {0}> {
        s = Shape(x)  n = Gather(s, zero)  y = Expand(x, n) }"""
    )
    with pytest.raises(InputError, match=r"Expand 'y'.*on another axis"):
        free_batch(model)


def test_a_token_of_a_larger_batch_is_named() -> None:
    model = parse(
        "(float[2, 4, 6] x) => (float[2, 5, 6] y) { y = Concat <axis = 1> (token, x) }",
        token=normal(2, 1, 6),
    )
    with pytest.raises(InputError, match=r"Concat 'y'.*'token' has no batch"):
        free_batch(model)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_fixed_sizes(mode: str) -> None:
    model = parse(
        f"""(float[1, 2, 6, 5] x) => (float[1, 2, 9, 15] y) <int64[4] sizes = {{1, 2, 9, 15}}>
        {{ y = Resize <mode = "{mode}"> (x, , , sizes) }}"""
    )
    check(model, 2, 6, 5)


def test_an_output_that_merges_the_batch() -> None:
    """Rows of one sample stay together: the output has 4 rows a sample."""
    model = parse(
        """(float[1, 4, 6] x) => (float[4, 3] y) <int64[2] shape = {4, 6}>
        { f = Reshape(x, shape)  y = MatMul(f, W) }""",
        W=normal(6, 3),
    )
    freed = free_batch(model)
    x = normal(3, 4, 6)
    each = np.concatenate([run(model, part) for part in np.split(x, 3)])
    np.testing.assert_allclose(run(freed, x), each, rtol=1e-5)
    assert freed.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "4*N"


def test_sizes_that_are_given_to_expand_as_exporters_do() -> None:
    """-1 stands for an axis that stays: Where(Equal(shape, -1), 1, shape)."""
    model = parse(
        """(float[1, 4] x) => (float[1, 3, 4] y) <int64[1] front = {0}, int64[1] one = {1},
        int64[2] rest = {3, -1}, int64[3] minus = {-1, -1, -1}, int64[3] ones = {1, 1, 1},
        int64[1] axes = {1}> {
        s = Shape(x)  n = Slice(s, front, one)  k = Concat <axis = 0> (n, rest)
        same = Equal(k, minus)  wanted = Where(same, ones, k)
        u = Unsqueeze(x, axes)  y = Expand(u, wanted) }"""
    )
    check(model, 4)


STATE = """(float[2, 4, 3] x) => (float[2, 4, 5] y)
    <int64[1] front = {{1}}, int64[1] end = {{2}}, int64[1] layer = {{1}}, int64[1] width = {{5}},
    float[1, 2, 5] zeros = {{{numbers}}}, int64[1] axis = {{1}}> {{
    t = Transpose <perm = [1, 0, 2]> (x)
    s = Shape(t)  n = Slice(s, front, end)  k = Concat <axis = 0> (layer, n, width)
    h = Expand(zeros, k)  r = GRU <hidden_size = 5> (t, W, R, , , h)  q = Squeeze(r, axis)
    y = Transpose <perm = [1, 0, 2]> (q) }}"""


def test_a_state_that_is_expanded_from_zeros_of_one_batch_size() -> None:
    """As torch exports it with a fixed batch: [1, 2, 5] expands to no other size."""
    weights = {"W": normal(1, 15, 3), "R": normal(1, 15, 5)}
    model = parse(STATE.format(numbers=", ".join(["0.0"] * 10)), **weights)
    freed = check(model, 4, 3)
    x = normal(1, 4, 3)
    whole = run(model, np.concatenate([x, x]))
    np.testing.assert_allclose(run(freed, x), whole[:1], rtol=1e-5, atol=1e-6)
    other = parse(STATE.format(numbers=", ".join(map(str, range(10)))), **weights)
    with pytest.raises(InputError, match=r"Expand 'h'.*'zeros' has size 2 along the batch"):
        free_batch(other)


def test_what_rounds_the_batch_size_is_refused() -> None:
    model = parse(
        """(float[4, 2] x) => (float[2, 4] y) <int64[1] zero = {0}, int64[1] two = {2},
        int64[1] rest = {-1}> {
        s = Shape(x)  n = Gather(s, zero)  half = Div(n, two)
        k = Concat <axis = 0> (half, rest)  y = Reshape(x, k) }"""
    )
    with pytest.raises(InputError, match=r"Div 'half'.*divides by or rounds"):
        free_batch(model)


def test_sizes_lose_the_batch_before_they_meet_other_numbers() -> None:
    """Floor of a number that does not hold the batch size is nobody's business."""
    model = parse(
        """(float[1, 2, 6] x) => (float[1, 2, 3] y) <int64[1] two = {2}, int64[1] three = {3},
        float[1] half = {0.5}, int64[1] front = {1}, int64[1] axis = {2}> {
        s = Shape(x)  w = Slice(s, two, three)  f = Cast <to = 1> (w)  h = Mul(f, half)
        r = Floor(h)  e = Cast <to = 7> (r)  start = Sub(three, three)
        y = Slice(x, start, e, axis) }"""
    )
    check(model, 2, 6)


def test_scales_along_the_batch_are_refused() -> None:
    model = parse(
        """(float[1, 1, 2, 2] x) => (float[2, 1, 2, 2] y) <float[4] scales = {2, 1, 1, 1}>
        { y = Resize <mode = "nearest"> (x, , scales) }"""
    )
    with pytest.raises(InputError, match=r"Resize 'y'.*resizes the batch"):
        free_batch(model)


def test_the_branch_that_an_if_takes() -> None:
    model = parse(
        """(float[1, 4] x) => (float[1, 2] y) <int64 two = {2}> {
        s = Shape(x)  rank = Size(s)  is = Equal(rank, two)
        y = If (is) <then_branch = a () => (float[1, 2] t) { t = MatMul(x, W) },
                     else_branch = b () => (float[1, 2] e)
                     { m = Softmax <axis = 0> (x)  e = MatMul(m, W) }> }""",
        W=normal(4, 2),
    )
    check(model, 4)


def test_a_plan_says_what_changes() -> None:
    model = parse(
        "(float[1, 4, 6] x) => (float[1, 24] y) <int64[2] s = {1, 24}> { y = Reshape(x, s) }"
    )
    plan = plan_batch(model)
    assert str(plan) == "Reshape y reads [-1, 24] as input 1"
    assert plan.to_dict() == {
        "symbol": "N",
        "values": {"x": {"axis": 0, "factor": 1}, "y": {"axis": 0, "factor": 1}},
        "changed": [{"node": "y", "kind": "Reshape", "what": "reads [-1, 24] as input 1"}],
    }
    assert str(plan_batch(free_batch(model))) == "no operator has to change"
